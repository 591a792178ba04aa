//! Namespaces that the tree does not share with meio, which process lives in which, and the numbers that processes
//! have in nested pid namespaces.
//!
//! Numbers in the image are those of the *base*: the pid namespace that the tree's root lives in. A process in a
//! namespace nested in it has further ones, [`Places::inner`].

mod content;
mod numbers;

use super::capture::Capture;
use super::path::FilePath;
use super::process::Process;
use super::{mount, network};
use crate::error::{Context, Kind as Failure, Result};
use crate::sys::namespace::{self, Kind};
use crate::sys::proc::{ahead, read};
use content::{content, id_map};
pub use numbers::Numbers;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Which kind.
    pub kind: Kind,
    /// The user namespace that owns it, an index into [`super::Tree::namespaces`]; `None` for the one that meio was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// What distinguishes it.
    pub content: Content,
}

/// What is in a namespace, or is its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Nothing but what lives in it.
    Nothing,
    /// uts_namespaces(7).
    Names {
        /// sethostname(2).
        host: String,
        /// setdomainname(2).
        domain: String,
    },
    /// time_namespaces(7): offsets of `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` in seconds and nanoseconds.
    Clocks {
        /// Of `CLOCK_MONOTONIC`.
        monotonic: (i64, i64),
        /// Of `CLOCK_BOOTTIME`.
        boottime: (i64, i64),
    },
    /// ipc_namespaces(7): files below `/proc/sys` with their text.
    Ipc {
        /// `kernel/shmmax` and the like.
        sysctls: Vec<(String, String)>,
    },
    /// user_namespaces(7).
    User {
        /// `uid_map`: first id inside, first id in the parent, number of ids.
        uids: Vec<[u32; 3]>,
        /// `gid_map`.
        gids: Vec<[u32; 3]>,
        /// setgroups(2) is forbidden for good.
        no_setgroups: bool,
        /// Who made it, as meio's user namespace numbers him.
        maker: u32,
    },
    /// mount_namespaces(7).
    Mounts(Box<mount::Saved>),
    /// network_namespaces(7).
    Net(Box<network::Saved>),
    /// cgroup_namespaces(7): the cgroups that are its roots, by hierarchy as proc_pid_cgroup(5) names it.
    Roots(Vec<(String, String)>),
}

/// Where one process lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Places {
    /// Its namespaces that are not meio's, at most one a kind: indices into [`super::Tree::namespaces`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<u32>,
    /// Those that its children will be born in, where they differ from its own (`pid_for_children`, `time_for_children`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub for_children: Vec<u32>,
    /// It has called unshare(2) with `CLONE_NEWPID` and has no child since: that will be the init of a new pid namespace.
    #[serde(skip_serializing_if = "is_false")]
    pub unborn: bool,
    /// Its numbers in the pid namespaces that are nested in the base, the outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inner: Vec<i32>,
}

fn is_false(b: &bool) -> bool {
    !b
}

impl Places {
    /// Whether it lives where meio does.
    pub fn plain(&self) -> bool {
        *self == Places::default()
    }

    /// Its namespace of a kind, `None` for meio's.
    pub fn of(&self, table: &[Namespace], kind: Kind) -> Option<u32> {
        self.namespaces.iter().copied().find(|&n| table.get(n as usize).is_some_and(|n| n.kind == kind))
    }

    /// The namespace of a kind that its children are born in.
    pub fn of_children(&self, table: &[Namespace], kind: Kind) -> Option<u32> {
        let other = self.for_children.iter().copied().find(|&n| table.get(n as usize).is_some_and(|n| n.kind == kind));
        other.or_else(|| self.of(table, kind))
    }
}

