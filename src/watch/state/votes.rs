//! Which of several standbys takes over: they say it to each other, without anybody else. Where there is a witness, or a command that is
//! to end the primary's host, who was chosen asks that next, and gives the votes back if nothing comes of it.
//!
//! Each has one vote, its own included, and [`Limits::votes`] of them let one take over. As words are states, a standby says over
//! and over which of its *attempts* this is (an odd number: it asks; an even one: it does not) and whose its vote is.
//!
//! * A vote goes only to who has all that its giver has ever said to have: among those who vote is one that has whatever the primary
//!   has let out ([`Limits::quorum`] standbys have that), so that the one that takes over has it, too.
//! * From when it is given, before it is on record, its giver takes nothing more of the primary, or what it says to have would be more
//!   than what is taken over from.
//! * Only who has asked can give it back, by going on to its next attempt; a process of his that is another one knows nothing of
//!   what the one before has asked for, unless that is on record, and then its generation is a higher one.
//! * Nobody votes who hears the primary; nor who does not know what was said by a process before it at that host.
//! * Who asks and hears somebody who has more, or as much and an earlier place, gives up its own attempt before it votes for him.
//!
//! Two of them never have enough votes at a time, and who has taken over with them keeps them: what runs then is one. A vote is for a
//! generation: where the primary goes on with a higher one, as the witness lets it, those of the one before are nothing any more.

use super::{Limits, Mark};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::time::Duration;

/// Whose a vote is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// His place among the standbys.
    pub to: usize,
    /// Which process it was.
    pub instance: u64,
    /// What he has asked for.
    pub attempt: u64,
}

/// What one standby says to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poll {
    /// Of the primary, or his own.
    pub generation: u64,
    /// Which process it is.
    pub instance: u64,
    /// Grows with each word.
    pub sequence: u64,
    /// What it could take over from.
    pub mark: Mark,
    /// Odd: it asks for votes.
    pub attempt: u64,
    /// Whose its own is.
    pub vote: Option<Vote>,
    /// It has taken over.
    pub runs: bool,
}

/// What the standby's machine knows that counts here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stance {
    /// Of the primary, or its own.
    pub generation: u64,
    /// What it could take over from.
    pub mark: Mark,
    /// The newest epoch that it has ever said to have.
    pub said: Mark,
    /// Nothing is heard of the primary.
    pub lost: bool,
    /// It may vote.
    pub votes: bool,
    /// It has taken over.
    pub runs: bool,
}

/// Why something is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Time goes by.
    Tick,
    /// The standby's machine asks for this generation,
    Asked(u64),
    /// and does not use what it has won.
    Forgone,
    /// This was said by the standby at that place.
    Heard(usize, Poll),
    /// What came of [`Deed::Record`].
    Recorded(bool),
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Say this to the standby at that place, if there is a way.
    Send(usize, Poll),
    /// Make durable whose the vote is. Where it is somebody's, the answer is [`Cause::Recorded`].
    Record(Option<Vote>),
    /// To the standby's machine: [`super::Event::Lent`].
    Lend(bool),
    /// To the standby's machine: [`super::Event::Voted`].
    Voted(bool),
    /// The standby at that place has taken over: what is here is of no use any more.
    Overtaken(usize),
}

/// An attempt.
#[derive(Debug, Clone, Copy)]
struct Asked {
    begins: Duration,
    until: Duration,
}

/// One standby's part in it.
#[derive(Debug, Clone)]
pub struct Votes {
    limits: Limits,
    place: usize,
    instance: u64,
    sequence: u64,
    attempt: u64,
    asked: Option<Asked>,
    /// Whose the own one is, on record,
    vote: Option<Vote>,
    /// or about to be.
    writing: Option<Vote>,
    /// There were enough.
    won: bool,
    /// That another one has was said.
    overtaken: bool,
    /// The newest word of each.
    others: Vec<Option<Poll>>,
    /// When the next word is due.
    beat: Duration,
}

impl Votes {
    /// Of the standby at this place, from 0, in the order of the user's; `vote`: as it is on record.
    pub fn begin(place: usize, instance: u64, vote: Option<Vote>, limits: Limits) -> Votes {
        Votes {
            limits,
            place,
            instance,
            sequence: 0,
            attempt: 0,
            asked: None,
            vote,
            writing: None,
            won: false,
            overtaken: false,
            others: vec![None; limits.standbys],
            beat: Duration::ZERO,
        }
    }

    /// When it wants to be told the time.
    pub fn wake(&self) -> Duration {
        self.asked.map_or(self.beat, |asked| self.beat.min(if self.asks() { asked.until } else { asked.begins }))
    }

    fn asks(&self) -> bool {
        self.attempt % 2 == 1
    }

