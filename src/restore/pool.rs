//! Everything that the tree has open is opened here once, in meio. The stubs inherit it, so that descriptors that shared
//! an open file description share it again, across processes too.

use super::datagrams::Datagrams;
use super::late::{self, Late};
use super::places::Places;
use super::queues::Queues;
use super::raw;
use super::sockets::Sockets;
use super::sockets::listen::Listeners;
use super::sockets::tcp::{Connections, Nudges};
use super::terminal::Terminals;
use crate::error::{Context, Error, Kind, Result};
use crate::resource::descriptor::{FileKind, OpenFile};
use crate::resource::graph::{Graph, Key};
use crate::resource::ignored::Ignored;
use crate::resource::lock::{Family, Lock};
use crate::resource::memory::{Backing, Mapping};
use crate::resource::path::FilePath;
use crate::resource::pipe::Pipe;
use crate::resource::regular::Regular;
use crate::resource::shared::{Object, Origin};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::resource::{Tree, epoll};
use crate::sys::file;
use crate::sys::namespace::Kind::Net;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Descriptors of meio that the stubs inherit, all above every number that the tree uses; each by its number in the image.
#[derive(Default)]
pub struct Pool {
    base: i32,
    files: HashMap<u32, OwnedFd>,
    mapped: HashMap<u32, OwnedFd>,
    /// Those that some mapping writes to, open for that.
    writable: HashMap<u32, OwnedFd>,
    executables: HashMap<u32, OwnedFd>,
    objects: HashMap<u32, OwnedFd>,
    /// Those that some shared mapping cannot write to, open for reading only.
    readers: HashMap<u32, OwnedFd>,
    /// The objects open for writing, not inherited.
    writers: HashMap<u32, OwnedFd>,
    /// What is different than it was.
    pub warnings: Vec<String>,
    /// The way of what can only be opened when the tasks are there.
    late: Option<Late>,
    /// Id and size of those objects that are System V segments: a process attaches them itself.
    segments: HashMap<u32, (i32, u64)>,
    /// POSIX message queues.
    pub queues: Queues,
    /// TCP connections, each until it is opened.
    connections: Connections,
    /// What datagram sockets are filled with.
    datagrams: Datagrams,
    listeners: Listeners,
}

/// Status flags of open(2) that are given again. Creation flags did their work when the file was opened first.
const KEPT: u32 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_NOATIME
    | libc::O_NOFOLLOW
    | libc::O_PATH) as u32;

impl Pool {
    /// First number above those that the tree uses.
    pub fn base_of(tree: &Tree) -> i32 {
        highest(tree).max(2).saturating_add(1)
    }

    /// Opens everything.
    pub fn open(tree: &Tree, terminals: &Terminals, places: &Places<'_>, sockets: Sockets<'_>, home: Option<i32>) -> Result<Self> {
        let mut pool = Pool { base: Pool::base_of(tree), datagrams: Datagrams::of(tree), ..Pool::default() };
        // What is made before it has its place stands below the pool as far as there is room.
        make_room(tree)?;
        pool.late = Late::new(tree)?.map(|late| late.keep(|fd| pool.keep(fd))).transpose()?;
        pool.queues = Queues::make(tree, places)?;
        pool.connections = Connections::make(tree, places, pool.base)?;
        pool.warnings.append(&mut pool.connections.warnings);
        pool.listeners = Listeners::make(tree, places, &mut pool.warnings)?;
        let mut pipes = HashMap::new();
        for key in Graph::new(tree)?.order()? {
            pool.make(key, tree, &mut pipes, (terminals, places, &sockets))?;
        }
        pool.listeners.fill(tree, places, &mut pool.warnings)?;
        pool.datagrams.finish()?;
        let mut changed = sockets.finish(&|id| pool.file(id), home)?;
        pool.warnings.append(&mut changed);
        Ok(pool)
    }

