//! Several standbys are to the primary's machine as one: what that says is what so many of them say as have to.
//!
//! An epoch is whole when [`Limits::quorum`] standbys have it (with [`Acks::All`] all that are in step), the address is leased from what
//! so many have heard, and it is there as long as so many are heard. Each of them that has begun the series gets each epoch; one that
//! misses something of it is *out of step*. As long as enough are in step the others go on as they are, and it gets a copy of
//! everything beside them, one at a time ([`Group::wish`]): it gives up what it has first, since that cannot be gone on from, and counts
//! again from when it says to have an epoch of that series. Where too few are in step there is another series, which begins
//! when all who are heard have given up what they had of the one before. A single standby is heard as it is.

use super::notice::Notice;
use super::{Acks, Event, Frame, Hand, Limits, Mark, Path, Word};
use std::time::Duration;

/// What is known of one of them.
#[derive(Debug, Clone)]
struct Member {
    /// Instance and sequence of the newest frame.
    newest: (u64, u64),
    whole: Mark,
    ready: bool,
    full: bool,
    left: bool,
    echo: u64,
    /// When what it has heard, and what it has, was last more than before.
    hears: Duration,
    moved: Duration,
    heard: [Option<Duration>; 2],
    notice: Notice,
    linked: bool,
    /// Something was heard of it since: what is known is said by who is there now.
    spoke: bool,
    /// It gets what comes of this series,
    joined: bool,
    /// or a copy of everything.
    filling: bool,
    /// How often in vain, and when it may be tried again.
    vain: u32,
    not_before: Duration,
}

/// What is to be done for one that is out of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It is to give up what it has.
    Yield(usize),
    /// It has nothing, and is to get a copy of everything.
    Fill(usize),
}

/// All of them, in the order of the user's.
#[derive(Debug, Clone)]
pub struct Group {
    limits: Limits,
    members: Vec<Member>,
    /// Of the frames that the primary is to hear.
    sequence: u64,
    /// What the last of these said.
    told: (Mark, u64, bool),
    /// The series that was begun last.
    begun: u64,
    stale: u64,
}

/// What so many of them have at least.
fn by<T: Ord>(count: usize, all: impl Iterator<Item = T>) -> Option<T> {
    let mut all: Vec<T> = all.collect();
    all.sort_by(|a, b| b.cmp(a));
    all.into_iter().nth(count.saturating_sub(1))
}

impl Group {
    /// Nothing is known of any of them.
    pub fn new(limits: Limits) -> Group {
        let member = Member {
            newest: (0, 0),
            whole: Mark::default(),
            ready: false,
            full: false,
            left: false,
            echo: 0,
            hears: Duration::ZERO,
            moved: Duration::ZERO,
            heard: [None; 2],
            notice: Notice::new(limits.beat, limits.timeout),
            linked: false,
            spoke: false,
            joined: false,
            filling: false,
            vain: 0,
            not_before: Duration::ZERO,
        };
        Group { limits, members: vec![member; limits.standbys], sequence: 0, told: Default::default(), begun: 0, stale: 0 }
    }

    fn is_alone(&self) -> bool {
        self.members.len() == 1
    }

    /// Frames of processes that were there before.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// How far heartbeats of one of them are off.
    pub fn jitter(&self, of: usize) -> Option<Duration> {
        self.members[of].notice.jitter()
    }

    /// Whether one of them could take over, as far as is known, with this series.
    pub fn is_ready(&self, of: usize, series: u64, now: Duration) -> bool {
        let member = &self.members[of];
        member.ready && member.whole.series == series && !member.notice.lost(now)
    }

    /// Whether nothing is heard of one of them any more.
    pub fn is_lost(&self, of: usize, now: Duration) -> bool {
        self.members[of].notice.lost(now)
    }

    /// Whether nothing comes by the link to one of them.
    pub fn is_mute(&self, of: usize, now: Duration) -> bool {
        self.members[of].notice.silent(Path::Link, now)
    }

    /// The last epoch that one of them has.
    pub fn whole(&self, of: usize) -> Mark {
        self.members[of].whole
    }

    /// Whether one of them gets what comes of this series.
    pub fn is_joined(&self, of: usize) -> bool {
        self.is_alone() || self.members[of].joined
    }

    /// A series begins: who is there gets all of it.
    pub fn begins(&mut self, series: u64) {
        self.begun = series;
        for member in &mut self.members {
            member.joined = member.linked && !member.left && member.whole.series == series;
            (member.filling, member.vain) = (false, 0);
        }
    }

