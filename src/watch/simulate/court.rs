//! The witness of a world, and the ways to it.

use super::super::state::{Event, Ruling, Whose};
use super::super::witness::{Answer, Entry, Holder, Ledger, Question, Role, Verdict};
use super::parts::{Fault, Flaw, What, Who};
use super::world::{MS, World};
use crate::migrate::simulate::Dice;
use std::collections::BTreeMap;
use std::time::Duration;

const NAME: &str = "tree";
/// How often a question is sent, and how long an answer may take.
const AGAIN: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_millis(500);

/// A question that somebody has not had an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    number: u64,
    generation: u64,
    /// With a lease.
    leases: bool,
    until: Duration,
}

/// The witness, its file, and who asks: 0 is the primary.
#[derive(Debug, Default)]
pub struct Court {
    /// `None`: it was killed.
    ledger: Option<Ledger>,
    durable: BTreeMap<String, Entry>,
    /// What its clock is ahead.
    pub ahead: Duration,
    /// Nothing gets through: by who asks, to the witness or back.
    pub cut: Vec<[bool; 2]>,
    pub disk_fails: bool,
    asked: Vec<Option<Asked>>,
    count: u64,
}

/// What happens at the witness, or on the way.
#[derive(Debug, Clone, Copy)]
pub enum Matter {
    /// A question gets there.
    Asked { who: usize, number: u64, asked: u64, generation: u64, leases: bool },
    /// An answer gets back.
    Answered { who: usize, number: u64, asked: u64, ruling: Ruling },
    /// It is asked again, or not waited for any more.
    Again { who: usize, number: u64, asked: u64 },
    /// Somebody stands by again.
    Begin,
}

fn role(who: usize) -> Role {
    if who == 0 { Role::Primary } else { Role::Standby }
}

impl Court {
    /// One that so many may ask; nobody has asked it for anything.
    pub fn of(count: usize) -> Court {
        Court { ledger: Some(Ledger::default()), cut: vec![[false; 2]; count], asked: vec![None; count], ..Court::default() }
    }

    /// What is durable is that the standbys have this generation.
    pub fn is_theirs(&self, generation: u64) -> bool {
        self.durable.get(NAME).is_some_and(|entry| entry.generation == generation && entry.holder.role == Role::Standby)
    }

