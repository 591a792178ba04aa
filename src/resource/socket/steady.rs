//! Connections whose options are known before the tree stands still.
//!
//! There are about eighty options to ask for, and only a system call of somebody who has the socket changes any of them. The kernel
//! counts these calls ([`crate::sys::calls`]) from before the running tree is asked: where there was none, only what changes by
//! itself is asked again. Of the descriptor itself proc_pid_fdinfo(5) says which socket it leads to. A tree that is looked at again
//! and again is counted from the first time that it stands still on, however few its connections are by then.

use super::inet::Inet;
use super::listen::Listening;
use super::places::{Held, Place, Places};
use super::tcp::{self, Tcp};
use crate::error::Result;
use crate::resource::capture::Capture;
use crate::resource::descriptor::{Descriptor, FileId, FileKind, OpenFile};
use crate::sys::calls::{Calls, Counters};
use crate::sys::file::FileOwner;
use crate::sys::proc::fdinfo::FdInfo;
use crate::sys::proc::{read, stat};
use crate::sys::task::Files;
use nix::time::{ClockId, clock_gettime};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

/// Fewer are asked while the tree stands still.
const MANY: usize = 64;
/// Tasks that are counted: each takes a descriptor.
const MOST_TASKS: usize = 1024;

/// What a socket answers to one question.
pub type Answer = Option<Vec<u8>>;

/// What is known of connections.
#[derive(Debug, Default)]
pub struct Connections {
    counters: Vec<Counters>,
    counted: HashSet<i32>,
    /// When all tasks were counted, as proc_pid_stat(5) has it.
    since: u64,
    /// By inode.
    known: HashMap<u64, Known>,
    /// Mount and device of all open sockets.
    mount: Option<(i32, u64)>,
    /// Files whose options were known, in order.
    taken: Vec<(FileId, Taken)>,
    /// Where they are.
    places: Places,
    /// Those that listen, by inode, and whether they were there the last time.
    listening: HashMap<u64, (Listening, bool)>,
    /// It was tried in vain to have calls counted.
    uncounted: bool,
}

/// What need not be asked of a connection whose options are known.
#[derive(Debug, Default)]
pub struct Taken {
    /// What a new socket says of `TCP_QUICKACK`.
    pub quick: Answer,
    /// What its descriptor showed: a duplicate, unless there are too many, and user and group of the socket.
    pub held: Option<(Option<OwnedFd>, (u32, u32))>,
    /// Who gets its signals, where that is nobody, and still so.
    pub owner: Option<FileOwner>,
}

/// What is known of one.
#[derive(Debug)]
struct Known {
    /// Its network namespace, `None` for meio's.
    network: Option<(u64, u64)>,
    tcp: Tcp,
    /// What a new socket says of `TCP_QUICKACK`.
    quick: Answer,
    /// Who got its signals, where that was nobody.
    owner: Option<FileOwner>,
    /// It was there when the tree was looked at last: numbers of inodes are used again.
    seen: bool,
}

impl Connections {
    /// Looks whether what is known is still true of a tree that stands still now. `again`: it will be looked at again.
    pub fn look(&mut self, pids: impl Iterator<Item = i32>, again: bool) {
        self.taken.clear();
        let tree: HashSet<i32> = pids.collect();
        if self.counters.is_empty() {
            self.known.clear();
            self.listening.clear();
            if again && !self.uncounted {
                match self.watch(&tree) {
                    true => self.begin_places(&tree),
                    false => *self = Connections { uncounted: true, ..Connections::default() },
                }
            }
            return;
        }
        if again {
            self.begin_places(&tree);
        }
        self.known.retain(|_, known| std::mem::take(&mut known.seen));
        self.listening.retain(|_, (_, seen)| std::mem::take(seen));
        // Somebody born since is counted with whom it was born of.
        let young = |pid| read::parsed(pid, "stat", stat::parse).is_ok_and(|s| s.start_time > self.since);
        let all = tree.into_iter().all(|pid| self.counted.contains(&pid) || young(pid));
        let still = self.counters.iter_mut().map(Counters::still).fold(all, |all, still| all && still);
        if !still {
            self.known.clear();
            self.listening.clear();
        }
        self.places.look();
        if !all || !again {
            // While anybody is counted all calls take longer, meio's too; and the kernel waits before it takes a counter away.
            let done = (std::mem::take(&mut self.counters), std::mem::take(&mut self.places));
            self.counted.clear();
            let _ = std::thread::Builder::new().spawn(move || drop(done));
        }
    }

    /// Whether the options of a file were known.
    pub fn took(&self, id: FileId) -> bool {
        self.taken.binary_search_by_key(&id, |(id, _)| *id).is_ok()
    }

