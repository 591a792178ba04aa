//! One world: two hosts with their disks and processes, the tree and its output, and the paths between them.

use super::super::state::{Action, Activation, Event, Frame, Guarantee, Hand, Limits, Mark, OnLoss, Path, Primary, Said, Standby, Word};
use super::court::{Asks, Court};
use super::life::{Ended, Life};
use super::parts::{Due, Gate, Process, What, Who};
pub use super::parts::{Fault, Flaw};
use crate::migrate::simulate::Dice;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

pub const MS: Duration = Duration::from_millis(1);
/// When everything heals.
const CHAOS: Duration = Duration::from_secs(10);

/// Two hosts, and all that goes on between them.
#[derive(Default)]
pub struct World {
    /// What has happened.
    pub told: Vec<String>,
    tells: bool,
    /// What must never have happened.
    pub wrong: Option<String>,
    pub(super) dice: Dice,
    pub(super) flaw: Option<Flaw>,
    pub limits: Limits,
    pub(super) now: Duration,
    due: BinaryHeap<Reverse<Due>>,
    pub(super) count: u64,
    /// What happens after that many steps.
    timely: Vec<(u64, Fault)>,
    /// Faults that have happened.
    pub faults: Vec<Fault>,
    chaos: u64,
    /// What goes wrong stays so.
    pub(super) lasting: bool,
    pub steps: u64,

    pub(super) primary: Option<Process<Primary>>,
    pub(super) primary_record: Option<Activation>,
    /// The tree is there, at the primary's host.
    pub(super) tree: bool,
    /// It stands still there, as was wanted.
    pub(super) frozen: bool,
    /// The epoch after which it goes on, whenever that is copied.
    pub(super) thawed: Option<Mark>,
    /// The epoch that was to be the last.
    last: Option<Mark>,
    /// What the standby had begun before this is nothing any more.
    undone: u64,
    /// Grows whenever the tree runs: each age puts something out.
    pub(super) age: u64,
    pub(super) gate: Gate,
    /// The gate is being closed, too late.
    late_hold: bool,
    /// The address is up at the primary's host.
    pub(super) address: bool,
    pub(super) captured: BTreeMap<Mark, u64>,
    /// Output up to this age has left the host.
    pub(super) released: u64,
    /// A user has it so that two may answer.
    pub(super) risk: bool,

    pub(super) standby: Option<Process<Standby>>,
    pub(super) standby_record: Option<Activation>,
    pub(super) instance: u64,
    pub(super) images: BTreeMap<Mark, u64>,
    /// The standby could take over.
    pub ready: bool,
    pub(super) placed: Option<u64>,
    /// It runs there; of which age it was when it began.
    pub runs: Option<u64>,
    /// The process that has let it run there.
    pub(super) ran: Option<u64>,
    /// It could, when the primary was lost.
    pub(super) was_ready: bool,
    /// The watch is over, since a user wants it so.
    pub(super) left: bool,

    pub(super) link: u64,
    pub(super) linked: bool,
    /// Until when nothing gets through: by path, and to the standby or to the primary.
    pub(super) cut: [[bool; 2]; 2],
    /// When the last that was said on the link arrives, to each end.
    pub(super) queue: [Duration; 2],
    pub(super) slow: bool,
    /// The standby has no room.
    pub(super) full: bool,
    pub(super) disk_fails: bool,
    pub(super) wedged: bool,
    pub(super) largest: u64,
    pub(super) fabricated: u64,
    pub(super) court: Court,
}

impl Life for World {
    const SEEN: &'static str = "WORLD";
    type Flaw = Flaw;
    type Fault = Fault;

    fn new(seed: u64, flaw: Option<Flaw>, limits: Option<Limits>, timely: &[(u64, Fault)], (tells, lasting): (bool, bool)) -> World {
        let mut dice = Dice::new(seed);
        let any = Limits {
            guarantee: if dice.chance(650) { Guarantee::Hold } else { Guarantee::Hot },
            on_loss: if dice.chance(700) { OnLoss::Hold } else { OnLoss::Continue },
            fence: dice.chance(250),
            witness: dice.chance(400),
            ..Limits::default()
        };
        let chaos = if limits.is_some() { 0 } else { 1 + dice.below(6) };
        World {
            tells,
            lasting,
            flaw,
            chaos,
            dice,
            limits: Limits { interval: 100 * MS, wedge: 3000 * MS, ..limits.unwrap_or(any) },
            timely: timely.to_vec(),
            tree: true,
            address: true,
            linked: true,
            age: 1,
            ..World::default()
        }
    }

