//! The end where the tree runs.

mod hand;
mod loss;

use super::notice::Notice;
use super::pace::Pace;
use super::{Action, Activation, Event, Frame, Hand, Limits, Mark, Path, Said, Word};
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Recording,
    Watching,
    /// Nothing gets out, and nothing is said: whoever is there may take over.
    Cut,
    /// The witness is asked whether it may go on alone. `lost`: nothing is heard of the standby; `cut`: that was said before.
    Asking {
        lost: bool,
        cut: bool,
    },
    Fencing,
    /// The watch ends as soon as the standby knows.
    Leaving,
    Demoting,
    /// Another one has taken over, and whether it runs there is yet to be heard.
    Demoted,
    /// It does: it is being ended here.
    Reaping,
    /// The tree stands still, and the standby gets ready to take over.
    Yielding,
    /// It was told to let it run.
    Yielded,
    /// It runs there.
    Finishing,
    Over,
}

/// An epoch that is not known to be whole at the standby.
#[derive(Debug, Clone, Copy)]
struct Flying {
    mark: Mark,
    ready: bool,
    begun: Duration,
    sent: bool,
}

/// How many epochs may be under way: one on the link while the next one is copied.
const PIPELINE: usize = 2;
/// How often everything that has changed meanwhile is copied while all goes out freely.
const ROUNDS: u64 = 8;
/// Frames whose time of sending is remembered.
const REMEMBERED: usize = 256;

/// The primary's machine.
#[derive(Debug, Clone)]
pub struct Primary {
    generation: u64,
    limits: Limits,
    phase: Phase,
    notice: Notice,
    pace: Pace,
    /// Grows with each meio that watches the same tree.
    instance: u64,
    /// The standby that is known.
    known: u64,
    sequence: u64,
    /// When frames were said.
    sent: VecDeque<(u64, Duration)>,
    /// Before this no standby can have taken over.
    safe: Duration,
    /// When the newest frame was said that the standby has heard, or when it was to hear the first.
    echoed: Duration,
    /// It goes on alone although the standby may live.
    risk: bool,
    beat: Duration,
    series: u64,
    /// The standby has said that it is at this series.
    confirmed: bool,
    /// Of the last epoch that was begun.
    number: u64,
    /// The first of this series that can be taken over from has been begun.
    guarded: bool,
    /// The standby is known to be able to take over.
    protected: bool,
    /// The last round was short enough.
    settled: bool,
    /// Epochs are further apart than was wished, and that was said.
    slow: bool,
    capturing: Option<Flying>,
    flight: VecDeque<Flying>,
    shipping: Option<Mark>,
    linked: bool,
    /// When the link was made, or given up.
    made: Duration,
    /// Nothing comes over the link.
    quiet: bool,
    /// Output goes out.
    free: bool,
    waiting: bool,
    /// What failed is not tried again before this.
    not_before: Duration,
    /// How long the standby is left alone that had no room, in units of what is waited.
    refused: u32,
    /// Frames that were not heeded.
    stale: u64,
    demoted: bool,
    /// It runs where it was taken over.
    replaced: bool,
    yields: hand::Yields,
    /// Nothing is copied until somebody wants it.
    paused: bool,
}

impl Primary {
    /// Of a watch that begins, over a link that is there.
    pub fn begin(generation: u64, limits: Limits) -> Self {
        Primary {
            generation,
            limits,
            phase: Phase::New,
            notice: Notice::new(limits.beat, limits.timeout),
            pace: Pace::new(&limits),
            instance: 0,
            known: 0,
            sequence: 0,
            sent: VecDeque::new(),
            safe: Duration::ZERO,
            echoed: Duration::ZERO,
            risk: false,
            beat: Duration::ZERO,
            series: 1,
            confirmed: false,
            number: 0,
            guarded: false,
            protected: false,
            settled: false,
            slow: false,
            capturing: None,
            flight: VecDeque::new(),
            shipping: None,
            linked: true,
            made: Duration::ZERO,
            quiet: true,
            free: true,
            waiting: false,
            not_before: Duration::ZERO,
            refused: 0,
            stale: 0,
            demoted: false,
            replaced: false,
            yields: hand::Yields::default(),
            paused: false,
        }
    }

