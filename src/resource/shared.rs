//! Memory that has no file: shared anonymous mappings, memfd, and files deleted while in use.
//! Each is an [`Object`] whose pages travel in the image.

use super::graph::{Key, Part};
use super::memory::ObjectId;
use super::path::FilePath;
use serde::{Deserialize, Serialize};

/// A descriptor of such an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedMemory {
    /// Which object.
    pub object: ObjectId,
}

/// How the object is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Origin {
    /// `mmap(MAP_SHARED | MAP_ANONYMOUS)`.
    Anonymous,
    /// memfd_create(2).
    Memfd {
        /// Name without `memfd:`.
        name: FilePath,
        /// `F_GET_SEALS`.
        seals: u32,
    },
    /// A file that was deleted while open, made again at its path and deleted again.
    Deleted {
        /// Path where it was.
        path: FilePath,
        /// `st_mode`.
        mode: u32,
        /// Owner: uid, gid.
        owner: (u32, u32),
    },
}

impl SharedMemory {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("memfd").needs(Key::Object(self.object))
    }
}

impl Origin {
    /// Name of its kind, for the graph.
    pub fn kind(&self) -> &'static str {
        match self {
            Origin::Anonymous => "shared memory",
            Origin::Memfd { .. } => "memfd",
            Origin::Deleted { .. } => "deleted file",
        }
    }
}

/// Bytes that belong to no single address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Its number; [`crate::image::Owner::Object`] in page sections.
    pub id: ObjectId,
    /// How it is made again.
    pub origin: Origin,
    /// Size in bytes.
    pub size: u64,
}
