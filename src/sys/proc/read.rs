//! Fetches the texts and links of proc(5) of one process or thread.
//!
//! Every function fails with [`Kind::NotFound`] when the process is gone, and
//! with [`Kind::Permission`] when it may not be looked at (ptrace(2), "Ptrace
//! access mode checking").

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::fdinfo::{self, FdInfo};
use super::{ahead, children as children_text, text::int};
use crate::error::{Error, Kind, Result};

/// Most texts fit; smaps does not and makes the buffer grow.
const FIRST_SIZE: usize = 64 << 10;

thread_local! {
    /// The bytes of the last text, whose allocation the next one uses again.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Opens and reads a whole file, and gives its bytes to `take`.
fn whole<T>(path: &str, take: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    match ahead::known(path, take) {
        Ok(taken) => Ok(taken),
        Err(take) => all_of(File::open(path)?, false, take),
    }
}

/// The bytes of a file.
pub(super) fn fetch(path: &str) -> io::Result<Vec<u8>> {
    all_of(File::open(path)?, false, <[u8]>::to_vec)
}

/// `one`: the kernel makes the text as a whole, so that less than there is room for is all of it.
fn all_of<T>(mut file: File, one: bool, take: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    // Taken out, so that `take` may read another text.
    let mut buffer = BUFFER.take();
    let mut filled = 0;
    let result = loop {
        if filled == buffer.len() {
            buffer.resize((filled * 2).max(FIRST_SIZE), 0);
        }
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break Ok(take(&buffer[..filled])),
            Ok(n) if one && filled + n < buffer.len() => break Ok(take(&buffer[..filled + n])),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => break Err(e),
        }
    };
    BUFFER.set(buffer);
    result
}

/// Tells a process that is gone from a file that it does not have.
fn failed(pid: i32, path: &str, e: &io::Error) -> Error {
    let gone = || Error::new(Kind::NotFound, format!("no such process (pid {pid})"));
    match e.raw_os_error() {
        Some(libc::ESRCH) => gone(),
        Some(libc::ENOENT) if !Path::new(&format!("/proc/{pid}")).exists() => gone(),
        Some(libc::ENOENT) => Error::new(Kind::NotFound, format!("{path}: no such file")),
        Some(libc::EACCES | libc::EPERM) => Error::new(Kind::Permission, format!("{path}: {e}"))
            .help("run as the user who owns the process or as root, with CAP_SYS_PTRACE"),
        _ => Error::other(format!("{path}: {e}")),
    }
}

fn parsed_path<T>(pid: i32, path: &str, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    whole(path, parse).map_err(|e| failed(pid, path, &e))?.map_err(|e| e.context(format!("process {pid}")))
}

/// Reads /proc/PID/`name` and parses it: `parsed(pid, "stat", stat::parse)`.
pub fn parsed<T>(pid: i32, name: &str, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    parsed_path(pid, &format!("/proc/{pid}/{name}"), parse)
}

/// Reads /proc/PID/task/TID/`name` and parses it.
pub fn parsed_task<T>(pid: i32, tid: i32, name: &str, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    parsed_path(pid, &format!("/proc/{pid}/task/{tid}/{name}"), parse)
}

/// The bytes of /proc/PID/`name`.
pub fn read(pid: i32, name: &str) -> Result<Vec<u8>> {
    parsed(pid, name, |text| Ok(text.to_vec()))
}

/// The bytes of /proc/PID/task/TID/`name`.
pub fn read_task(pid: i32, tid: i32, name: &str) -> Result<Vec<u8>> {
    parsed_task(pid, tid, name, |text| Ok(text.to_vec()))
}

/// The first bytes of a long text about one task, of which the kernel makes no more than that.
pub fn begin(pid: i32, tid: i32, name: &str) -> Result<[u8; 64]> {
    let path = format!("/proc/{pid}/task/{tid}/{name}");
    let mut bytes = [0; 64];
    let read = File::open(&path).and_then(|mut file| file.read(&mut bytes));
    read.map(|_| bytes).map_err(|e| Error::from(e).context(&path))
}