    /// Makes one thing; whatever it needs is there.
    fn make(
        &mut self,
        key: Key,
        tree: &Tree,
        pipes: &mut HashMap<u32, Ends>,
        (terminals, places, sockets): (&Terminals, &Places<'_>, &Sockets<'_>),
    ) -> Result<()> {
        match key {
            Key::Object(n) => {
                let object = &tree.objects[n as usize];
                let writer = make_object(object, places, &mut self.warnings)?;
                // An executable must not be open for writing when a process takes it (PR_SET_MM_MAP).
                let exe = tree.processes.iter().filter_map(|p| p.memory.as_ref()).any(|m| is_object(&m.exe, n));
                let inherited = if exe { reopen(writer.as_raw_fd(), libc::O_RDONLY as u32)? } else { writer.try_clone()? };
                self.objects.insert(n, self.keep(inherited)?);
                if !matches!(object.origin, Origin::SystemV { .. }) && shared(tree, |b| is_object(b, n)).any(|m| !m.may_write()) {
                    self.readers.insert(n, self.keep(reopen(writer.as_raw_fd(), libc::O_RDONLY as u32)?)?);
                }
                self.writers.insert(n, writer);
                if let Origin::SystemV { id } = object.origin {
                    self.segments.insert(n, (id, object.size));
                }
            }
            Key::Mapped(n) => {
                let file = &tree.mapped[n as usize];
                let path = places.path(file.namespace, &file.path);
                let open =
                    |write: bool| OpenOptions::new().read(true).write(write).open(&path).context(|| format!("opening {}", file.path));
                let of = |b: &Backing| matches!(b, Backing::File { file, .. } if *file == n);
                self.mapped.insert(n, self.keep(open(false)?.into())?);
                if shared(tree, of).any(Mapping::may_write) {
                    self.writable.insert(n, self.keep(open(true)?.into())?);
                }
                let is_exe = |b: &Backing| matches!(b, Backing::File { file, .. } if *file == n);
                if tree.processes.iter().filter_map(|p| p.memory.as_ref()).any(|m| is_exe(&m.exe)) {
                    self.executables.insert(n, self.keep(open(false)?.into())?);
                }
            }
            Key::Pipe(n) => {
                pipes.insert(n, Ends::make(&tree.pipes[n as usize], n, tree, places)?);
            }
            Key::File(n) => {
                let file = &tree.files[n as usize];
                let fd = match &file.kind {
                    FileKind::Unix(_) => sockets.open(n),
                    _ => self.open_file(file, pipes, terminals, places),
                };
                let fd = fd.context(|| format!("opening {}", file.link))?;
                let fd = self.keep(fd)?;
                lock(&fd, file)?;
                self.files.insert(n, fd);
            }
            // Made by the stubs, or by whoever runs meio.
            Key::Terminal(_) | Key::Refused(_) | Key::Session(_) | Key::Group(_) | Key::Process(_) | Key::Descriptor(..) => {}
            Key::Namespace(_) | Key::Semaphores(_) | Key::Messages(_) | Key::Filter(_) => {}
        }
        Ok(())
    }

    /// Moves a descriptor above those of the tree and lets the stubs inherit it.
    fn keep(&self, fd: OwnedFd) -> Result<OwnedFd> {
        let new = fcntl(fd.as_fd(), FcntlArg::F_DUPFD(self.base)).context(|| "duplicating a descriptor")?;
        Ok(file::own(new))
    }

    /// First number of the pool; all descriptors of the tree are below.
    pub fn base(&self) -> i32 {
        self.base
    }

    /// Descriptor of an open file description.
    pub fn file(&self, id: u32) -> Result<i32> {
        number(&self.files, id, "open file")
    }

    /// Puts what could not be opened before into the place that was kept for it.
    pub fn replace(&mut self, id: u32, fd: OwnedFd) -> Result<()> {
        let place = self.files.get_mut(&id).ok_or_else(|| Error::image("image damaged: an open file is not there"))?;
        nix::unistd::dup3(fd, place, OFlag::O_CLOEXEC).context(|| "replacing a descriptor")
    }

    /// The way of what is opened late, when there is such.
    pub fn late(&self) -> Option<&Late> {
        self.late.as_ref()
    }

    /// Sends the connections to work behind the network lock; what is different is returned.
    pub fn begin(&self, tree: &Tree) -> Result<Vec<String>> {
        self.connections.begin(tree, &|id| self.files.get(&id).map(AsFd::as_fd))
    }

    /// They may be heard.
    pub fn speak(&self, tree: &Tree) -> Result<Vec<String>> {
        self.connections.speak(tree, &|id| self.files.get(&id).map(AsFd::as_fd))
    }

    /// What is left to be said when the tree runs.
    pub fn nudges(&mut self, tree: &Tree) -> Nudges {
        self.connections.nudges(tree)
    }

