//! What befalls a world.

use super::super::state::{Activation, Event, Path, Primary, Standby};
use super::life::while_it_lasts;
use super::parts::{Fault, Flaw, Gate, Process, What, Who};
use super::world::{MS, World};
use std::collections::BTreeMap;

impl World {
    pub(super) fn any_fault(&mut self) {
        let fault = Fault::ALL[self.dice.below(Fault::ALL.len() as u64) as usize];
        self.befall(fault);
    }

    pub(super) fn befall(&mut self, fault: Fault) {
        self.tell(|_| format!("---- {fault:?}"));
        self.faults.push(fault);
        match fault {
            Fault::KillPrimary => self.kill(Who::Primary, true),
            Fault::KillPrimaryHost => self.lose_primary(),
            Fault::StopPrimary => self.stop(Who::Primary),
            Fault::AnewPrimary => self.new_primary(),
            Fault::KillStandby => self.kill(Who::Standby, true),
            Fault::KillStandbyHost => self.lose_standby(),
            Fault::StopStandby => self.stop(Who::Standby),
            Fault::AnewStandby => {
                self.kill(Who::Standby, true);
                self.new_standby();
            }
            Fault::CutAll => self.cut = [[true; 2]; 2],
            Fault::CutToStandby => (self.cut[0][0], self.cut[1][0]) = (true, true),
            Fault::CutToPrimary => (self.cut[0][1], self.cut[1][1]) = (true, true),
            Fault::CutLink => self.cut[Path::Link as usize] = [true; 2],
            Fault::CutBeats => self.cut[Path::Beat as usize] = [true; 2],
            Fault::BreakLink => {}
            Fault::Wedge => self.wedged = true,
            Fault::SlowStandby => (self.slow, self.full) = (true, self.steps.is_multiple_of(2)),
            Fault::DiskFails => self.disk_fails = true,
            Fault::KillWitness | Fault::AnewWitness | Fault::WitnessDisk | Fault::CutWitnessHere | Fault::CutWitnessThere => {
                self.befall_witness(fault);
            }
            Fault::Over => {
                if self.flaw == Some(Flaw::LeavesAtOnce) && self.primary.is_some() && self.gate != Gate::Shut {
                    self.gate = Gate::Free;
                    self.primary.iter_mut().for_each(|p| p.ended = true);
                }
                self.step(Who::Primary, Event::Over);
            }
            Fault::Yield => self.step(Who::Primary, Event::Yield),
            Fault::Pause => self.step(Who::Primary, Event::Pause),
        }
        if self.cut[Path::Link as usize] != [false; 2] || fault == Fault::BreakLink {
            self.break_link();
        }
        let lasts = while_it_lasts(&mut self.dice);
        if !self.lasting {
            self.at(lasts, What::Heal { fault });
        }
    }

    pub(super) fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::CutAll => self.cut = [[false; 2]; 2],
            Fault::CutToStandby => (self.cut[0][0], self.cut[1][0]) = (false, false),
            Fault::CutToPrimary => (self.cut[0][1], self.cut[1][1]) = (false, false),
            Fault::CutLink => self.cut[Path::Link as usize] = [false; 2],
            Fault::CutBeats => self.cut[Path::Beat as usize] = [false; 2],
            Fault::Wedge => self.unwedge(),
            Fault::Pause => self.step(Who::Primary, Event::Resume),
            Fault::SlowStandby => (self.slow, self.full) = (false, false),
            Fault::DiskFails => self.disk_fails = false,
            witness if Fault::WITNESS.contains(&witness) => self.heal_witness(fault),
            // Whoever started it starts it again.
            Fault::KillStandby | Fault::KillStandbyHost => self.new_standby(),
            _ => {}
        }
    }

    /// A capture that hung comes to nothing.
    fn unwedge(&mut self) {
        self.wedged = false;
        self.step(Who::Primary, Event::Failed);
    }

    fn kill(&mut self, who: Who, said: bool) {
        let number = match who {
            Who::Primary => self.primary.take().map(|p| p.number),
            Who::Standby => self.standby.take().map(|s| s.number),
        };
        let Some(number) = number else { return };
        if who == Who::Primary {
            // What stood still since it was held does not any more.
            self.frozen = false;
            let delay = self.short();
            self.at(delay, What::Guardian { number });
        }
        self.break_link();
        // The primary calls whoever is there.
        if said && who == Who::Standby && self.lasting && self.faults.contains(&Fault::Yield) {
            self.at(100 * MS, What::Called);
        }
        if said {
            let delay = self.short();
            self.at(delay, What::Gone { of: who, number });
        }
    }

    fn lose_primary(&mut self) {
        self.kill(Who::Primary, false);
        self.was_ready |= self.ready;
        (self.tree, self.address) = (false, false);
    }

    fn lose_standby(&mut self) {
        self.kill(Who::Standby, false);
        self.runs = None;
    }

    fn stop(&mut self, who: Who) {
        let until = self.now + MS * self.dice.below(5000) as u32;
        let number = match who {
            Who::Primary => self.primary.as_mut().map(|p| (p.stopped = until, p.number).1),
            Who::Standby => self.standby.as_mut().map(|s| (s.stopped = until, s.number).1),
        };
        if let (Who::Primary, Some(number)) = (who, number) {
            self.at(self.limits.timeout, What::Guardian { number });
        }
    }

    /// Another meio finds the tree and the record.
    pub(super) fn new_primary(&mut self) {
        self.kill(Who::Primary, false);
        let machine = match self.primary_record.filter(|_| self.tree) {
            Some(Activation::Primary { generation, instance }) => Some(Primary::resume(generation, instance + 1, self.limits)),
            Some(Activation::Demoted(generation)) => Some(Primary::overtaken(generation, 1, self.limits)),
            _ => None,
        };
        if let Some(machine) = machine {
            self.address = !machine.is_demoted();
            self.count += 1;
            self.primary = Some(Process::new(self.count, machine));
            self.linked = false;
            self.step(Who::Primary, Event::Start);
            self.relink();
        }
    }

    /// A new process at the standby's host.
    pub(super) fn new_standby(&mut self) {
        if self.standby.as_ref().is_some_and(|s| !s.ended) {
            return;
        }
        let generation = match self.standby_record {
            Some(Activation::Taken(g) | Activation::Demoted(g)) => g,
            Some(Activation::Taking(g)) if self.runs.is_some() && self.flaw != Some(Flaw::NeverLooks) => g,
            // Of who calls it.
            _ => self.primary.as_ref().map_or(1, |p| p.machine.generation()),
        };
        self.instance += 1;
        self.count += 1;
        (self.images, self.ready, self.placed) = (BTreeMap::new(), false, None);
        self.standby = Some(Process::new(self.count, Standby::begin(generation, self.instance, self.limits)));
        self.step(Who::Standby, Event::Start);
        self.relink();
    }

    /// The other host is ended, if its switch can be reached.
    pub(super) fn fence(&mut self, who: Who) -> Event {
        if self.dice.chance(200) {
            return Event::Fenced(false);
        }
        match who {
            Who::Primary => self.lose_standby(),
            Who::Standby => self.lose_primary(),
        }
        // Now and then it works, and is not known to.
        Event::Fenced(!self.dice.chance(50))
    }
}