    /// What need not be asked of such a file: once.
    pub fn take(&mut self, id: FileId) -> Option<Taken> {
        let at = self.taken.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(std::mem::take(&mut self.taken[at].1))
    }

    /// Notes the descriptors of a process.
    pub fn place(&mut self, pid: i32, table: &[Descriptor], inode: impl Fn(FileId) -> Option<u64>) {
        let known = |d: &Descriptor| inode(d.file).filter(|_| self.took(d.file));
        let places = table.iter().filter_map(|d| Some(Place { fd: d.fd, inode: known(d)?, cloexec: d.cloexec })).collect();
        self.places.note(pid, places);
    }

    /// What is known of a listening socket, by its inode.
    pub fn listening(&mut self, inode: u64) -> Option<Listening> {
        let (listening, seen) = self.listening.get_mut(&inode)?;
        *seen = true;
        Some(listening.clone())
    }

    /// Keeps in mind what one was asked for.
    pub fn remember_listening(&mut self, inode: u64, listening: &Listening) {
        if !self.counters.is_empty() {
            self.listening.insert(inode, (listening.clone(), true));
        }
    }

    /// Has those calls counted, too, that concern descriptors: only a tree that is looked at again has places.
    fn begin_places(&mut self, tree: &HashSet<i32>) {
        if !self.places.has_begun() {
            self.places = Places::begin(tasks(tree).into_iter());
        }
    }

    /// Has the calls of all tasks counted: whether that is possible.
    fn watch(&mut self, tree: &HashSet<i32>) -> bool {
        const ROUNDS: usize = 8;
        let Ok(calls) = Calls::named(&[("setsockopt", None)]) else { return false };
        for _ in 0..ROUNDS {
            let new: Vec<i32> = tasks(tree).into_iter().filter(|tid| !self.counted.contains(tid)).collect();
            if new.is_empty() {
                self.since =
                    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(u64::MAX, |now| (now.tv_sec() * 100 + now.tv_nsec() / 10_000_000) as u64);
                return calls.len() > 0;
            }
            if self.counted.len() + new.len() > MOST_TASKS {
                break;
            }
            for tid in new {
                match calls.count(std::iter::once(tid)) {
                    Ok(counter) => self.counters.push(counter),
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(_) => return false,
                }
                self.counted.insert(tid);
            }
        }
        false
    }
}

/// All tasks of some processes and of their descendants.
fn tasks(tree: &HashSet<i32>) -> Vec<i32> {
    let mut pids: Vec<i32> = tree.iter().copied().collect();
    let mut seen = tree.clone();
    let mut tasks = Vec::new();
    while let Some(pid) = pids.pop() {
        pids.extend(read::children(pid).unwrap_or_default().into_iter().filter(|child| seen.insert(*child)));
        tasks.extend(read::tasks(pid).unwrap_or_default());
    }
    tasks
}

/// Asks for the options of the connections of a tree that runs, where they are many.
pub fn prepare(tree: &HashSet<i32>, capture: &mut Capture) -> Result<()> {
    if capture.standing || !capture.decisions.is_empty() || !capture.refusals.is_empty() {
        return Ok(());
    }
    let mut found: Vec<(FileId, (i32, i32), Tcp)> = Vec::new();
    for (file, holder) in capture.files.iter().zip(&capture.holders) {
        if let FileKind::Tcp(tcp) = &file.kind
            && tcp.inet.peer.is_some()
        {
            found.push((file.id, *holder, Tcp { inet: tcp.inet.clone(), ..Tcp::default() }));
        }
    }
    if found.len() < MANY || !capture.recall.connections.watch(tree) {
        capture.recall.connections = Connections::default();
        return Ok(());
    }
    let mut known = std::mem::take(&mut capture.inet);
    for (_, holder, socket) in &found {
        // It may have gone, or be another one now.
        if !known.protocols.contains_key(&socket.inet.key())
            && let Ok(fd) = capture.duplicate(*holder)
        {
            tcp::prepare(fd.as_fd(), &socket.inet, &mut known)?;
        }
    }
    let threads = crate::sys::priority::processors().min(4);
    let share = found.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let (known, files) = (&known, &capture.files);
        for share in found.chunks_mut(share) {
            scope.spawn(move || share.iter_mut().for_each(|(id, holder, tcp)| ask(&files[*id as usize], *holder, tcp, known)));
        }
    });
    capture.inet = known;
    capture.recall.connections.mount = capture.socket_mount;
    for (id, _, tcp) in &found {
        remember(tcp, *id, capture);
    }
    Ok(())
}

