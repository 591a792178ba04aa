//! Everything that the tree has open is opened here once, in meio. The stubs inherit it, so that descriptors that shared
//! an open file description share it again, across processes too.

use super::terminal::Terminals;
use crate::error::{Context, Error, Kind, Result};
use crate::resource::descriptor::{FileKind, OpenFile};
use crate::resource::lock::{Family, Lock};
use crate::resource::memory::Backing;
use crate::resource::path::FilePath;
use crate::resource::pipe::Pipe;
use crate::resource::regular::Regular;
use crate::resource::shared::{Object, Origin};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::resource::{Tree, epoll};
use crate::sys::file;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Descriptors of meio that the stubs inherit, all above every number that the tree uses.
pub struct Pool {
    base: i32,
    files: Vec<OwnedFd>,
    mapped: Vec<OwnedFd>,
    executables: Vec<Option<OwnedFd>>,
    objects: Vec<OwnedFd>,
    /// The objects open for writing, not inherited.
    writers: Vec<OwnedFd>,
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
    /// Opens everything.
    pub fn open(tree: &Tree, terminals: &Terminals) -> Result<Self> {
        let highest = tree.processes.iter().flat_map(|p| &p.descriptors).map(|d| d.fd).max().unwrap_or(2);
        let count = tree.files.len() + 2 * tree.mapped.len() + tree.objects.len() + 64;
        let mut pool =
            Pool { base: highest.max(2) + 1, files: vec![], mapped: vec![], executables: vec![], objects: vec![], writers: vec![] };
        raise_limit(pool.base as u64 + count as u64)?;
        for object in &tree.objects {
            let writer = make_object(object)?;
            // An executable must not be open for writing when a process takes it (PR_SET_MM_MAP).
            let exe = tree.processes.iter().filter_map(|p| p.memory.as_ref()).any(|m| is_object(&m.exe, object.id));
            let inherited = if exe { reopen(writer.as_raw_fd(), libc::O_RDONLY as u32)? } else { writer.try_clone()? };
            pool.objects.push(pool.keep(inherited)?);
            pool.writers.push(writer);
        }
        for file in &tree.mapped {
            let opened = OpenOptions::new().read(true).write(wants_write(tree, pool.mapped.len())).open(&file.path);
            pool.mapped.push(pool.keep(opened.context(|| format!("opening {}", file.path))?.into())?);
        }
        for (number, file) in tree.mapped.iter().enumerate() {
            let is_exe = |b: &Backing| matches!(b, Backing::File { file, .. } if *file as usize == number);
            let wanted = tree.processes.iter().filter_map(|p| p.memory.as_ref()).any(|m| is_exe(&m.exe));
            let opened = if wanted { Some(File::open(&file.path).context(|| format!("opening {}", file.path))?) } else { None };
            let kept = opened.map(|f| pool.keep(f.into())).transpose()?;
            pool.executables.push(kept);
        }
        let pipes: Vec<Ends> = tree.pipes.iter().enumerate().map(|(n, p)| Ends::make(p, n as u32, tree)).collect::<Result<_>>()?;
        for file in &tree.files {
            let fd = open_file(file, &pool, &pipes, terminals).context(|| format!("opening {}", file.link))?;
            let fd = pool.keep(fd)?;
            lock(&fd, file)?;
            pool.files.push(fd);
        }
        Ok(pool)
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

    /// Descriptor of a mapped file.
    pub fn mapped(&self, id: u32) -> Result<i32> {
        number(&self.mapped, id, "mapped file")
    }

    /// Read-only descriptor of a mapped file that is an executable.
    pub fn executable(&self, id: u32) -> Result<i32> {
        self.executables
            .get(id as usize)
            .and_then(|f| f.as_ref().map(AsRawFd::as_raw_fd))
            .ok_or_else(|| Error::image(format!("image damaged: executable {id} is not there")))
    }

    /// Descriptor of an object.
    pub fn object(&self, id: u32) -> Result<i32> {
        number(&self.objects, id, "object")
    }

    /// An object, to fill it.
    pub fn object_file(&self, id: u32) -> Result<File> {
        let fd = self.writers.get(id as usize).ok_or_else(|| Error::image(format!("image damaged: object {id} is not there")))?;
        Ok(File::from(fd.try_clone()?))
    }

    /// All content is there: nobody writes to the objects from here on.
    pub fn close_writers(&mut self) {
        self.writers.clear();
    }

    /// Starts the timers, whose time goes on from here.
    pub fn arm(&self, tree: &Tree) -> Result<()> {
        for (file, fd) in tree.files.iter().zip(&self.files) {
            if let FileKind::TimerFd(timer) = &file.kind {
                timer.arm(fd.as_fd())?;
            }
        }
        Ok(())
    }

    /// Seals memfds again, after they were filled and mapped.
    pub fn seal(&self, tree: &Tree) -> Result<()> {
        for (object, fd) in tree.objects.iter().zip(&self.objects) {
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

fn number(list: &[OwnedFd], id: u32, what: &str) -> Result<i32> {
    list.get(id as usize).map(AsRawFd::as_raw_fd).ok_or_else(|| Error::image(format!("image damaged: {what} {id} is not there")))
}

fn is_object(backing: &Backing, id: u32) -> bool {
    matches!(backing, Backing::Object { object, .. } if *object == id)
}

/// Whether some shared mapping of the file may be written to.
fn wants_write(tree: &Tree, number: usize) -> bool {
    tree.processes.iter().filter_map(|p| p.memory.as_ref()).flat_map(|m| &m.mappings).any(|m| {
        m.shared && m.flags.iter().any(|f| f == "mw") && matches!(m.backing, Backing::File { file, .. } if file as usize == number)
    })
}

fn raise_limit(need: u64) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= need {
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

fn open_file(file: &OpenFile, pool: &Pool, pipes: &[Ends], terminals: &Terminals) -> Result<OwnedFd> {
    let fd = match &file.kind {
        FileKind::Regular(Regular { deleted: Some(object), .. }) => reopen_object(pool, *object, file.flags)?,
        FileKind::Regular(regular) => open_path(&regular.path, file.flags)?,
        FileKind::Memory(memory) => reopen_object(pool, memory.object, file.flags)?,
        FileKind::Pipe(end) => {
            let ends = pipes.get(end.pipe as usize).ok_or_else(|| Error::image("image damaged: a pipe is missing"))?;
            return reopen_pipe(ends.of(file.flags), file.flags);
        }
        FileKind::Device(device) => {
            let fd = open_path(&device.path, file.flags)?;
            let rdev = File::from(fd.try_clone()?).metadata()?.rdev();
            if (libc::major(rdev), libc::minor(rdev)) != device.number {
                return Err(Error::new(Kind::Unsupported, format!("{} is another device here", device.path)));
            }
            return Ok(fd);
        }
        FileKind::Epoll(_) => return epoll::create(),
        FileKind::EventFd(eventfd) => return eventfd.make().and_then(|fd| with_flags(fd, file.flags)),
        FileKind::TimerFd(timer) => return timer.make().and_then(|fd| with_flags(fd, file.flags)),
        FileKind::SignalFd(signals) => return signals.make().and_then(|fd| with_flags(fd, file.flags)),
        FileKind::Terminal(terminal) => return terminals.open(terminal.terminal, file.flags & KEPT),
    };
    if file.flags & libc::O_PATH as u32 == 0 && file.pos != 0 {
        nix::unistd::lseek(fd.as_fd(), file.pos as i64, nix::unistd::Whence::SeekSet).context(|| "setting the file offset")?;
    }
    Ok(fd)
}

fn reopen_object(pool: &Pool, object: u32, flags: u32) -> Result<OwnedFd> {
    let fd = pool.objects.get(object as usize).ok_or_else(|| Error::image("image damaged: an object is missing"))?;
    reopen(fd.as_raw_fd(), flags)
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
fn make_object(object: &Object) -> Result<OwnedFd> {
    let fd = match &object.origin {
        Origin::Anonymous => return file::shared_anonymous(object.size).context(|| "making shared memory"),
        Origin::Memfd { name, .. } => {
            const MFD_ALLOW_SEALING: u32 = 2;
            file::memfd(name.bytes(), MFD_ALLOW_SEALING).context(|| format!("making memfd {name}"))?
        }
        Origin::Deleted { path, mode, owner } => deleted_file(path, *mode, *owner)?,
    };
    File::from(fd.try_clone()?).set_len(object.size).context(|| "sizing shared memory")?;
    Ok(fd)
}

/// A file without a name, made where the old one was.
fn deleted_file(path: &FilePath, mode: u32, owner: (u32, u32)) -> Result<OwnedFd> {
    let wanted: &Path = path;
    let there = |p: &Path| OpenOptions::new().read(true).write(true).create_new(true).mode(mode & 0o7777).open(p);
    let doing = || format!("making the deleted file {path} again");
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
    fn make(pipe: &Pipe, number: u32, tree: &Tree) -> Result<Ends> {
        let (read, write) = match &pipe.path {
            Some(path) => {
                if !std::fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo()) {
                    return Err(Error::new(Kind::NotFound, format!("the FIFO {path} is not there")).help(format!("make it: mkfifo {path}")));
                }
                let both = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
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
