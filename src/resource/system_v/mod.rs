//! System V shared memory, semaphores and message queues: sysvipc(7).
//!
//! These objects belong to an ipc namespace, not to a process, and outlive whoever made them. Of namespaces that the
//! tree has to itself all of them are saved. In a namespace that it shares with others, those are the tree's that
//! * are attached by one of its processes (shared memory), or
//! * were made, or used last, by one of its processes: `cpid` and `lpid` of a segment, `sempid` of any semaphore of a
//!   set, `lspid` and `lrpid` of a queue (a process that was born later than the object was used is another one with
//!   the same number), or
//! * have an adjustment (`SEM_UNDO`) for one of its processes, or are waited for by one of its threads.
//!
//! At a restore an object that still exists is taken over when it is the same one (id, key, creator, time) and nobody
//! outside of the tree has used it since; its content comes from the image. One that was removed is made again with its
//! old id (`/proc/sys/kernel/shm_next_id` and its kin). What the kernel notes by itself cannot be chosen: `atime`,
//! `dtime`, `ctime` and `otime` of what is made again are those of the restore. Pids are noted again by letting a process
//! with that number act: one of the tree, or one that lives for that moment when the number is free.

mod actor;
mod leftover;
mod queue;
mod segment;
mod semaphore;
mod spaces;
mod undo;

use super::capture::Capture;
use super::process::Process;
use crate::error::{Context, Error, Kind, Refusal, Result};
use crate::sys::proc::{read, stat, sysvipc};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

pub use actor::Actors;
pub use leftover::Leftover;
pub use queue::Queue;
pub use segment::{Segment, object};
pub use semaphore::SemaphoreSet;
pub use spaces::{Elsewhere, Listed, capture};
pub use undo::{Undo, probe, survey};

/// All objects of the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SystemV {
    /// Shared memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
    /// Semaphores.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<SemaphoreSet>,
    /// Message queues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<Queue>,
}

/// What all three kinds have: `struct ipc_perm`, and the time of the last change (`ctime`, seconds since 1970).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perm {
    /// Identifier.
    pub id: i32,
    /// Key, 0 for `IPC_PRIVATE`.
    pub key: i32,
    /// Permission bits.
    pub mode: u32,
    /// Owner: uid, gid.
    pub owner: (u32, u32),
    /// Creator: uid, gid.
    pub creator: (u32, u32),
    /// Last change of the permissions, or creation.
    pub ctime: i64,
}

/// Whose objects are looked for.
pub struct Tree {
    /// Pid of each process, and when it started: seconds since 1970.
    born: Vec<(i32, i64)>,
    /// The namespace, when it is another one than meio's: it is the tree's own, everything in it belongs to the tree.
    pub space: Option<u32>,
}

/// What of an object in the image is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: it is to be made.
    Absent,
    /// The very same.
    Same,
}

/// What is there, or why it is in the way.
pub type Verdict = std::result::Result<Standing, Box<Refusal>>;

impl SystemV {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == SystemV::default()
    }

    /// Everything in the caller's ipc namespace that may belong to the frozen tree, before its processes are asked.
    pub fn list() -> Result<Self> {
        Ok(SystemV { segments: segment::list()?, sets: semaphore::list()?, queues: queue::list()? })
    }

    /// Keeps what belongs to the tree, with its content. `captured` are its processes.
    pub fn capture(mut self, tree: &Tree, captured: &[&Process], capture: &mut Capture) -> Result<Self> {
        let all = tree.space.is_some();
        let undone: HashSet<i32> = captured.iter().flat_map(|p| &p.undo).map(|u| u.set).collect();
        let waited = waited_for(captured);
        self.sets.retain(|s| all || undone.contains(&s.perm.id) || waited.0.contains(&s.perm.id) || s.used_by(tree));
        self.queues.retain(|q| all || waited.1.contains(&q.perm.id) || q.used_by(tree));
        self.segments = segment::capture(self.segments, tree, capture)?;
        self.queues.iter_mut().try_for_each(|q| q.read(capture))?;
        Ok(self)
    }

    /// All pids that the kernel noted.
    pub fn pids(&mut self) -> impl Iterator<Item = &mut i32> {
        let segments = self.segments.iter_mut().flat_map(|s| [&mut s.cpid, &mut s.lpid]);
        let sets = self.sets.iter_mut().flat_map(|s| s.semaphores.iter_mut().map(|s| &mut s.1));
        segments.chain(sets).chain(self.queues.iter_mut().flat_map(|q| [&mut q.lspid, &mut q.lrpid]))
    }

    /// What stands in the way of a restore into the caller's ipc namespace.
    pub fn check(&self, pids: &HashSet<i32>) -> Result<Vec<Refusal>> {
        let mut refusals = Vec::new();
        for segment in &self.segments {
            refusals.extend(segment.standing(pids)?.err().map(|r| *r));
        }
        for set in &self.sets {
            refusals.extend(set.standing(pids)?.err().map(|r| *r));
        }
        for queue in &self.queues {
            refusals.extend(queue.standing(pids)?.err().map(|r| *r));
        }
        Ok(refusals)
    }
}

impl Tree {
    /// The processes of a tree that stands still.
    pub fn new(pids: impl Iterator<Item = i32>, space: Option<u32>) -> Self {
        let boot = boot_time();
        let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).max(1);
        let born = |pid| Some((pid, boot + read::parsed(pid, "stat", stat::parse).ok()?.start_time as i64 / hz));
        Tree { born: pids.filter_map(born).collect(), space }
    }

    /// Whether `pid`, noted by the kernel at second `time`, is a process of the tree.
    fn did(&self, pid: i32, time: i64) -> bool {
        // Both times are cut off, and the boot time is rounded.
        self.born.iter().any(|&(p, born)| p == pid && born <= time + 1)
    }
}

