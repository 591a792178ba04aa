//! What holds at every moment of a world, and in its end.

use super::super::state::OnLoss;
use super::life::contradicted;
use super::parts::{Fault, Flaw, Gate};
use super::world::World;

impl World {
    /// The tree works, and what may go out does.
    pub(super) fn live_on(&mut self) {
        if self.tree && !self.frozen && self.gate != Gate::Shut {
            self.age += 1;
        }
        if self.answers_here() && self.gate != Gate::Held {
            self.released = self.age;
        }
    }

    /// Something new gets out at the primary's host.
    pub(super) fn answers_here(&self) -> bool {
        let leased = |until| self.now < until || self.flaw == Some(Flaw::NoLease);
        self.tree && !self.frozen && (self.gate == Gate::Free || matches!(self.gate, Gate::Leased(until) if leased(until)))
    }

    /// Whether clients are served, by whom ever.
    pub(super) fn serves(&self) -> bool {
        let protected = self.gate == Gate::Held && self.primary.as_ref().is_some_and(|p| !p.ended);
        self.runs.is_some() || self.answers_here() || self.tree && !self.frozen && protected
    }

    /// What holds at every moment.
    pub(super) fn check(&mut self) {
        let Some(base) = self.runs else { return };
        if self.risk {
            return;
        }
        if let Some(wrong) = contradicted(&self.limits, base, self.released, self.answers_here()) {
            self.wrong(wrong);
        }
    }

    /// What holds in the end.
    pub(super) fn judge(&mut self, released: u64) {
        if self.wrong.is_some() {
            return;
        }
        if self.runs.is_some()
            && !self.lasting
            && self.standby.is_some()
            && self.primary.is_some()
            && self.tree
            && self.gate != Gate::Shut
            && !self.left
        {
            self.wrong("who was overtaken does not give in");
        }
        // Both are there, and the one hears of the other.
        let hears = self.primary.as_ref().is_some_and(|p| !p.ended) && self.standby.as_ref().is_some_and(|s| self.ran == Some(s.number));
        if self.runs.is_some() && !self.lasting && self.tree && hears && !self.left {
            self.wrong("what runs elsewhere is not ended here");
        }
        let served = self.runs.is_some() || self.released > released;
        // What was the tree is gone: with its host before anybody could take over, or with two.
        let lost = !self.tree || self.gate == Gate::Shut;
        let unknown = self.limits.on_loss == OnLoss::Hold && !self.limits.fence && !self.limits.witness;
        // A standby that has heard that it is to give up what it has, and is not heard.
        let given_up = !self.ready && self.faults.contains(&Fault::CutToStandby);
        let silent = self.lasting && (self.faults.contains(&Fault::KillStandbyHost) || given_up) && unknown;
        // It was told to let it run, and is lost: only somebody who knows more can say that it does not.
        let unsure = self.faults.contains(&Fault::KillStandbyHost) && self.primary.as_ref().is_some_and(|p| p.machine.is_yielding());
        let many = self.faults.iter().filter(|fault| **fault != Fault::Yield).count() > 1;
        let excused = silent || unsure || lost && (many || !self.was_ready);
        if !served && !excused {
            self.wrong("nobody answers");
        }
    }

    /// Something has befallen the primary, or both paths.
    pub(super) fn was_to_be_taken_over(&self) -> bool {
        let cut = |fault: &Fault| matches!(fault, Fault::CutLink | Fault::CutBeats | Fault::BreakLink);
        // Both see who knows.
        let known = self.limits.witness && !self.faults.iter().any(|fault| Fault::WITNESS.contains(fault));
        let parted = |fault: &Fault| known && matches!(fault, Fault::CutAll | Fault::CutToStandby | Fault::CutToPrimary);
        let harmless = |fault: &Fault| {
            let standby = [Fault::StopStandby, Fault::SlowStandby, Fault::AnewStandby, Fault::KillStandby, Fault::KillStandbyHost];
            standby.contains(fault) || Fault::WITNESS.contains(fault) || cut(fault) || parted(fault) || *fault == Fault::Pause
        };
        !self.faults.iter().all(harmless) || !known && self.faults.iter().filter(|fault| cut(fault)).count() > 1
    }
}
