//! One world: the primary's host, those of the standbys with their disks and processes, and the paths between all of them.

use super::super::super::state::{
    Acks, Action, Activation, Cause, Deed, Event, Frame, Group, Guarantee, Limits, Mark, OnLoss, Part, Path, Poll, Primary, Said, Standby,
    Vote, Votes,
};
use super::super::court::{Asks, Court, Matter};
use super::super::life::{Ended, Life};
use super::super::parts::{Due, Gate, Process};
use super::fills::Fill;
use crate::migrate::simulate::Dice;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

pub const MS: Duration = Duration::from_millis(1);
/// When everything heals.
const CHAOS: Duration = Duration::from_secs(10);

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Whoever asks is taken to have enough.
    AnyMark,
    /// One vote less is enough.
    FewVotes,
    /// One standby less is waited for.
    FewAcks,
    /// A process does not know whose the vote of the one before was,
    VoteForgotten,
    /// or that there was one before.
    Blank,
    /// Who has voted goes on as before.
    NotDeaf,
    /// Somebody votes although he hears the primary.
    VotesAnyway,
    /// A copy that was made while the tree ran is taken for an epoch.
    HalfCopy,
    /// Who was chosen takes a witness that does not answer for one that lets it,
    SilenceIsGrant,
    /// or takes over as soon as the witness lets it, without votes.
    NoVotes,
    /// A fence that failed counts.
    FenceNeedNotWork,
}

/// What befalls a world. Standbys are counted from 1; 0 is the primary's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillPrimary,
    /// Somebody starts it again a while later.
    RestartPrimary,
    KillPrimaryHost,
    StopPrimary,
    Wedge,
    Over,
    Pause,
    Kill(usize),
    KillHost(usize),
    Stop(usize),
    Anew(usize),
    Slow(usize),
    Full(usize),
    DiskFails(usize),
    BreakLink(usize),
    /// Nothing gets from the one to the other.
    Cut(usize, usize),
    /// Nothing gets to or from it.
    CutHost(usize),
    /// Its clock jumps.
    Jump(usize),
    KillWitness,
    AnewWitness,
    WitnessDisk,
    JumpWitness,
    /// Nothing gets from it to the witness, or back, or both.
    CutWitness(usize),
}

impl Fault {
    pub fn all(&Limits { standbys, witness, .. }: &Limits) -> Vec<Fault> {
        let mut all = vec![Fault::KillPrimary, Fault::RestartPrimary, Fault::KillPrimaryHost, Fault::StopPrimary, Fault::Wedge];
        all.extend([Fault::Over, Fault::Pause]);
        for i in 1..=standbys {
            all.extend([Fault::Kill(i), Fault::KillHost(i), Fault::Stop(i), Fault::Anew(i), Fault::Slow(i), Fault::Full(i)]);
            all.extend([Fault::DiskFails(i), Fault::BreakLink(i)]);
        }
        for from in 0..=standbys {
            all.extend([Fault::CutHost(from), Fault::Jump(from)]);
            all.extend((0..=standbys).filter(|to| *to != from).map(|to| Fault::Cut(from, to)));
        }
        if witness {
            all.extend([Fault::KillWitness, Fault::AnewWitness, Fault::WitnessDisk, Fault::JumpWitness]);
            all.extend((0..=standbys).map(Fault::CutWitness));
        }
        all
    }
}

#[derive(Debug, Clone)]
pub enum What {
    /// To the primary from that standby, or to that standby.
    Deliver {
        path: Path,
        from: usize,
        to: usize,
        frame: Frame,
    },
    Poll {
        from: usize,
        to: usize,
        poll: Poll,
    },
    Epoch {
        to: usize,
        link: u64,
        generation: u64,
        mark: Mark,
        ready: bool,
        part: Part,
        age: u64,
    },
    /// What is there is to be given up,
    GiveUp {
        of: usize,
        link: u64,
    },
    /// for a copy of everything, which is complete.
    Copied {
        of: usize,
        mark: Mark,
    },
    LinkLost {
        of: usize,
        link: u64,
    },
    Relink {
        of: usize,
    },
    Gone {
        of: usize,
        number: u64,
    },
    Tick {
        who: usize,
        number: u64,
        wake: Duration,
    },
    Effect {
        who: usize,
        number: u64,
        action: Action,
    },
    Done {
        who: usize,
        number: u64,
        event: Event,
    },
    Voted {
        who: usize,
        number: u64,
        vote: Option<Vote>,
    },
    Court(Matter),
    /// Whoever has ended by itself is called.
    Call {
        of: usize,
    },
    /// Another meio is started for the tree.
    Restart,
    /// The primary's address goes with its meio.
    Guardian {
        number: u64,
    },
    Heal {
        fault: Fault,
    },
    Fault,
}