/// Asks one; without its options nothing is known of it.
fn ask(file: &OpenFile, (pid, fd): (i32, i32), tcp: &mut Tcp, known: &super::inet::Known) {
    let mut asked = || -> Result<()> {
        let fd = Files::of(pid).get(fd)?;
        if Some(nix::sys::stat::fstat(&fd)?.st_ino) == inode(file) && crate::sys::tcp::upper(fd.as_fd()).is_none() {
            tcp::options(fd.as_fd(), tcp, known)?;
        }
        Ok(())
    };
    if asked().is_err() {
        tcp.inet.options.clear();
    }
}

/// `socket:[77]`
pub fn inode(file: &OpenFile) -> Option<u64> {
    file.link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Keeps in mind what a connection was asked for.
pub fn remember(tcp: &Tcp, id: FileId, capture: &mut Capture) {
    let connections = &mut capture.recall.connections;
    // Lengths of buffers are always among them.
    if connections.counters.is_empty() || tcp.inet.peer.is_none() || tcp.inet.options.is_empty() || connections.took(id) {
        return;
    }
    let network = match tcp.inet.network.map(|number| capture.namespaces.identity(number)) {
        Some(None) => return,
        network => network.flatten(),
    };
    connections.mount = connections.mount.or(capture.socket_mount);
    if let Some(inode) = inode(&capture.files[id as usize]) {
        let quick = tcp::quick(&tcp.inet, &capture.inet).cloned().flatten();
        let tcp = Tcp { inet: tcp.inet.clone(), options: tcp.options.clone(), ..Tcp::default() };
        connections.known.insert(inode, Known { network, tcp, quick, owner: None, seen: true });
    }
}

/// Keeps in mind who gets the signals of a connection whose options were known.
pub fn remember_owner(id: FileId, owner: FileOwner, capture: &mut Capture) {
    if let Some(known) = inode(&capture.files[id as usize]).and_then(|inode| capture.recall.connections.known.get_mut(&inode)) {
        known.owner = Some(owner).filter(|owner| owner.pid == 0);
    }
}

/// The same as [`take`] of a descriptor that led to such a connection the last time, without a look at proc_pid_fdinfo(5).
pub fn take_held(files: &Files, fd: i32, capture: &mut Capture) -> Option<Descriptor> {
    if !capture.standing {
        return None;
    }
    let connections = &mut capture.recall.connections;
    let (mount, device) = connections.mount?;
    let Held { place, ids, flags, own } = connections.places.find(files, fd, device)?;
    let info = FdInfo { flags, mnt_id: Some(mount), ino: Some(place.inode), ..FdInfo::default() };
    let file = take((files.pid(), fd), &info, capture)?;
    let connections = &mut capture.recall.connections;
    if let Some((_, taken)) = connections.taken.last_mut() {
        (taken.held, taken.owner) = (Some((own, ids)), connections.known.get(&place.inode).and_then(|known| known.owner));
    }
    Some(Descriptor { fd, file, cloexec: place.cloexec, locks: Vec::new() })
}

/// The open file of a descriptor that leads to such a connection, new in this capture; nothing of the tree is asked for that.
pub fn take(holder: (i32, i32), info: &FdInfo, capture: &mut Capture) -> Option<FileId> {
    let connections = &mut capture.recall.connections;
    let ((mount, device), inode) = (connections.mount?, info.ino?);
    let plain = info.mnt_id == Some(mount) && info.flags & libc::O_PATH as u32 == 0 && info.extra.is_empty();
    let key = (device, inode);
    if !plain || !capture.standing || !capture.decisions.is_empty() || !capture.lost.is_empty() || capture.file_index.contains_key(&key) {
        return None;
    }
    let known = connections.known.get_mut(&inode)?;
    let network = match known.network {
        Some(identity) => Some(capture.namespaces.known(identity)?),
        None => None,
    };
    known.seen = true;
    let quick = known.quick.clone();
    let tcp = if connections.counters.is_empty() { std::mem::take(&mut known.tcp) } else { known.tcp.clone() };
    let tcp = Tcp { inet: Inet { network, ..tcp.inet }, ..tcp };
    let id = capture.files.len() as FileId;
    connections.taken.push((id, Taken { quick, ..Taken::default() }));
    capture.network.insert(inode);
    capture.files.push(OpenFile {
        id,
        flags: info.flags & !(libc::O_CLOEXEC as u32),
        pos: info.pos as u64,
        link: format!("socket:[{inode}]"),
        locks: Vec::new(),
        kind: FileKind::Tcp(Box::new(tcp)),
    });
    capture.holders.push(holder);
    capture.file_index.insert(key, vec![id]);
    Some(id)
}
