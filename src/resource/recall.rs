//! What one look at a tree found out, and what the next one need not find out again. None of it is believed without a
//! sign that it is still true: here a file that has the same number, size and time.

use crate::tracee::foothold::Known;
use crate::tracee::wait_time::Deadlines;
use std::collections::{BTreeSet, HashMap};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device, inode, size, time of last modification.
type Content = (u64, u64, u64, (i64, i64));

/// What was found out before.
#[derive(Debug, Default)]
pub struct Recall {
    /// Where files hold instructions that tasks can be made to run.
    pub footholds: Known,
    /// The mappings of large processes, as they were just now.
    pub glance: super::glance::Glance,
    /// What need not be asked for again.
    pub quiet: Option<super::quiet::Quiet>,
    /// Options of connections.
    pub connections: super::socket::steady::Connections,
    /// Half-open connections.
    pub begun: super::socket::begun::Begun,
    /// Files in memory of mount namespaces of the tree's own.
    pub files: super::mount::Files,
    /// Pipes that nobody outside of the tree held when that was looked for.
    pub pipes: BTreeSet<String>,
    /// Until when interrupted tasks wait.
    pub deadlines: Deadlines,
    build_ids: HashMap<Content, Option<Vec<u8>>>,
}

impl Recall {
    /// The GNU build id of a file that `meta` belongs to.
    pub fn build_id(&mut self, path: &Path, meta: &Metadata) -> Option<Vec<u8>> {
        let content = (meta.dev(), meta.ino(), meta.len(), (meta.mtime(), meta.mtime_nsec()));
        self.build_ids.entry(content).or_insert_with(|| super::memory::build_id(path)).clone()
    }
}