    /// One step.
    pub fn step(&mut self, cause: Cause, stance: &Stance, now: Duration) -> Vec<Deed> {
        let mut out = Vec::new();
        match cause {
            Cause::Tick => {}
            Cause::Asked(wanted) => self.ask(wanted, stance, now, &mut out),
            Cause::Forgone if self.won => {
                (self.won, self.beat) = (false, now);
                self.attempt += 1;
            }
            Cause::Forgone => {}
            Cause::Heard(of, poll) => self.hear(of, poll, stance, now, &mut out),
            Cause::Recorded(done) => {
                self.vote = self.writing.take().filter(|_| done);
                self.beat = now;
                if self.vote.is_none() {
                    out.push(Deed::Lend(false));
                }
            }
        }
        self.judge(stance, now, &mut out);
        if now >= self.beat {
            self.say(stance, now, &mut out);
        }
        out
    }

    fn ask(&mut self, wanted: u64, stance: &Stance, now: Duration, out: &mut Vec<Deed>) {
        if wanted != stance.generation + 1 {
            return;
        }
        if self.vote.is_some() || self.writing.is_some() {
            return out.push(Deed::Voted(false));
        }
        // Who comes later waits for those before.
        let begins = now + self.limits.beat / 2 * self.place as u32;
        self.asked = Some(Asked { begins, until: begins + self.limits.timeout });
    }

    fn hear(&mut self, of: usize, poll: Poll, stance: &Stance, now: Duration, out: &mut Vec<Deed>) {
        let Some(known) = self.others.get_mut(of).filter(|_| of != self.place) else { return };
        if known.is_some_and(|known| (known.instance, known.sequence) >= (poll.instance, poll.sequence)) {
            return;
        }
        *known = Some(poll);
        if poll.generation > stance.generation && poll.runs && !std::mem::replace(&mut self.overtaken, true) {
            out.push(Deed::Overtaken(of));
        }
        if poll.generation != stance.generation {
            return;
        }
        let is_over = |vote: &Vote| vote.to == of && (poll.instance, poll.attempt) > (vote.instance, vote.attempt);
        if self.vote.as_ref().is_some_and(is_over) {
            self.vote = None;
            out.extend([Deed::Record(None), Deed::Lend(false)]);
        }
        if poll.attempt % 2 == 1 && self.may_vote(of, &poll, stance) {
            if self.asked.is_some() {
                self.withdraw(now, out);
            }
            self.writing = Some(Vote { to: of, instance: poll.instance, attempt: poll.attempt });
            out.extend([Deed::Lend(true), Deed::Record(self.writing)]);
        }
    }

    fn may_vote(&self, of: usize, poll: &Poll, stance: &Stance) -> bool {
        let free = self.vote.is_none() && self.writing.is_none() && !self.won;
        let better = (poll.mark, Reverse(of)) > (stance.mark, Reverse(self.place));
        free && stance.votes && stance.lost && poll.mark >= stance.said && (self.asked.is_none() || better)
    }

    /// What was asked for is nothing any more, also for who has voted.
    fn withdraw(&mut self, now: Duration, out: &mut Vec<Deed>) {
        self.asked = None;
        self.attempt += self.attempt % 2;
        self.beat = now;
        out.push(Deed::Voted(false));
    }

    fn judge(&mut self, stance: &Stance, now: Duration, out: &mut Vec<Deed>) {
        let Some(asked) = self.asked else { return };
        // It is heard again.
        if !stance.lost {
            return self.withdraw(now, out);
        }
        if !self.asks() && now >= asked.begins {
            self.attempt += 1;
            self.beat = now;
        }
        let own = Vote { to: self.place, instance: self.instance, attempt: self.attempt };
        let votes = |poll: &&Poll| poll.generation == stance.generation && poll.vote == Some(own);
        if self.asks() && 1 + self.others.iter().flatten().filter(votes).count() >= self.limits.votes() {
            (self.won, self.asked) = (true, None);
            out.push(Deed::Voted(true));
        } else if now >= asked.until {
            self.withdraw(now, out);
        }
    }

    fn say(&mut self, stance: &Stance, now: Duration, out: &mut Vec<Deed>) {
        let hurry = self.asks() && !self.won || self.vote.is_some();
        self.beat = now + self.limits.beat / if hurry { 5 } else { 1 };
        self.sequence += 1;
        let Stance { generation, mark, runs, .. } = *stance;
        let (instance, sequence, attempt, vote) = (self.instance, self.sequence, self.attempt, self.vote);
        let poll = Poll { generation, instance, sequence, mark, attempt, vote, runs };
        out.extend((0..self.others.len()).filter(|to| *to != self.place).map(|to| Deed::Send(to, poll)));
    }
}
