//! What a capture gathers over all processes: tables of shared things, and everything that stands in the way.

use super::Tree;
use super::graph::{Graph, How};
use super::socket::choice::Choice;
use super::{
    descriptor::FileId, descriptor::OpenFile, memory::Backing, memory::MappedFile, memory::ObjectId, namespace::Table, path::FilePath,
    pipe::Pipe, process::Process, shared::Object, shared::Origin, system_v::Listed, terminal::TerminalState,
};
use crate::error::{Context, Refusal};
use crate::sys::task::{self, Files};
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Where the content of an object is read from while the tree is stopped.
#[derive(Debug)]
pub struct Source {
    /// Open for reading.
    pub file: File,
    /// Of one whose content is the same as long as this is.
    pub stamp: Option<super::mount::Stamp>,
}

/// What the user decided about things that would be refused, each written `KIND:ID`; recorded in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decisions {
    /// Kept by name only: the other side lives outside of the tree and is looked for again at the restore.
    pub external: Vec<String>,
    /// Left out of the image.
    pub ignore: Vec<String>,
    /// What becomes of connections with somebody outside of the tree.
    #[serde(default, skip_serializing_if = "Choice::is_keep")]
    pub tcp: Choice,
}

/// A mount namespace, and device, inode and path of a file as proc_pid_maps(5) has them.
pub type Alike = (Option<u32>, (u32, u32), u64, Vec<u8>);

/// The tables of one capture.
#[derive(Debug, Default)]
pub struct Capture {
    /// The tree stands still: what is read stays true, and what only a stopped tree may be asked can be asked.
    pub standing: bool,
    /// Processes whose memory meio itself has watched by userfaultfd.
    pub watched_by_meio: HashSet<i32>,
    /// Open file descriptions.
    pub files: Vec<OpenFile>,
    /// For each of `files`: a process and descriptor that lead to it.
    pub holders: Vec<(i32, i32)>,
    /// Owners and leases of some of `files`.
    pub owners: Vec<super::owner::Owner>,
    /// Every (process, descriptor) that leads to one of `files`.
    pub descriptors: HashMap<(i32, i32), FileId>,
    /// Open file descriptions by (device, inode), each list in the order of kcmp(2).
    pub file_index: HashMap<(u64, u64), Vec<FileId>>,
    /// Pipes, with their inode.
    pub pipes: Vec<Pipe>,
    /// Inode of each of `pipes`.
    pub pipe_inodes: Vec<u64>,
    /// Terminals.
    pub terminals: Vec<TerminalState>,
    /// Masters of pseudo-terminals.
    pub masters: Vec<super::pty::Master>,
    /// POSIX message queues.
    pub message_queues: Vec<super::mqueue::Queue>,
    /// The same, open.
    pub queues_held: Vec<super::mqueue::Held>,
    /// Rings of asynchronous I/O.
    pub rings: Vec<super::aio::Seen>,
    /// Files that are mapped.
    pub mapped: Vec<MappedFile>,
    /// Place of a path of a mount namespace in `mapped`.
    pub mapped_index: HashMap<(Option<u32>, FilePath), u32>,
    /// Place in `mapped` of what proc_pid_maps(5) names alike: device, inode and path, in a mount namespace.
    pub mapped_alike: HashMap<Alike, u32>,
    /// What was found out before.
    pub recall: super::recall::Recall,
    /// Objects whose content travels in the image.
    pub objects: Vec<Object>,
    /// Content of each of `objects`.
    pub sources: Vec<Source>,
    /// (device, inode) of each of `objects`.
    pub object_index: HashMap<(u64, u64), ObjectId>,
    /// Sets of cgroups.
    pub cgroups: super::cgroup::Sets,
    /// seccomp(2) filters.
    pub filters: super::seccomp::Filters,
    /// Namespaces that are not those of meio.
    pub namespaces: Table,
    /// System V objects that may belong to the tree.
    pub system_v: Listed,
    /// The way to the descriptors of the process that was looked at last.
    pub way: RefCell<Option<Rc<Files>>>,
    /// Inodes of the sockets that have to do with the network.
    pub network: HashSet<u64>,
    /// The mount of all open sockets (`mnt_id` of proc_pid_fdinfo(5)) and its device, once one was met.
    pub socket_mount: Option<(i32, u64)>,
    /// What epoll instances watch, by a process and descriptor that lead to them.
    pub watched: HashMap<(i32, i32), Vec<crate::sys::proc::fdinfo::EpollTarget>>,
    /// Counters of which it must be tried how they give, by a process and descriptor that lead to them.
    pub untried: Vec<(i32, i32)>,
    /// How long it took to look at sockets.
    pub sockets: std::cell::Cell<std::time::Duration>,
    /// What new sockets are like, by domain and type.
    pub new_sockets: HashMap<(i32, i32), super::socket::options::New>,
    /// Network namespaces of internet sockets, and what new ones are like there.
    pub inet: super::socket::inet::Known,
    /// Connections that are being read.
    pub reading: Option<super::socket::tcp::Reading>,
    /// Multicast groups that somebody has joined, by network namespace.
    pub groups: HashMap<Option<u32>, Rc<Vec<super::socket::multicast::Joined>>>,
    /// Cookies of core scheduling.
    pub core_cookies: Vec<u64>,
    /// Users, and whether they have more keyrings than everybody gets.
    pub users_keyrings: HashMap<u32, bool>,
    /// Session keyrings that were met.
    pub keyrings: Vec<i32>,
    /// Interfaces that go with a descriptor: a process of their network namespace, and their names.
    pub loose: Vec<(i32, String)>,
    /// Descriptors of meio's own that lead to open files which no process has a descriptor of.
    pub kept: Vec<OwnedFd>,
    /// What will be different after a restore.
    pub warnings: Vec<String>,
    /// Everything that cannot be saved.
    pub refusals: Vec<Refusal>,
    /// What is worth knowing and changes nothing.
    pub notes: Vec<String>,
    /// Descriptors among that.
    pub lost: Vec<super::graph::Lost>,
    /// What the user decided about some of it.
    pub decisions: Choices,
}

