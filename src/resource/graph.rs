//! The graph of a tree: processes, what they hold, and what each thing needs. It is built from a [`Tree`], be that an
//! image or a running tree that was only looked at. It gives the order in which a restore makes things, and the chain
//! that leads from the root to a thing, which is how a refusal tells who is to blame.
//!
//! A kind of open file tells the graph about itself by one method in its own file, which returns a [`Part`];
//! [`FileKind::part`](super::descriptor::FileKind::part) leads there.

mod tables;

use super::descriptor::OpenFile;
use super::memory::{Backing, Mapping};
use super::process::{Process, State};
use super::shared::Origin;
use super::{Tree, kinds};
use crate::error::{Error, Refusal, Result};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

/// What a node is, by its number in the image. Where nothing else decides, things are made in the order of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Shared memory without a file, by its index in [`Tree::objects`].
    Object(u32),
    /// A file that is mapped, by its index in [`Tree::mapped`].
    Mapped(u32),
    /// A pipe or FIFO, by its index in [`Tree::pipes`].
    Pipe(u32),
    /// A terminal, by its index in [`Tree::terminals`].
    Terminal(u32),
    /// An open file description, by its index in [`Tree::files`].
    File(u32),
    /// Something that cannot be saved, by its place among the refusals.
    Refused(u32),
    /// A session (setsid(2)).
    Session(i32),
    /// A process group (setpgid(2)).
    Group(i32),
    /// A process.
    Process(i32),
    /// A namespace, by its index in [`Tree::namespaces`].
    Namespace(u32),
    /// A set of System V semaphores, counted over all ipc namespaces.
    Semaphores(u32),
    /// A System V message queue, likewise.
    Messages(u32),
    /// A filter of system calls, by its index in [`Tree::filters`].
    Filter(u32),
    /// What a descriptor of a process leads to: stands for a [`Key::File`], and is no node of its own.
    Descriptor(i32, i32),
}

/// How one thing hangs on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    /// A process on its parent.
    ChildOf,
    /// A process on an open file, by this descriptor.
    Holds(i32),
    /// A process on memory or a file that it maps; true where its writes reach the others.
    Maps(bool),
    /// A process on its executable.
    Runs,
    /// A process on its group, a group on its session.
    MemberOf,
    /// A session on its controlling terminal.
    Controls,
    /// A process on a namespace that is not meio's.
    LivesIn,
    /// A process on a semaphore set or message queue that it used last, or will when it ends.
    Uses,
    /// A process on a filter of system calls.
    Obeys,
    /// An epoll instance, or whatever else waits for something, on what it waits for.
    Watches,
    /// Something that carries descriptors inside (`SCM_RIGHTS`) on an open file that waits in it.
    Carries,
    /// A socket on its peer.
    Connected,
    /// Cannot be made before the other is there.
    Needs,
}

impl How {
    /// Whether the other thing must be made first. A socket can wait in its own queue, and is put there when all is made.
    fn orders(self) -> bool {
        !matches!(self, How::MemberOf | How::Carries | How::Connected | How::LivesIn | How::Uses | How::Obeys)
    }

    /// The word for it, stable: part of the JSON.
    pub fn word(self) -> &'static str {
        match self {
            How::ChildOf => "child of",
            How::Holds(_) => "holds",
            How::Maps(_) => "maps",
            How::Runs => "runs",
            How::MemberOf => "member of",
            How::Controls => "controlled by",
            How::LivesIn => "lives in",
            How::Uses => "uses",
            How::Obeys => "obeys",
            How::Watches => "watches",
            How::Carries => "carries",
            How::Connected => "connected to",
            How::Needs => "needs",
        }
    }
}

/// What a kind tells about one thing of it.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Name of the kind, one of [`kinds::KINDS`].
    pub kind: &'static str,
    /// More about it, for people; empty where its name says all.
    pub detail: String,
    /// What it hangs on.
    pub needs: Vec<(Key, How)>,
}

impl Part {
    /// Something of a kind that needs nothing else.
    pub fn of(kind: &'static str) -> Self {
        Part { kind, ..Part::default() }
    }

    /// Says more about it.
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Part { detail: detail.into(), ..self }
    }

    /// Cannot be made before `key` is there.
    pub fn needs(mut self, key: Key) -> Self {
        self.needs.push((key, How::Needs));
        self
    }
}

