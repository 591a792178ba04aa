//! One world: two machines with their disks and processes, and the links between them.

mod faults;
mod parts;
mod pull;
mod source;
mod target;

use super::super::message::{Became, Message};
use super::super::state::{Action, Event, Limits, Mark, Outcome, Source, Verdict, Wish};
pub use parts::Dice;
use parts::{Agent, Due, Link, Process, Tree, What};
pub use parts::{Fault, Flaw};
use pull::Missing;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Two machines, and all that goes on between them.
#[derive(Default)]
pub struct World {
    /// What has happened.
    pub told: Vec<String>,
    tells: bool,
    /// What must never have happened.
    pub wrong: Option<String>,
    dice: Dice,
    flaw: Option<Flaw>,
    now: Duration,
    due: BinaryHeap<Reverse<Due>>,
    count: u64,
    /// Faults happen.
    chaos: bool,
    faults: u64,
    /// What happens after that many steps.
    timely: Vec<(u64, Fault)>,
    /// Steps that were taken.
    pub steps: u64,

    source: Option<Process<Source>>,
    tree: Tree,
    /// Grows whenever the tree runs.
    age: u64,
    source_record: Option<(u64, Mark)>,
    source_lost: bool,
    /// Some record of the source could not be written.
    source_disk_failed: bool,

    agents: Vec<Agent>,
    links: Vec<Link>,
    boot: u8,
    /// The verdict and the number of the agent that wrote it.
    target_record: Option<(Verdict, u64)>,
    runs_there: bool,
    /// It has run there, were it for a moment.
    ran_there: bool,
    /// It runs there before all of its pages are.
    lazy: bool,
    missing: Option<Missing>,
    /// The source sends what is missing.
    fed: bool,
    /// It ran there, and was ended for want of its pages.
    given_up: bool,
    target_lost: bool,
    /// A perhaps has a reason.
    doubtful: bool,
    forced: bool,
    outcome: Option<Outcome>,
}

const MS: Duration = Duration::from_millis(1);

fn limits() -> Limits {
    Limits { again: 20 * MS, prepared: 300 * MS, ready: 300 * MS, alive: 250 * MS, patience: 400 * MS }
}

impl World {
    /// A world from its number.
    pub fn live(seed: u64, flaw: Option<Flaw>) -> World {
        let tells = std::env::var("WORLD").is_ok();
        let mut world = World::new(seed, flaw, tells, true);
        world.run();
        if world.wrong.is_some() && !tells && flaw.is_none() {
            // Once more, to be told.
            world = World::new(seed, flaw, true, true);
            world.run();
        }
        world
    }

    /// A world in which nothing happens but that, each after so many steps.
    pub fn calm(seed: u64, timely: &[(u64, Fault)]) -> World {
        let tells = std::env::var("WORLD").is_ok();
        let lived = |tells| {
            let mut world = World { timely: timely.to_vec(), ..World::new(seed, None, tells, false) };
            world.run();
            world
        };
        let world = lived(tells);
        if world.wrong.is_some() { lived(true) } else { world }
    }

    fn new(seed: u64, flaw: Option<Flaw>, tells: bool, chaos: bool) -> World {
        let mut dice = Dice::new(seed);
        let lazy = dice.chance(400);
        World { tells, flaw, chaos, dice, lazy, age: 1, boot: 1, ..World::default() }
    }