    /// They end without a word.
    pub fn silence(&self, tree: &Tree) {
        self.connections.silence(tree, &|id| self.files.get(&id).map(AsFd::as_fd));
    }

    /// Descriptor of a mapped file, for a mapping that may write to it or not.
    pub fn mapped(&self, id: u32, write: bool) -> Result<i32> {
        number(if write { &self.writable } else { &self.mapped }, id, "mapped file")
    }

    /// Descriptor of an object, likewise.
    pub fn shared(&self, id: u32, write: bool) -> Result<i32> {
        if write { self.object(id) } else { number(&self.readers, id, "object") }
    }

    /// Read-only descriptor of a mapped file that is an executable.
    pub fn executable(&self, id: u32) -> Result<i32> {
        number(&self.executables, id, "executable")
    }

    /// Descriptor of an object.
    pub fn object(&self, id: u32) -> Result<i32> {
        number(&self.objects, id, "object")
    }

    /// Id and size of an object that is a System V segment.
    pub fn segment(&self, object: u32) -> Option<(i32, u64)> {
        self.segments.get(&object).copied()
    }

    /// The memory of a System V segment has been made.
    pub fn put_segment(&mut self, object: u32, memory: File) -> Result<()> {
        match (self.segments.contains_key(&object), self.writers.get_mut(&object)) {
            (true, Some(writer)) => *writer = memory.into(),
            _ => return Err(Error::image(format!("image damaged: object {object} is no shared memory segment"))),
        }
        Ok(())
    }

    /// An object, to fill it.
    pub fn object_file(&self, id: u32) -> Result<File> {
        let fd = self.writers.get(&id).ok_or_else(|| Error::image(format!("image damaged: object {id} is not there")))?;
        Ok(File::from(fd.try_clone()?))
    }

    /// All content is there: nobody writes to the objects from here on.
    pub fn close_writers(&mut self) {
        self.writers.clear();
    }

    /// Starts what notices the time or what is done to files, as process `root` sees them. Closes whatever the tree has of
    /// its own by now.
    pub fn arm(&mut self, tree: &Tree, root: i32) -> Result<()> {
        self.mapped.clear();
        self.executables.clear();
        self.objects.clear();
        self.writable.clear();
        self.readers.clear();
        let root = std::path::PathBuf::from(format!("/proc/{root}/root"));
        for (file, fd) in tree.files.iter().enumerate().filter_map(|(n, file)| Some((file, self.files.get(&(n as u32))?))) {
            match &file.kind {
                FileKind::TimerFd(timer) => timer.arm(fd.as_fd())?,
                FileKind::Inotify(inotify) => inotify.arm(fd.as_fd(), &root)?,
                FileKind::Fanotify(fanotify) => fanotify.arm(fd.as_fd(), &root)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Seals memfds again, after they were filled and mapped.
    pub fn seal(&self, tree: &Tree) -> Result<()> {
        for (number, object) in tree.objects.iter().enumerate() {
            if let (Origin::Mounted { times, .. }, Some(writer)) = (&object.origin, self.writers.get(&(number as u32))) {
                file::set_times(writer.as_fd(), *times).context(|| "setting the times of a file in memory")?;
            }
        }
        // By the descriptors that may write: what is executed has been opened for reading only.
        for (object, fd) in tree.objects.iter().enumerate().filter_map(|(n, o)| Some((o, self.writers.get(&(n as u32))?))) {
            if let Origin::Memfd { seals, .. } = object.origin
                && seals != 0
                && file::seals(&File::from(fd.try_clone()?)).is_ok_and(|now| now != seals)
            {
                file::add_seals(fd.as_fd(), seals).context(|| "sealing a memfd")?;
            }
        }
        Ok(())
    }
}

/// The highest descriptor number that the tree uses, or that an epoll instance of its knows a file by.
fn highest(tree: &Tree) -> i32 {
    let watched = tree.files.iter().filter_map(|f| if let FileKind::Epoll(epoll) = &f.kind { Some(&epoll.targets) } else { None });
    let watched = watched.flatten().map(|t| t.fd);
    tree.processes.iter().flat_map(|p| &p.descriptors).map(|d| d.fd).chain(watched).max().unwrap_or(0)
}

fn number(list: &HashMap<u32, OwnedFd>, id: u32, what: &str) -> Result<i32> {
    list.get(&id).map(AsRawFd::as_raw_fd).ok_or_else(|| Error::image(format!("image damaged: {what} {id} is not there")))
}

fn is_object(backing: &Backing, id: u32) -> bool {
    matches!(backing, Backing::Object { object, .. } if *object == id)
}

/// The shared mappings of one file or object.
fn shared(tree: &Tree, of: impl Fn(&Backing) -> bool) -> impl Iterator<Item = &Mapping> {
    tree.processes.iter().filter_map(|p| p.memory.as_ref()).flat_map(|m| &m.mappings).filter(move |m| m.shared && of(&m.backing))
}

/// Raises the limit of open files, and makes room for as many.
pub fn raise_limit(need: u64) -> Result<()> {
    raise(need)?;
    file::make_room(need);
    Ok(())
}

/// Room for the descriptors of a tree, which takes its time and may be done before it is there.
pub fn make_room(tree: &Tree) -> Result<()> {
    let files = tree.files.len();
    let count = files + 3 * tree.mapped.len() + 2 * tree.objects.len() + 64;
    raise_limit((Pool::base_of(tree) as usize).max(files + 32) as u64 + count as u64)
}

/// The limit alone.
pub fn raise(need: u64) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= need {
        return Ok(());
    }
    // The hard limit is ours to raise, and none of the tree, which has its own.
    if hard < need && setrlimit(Resource::RLIMIT_NOFILE, need, need).is_ok() {
        return Ok(());
    }
    if hard < need {
        return Err(Error::new(Kind::Permission, format!("{need} descriptors are needed, the hard limit is {hard}"))
            .help("raise the limit of open files: ulimit -Hn"));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context(|| "raising the limit of open files")
}

/// Opens a descriptor of our own anew, with other flags.
fn reopen(fd: impl AsRawFd, flags: u32) -> Result<OwnedFd> {
    open_path(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())), flags & !(libc::O_NOFOLLOW as u32))
}

fn open_path(path: &Path, flags: u32) -> Result<OwnedFd> {
    let flags = OFlag::from_bits_truncate((flags & KEPT) as i32) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).map_err(Into::into)
}

