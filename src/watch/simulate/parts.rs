//! What a world is made of.

use super::super::state::{Action, Event, Frame, Mark, Path};
use super::court::Matter;
use std::time::Duration;

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The standby's word counts for epochs that it has not said to have.
    ReleaseUnsaid,
    /// The standby says that an epoch is whole before it is.
    EarlyWord,
    /// Output is held only from the first word on.
    LateHold,
    /// A primary goes on by itself when it hears nothing.
    SilenceIsFreedom,
    /// Any end of the standby's process lets the primary go on.
    GoneIsFreedom,
    /// A standby takes over without having it on record.
    NoRecord,
    /// A standby goes on taking epochs when it has decided.
    TakesEpochsLate,
    /// The standby keeps its clone when the primary is at another series.
    KeepsOldSeries,
    /// A higher generation is not heeded.
    NoGeneration,
    /// What was overtaken is ended before it runs elsewhere.
    EndsTooSoon,
    /// An epoch of which a part is missing is taken for whole.
    GapsAreFine,
    /// The lease does not end by itself.
    NoLease,
    /// The lease is longer than the time-out.
    LongLease,
    /// A standby that is stopped takes that for silence.
    NoPardon,
    /// One silent path is enough.
    OnePathIsEnough,
    /// The watch ends before the standby knows.
    LeavesAtOnce,
    /// A fence that failed counts.
    FenceNeedNotWork,
    /// A witness that does not answer lets the primary go on,
    SilenceIsLeave,
    /// or the standby take over.
    SilenceIsGrant,
    /// A witness grants whatever nobody has a higher one than.
    GrantsToBoth,
    /// A witness that was killed knows nothing any more.
    WitnessForgets,
    /// It says what it does not write.
    TellsWithoutWriting,
    /// It does not know leases.
    NoWitnessLease,
    /// A standby that is to let it run needs no witness that answers.
    GoIsGrant,
    /// A standby that has everything rebuilt does not wait for a word.
    NeverWaits,
    /// Another standby does not look whether it runs already what was about to.
    NeverLooks,
}

/// What befalls a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillPrimary,
    KillPrimaryHost,
    StopPrimary,
    AnewPrimary,
    KillStandby,
    KillStandbyHost,
    StopStandby,
    AnewStandby,
    CutAll,
    CutToStandby,
    CutToPrimary,
    CutLink,
    CutBeats,
    BreakLink,
    Wedge,
    /// Or it has no room for what comes.
    SlowStandby,
    DiskFails,
    KillWitness,
    AnewWitness,
    /// From the primary, one way or both,
    CutWitnessHere,
    /// or from the standby.
    CutWitnessThere,
    WitnessDisk,
    Over,
    /// A user wants it to be taken over,
    Yield,
    /// or not to be protected for a while.
    Pause,
}

impl Fault {
    pub const ALL: [Fault; 25] = [
        Fault::KillPrimary,
        Fault::KillPrimaryHost,
        Fault::StopPrimary,
        Fault::AnewPrimary,
        Fault::KillStandby,
        Fault::KillStandbyHost,
        Fault::StopStandby,
        Fault::AnewStandby,
        Fault::CutAll,
        Fault::CutToStandby,
        Fault::CutToPrimary,
        Fault::CutLink,
        Fault::CutBeats,
        Fault::BreakLink,
        Fault::Wedge,
        Fault::SlowStandby,
        Fault::DiskFails,
        Fault::KillWitness,
        Fault::AnewWitness,
        Fault::CutWitnessHere,
        Fault::CutWitnessThere,
        Fault::WitnessDisk,
        Fault::Over,
        Fault::Yield,
        Fault::Pause,
    ];
    /// Those that befall the witness alone.
    pub const WITNESS: [Fault; 5] =
        [Fault::KillWitness, Fault::AnewWitness, Fault::CutWitnessHere, Fault::CutWitnessThere, Fault::WitnessDisk];
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Primary,
    Standby,
}

impl Who {
    pub const ALL: [Who; 2] = [Who::Primary, Who::Standby];

    pub fn other(self) -> Who {
        if self == Who::Primary { Who::Standby } else { Who::Primary }
    }
}

/// A meio.
#[derive(Debug)]
pub struct Process<M> {
    pub number: u64,
    pub machine: M,
    /// It is stopped until then.
    pub stopped: Duration,
    pub tick: Option<Duration>,
    /// Its machine is at its end.
    pub ended: bool,
}

impl<M> Process<M> {
    pub fn new(number: u64, machine: M) -> Self {
        Process { number, machine, stopped: Duration::ZERO, tick: None, ended: false }
    }
}

/// How output leaves the primary's host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gate {
    #[default]
    Free,
    Held,
    /// Until then.
    Leased(Duration),
    /// The tree is frozen.
    Shut,
}

#[derive(Debug, Clone)]
pub enum What {
    Deliver {
        path: Path,
        to: Who,
        frame: Frame,
    },
    /// A whole epoch: whatever the primary's generation was.
    Epoch {
        link: u64,
        generation: u64,
        mark: Mark,
        ready: bool,
        age: u64,
    },
    LinkLost {
        link: u64,
    },
    Relink,
    Gone {
        of: Who,
        number: u64,
    },
    Tick {
        who: Who,
        number: u64,
    },
    Effect {
        who: Who,
        number: u64,
        action: Action,
    },
    Done {
        who: Who,
        number: u64,
        event: Event,
    },
    /// The primary's address goes with its meio.
    Guardian {
        number: u64,
    },
    Court(Matter),
    /// Who stands by was called, and answers.
    Called,
    Heal {
        fault: Fault,
    },
    Fault,
}

/// When, in which order, what.
#[derive(Debug)]
pub struct Due<W = What>(pub Duration, pub u64, pub W);

impl<W> PartialEq for Due<W> {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}
impl<W> Eq for Due<W> {}
impl<W> PartialOrd for Due<W> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<W> Ord for Due<W> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}
