//! The files of a tree that moves: those that must be the same at the target, those that are sent there, and folders of data that
//! are kept in step until the switch.
//!
//! ```text
//! wanted     source: which files the tree needs, and what is in them
//! compare    target: which of them are there, which are the same, which cannot be had
//! carry      source: rounds on their way, and what the target says to them
//! send       what differs from what the target is known to have, round after round
//!   single     one file; walk: a folder in an order that both ends have; catalogue: what is known of it, on disk
//!   ops        how changes travel
//! apply      target: makes the changes
//!   stage      copies under other names until the switch, and the way back; journal: what is durable of that
//! entry      what a file is besides its content; blocks: its content in pieces
//! ```
//!
//! A file that is copied (`--copy-files`) is built under another name beside its place, and takes its place in the last stop; what
//! was there before waits under another name until the tree runs, and comes back when the move is given up. A folder of data
//! (`--with-data`) is changed in place: after a move that was given up it holds what had been sent until then.

mod apply;
mod blocks;
mod carry;
mod catalogue;
pub mod compare;
mod entry;
mod journal;
mod ops;
mod send;
mod single;
pub mod stage;
mod walk;
pub mod wanted;

pub use apply::Applier;
pub use carry::{Carry, why};
pub use catalogue::list;
pub use entry::Identity;
pub use journal::sweep;
pub use send::Files;

use crate::error::Refusal;
use crate::resource::Tree;
use crate::resource::descriptor::FileKind;
use crate::resource::path::FilePath;
use crate::resource::thread::serde_bytes_vec::Bytes;
use catalogue::Known;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Kind of the frames that carry a [`Word`].
pub const FILES: u16 = 0x102;

/// Which files of the tree are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Copying {
    /// None: all must be there.
    #[default]
    Nothing,
    /// Those that are not there.
    Missing,
    /// Those, and in place of what is there those that the tree has open for writing.
    Written,
}

/// A file that the tree needs at the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// A process that needs it.
    pub pid: i32,
    /// What for, for people.
    pub object: String,
    /// Where.
    pub path: FilePath,
    /// Its type, `S_IFMT` of `st_mode`.
    pub kind: u32,
    /// Bytes.
    pub size: u64,
    /// GNU build id of an ELF file.
    pub build_id: Option<Bytes>,
    /// What is in it, where no build id says it.
    pub content: Option<Bytes>,
    /// The tree may write to it.
    pub written: bool,
    /// Where it is stored.
    pub storage: Storage,
}

/// Where a file is stored: by this it is known whether two machines speak of the same one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// The run of the kernel that device numbers belong to.
    pub boot: [u8; 16],
    /// Device and inode number.
    pub file: (u64, u64),
    /// Type of the file system.
    pub kind: String,
    /// What is mounted, as in `server:/export`.
    pub source: String,
    /// `f_fsid` of statfs(2).
    pub fsid: u64,
}

/// How things stand with a [`Wanted`] at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It is the same file: the storage is shared.
    Shared,
    /// Its content is the same.
    Same,
    /// Nothing is there.
    Missing,
    /// Something else is there.
    Different,
}

/// A folder of data that is kept in step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// Where.
    pub path: FilePath,
    /// Where it is stored at the source.
    pub storage: Storage,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What both ends say to each other about files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Word {
    /// Source: what is in the folder of data of this number?
    List(u32),
    /// Target: some of what is in it, in order.
    Entries(Vec<Known>),
    /// Target: that was all.
    Listed,
    /// Source: what of these, which the tree has opened since?
    Look(Vec<Wanted>),
    /// Target: how it stands with them, and what stands in the way.
    Looked(Vec<State>, Vec<Refusal>),
    /// Source: are this many sets of changes made?
    Applied(u64),
    /// Target: they are.
    Done(u64),
}

/// How a preflight asked for files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Those that the tree needs.
    pub wanted: Vec<Wanted>,
    /// Which are sent.
    pub copying: Copying,
    /// Folders that are kept in step.
    pub folders: Vec<Folder>,
    /// What is below these is said to be the same.
    #[serde(default)]
    pub shared: Vec<FilePath>,
}

/// What the target found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// Of each [`Request::wanted`].
    pub states: Vec<State>,
    /// Of each [`Request::folders`]: whether it is the same folder.
    pub shared: Vec<bool>,
}

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Which files are sent.
    pub copying: Copying,
    /// Folders of data.
    pub folders: Vec<std::path::PathBuf>,
    /// What is below these is said to be the same.
    pub shared: Vec<std::path::PathBuf>,
}

impl Request {
    /// Paths of a tree that are the same at the target, or will be when it comes.
    pub fn settled(&self, tree: &Tree) -> HashSet<FilePath> {
        let open = tree.files.iter().filter_map(|f| if let FileKind::Regular(r) = &f.kind { Some(&r.path) } else { None });
        let all = tree.mapped.iter().map(|m| &m.path).chain(open).chain(tree.processes.iter().map(|p| &p.fs.cwd));
        all.filter(|path| self.is_data(path)).chain(self.wanted.iter().map(|w| &w.path)).cloned().collect()
    }

    /// Whether a path is in a folder of data.
    pub fn is_data(&self, path: &std::path::Path) -> bool {
        self.folders.iter().any(|f| path.starts_with(&f.path))
    }

    /// Whether nothing is asked about a path.
    pub fn is_known(&self, path: &std::path::Path) -> bool {
        self.is_data(path) || self.shared.iter().any(|s| path.starts_with(s))
    }

    /// Bytes that are read at most to compare.
    pub fn bytes(&self) -> u64 {
        self.wanted.iter().filter(|w| w.content.is_some()).map(|w| w.size).sum()
    }
}

#[cfg(test)]
mod tests;
