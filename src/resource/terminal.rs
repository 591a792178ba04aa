//! Terminals: modes, size, session and foreground group.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::{Key, Part};
use super::path::FilePath;
use crate::error::Result;
use crate::sys::file;
use crate::sys::proc::{read, stat};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

/// A descriptor of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Index into [`super::Tree::terminals`].
    pub terminal: u32,
}

/// One terminal that the tree uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalState {
    /// Where it was, `/dev/pts/3`.
    pub path: String,
    /// Raw `struct termios2`.
    #[serde(with = "crate::image::bytes")]
    pub termios: Vec<u8>,
    /// Rows and columns.
    pub size: (u16, u16),
    /// The session that it controls, 0 for none.
    pub session: i32,
    /// The foreground process group, 0 for none.
    pub foreground: i32,
}

impl Terminal {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("terminal").needs(Key::Terminal(self.terminal))
    }
}

/// Major numbers of pseudo-terminal slaves.
const PTS: std::ops::RangeInclusive<u32> = 136..=143;

/// Whether a character device is a terminal that can be taken over: a pseudo-terminal or `/dev/tty`.
pub fn is_terminal(found: &Found) -> bool {
    let (major, minor) = (libc::major(found.meta.rdev()), libc::minor(found.meta.rdev()));
    PTS.contains(&major) || (major, minor) == (5, 0)
}

/// Saves a terminal: its modes and size, and whose controlling terminal it is.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let path = String::from_utf8_lossy(FilePath::from_link(&found.link).0.bytes()).into_owned();
    if let Some(known) = capture.terminals.iter().position(|t| t.path == path) {
        return Ok(Some(FileKind::Terminal(Terminal { terminal: known as u32 })));
    }
    let doing = || format!("reading {} of process {}", found.object(), found.pid);
    let fd = found.duplicate()?;
    let (termios, size) = match (file::termios(fd.as_fd()), file::window(fd.as_fd())) {
        (Ok(termios), Ok(size)) => (termios, size),
        // Its master has gone: reads give end of file and nothing can be asked any more.
        (Err(Errno::EIO), _) | (_, Err(Errno::EIO)) => {
            capture.refuse(found.pid, found.object(), "the terminal has been hung up", "end the program or redirect its descriptors");
            return Ok(None);
        }
        (Err(e), _) | (_, Err(e)) => return Err(crate::error::Error::from(e).context(doing())),
    };
    let stat = read::parsed(found.pid, "stat", stat::parse)?;
    let controlling = stat.tty_nr != 0 && (libc::major(found.meta.rdev()) == 5 || device_number(stat.tty_nr) == found.meta.rdev());
    capture.terminals.push(TerminalState {
        path,
        termios,
        size,
        session: if controlling { stat.session } else { 0 },
        foreground: if controlling { stat.tpgid.max(0) } else { 0 },
    });
    Ok(Some(FileKind::Terminal(Terminal { terminal: capture.terminals.len() as u32 - 1 })))
}

/// `tty_nr` of proc_pid_stat(5) as a `dev_t`: minor in bits 31-20 and 7-0, major in bits 15-8.
fn device_number(tty_nr: i32) -> u64 {
    let n = tty_nr as u32;
    libc::makedev(n >> 8 & 0xfff, n & 0xff | n >> 12 & 0xfff00)
}
