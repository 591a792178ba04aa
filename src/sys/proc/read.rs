//! Fetches the texts and links of proc(5) of one process or thread.
//!
//! Every function fails with [`Kind::NotFound`] when the process is gone, and
//! with [`Kind::Permission`] when it may not be looked at (ptrace(2), "Ptrace
//! access mode checking").

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{children as children_text, text::int};
use crate::error::{Error, Kind, Result};

/// Most texts fit; smaps does not and makes the buffer grow.
const FIRST_SIZE: usize = 64 << 10;

thread_local! {
    /// The bytes of the last text, whose allocation the next one uses again.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Opens and reads a whole file, and gives its bytes to `take`.
fn whole<T>(path: &str, take: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    let mut file = File::open(path)?;
    // Taken out, so that `take` may read another text.
    let mut buffer = BUFFER.take();
    let mut filled = 0;
    let result = loop {
        if filled == buffer.len() {
            buffer.resize((filled * 2).max(FIRST_SIZE), 0);
        }
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break Ok(take(&buffer[..filled])),
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

/// The thread ids of a process, ascending; one that is gone has none.
pub fn tasks(pid: i32) -> Result<Vec<i32>> {
    match numbers(pid, "task")? {
        // The directory was opened before the process was reaped.
        none if none.is_empty() => Err(Error::new(Kind::NotFound, format!("no such process (pid {pid})"))),
        tasks => Ok(tasks),
    }
}

/// The pids of the children of all threads of a process. Reliable only while
/// the process is stopped and the children cannot end.
pub fn children(pid: i32) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    for tid in tasks(pid)? {
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
    numbers(pid, "fd")
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
    let metadata = std::fs::metadata(&path).map_err(|e| failed(pid, &path, &e))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The auxiliary vector as it was given to the program, proc_pid_auxv(5).
pub fn auxv(pid: i32) -> Result<Vec<u8>> {
    read(pid, "auxv")
}

/// The arguments of a process, proc_pid_cmdline(5); none for zombies and kernel threads.
pub fn cmdline(pid: i32) -> Result<Vec<Vec<u8>>> {
    parsed(pid, "cmdline", |text| {
        // A process that rewrote its arguments may have lost the last NUL.
        let text = text.strip_suffix(b"\0").unwrap_or(text);
        let none = usize::from(text.is_empty());
        Ok(text.split(|&b| b == 0).skip(none).map(<[u8]>::to_vec).collect())
    })
}