/// open(2) refuses `O_DIRECT` (packet mode) on a pipe; fcntl(2) takes it.
fn reopen_pipe(fd: i32, flags: u32) -> Result<OwnedFd> {
    let direct = libc::O_DIRECT as u32;
    let new = reopen(fd, flags & !direct)?;
    if flags & direct != 0 {
        file::set_flags(new.as_fd(), (flags & KEPT) as i32).context(|| "setting packet mode of a pipe")?;
    }
    Ok(new)
}

/// Gives a descriptor without a file its status flags.
fn with_flags(fd: OwnedFd, flags: u32) -> Result<OwnedFd> {
    file::set_flags(fd.as_fd(), (flags & KEPT) as i32).context(|| "setting status flags")?;
    Ok(fd)
}

impl Pool {
    fn open_file(&mut self, file: &OpenFile, pipes: &HashMap<u32, Ends>, terminals: &Terminals, places: &Places<'_>) -> Result<OwnedFd> {
        let place = |path: &FilePath| places.path(places.mounts_of_file(file.id), path);
        let fd = match &file.kind {
            FileKind::Regular(Regular { deleted: Some(object), .. }) => reopen(self.object(*object)?, file.flags)?,
            FileKind::Regular(regular) => open_path(&place(&regular.path), file.flags)?,
            FileKind::Memory(memory) => reopen(self.object(memory.object)?, file.flags)?,
            FileKind::Pipe(end) => {
                let ends = pipes.get(&end.pipe).ok_or_else(|| Error::image("image damaged: a pipe is missing"))?;
                return reopen_pipe(ends.of(file.flags), file.flags);
            }
            FileKind::Device(device) => {
                let fd = open_path(&place(&device.path), file.flags)?;
                let rdev = File::from(fd.try_clone()?).metadata()?.rdev();
                if (libc::major(rdev), libc::minor(rdev)) != device.number {
                    return Err(Error::new(Kind::Unsupported, format!("{} is another device here", device.path)));
                }
                return Ok(fd);
            }
            FileKind::Epoll(_) => return epoll::create(),
            FileKind::Terminal(terminal) => return terminals.open(terminal.terminal, file.flags & KEPT),
            FileKind::EventFd(eventfd) => return eventfd.make().and_then(|fd| with_flags(fd, file.flags)),
            FileKind::TimerFd(timer) => return timer.make().and_then(|fd| with_flags(fd, file.flags)),
            FileKind::SignalFd(signals) => return signals.make().and_then(|fd| with_flags(fd, file.flags)),
            // The others are made by those who know more of them.
            FileKind::PidFd(_) | FileKind::Unix(_) => return late::stand_in(),
            FileKind::Inotify(inotify) => {
                self.warnings.extend(inotify.warning(&file.link));
                return inotify.make().and_then(|fd| with_flags(fd, file.flags));
            }
            FileKind::Fanotify(fanotify) => return fanotify.make().and_then(|fd| with_flags(fd, file.flags)),
            FileKind::Tcp(_) => return self.connections.take(file.id, file.flags),
            FileKind::Listening(_) => return self.listeners.open(file.id).and_then(|fd| with_flags(fd, file.flags)),
            FileKind::Netlink(netlink) => {
                let network = netlink.network.map(|id| places.fd(Some(id), Net)).transpose()?;
                return netlink.make(network, &file.link, &mut self.warnings).and_then(|fd| with_flags(fd, file.flags));
            }
            FileKind::Udp(udp) => {
                let network = udp.inet.network.map(|id| places.fd(Some(id), Net)).transpose()?;
                return self.datagrams.udp(udp, network, &mut self.warnings).and_then(|fd| with_flags(fd, file.flags));
            }
            FileKind::Tun(tun) => {
                let network = tun.network.map(|id| places.fd(Some(id), Net)).transpose()?;
                return tun.make(&place(&tun.path), network, file.flags, &mut self.warnings);
            }
            FileKind::Raw(raw) => {
                let network = raw.inet.network.map(|id| places.fd(Some(id), Net)).transpose()?;
                return raw::make(raw, network, &mut self.warnings).and_then(|fd| with_flags(fd, file.flags));
            }
            FileKind::Packet(packet) => {
                let network = packet.inet.network.map(|id| places.fd(Some(id), Net)).transpose()?;
                return raw::packet(packet, network, &mut self.warnings).and_then(|fd| with_flags(fd, file.flags));
            }
            FileKind::Master(terminal) => return terminals.master(terminal.terminal, file.flags & KEPT),
            FileKind::MessageQueue(end) => self.queues.open(end.queue, file.flags & KEPT)?,
            FileKind::Ignored(_) => return Ignored::open(file.flags),
            FileKind::Outside(outside) => {
                let (fd, warning) = outside.open(file.flags)?;
                self.warnings.extend(warning);
                return Ok(fd);
            }
        };
        if file.flags & libc::O_PATH as u32 == 0 && file.pos != 0 {
            nix::unistd::lseek(fd.as_fd(), file.pos as i64, nix::unistd::Whence::SeekSet).context(|| "setting the file offset")?;
        }
        Ok(fd)
    }
}

