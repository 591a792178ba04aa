//! The standby's part in a take-over that a user wants: everything is rebuilt before anything is on record, and given up again
//! when the primary wants it back.

use super::{Action, Activation, Event, Guarantee, Hand, Mark, Phase, Said, Standby};
use std::time::Duration;

impl Standby {
    /// It is taken over as was wanted, not since the primary is lost.
    pub fn is_planned(&self) -> bool {
        self.planned.is_some()
    }

    /// It may be on record that it runs here: what the primary says later changes nothing.
    pub fn is_decided(&self) -> bool {
        let letting = matches!(self.phase, Phase::Telling | Phase::Opening | Phase::Letting);
        self.phase == Phase::Recording || letting && self.planned.is_some()
    }

    /// How far it is.
    pub(super) fn hand(&self) -> Hand {
        match self.phase {
            Phase::Running => Hand::Runs,
            Phase::Set | Phase::SetFencing => Hand::Set,
            _ if self.is_decided() && self.planned.is_some() => Hand::Set,
            _ if self.cannot => Hand::Cannot,
            _ => Hand::Nothing,
        }
    }

    /// What the primary says of it, in its newest frame. `last`: of which epoch, 0 for none.
    pub(super) fn hear_hand(&mut self, last: Mark, go: bool, out: &mut Vec<Action>) {
        self.last = Some(last).filter(|last| last.number != 0);
        if self.planned.is_some()
            && self.planned != self.last
            && !self.is_decided()
            && !matches!(self.phase, Phase::Running | Phase::SetFencing)
        {
            self.give_up(out);
        }
        if go && self.phase == Phase::Set {
            self.decide(out);
        }
    }

    /// Nothing is left here of it.
    fn give_up(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Standing;
        (self.planned, self.ready, self.whole.number) = (None, false, 0);
        out.extend([Action::Undo, Action::Drop]);
    }

    /// It does not work here, and will not.
    pub(super) fn cannot(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.phase != Phase::Running {
            self.give_up(out);
            (self.cannot, self.beat) = (true, now);
            out.push(Action::Say(Said::Failed));
        }
    }

    fn decide(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Recording;
        out.push(Action::Record(Activation::Taking(self.generation + 1)));
    }

    /// Whether there is something to do without a word.
    pub(super) fn judge_planned(&mut self, now: Duration, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Standing if self.ready && self.last == Some(self.whole) => {
                (self.phase, self.planned) = (Phase::Blocking, self.last);
                out.extend([Action::Say(Said::TakingOver), Action::Block]);
            }
            Phase::Set => {
                let gone = self.gone && self.limits.guarantee == Guarantee::Hold;
                match self.notice.lost(now) || gone {
                    true if !self.limits.fence => self.decide(out),
                    true if self.again.is_none() => {
                        self.phase = Phase::SetFencing;
                        out.push(Action::Fence);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    pub(super) fn fenced_when_set(&mut self, done: bool, now: Duration, out: &mut Vec<Action>) {
        self.phase = Phase::Set;
        if done {
            return self.decide(out);
        }
        self.again = Some(now + self.limits.again);
    }

    /// Its order: nobody else has the address, and what is rebuilt is silent until the primary says that it never runs there again.
    pub(super) fn advance_planned(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) {
        let (phase, action) = match (self.phase, event) {
            (Phase::Blocking, Event::Blocked) => (Phase::Placing, Action::Place(self.whole)),
            (Phase::Placing, Event::Placed) => (Phase::Raising, Action::Raise),
            (Phase::Raising, Event::Raised) => (Phase::Restoring, Action::Restore),
            (Phase::Restoring, Event::Restored) => {
                (self.phase, self.beat) = (Phase::Set, now);
                return;
            }
            (Phase::Recording, Event::Recorded(true)) => (Phase::Telling, Action::Tell),
            // Who finds the record sees that it does not live here.
            (Phase::Recording, Event::Recorded(false)) => return self.cannot(now, out),
            (Phase::Telling, Event::Told) => (Phase::Opening, Action::Open),
            (Phase::Opening, Event::Unblocked) => (Phase::Letting, Action::Run),
            (Phase::Letting, Event::Runs) => {
                self.generation += 1;
                self.beat = now;
                out.push(Action::Record(Activation::Taken(self.generation)));
                (Phase::Running, Action::Say(Said::TakenOver))
            }
            _ => return,
        };
        self.phase = phase;
        out.push(action);
    }
}