    /// Whether one of them misses something of the series that is sent.
    pub fn is_behind(&self, of: usize) -> bool {
        self.begun > 0 && !self.is_joined(of)
    }

    /// Whether one of them gets a copy of everything beside the others.
    pub fn is_filling(&self, of: usize) -> bool {
        self.members[of].filling
    }

    /// What is to be done for one that is out of step, where the primary is protected without it, at this series.
    pub fn wish(&mut self, series: u64, now: Duration) -> Option<Wish> {
        for member in self.members.iter_mut().filter(|member| member.filling && member.notice.lost(now)) {
            member.filling = false;
        }
        // Who is heard, and not reached, does not keep the others waiting.
        let fills = |member: &Member| member.filling && member.linked;
        let busy = self.is_alone() || self.members.iter().any(fills) || self.begun != series;
        if busy || self.in_step() < self.limits.quorum() {
            return None;
        }
        let there = |m: &Member| m.linked && m.spoke && !m.joined && !m.left && !m.notice.lost(now) && m.whole.series == series;
        let of = self.members.iter().position(|member| there(member) && now >= member.not_before)?;
        let again = self.limits.again;
        let member = &mut self.members[of];
        if member.whole.number > 0 || member.ready || member.full {
            member.not_before = now + again;
            return Some(Wish::Yield(of));
        }
        member.filling = true;
        Some(Wish::Fill(of))
    }

    fn linked(&self) -> bool {
        self.members.iter().filter(|member| member.linked).count() >= self.limits.quorum()
    }

    fn in_step(&self) -> usize {
        self.members.iter().filter(|member| member.joined).count()
    }

    /// One of them misses something of the series; what that is to the primary.
    fn out_of_step(&mut self, of: usize, event: Event, now: Duration) -> Option<Event> {
        const LONGEST: u32 = 64;
        let before = self.in_step();
        let member = &mut self.members[of];
        member.joined = false;
        if std::mem::take(&mut member.filling) || event == Event::Full {
            // Each time after twice as long.
            member.vain = (member.vain * 2).clamp(1, LONGEST);
            member.not_before = now + self.limits.again * member.vain;
        }
        (before >= self.limits.quorum() && self.in_step() < self.limits.quorum()).then_some(event)
    }

    /// What has happened with one of them; what that is to the machine of a primary of this generation, which is at this series.
    pub fn take(&mut self, of: usize, event: Event, (generation, series): (u64, u64), now: Duration) -> Vec<Event> {
        if self.is_alone() {
            return vec![event];
        }
        let before = self.linked();
        match event {
            Event::Heard(path, frame) => return self.hear(of, path, frame, (generation, series), now),
            Event::Linked => (self.members[of].linked, self.members[of].spoke) = (true, false),
            Event::LinkLost => self.members[of].linked = false,
            Event::Anew => return self.out_of_step(of, Event::Anew, now).into_iter().collect(),
            // The others may take over, whatever has become of one.
            Event::Gone => return Vec::new(),
            other => return vec![other],
        }
        if before == self.linked() { Vec::new() } else { vec![event] }
    }

    fn hear(&mut self, of: usize, path: Path, frame: Frame, (generation, series): (u64, u64), now: Duration) -> Vec<Event> {
        let Word::Standby { whole, ready, left, full, echo, .. } = frame.word else { return vec![Event::Heard(path, frame)] };
        if frame.generation != generation {
            return vec![Event::Heard(path, frame)];
        }
        let mut out = Vec::new();
        let heard = self.heard(path);
        let member = &mut self.members[of];
        if frame.instance < member.newest.0 {
            self.stale += 1;
            return out;
        }
        let fresh = frame.instance > member.newest.0 && member.newest.0 != 0;
        if frame.instance > member.newest.0 {
            member.notice.meet();
            (member.whole, member.ready, member.left, member.full, member.echo) = Default::default();
        }
        member.notice.hear(path, frame.sequence, now);
        member.heard[path as usize] = Some(now);
        let newest = (frame.instance, frame.sequence) > member.newest;
        let mut short = false;
        if newest {
            member.newest = (frame.instance, frame.sequence);
            short = full && !member.full && (member.joined || member.filling);
            if whole != member.whole {
                member.moved = now;
            }
            if echo > member.echo {
                (member.hears, member.echo) = (now, echo);
            }
            (member.whole, member.ready, member.left, member.full, member.spoke) = (whole, ready, left, full, true);
            // From now on it is one of them.
            if member.filling && ready && whole.number > 0 && whole.series == self.begun {
                (member.joined, member.filling, member.vain, member.moved) = (true, false, 0, now);
            }
        }
        if short {
            out.extend(self.out_of_step(of, Event::Full, now));
        } else if fresh {
            // What it was to have nobody has there any more.
            out.extend(self.out_of_step(of, Event::Anew, now));
        }
        let told = self.told(series, now);
        if told != self.told || self.heard(path) > heard {
            self.told = told;
            out.push(Event::Heard(path, self.frame(told, generation)));
        }
        out
    }

