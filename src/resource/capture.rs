//! What a capture gathers over all processes: tables of shared things, and everything that stands in the way.

use super::{
    descriptor::FileId, descriptor::OpenFile, memory::MappedFile, memory::ObjectId, path::FilePath, pipe::Pipe, shared::Object,
    shared::Origin, terminal::TerminalState,
};
use crate::error::Refusal;
use std::collections::HashMap;
use std::fs::File;

/// Where the content of an object is read from while the tree is stopped.
#[derive(Debug)]
pub struct Source {
    /// Open for reading.
    pub file: File,
}

/// What the user decided about things that would be refused, each written `KIND:ID`; recorded in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decisions {
    /// Kept by name only: the other side lives outside of the tree and is looked for again at the restore.
    pub external: Vec<String>,
    /// Left out of the image.
    pub ignore: Vec<String>,
}

/// The tables of one capture.
#[derive(Debug, Default)]
pub struct Capture {
    /// The tree stands still: what is read stays true, and what only a stopped tree may be asked can be asked.
    pub standing: bool,
    /// Open file descriptions.
    pub files: Vec<OpenFile>,
    /// For each of `files`: a process and descriptor that lead to it.
    pub holders: Vec<(i32, i32)>,
    /// Open file descriptions by (device, inode), each list in the order of kcmp(2).
    pub file_index: HashMap<(u64, u64), Vec<FileId>>,
    /// Pipes, with their inode.
    pub pipes: Vec<Pipe>,
    /// Inode of each of `pipes`.
    pub pipe_inodes: Vec<u64>,
    /// Terminals.
    pub terminals: Vec<TerminalState>,
    /// Files that are mapped.
    pub mapped: Vec<MappedFile>,
    /// Place of a path in `mapped`.
    pub mapped_index: HashMap<FilePath, u32>,
    /// Objects whose content travels in the image.
    pub objects: Vec<Object>,
    /// Content of each of `objects`.
    pub sources: Vec<Source>,
    /// (device, inode) of each of `objects`.
    pub object_index: HashMap<(u64, u64), ObjectId>,
    /// seccomp(2) filters.
    pub filters: super::seccomp::Filters,
    /// Everything that cannot be saved.
    pub refusals: Vec<Refusal>,
    /// What is worth knowing and changes nothing.
    pub notes: Vec<String>,
    /// Descriptors among that.
    pub lost: Vec<super::graph::Lost>,
    /// What the user decided about some of it.
    pub decisions: Decisions,
}

impl Decisions {
    /// Whether the user wants `KIND:ID` to be looked for outside of the tree.
    pub fn external(&self, id: &str) -> bool {
        self.external.iter().any(|e| e == id)
    }

    /// Whether the user wants `KIND:ID` to be left out.
    pub fn ignores(&self, id: &str) -> bool {
        self.ignore.iter().any(|i| i == id)
    }
}

impl Capture {
    /// Notes that something cannot be saved.
    pub fn refuse(&mut self, pid: i32, object: impl Into<String>, reason: impl Into<String>, advice: impl Into<String>) {
        self.refusals.push(Refusal { pid, object: object.into(), reason: reason.into(), advice: advice.into(), ..Refusal::default() });
    }

    /// The object behind (device, inode); `open` is asked for its content the first time.
    pub fn object(
        &mut self,
        identity: (u64, u64),
        open: impl FnOnce() -> crate::error::Result<(Origin, File)>,
    ) -> crate::error::Result<ObjectId> {
        if let Some(&id) = self.object_index.get(&identity) {
            return Ok(id);
        }
        let (origin, file) = open()?;
        let id = self.objects.len() as ObjectId;
        self.objects.push(Object { id, origin, size: file.metadata()?.len() });
        self.sources.push(Source { file });
        self.object_index.insert(identity, id);
        Ok(id)
    }
}
