//! One process: its place in the tree and everything that its threads share.

use super::{descriptor::Descriptor, limits::Limits, memory::AddressSpace, signals::Signals, thread::Thread, timers::Timers};
use serde::{Deserialize, Serialize};

/// Whether it runs, is stopped by job control, or has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Running or sleeping.
    Running,
    /// Stopped by this signal (`SIGSTOP`, `SIGTSTP`, …).
    Stopped(i32),
    /// Ended, not yet waited for; the raw status of wait(2).
    Zombie(i32),
}

/// Root, current directory and umask.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fs {
    /// Current directory.
    pub cwd: String,
    /// The current directory has been removed.
    pub cwd_deleted: bool,
    /// Root directory, `/` unless chroot(2) was called.
    pub root: String,
    /// File mode creation mask.
    pub umask: u32,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Process id in the tree's pid namespace.
    pub pid: i32,
    /// Parent; 0 for the root of the tree.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Running, stopped or ended.
    pub state: State,
    /// Signal that its parent gets at its end (clone(2)), `SIGCHLD` as a rule.
    pub exit_signal: i32,
    /// Threads, the leader first. Empty for a zombie, save its leader's name.
    pub threads: Vec<Thread>,
    /// Name of a zombie; else the leader's.
    #[serde(with = "crate::image::bytes")]
    pub comm: Vec<u8>,
    /// Memory; `None` for a zombie.
    pub memory: Option<AddressSpace>,
    /// Directories.
    pub fs: Fs,
    /// Descriptor table.
    pub descriptors: Vec<Descriptor>,
    /// Dispositions and pending signals.
    pub signals: Signals,
    /// Interval and POSIX timers.
    pub timers: Timers,
    /// Resource limits.
    pub limits: Limits,
    /// personality(2).
    pub personality: u32,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: u32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: bool,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
}
