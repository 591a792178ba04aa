//! The end that a tree goes to.

use super::super::message::{Became, Boot, Message};
use super::{Action, Event, Life, Limits, Recorded, Verdict};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is planted here: go is not heeded, and who asks is promised that it never will be.
    Empty,
    Checking,
    Receiving,
    Planting,
    /// Waits for its go.
    Ready,
    Recording,
    Releasing,
    /// It runs, and pages are missing.
    Pulling,
    Alive,
    /// A refusal is being written, for whoever asked.
    Refusing,
    /// The same, over a go that may be on record; until it is written others are told to ask again.
    Withdrawing,
    Looking,
    /// Letting it run failed halfway.
    Broken,
}

/// The target's machine.
#[derive(Debug, Clone)]
pub struct Target {
    boot: Boot,
    limits: Limits,
    phase: Phase,
    linked: bool,
    /// The highest that was heard.
    generation: u64,
    /// What the checks said.
    details: Vec<u8>,
    again: Duration,
    until: Duration,
}

impl Target {
    /// An agent that knows nothing yet. `boot`: this run of the machine.
    pub fn new(boot: Boot, limits: Limits) -> Self {
        Target {
            boot,
            limits,
            phase: Phase::Empty,
            linked: true,
            generation: 0,
            details: Vec::new(),
            again: Duration::ZERO,
            until: Duration::ZERO,
        }
    }

    /// When it wants to be told the time.
    pub fn wake(&self) -> Option<Duration> {
        matches!(self.phase, Phase::Ready | Phase::Withdrawing).then(|| self.until.min(self.again))
    }

    /// Generation of the frames that are sent.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the tree was, or is just being, let run.
    pub fn is_released(&self) -> bool {
        matches!(self.phase, Phase::Releasing | Phase::Pulling | Phase::Alive | Phase::Broken)
    }

