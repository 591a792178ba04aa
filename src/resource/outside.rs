//! Ends of pipes whose other side lives outside of the tree (`program | tee log`), kept by the user's `--external`.
//!
//! At the restore the very pipe is looked for first, which is there as long as somebody outside holds it. Where it has
//! gone, an end that was the standard input, output or error of a process becomes that of the restoring meio, so that
//! `meio restore … | tee log` is the pipeline again; any other end leads to `/dev/null`.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::Part;
use super::ignored::{self, Ignored};
use crate::error::Result;
use crate::sys::file;
use crate::sys::proc::read;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// An end of a pipe that leads out of the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// What the user said: `pipe:[INODE]`.
    pub id: String,
    /// `/proc/sys/kernel/random/boot_id`: the inode means something until the machine is started anew.
    pub boot: String,
    /// The descriptor with which it was found, when that is a standard one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard: Option<i32>,
}

/// Whether the user keeps this end of a pipe by name.
pub fn capture(found: &Found, capture: &Capture) -> Option<FileKind> {
    if capture.decisions.is_empty() {
        return None;
    }
    let id = ignored::ids(found).into_iter().find(|id| id.starts_with("pipe:[") && capture.decisions.external(id))?;
    Some(FileKind::Outside(Outside { id, boot: boot(), standard: (found.fd <= 2).then_some(found.fd) }))
}

fn boot() -> String {
    let id = read::read_machine("sys/kernel/random/boot_id").unwrap_or_default();
    String::from_utf8_lossy(&id).trim().to_owned()
}

impl Outside {
    /// The end anew; with it a warning unless it is the same pipe.
    pub fn open(&self, flags: u32) -> Result<(OwnedFd, Option<String>)> {
        if self.boot == boot()
            && let Some(fd) = self.find(flags)
        {
            return Ok((fd, None));
        }
        let access = (flags & libc::O_ACCMODE as u32) as i32;
        if let Some(number @ 0..=2) = self.standard {
            let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
            let (own, name) = [(stdin.as_fd(), "input"), (stdout.as_fd(), "output"), (stderr.as_fd(), "error")][number as usize];
            let fits = |has: i32| has & libc::O_ACCMODE == libc::O_RDWR || has & libc::O_ACCMODE == access;
            if fcntl(own, FcntlArg::F_GETFL).is_ok_and(fits) {
                return Ok((own.try_clone_to_owned()?, Some(format!("{} has gone: standard {name} takes its place", self.id))));
            }
        }
        Ok((Ignored::open(flags)?, Some(format!("{} has gone: /dev/null takes its place", self.id))))
    }

    /// The very pipe, through any process that holds it.
    fn find(&self, flags: u32) -> Option<OwnedFd> {
        const KEPT: u32 = (libc::O_ACCMODE | libc::O_NONBLOCK) as u32;
        let all = std::fs::read_dir("/proc").ok()?.flatten();
        for pid in all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()) {
            for fd in read::fds(pid).unwrap_or_default() {
                if read::fd_link(pid, fd).is_ok_and(|l| l == self.id.as_bytes()) {
                    // Without waiting: fifo(7), an end for writing cannot be opened when nobody is left to read.
                    let wanted = OFlag::from_bits_truncate((flags & KEPT) as i32) | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                    let end = open(format!("/proc/{pid}/fd/{fd}").as_str(), wanted, Mode::empty()).ok()?;
                    file::set_flags(end.as_fd(), (flags & KEPT) as i32).ok()?;
                    return Some(end);
                }
            }
        }
        None
    }

    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("pipe to outside").detail(format!("looked for at the restore: --external {}", self.id))
    }
}
