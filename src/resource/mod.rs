//! What a process tree is made of. One file a kind: its saved type, how it is captured, how it is rebuilt.

pub mod aio;
pub mod attributes;
pub mod birth;
pub mod capture;
pub mod cgroup;
pub mod clocks;
pub mod credentials;
pub mod descriptor;
pub mod device;
pub mod epoll;
pub mod eventfd;
pub mod fanotify;
pub mod glance;
pub mod graph;
pub mod ignored;
pub mod inotify;
pub mod keyring;
pub mod kinds;
pub mod limits;
pub mod lock;
pub mod memory;
pub mod mount;
pub mod mqueue;
pub mod namespace;
pub mod network;
pub mod numa;
pub mod outside;
pub mod owner;
pub mod path;
pub mod pidfd;
pub mod pipe;
pub mod process;
pub mod pty;
pub mod quiet;
pub mod recall;
pub mod regular;
pub mod sched;
pub mod seccomp;
pub mod shared;
pub mod signalfd;
pub mod signals;
pub mod socket;
pub mod system_v;
pub mod terminal;
pub mod thread;
pub mod timerfd;
pub mod timers;
pub mod tun;
pub mod unsupported;

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
    /// Instructions of the processor that programs look for before they use them, with spaces in between.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub processor: String,
    /// Name of the capsule that the tree is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capsule: Option<String>,
    /// Which tree it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub birth: Option<birth::Birth>,
    /// Id and hash of the image of a series that this one stands for where that is not: those that build upon it build upon this one.
    /// Only on its way to a host that stands by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_for: Option<([u8; 16], [u8; 32])>,
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
    /// Owners and leases of open files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<owner::Owner>,
    /// Sets of cgroups that tasks are in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<Vec<cgroup::Group>>,
    /// What the user decided about things that would have been refused.
    #[serde(default, skip_serializing_if = "capture::Decisions::is_empty")]
    pub decisions: capture::Decisions,
    /// seccomp(2) filters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<seccomp::Filter>,
    /// Namespaces that are not those of meio.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<namespace::Namespace>,
    /// System V shared memory, semaphores and message queues.
    #[serde(default, skip_serializing_if = "system_v::SystemV::is_empty")]
    pub system_v: system_v::SystemV,
    /// POSIX message queues.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub message_queues: Vec<mqueue::Queue>,
    /// Those of other ipc namespaces than the root's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub system_v_elsewhere: Vec<system_v::Elsewhere>,
    /// The kernel's clocks, when a thread was just reading one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<clocks::Clocks>,
}

impl Tree {
    /// Completes the tree of an image of a series by that of the image before, whose files in memory it may name.
    ///
    /// # Errors
    /// When something is not there.
    pub fn complete(&mut self, before: Option<&Tree>) -> crate::error::Result<()> {
        let there = |place: mount::Place| match &before?.namespaces.get(place.namespace as usize)?.content {
            namespace::Content::Mounts(saved) => saved.content(place),
            _ => None,
        };
        let whole = self.namespaces.iter_mut().all(|namespace| match &mut namespace.content {
            namespace::Content::Mounts(saved) => saved.complete(there),
            _ => true,
        });
        if whole { Ok(()) } else { Err(crate::error::Error::image("the image names files that the one before does not have")) }
    }

    /// Gives every process, thread, group and session another number: what meio saw becomes what the tree sees. Each
    /// kind that keeps such a number has its line here; the numbers of timers and the like are those of the base, too.
    pub fn renumber(&mut self, number: impl Fn(i32) -> i32) {
        let to = |n: &mut i32| *n = number(*n);
        for process in &mut self.processes {
            [&mut process.pid, &mut process.ppid, &mut process.pgid, &mut process.sid].into_iter().for_each(to);
            process.threads.iter_mut().for_each(|t| to(&mut t.tid));
            process.timers.posix.iter_mut().for_each(|t| to(&mut t.tid));
        }
        for terminal in &mut self.terminals {
            [&mut terminal.session, &mut terminal.foreground].into_iter().for_each(to);
        }
        self.system_v.pids().for_each(to);
        self.message_queues.iter_mut().filter_map(|q| q.notify.as_mut()).for_each(|n| to(&mut n.pid));
        let elsewhere = self.system_v_elsewhere.iter_mut().map(|e| &mut e.objects);
        std::iter::once(&mut self.system_v).chain(elsewhere).flat_map(system_v::SystemV::pids).for_each(to);
        for file in &mut self.files {
            match &mut file.kind {
                descriptor::FileKind::Epoll(epoll) => to(&mut epoll.first.0),
                // One outside of the tree keeps the number that meio sees.
                descriptor::FileKind::Unix(socket) => socket.pids().for_each(to),
                descriptor::FileKind::PidFd(handle) if handle.departed.is_none() && handle.outside.is_none() => to(&mut handle.target_pid),
                _ => {}
            }
        }
        for owner in self.owners.iter_mut() {
            to(&mut owner.holder.0);
            if owner.target_pid != 0 {
                to(&mut owner.target_pid);
            }
        }
    }

    /// The pid namespace that the numbers of the image are of; `None` for the one that meio was in.
    pub fn base(&self) -> Option<u32> {
        self.processes.first().and_then(|root| root.places.of(&self.namespaces, crate::sys::namespace::Kind::Pid))
    }
}
