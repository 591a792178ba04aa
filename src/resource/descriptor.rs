//! Descriptor tables: which number leads to which open file description.

use serde::{Deserialize, Serialize};

/// Number of an [`OpenFile`] in the image.
pub type FileId = u32;

/// One entry of a descriptor table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// The descriptor number.
    pub fd: i32,
    /// The open file description; several descriptors, also of several processes, may share it.
    pub file: FileId,
    /// `FD_CLOEXEC`.
    pub cloexec: bool,
    /// Record locks (fcntl(2) `F_SETLK`) that the process holds on the file, on the first of its descriptors only.
    pub locks: Vec<super::lock::Lock>,
}

/// One open file description (open(2), "open file description").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenFile {
    /// Its number in the image.
    pub id: FileId,
    /// `O_*` status and access flags, octal in proc_pid_fdinfo(5).
    pub flags: u32,
    /// File offset in bytes.
    pub pos: u64,
    /// What `/proc/PID/fd/N` said, for people.
    pub link: String,
    /// Locks that belong to the open file description: flock(2) and `F_OFD_SETLK`.
    pub locks: Vec<super::lock::Lock>,
    /// What it is.
    pub kind: FileKind,
}

/// The kinds of open file that are supported, one file each in this folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file, directory or `O_PATH` by its path.
    Regular(super::regular::Regular),
    /// Pipe or FIFO end.
    Pipe(super::pipe::PipeEnd),
    /// Character device that is opened anew by path.
    Device(super::device::Device),
    /// A terminal.
    Terminal(super::terminal::Terminal),
    /// memfd or shared memory without a name.
    Memory(super::shared::SharedMemory),
}