/// One thing.
#[derive(Debug, Clone)]
pub struct Node {
    /// Which.
    pub key: Key,
    /// Name of its kind.
    pub kind: &'static str,
    /// What people call it: a path, `pipe:[123]`, `bash`.
    pub name: String,
    /// More about it.
    pub detail: String,
    /// `r`, `w`, `rw` or `path` of an open file, else empty.
    pub access: &'static str,
    /// Why it cannot be saved, when it cannot.
    pub refused: Option<Refusal>,
}

/// `from` hangs on `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// Which thing.
    pub from: Key,
    /// On which other.
    pub to: Key,
    /// How.
    pub how: How,
}

impl Edge {
    /// Whether `to` must be made before `from`. Handles of tasks are sent to those that hold them, when all tasks are there.
    pub fn orders(self) -> bool {
        self.how.orders() && !matches!((self.from, self.to), (Key::File(_), Key::Process(_)))
    }
}

/// All things of a tree, and what hangs on what.
#[derive(Debug, Default)]
pub struct Graph {
    /// Things, in the order of their keys.
    pub nodes: Vec<Node>,
    /// Each once.
    pub edges: Vec<Edge>,
    place: HashMap<Key, usize>,
}

/// A descriptor that could not be captured, and which refusal says why.
#[derive(Debug, Clone)]
pub struct Lost {
    /// Process.
    pub pid: i32,
    /// Descriptor number.
    pub fd: i32,
    /// `/proc/PID/fd/N`.
    pub link: Vec<u8>,
    /// Index into the refusals.
    pub refusal: u32,
}

impl Graph {
    /// The graph of a tree that is, or could be, in an image.
    pub fn new(tree: &Tree) -> Result<Self> {
        Graph::with_refusals(tree, &[], &[])
    }

    /// The same with what stands in the way of a dump; `lost` are the descriptors among that.
    pub fn with_refusals(tree: &Tree, refusals: &[Refusal], lost: &[Lost]) -> Result<Self> {
        let mut b = Builder::default();
        for p in &tree.processes {
            b.process(p);
        }
        for (n, object) in tree.objects.iter().enumerate() {
            let name = match &object.origin {
                Origin::Anonymous => "shared memory".to_owned(),
                Origin::Memfd { name, .. } => format!("memfd:{name}"),
                Origin::Deleted { path, .. } => format!("{path} (deleted)"),
                Origin::Mounted { path, .. } => path.to_string(),
                Origin::SystemV { id } => format!("shared memory segment {id}"),
            };
            b.add(Key::Object(n as u32), object.origin.kind(), name, format!("{} bytes", object.size));
        }
        for (n, file) in tree.mapped.iter().enumerate() {
            b.add(Key::Mapped(n as u32), "mapped file", file.path.to_string(), String::new());
        }
        for (n, file) in tree.files.iter().enumerate() {
            b.file(n as u32, file);
        }
        for (n, pipe) in tree.pipes.iter().enumerate() {
            let unread: usize = pipe.content.iter().map(|c| c.0.len()).sum();
            let name = b.links.get(&Key::Pipe(n as u32)).map_or_else(|| format!("pipe {n}"), |l| (*l).to_owned());
            b.add(
                Key::Pipe(n as u32),
                if pipe.path.is_some() { "FIFO" } else { "pipe" },
                name,
                if unread == 0 { String::new() } else { format!("{unread} bytes unread") },
            );
        }
        for (n, t) in tree.terminals.iter().enumerate() {
            b.add(Key::Terminal(n as u32), "terminal", t.path.clone(), format!("{} x {}", t.size.1, t.size.0));
            if t.session != 0 && tree.processes.iter().any(|p| p.sid == t.session) {
                b.edges.insert(Edge { from: Key::Session(t.session), to: Key::Terminal(n as u32), how: How::Controls });
            }
        }
        b.tables(tree);
        b.refused(tree, refusals, lost);
        b.finish(tree)
    }

    /// The node of a key.
    pub fn node(&self, key: Key) -> Option<&Node> {
        self.place.get(&key).map(|&at| &self.nodes[at])
    }

    /// Every thing after all that it needs: the order in which a restore makes them.
    pub fn order(&self) -> Result<Vec<Key>> {
        let mut waits = vec![0usize; self.nodes.len()];
        let mut frees: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for e in self.edges.iter().filter(|e| e.orders()) {
            waits[self.place[&e.from]] += 1;
            frees[self.place[&e.to]].push(self.place[&e.from]);
        }
        // Nodes are sorted by key, so that the smallest index is the smallest key.
        let mut ready: BinaryHeap<Reverse<usize>> = (0..waits.len()).filter(|&n| waits[n] == 0).map(Reverse).collect();
        let mut order = Vec::with_capacity(waits.len());
        while let Some(Reverse(n)) = ready.pop() {
            order.push(self.nodes[n].key);
            for &other in &frees[n] {
                waits[other] -= 1;
                if waits[other] == 0 {
                    ready.push(Reverse(other));
                }
            }
        }
        match waits.iter().position(|&w| w > 0) {
            Some(n) => Err(Error::image(format!("image damaged: {} and others need each other in a circle", self.nodes[n].name))),
            None => Ok(order),
        }
    }