/// The user's decisions, and which of them were of use.
#[derive(Debug, Default)]
pub struct Choices {
    made: Decisions,
    used: RefCell<HashSet<String>>,
}

impl Decisions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.external.is_empty() && self.ignore.is_empty() && self.tcp.is_keep()
    }
}

impl From<Decisions> for Choices {
    fn from(made: Decisions) -> Self {
        Choices { made, used: RefCell::default() }
    }
}

impl Choices {
    /// Whether the user wants `KIND:ID` to be looked for outside of the tree.
    pub fn external(&self, id: &str) -> bool {
        self.chosen(&self.made.external, id)
    }

    /// Whether the user wants `KIND:ID` to be left out.
    pub fn ignores(&self, id: &str) -> bool {
        self.chosen(&self.made.ignore, id)
    }

    /// What becomes of connections with somebody outside of the tree.
    pub fn tcp(&self) -> Choice {
        self.made.tcp
    }

    fn chosen(&self, list: &[String], id: &str) -> bool {
        let chosen = list.iter().any(|c| c == id);
        if chosen {
            self.used.borrow_mut().insert(id.to_owned());
        }
        chosen
    }

    /// Whether nothing was decided: then nothing needs to be named.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// Those that concerned something in the tree, for the image.
    pub fn made(&self) -> Decisions {
        let used = self.used.borrow();
        let kept = |list: &[String]| list.iter().filter(|c| used.contains(*c)).cloned().collect();
        Decisions { external: kept(&self.made.external), ignore: kept(&self.made.ignore), tcp: self.made.tcp }
    }

    /// A sentence for each that concerned nothing.
    pub fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        let all = self.made.external.iter().map(|c| ("external", c)).chain(self.made.ignore.iter().map(|c| ("ignore", c)));
        all.filter(|(_, c)| !used.contains(*c)).map(|(option, c)| format!("--{option} {c}: the tree holds nothing of that name")).collect()
    }
}

impl Capture {
    /// Notes that something cannot be saved.
    pub fn refuse(&mut self, pid: i32, object: impl Into<String>, reason: impl Into<String>, advice: impl Into<String>) {
        self.refusals.push(Refusal { pid, object: object.into(), reason: reason.into(), advice: advice.into(), ..Refusal::default() });
    }

