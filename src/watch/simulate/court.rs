//! The witness of a world, and the ways to it.

use super::super::state::{Event, Ruling, Whose};
use super::super::witness::{Answer, Entry, Holder, Ledger, Question, Role, Verdict};
use super::parts::{Fault, Flaw, What, Who};
use super::world::{MS, World};
use std::collections::BTreeMap;
use std::time::Duration;

const NAME: &str = "tree";
/// How often a question is sent, and how long an answer may take.
const AGAIN: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_millis(500);

/// A question that an end has not had an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    number: u64,
    generation: u64,
    /// With a lease.
    leases: bool,
    until: Duration,
}

/// The witness, its file, and who asks.
#[derive(Debug, Default)]
pub struct Court {
    /// `None`: it was killed.
    ledger: Option<Ledger>,
    durable: BTreeMap<String, Entry>,
    /// What its clock is ahead.
    ahead: Duration,
    /// Nothing gets through: by end, to the witness or back.
    cut: [[bool; 2]; 2],
    disk_fails: bool,
    asked: [Option<Asked>; 2],
    count: u64,
}

/// What happens at the witness, or on the way.
#[derive(Debug, Clone, Copy)]
pub enum Matter {
    /// A question gets there.
    Asked { who: Who, number: u64, asked: u64, generation: u64, leases: bool },
    /// An answer gets back.
    Answered { who: Who, number: u64, asked: u64, ruling: Ruling },
    /// It is asked again, or not waited for any more.
    Again { who: Who, number: u64, asked: u64 },
    /// Somebody stands by again.
    Begin,
}

fn role(who: Who) -> Role {
    if who == Who::Primary { Role::Primary } else { Role::Standby }
}

impl World {
    /// The primary has its generation there before the watch begins.
    pub(super) fn open_court(&mut self) {
        self.court.ledger = Some(Ledger::default());
        self.judgement(Who::Primary, 1, true);
    }

    pub(super) fn ask(&mut self, who: Who, number: u64, generation: u64, leases: bool) {
        self.court.count += 1;
        let of = Asked { number: self.court.count, generation, leases, until: self.now + PATIENCE };
        self.court.asked[who as usize] = Some(of);
        self.question(who, number, of);
    }

    fn question(&mut self, who: Who, number: u64, Asked { number: asked, generation, leases, .. }: Asked) {
        self.on_the_way(self.court.cut[who as usize][0], Matter::Asked { who, number, asked, generation, leases });
        self.at(AGAIN, What::Court(Matter::Again { who, number, asked }));
    }

    /// Lost, late, twice.
    fn on_the_way(&mut self, cut: bool, matter: Matter) {
        let copies = if self.dice.chance(20) { 2 } else { u64::from(!self.dice.chance(20)) };
        for _ in 0..if cut { 0 } else { copies } {
            let late = if self.dice.chance(5) { MS * self.dice.below(4000) as u32 } else { Duration::ZERO };
            let delay = self.short() + late;
            self.at(delay, What::Court(matter));
        }
    }

    /// The witness answers; `None`: there is none.
    fn judgement(&mut self, who: Who, generation: u64, leases: bool) -> Option<Ruling> {
        let (flaw, now) = (self.flaw, self.now + self.court.ahead);
        let lease = if flaw == Some(Flaw::NoWitnessLease) || !leases { Duration::ZERO } else { self.limits.lease() };
        let ledger = self.court.ledger.as_mut()?;
        let own = Holder { watch: 1, role: role(who) };
        let mut answer = ledger.ask(NAME, &Question { who: own, generation, lease }, now);
        if ledger.is_unsettled() {
            let done = !self.court.disk_fails;
            ledger.settle(done);
            // What is written first is there in any case.
            if done && (flaw != Some(Flaw::TellsWithoutWriting) || self.court.durable.is_empty()) {
                self.court.durable = ledger.entries().clone();
            } else if !done {
                answer = Answer { verdict: Verdict::Failed, entry: ledger.entry(NAME), left: Duration::ZERO };
            }
        }
        let whose = match answer.entry {
            None => Whose::Nobodys,
            Some(entry) if entry.holder == own => Whose::Mine,
            Some(_) => Whose::Peers,
        };
        let (granted, reached) = (answer.verdict == Verdict::Granted, answer.entry.map_or(0, |entry| entry.generation));
        if flaw == Some(Flaw::GrantsToBoth) && generation >= reached {
            return Some(Ruling { granted: true, generation, whose: Whose::Mine, left: lease });
        }
        Some(Ruling { granted, generation: reached, whose, left: answer.left })
    }

