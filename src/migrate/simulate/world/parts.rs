//! What a world is made of.

use super::super::super::message::Frame;
use super::super::super::state::{Action, Event, Target};
use std::collections::VecDeque;
use std::time::Duration;

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    NoCommit,
    NoStopping,
    NoGroupStop,
    NoMoved,
    NoRefusal,
    NoGoing,
    GoingOverRefused,
    ReadyRuns,
    NoBoot,
    PerhapsIsNever,
    LostIsNever,
    GoIsAlive,
    EarlyLast,
    PullingIsAlive,
    PullingIsWhole,
    PullingRuns,
}

/// What befalls a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    KillSource,
    KillAgent,
    Cut,
    Interrupt,
    TargetAnew,
    SourceAnew,
}

impl Fault {
    /// Those that do something.
    pub const ALL: [Fault; 6] = [Fault::KillSource, Fault::KillAgent, Fault::Cut, Fault::Interrupt, Fault::TargetAnew, Fault::SourceAnew];
}

/// splitmix64.
#[derive(Debug, Default)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        Dice(dice.roll())
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    /// True `n` times in a thousand.
    pub fn chance(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }
}

/// The tree at its source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tree {
    #[default]
    Runs,
    /// Held by ptrace: it runs when its tracer dies.
    Traced,
    /// In a group stop.
    Stopped,
    /// Being ended.
    Half,
    Gone,
}

/// A meio.
#[derive(Debug)]
pub struct Process<M> {
    pub number: u64,
    pub machine: M,
    pub todo: VecDeque<Action>,
    /// The first of `todo` has had its effect: this is what it is told of it.
    pub done: Option<Option<Event>>,
    pub busy: bool,
    pub link: Option<usize>,
    pub tick: Option<Duration>,
}

impl<M> Process<M> {
    pub fn new(number: u64, machine: M, link: Option<usize>) -> Self {
        Process { number, machine, todo: VecDeque::new(), done: None, busy: false, link, tick: None }
    }
}

/// What an agent holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    /// How much of the life of the tree it has been sent, and has rebuilt.
    pub sent: Option<u64>,
    pub built: Option<u64>,
    pub releasing: bool,
}

pub type Agent = (Process<Target>, Planted);

#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Number of the agent at its end.
    pub agent: u64,
    /// Whether each end believes in it.
    pub source: bool,
    pub target: bool,
    /// Nothing that is said from now on arrives.
    pub cut: bool,
}

#[derive(Debug)]
pub enum What {
    Deliver { link: usize, to_target: bool, frame: Frame },
    Notice { link: usize, target: bool },
    Work { process: u64 },
    Tick { process: u64 },
    Pull,
    Fault,
}

/// When, in which order, what.
pub struct Due(pub Duration, pub u64, pub What);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}