    /// When enough of them were heard last.
    fn heard(&self, path: Path) -> Option<Duration> {
        by(self.limits.quorum(), self.members.iter().map(|member| member.heard[path as usize])).flatten()
    }

    fn told(&self, series: u64, now: Duration) -> (Mark, u64, bool) {
        let least = self.limits.quorum();
        let wholes = || self.members.iter().map(|member| member.whole);
        let most = by(least, wholes()).unwrap_or_default();
        let recent = |at: Duration| now.saturating_sub(at) < self.limits.timeout;
        let whole = match self.limits.acks {
            // All who are there are to have this one from its beginning.
            _ if series > self.begun => {
                let there = |member: &&Member| member.linked && recent(member.hears);
                by(self.members.iter().filter(there).count().max(least), wholes()).unwrap_or_default()
            }
            // Who hears nothing, or gets no further, is not waited for: the others may do without it.
            Acks::All => {
                let waits = |member: &&Member| member.joined && recent(member.hears) && (member.whole >= most || recent(member.moved));
                by(self.members.iter().filter(waits).count().max(least), wholes()).unwrap_or_default()
            }
            Acks::One | Acks::Majority => most,
        };
        let echo = by(least, self.members.iter().map(|member| member.echo)).unwrap_or_default();
        let lost = |member: &Member| member.notice.lost(now) || !member.notice.met();
        let left = self.members.iter().filter(|member| member.left).count() >= least && self.members.iter().all(|m| m.left || lost(m));
        (whole, echo, left)
    }

    fn frame(&mut self, (whole, echo, left): (Mark, u64, bool), generation: u64) -> Frame {
        // Nothing is to be measured by these.
        const APART: u64 = 4;
        self.sequence += APART;
        let word = Word::Standby { whole, ready: true, left, full: false, echo, hand: Hand::Nothing };
        Frame { generation, instance: 1, sequence: self.sequence, word }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that gets a copy of everything is heard, and its link is gone: another one that is out of step gets its own all the same.
    #[test]
    fn who_is_not_reached_keeps_nobody_waiting() {
        let mut group = Group::new(Limits { standbys: 3, acks: Acks::One, ..Limits::default() });
        let (at, ms) = ((1, 1), Duration::from_millis);
        let mut sequence = 0;
        let mut says = |group: &mut Group, of: usize, number: u64, now: Duration| {
            sequence += 1;
            let whole = Mark { series: 1, number };
            let word = Word::Standby { whole, ready: number > 0, left: false, full: false, echo: 0, hand: Hand::Nothing };
            group.take(of, Event::Heard(Path::Link, Frame { generation: 1, instance: 1, sequence, word }), at, now);
        };
        for of in 0..3 {
            group.take(of, Event::Linked, at, ms(0));
            says(&mut group, of, 0, ms(1));
        }
        group.begins(1);
        says(&mut group, 0, 5, ms(2));
        for of in [1, 2] {
            group.take(of, Event::Anew, at, ms(3));
        }
        assert_eq!(group.wish(1, ms(4)), Some(Wish::Fill(1)));
        assert_eq!(group.wish(1, ms(5)), None, "one at a time");
        group.take(1, Event::LinkLost, at, ms(6));
        says(&mut group, 1, 0, ms(7));
        assert_eq!(group.wish(1, ms(8)), Some(Wish::Fill(2)));
        assert_eq!(group.wish(1, ms(9)), None);
        // It has come, and the first one is reached again, with nothing.
        says(&mut group, 2, 7, ms(10));
        assert!(group.is_joined(2) && !group.is_filling(2));
        group.take(1, Event::Linked, at, ms(11));
        group.take(1, Event::Anew, at, ms(11));
        says(&mut group, 1, 0, ms(12));
        assert_eq!(group.wish(1, ms(13)), None, "in vain once, after a while");
        (0..3).for_each(|of| says(&mut group, of, if of == 1 { 0 } else { 9 }, ms(1100)));
        assert_eq!(group.wish(1, ms(1101)), Some(Wish::Fill(1)));
    }
}