    pub(super) fn court(&mut self, matter: Matter) {
        match matter {
            Matter::Asked { who, number, asked, generation, leases } => {
                if let Some(ruling) = self.judgement(who, generation, leases) {
                    self.tell(|_| format!("Witness: {who:?} asks for {generation}: {ruling:?}"));
                    self.on_the_way(self.court.cut[who as usize][1], Matter::Answered { who, number, asked, ruling });
                }
            }
            Matter::Answered { who, number, asked, ruling } => {
                let waits = self.court.asked[who as usize].is_some_and(|of| of.number == asked);
                if waits && self.present(who, number, &What::Court(matter)) {
                    self.court.asked[who as usize] = None;
                    self.step(who, Event::Ruled(ruling));
                }
            }
            Matter::Again { who, number, asked } => {
                let Some(of) = self.court.asked[who as usize].filter(|of| of.number == asked) else { return };
                if !self.present(who, number, &What::Court(matter)) {
                    return;
                }
                if self.now < of.until {
                    return self.question(who, number, of);
                }
                self.court.asked[who as usize] = None;
                let taken = match who {
                    Who::Primary => Flaw::SilenceIsLeave,
                    Who::Standby => Flaw::SilenceIsGrant,
                };
                let granted = Ruling { granted: true, generation: of.generation, whose: Whose::Mine, left: Duration::ZERO };
                let go = self.flaw == Some(Flaw::GoIsGrant)
                    && self.standby.as_ref().is_some_and(|s| who == Who::Standby && s.machine.is_planned());
                self.step(who, if self.flaw == Some(taken) || go { Event::Ruled(granted) } else { Event::Unruled });
            }
            Matter::Begin => self.begin_again(),
        }
    }

    /// Whoever is called by the primary, since the last one has ended by itself.
    fn begin_again(&mut self) {
        if self.primary.as_ref().is_none_or(|p| p.ended) || self.standby.as_ref().is_some_and(|s| !s.ended) {
            return;
        }
        if self.cut[0] == [false; 2] {
            self.new_standby();
        } else {
            self.at(MS * 500, What::Court(Matter::Begin));
        }
    }

    /// An end of which nobody asked has come.
    pub(super) fn ended_itself(&mut self) {
        if self.limits.witness {
            self.at(MS * 500, What::Court(Matter::Begin));
        }
    }

    pub(super) fn befall_witness(&mut self, fault: Fault) {
        match fault {
            Fault::KillWitness | Fault::AnewWitness => {
                self.court.ledger = None;
                if fault == Fault::AnewWitness {
                    self.begin_witness();
                }
            }
            Fault::CutWitnessHere | Fault::CutWitnessThere => {
                let who = usize::from(fault == Fault::CutWitnessThere);
                let way = 1 + self.dice.below(3);
                self.court.cut[who] = [way & 1 != 0, way & 2 != 0];
            }
            Fault::WitnessDisk => self.court.disk_fails = true,
            _ => {}
        }
    }

    pub(super) fn heal_witness(&mut self, fault: Fault) {
        match fault {
            Fault::KillWitness if self.court.ledger.is_none() => self.begin_witness(),
            Fault::CutWitnessHere | Fault::CutWitnessThere => self.court.cut[usize::from(fault == Fault::CutWitnessThere)] = [false; 2],
            Fault::WitnessDisk => self.court.disk_fails = false,
            _ => {}
        }
    }

    pub(super) fn mend_witness(&mut self) {
        (self.court.cut, self.court.disk_fails) = ([[false; 2]; 2], false);
        if self.court.ledger.is_none() {
            self.begin_witness();
        }
    }

    /// With what is in its file, and another clock.
    fn begin_witness(&mut self) {
        if !self.limits.witness {
            return;
        }
        self.court.ahead += MS * self.dice.below(5000) as u32;
        let now = self.now + self.court.ahead;
        self.court.ledger = Some(Ledger::new(self.court.durable.clone(), now));
        if self.flaw == Some(Flaw::WitnessForgets) {
            self.court.ledger = Some(Ledger::default());
            self.judgement(Who::Primary, 1, true);
        }
    }
}