/// A standby's host.
#[derive(Default)]
pub struct Host {
    pub process: Option<Process<(Standby, Votes)>>,
    pub record: Option<Activation>,
    pub vote: Option<Vote>,
    pub instance: u64,
    /// The generation for which the last process stood by.
    pub stood: u64,
    pub images: BTreeMap<Mark, u64>,
    pub ready: bool,
    /// The epoch that a copy of everything stands for which it has.
    pub base: Option<Mark>,
    /// A copy of everything that it gets, or got.
    pub fill: Option<Fill>,
    pub placed: Option<u64>,
    /// It runs there; of which age it was when it began.
    pub runs: Option<u64>,
    pub slow: bool,
    pub full: bool,
    pub disk_fails: bool,
    /// The link to it.
    pub link: u64,
    pub linked: bool,
    /// The process that the last link was made to.
    pub met: u64,
    /// When the last that was said on it arrives: there, and here.
    pub queue: [Duration; 2],
}

/// All hosts, and all that goes on between them.
#[derive(Default)]
pub struct World {
    pub told: Vec<String>,
    tells: bool,
    /// What must never have happened.
    pub wrong: Option<String>,
    pub(super) dice: Dice,
    pub(super) flaw: Option<Flaw>,
    pub limits: Limits,
    pub(super) now: Duration,
    due: BinaryHeap<Reverse<Due<What>>>,
    pub(super) count: u64,
    timely: Vec<(u64, Fault)>,
    pub faults: Vec<Fault>,
    chaos: u64,
    pub(super) lasting: bool,
    pub steps: u64,

    pub(super) primary: Option<Process<Primary>>,
    pub(super) primary_record: Option<Activation>,
    pub(super) group: Option<Group>,
    pub(super) tree: bool,
    /// Grows whenever the tree runs: each age puts something out.
    pub(super) age: u64,
    pub(super) gate: Gate,
    pub(super) address: bool,
    pub(super) captured: BTreeMap<Mark, u64>,
    /// From when on a copy is of use, by whose it is and what it stands for.
    pub(super) wholes: BTreeMap<(usize, Mark), Mark>,
    /// What is under way to somebody, or may have to be sent again.
    pub(super) shipped: BTreeMap<Mark, bool>,
    pub(super) released: u64,
    pub(super) risk: bool,
    pub(super) left: bool,
    pub(super) wedged: bool,
    /// Enough could take over when the primary was lost.
    pub(super) was_ready: bool,

    /// From 1; the first is nobody's.
    pub hosts: Vec<Host>,
    pub(super) court: Court,
    /// What the clock of each host is ahead.
    pub(super) ahead: Vec<Duration>,
    /// The primary's host was ended, and that is known.
    pub(super) fenced: bool,
    /// From where to where nothing gets through.
    pub(super) cut: BTreeSet<(usize, usize)>,
}

impl Life for World {
    const SEEN: &'static str = "MANY";
    type Flaw = Flaw;
    type Fault = Fault;

    fn new(seed: u64, flaw: Option<Flaw>, limits: Option<Limits>, timely: &[(u64, Fault)], (tells, lasting): (bool, bool)) -> World {
        let mut dice = Dice::new(seed);
        let any = Limits {
            guarantee: if dice.chance(650) { Guarantee::Hold } else { Guarantee::Hot },
            on_loss: if dice.chance(700) { OnLoss::Hold } else { OnLoss::Continue },
            standbys: 2 + dice.below(2) as usize,
            acks: [Acks::One, Acks::Majority, Acks::All][dice.below(3) as usize],
            witness: dice.chance(400),
            fence: dice.chance(250),
            ..Limits::default()
        };
        let chaos = if limits.is_some() { 0 } else { 1 + dice.below(6) };
        let limits = Limits { interval: 100 * MS, wedge: 3000 * MS, ..limits.unwrap_or(any) };
        World {
            tells,
            lasting,
            flaw,
            chaos,
            dice,
            limits,
            timely: timely.to_vec(),
            tree: true,
            address: true,
            age: 1,
            hosts: (0..=limits.standbys).map(|_| Host::default()).collect(),
            ahead: vec![Duration::ZERO; limits.standbys + 1],
            ..World::default()
        }
    }