/// Takes the locks again that belong to an open file description.
fn lock(fd: &OwnedFd, file: &OpenFile) -> Result<()> {
    for lock in &file.locks {
        let taken = match lock.family {
            Family::Flock => file::flock(fd.as_fd(), lock.write),
            Family::Ofd => file::ofd_lock(fd.as_fd(), &lock.to_flock()),
            Family::Posix => continue, // the process itself takes those
        };
        taken.map_err(|e| busy(e, lock, &file.link))?;
    }
    Ok(())
}

fn busy(e: nix::errno::Errno, lock: &Lock, path: &str) -> Error {
    Error::other(format!("a lock on {path} ({:?}) cannot be taken again: {e}", lock.family)).help("end the process that holds it now")
}

/// Makes a memory object; its content comes with the pages.
fn make_object(object: &Object, places: &Places<'_>, warnings: &mut Vec<String>) -> Result<OwnedFd> {
    let fd = match &object.origin {
        Origin::Anonymous => return file::shared_anonymous(object.size).context(|| "making shared memory"),
        Origin::Memfd { name, mode, owner, .. } => {
            const MFD_ALLOW_SEALING: u32 = 2;
            let doing = || format!("making memfd {name}");
            let made = File::from(file::memfd(name.bytes(), MFD_ALLOW_SEALING).context(doing)?);
            if let Some(mode) = mode {
                made.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777)).context(doing)?;
            }
            if let Some((uid, gid)) = owner {
                // Without privileges files belong to whoever makes them.
                if let Err(e) = std::os::unix::fs::fchown(&made, Some(*uid), Some(*gid)) {
                    warnings.push(format!("memfd {name} does not belong to {uid}:{gid} now: {e}"));
                }
            }
            made.into()
        }
        Origin::Deleted { path, mode, owner, namespace } => {
            let wanted = places.path(*namespace, path);
            // In the tree's own mounts nobody else works in the folder: its time is the tree's.
            let folder = wanted.parent().filter(|_| namespace.is_some()).and_then(|folder| File::open(folder).ok());
            let times = folder.as_ref().and_then(|f| f.metadata().ok()).and_then(|m| Some((m.accessed().ok()?, m.modified().ok()?)));
            let made = deleted_file(&wanted, *mode, *owner)?;
            if let (Some(folder), Some((accessed, modified))) = (folder, times) {
                let times = std::fs::FileTimes::new().set_accessed(accessed).set_modified(modified);
                folder.set_times(times).context(|| format!("setting the times of the folder of {path}"))?;
            }
            made
        }
        Origin::Mounted { namespace, path, .. } => {
            let file = OpenOptions::new().read(true).write(true).open(places.path(Some(*namespace), path));
            file.context(|| format!("opening {path} in its mount namespace"))?.into()
        }
        // A stub makes it later: see `restore::system_v`. This one stands in its place.
        Origin::SystemV { .. } => return File::open("/dev/null").map(OwnedFd::from).context(|| "opening /dev/null"),
    };
    File::from(fd.try_clone()?).set_len(object.size).context(|| "sizing shared memory")?;
    Ok(fd)
}