    fn run(&mut self) {
        self.open_court();
        self.count += 1;
        self.primary = Some(Process::new(self.count, Primary::begin(1, self.limits)));
        self.step(Who::Primary, Event::Start);
        self.new_standby();
        for _ in 0..self.chaos {
            let when = MS * self.dice.below(8_000) as u32;
            self.at(when, What::Fault);
        }
        self.go_on(CHAOS);
        if !self.lasting {
            self.mend();
        }
        self.go_on(20_000 * MS);
        let released = self.released;
        self.go_on(22_000 * MS);
        self.judge(released);
    }

    fn ended(&self) -> Ended<'_> {
        let of = format!("{:?} {:?}", self.faults, self.limits);
        Ended { wrong: self.wrong.as_deref(), told: &self.told, end: self.end(), of }
    }
}

impl World {
    /// How it ended.
    pub fn end(&self) -> &'static str {
        match () {
            () if self.risk => "at risk",
            () if self.runs.is_some() => "taken over",
            () if self.primary.as_ref().is_none_or(|p| p.ended) && self.tree && self.gate == Gate::Free => "unwatched",
            () if self.serves() => "stayed",
            () => "lost",
        }
    }

    /// Whether the tree is there where it was.
    pub fn is_left(&self) -> bool {
        self.tree
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

    /// Everything heals.
    fn mend(&mut self) {
        self.cut = [[false; 2]; 2];
        (self.slow, self.full, self.disk_fails, self.wedged) = (false, false, false, false);
        self.mend_witness();
        if self.standby.as_ref().is_none_or(|s| s.ended) {
            self.new_standby();
        }
        if self.primary.as_ref().is_none_or(|p| p.ended) && !matches!(self.gate, Gate::Free | Gate::Shut) {
            self.new_primary();
        }
        self.relink();
    }

    fn go_on(&mut self, until: Duration) {
        while self.wrong.is_none() && self.due.peek().is_some_and(|Reverse(due)| due.0 <= until) {
            let Some(Reverse(Due(at, count, what))) = self.due.pop() else { return };
            self.now = self.now.max(at);
            let undone =
                count <= self.undone && matches!(what, What::Effect { who: Who::Standby, .. } | What::Done { who: Who::Standby, .. });
            if !undone {
                self.happen(what);
            }
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
        // Also where nobody does anything any more.
        self.live_on();
    }

    /// A link, where there can be one.
    pub(super) fn relink(&mut self) {
        let both = self.primary.as_ref().is_some_and(|p| !p.ended) && self.standby.as_ref().is_some_and(|s| !s.ended);
        if !both || self.linked || self.cut[Path::Link as usize] != [false; 2] {
            return;
        }
        self.link += 1;
        self.linked = true;
        self.queue = [self.now; 2];
        self.step(Who::Primary, Event::Linked);
        self.step(Who::Standby, Event::Linked);
    }

    /// One thing befalls a switch-over, and nothing else: no link with more under way than can be kept, no datagram of seconds ago.
    fn single(&self) -> bool {
        self.lasting && self.timely.iter().any(|(_, fault)| *fault == Fault::Yield)
    }

    pub(super) fn break_link(&mut self) {
        if self.linked {
            let delay = MS * self.dice.below(2500) as u32;
            let link = self.link;
            self.at(delay, What::LinkLost { link });
        }
    }

    /// Feeds one of the machines.
    pub(super) fn step(&mut self, who: Who, event: Event) {
        let now = self.now;
        let (number, actions, wake) = match who {
            Who::Primary => {
                let Some(process) = self.primary.as_mut().filter(|p| !p.ended) else { return };
                (process.number, process.machine.step(event, now), process.machine.wake())
            }
            Who::Standby => {
                let Some(process) = self.standby.as_mut().filter(|p| !p.ended) else { return };
                (process.number, process.machine.step(event, now), process.machine.wake())
            }
        };
        self.tell(|_| format!("{who:?} {event:?} -> {actions:?}"));
        if event == Event::Tick && wake.is_some_and(|wake| wake <= now) {
            self.wrong("it does not sleep");
        }
        for action in actions {
            self.act(who, number, action);
        }
        let tick = match who {
            Who::Primary => self.primary.as_mut().map(|p| &mut p.tick),
            Who::Standby => self.standby.as_mut().map(|s| &mut s.tick),
        };
        if let (Some(tick), Some(wake)) = (tick, wake)
            && tick.is_none_or(|t| t > wake)
        {
            *tick = Some(wake);
            let delay = wake.saturating_sub(now) + MS / 10;
            self.at(delay, What::Tick { who, number });
        }
    }

    /// What is done at once; the rest takes its time.
    fn act(&mut self, who: Who, number: u64, action: Action) {
        match action {
            Action::Send(path, frame) => self.send(who, path, frame),
            Action::Say(Said::AtRisk) => self.risk = true,
            Action::Say(Said::Cut) if self.flaw == Some(Flaw::SilenceIsFreedom) => self.gate = Gate::Free,
            Action::Say(Said::Protected) => self.ready |= who == Who::Standby,
            Action::Say(_) => {}
            Action::End => match who {
                Who::Primary => {
                    self.left |= self.gate == Gate::Free;
                    self.primary.iter_mut().for_each(|p| p.ended = true);
                }
                Who::Standby => {
                    self.standby.iter_mut().for_each(|s| s.ended = true);
                    self.ended_itself();
                }
            },
            Action::Ask(generation) => self.ask(who as usize, number, generation, true),
            Action::Cede(generation) => self.ask(who as usize, number, generation, false),
            Action::Hold if self.flaw == Some(Flaw::LateHold) && self.limits.guarantee == Guarantee::Hold => self.late_hold = true,
            Action::Hold if self.gate != Gate::Shut => {
                self.gate = if self.limits.guarantee == Guarantee::Hold { Gate::Held } else { Gate::Leased(self.now) }
            }
            Action::Free if self.gate != Gate::Shut => (self.gate, self.address) = (Gate::Free, true),
            Action::Lease(until) if matches!(self.gate, Gate::Leased(_)) => {
                let longer = if self.flaw == Some(Flaw::LongLease) { self.limits.timeout * 2 } else { Duration::ZERO };
                self.gate = Gate::Leased(until + longer);
            }
            Action::Release(mark) => self.release(mark),
            Action::Discard(_) => {}
            Action::Relink => self.break_link(),
            Action::Hide => {
                self.address = false;
                if let Gate::Leased(until) = &mut self.gate {
                    *until = self.now;
                }
            }
            Action::Thaw => (self.frozen, self.thawed) = (false, self.last),
            Action::Show => self.address = true,
            Action::Keep(_) => {}
            Action::Drop if self.flaw == Some(Flaw::KeepsOldSeries) => {}
            Action::Drop => (self.images, self.ready) = (BTreeMap::new(), false),
            Action::Unblock => {}
            Action::Undo => (self.placed, self.undone) = (None, self.count),
            slow => {
                let delay = match slow {
                    Action::Capture(mark) if mark.number == 1 => MS * self.dice.below(1500) as u32,
                    Action::Fence => MS * self.dice.below(800) as u32,
                    _ => self.short(),
                };
                if let Action::Last(mark) = slow {
                    self.last = Some(mark);
                }
                let wedged = self.wedged && matches!(slow, Action::Capture(_) | Action::Last(_));
                if !wedged {
                    self.at(delay, What::Effect { who, number, action });
                }
                if let (Action::Ship { mark, .. }, Some(Flaw::ReleaseUnsaid)) = (slow, self.flaw) {
                    self.release(mark);
                }
            }
        }
    }

    fn release(&mut self, mark: Mark) {
        let held = self.limits.guarantee == Guarantee::Hold && self.gate == Gate::Held;
        if let (true, Some(&age)) = (held && self.tree, self.captured.get(&mark)) {
            self.released = self.released.max(age);
        }
        if std::mem::take(&mut self.late_hold) {
            self.gate = Gate::Held;
        }
    }

    fn send(&mut self, who: Who, path: Path, frame: Frame) {
        let to = who.other();
        let frame = match (self.flaw, who, frame.word) {
            // The standby looks at no series, and says what the primary wants to hear.
            (Some(Flaw::KeepsOldSeries), Who::Primary, Word::Primary { series, wedged, over, last, go }) => {
                self.fabricated = series;
                Frame { word: Word::Primary { series: series.min(1), wedged, over, last, go }, ..frame }
            }
            (Some(Flaw::KeepsOldSeries), Who::Standby, Word::Standby { whole, ready, left, full, echo, hand })
                if whole.series < self.fabricated =>
            {
                let whole = Mark { series: self.fabricated, number: 0 };
                Frame { word: Word::Standby { whole, ready, left, full, echo, hand }, ..frame }
            }
            (Some(Flaw::EndsTooSoon), Who::Standby, Word::Standby { whole, ready, left, full, echo, .. }) if frame.generation > 1 => {
                Frame { word: Word::Standby { whole, ready, left, full, echo, hand: Hand::Runs }, ..frame }
            }
            (Some(Flaw::NoGeneration), Who::Standby, _) => Frame { generation: 1, ..frame },
            (Some(Flaw::OnePathIsEnough), Who::Primary, _) if path == Path::Beat => return,
            _ => frame,
        };
        if let (Some(Flaw::NeverWaits), Word::Standby { whole, hand: Hand::Set, echo, .. }) = (self.flaw, frame.word)
            && self.standby.as_ref().is_some_and(|s| !s.machine.is_decided())
        {
            let word = Word::Primary { series: whole.series, wedged: false, over: false, last: whole.number, go: true };
            let heard = Frame { word, instance: 0, sequence: echo + 1, ..frame };
            self.at(MS / 10, What::Deliver { path, to: who, frame: heard });
        }
        if self.cut[path as usize][to as usize] || path == Path::Link && !self.linked {
            return;
        }
        match path {
            Path::Link => {
                let at = self.now + self.short();
                let at = at.max(self.queue[to as usize]);
                self.queue[to as usize] = at;
                self.at(at - self.now, What::Deliver { path, to, frame });
            }
            Path::Beat => {
                let copies = if self.dice.chance(20) { 2 } else { u64::from(!self.dice.chance(20)) };
                for _ in 0..copies {
                    let late = if self.dice.chance(5) && !self.single() { MS * self.dice.below(4000) as u32 } else { Duration::ZERO };
                    let delay = self.short() + late;
                    self.at(delay, What::Deliver { path, to, frame });
                }
            }
        }
    }

    /// Whether this process is still there; what is for one that is stopped waits.
    pub(super) fn present(&mut self, who: Who, number: u64, what: &What) -> bool {
        let (there, until) = match who {
            Who::Primary => self.primary.as_ref().map_or((0, Duration::ZERO), |p| (p.number, p.stopped)),
            Who::Standby => self.standby.as_ref().map_or((0, Duration::ZERO), |s| (s.number, s.stopped)),
        };
        if there != number {
            return false;
        }
        if until > self.now {
            let pass = who == Who::Standby && self.flaw == Some(Flaw::NoPardon) && matches!(what, What::Tick { .. });
            if pass && let Some(standby) = &mut self.standby {
                // Looks as if it were listening.
                standby.machine.listen(self.now);
                self.at(self.limits.beat, what.clone());
                return false;
            }
            self.at(until - self.now, what.clone());
            return false;
        }
        true
    }

    fn number(&self, who: Who) -> u64 {
        match who {
            Who::Primary => self.primary.as_ref().map_or(0, |p| p.number),
            Who::Standby => self.standby.as_ref().map_or(0, |s| s.number),
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Deliver { path, to, frame } => {
                if self.present(to, self.number(to), &what) {
                    self.step(to, Event::Heard(path, frame));
                }
            }
            What::Epoch { link, generation, mark, ready, age } => {
                let number = self.number(Who::Standby);
                if link == self.link && self.present(Who::Standby, number, &what) {
                    self.whole(generation, mark, ready, age);
                }
            }
            What::LinkLost { link } => {
                if link == self.link && self.linked {
                    self.linked = false;
                    self.step(Who::Primary, Event::LinkLost);
                    if self.dice.chance(300) && !self.single() {
                        // What was under way was too much to be kept.
                        self.step(Who::Primary, Event::Anew);
                    }
                    self.step(Who::Standby, Event::LinkLost);
                    let delay = MS * (20 + self.dice.below(500)) as u32;
                    self.at(delay, What::Relink);
                }
            }
            What::Relink => {
                self.relink();
                if !self.linked {
                    self.at(MS * 300, What::Relink);
                }
            }
            What::Gone { of, number } => {
                let told = of.other();
                let cut = self.cut.iter().any(|path| path[told as usize]);
                if self.number(of) != number && !cut && self.present(told, self.number(told), &what) {
                    if told == Who::Primary && self.flaw == Some(Flaw::GoneIsFreedom) && self.gate == Gate::Held {
                        self.gate = Gate::Free;
                    }
                    self.step(told, Event::Gone);
                }
            }
            What::Tick { who, number } => {
                if self.present(who, number, &what) {
                    match who {
                        Who::Primary => self.primary.iter_mut().for_each(|p| p.tick = None),
                        Who::Standby => self.standby.iter_mut().for_each(|s| s.tick = None),
                    }
                    self.step(who, Event::Tick);
                }
            }
            What::Effect { who, number, action } => {
                if self.present(who, number, &what) {
                    let event = self.effect(who, action);
                    if let Some(event) = event {
                        let delay = self.short();
                        self.at(delay, What::Done { who, number, event });
                    }
                }
            }
            What::Done { who, number, event } => {
                if self.present(who, number, &what) {
                    let event = if self.flaw == Some(Flaw::FenceNeedNotWork) && event == Event::Fenced(false) {
                        Event::Fenced(true)
                    } else {
                        event
                    };
                    self.step(who, event);
                }
            }
            What::Guardian { number } => {
                let stopped = self.primary.as_ref().is_some_and(|p| p.number == number && p.stopped > self.now);
                if (self.number(Who::Primary) != number || stopped) && self.gate != Gate::Free {
                    self.address = false;
                }
            }
            What::Court(matter) => self.befalls_court(matter),
            What::Called => self.new_standby(),
            What::Heal { fault } => self.heal(fault),
            What::Fault => self.any_fault(),
        }
    }
}