    /// The shortest way from the root process to a thing, as edges in the order in which they are walked: a process
    /// leads to its children and to what it holds.
    pub fn chain(&self, to: Key) -> Vec<Edge> {
        let Some(root) = self.root() else { return Vec::new() };
        let mut leads: HashMap<Key, Vec<Edge>> = HashMap::new();
        for e in &self.edges {
            let back = e.how == How::ChildOf;
            leads.entry(if back { e.to } else { e.from }).or_default().push(*e);
        }
        let mut came: HashMap<Key, Edge> = HashMap::new();
        let mut next = std::collections::VecDeque::from([root]);
        while let Some(at) = next.pop_front() {
            for e in leads.get(&at).into_iter().flatten() {
                let there = if e.how == How::ChildOf { e.from } else { e.to };
                if there != root && !came.contains_key(&there) {
                    came.insert(there, *e);
                    next.push_back(there);
                }
            }
        }
        let mut chain = Vec::new();
        let mut at = to;
        while let Some(e) = came.get(&at) {
            chain.push(*e);
            at = if e.how == How::ChildOf { e.to } else { e.from };
        }
        chain.reverse();
        chain
    }

    /// A chain in words, one for each thing on the way: `100 make`, `120 cc1`, `fd 5 (pipe:[7])`.
    pub fn words(&self, chain: &[Edge]) -> Vec<String> {
        let name = |key: Key| self.node(key).map_or_else(String::new, |n| n.name.clone());
        let of = |key: Key| match key {
            Key::Process(pid) => format!("{pid} {}", name(key)),
            _ => name(key),
        };
        let root = chain.first().map(|e| of(if e.how == How::ChildOf { e.to } else { e.from }));
        let steps = chain.iter().map(|e| match e.how {
            How::ChildOf => of(e.from),
            How::Holds(fd) => format!("fd {fd} ({})", of(e.to)),
            How::Needs if name(e.from) == name(e.to) => String::new(),
            How::Needs => of(e.to),
            how => format!("{} {}", how.word(), of(e.to)),
        });
        root.into_iter().chain(steps).filter(|w| !w.is_empty()).collect()
    }

    /// The process from which all others descend.
    pub fn root(&self) -> Option<Key> {
        let child: BTreeSet<Key> = self.edges.iter().filter(|e| e.how == How::ChildOf).map(|e| e.from).collect();
        self.nodes.iter().map(|n| n.key).find(|k| matches!(k, Key::Process(_)) && !child.contains(k))
    }
}

#[derive(Default)]
struct Builder<'t> {
    nodes: Vec<Node>,
    edges: BTreeSet<Edge>,
    descriptors: HashMap<(i32, i32), u32>,
    /// What a descriptor calls the thing that it needs: pipes have no name of their own in the image.
    links: HashMap<Key, &'t str>,
}

impl<'t> Builder<'t> {
    fn add(&mut self, key: Key, kind: &'static str, name: String, detail: String) {
        self.nodes.push(Node { key, kind, name, detail, access: "", refused: None });
    }

    fn process(&mut self, p: &Process) {
        let key = Key::Process(p.pid);
        let mut detail = match p.threads.len() {
            0 | 1 => String::new(),
            n => format!("{n} threads"),
        };
        match p.state {
            State::Running => {}
            State::Stopped(_) => detail.push_str(if detail.is_empty() { "stopped" } else { ", stopped" }),
            State::Zombie(_) => detail = "ended".into(),
        }
        self.add(key, "process", String::from_utf8_lossy(&p.comm).into_owned(), detail);
        if p.ppid != 0 {
            self.edges.insert(Edge { from: key, to: Key::Process(p.ppid), how: How::ChildOf });
        }
        self.edges.insert(Edge { from: key, to: Key::Group(p.pgid), how: How::MemberOf });
        self.edges.insert(Edge { from: Key::Group(p.pgid), to: Key::Session(p.sid), how: How::MemberOf });
        for d in &p.descriptors {
            self.descriptors.insert((p.pid, d.fd), d.file);
            self.edges.insert(Edge { from: key, to: Key::File(d.file), how: How::Holds(d.fd) });
        }
        let Some(space) = &p.memory else { return };
        let mut maps = |backing: &Backing, how: How| {
            let to = match *backing {
                Backing::File { file, .. } => Key::Mapped(file),
                Backing::Object { object, .. } => Key::Object(object),
                Backing::Anonymous | Backing::Kernel => return,
            };
            self.edges.insert(Edge { from: key, to, how });
        };
        maps(&space.exe, How::Runs);
        // Those that only read what nobody else can change share nothing but the file.
        let shares = |m: &Mapping| m.shared && m.flags.iter().any(|f| f == "mw");
        space.mappings.iter().for_each(|m| maps(&m.backing, How::Maps(shares(m))));
    }