    /// It answers; `None`: there is none. `forgets`: it does not write what it says, after the first time.
    pub fn judge(&mut self, who: usize, generation: u64, lease: Duration, now: Duration, forgets: bool) -> Option<Ruling> {
        let now = now + self.ahead;
        let ledger = self.ledger.as_mut()?;
        let own = Holder { watch: 1, role: role(who) };
        let mut answer = ledger.ask(NAME, &Question { who: own, generation, lease }, now);
        if ledger.is_unsettled() {
            let done = !self.disk_fails;
            ledger.settle(done);
            // What is written first is there in any case.
            if done && (!forgets || self.durable.is_empty()) {
                self.durable = ledger.entries().clone();
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
        Some(Ruling { granted, generation: reached, whose, left: answer.left })
    }

    /// It is killed.
    pub fn end(&mut self) {
        self.ledger = None;
    }

    pub fn is_gone(&self) -> bool {
        self.ledger.is_none()
    }

    /// It begins with what is in its file, or with nothing, and another clock.
    pub fn begin(&mut self, later: Duration, now: Duration, blank: bool) {
        self.ahead += later;
        let entries = if blank { BTreeMap::new() } else { self.durable.clone() };
        self.ledger = Some(Ledger::new(entries, now + self.ahead));
    }
}

/// A world with a witness.
pub trait Asks {
    fn bench(&mut self) -> &mut Court;
    fn thrown(&mut self) -> &mut Dice;
    fn clock(&self) -> Duration;
    /// How long something takes on the way.
    fn way(&mut self) -> Duration;
    fn later(&mut self, delay: Duration, matter: Matter);
    /// Whether who has asked is still there.
    fn hears(&mut self, who: usize, number: u64, matter: Matter) -> bool;
    /// What the witness says; `None`: there is none.
    fn judgement(&mut self, who: usize, generation: u64, leases: bool) -> Option<Ruling>;
    /// What somebody takes silence for that has asked for this generation.
    fn silence(&mut self, who: usize, generation: u64) -> Event;
    fn ruled(&mut self, who: usize, event: Event);
    fn noted(&mut self, text: String);

    fn ask(&mut self, who: usize, number: u64, generation: u64, leases: bool) {
        let until = self.clock() + PATIENCE;
        let court = self.bench();
        court.count += 1;
        let of = Asked { number: court.count, generation, leases, until };
        court.asked[who] = Some(of);
        self.question(who, number, of);
    }

    fn question(&mut self, who: usize, number: u64, Asked { number: asked, generation, leases, .. }: Asked) {
        let cut = self.bench().cut[who][0];
        self.on_the_way(cut, Matter::Asked { who, number, asked, generation, leases });
        self.later(AGAIN, Matter::Again { who, number, asked });
    }

    /// Lost, late, twice.
    fn on_the_way(&mut self, cut: bool, matter: Matter) {
        let dice = self.thrown();
        let copies = if dice.chance(20) { 2 } else { u64::from(!dice.chance(20)) };
        for _ in 0..if cut { 0 } else { copies } {
            let dice = self.thrown();
            let late = if dice.chance(5) { MS * dice.below(4000) as u32 } else { Duration::ZERO };
            let delay = self.way() + late;
            self.later(delay, matter);
        }
    }

    fn court(&mut self, matter: Matter) {
        match matter {
            Matter::Asked { who, number, asked, generation, leases } => {
                if let Some(ruling) = self.judgement(who, generation, leases) {
                    self.noted(format!("Witness: {who} asks for {generation}: {ruling:?}"));
                    let cut = self.bench().cut[who][1];
                    self.on_the_way(cut, Matter::Answered { who, number, asked, ruling });
                }
            }
            Matter::Answered { who, number, asked, ruling } => {
                let waits = self.bench().asked[who].is_some_and(|of| of.number == asked);
                if waits && self.hears(who, number, matter) {
                    self.bench().asked[who] = None;
                    self.ruled(who, Event::Ruled(ruling));
                }
            }
            Matter::Again { who, number, asked } => {
                let Some(of) = self.bench().asked[who].filter(|of| of.number == asked) else { return };
                if !self.hears(who, number, matter) {
                    return;
                }
                if self.clock() < of.until {
                    return self.question(who, number, of);
                }
                self.bench().asked[who] = None;
                let event = self.silence(who, of.generation);
                self.ruled(who, event);
            }
            Matter::Begin => {}
        }
    }
}

/// What an answer says that grants it, whoever else has it.
pub fn granted(generation: u64, left: Duration) -> Ruling {
    Ruling { granted: true, generation, whose: Whose::Mine, left }
}

impl Asks for World {
    fn bench(&mut self) -> &mut Court {
        &mut self.court
    }

    fn thrown(&mut self) -> &mut Dice {
        &mut self.dice
    }

    fn clock(&self) -> Duration {
        self.now
    }

    fn way(&mut self) -> Duration {
        self.short()
    }

    fn later(&mut self, delay: Duration, matter: Matter) {
        self.at(delay, What::Court(matter));
    }

    fn hears(&mut self, who: usize, number: u64, matter: Matter) -> bool {
        self.present(Who::ALL[who], number, &What::Court(matter))
    }

    fn judgement(&mut self, who: usize, generation: u64, leases: bool) -> Option<Ruling> {
        let flaw = self.flaw;
        let lease = if flaw == Some(Flaw::NoWitnessLease) || !leases { Duration::ZERO } else { self.limits.lease() };
        let ruling = self.court.judge(who, generation, lease, self.now, flaw == Some(Flaw::TellsWithoutWriting))?;
        let both = flaw == Some(Flaw::GrantsToBoth) && generation >= ruling.generation;
        Some(if both { granted(generation, lease) } else { ruling })
    }

    fn silence(&mut self, who: usize, generation: u64) -> Event {
        let taken = if who == 0 { Flaw::SilenceIsLeave } else { Flaw::SilenceIsGrant };
        let go = self.flaw == Some(Flaw::GoIsGrant) && self.standby.as_ref().is_some_and(|s| who == 1 && s.machine.is_planned());
        if self.flaw == Some(taken) || go { Event::Ruled(granted(generation, Duration::ZERO)) } else { Event::Unruled }
    }

    fn ruled(&mut self, who: usize, event: Event) {
        self.step(Who::ALL[who], event);
    }

    fn noted(&mut self, text: String) {
        self.tell(|_| text);
    }
}

impl World {
    /// The primary has its generation there before the watch begins.
    pub(super) fn open_court(&mut self) {
        self.court = Court::of(Who::ALL.len());
        if self.limits.witness {
            self.judgement(0, 1, true);
        }
    }

    pub(super) fn befalls_court(&mut self, matter: Matter) {
        match matter {
            Matter::Begin => self.begin_again(),
            matter => self.court(matter),
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
                self.court.end();
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
            Fault::KillWitness if self.court.is_gone() => self.begin_witness(),
            Fault::CutWitnessHere | Fault::CutWitnessThere => self.court.cut[usize::from(fault == Fault::CutWitnessThere)] = [false; 2],
            Fault::WitnessDisk => self.court.disk_fails = false,
            _ => {}
        }
    }

    pub(super) fn mend_witness(&mut self) {
        (self.court.cut, self.court.disk_fails) = (vec![[false; 2]; 2], false);
        if self.court.is_gone() {
            self.begin_witness();
        }
    }

    /// With what is in its file, and another clock.
    fn begin_witness(&mut self) {
        if !self.limits.witness {
            return;
        }
        let later = MS * self.dice.below(5000) as u32;
        let forgets = self.flaw == Some(Flaw::WitnessForgets);
        self.court.begin(later, self.now, forgets);
        if forgets {
            self.judgement(0, 1, true);
        }
    }
}