/// The bytes of a text about the whole machine, /proc/`name`: `timer_list`.
pub fn read_machine(name: &str) -> Result<Vec<u8>> {
    let path = format!("/proc/{name}");
    whole(&path, <[u8]>::to_vec).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::new(Kind::Kernel, format!("{path}: this kernel does not have it")),
        _ => Error::from(e).context(&path),
    })
}

/// The names in a directory of /proc/PID that are numbers, ascending.
fn numbers(pid: i32, name: &str) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/{name}");
    let list = || -> io::Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&path)? {
            found.extend(int(&entry?.file_name().into_vec()));
        }
        Ok(found)
    };
    let mut found = list().map_err(|e| failed(pid, &path, &e))?;
    found.sort_unstable();
    Ok(found)
}

/// The thread ids of a process, its own first, then ascending: where numbers have begun anew others may be lower. One that is gone
/// has none.
pub fn tasks(pid: i32) -> Result<Vec<i32>> {
    match numbers(pid, "task")? {
        // The directory was opened before the process was reaped.
        none if none.is_empty() => Err(Error::new(Kind::NotFound, format!("no such process (pid {pid})"))),
        mut tasks => {
            tasks.sort_by_key(|&tid| (tid != pid, tid));
            Ok(tasks)
        }
    }
}

/// How many threads a process has, those that are just ending included; `None` when it has gone.
pub fn task_count(pid: i32) -> Option<u64> {
    // Links of the folder: itself, its name, one for each thread.
    let links = std::fs::metadata(format!("/proc/{pid}/task")).ok()?.nlink();
    links.checked_sub(2)
}

/// The pids of the children of all threads of a process. Reliable only while
/// the process is stopped and the children cannot end.
pub fn children(pid: i32) -> Result<Vec<i32>> {
    children_of(pid, &tasks(pid)?)
}