    fn run(&mut self) {
        self.open_court();
        self.new_primary(Primary::begin(1, self.limits));
        for of in self.standbys() {
            // The watch begins with all links.
            self.new_standby(of);
        }
        self.step(0, Event::Start);
        for _ in 0..self.chaos {
            let when = MS * self.dice.below(8_000) as u32;
            self.at(when, What::Fault);
        }
        self.go_on(CHAOS);
        if !self.lasting {
            self.mend();
        }
        self.go_on(24_000 * MS);
        let released = self.released;
        self.go_on(26_000 * MS);
        self.judge(released);
    }

    fn ended(&self) -> Ended<'_> {
        let of = format!("{:?} {:?}", self.faults, self.limits);
        Ended { wrong: self.wrong.as_deref(), told: &self.told, end: self.end(), of }
    }
}

impl World {
    /// A meio for the tree.
    pub(super) fn new_primary(&mut self, machine: Primary) {
        self.count += 1;
        self.primary = Some(Process::new(self.count, machine));
        let acks = if self.flaw == Some(Flaw::FewAcks) { Acks::One } else { self.limits.acks };
        self.group = Some(Group::new(Limits { acks, ..self.limits }));
    }

    pub(super) fn standbys(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.limits.standbys
    }

    pub(super) fn tell(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.tells {
            let line = format!("{:>8.1} ms  {}", self.now.as_secs_f64() * 1e3, text(self));
            self.told.push(line);
        }
    }

    pub(super) fn wrong(&mut self, what: &str) {
        self.tell(|_| format!("WRONG: {what}"));
        self.wrong.get_or_insert_with(|| what.to_owned());
    }

    pub(super) fn at(&mut self, delay: Duration, what: What) {
        self.count += 1;
        self.due.push(Reverse(Due(self.now + delay, self.count, what)));
    }

    pub(super) fn short(&mut self) -> Duration {
        let most = if self.dice.chance(30) { 60_000 } else { 4_000 };
        Duration::from_micros(self.dice.below(most))
    }

    fn go_on(&mut self, until: Duration) {
        while self.wrong.is_none() && self.due.peek().is_some_and(|Reverse(due)| due.0 <= until) {
            let Some(Reverse(Due(at, _, what))) = self.due.pop() else { return };
            self.now = self.now.max(at);
            self.happen(what);
            self.steps += 1;
            let now = self.steps;
            for (_, fault) in self.timely.clone().into_iter().filter(|t| t.0 == now) {
                if self.now < CHAOS {
                    self.befall(fault);
                }
            }
            self.live_on();
            self.check();
        }
        self.now = self.now.max(until);
        self.live_on();
    }

    /// What has happened to the primary, with one standby or by itself.
    pub(super) fn tell_primary(&mut self, of: usize, event: Event) {
        let Some(primary) = self.primary.as_ref().filter(|p| !p.ended) else { return };
        let generation = if primary.machine.is_demoted() { 0 } else { primary.machine.generation() };
        let (at, now) = ((generation, primary.machine.series()), self.time(0));
        let events = self.group.as_mut().map_or(Vec::new(), |group| group.take(of - 1, event, at, now));
        self.tell(|_| format!("    of {of}: {event:?}"));
        events.into_iter().for_each(|event| self.step(0, event));
    }

    /// Feeds one of the machines.
    pub(super) fn step(&mut self, who: usize, event: Event) {
        let now = self.time(who);
        let (number, actions, wake) = if who == 0 {
            let Some(process) = self.primary.as_mut().filter(|p| !p.ended) else { return };
            (process.number, process.machine.step(event, now), process.machine.wake())
        } else {
            let Some(process) = self.hosts[who].process.as_mut().filter(|p| !p.ended) else { return };
            (process.number, process.machine.0.step(event, now), process.machine.0.wake())
        };
        self.tell(|_| format!("{who} {event:?} -> {actions:?}"));
        if event == Event::Tick && wake.is_some_and(|wake| wake <= now) {
            self.wrong("it does not sleep");
        }
        for action in actions {
            self.act(who, number, action);
        }
        self.wakes(who, wake);
        if who > 0 {
            self.vote(who, Cause::Tick);
        } else {
            self.fill();
        }
    }