    /// The same for a state that passes by itself: `meio dump` looks again a moment later.
    pub fn refuse_for_now(&mut self, pid: i32, object: impl Into<String>, reason: impl Into<String>, advice: impl Into<String>) {
        self.refuse(pid, object, reason, advice);
        self.refusals.last_mut().into_iter().for_each(|r| r.transient = true);
    }

    /// The refusal of an open file description that was met before, through another descriptor.
    pub fn lost_before(&self, found: &super::descriptor::Found) -> crate::error::Result<Option<u32>> {
        for l in self.lost.iter().filter(|l| l.link == found.link) {
            if task::compare_files((found.pid, found.fd), (l.pid, l.fd)).is_ok_and(|o| o == Ordering::Equal) {
                return Ok(Some(l.refusal));
            }
        }
        Ok(None)
    }

    /// The descriptors of a process. Only one handle is open at a time: a tree may have more processes than meio descriptors.
    pub fn files_of(&self, pid: i32) -> Rc<Files> {
        let mut way = self.way.borrow_mut();
        match &*way {
            Some(files) if files.pid() == pid => files.clone(),
            _ => way.insert(Rc::new(Files::of(pid))).clone(),
        }
    }

    /// A duplicate of a descriptor of the tree.
    pub fn duplicate(&self, (pid, fd): (i32, i32)) -> crate::error::Result<OwnedFd> {
        self.files_of(pid).get(fd).context(|| format!("duplicating fd {fd} of process {pid}"))
    }

    /// Brings the refusals into the form in which they are told: each thing once with all that hold it, and how the root
    /// leads to it.
    pub fn settle(&mut self, tree: &Tree) {
        const NAMED: usize = 4;
        if self.refusals.is_empty() {
            return; // the graph of a large tree takes its time
        }
        for (n, refusal) in self.refusals.iter_mut().enumerate() {
            let also: Vec<String> =
                self.lost.iter().filter(|l| l.refusal as usize == n).skip(1).map(|l| format!("{}/{}", l.pid, l.fd)).collect();
            let more = if also.len() > NAMED { format!(" and {} more", also.len() - NAMED) } else { String::new() };
            if !also.is_empty() {
                refusal.object += &format!(", also {}{more}", also[..also.len().min(NAMED)].join(", "));
            }
        }
        let Ok(graph) = Graph::with_refusals(tree, &self.refusals, &self.lost) else { return };
        for refusal in &mut self.refusals {
            let Some(node) = graph.nodes.iter().find(|n| n.refused.as_ref() == Some(refusal)) else { continue };
            let chain = graph.chain(node.key);
            if chain.iter().any(|e| e.how == How::ChildOf) {
                refusal.chain = graph.words(&chain);
            }
        }
    }

    /// Adds to the time that sockets take.
    pub fn took(&self, time: std::time::Duration) {
        self.sockets.set(self.sockets.get() + time);
    }

    /// Device and inode of all files that these processes have mapped.
    pub fn mapped_files(&self, processes: &[Process]) -> HashSet<(u64, u64)> {
        let device = |(major, minor)| nix::sys::stat::makedev(u64::from(major), u64::from(minor));
        let named = self.mapped_alike.keys().map(|(_, number, inode, _)| (device(*number), *inode));
        let mappings = processes.iter().filter_map(|p| p.memory.as_ref()).flat_map(|space| &space.mappings);
        let objects: HashSet<ObjectId> =
            mappings.filter_map(|m| if let Backing::Object { object, .. } = m.backing { Some(object) } else { None }).collect();
        let others = self.object_index.iter().filter(|(_, id)| objects.contains(id)).map(|(identity, _)| *identity);
        named.chain(others).collect()
    }

    /// The object behind (device, inode); `open` is asked for its content the first time.
    pub fn object(
        &mut self,
        identity: (u64, u64),
        open: impl FnOnce() -> crate::error::Result<(Origin, File)>,
    ) -> crate::error::Result<ObjectId> {
        if let Some(&id) = self.object_index.get(&identity) {
            return Ok(id);
        }
        let (origin, file) = open()?;
        let id = self.objects.len() as ObjectId;
        self.objects.push(Object { id, origin, size: file.metadata()?.len() });
        self.sources.push(Source { file, stamp: None });
        self.object_index.insert(identity, id);
        Ok(id)
    }
}