/// Does something in the ipc namespace of a process. Also whether that is another one than ours.
pub fn within<R>(pid: i32, work: impl FnOnce() -> Result<R>) -> Result<(R, bool)> {
    let namespace = |pid| read::namespace(pid, "ipc");
    let (Ok(theirs), Ok(ours)) = (namespace(pid), namespace(std::process::id() as i32)) else {
        return Ok((work()?, false)); // a kernel without ipc namespaces
    };
    if theirs == ours {
        return Ok((work()?, false));
    }
    let open = |path: String| std::fs::File::open(&path).context(|| format!("opening {path}"));
    let (there, back) = (open(format!("/proc/{pid}/ns/ipc"))?, open("/proc/thread-self/ns/ipc".to_owned())?);
    let enter = |file| nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWIPC);
    enter(there).context(|| format!("entering the ipc namespace of process {pid}"))?;
    let result = work();
    enter(back).context(|| "leaving an ipc namespace")?;
    result.map(|r| (r, true))
}

/// Second of the boot, seconds since 1970.
fn boot_time() -> i64 {
    let text = read::read_machine("stat").unwrap_or_default();
    let line = text.split(|b| *b == b'\n').find_map(|l| l.strip_prefix(b"btime "));
    line.and_then(|l| std::str::from_utf8(l).ok()?.trim().parse().ok()).unwrap_or(0)
}

/// Sets and queues that a thread of the tree sleeps on.
fn waited_for(processes: &[&Process]) -> (HashSet<i32>, HashSet<i32>) {
    let (mut sets, mut queues) = (HashSet::new(), HashSet::new());
    for thread in processes.iter().flat_map(|p| &p.threads) {
        let number = thread.waiting.as_ref().map_or(thread.registers.orig_rax, |w| w.number);
        match number as i64 {
            libc::SYS_semop | libc::SYS_semtimedop => sets.insert(thread.registers.rdi as i32),
            libc::SYS_msgsnd | libc::SYS_msgrcv => queues.insert(thread.registers.rdi as i32),
            _ => false,
        };
    }
    (sets, queues)
}

impl Perm {
    fn from_row(row: &sysvipc::Row, id: &str) -> Self {
        let pair = |user, group| (row.get(user) as u32, row.get(group) as u32);
        Perm {
            id: row.get(id) as i32,
            key: row.get("key") as i32,
            mode: row.get("perms") as u32 & 0o777,
            owner: pair("uid", "gid"),
            creator: pair("cuid", "cgid"),
            ctime: row.get("ctime"),
        }
    }

    /// Compares with what is there: `rows` of the same kind, `id` names their column, `kind` the object for people and
    /// `option` the one of ipcrm(1).
    fn standing(&self, rows: &[sysvipc::Row], id: &str, kind: &str, option: &str) -> Verdict {
        let refuse = |there: &Perm, reason: &str| {
            Err(Box::new(Refusal {
                pid: 0,
                object: format!("{kind} {} (key {:#x})", self.id, self.key),
                reason: format!("{reason}: id {}, key {:#x}, made by uid {}", there.id, there.key, there.creator.0),
                advice: format!("if nobody needs it: ipcrm -{option} {}; else restore in an ipc namespace of its own", there.id),
                ..Refusal::default()
            }))
        };
        // The low bits are the place in the kernel's table, the others count how often it was used.
        let slot = |id: i32| id & 0x7fff;
        for there in rows.iter().map(|r| Perm::from_row(r, id)) {
            if there.id == self.id {
                let same = (there.key, there.creator, there.ctime) == (self.key, self.creator, self.ctime);
                return if same { Ok(Standing::Same) } else { refuse(&there, "another one has its id") };
            }
            if self.key != 0 && there.key == self.key {
                return refuse(&there, "another one has its key");
            }
            if slot(there.id) == slot(self.id) {
                return refuse(&there, "another one has its place in the kernel's table");
            }
        }
        Ok(Standing::Absent)
    }

    fn used_since(&self, kind: &str, option: &str, pid: i32) -> Box<Refusal> {
        Box::new(Refusal {
            pid,
            object: format!("{kind} {} (key {:#x})", self.id, self.key),
            reason: format!("process {pid}, outside of the tree, has used it since the dump"),
            advice: format!("if its content is not needed: ipcrm -{option} {}", self.id),
            ..Refusal::default()
        })
    }
}

/// One of `/proc/sysvipc`, of the caller's ipc namespace; empty when the kernel has no System V IPC.
fn table(name: &str) -> Result<Vec<sysvipc::Row>> {
    match read::read_machine(&format!("sysvipc/{name}")) {
        Err(e) if e.kind == Kind::Kernel => Ok(Vec::new()),
        text => sysvipc::parse(&text?),
    }
}

/// A call that found nothing under an id: the object has been removed in this instant.
fn vanished(e: Errno) -> bool {
    matches!(e, Errno::EINVAL | Errno::EIDRM)
}

/// Says which id the next object of a kind gets: `shm`, `sem` or `msg`.
fn choose_next_id(kind: &str, id: i32) -> Result<()> {
    let path = format!("/proc/sys/kernel/{kind}_next_id");
    std::fs::write(&path, id.to_string())
        .map_err(|e| {
            let e = Error::from(e);
            match e.kind {
                Kind::Permission => e.help("run meio as root, or give it CAP_CHECKPOINT_RESTORE"),
                Kind::NotFound => e.help("the kernel needs CONFIG_CHECKPOINT_RESTORE"),
                _ => e,
            }
        })
        .context(|| path)
}