    fn wakes(&mut self, who: usize, wake: Option<Duration>) {
        let now = self.time(who);
        let process = if who == 0 {
            self.primary.as_mut().map(|p| (p.number, &mut p.tick))
        } else {
            self.hosts[who].process.as_mut().map(|p| (p.number, &mut p.tick))
        };
        if let (Some((number, tick)), Some(wake)) = (process, wake)
            && tick.is_none_or(|t| t > wake)
        {
            *tick = Some(wake);
            let delay = wake.saturating_sub(now) + MS / 10;
            self.at(delay, What::Tick { who, number, wake });
        }
    }

    /// Feeds what a standby has to do with the others.
    pub(super) fn vote(&mut self, who: usize, cause: Cause) {
        let now = self.time(who);
        let Some(process) = self.hosts[who].process.as_mut().filter(|p| !p.ended) else { return };
        let mut stance = process.machine.0.stance(now);
        stance.lost |= self.flaw == Some(Flaw::VotesAnyway);
        let deeds = process.machine.1.step(cause, &stance, now);
        let (number, wake) = (process.number, process.machine.1.wake());
        if cause != Cause::Tick || !deeds.is_empty() {
            self.tell(|_| format!("{who} {cause:?} -> {deeds:?}"));
        }
        self.wakes(who, Some(wake.max(now)));
        for deed in deeds {
            match deed {
                Deed::Send(to, poll) => self.say(who, to + 1, poll),
                Deed::Record(vote) => {
                    let delay = self.short();
                    self.at(delay, What::Voted { who, number, vote });
                }
                Deed::Lend(true) if self.flaw == Some(Flaw::NotDeaf) => {}
                Deed::Lend(lent) => self.step(who, Event::Lent(lent)),
                Deed::Voted(won) => self.step(who, Event::Voted(won)),
                Deed::Overtaken(_) => self.hosts[who].process.iter_mut().for_each(|p| p.ended = true),
            }
        }
    }

    fn say(&mut self, from: usize, to: usize, poll: Poll) {
        let poll = match self.flaw {
            Some(Flaw::AnyMark) => Poll { mark: Mark { series: 1 << 20, number: 1 }, ..poll },
            _ => poll,
        };
        self.datagram(from, to, What::Poll { from, to, poll });
        // Somebody who has not voted is counted.
        if self.flaw == Some(Flaw::FewVotes) && poll.attempt % 2 == 1 {
            let vote = Some(Vote { to: from - 1, instance: poll.instance, attempt: poll.attempt });
            let poll = Poll { vote, attempt: 0, instance: 1 << 20, ..poll };
            let other = self.standbys().find(|other| *other != from).unwrap_or(to);
            self.at(MS, What::Poll { from: other, to: from, poll });
        }
    }

    /// Lost, late, twice.
    fn datagram(&mut self, from: usize, to: usize, what: What) {
        let copies = if self.dice.chance(20) { 2 } else { u64::from(!self.dice.chance(20)) };
        for _ in 0..if self.cut.contains(&(from, to)) { 0 } else { copies } {
            let late = if self.dice.chance(5) { MS * self.dice.below(4000) as u32 } else { Duration::ZERO };
            let delay = self.short() + late;
            self.at(delay, what.clone());
        }
    }