/// Namespaces as they are found.
#[derive(Debug, Default)]
pub struct Table {
    /// In order of discovery; each user namespace before those that it owns.
    pub found: Vec<Namespace>,
    index: HashMap<(u64, u64), u32>,
    own: Vec<(u64, u64)>,
    owners: Vec<Option<(u64, u64)>>,
    /// Root directories of mount namespaces, by index.
    roots: HashMap<u32, OwnedFd>,
    /// File systems that were met in them.
    file_systems: mount::Seen,
    /// The mount namespace of each process that is in another than meio.
    mounts: HashMap<i32, u32>,
    /// The ipc namespace, likewise.
    ipcs: HashMap<i32, u32>,
}

impl Table {
    /// The one with this device and inode.
    pub fn known(&self, identity: (u64, u64)) -> Option<u32> {
        self.index.get(&identity).copied()
    }

    /// Device and inode of one of them.
    pub fn identity(&self, number: u32) -> Option<(u64, u64)> {
        self.index.iter().find(|known| *known.1 == number).map(|known| *known.0)
    }

    fn is_own(&mut self, identity: (u64, u64)) -> Result<bool> {
        if self.own.is_empty() {
            let own = std::process::id() as i32;
            for kind in Kind::ALL {
                match read::namespace(own, kind.name()) {
                    Ok(identity) => self.own.push(identity),
                    // A kernel without this kind.
                    Err(e) if e.kind == Failure::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(self.own.contains(&identity))
    }
}

/// In which state a process is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It runs: only what could be refused is of interest.
    Running,
    /// It stands still.
    Still,
    /// It has ended.
    Ended,
}

impl Capture {
    /// The way to a path of a process, for meio: it may lie in another mount namespace.
    pub fn place(&self, pid: i32, path: &FilePath) -> PathBuf {
        let root = self.namespaces.mounts.get(&pid).and_then(|id| self.namespaces.roots.get(id));
        match root {
            Some(root) => below(root, path),
            None => path.to_path_buf(),
        }
    }

    /// The mount namespace of a process, `None` for meio's.
    pub fn mounts_of(&self, pid: i32) -> Option<u32> {
        self.namespaces.mounts.get(&pid).copied()
    }

    /// The ipc namespace of a process, `None` for meio's.
    pub fn ipc_of(&self, pid: i32) -> Option<u32> {
        self.namespaces.ipcs.get(&pid).copied()
    }
}

/// An absolute path below a directory that is open.
pub fn below(root: &OwnedFd, path: &FilePath) -> PathBuf {
    let rest = path.strip_prefix("/").unwrap_or(path);
    let root = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    if rest.as_os_str().is_empty() { root.join(".") } else { root.join(rest) }
}

/// Where a process lives; namespaces that were not met yet are read and added to the table. The numbers come later.
pub fn survey(pid: i32, look: Look, capture: &mut Capture) -> Result<Places> {
    let mut places = Places::default();
    // A process that has ended has left all but the one in which it keeps its number.
    let ended = look == Look::Ended;
    for kind in if ended { &[Kind::Pid][..] } else { &Kind::ALL } {
        let kind = *kind;
        let here = match read::namespace(pid, kind.name()) {
            Err(e) if e.kind == Failure::NotFound && std::path::Path::new("/proc/self/ns").join(kind.name()).exists() => return Err(e),
            Err(e) if e.kind == Failure::NotFound => continue,
            here => here?,
        };
        places.namespaces.extend(look_up(pid, (kind, kind.name()), here, look, capture)?);
        if let (Kind::Mnt, Some(&id)) = (kind, places.namespaces.last())
            && capture.namespaces.found[id as usize].kind == Kind::Mnt
        {
            capture.namespaces.mounts.insert(pid, id);
        }
        if let (Kind::Ipc, Some(&id)) = (kind, places.namespaces.last())
            && capture.namespaces.found[id as usize].kind == Kind::Ipc
        {
            capture.namespaces.ipcs.insert(pid, id);
        }
        let name = match kind {
            _ if ended => continue,
            Kind::Pid => "pid_for_children",
            Kind::Time => "time_for_children",
            _ => continue,
        };
        match read::namespace(pid, name) {
            Ok(theirs) if theirs != here => match look_up(pid, (kind, name), theirs, look, capture)? {
                Some(id) => places.for_children.push(id),
                None => {
                    let reason = format!("its children would be born in meio's {} namespace, not in its own", kind.name());
                    capture.refuse(pid, format!("{} namespace", kind.name()), reason, "not supported; start the program differently");
                }
            },
            Ok(_) => {}
            // unshare(2) was called; the first child will be the namespace's init.
            Err(e) if e.kind == Failure::NotFound && kind == Kind::Pid => places.unborn = true,
            Err(e) => return Err(e),
        }
    }
    Ok(places)
}

fn look_up(pid: i32, (kind, name): (Kind, &str), identity: (u64, u64), look: Look, capture: &mut Capture) -> Result<Option<u32>> {
    if capture.namespaces.is_own(identity)? {
        return Ok(None);
    }
    if let Some(&id) = capture.namespaces.index.get(&identity) {
        return Ok(Some(id));
    }
    let doing = || format!("reading the {} namespace of process {pid}", kind.name());
    let fd = namespace::open(pid, name).context(doing)?;
    let owner = match namespace::owner(&fd) {
        Ok(owner) if kind != Kind::User => Some(namespace::identity(&owner)?),
        _ if kind == Kind::User => namespace::parent(&fd).ok().map(|p| namespace::identity(&p)).transpose()?,
        _ => None,
    };
    let id = capture.namespaces.found.len() as u32;
    if kind == Kind::Mnt {
        capture.namespaces.roots.insert(id, mount::View::of(pid)?.root);
    }
    let mut seen = std::mem::take(&mut capture.namespaces.file_systems);
    let content = match kind {
        Kind::Mnt => mount::capture(pid, id, look == Look::Still, &ids_of(pid, owner, capture)?, &mut seen, capture)
            .map(|saved| Content::Mounts(Box::new(saved))),
        Kind::Net => network::capture(pid, capture).map(|saved| Content::Net(Box::new(saved))),
        _ => content(pid, kind, &fd),
    };
    capture.namespaces.file_systems = seen;
    let content = match content {
        Ok(content) => content,
        Err(e) if e.kind == Failure::Unsupported => {
            capture.refuse(pid, format!("{} namespace", kind.name()), e.message, e.help.unwrap_or_default());
            Content::Nothing
        }
        Err(e) => return Err(e.context(doing())),
    };
    let table = &mut capture.namespaces;
    table.found.push(Namespace { kind, owner: None, content });
    table.owners.push(owner);
    table.index.insert(identity, id);
    Ok(Some(id))
}

/// How the user namespace that owns the mount namespace of a process numbers the owners of files.
fn ids_of(pid: i32, owner: Option<Identity>, capture: &Capture) -> Result<mount::Ids> {
    let table = &capture.namespaces;
    let known = owner.and_then(|owner| table.index.get(&owner)).map(|&id| &table.found[id as usize].content);
    Ok(mount::Ids::of(match known {
        Some(Content::User { uids, gids, .. }) => [uids.clone(), gids.clone()],
        _ if owner.is_some_and(|owner| table.own.contains(&owner)) => [Vec::new(), Vec::new()],
        // One that holds no process: a refusal. Until then what the process itself sees will do.
        _ => [id_map(&read::read(pid, "uid_map")?)?, id_map(&read::read(pid, "gid_map")?)?],
    }))
}

/// Completes the table when all processes are known: owners, and what only the whole tree shows.
pub fn complete(processes: &[Process], capture: &mut Capture) {
    let owners = std::mem::take(&mut capture.namespaces.owners);
    let mut table = std::mem::take(&mut capture.namespaces.found);
    let holder = |id: usize| processes.iter().find(|p| p.places.namespaces.contains(&(id as u32))).map_or(0, |p| p.pid);
    let mut refusals = Vec::new();
    for (id, owner) in owners.into_iter().enumerate() {
        let Some(identity) = owner else { continue };
        if capture.namespaces.own.contains(&identity) {
            continue;
        }
        match capture.namespaces.index.get(&identity) {
            Some(&owner) => table[id].owner = Some(owner),
            None => refusals.push((holder(id), table[id].kind, "the user namespace that owns it holds no process of the tree")),
        }
    }
    let base = processes.first().and_then(|root| root.places.of(&table, Kind::Pid));
    let known = |identity| capture.namespaces.known(identity).filter(|id| Some(*id) != base);
    for (id, namespace) in table.iter_mut().enumerate() {
        if let Content::Mounts(saved) = &mut namespace.content {
            capture.namespaces.file_systems.mark(id as u32, saved, known);
        }
    }
    for (id, namespace) in table.iter().enumerate().filter(|(id, n)| n.kind == Kind::Pid && Some(*id as u32) != base) {
        let here = |p: &&Process| p.places.of(&table, Kind::Pid) == Some(id as u32);
        if processes.iter().filter(here).count() > 0 && !processes.iter().filter(here).any(|p| p.places.inner.last() == Some(&1)) {
            refusals.push((holder(id), namespace.kind, "its first process is outside of the tree"));
        }
    }
    // Their threads were born before: at a restore they could not be, clone(2).
    let torn = processes.iter().filter(|p| p.threads.len() > 1 && (p.places.unborn || !p.places.for_children.is_empty()));
    refusals.extend(torn.map(|p| (p.pid, Kind::Pid, "a process of several threads would have its children elsewhere")));
    let user = |p: &Process| p.places.of(&table, Kind::User);
    let owner = |p: &Process| p.places.of(&table, Kind::Pid).and_then(|id| table[id as usize].owner);
    let crowd = processes.iter().filter(|p| p.threads.len() > 1 && user(p).is_some() && user(p) != owner(p));
    refusals.extend(crowd.map(|p| (p.pid, Kind::User, "a process of several threads lives in it, in a pid namespace of another")));
    for (pid, kind, reason) in refusals {
        capture.refuse(pid, format!("{} namespace", kind.name()), reason, "dump a process above all that share the namespace");
    }
    capture.namespaces.found = table;
}

/// A thread that has left the namespaces of its process; only of the kinds that it may leave alone.
pub fn stray_thread(pid: i32, tid: i32, kinds: &[(Kind, Option<Identity>)]) -> Option<Kind> {
    let differs = |(kind, own): &&(Kind, Option<Identity>)| {
        let theirs = identity(format!("/proc/{pid}/task/{tid}/ns/{}", kind.name()));
        own.is_some() && theirs.is_some() && *own != theirs
    };
    kinds.iter().find(differs).map(|k| k.0)
}

/// Device and inode of a namespace.
pub type Identity = (u64, u64);

fn identity(path: String) -> Option<Identity> {
    if let Some(known) = ahead::known_identity(&path) {
        return Some(known);
    }
    std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok()
}

/// Which namespaces of these kinds a process is in, to compare its threads with.
pub fn of_process(pid: i32, kinds: &[Kind]) -> Vec<(Kind, Option<Identity>)> {
    kinds.iter().map(|&kind| (kind, identity(format!("/proc/{pid}/ns/{}", kind.name())))).collect()
}

impl Process {
    /// How many pid namespaces deep below the base it lives.
    pub fn level(&self) -> usize {
        self.places.inner.len()
    }

    /// Its number as those see it who live `level` pid namespaces below the base; `None` when they cannot.
    pub fn number(&self, level: usize) -> Option<i32> {
        if level == 0 { Some(self.pid) } else { self.places.inner.get(level - 1).copied() }
    }

    /// All its numbers as clone3(2) takes them (`set_tid`): the innermost pid namespace first.
    pub fn numbers(&self) -> Vec<i32> {
        self.places.inner.iter().rev().copied().chain([self.pid]).collect()
    }

    /// Its number as it sees it itself.
    pub fn own_number(&self) -> i32 {
        self.places.inner.last().copied().unwrap_or(self.pid)
    }
}
