//! What came of a move, for whoever asked for it.

use super::plan::Plan;
use std::time::Duration;

/// Where the tree is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It runs at the target, and nothing is left here.
    Moved,
    /// It could be moved: nothing more was asked.
    WouldFit,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Where the tree is now.
    pub ended: Ended,
    /// Name of the target's machine, as it says itself.
    pub host: String,
    /// Pid of the root there.
    pub root_pid: Option<i32>,
    /// From the last instruction here to the first there, as well as it can be known: until the word was here that it runs.
    pub downtime: Duration,
    /// The longest stop before that.
    pub stops: Duration,
    /// Images that were sent, the last one included.
    pub rounds: u64,
    /// Bytes that were sent, packed.
    pub bytes: u64,
    /// Bytes of memory that they stand for.
    pub memory_bytes: u64,
    /// Bytes that were sent for files.
    pub file_bytes: u64,
    /// Processes and threads.
    pub processes: u32,
    /// Threads of all processes.
    pub tasks: u32,
    /// The whole run.
    pub total: Duration,
    /// What is different there.
    pub warnings: Vec<String>,
    /// Each phase and its time; those of the target begin with `target: `.
    pub phases: Vec<(String, Duration)>,
}

impl Outcome {
    /// Of a tree of so many processes and threads that is to go to `host`, and of which nothing more is known yet.
    pub(super) fn begin(plan: &Plan, (processes, tasks): (u32, u32), host: &str, phases: Vec<(&'static str, Duration)>) -> Outcome {
        Outcome {
            ended: Ended::WouldFit,
            host: host.to_owned(),
            root_pid: None,
            downtime: Duration::ZERO,
            stops: Duration::ZERO,
            rounds: 0,
            bytes: 0,
            memory_bytes: plan.memory,
            file_bytes: 0,
            processes,
            tasks,
            total: Duration::ZERO,
            warnings: Vec::new(),
            phases: phases.into_iter().map(|(name, took)| (name.to_owned(), took)).collect(),
        }
    }
}
