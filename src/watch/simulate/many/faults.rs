//! What befalls a world.

use super::super::super::state::{Activation, Event, Primary, Standby, Votes};
use super::super::life::while_it_lasts;
use super::super::parts::{Gate, Process};
use super::world::{Fault, Flaw, MS, What, World};
use std::collections::BTreeMap;

impl World {
    pub(super) fn any_fault(&mut self) {
        let all = Fault::all(&self.limits);
        let fault = all[self.dice.below(all.len() as u64) as usize];
        self.befall(fault);
    }

    pub(super) fn befall(&mut self, fault: Fault) {
        self.tell(|_| format!("---- {fault:?}"));
        self.faults.push(fault);
        match fault {
            Fault::KillPrimary => self.kill(0, true),
            Fault::RestartPrimary => {
                self.kill(0, true);
                let delay = MS * self.dice.below(2500) as u32;
                self.at(delay, What::Restart);
            }
            Fault::KillPrimaryHost => self.lose_primary(),
            Fault::StopPrimary => self.stop(0),
            Fault::Wedge => self.wedged = true,
            Fault::Over => self.step(0, Event::Over),
            Fault::Pause => self.step(0, Event::Pause),
            Fault::Kill(of) => self.kill(of, true),
            Fault::KillHost(of) => {
                self.kill(of, false);
                self.hosts[of].runs = None;
            }
            Fault::Stop(of) => self.stop(of),
            Fault::Anew(of) => {
                self.kill(of, true);
                self.call(of);
            }
            Fault::Slow(of) => self.hosts[of].slow = true,
            Fault::Full(of) => self.hosts[of].full = true,
            Fault::DiskFails(of) => self.hosts[of].disk_fails = true,
            Fault::BreakLink(of) => self.break_link(of),
            Fault::Cut(from, to) => {
                self.cut.insert((from, to));
            }
            Fault::CutHost(host) => {
                for other in (0..=self.limits.standbys).filter(|other| *other != host) {
                    self.cut.extend([(host, other), (other, host)]);
                }
                self.court.cut[host] = [true; 2];
            }
            Fault::Jump(host) => self.jump(host),
            Fault::KillWitness | Fault::AnewWitness | Fault::WitnessDisk | Fault::JumpWitness | Fault::CutWitness(_) => {
                self.befall_witness(fault);
            }
        }
        for of in self.standbys() {
            if self.cut.contains(&(0, of)) || self.cut.contains(&(of, 0)) {
                self.break_link(of);
            }
        }
        let lasts = while_it_lasts(&mut self.dice);
        if !self.lasting {
            self.at(lasts, What::Heal { fault });
        }
    }