    /// Of a watch whose meio has died, the `instance`th time: output is held, and stays so until the standby has said that it is
    /// at a series of this one's, or that it has taken over.
    pub fn resume(generation: u64, instance: u64, limits: Limits) -> Self {
        let first = instance << 32;
        let begun = Primary::begin(generation, limits);
        Primary { instance, sequence: first, series: first + 1, free: false, linked: false, ..begun }
    }

    /// Of one that was demoted before its meio died: `generation` has taken over, and the tree stands still, or is about to.
    pub fn overtaken(generation: u64, instance: u64, limits: Limits) -> Self {
        Primary { demoted: true, ..Primary::resume(generation, instance, limits) }
    }

    /// Frames that were not heeded: from a lower generation, an earlier standby, or not a standby's at all.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// Of the frames that are sent.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Which copy of everything it is at.
    pub fn series(&self) -> u64 {
        self.series
    }

    /// Output goes out, and nobody can take over.
    pub fn is_free(&self) -> bool {
        self.free && self.phase == Phase::Watching
    }

    /// It survives the loss of this host, and goes on as it is.
    pub fn is_protected(&self) -> bool {
        self.protected && self.guarded && self.phase == Phase::Watching
    }

    /// Somebody else has taken over.
    pub fn is_demoted(&self) -> bool {
        self.demoted
    }

    /// See [`Notice::jitter`].
    pub fn jitter(&self) -> Option<Duration> {
        self.notice.jitter()
    }

    /// Time between the beginnings of two epochs, as it is now.
    pub fn interval(&self) -> Duration {
        self.pace.interval()
    }

    /// When it wants to be told the time.
    pub fn wake(&self) -> Option<Duration> {
        let at = match self.phase {
            Phase::New | Phase::Over => return None,
            _ => self.beat,
        };
        Some(if self.may_capture() { at.min(self.due()) } else { at })
    }