    /// What is done at once; the rest takes its time.
    fn act(&mut self, who: usize, number: u64, action: Action) {
        match action {
            Action::Send(path, frame) if who == 0 => self.standbys().for_each(|to| self.send(path, 0, to, frame)),
            Action::Send(path, frame) => self.send(path, who, 0, frame),
            Action::Say(Said::AtRisk) => self.risk = true,
            Action::Say(Said::Protected) if who > 0 => self.hosts[who].ready = true,
            Action::Say(_) => {}
            Action::End if who == 0 => {
                self.left |= self.gate == Gate::Free;
                self.primary.iter_mut().for_each(|p| p.ended = true);
            }
            Action::End => {
                self.hosts[who].process.iter_mut().for_each(|p| p.ended = true);
                self.at(MS * 500, What::Call { of: who });
            }
            Action::Poll(_) if self.flaw == Some(Flaw::NoVotes) => self.at(MS, What::Done { who, number, event: Event::Voted(true) }),
            Action::Poll(generation) => self.vote(who, Cause::Asked(generation)),
            Action::Forgo => self.vote(who, Cause::Forgone),
            Action::Ask(generation) => self.ask(who, number, generation, true),
            Action::Hold if self.gate != Gate::Shut => {
                self.gate = if self.limits.guarantee == Guarantee::Hold { Gate::Held } else { Gate::Leased(self.now) }
            }
            Action::Free if self.gate != Gate::Shut => (self.gate, self.address) = (Gate::Free, true),
            Action::Lease(until) if matches!(self.gate, Gate::Leased(_)) => self.gate = Gate::Leased(until.saturating_sub(self.ahead[0])),
            Action::Release(mark) => self.release(mark),
            Action::Discard(mark) => self.shipped.retain(|of, _| *of > mark),
            Action::Relink => self.standbys().for_each(|of| self.break_link(of)),
            Action::Hide => {
                self.address = false;
                if let Gate::Leased(until) = &mut self.gate {
                    *until = self.now;
                }
            }
            Action::Show => self.address = true,
            Action::Drop => {
                let host = &mut self.hosts[who];
                (host.images, host.ready, host.base) = (BTreeMap::new(), false, None);
            }
            Action::Keep(_) | Action::Unblock | Action::Hold | Action::Free | Action::Lease(_) => {}
            slow => {
                let delay = match slow {
                    Action::Capture(mark) if mark.number == 1 => {
                        self.shipped.clear();
                        self.group.iter_mut().for_each(|group| group.begins(mark.series));
                        self.hosts.iter_mut().for_each(|host| host.fill = None);
                        MS * self.dice.below(1500) as u32
                    }
                    Action::Capture(mark) => {
                        self.begins(mark);
                        self.short()
                    }
                    _ => self.short(),
                };
                let wedged = self.wedged && matches!(slow, Action::Capture(_));
                if !wedged {
                    self.at(delay, What::Effect { who, number, action });
                }
            }
        }
    }

    fn release(&mut self, mark: Mark) {
        let held = self.limits.guarantee == Guarantee::Hold && self.gate == Gate::Held;
        if let (true, Some(&age)) = (held && self.tree, self.captured.get(&mark)) {
            self.released = self.released.max(age);
        }
    }

    fn send(&mut self, path: Path, from: usize, to: usize, frame: Frame) {
        let what = What::Deliver { path, from, to, frame };
        if path == Path::Beat {
            return self.datagram(from, to, what);
        }
        let host = from.max(to);
        if self.hosts[host].linked && !self.cut.contains(&(from, to)) {
            let way = usize::from(to == 0);
            let at = (self.now + self.short()).max(self.hosts[host].queue[way]);
            self.hosts[host].queue[way] = at;
            self.at(at - self.now, what);
        }
    }

    pub(super) fn break_link(&mut self, of: usize) {
        if self.hosts[of].linked {
            let delay = MS * self.dice.below(2500) as u32;
            let link = self.hosts[of].link;
            self.at(delay, What::LinkLost { of, link });
        }
    }

    /// Whether this process is still there; what is for one that is stopped waits.
    pub(super) fn present(&mut self, who: usize, number: u64, what: &What) -> bool {
        let process = if who == 0 {
            self.primary.as_ref().map(|p| (p.number, p.stopped))
        } else {
            self.hosts[who].process.as_ref().map(|p| (p.number, p.stopped))
        };
        let Some((_, until)) = process.filter(|(there, _)| *there == number) else { return false };
        if until > self.now {
            self.at(until - self.now, what.clone());
            return false;
        }
        true
    }

    pub(super) fn number(&self, who: usize) -> u64 {
        if who == 0 { self.primary.as_ref().map_or(0, |p| p.number) } else { self.hosts[who].process.as_ref().map_or(0, |p| p.number) }
    }
}
