//! What a standby asks before it takes over: the others, where there are several, which it may have to give its own vote; and the
//! witness.

use super::Agent;
use crate::error::Result;
use crate::migrate::plan::{Details, pack};
use crate::transport::{Frame, Peer};
use crate::watch::comeback::{Caller, Stood};
use crate::watch::polls::Polls;
use crate::watch::record::Store;
use crate::watch::ring::Role;
use crate::watch::setup::{SETUP, Seat, Setup};
use crate::watch::state::{Action, Activation, Cause, Deed, Event, Votes};
use crate::watch::status::Wish;
use crate::watch::steps::Steps;
use std::time::Duration;

/// How it has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// What it has come to.
    pub stood: Stood,
    /// What leads to others who belong to the same watch.
    pub seat: Option<Box<Seat>>,
    /// Which of them has taken over, by his place.
    pub overtaken: Option<usize>,
    /// It was taken over here as was wanted.
    pub planned: bool,
}

impl Default for Ended {
    fn default() -> Ended {
        Ended { stood: Stood::Over, seat: None, overtaken: None, planned: false }
    }
}

impl Ended {
    /// What this host is next among them, if anything.
    pub fn next(&self) -> Option<Role> {
        match self.stood {
            Stood::Leads => Some(Role::Leads),
            Stood::Anew => Some(Role::Follows),
            _ => self.overtaken.map(|_| Role::Follows),
        }
    }
}

/// What it has to do with the others.
pub struct Court {
    pub votes: Votes,
    pub polls: Polls,
    /// Who has taken over, by his place.
    pub overtaken: Option<usize>,
}

impl Agent<'_> {
    /// Somebody is asked whether this one of generation `own` may take over, or need not be any more.
    pub(super) fn ask(&mut self, action: Action, own: u64) {
        match action {
            Action::Poll(wanted) => {
                self.steps = Some(Steps::begin(self.machine.silence(self.begun.elapsed())));
                self.vote(Cause::Asked(wanted));
            }
            Action::Ask(wanted) => {
                match &mut self.steps {
                    Some(steps) if wanted > own && self.court.is_some() => steps.since("votes"),
                    steps if wanted > own && !self.machine.is_planned() => {
                        *steps = Some(Steps::begin(self.machine.silence(self.begun.elapsed())));
                    }
                    _ => {}
                }
                self.witness.iter_mut().for_each(|witness| witness.ask(wanted));
            }
            _ => self.vote(Cause::Forgone),
        }
    }

    /// Whoever was asked lets it take over, if somebody was.
    pub(super) fn is_let(&mut self) {
        let planned = self.machine.is_planned();
        match &mut self.steps {
            Some(steps) if self.witness.is_some() && !planned => steps.since("witness"),
            Some(steps) if self.court.is_some() && !planned => steps.since("votes"),
            steps if planned => *steps = Some(Steps::begin(Duration::ZERO)),
            steps => *steps = Some(Steps::begin(self.machine.silence(self.begun.elapsed()))),
        }
    }

    /// What the others have said, and what is due to be said to them.
    pub(super) fn polled(&mut self) {
        while let Some((of, poll)) = self.court.as_mut().and_then(|court| court.polls.receive()) {
            self.board.hosts.polled(of, poll.generation, poll.mark, poll.runs);
            self.vote(Cause::Heard(of, poll));
        }
        if self.court.as_ref().is_some_and(|court| court.votes.wake() <= self.begun.elapsed() || self.machine.is_polling()) {
            self.vote(Cause::Tick);
        }
    }

    pub(super) fn vote(&mut self, cause: Cause) {
        let now = self.begun.elapsed();
        let stance = self.machine.stance(now);
        let Some(court) = &mut self.court else { return };
        for deed in court.votes.step(cause, &stance, now) {
            match deed {
                // What cannot be said is as if it were lost.
                Deed::Send(to, poll) => drop(self.court.as_mut().map(|court| court.polls.send(to, &poll))),
                Deed::Record(vote) => {
                    self.record.vote = vote;
                    let done = self.store.write(&self.record).is_ok();
                    if vote.is_some() {
                        self.vote(Cause::Recorded(done));
                    }
                }
                // At once: what waits to be heard was not heard before.
                Deed::Lend(lent) => {
                    self.note(if lent { "its vote is another standby's" } else { "its vote is its own again" });
                    for action in self.machine.step(Event::Lent(lent), now) {
                        let _ = self.perform(action);
                    }
                }
                Deed::Voted(won) => self.events.push_back(Event::Voted(won)),
                Deed::Overtaken(of) => self.overtaken(of, stance.generation + 1),
            }
        }
    }

    /// Another standby has taken over: nobody is to be told any more that this one stands by for the primary.
    fn overtaken(&mut self, of: usize, generation: u64) {
        self.record.activation = Some(Activation::Demoted(generation));
        if self.store.write(&self.record).is_ok()
            && let Some(court) = &mut self.court
        {
            court.overtaken = Some(of);
            // To end it takes its time where nothing gets through.
            if let Some(peer) = self.peer.take() {
                let _ = std::thread::Builder::new().name("unlink".into()).spawn(move || drop(peer));
            }
            let host = self.seat.as_ref().and_then(|seat| seat.hosts.get(of)).cloned().unwrap_or_default();
            self.note(&format!("{host} has taken over"));
        }
    }

    /// What was taken over here goes on in other hands; or somebody else is to stand by here, who was started for that.
    pub(super) fn is_handed(&self, wished: Option<Wish>) -> bool {
        wished == Some(Wish::Handover) && (self.root.is_some() || self.caller.is_some())
    }

    /// It is for this process to protect what was taken over here.
    pub(super) fn leads(&self) -> bool {
        self.seat.is_some() || self.caller.as_ref().is_some_and(Caller::found_nobody)
    }

    /// There is nothing to be done here, and nobody to wait for.
    pub(super) fn has_nothing_to_do(&self) -> bool {
        /// Others may need its vote for so long.
        const LONG: Duration = Duration::from_secs(60);
        match (&self.caller, &self.court) {
            (Some(_), _) => self.machine.has_left(),
            (None, Some(_)) => self.machine.has_left() || self.machine.is_idle() && self.linked.elapsed() > LONG + 10 * self.timeout,
            (None, None) => self.machine.is_idle(),
        }
    }
}

/// Another process is at work on it here: whether it was taken over, which a primary of that generation is told then.
///
/// # Errors
/// When what is on record cannot be read, or the link fails.
pub fn is_over(peer: &Peer, store: &Store, name: &str, theirs: u64) -> Result<bool> {
    let record = store.read(name)?.filter(|record| !record.about.standby || record.runs());
    let Some(record) = record else { return Ok(false) };
    let generation = record.activation.map_or(0, |a| a.generation());
    if theirs == 0 || generation <= theirs {
        return Ok(false);
    }
    let (instance, runs) = (record.instance, record.about.tree.is_some_and(|tree| tree.lives()));
    let answer = Setup::Answer { details: Details::default(), generation, instance, port: 0, token: String::new(), runs, polls: 0 };
    peer.link.send(&Frame { kind: SETUP, generation: 0, payload: pack(&answer)? })?;
    Ok(true)
}