    fn file(&mut self, number: u32, file: &'t OpenFile) {
        let part = file.kind.part();
        for (to, _) in &part.needs {
            self.links.entry(*to).or_insert(&file.link);
        }
        let access = match file.flags as i32 & libc::O_ACCMODE {
            _ if file.flags & libc::O_PATH as u32 != 0 => "path",
            libc::O_RDONLY => "r",
            libc::O_WRONLY => "w",
            _ => "rw",
        };
        self.nodes.push(Node {
            key: Key::File(number),
            kind: part.kind,
            name: file.link.clone(),
            detail: part.detail,
            access,
            refused: None,
        });
        self.edges.extend(part.needs.into_iter().map(|(to, how)| Edge { from: Key::File(number), to, how }));
    }

    /// What stands in the way: a thing that has a node already is marked, anything else gets a node.
    fn refused(&mut self, tree: &Tree, refusals: &[Refusal], lost: &[Lost]) {
        for (n, refusal) in refusals.iter().enumerate() {
            let known = self.nodes.iter_mut().find(|node| matches!(node.key, Key::Pipe(_)) && refusal.id.as_ref() == Some(&node.name));
            if let Some(node) = known {
                node.refused = Some(refusal.clone());
                continue;
            }
            let key = Key::Refused(n as u32);
            let holders: Vec<&Lost> = lost.iter().filter(|l| l.refusal == n as u32).collect();
            let name = holders.first().map_or_else(|| refusal.object.clone(), |l| String::from_utf8_lossy(&l.link).into_owned());
            self.add(key, "refused", name, refusal.reason.clone());
            self.nodes.last_mut().into_iter().for_each(|node| node.refused = Some(refusal.clone()));
            let edges = holders.iter().map(|l| (l.pid, How::Holds(l.fd)));
            let edges: Vec<_> = if holders.is_empty() { vec![(refusal.pid, How::Needs)] } else { edges.collect() };
            for (pid, how) in edges.into_iter().filter(|(pid, _)| tree.processes.iter().any(|p| p.pid == *pid)) {
                self.edges.insert(Edge { from: Key::Process(pid), to: key, how });
            }
        }
    }

