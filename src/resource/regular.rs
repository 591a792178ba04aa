//! Regular files, directories and `O_PATH` descriptors.

use super::memory::ObjectId;
use serde::{Deserialize, Serialize};

/// How the file is found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regular {
    /// Absolute path, without the kernel's ` (deleted)`.
    pub path: String,
    /// `st_mode`.
    pub mode: u32,
    /// Size in bytes when it was saved.
    pub size: u64,
    /// Owner: uid, gid.
    pub owner: (u32, u32),
    /// When the file was deleted while open: its content.
    pub deleted: Option<ObjectId>,
}