    /// How it ended.
    pub fn end(&self) -> &'static str {
        match () {
            () if self.forced && self.given_up => "forced after it was ended there",
            () if self.forced => "forced",
            () if self.source_lost || self.target_lost && self.ran_there => "lost with its machine",
            () if self.runs_there && self.lazy => "moved before its pages",
            () if self.runs_there => "moved",
            () => "stayed",
        }
    }

    fn tell(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.tells {
            let line = format!("{:>7.1} ms  {}", self.now.as_secs_f64() * 1e3, text(self));
            self.told.push(line);
        }
    }

    fn wrong(&mut self, what: &str) {
        self.tell(|_| format!("WRONG: {what}"));
        self.wrong.get_or_insert_with(|| what.to_owned());
    }

    fn at(&mut self, delay: Duration, what: What) {
        self.count += 1;
        self.due.push(Reverse(Due(self.now + delay, self.count, what)));
    }

    /// How long something takes; now and then long.
    fn short(&mut self) -> Duration {
        let most = if self.dice.chance(100) { 40_000 } else { 3_000 };
        Duration::from_micros(self.dice.below(most))
    }

    /// Something goes wrong where that can be told.
    fn fails(&mut self, often: u64) -> bool {
        self.chaos && self.dice.chance(often)
    }

    fn run(&mut self) {
        let link = self.connect();
        self.count += 1;
        self.source = Some(Process::new(self.count, Source::begin(1, Vec::new(), limits()), Some(link)));
        self.step_source(Event::Start);
        if self.chaos {
            self.faults = 1 + self.dice.below(6);
            let first = MS * self.dice.below(150) as u32;
            self.at(first, What::Fault);
        }
        self.go_on();
        // Everything heals, and whoever has a record takes it up again.
        self.chaos = false;
        const ROUNDS: u32 = 12;
        for _ in 0..ROUNDS {
            if self.wrong.is_some() || self.source_record.is_none() || self.source_lost {
                break;
            }
            let perhaps = matches!(self.outcome, Some(Outcome::Frozen { perhaps: true, .. }));
            if perhaps && !self.doubtful {
                self.wrong("nobody need doubt");
            }
            let wish = match () {
                () if perhaps => Wish::Force,
                () if self.dice.chance(300) && self.outcome != Some(Outcome::RunsThere) => Wish::Abort,
                () => Wish::Resume,
            };
            self.resume(wish);
            self.go_on();
        }
        self.judge();
    }

    fn go_on(&mut self) {
        const ENOUGH: u64 = 20_000;
        while self.wrong.is_none()
            && let Some(Reverse(Due(at, _, what))) = self.due.pop()
        {
            self.now = self.now.max(at);
            if self.count > ENOUGH {
                self.wrong("it never ends");
            }
            match what {
                What::Deliver { link, to_target, frame } => self.deliver(link, to_target, frame),
                What::Notice { link, target } => self.notice(link, target),
                What::Work { process } => self.work(process),
                What::Tick { process } => self.tick(process),
                What::Pull => self.pull(),
                What::Fault => self.any_fault(),
            }
            self.steps += 1;
            let now = self.steps;
            for (_, fault) in self.timely.clone().into_iter().filter(|t| t.0 == now) {
                self.befall(fault);
            }
            self.check();
        }
    }

    /// What holds at every moment.
    fn check(&mut self) {
        let runs_here = self.tree == Tree::Runs;
        if runs_here && self.runs_there {
            self.wrong("two run");
        }
        if runs_here && self.ran_there && !self.forced {
            self.wrong("it has run there, and runs here again");
        }
        let excused = self.source_lost || self.target_lost && self.ran_there;
        if !runs_here && !self.runs_there && self.source.is_none() && self.source_record.is_none() && !excused {
            self.wrong("none runs, and nobody says where it is");
        }
    }

    /// What holds in the end.
    fn judge(&mut self) {
        if self.wrong.is_some() || self.source_lost || self.target_lost && self.ran_there && !self.forced {
            return;
        }
        if self.source_record.is_some() {
            self.wrong("it is never settled");
        }
        if (self.tree == Tree::Runs) == self.runs_there {
            self.wrong("not exactly one runs");
        }
        if self.agents.iter().any(|a| a.1.built.is_some()) {
            self.wrong("something planted is left");
        }
        if self.tree != Tree::Runs && self.tree != Tree::Gone {
            self.wrong("something is left of it");
        }
    }

    fn resume(&mut self, wish: Wish) {
        let Some((generation, mark)) = self.source_record else { return };
        if self.source.is_some() {
            return;
        }
        self.tell(|_| format!("{wish:?} of {mark:?}"));
        self.forced |= wish == Wish::Force;
        self.outcome = None;
        self.count += 1;
        self.source = Some(Process::new(self.count, Source::resume(generation + 1, mark, wish, limits()), None));
        self.step_source(Event::Start);
    }

    fn step_source(&mut self, event: Event) {
        let Some(process) = &mut self.source else { return };
        let number = process.number;
        let event = match (self.flaw, event) {
            (Some(Flaw::LostIsNever), Event::LinkLost) if process.machine.is_committed() => Event::Heard {
                generation: process.machine.generation(),
                message: Message::Answer { became: Became::Never, boot: [self.boot; 16] },
            },
            (Some(Flaw::PullingIsAlive), Event::Heard { generation, message: Message::Pulling }) => {
                Event::Heard { generation, message: Message::Alive }
            }
            (_, event) => event,
        };
        let told = self.tells.then(|| format!("source hears {event:?}"));
        let mut actions = process.machine.step(event, self.now);
        if self.flaw == Some(Flaw::GoIsAlive) && actions.contains(&Action::Send(Message::Go)) {
            actions.push(Action::Reap);
        }
        process.todo.extend(actions);
        let wake = process.machine.wake();
        self.tell(|_| told.unwrap_or_default());
        self.after_step(number, wake);
    }

    fn step_agent(&mut self, number: u64, event: Event) {
        let Some(agent) = self.agents.iter_mut().find(|a| a.0.number == number) else { return };
        let told = self.tells.then(|| format!("agent {number} hears {event:?}"));
        let event = match (self.flaw, event) {
            (Some(Flaw::PullingIsWhole), Event::Pulling) => Event::Released,
            (_, event) => event,
        };
        let actions = agent.0.machine.step(event, self.now);
        agent.0.todo.extend(actions);
        let wake = agent.0.machine.wake();
        self.tell(|_| told.unwrap_or_default());
        self.after_step(number, wake);
    }

    /// Sets an idle process to work, and its alarm.
    fn after_step(&mut self, number: u64, wake: Option<Duration>) {
        let now = self.now;
        let (busy, idle, tick) = if let Some(process) = self.source.as_mut().filter(|p| p.number == number) {
            (&mut process.busy, process.todo.is_empty(), &mut process.tick)
        } else if let Some(agent) = self.agents.iter_mut().find(|a| a.0.number == number) {
            (&mut agent.0.busy, agent.0.todo.is_empty(), &mut agent.0.tick)
        } else {
            return;
        };
        let work = !*busy && !idle;
        *busy |= work;
        let due = wake.map(|wake| wake.max(now)).filter(|wake| tick.is_none_or(|t| t > *wake));
        *tick = due.or(*tick);
        if let Some(due) = due {
            self.at(due - now + MS / 10, What::Tick { process: number });
        }
        if work {
            let delay = self.short();
            self.at(delay, What::Work { process: number });
        }
    }

    fn tick(&mut self, number: u64) {
        if let Some(process) = self.source.as_mut().filter(|p| p.number == number) {
            process.tick = None;
            self.step_source(Event::Tick);
        } else if let Some(agent) = self.agents.iter_mut().find(|a| a.0.number == number) {
            agent.0.tick = None;
            self.step_agent(number, Event::Tick);
        }
    }

    /// Half of a deed: its effect, or word of it. A process can be killed in between.
    fn work(&mut self, number: u64) {
        let source = self.source.as_mut().filter(|p| p.number == number);
        let is_source = source.is_some();
        let (todo, done, busy) = if let Some(process) = source {
            (&mut process.todo, &mut process.done, &mut process.busy)
        } else if let Some(agent) = self.agents.iter_mut().find(|a| a.0.number == number) {
            (&mut agent.0.todo, &mut agent.0.done, &mut agent.0.busy)
        } else {
            return;
        };
        if let Some(event) = done.take() {
            todo.pop_front();
            *busy = false;
            match event {
                Some(event) if is_source => self.step_source(event),
                Some(event) => self.step_agent(number, event),
                None => self.after_step(number, None),
            }
            return;
        }
        let Some(action) = todo.front().cloned() else { return };
        self.tell(|_| format!("{} does {action:?}", if is_source { "source".into() } else { format!("agent {number}") }));
        let event = if is_source { self.source_does(action) } else { self.agent_does(number, action) };
        if let Some(process) = self.source.as_mut().filter(|p| p.number == number) {
            process.done = Some(event);
        } else if let Some(agent) = self.agents.iter_mut().find(|a| a.0.number == number) {
            agent.0.done = Some(event);
        }
        let delay = self.short();
        self.at(delay, What::Work { process: number });
    }
}