/// The same of these threads of it.
pub fn children_of(pid: i32, tids: &[i32]) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    for &tid in tids {
        match parsed_task(pid, tid, "children", children_text::parse) {
            Ok(children) => all.extend(children),
            // A thread that ended since has passed its children on to another one.
            Err(e) if e.kind == Kind::NotFound && !Path::new(&format!("/proc/{pid}/task/{tid}")).exists() => {}
            Err(e) if e.kind == Kind::NotFound => {
                return Err(Error::new(Kind::Kernel, format!("{}: this kernel has no CONFIG_PROC_CHILDREN", e.message)));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// The open descriptors of a process, ascending.
pub fn fds(pid: i32) -> Result<Vec<i32>> {
    // This folder, not `fd`: the kernel makes a file of /proc of each that is listed, and these are opened more often.
    numbers(pid, "fdinfo")
}

/// The same descriptors with what each says of itself (proc_pid_fdinfo(5)), where it has not gone meanwhile. Of many the kernel
/// is asked by several threads.
pub fn fd_infos(pid: i32, fds: &[i32]) -> Result<Vec<(i32, FdInfo)>> {
    const MANY: usize = 256;
    let path = format!("/proc/{pid}/fdinfo");
    // The way to the folder is gone once.
    let folder = File::open(&path).map_err(|e| failed(pid, &path, &e))?;
    let one = |fd: i32| -> io::Result<Result<FdInfo>> {
        let name = fd.to_string();
        let file = nix::fcntl::openat(&folder, name.as_str(), nix::fcntl::OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
        all_of(File::from(file), true, fdinfo::parse)
    };
    let read = |fds: &[i32]| -> Result<Vec<(i32, FdInfo)>> {
        let mut infos = Vec::with_capacity(fds.len());
        for &fd in fds {
            let info = one(fd).map_err(|e| failed(pid, &format!("{path}/{fd}"), &e));
            match info.and_then(|info| info.map_err(|e| e.context(format!("process {pid}")))) {
                Err(e) if e.kind == Kind::NotFound => {}
                info => infos.push((fd, info?)),
            }
        }
        Ok(infos)
    };
    // Only then: it takes ten files to tell how many processors there are for meio.
    let threads = if fds.len() < MANY { 1 } else { crate::sys::priority::processors().min(4) };
    if threads < 2 {
        return read(fds);
    }
    std::thread::scope(|scope| {
        let (own, others) = fds.split_at(fds.len().div_ceil(threads));
        let reading: Vec<_> = others.chunks(own.len()).map(|share| scope.spawn(move || read(share))).collect();
        let mut all = read(own)?;
        for share in reading {
            all.extend(share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Where /proc/PID/`name` points: `exe`, `cwd`, `root`, `ns/net`. The kernel
/// appends ` (deleted)` when the file is unlinked, and does not escape anything.
pub fn link(pid: i32, name: &str) -> Result<Vec<u8>> {
    let path = format!("/proc/{pid}/{name}");
    let target = std::fs::read_link(&path).map_err(|e| failed(pid, &path, &e))?;
    Ok(target.into_os_string().into_vec())
}

/// Where /proc/PID/fd/FD points: a path, or `socket:[123]` and the like.
pub fn fd_link(pid: i32, fd: i32) -> Result<Vec<u8>> {
    link(pid, &format!("fd/{fd}"))
}

/// Which namespace of a kind (`net`, `pid`, `mnt`) a process is in, as device
/// and inode number: two are the same exactly when both are, namespaces(7).
pub fn namespace(pid: i32, kind: &str) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/ns/{kind}");
    if let Some(identity) = ahead::known_identity(&path) {
        return Ok(identity);
    }
    let metadata = std::fs::metadata(&path).map_err(|e| failed(pid, &path, &e))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The auxiliary vector as it was given to the program, proc_pid_auxv(5).
pub fn auxv(pid: i32) -> Result<Vec<u8>> {
    read(pid, "auxv")
}

/// Whether a process descends from one of `tree`.
pub fn is_below(pid: i32, tree: &HashSet<i32>) -> bool {
    let mut at = pid;
    while at > 1 {
        at = parsed(at, "stat", super::stat::parse).map_or(0, |s| s.ppid);
        if tree.contains(&at) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::{fdinfo, maps, stat, status, timer_list};
    use super::*;
    use std::os::fd::AsRawFd;

    fn own() -> i32 {
        std::process::id() as i32
    }

    /// A program that waits, and ends with the test.
    struct Child(std::process::Child);

    impl Child {
        fn new() -> Child {
            let mut command = std::process::Command::new("cat");
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            // It is another program only after exec has returned: when it answers.
            io::Write::write_all(child.stdin.as_mut().unwrap(), b"?").unwrap();
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            Child(child)
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_child_is_found_and_then_gone() {
        let child = Child::new();
        let pid = child.pid();
        assert!(children(own()).unwrap().contains(&pid));
        let stat = parsed(pid, "stat", stat::parse).unwrap();
        assert_eq!((stat.pid, stat.ppid), (pid, own()));
        assert_eq!(tasks(pid).unwrap(), [pid]);
        let status = parsed_task(pid, pid, "status", status::parse).unwrap();
        assert_eq!((status.pid, status.ppid), (pid, own()));
        assert_eq!(namespace(pid, "net").unwrap(), namespace(own(), "net").unwrap());
        assert_ne!(namespace(pid, "net").unwrap(), namespace(own(), "pid").unwrap());
        let error = fd_link(pid, 12345).unwrap_err();
        assert_eq!((error.kind, error.message), (Kind::NotFound, format!("/proc/{pid}/fd/12345: no such file")));
        drop(child);
        let gone = format!("no such process (pid {pid})");
        let errors = [
            read(pid, "stat").map(drop),
            read_task(pid, pid, "stat").map(drop),
            tasks(pid).map(drop),
            children(pid).map(drop),
            fds(pid).map(drop),
            link(pid, "exe").map(drop),
            namespace(pid, "net").map(drop),
            auxv(pid).map(drop),
        ];
        for error in errors.map(Result::unwrap_err) {
            assert_eq!((error.kind, &error.message), (Kind::NotFound, &gone));
        }
    }

    #[test]
    fn descriptors_and_links() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fd = file.as_raw_fd();
        assert!(fds(own()).unwrap().contains(&fd));
        assert_eq!(fd_link(own(), fd).unwrap(), file.path().as_os_str().as_encoded_bytes());
        let info = parsed(own(), &format!("fdinfo/{fd}"), fdinfo::parse).unwrap();
        assert_ne!(info.flags as i32 & libc::O_CLOEXEC, 0);
        // Every line of the machine's own text begins with the id of a mount.
        let mounts = String::from_utf8_lossy(&read(own(), "mountinfo").unwrap()).into_owned();
        let id = info.mnt_id.unwrap().to_string();
        assert!(mounts.lines().any(|line| line.split(' ').next() == Some(&id)));
        assert_eq!(link(own(), "exe").unwrap(), std::env::current_exe().unwrap().as_os_str().as_encoded_bytes());
    }

    #[test]
    fn texts_longer_than_the_buffer() {
        // Every other page with other rights: as many mappings, whose text is more than the first buffer holds.
        let pages = 400;
        let length = std::num::NonZeroUsize::new(pages * 4096).unwrap();
        let (none, anonymous) = (nix::sys::mman::ProtFlags::PROT_NONE, nix::sys::mman::MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping where the kernel likes, which nothing else knows of.
        let base = unsafe { nix::sys::mman::mmap_anonymous(None, length, none, anonymous) }.unwrap();
        let first = base.as_ptr() as u64;
        for page in (0..pages).step_by(2) {
            // SAFETY: a page of the mapping above, which only grows rights.
            unsafe { nix::sys::mman::mprotect(base.byte_add(page * 4096), 4096, nix::sys::mman::ProtFlags::PROT_READ) }.unwrap();
        }
        let text = read(own(), "smaps").unwrap();
        let vmas = parsed(own(), "smaps", maps::parse).unwrap();
        // SAFETY: the mapping made above, of which no reference exists.
        unsafe { nix::sys::mman::munmap(base, pages * 4096) }.unwrap();
        assert!(text.len() > FIRST_SIZE, "{}", text.len());
        for page in 0..pages as u64 {
            let vma = vmas.iter().find(|vma| (vma.start..vma.end).contains(&(first + page * 4096))).unwrap();
            assert_eq!(vma.prot, u32::from(page % 2 == 0));
        }
    }

    #[test]
    fn a_parser_may_read_another_text() {
        let both = parsed(own(), "stat", |outer| {
            let inner = read(own(), "cmdline")?;
            Ok((stat::parse(outer)?.pid, inner))
        });
        let (pid, inner) = both.unwrap();
        assert_eq!(pid, own());
        assert!(!inner.is_empty());
        assert_eq!(inner, read(own(), "cmdline").unwrap());
    }

    #[test]
    fn the_auxiliary_vector_ends_with_null() {
        let auxv = auxv(own()).unwrap();
        assert_eq!(auxv.len() % 16, 0);
        assert!(auxv.len() > 16 && auxv.ends_with(&[0; 16]));
    }

    #[test]
    fn texts_of_the_machine() {
        assert_eq!(read_machine("no-such-text").unwrap_err().kind, Kind::Kernel);
        // Only root may read it.
        match read_machine("timer_list") {
            Ok(text) => assert!(timer_list::parse(&text).unwrap().now_ns > 0),
            Err(e) => assert_eq!(e.kind, Kind::Permission),
        }
    }
}