/// A file without a name, made where the old one was.
fn deleted_file(wanted: &Path, mode: u32, owner: (u32, u32)) -> Result<OwnedFd> {
    let there = |p: &Path| OpenOptions::new().read(true).write(true).create_new(true).mode(mode & 0o7777).open(p);
    let doing = || format!("making the deleted file {} again", wanted.display());
    let (file, name) = match there(wanted) {
        Ok(file) => (file, wanted.to_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let other = wanted.with_file_name(format!(".meio-{}-deleted", std::process::id()));
            (there(&other).context(doing)?, other)
        }
        Err(e) => return Err(e).context(doing),
    };
    std::fs::remove_file(&name).context(doing)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777)).context(doing)?;
    std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1)).context(doing)?;
    Ok(file.into())
}

/// Both ends of a pipe, held until every descriptor of it has been opened.
struct Ends {
    read: File,
    write: File,
}

impl Ends {
    fn make(pipe: &Pipe, number: u32, tree: &Tree, places: &Places<'_>) -> Result<Ends> {
        let (read, write) = match &pipe.path {
            Some(path) => {
                let is_end = |f: &&OpenFile| matches!(&f.kind, FileKind::Pipe(end) if end.pipe == number);
                let place = places.path(tree.files.iter().find(is_end).and_then(|f| places.mounts_of_file(f.id)), path);
                if !std::fs::metadata(&place).is_ok_and(|m| m.file_type().is_fifo()) {
                    return Err(Error::new(Kind::NotFound, format!("the FIFO {path} is not there")).help(format!("make it: mkfifo {path}")));
                }
                let both = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&place)?;
                (both.try_clone()?, both)
            }
            None => {
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
                (File::from(read), File::from(write))
            }
        };
        file::set_pipe_size(write.as_fd(), pipe.size).context(|| "setting the size of a pipe")?;
        let packets =
            tree.files.iter().any(|f| matches!(&f.kind, FileKind::Pipe(end) if end.pipe == number) && f.flags & libc::O_DIRECT as u32 != 0);
        let mut writer: Box<dyn Write> = if packets {
            Box::new(File::from(reopen_pipe(write.as_raw_fd(), (libc::O_WRONLY | libc::O_DIRECT | libc::O_NONBLOCK) as u32)?))
        } else {
            Box::new(write.try_clone()?)
        };
        for Bytes(content) in &pipe.content {
            writer.write_all(content).context(|| "filling a pipe")?;
        }
        Ok(Ends { read, write })
    }

    fn of(&self, flags: u32) -> i32 {
        if flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32 { self.read.as_raw_fd() } else { self.write.as_raw_fd() }
    }
}