    /// Resolves descriptors, and finds numbers that lead nowhere.
    fn finish(mut self, tree: &Tree) -> Result<Graph> {
        for (set, key) in [
            (tree.processes.iter().map(|p| p.sid).collect::<BTreeSet<_>>(), Key::Session as fn(i32) -> Key),
            (tree.processes.iter().map(|p| p.pgid).collect(), Key::Group),
        ] {
            let kind = if key(0) == Key::Session(0) { "session" } else { "process group" };
            set.into_iter().for_each(|id| self.add(key(id), kind, format!("{kind} {id}"), String::new()));
        }
        let mut nodes = self.nodes;
        nodes.sort_by_key(|n| n.key);
        let place: HashMap<Key, usize> = nodes.iter().enumerate().map(|(at, n)| (n.key, at)).collect();
        let mut edges = Vec::with_capacity(self.edges.len());
        for mut e in self.edges {
            if let Key::Descriptor(pid, fd) = e.to {
                // What was added to an epoll instance may be closed since: then nothing is there to hang on.
                let Some(&file) = self.descriptors.get(&(pid, fd)) else { continue };
                e.to = Key::File(file);
            }
            if let (Key::Process(tid), false) = (e.to, place.contains_key(&e.to)) {
                // A handle of a thread.
                let whose = tree.processes.iter().find(|p| p.threads.iter().any(|t| t.tid == tid));
                e.to = whose.map_or(e.to, |p| Key::Process(p.pid));
            }
            match (place.get(&e.from), place.get(&e.to)) {
                (Some(_), Some(_)) => edges.push(e),
                _ => return Err(Error::image(format!("image damaged: {:?} leads to {:?}, which is not there", e.from, e.to))),
            }
        }
        edges.sort_unstable();
        edges.dedup();
        debug_assert!(nodes.iter().all(|n| kinds::kind(n.kind).is_some()), "a kind is missing in resource::kinds");
        Ok(Graph { nodes, edges, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::descriptor::{Descriptor, FileKind};
    use crate::resource::epoll::{Epoll, Target};
    use crate::resource::pipe::{Pipe, PipeEnd};

    fn process(pid: i32, ppid: i32, fds: &[(i32, u32)]) -> Process {
        let descriptors = fds.iter().map(|&(fd, file)| Descriptor { fd, file, cloexec: false, locks: vec![] }).collect();
        Process { pid, ppid, pgid: 1, sid: 1, comm: format!("p{pid}").into_bytes(), descriptors, ..Process::default() }
    }

    fn file(id: u32, kind: FileKind) -> OpenFile {
        OpenFile { id, flags: 0, pos: 0, link: format!("file {id}"), locks: vec![], kind }
    }

    fn epoll(pid: i32, fds: &[i32]) -> FileKind {
        let targets = fds.iter().map(|&fd| Target { fd, events: 1, ..Target::default() }).collect();
        FileKind::Epoll(Epoll { first: (pid, 0), targets, ..Epoll::default() })
    }

    /// A parent with an epoll instance over another one, which watches a pipe that the child holds, too.
    fn tree() -> Tree {
        Tree {
            processes: vec![process(1, 0, &[(3, 0), (4, 1), (5, 2)]), process(2, 1, &[(7, 2)])],
            files: vec![file(0, epoll(1, &[4])), file(1, epoll(1, &[5, 99])), file(2, FileKind::Pipe(PipeEnd { pipe: 0 }))],
            pipes: vec![Pipe { path: None, size: 4096, content: vec![] }],
            ..Tree::default()
        }
    }

    #[test]
    fn what_is_needed_comes_first() {
        let graph = Graph::new(&tree()).expect("whole");
        let order = graph.order().expect("an order");
        assert_eq!(order.len(), graph.nodes.len());
        let at = |key: Key| order.iter().position(|k| *k == key).expect("in the order");
        for e in graph.edges.iter().filter(|e| e.orders()) {
            assert!(at(e.to) < at(e.from), "{e:?}");
        }
        // Against their numbers: the inner instance before the one that watches it.
        assert!(at(Key::Pipe(0)) < at(Key::File(2)) && at(Key::File(2)) < at(Key::File(1)) && at(Key::File(1)) < at(Key::File(0)));
        // Nothing is there any more under descriptor 99.
        assert_eq!(graph.edges.iter().filter(|e| e.how == How::Watches).count(), 2);
    }

    #[test]
    fn a_circle_is_damage() {
        let mut tree = tree();
        tree.files[1].kind = epoll(1, &[3]);
        let error = Graph::new(&tree).expect("whole").order().expect_err("a circle");
        assert!(error.kind == crate::error::Kind::Image && error.message.contains("circle"), "{error}");
    }

    #[test]
    fn numbers_that_lead_nowhere_are_damage() {
        let mut no_pipe = tree();
        no_pipe.pipes.clear();
        let mut no_file = tree();
        no_file.files.pop();
        let mut no_parent = tree();
        no_parent.processes[1].ppid = 5;
        for tree in [no_pipe, no_file, no_parent] {
            assert_eq!(Graph::new(&tree).expect_err("damage").kind, crate::error::Kind::Image);
        }
    }

    #[test]
    fn refusals_hang_on_those_that_hold_them() {
        let refusal = Refusal { pid: 2, object: "fd 9 (socket:[7])".into(), id: Some("socket:[7]".into()), ..Refusal::default() };
        let lost = Lost { pid: 2, fd: 9, link: b"socket:[7]".to_vec(), refusal: 0 };
        let graph = Graph::with_refusals(&tree(), &[refusal], &[lost]).expect("whole");
        let chain = graph.chain(Key::Refused(0));
        assert_eq!(graph.words(&chain), ["1 p1", "2 p2", "fd 9 (socket:[7])"]);
        assert_eq!(graph.words(&graph.chain(Key::Pipe(0)))[..2], ["1 p1", "fd 5 (file 2)"]);
        assert!(graph.chain(graph.root().expect("a root")).is_empty());
    }
}