    pub(super) fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::Wedge => {
                self.wedged = false;
                self.step(0, Event::Failed);
            }
            Fault::Pause => self.step(0, Event::Resume),
            Fault::Kill(of) | Fault::KillHost(of) => self.call(of),
            Fault::Slow(of) => self.hosts[of].slow = false,
            Fault::Full(of) => self.hosts[of].full = false,
            Fault::DiskFails(of) => self.hosts[of].disk_fails = false,
            Fault::Cut(from, to) => drop(self.cut.remove(&(from, to))),
            Fault::CutHost(host) => {
                self.cut.retain(|(from, to)| *from != host && *to != host);
                self.court.cut[host] = [false; 2];
            }
            other => self.heal_witness(other),
        }
    }

    pub(super) fn mend(&mut self) {
        self.cut.clear();
        self.mend_witness();
        if self.wedged {
            self.heal(Fault::Wedge);
        }
        for of in self.standbys() {
            let host = &mut self.hosts[of];
            (host.slow, host.full, host.disk_fails) = (false, false, false);
            self.call(of);
            self.relink(of);
        }
    }

    fn kill(&mut self, who: usize, said: bool) {
        let number = if who == 0 { self.primary.take().map(|p| p.number) } else { self.hosts[who].process.take().map(|p| p.number) };
        let Some(number) = number else { return };
        if who == 0 {
            let delay = self.short();
            self.at(delay, What::Guardian { number });
            self.standbys().for_each(|of| self.break_link(of));
        } else {
            self.break_link(who);
        }
        if said {
            let delay = self.short();
            self.at(delay, What::Gone { of: who, number });
        }
    }

    /// Another meio finds the tree, the record, and what was left between the tree and its network.
    pub(super) fn restart(&mut self) {
        let there = self.tree && self.primary.is_none() && self.gate != Gate::Free;
        let machine = match self.primary_record.filter(|_| there) {
            Some(Activation::Primary { generation, instance }) => Primary::resume(generation, instance + 1, self.limits),
            Some(Activation::Demoted(generation)) => Primary::overtaken(generation, 1, self.limits),
            _ => return,
        };
        self.address = !machine.is_demoted();
        self.wedged = false;
        self.shipped.clear();
        self.new_primary(machine);
        for of in self.standbys() {
            let host = &mut self.hosts[of];
            (host.linked, host.met, host.fill) = (false, 0, None);
        }
        self.step(0, Event::Start);
        self.standbys().for_each(|of| self.relink(of));
    }

    fn lose_primary(&mut self) {
        self.kill(0, false);
        self.was_ready |= self.is_ready();
        (self.tree, self.address) = (false, false);
    }

    fn stop(&mut self, who: usize) {
        let until = self.now + MS * self.dice.below(5000) as u32;
        if who > 0 {
            self.hosts[who].process.iter_mut().for_each(|p| p.stopped = until);
        } else if let Some(primary) = &mut self.primary {
            primary.stopped = until;
            let number = primary.number;
            self.at(self.limits.timeout, What::Guardian { number });
        }
    }

    /// The primary calls a host where nobody is, if it can.
    fn call(&mut self, of: usize) {
        let cut = self.cut.contains(&(0, of)) || self.cut.contains(&(of, 0));
        if !self.is_there(of) && !cut && self.primary.as_ref().is_some_and(|p| !p.ended) {
            self.new_standby(of);
        }
    }

    fn is_there(&self, of: usize) -> bool {
        self.hosts[of].process.as_ref().is_some_and(|p| !p.ended) || self.hosts[of].runs.is_some()
    }

    /// The same of one that has ended by itself, over and over.
    pub(super) fn call_back(&mut self, of: usize) {
        self.call(of);
        if self.hosts[of].process.is_some() && !self.is_there(of) {
            self.at(MS * 500, What::Call { of });
        }
    }

    /// The primary's host is ended, if its switch can be reached.
    pub(super) fn fence(&mut self) -> Event {
        if self.dice.chance(200) {
            return Event::Fenced(self.flaw == Some(Flaw::FenceNeedNotWork));
        }
        self.lose_primary();
        // Now and then it works, and is not known to.
        let known = !self.dice.chance(50);
        self.fenced |= known;
        Event::Fenced(known)
    }

    /// A process there, with what is on its disk.
    pub(super) fn new_standby(&mut self, of: usize) {
        let generation = match self.hosts[of].record {
            Some(Activation::Taken(generation)) => generation,
            _ => self.primary.as_ref().map_or(1, |p| p.machine.generation()),
        };
        self.count += 1;
        let (number, flaw) = (self.count, self.flaw);
        let host = &mut self.hosts[of];
        // What was said and voted for a lower generation is nothing any more.
        let before = host.instance > 0 && host.stood == generation;
        (host.instance, host.stood) = (host.instance + 1, generation);
        host.vote = host.vote.filter(|_| before);
        (host.images, host.ready, host.base, host.placed) = (BTreeMap::new(), false, None, None);
        let vote = host.vote.filter(|_| flaw != Some(Flaw::VoteForgotten));
        let machine = Standby::begin(generation, host.instance, self.limits);
        let machine = if before && flaw != Some(Flaw::Blank) { machine.after(vote.is_some()) } else { machine };
        let votes = Votes::begin(of - 1, host.instance, vote, self.limits);
        host.process = Some(Process::new(number, (machine, votes)));
        self.step(of, Event::Start);
        self.relink(of);
    }
}