    /// One step.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::LinkLost => self.linked = false,
            Event::Linked | Event::Heard { .. } => self.linked = true,
            _ => {}
        }
        let mut actions = self.decide(event, now);
        // Whoever asks later is told by others.
        let idle = matches!(self.phase, Phase::Empty | Phase::Pulling | Phase::Alive | Phase::Broken);
        if idle && !self.linked && !actions.contains(&Action::End) {
            actions.push(Action::End);
        }
        actions
    }

    fn decide(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Heard { generation, .. } if generation < self.generation => Vec::new(),
            Event::Heard { generation, message } => {
                self.generation = generation;
                self.heard(message, now)
            }
            // What there is to say then has been said.
            Event::Judged(Verdict::Alive, _) => Vec::new(),
            Event::Judged(_, recorded) => self.recorded(recorded, now),
            Event::Prepared(details) if self.phase == Phase::Checking => {
                self.phase = Phase::Receiving;
                self.details = details;
                self.prepared()
            }
            Event::Planted if self.phase == Phase::Planting => {
                self.phase = Phase::Ready;
                self.until = now + self.limits.patience;
                self.ready(now)
            }
            Event::Pulling if self.phase == Phase::Releasing => {
                self.phase = Phase::Pulling;
                vec![Action::Send(Message::Pulling)]
            }
            Event::Released | Event::Whole if matches!(self.phase, Phase::Releasing | Phase::Pulling) => {
                self.phase = Phase::Alive;
                vec![Action::Send(Message::Alive), Action::Judge(Verdict::Alive)]
            }
            Event::Looked(life) if self.phase == Phase::Looking => self.looked(life),
            Event::Failed(why) => self.failed(why),
            Event::LinkLost | Event::Interrupted => match self.phase {
                Phase::Checking | Phase::Receiving | Phase::Planting => self.destroy(Vec::new()),
                Phase::Ready if event == Event::Interrupted => self.destroy(vec![abort("interrupted")]),
                // A link may come again; one that comes with another agent finds that this one keeps nothing for long.
                _ => Vec::new(),
            },
            Event::Tick if self.phase == Phase::Ready && now >= self.until => self.destroy(vec![abort("no go came in time")]),
            Event::Tick if self.phase == Phase::Ready && now >= self.again => self.ready(now),
            // Whoever asks when this agent has ended is told what is on record.
            Event::Tick if self.phase == Phase::Withdrawing && now >= self.until => vec![Action::End],
            Event::Tick if self.phase == Phase::Withdrawing && now >= self.again => self.withdraw(now),
            _ => Vec::new(),
        }
    }

    fn prepared(&self) -> Vec<Action> {
        vec![Action::Send(Message::Prepared { details: self.details.clone() })]
    }

    fn ready(&mut self, now: Duration) -> Vec<Action> {
        self.again = now + self.limits.again;
        vec![Action::Send(Message::Ready { boot: self.boot })]
    }

    fn answer(&self, became: Became) -> Vec<Action> {
        vec![Action::Send(Message::Answer { became, boot: self.boot })]
    }

    /// Nothing stays planted; what is said afterwards is said by an agent that knows nothing.
    fn destroy(&mut self, mut actions: Vec<Action>) -> Vec<Action> {
        self.phase = Phase::Empty;
        actions.insert(0, Action::Destroy);
        actions.push(Action::End);
        actions
    }

    fn refuse(&mut self) -> Vec<Action> {
        self.phase = Phase::Refusing;
        vec![Action::Destroy, Action::Judge(Verdict::Refused)]
    }

    fn withdraw(&mut self, now: Duration) -> Vec<Action> {
        self.phase = Phase::Withdrawing;
        self.again = now + self.limits.again;
        vec![Action::Judge(Verdict::Refused)]
    }

    fn heard(&mut self, message: Message, now: Duration) -> Vec<Action> {
        match (self.phase, message) {
            (Phase::Empty, Message::Prepare { plan }) => {
                self.phase = Phase::Checking;
                vec![Action::Check(plan)]
            }
            (Phase::Receiving, Message::Prepare { .. }) => self.prepared(),
            (Phase::Receiving, Message::Last) => {
                self.phase = Phase::Planting;
                vec![Action::Plant]
            }
            (Phase::Ready, Message::Last) => self.ready(now),
            (Phase::Ready, Message::Go) => {
                self.phase = Phase::Recording;
                vec![Action::Judge(Verdict::Going)]
            }
            (Phase::Empty, Message::Go | Message::Query) | (Phase::Ready, Message::Query) => self.refuse(),
            // Nobody says go after this, or before that.
            (Phase::Checking | Phase::Receiving | Phase::Planting, Message::Query) => self.refuse(),
            (Phase::Checking | Phase::Receiving | Phase::Planting | Phase::Ready, Message::Abort { .. }) => self.destroy(Vec::new()),
            (Phase::Recording | Phase::Releasing | Phase::Pulling | Phase::Withdrawing, Message::Query) => self.answer(Became::Pending),
            (Phase::Pulling, Message::Go) => vec![Action::Send(Message::Pulling)],
            (Phase::Alive, Message::Go) => vec![Action::Send(Message::Alive)],
            (Phase::Alive, Message::Query) => self.answer(Became::Runs),
            (Phase::Alive, Message::Over) => vec![Action::End],
            (Phase::Broken, Message::Go | Message::Query) => self.answer(Became::Perhaps),
            _ => Vec::new(),
        }
    }

    fn recorded(&mut self, recorded: Recorded, now: Duration) -> Vec<Action> {
        match (self.phase, recorded) {
            (Phase::Recording, Recorded::Written) => {
                self.phase = Phase::Releasing;
                vec![Action::Release]
            }
            // Nothing runs, whatever is written there: that is what is to be on record.
            (Phase::Recording, Recorded::Failed) => {
                self.until = now + self.limits.patience;
                let mut actions = vec![Action::Destroy];
                actions.extend(self.withdraw(now));
                actions
            }
            (Phase::Withdrawing, Recorded::Failed) => Vec::new(),
            (Phase::Recording | Phase::Refusing | Phase::Withdrawing, Recorded::Is(verdict)) => {
                let mut actions = vec![Action::Destroy];
                self.phase = Phase::Empty;
                match verdict {
                    Verdict::Alive => actions.extend(self.answer(Became::Runs)),
                    Verdict::Refused => actions.extend(self.answer(Became::Never)),
                    Verdict::Going => {
                        self.phase = Phase::Looking;
                        actions.push(Action::Look);
                    }
                }
                actions
            }
            (Phase::Refusing | Phase::Withdrawing, Recorded::Written) => {
                self.phase = Phase::Empty;
                self.answer(Became::Never)
            }
            // No promise without a record. Whoever asks again has it tried again.
            (Phase::Refusing, Recorded::Failed) => {
                self.phase = Phase::Empty;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn looked(&mut self, life: Life) -> Vec<Action> {
        self.phase = Phase::Empty;
        match life {
            Life::Runs => {
                let mut actions = vec![Action::Judge(Verdict::Alive)];
                actions.extend(self.answer(Became::Runs));
                actions
            }
            Life::AtWork => self.answer(Became::Pending),
            Life::Gone => self.answer(Became::Perhaps),
        }
    }

    fn failed(&mut self, why: String) -> Vec<Action> {
        match self.phase {
            Phase::Checking | Phase::Receiving | Phase::Planting | Phase::Ready => self.destroy(vec![abort(&why)]),
            // It has run, or some of it may have.
            Phase::Releasing | Phase::Pulling => {
                self.phase = Phase::Broken;
                let mut actions = vec![Action::Destroy];
                actions.extend(self.answer(Became::Perhaps));
                actions
            }
            _ => Vec::new(),
        }
    }
}

fn abort(why: &str) -> Action {
    Action::Send(Message::Abort { why: why.to_owned() })
}
