//! signalfd(2): signals as something to read. The signals themselves are pending with the process.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use crate::error::{Context, Result};
use crate::sys::anon;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// One signalfd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalFd {
    /// Signals that it takes; bit n is signal n + 1.
    pub mask: u64,
}

/// Saves a signalfd.
pub fn capture(found: &Found, capture: &mut Capture) -> Option<FileKind> {
    let Some(mask) = found.info.hex("sigmask") else {
        capture.refuse(found.pid, found.object(), "its mask cannot be read", "close it first");
        return None;
    };
    Some(FileKind::SignalFd(SignalFd { mask }))
}

impl SignalFd {
    /// The signalfd again.
    pub fn make(&self) -> Result<OwnedFd> {
        anon::signalfd(self.mask, libc::SFD_CLOEXEC).context(|| "making a signalfd")
    }
}
