//! Pipes and FIFOs with what is inside them.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::{Key, Part};
use super::path::FilePath;
use super::thread::serde_bytes_vec::Bytes;
use crate::error::{Context, Result};
use crate::sys::file;
use crate::sys::proc::{read, stat};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::os::fd::AsFd;
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
    let end = found.duplicate()?;
    let size = file::pipe_size(end.as_fd()).context(|| format!("reading {} of process {}", found.object(), found.pid))?;
    // A read end of our own on the same pipe; it exists for this moment only.
    let link = format!("/proc/{}/fd/{}", found.pid, found.fd);
    let read_end =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&link).context(|| format!("reading {link}"))?;
    let content = file::peek_pipe(read_end.as_fd()).context(|| format!("reading {} of process {}", found.object(), found.pid))?;
    capture.pipes.push(Pipe { path, size, content: content.into_iter().map(Bytes).collect() });
    capture.pipe_inodes.push(inode);
    Ok(Some(FileKind::Pipe(PipeEnd { pipe: capture.pipes.len() as u32 - 1 })))
}

/// Whether a process descends from the tree.
fn below(pid: i32, tree: &HashSet<i32>) -> bool {
    let mut at = pid;
    while at > 1 {
        at = read::parsed(at, "stat", stat::parse).map_or(0, |s| s.ppid);
        if tree.contains(&at) {
            return true;
        }
    }
    false
}

/// Refuses pipes that a process outside of the tree holds, too: it would be left with nobody at the other end.
pub fn refuse_outsiders(tree: &HashSet<i32>, own: i32, capture: &mut Capture) {
    let inodes: Vec<u64> = capture.pipe_inodes.iter().zip(&capture.pipes).filter(|(_, p)| p.path.is_none()).map(|(&i, _)| i).collect();
    if inodes.is_empty() {
        return;
    }
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let outsiders = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).filter(|p| !tree.contains(p) && *p != own);
    for pid in outsiders {
        if below(pid, tree) {
            continue; // born since the tree was listed
        }
        for fd in read::fds(pid).unwrap_or_default() {
            let Ok(link) = read::fd_link(pid, fd) else { continue };
            let Some(inode) = link.strip_prefix(b"pipe:[").and_then(|l| std::str::from_utf8(l).ok()?.trim_end_matches(']').parse().ok())
            else {
                continue;
            };
            if !inodes.contains(&inode) {
                continue;
            }
            let name = read::read(pid, "comm").unwrap_or_default();
            let name = String::from_utf8_lossy(&name).trim().to_owned();
            let held: Vec<(i32, String)> = capture
                .files
                .iter()
                .zip(&capture.holders)
                .filter(|(f, _)| f.link == format!("pipe:[{inode}]"))
                .map(|(f, h)| (h.0, format!("fd {} ({})", h.1, f.link)))
                .collect();
            for (holder, object) in held {
                let reason = format!("the pipe is also held by process {pid} ({name}), outside of the tree");
                capture.refuse(holder, object, reason, "dump a process above both, or redirect into a file instead");
            }
        }
    }
    capture.refusals.dedup();
}
