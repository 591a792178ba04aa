//! What holds at every moment of a world, and in its end.

use super::super::super::state::OnLoss;
use super::super::life::contradicted;
use super::super::parts::Gate;
use super::world::{Fault, World};

impl World {
    /// The tree works, and what may go out does.
    pub(super) fn live_on(&mut self) {
        if self.tree && self.gate != Gate::Shut {
            self.age += 1;
        }
        if self.answers_here() && self.gate != Gate::Held {
            self.released = self.age;
        }
    }

    fn answers_here(&self) -> bool {
        self.tree && (self.gate == Gate::Free || matches!(self.gate, Gate::Leased(until) if self.now < until))
    }

    fn runs(&self) -> impl Iterator<Item = u64> {
        self.hosts.iter().filter_map(|host| host.runs)
    }

    fn serves(&self) -> bool {
        let protected = self.gate == Gate::Held && self.primary.as_ref().is_some_and(|p| !p.ended);
        self.runs().next().is_some() || self.answers_here() || self.tree && protected
    }

    /// So many could take over as have to vote for one.
    pub fn is_ready(&self) -> bool {
        self.hosts.iter().filter(|host| host.ready && host.process.is_some()).count() >= self.limits.votes()
    }

    /// All could.
    pub fn are_ready(&self) -> bool {
        self.hosts[1..].iter().all(|host| host.ready && host.process.is_some())
    }

    /// The primary goes on alone, and all goes out.
    pub fn is_free(&self) -> bool {
        self.tree && self.gate == Gate::Free
    }

    /// Copies that came to be of use.
    pub fn copies(&self) -> usize {
        self.wholes.len()
    }

    /// How it ended.
    pub fn end(&self) -> &'static str {
        match () {
            () if self.risk => "at risk",
            () if self.runs().next().is_some() => "taken over",
            () if self.primary.as_ref().is_none_or(|p| p.ended) && self.tree && self.gate == Gate::Free => "unwatched",
            () if self.serves() => "stayed",
            () => "lost",
        }
    }

    /// What holds at every moment.
    pub(super) fn check(&mut self) {
        if self.runs().count() > 1 {
            self.wrong("two of the standbys have taken over");
        }
        let Some(base) = self.runs().next() else { return };
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
        let runs = self.runs().next().is_some();
        let agent = self.hosts.iter().any(|host| host.runs.is_some() && host.process.as_ref().is_some_and(|p| !p.ended));
        if runs && !self.lasting && agent && self.primary.is_some() && self.tree && self.gate != Gate::Shut && !self.left {
            self.wrong("who was overtaken does not give in");
        }
        let served = runs || self.released > released;
        let lost = !self.tree || self.gate == Gate::Shut || self.primary.is_none();
        let many = self.faults.len() > 1;
        // Nobody knows whether who is not heard takes over, and a user wants that to be waited for.
        let excused = lost && (many || !self.was_ready) || self.lasting && many;
        if !served && !excused {
            self.wrong("nobody answers");
        }
    }

    /// Something has befallen the primary, or the ways to it.
    pub(super) fn was_to_be_taken_over(&self) -> bool {
        let harmless = |fault: &Fault| match fault {
            Fault::Cut(from, _) => *from != 0,
            Fault::CutHost(host) => *host != 0,
            Fault::KillPrimary | Fault::RestartPrimary | Fault::KillPrimaryHost | Fault::StopPrimary | Fault::Wedge | Fault::Over => false,
            // What it is about to copy seems to hang.
            Fault::Jump(host) => *host != 0,
            _ => true,
        };
        let continues = self.limits.on_loss == OnLoss::Continue;
        !self.faults.iter().all(harmless) || continues || self.faults.len() > 1
    }
}
