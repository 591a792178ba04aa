//! Who may run: the commit protocol of a move, as two machines that do nothing by themselves. An event and the time go in,
//! actions come out; whoever drives them does these in their order and reports what came of them.
//!
//! ```text
//!  source                                    target
//!  prepare           ── Prepare ──▶          checks
//!  rounds            ◀── Prepared ──
//!  freezes           ── Last ──▶             rebuilds everything, lets nothing run, says nothing
//!                    ◀── Ready ──
//!  record Stopping
//!  group stop        (survives any death of meio)
//!  record Committed  (from here on the target decides)
//!                    ── Go ──▶               record Going, unless Refused is on record; lets it run
//!                    ◀── Pulling ──          only where pages are missing:
//!  sends them        (keeps the frozen tree) puts them
//!                    ◀── Alive ──            record Alive
//!  record Moved
//!  ends what is left, forgets the record
//! ```
//!
//! * Before the commit every failure, ^C and a lost link let the source go on; the target destroys what it planted.
//! * After it the source goes on only on the target's word that its refusal is on record ([`Became::Never`]), given in the same
//!   run of that machine, where records last as long as planted trees could. Going and Refused exclude each other.
//! * A tree that runs there while pages are missing is the target's until all are there; when they cannot come any more it is
//!   ended, before it can find something else in their place. What it has said to others until then is not taken back: the
//!   source's state is the older one, and goes on only when a user says so. Nothing is held back to make that otherwise, since
//!   then clients would wait for all the memory; and what a program writes to files and devices could not be.
//! * A meio that takes the move up again has a higher generation and asks; it never says go, since it cannot know that the
//!   tree has not run since.
//! * A tree that may have run there never runs here again, but where a user says so ([`Wish::Force`]).
//!
//! [`Became::Never`]: super::message::Became::Never

mod source;
mod target;

pub use source::Source;
pub use target::Target;

use super::message::{Boot, Message};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the source keeps on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mark {
    /// The tree may stand still; nobody was told to let it run.
    Stopping,
    /// The target may have been told to let it run.
    Committed {
        /// The run of its machine in which the target was ready.
        boot: Boot,
    },
    /// It runs there: what is left here is to be ended.
    Moved,
    /// It is to go on here.
    Stays,
}

/// What the target keeps on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is being let run.
    Going,
    /// It was let run.
    Alive,
    /// It never will be.
    Refused,
}

/// What came of writing a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is durable.
    Written,
    /// Nothing was written: this one is there. [`Verdict::Going`] and [`Verdict::Refused`] are written only where nothing is,
    /// but that who wrote `Going` and let nothing run may turn it into `Refused`.
    Is(Verdict),
    /// It may be there or not.
    Failed,
}

/// What a look at the processes on record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// They live, and nobody holds them.
    Runs,
    /// Whoever is to let them run, or brings their pages, is still at it.
    AtWork,
    /// They are not all there; what was left of them has been ended.
    Gone,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// After this time without an answer it is said again.
    pub again: Duration,
    /// For the target's checks.
    pub prepared: Duration,
    /// From the last byte to the target's being ready.
    pub ready: Duration,
    /// From the commit to its being alive, and for the answer to a question.
    pub alive: Duration,
    /// How long a target that is ready waits for its go.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let s = Duration::from_secs;
        Limits { again: s(1), prepared: s(120), ready: s(60), alive: s(20), patience: s(30) }
    }
}

/// What has happened. Those before [`Event::Prepared`] concern both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Once, before everything else.
    Start,
    /// A frame about this move has come.
    Heard {
        /// Of the frame.
        generation: u64,
        /// Of the frame.
        message: Message,
    },
    /// There is a link, again.
    Linked,
    /// The link is gone, or could not be made.
    LinkLost,
    /// ^C, SIGTERM.
    Interrupted,
    /// What was asked for last could not be done, or what is planted died.
    Failed(String),
    /// Source: what came of [`Action::Mark`].
    Marked(Recorded),
    /// Target: what came of [`Action::Judge`].
    Judged(Verdict, Recorded),
    /// Time goes by; whenever [`Source::wake`] or [`Target::wake`] says so, or more often.
    Tick,

    /// Target: the checks are good; what the source needs to know.
    Prepared(Vec<u8>),
    /// Target: everything is rebuilt.
    Planted,
    /// Target: all of it runs, and no page is missing that the source has.
    Released,
    /// Target: all of it runs, and pages are missing.
    Pulling,
    /// Target: they are there. That they cannot come, and that nothing runs any more, is an [`Event::Failed`].
    Whole,
    /// Target: the answer to [`Action::Look`].
    Looked(Life),

    /// Source: no further round is worth it.
    RoundsDone,
    /// Source: the tree stands still, and everything has been sent.
    LastSent,
    /// Source: the tree is in a group stop.
    Stopped,
    /// Source: it goes on.
    Thawed,
    /// Source: nothing is left of it.
    Reaped,
    /// Source: it could not be let go on, or be ended; or no other link can be made.
    Stuck(String),
}

/// What is to be done. Those that take their time answer with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Both: say it, if there is a link.
    Send(Message),

    /// Source: copy in rounds. Answer: `RoundsDone`, `Failed`.
    Rounds,
    /// Source: freeze, send what is left. Answer: `LastSent`, `Failed`.
    Freeze,
    /// Source: bring the frozen tree into a group stop. Answer: `Stopped`, `Failed`.
    Stop,
    /// Source: make this durable, with the generation. Answer: `Marked`.
    Mark(Mark),
    /// Source: let the tree go on, whatever state it is in. Answer: `Thawed`, `Stuck`.
    Thaw,
    /// Source: send the pages that are missing.
    Feed,
    /// Source: end the tree in silence. Answer: `Reaped`, `Stuck`.
    Reap,
    /// Source: take the record away.
    Forget,
    /// Source: make a new link. Answer: `Linked`, `LinkLost`, `Stuck`.
    Link,
    /// Source: this is how it ended.
    Report(Outcome),

    /// Target: can it live here? Answer: `Prepared`, `Failed`.
    Check(Vec<u8>),
    /// Target: rebuild everything. Answer: `Planted`, `Failed`.
    Plant,
    /// Target: make this durable. Answer: `Judged`.
    Judge(Verdict),
    /// Target: let it run. Answer: `Released`, `Pulling`, `Failed`.
    Release,
    /// Target: end whatever is planted.
    Destroy,
    /// Target: does what is on record live? Answer: `Looked`.
    Look,
    /// Target: nothing more is to be done here.
    End,
}

/// How it ended, as the source knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It runs there, and nothing is left here.
    Moved,
    /// It runs here.
    Stayed(String),
    /// It stands still here; exit code 16. Where records could not be written it may run, since an earlier meio died when it
    /// had let it go on: look before it is said.
    Frozen {
        /// Why nothing more can be said.
        why: String,
        /// It may have run there: only a user can say that it is to go on here.
        perhaps: bool,
    },
    /// It runs there, and was to be taken back: nothing was done.
    RunsThere,
}

/// What a user wants of a move that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// `--resume`: whatever is right.
    Resume,
    /// `--abort`: that it goes on here, if it does not run there.
    Abort,
    /// `--abort --force`: that it goes on here; the target is gone for good.
    Force,
}
