//! Character devices without state of their own: null, zero, full, random, urandom.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::Part;
use super::path::FilePath;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;

/// A device that is simply opened again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Absolute path.
    pub path: FilePath,
    /// Major and minor number, checked at restore.
    pub number: (u32, u32),
}

impl Device {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("device")
    }
}

/// Memory devices (major 1) that keep nothing for their openers: null, zero, full, random, urandom.
const STATELESS: [u32; 5] = [3, 5, 7, 8, 9];

/// Saves a device; refuses those with a state of their own.
pub fn capture(found: &Found, capture: &mut Capture) -> Option<FileKind> {
    let number = (libc::major(found.meta.rdev()), libc::minor(found.meta.rdev()));
    if number.0 == 1 && STATELESS.contains(&number.1) && !found.link.ends_with(b" (deleted)") {
        return Some(FileKind::Device(Device { path: FilePath::from(found.link.as_slice()), number }));
    }
    let reason = match number {
        (5, 2) => "the master side of a terminal is not supported yet".to_owned(),
        (major, minor) => format!("character device {major}:{minor} keeps a state that cannot be read"),
    };
    capture.refuse(found.pid, found.object(), reason, "close it first");
    None
}
