//! Memory that has no file: shared anonymous mappings, memfd, and files deleted while in use.
//! Each is an [`Object`] whose pages travel in the image.

use super::graph::{Key, Part};
use super::memory::ObjectId;
use super::path::FilePath;
use crate::error::Result;
use crate::sys::file;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

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
        /// `st_mode`, when it is not what memfd_create(2) gives.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
        /// Owner: uid, gid, when it is not root.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<(u32, u32)>,
    },
    /// A file that was deleted while open, made again at its path and deleted again.
    Deleted {
        /// Path where it was.
        path: FilePath,
        /// `st_mode`.
        mode: u32,
        /// Owner: uid, gid.
        owner: (u32, u32),
        /// The mount namespace that the path belongs to, when that is not meio's: its number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<u32>,
    },
    /// A file in memory of a mount namespace, which makes it; its times are set when its content is there.
    Mounted {
        /// Number of the namespace.
        namespace: u32,
        /// Path as the namespace's root sees it.
        path: FilePath,
        /// Last access and last change: seconds, nanoseconds.
        times: [(i64, i64); 2],
    },
    /// A System V segment: see [`super::system_v`].
    SystemV {
        /// Its id.
        id: i32,
    },
}

impl SharedMemory {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("memfd").needs(Key::Object(self.object))
    }
}

impl Origin {
    /// What a memfd is made of.
    pub fn memfd(name: &[u8], file: &File) -> Result<Origin> {
        const NEW: u32 = libc::S_IFREG | 0o777;
        let meta = file.metadata()?;
        Ok(Origin::Memfd {
            name: FilePath::from(name),
            seals: file::seals(file).unwrap_or(0),
            mode: Some(meta.mode()).filter(|&mode| mode != NEW),
            owner: Some((meta.uid(), meta.gid())).filter(|&owner| owner != (0, 0)),
        })
    }

    /// Name of its kind, for the graph.
    pub fn kind(&self) -> &'static str {
        match self {
            Origin::Anonymous => "shared memory",
            Origin::Memfd { .. } => "memfd",
            Origin::Deleted { .. } => "deleted file",
            Origin::Mounted { .. } => "file in memory",
            Origin::SystemV { .. } => "System V shared memory",
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