    /// One step.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        if self.phase == Phase::Over {
            return out;
        }
        if self.notice.look(now) {
            self.echoed = now;
            if self.phase == Phase::Watching && !self.free {
                // It was away: whether another one has taken over meanwhile is yet to be heard.
                self.phase = Phase::Cut;
                out.push(Action::Hide);
            }
        }
        match event {
            Event::Start if self.phase == Phase::New && self.demoted => {
                self.phase = Phase::Demoting;
                out.push(Action::Demote);
            }
            Event::Start if self.phase == Phase::New => {
                self.phase = Phase::Recording;
                out.push(Action::Record(Activation::Primary { generation: self.generation, instance: self.instance }));
            }
            Event::Heard(path, frame) => self.hear(path, frame, now, &mut out),
            Event::Linked => (self.linked, self.made) = (true, now),
            Event::Anew => self.anew(&mut out),
            Event::Full => self.no_room(now, &mut out),
            Event::LinkLost => {
                (self.linked, self.shipping) = (false, None);
                self.doubt();
                self.flight.iter_mut().for_each(|flying| flying.sent = false);
            }
            Event::Gone => self.gone(now, &mut out),
            Event::Fenced(done) => self.fenced(done, now, &mut out),
            Event::Ruled(ruling) => self.ruled(ruling, now, &mut out),
            Event::Unruled => self.unruled(now, &mut out),
            Event::Recorded(done) => self.recorded(done, now, &mut out),
            Event::Wanted => self.waiting = true,
            Event::Idle(idle) => self.pace.idle(idle),
            Event::Stood(stop) => self.pace.stood(stop),
            Event::Failed if self.phase == Phase::Reaping => self.give_up(&mut out),
            Event::Captured(_) | Event::Failed => self.captured(event, now, &mut out),
            Event::Sent(mark) if self.shipping == Some(mark) => {
                self.shipping = None;
                self.flight.iter_mut().filter(|flying| flying.mark == mark).for_each(|flying| flying.sent = true);
            }
            Event::Over => self.leave(&mut out),
            Event::Yield => self.wanted(now, &mut out),
            Event::Pause => self.pause(&mut out),
            Event::Resume if self.paused => {
                self.paused = false;
                out.push(Action::Say(Said::Unprotected));
            }
            Event::Finished if self.phase == Phase::Finishing => out.push(Action::Record(Activation::Demoted(self.generation))),
            Event::Finished if self.phase == Phase::Reaping => self.over(Said::Replaced, &mut out),
            Event::Demoted if self.phase == Phase::Demoting => out.push(Action::Record(Activation::Demoted(self.generation))),
            _ => {}
        }
        self.judge(now, &mut out);
        self.work(now, &mut out);
        if now >= self.beat {
            self.say(now, &mut out);
        }
        out
    }

    fn recorded(&mut self, done: bool, now: Duration, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Recording if done => {
                (self.phase, self.echoed) = (Phase::Watching, now);
                if self.free {
                    out.push(Action::Say(Said::Unprotected));
                } else {
                    // The standby is there, or will be lost.
                    self.notice.touch(Path::Beat, now);
                }
            }
            Phase::Recording => self.over(Said::Over, out),
            Phase::Demoting => self.stopped(out),
            Phase::Finishing => self.over(Said::Switched, out),
            _ => {}
        }
    }

    fn over(&mut self, said: Said, out: &mut Vec<Action>) {
        self.phase = Phase::Over;
        out.extend([Action::Say(said), Action::End]);
    }

    fn hear(&mut self, path: Path, frame: Frame, now: Duration, out: &mut Vec<Action>) {
        if self.phase == Phase::Finishing {
            return;
        }
        if self.demoted {
            return self.hear_of_it(&frame, out);
        }
        if frame.generation > self.generation {
            if !self.ends_here(&frame, out) {
                self.demote(frame.generation, out);
                self.hear_of_it(&frame, out);
            }
            return;
        }
        let Word::Standby { whole, left, full, echo, hand, .. } = frame.word else {
            self.stale += 1;
            return;
        };
        if frame.generation < self.generation || frame.instance < self.known {
            self.stale += 1;
            return;
        }
        if frame.instance > self.known {
            if self.known != 0 {
                self.anew_for_another(out);
            }
            self.known = frame.instance;
            self.notice.meet();
        }
        self.notice.hear(path, frame.sequence, now);
        if !self.notice.is_newest(frame.instance, frame.sequence) {
            return;
        }
        if matches!(self.phase, Phase::Cut | Phase::Asking { lost: true, .. }) {
            self.phase = Phase::Watching;
            (self.beat, self.echoed) = (now, now);
            out.push(Action::Show);
            self.heard_again(out);
        }
        if let Some((_, said)) = self.sent.iter().find(|(sequence, _)| *sequence == echo) {
            self.echoed = self.echoed.max(*said);
            let until = *said + self.limits.lease();
            if until > self.safe && self.phase != Phase::Yielded {
                self.safe = until;
                if !self.free && !self.yields.hidden {
                    out.push(Action::Lease(until));
                }
            }
        }
        // That it was asked to leave may have been a primary's before this one.
        if left {
            self.run_free(out);
            return self.over(Said::Over, out);
        }
        if whole.series != self.series {
            return;
        }
        // It was said after it had given up what it had, and this series never comes back.
        if full || hand == Hand::Cannot {
            self.thaw(out);
            return self.full(full, now, out);
        }
        if !self.guarded {
            (self.confirmed, self.risk) = (true, false);
            if !self.free {
                self.run_free(out);
                out.push(self.unprotected());
            }
        }
        self.whole(whole, now, out);
        self.hear_hand(whole, hand, echo, now, out);
    }

    /// This epoch and those before it are whole at the standby.
    fn whole(&mut self, whole: Mark, now: Duration, out: &mut Vec<Action>) {
        let mut last = None;
        while self.flight.front().is_some_and(|flying| flying.mark <= whole) {
            last = self.flight.pop_front();
        }
        let Some(flying) = last else { return };
        if self.shipping.is_some_and(|mark| mark <= flying.mark) {
            self.shipping = None;
        }
        let took = now.saturating_sub(flying.begun);
        self.settled |= took <= self.limits.interval_max;
        // Where nobody is any more who hears what clients say to it, it is said by who takes over.
        out.push(if self.is_last(flying.mark) { Action::Discard(flying.mark) } else { Action::Release(flying.mark) });
        if flying.ready {
            self.pace.note(took);
            self.slow(out);
            if !self.protected {
                (self.protected, self.refused) = (true, 0);
                out.push(Action::Say(Said::Protected));
            }
        }
    }

    /// That epochs are further apart than was wished is said when it begins.
    fn slow(&mut self, out: &mut Vec<Action>) {
        let (now, wished) = (self.pace.carried(), self.limits.interval);
        if !self.slow && now >= wished * 4 {
            self.slow = true;
            out.push(Action::Say(Said::Slow));
        }
        self.slow &= now > wished * 2;
    }

    fn run_free(&mut self, out: &mut Vec<Action>) {
        if !self.free {
            self.free = true;
            self.yields.hidden = false;
            out.push(Action::Free);
        }
    }

    /// Everything is to be copied again: what the standby has is no use any more.
    fn new_series(&mut self, out: &mut Vec<Action>) {
        if let Some(last) = self.flight.back() {
            out.push(Action::Discard(last.mark));
        }
        self.flight.clear();
        self.series += 1;
        (self.number, self.shipping) = (0, None);
        (self.confirmed, self.guarded, self.protected, self.settled) = (false, false, false, false);
        self.beat = Duration::ZERO;
    }

    /// The standby has nothing any more. One that has no room is asked again later, each time after twice as long.
    fn full(&mut self, full: bool, now: Duration, out: &mut Vec<Action>) {
        if full {
            self.no_room(now, out);
        } else {
            self.new_series(out);
        }
        self.run_free(out);
        out.push(if full { Action::Say(Said::Unprotected) } else { self.unprotected() });
    }

    /// What was to have everything has no room for it. Others may have enough of it to take over: until they have given that up nothing
    /// goes out.
    fn no_room(&mut self, now: Duration, out: &mut Vec<Action>) {
        const LONGEST: u32 = 64;
        self.new_series(out);
        self.refused = (self.refused * 2).clamp(4, LONGEST);
        self.not_before = now + self.limits.again * self.refused;
        out.push(Action::Say(Said::Full));
    }

    /// The watch is to end. Asked for twice it ends whatever the standby does.
    fn leave(&mut self, out: &mut Vec<Action>) {
        self.leave_hand(out);
        match self.phase {
            Phase::Watching | Phase::Recording if self.free => self.over(Said::Over, out),
            Phase::Watching => {
                self.phase = Phase::Leaving;
                self.beat = Duration::ZERO;
            }
            Phase::Leaving | Phase::Cut | Phase::Asking { .. } => {
                self.alone(true, out);
                self.over(Said::Over, out);
            }
            Phase::Demoted => self.give_up(out),
            _ => {}
        }
    }

    fn captured(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) {
        match (event, self.capturing) {
            (Event::Captured(mark), Some(flying)) if flying.mark == mark => {
                self.capturing = None;
                if mark.series == self.series {
                    self.flight.push_back(flying);
                    self.captured_last(now, out);
                } else {
                    out.push(Action::Discard(mark));
                }
            }
            (Event::Failed, Some(flying)) => {
                self.capturing = None;
                self.not_before = now + self.limits.again;
                if flying.mark.series == self.series {
                    self.number -= 1;
                }
                self.failed_last(out);
            }
            _ => {}
        }
    }

    /// What was given to the link first is not known to have come within this time.
    fn is_stuck(&self, limit: Duration, now: Duration) -> bool {
        self.flight.front().is_some_and(|flying| now.saturating_sub(flying.begun) >= limit)
    }

    /// There is a link, and it carries nothing: no word, or no epoch.
    fn is_mute(&self, now: Duration) -> bool {
        /// A first copy may take its time.
        const LARGE: u32 = 6;
        if !self.linked || !matches!(self.phase, Phase::Watching | Phase::Cut) {
            return false;
        }
        // Where nothing is heard at all the link is not what is wrong, or not for sure.
        let most = if self.notice.silent(Path::Beat, now) { 4 * self.limits.timeout } else { self.limits.timeout };
        let silent = self.notice.since(Path::Link, now) >= most && now.saturating_sub(self.made) >= most.max(self.limits.again);
        let (large, made) = (self.limits.wedge * LARGE, now.saturating_sub(self.made));
        silent || !self.guarded && made >= large && self.is_stuck(large, now)
    }

    fn may_capture(&self) -> bool {
        let here = self.phase == Phase::Watching && self.linked && !self.quiet && self.confirmed && !self.paused;
        // Without a bound on what a round leaves over, rounds follow each other; each waits for the one before.
        let room = if self.guarded { PIPELINE } else { 1 };
        here && self.capturing.is_none() && self.flight.len() < room
    }

    fn due(&self) -> Duration {
        let due = if self.guarded { self.pace.due(self.waiting && self.flight.is_empty()) } else { Duration::ZERO };
        due.max(self.not_before)
    }

    fn work(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.quiet = self.notice.silent(Path::Link, now);
        self.work_hand(now, out);
        if self.demoted {
            return;
        }
        if self.may_capture() && now >= self.due() {
            let ready = self.guarded || self.number > 0 && (self.settled || self.number >= ROUNDS);
            if ready && !self.guarded {
                (self.guarded, self.free, self.echoed) = (true, false, now);
                out.extend([Action::Hold, Action::Lease(now + self.limits.lease())]);
            }
            self.number += 1;
            let mark = Mark { series: self.series, number: self.number };
            self.capturing = Some(Flying { mark, ready, begun: now, sent: false });
            self.waiting = false;
            self.pace.begin(now);
            out.push(Action::Capture(mark));
        }
        if let (None, true) = (self.shipping, self.linked)
            && let Some(flying) = self.flight.iter().find(|flying| !flying.sent)
        {
            self.shipping = Some(flying.mark);
            out.push(Action::Ship { mark: flying.mark, ready: flying.ready });
        }
    }

    fn say(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.beat = now + self.limits.beat;
        if !matches!(self.phase, Phase::Watching | Phase::Leaving | Phase::Yielding | Phase::Yielded) {
            return;
        }
        let wedged = self.is_wedged(now);
        if self.limits.witness && !wedged && !self.is_yielding() {
            // Whoever renews the lease is told what has become of it.
            out.push(Action::Ask(self.generation + u64::from(self.risk)));
        }
        let (last, go) = (self.last(), self.phase == Phase::Yielded);
        let word = Word::Primary { series: self.series, wedged, over: self.phase == Phase::Leaving, last, go };
        for path in [Path::Link, Path::Beat] {
            self.sequence += 1;
            self.sent.push_back((self.sequence, now));
            out.push(Action::Send(path, Frame { generation: self.generation, instance: self.instance, sequence: self.sequence, word }));
        }
        while self.sent.len() > REMEMBERED {
            self.sent.pop_front();
        }
    }
}
