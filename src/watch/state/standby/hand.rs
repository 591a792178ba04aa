//! The standby's part in a take-over that a user wants: everything is rebuilt before anything is on record, and given up again
//! when the primary wants it back.

use super::{Action, Activation, Event, Guarantee, Hand, Mark, Phase, Ruling, Said, Standby};
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
            Phase::Set | Phase::SetAsking if self.refused => Hand::Refused,
            Phase::Set | Phase::SetAsking | Phase::SetFencing => Hand::Set,
            _ if self.is_decided() && self.planned.is_some() => Hand::Set,
            _ if self.cannot => Hand::Cannot,
            _ => Hand::Nothing,
        }
    }

    /// What the primary says of it, in its newest frame. `last`: of which epoch, 0 for none.
    pub(super) fn hear_hand(&mut self, last: Mark, go: bool, out: &mut Vec<Action>) {
        self.last = Some(last).filter(|last| last.number != 0);
        if self.planned != self.last && self.may_give_up() {
            self.give_up(out);
        }
        self.go = go;
        if go && self.phase == Phase::Set && !self.limits.witness {
            self.decide(out);
        }
    }

    /// What was begun since the primary asked for it can be left.
    pub(super) fn may_give_up(&self) -> bool {
        self.planned.is_some() && !self.is_decided() && !matches!(self.phase, Phase::Running | Phase::SetFencing)
    }

    /// Nothing is left here of it.
    pub(super) fn give_up(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Standing;
        (self.go, self.refused) = (false, false);
        (self.planned, self.ready, self.whole.number, self.filling) = (None, false, 0, None);
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
        (self.phase, self.refused) = (Phase::Recording, false);
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
                let alone = self.is_alone(now);
                if self.limits.witness {
                    if (alone || self.go) && self.again.is_none() {
                        self.phase = Phase::SetAsking;
                        out.push(Action::Ask(self.generation + 1));
                    }
                } else if alone {
                    self.left_alone(out);
                }
            }
            _ => {}
        }
    }

    /// Nothing is heard of the primary.
    fn is_alone(&self, now: Duration) -> bool {
        self.notice.lost(now) || self.gone && self.limits.guarantee == Guarantee::Hold
    }

    /// The primary did not say that it may run, and is lost.
    fn left_alone(&mut self, out: &mut Vec<Action>) {
        if !self.limits.fence {
            self.decide(out);
        } else if self.again.is_none() {
            self.phase = Phase::SetFencing;
            out.push(Action::Fence);
        }
    }

    /// What the witness says, if it says anything. A primary that has said `go` and hears that it was not granted has it go on there.
    pub(super) fn ruled_when_set(&mut self, ruling: Option<Ruling>, now: Duration, out: &mut Vec<Action>) {
        self.phase = Phase::Set;
        let go = self.go;
        if !self.is_granted(ruling) {
            // Who has let go of his lease may be heard there only now.
            let soon = ruling.is_some_and(|ruling| !ruling.left.is_zero() && ruling.generation == self.generation);
            if go && !soon {
                (self.go, self.refused, self.beat) = (false, true, now);
            }
            // The primary goes on without this one.
            if ruling.is_some_and(|ruling| ruling.generation > self.generation) {
                self.give_up(out);
            }
            return self.not_granted(ruling, now, out);
        }
        // With the word of a primary that will not let it run there is nobody to be ended.
        if go {
            return self.decide(out);
        }
        if self.is_alone(now) {
            self.left_alone(out);
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
