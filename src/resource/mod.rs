//! What a process tree is made of. One file a kind: its saved type, how it is captured, how it is rebuilt.

pub mod capture;
pub mod credentials;
pub mod descriptor;
pub mod device;
pub mod epoll;
pub mod eventfd;
pub mod graph;
pub mod kinds;
pub mod limits;
pub mod lock;
pub mod memory;
pub mod path;
pub mod pipe;
pub mod process;
pub mod regular;
pub mod sched;
pub mod seccomp;
pub mod shared;
pub mod signalfd;
pub mod signals;
pub mod terminal;
pub mod thread;
pub mod timerfd;
pub mod timers;

use serde::{Deserialize, Serialize};

/// Facts about where and when an image was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the meio that wrote it.
    pub meio: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Kernel release, uname(2).
    pub kernel: String,
    /// Host name.
    pub host: String,
    /// Pid of the root of the tree.
    pub root_pid: i32,
    /// XCR0: the vector state components that the tree's threads may hold.
    pub xfeatures: u64,
}

/// The whole tree, all that is not page content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    /// Every process, parents before children, the root first.
    pub processes: Vec<process::Process>,
    /// Open file descriptions.
    pub files: Vec<descriptor::OpenFile>,
    /// Pipes and FIFOs.
    pub pipes: Vec<pipe::Pipe>,
    /// Terminals.
    pub terminals: Vec<terminal::TerminalState>,
    /// Files that are mapped.
    pub mapped: Vec<memory::MappedFile>,
    /// Memory that belongs to no single address space.
    pub objects: Vec<shared::Object>,
    /// seccomp(2) filters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<seccomp::Filter>,
}
