//! Pipes and FIFOs with what is inside them.

use super::capture::Capture;
use super::descriptor::{FileKind, Found, OpenFile};
use super::graph::{Key, Part};
use super::path::FilePath;
use super::thread::serde_bytes_vec::Bytes;
use crate::error::{Context, Result};
use crate::sys::file;
use crate::sys::proc::read;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// One end of a pipe; ends with the same `pipe` belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipeEnd {
    /// Index into [`super::Tree::pipes`].
    pub pipe: u32,
}

/// One pipe or FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipe {
    /// Path of a FIFO; `None` for a pipe.
    pub path: Option<FilePath>,
    /// `F_GETPIPE_SZ` in bytes.
    pub size: u32,
    /// Unread content; in packet mode (`O_DIRECT`) one element a packet.
    pub content: Vec<Bytes>,
}

impl PipeEnd {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("pipe").needs(Key::Pipe(self.pipe))
    }
}

/// Saves one end of a pipe or FIFO, and with the first end the pipe itself.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let inode = found.meta.ino();
    if let Some(known) = capture.pipe_inodes.iter().position(|&i| i == inode) {
        return Ok(Some(FileKind::Pipe(PipeEnd { pipe: known as u32 })));
    }
    let (path, deleted) = FilePath::from_link(&found.link);
    let path = (!found.link.starts_with(b"pipe:")).then_some(path);
    if deleted {
        capture.refuse(found.pid, found.object(), "the FIFO has been removed", "close it first");
        return Ok(None);
    }
    let end = found.own()?;
    let size = file::pipe_size(end).context(|| format!("reading {} of process {}", found.object(), found.pid))?;
    let content = content(found, end).context(|| format!("reading {} of process {}", found.object(), found.pid))?;
    capture.pipes.push(Pipe { path, size, content: content.into_iter().map(Bytes).collect() });
    capture.pipe_inodes.push(inode);
    Ok(Some(FileKind::Pipe(PipeEnd { pipe: capture.pipes.len() as u32 - 1 })))
}

/// What is in a pipe.
fn content(found: &Found, end: BorrowedFd<'_>) -> std::io::Result<Vec<Vec<u8>>> {
    if file::unread(end)? == 0 {
        return Ok(Vec::new());
    }
    if found.info.flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32 {
        return file::peek_pipe(end);
    }
    // A read end of our own on the same pipe; it exists for this moment only.
    let link = format!("/proc/{}/fd/{}", found.pid, found.fd);
    let read_end = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(link)?;
    file::peek_pipe(read_end.as_fd())
}

/// Refuses pipes that a process outside of the tree holds, too: it would be left with nobody at the other end. And those
/// that are to be kept by name but lead nowhere outside.
pub fn refuse_outsiders(tree: &HashSet<i32>, own: i32, capture: &mut Capture) {
    let inside = capture.pipe_inodes.iter().zip(&capture.pipes).filter(|(_, p)| p.path.is_none()).map(|(i, _)| format!("pipe:[{i}]"));
    let mut outsiders: BTreeMap<String, Vec<i32>> = inside.map(|link| (link, Vec::new())).collect();
    let outside = |f: &OpenFile| if let FileKind::Outside(o) = &f.kind { Some(o.id.clone()) } else { None };
    let by_name: BTreeSet<String> = capture.files.iter().filter_map(outside).collect();
    outsiders.extend(by_name.iter().map(|link| (link.clone(), Vec::new())));
    // All processes of the machine are looked through for that. Of a tree that is copied again and again, once for each pipe: they
    // are handed on by name only to who is told of it.
    let again = capture.standing && capture.recall.quiet.is_some();
    if outsiders.is_empty() || again && by_name.is_empty() && outsiders.keys().all(|link| capture.recall.pipes.contains(link)) {
        return;
    }
    if again {
        let nobody = outsiders.keys().cloned().collect();
        capture.recall.pipes = nobody;
    }
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).filter(|p| !tree.contains(p) && *p != own);
    for pid in others {
        if read::is_below(pid, tree) {
            continue; // born since the tree was listed
        }
        for fd in read::fds(pid).unwrap_or_default() {
            let Ok(link) = read::fd_link(pid, fd) else { continue };
            if let Some(found) = std::str::from_utf8(&link).ok().and_then(|l| outsiders.get_mut(l))
                && found.last() != Some(&pid)
            {
                found.push(pid);
            }
        }
    }
    for (link, pids) in outsiders {
        let held = capture.files.iter().zip(&capture.holders).filter(|(f, _)| f.link == link).map(|(_, h)| *h);
        let held: Vec<(i32, i32)> = held.collect();
        let Some(&(holder, fd)) = held.first() else { continue };
        if !pids.is_empty() {
            capture.recall.pipes.remove(&link);
        }
        let (reason, advice) = match (pids.as_slice(), by_name.contains(&link)) {
            ([], true) => ("nobody outside of the tree holds the pipe".to_owned(), format!("leave --external {link} away")),
            ([], false) | (_, true) => continue,
            (pids, false) => (
                format!("the pipe is also held by {}, outside of the tree", named(pids)),
                format!("dump a process above both, redirect into a file instead, or connect it again at the restore: --external {link}"),
            ),
        };
        let also: Vec<String> = held[1..].iter().map(|(pid, fd)| format!(", also {pid}/{fd}")).collect();
        capture.refuse(holder, format!("fd {fd} ({link}){}", also.concat()), reason, advice);
        if let Some(refusal) = capture.refusals.last_mut() {
            refusal.id = Some(link);
        }
    }
}

/// `process 12 (tee), 13 (sort) and 2 more`.
fn named(pids: &[i32]) -> String {
    const NAMED: usize = 3;
    let name = |pid: &i32| {
        let comm = read::read(*pid, "comm").unwrap_or_default();
        format!("{pid} ({})", String::from_utf8_lossy(&comm).trim())
    };
    let shown: Vec<String> = pids.iter().take(NAMED).map(name).collect();
    let more = if pids.len() > NAMED { format!(" and {} more", pids.len() - NAMED) } else { String::new() };
    format!("process{} {}{more}", if pids.len() == 1 { "" } else { "es" }, shown.join(", "))
}
