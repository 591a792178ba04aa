//! eventfd(2): counters.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use crate::error::{Context, Result};
use crate::sys::anon;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

/// One counter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventFd {
    /// Its value.
    pub count: u64,
    /// `EFD_SEMAPHORE`: a read takes one.
    pub semaphore: bool,
}

/// Saves a counter.
pub fn capture(found: &Found, capture: &mut Capture) -> Option<FileKind> {
    let count = found.info.hex("eventfd-count");
    // Linux 6.5 shows it; before, only reading tells, which takes from the counter.
    let semaphore = found.info.decimal("eventfd-semaphore");
    match (count, semaphore) {
        // The kernel's own users can bring a counter to its end, no write(2) can.
        (Some(u64::MAX), _) => capture.refuse(found.pid, found.object(), "its counter has overflown", "let the program read it first"),
        (Some(count), Some(semaphore)) => return Some(FileKind::EventFd(EventFd { count, semaphore: semaphore != 0 })),
        _ => capture.refuse(
            found.pid,
            found.object(),
            "this kernel does not tell all about an eventfd",
            "use Linux 6.5 or newer, or close it",
        ),
    }
    None
}

impl EventFd {
    /// The counter again.
    pub fn make(&self) -> Result<OwnedFd> {
        let semaphore = if self.semaphore { libc::EFD_SEMAPHORE } else { 0 };
        let fd = anon::eventfd(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | semaphore).context(|| "making an eventfd")?;
        if self.count != 0 {
            // eventfd(2) itself takes 32 bits only.
            let mut file = File::from(fd.try_clone()?);
            file.write_all(&self.count.to_ne_bytes()).context(|| "setting the counter of an eventfd")?;
        }
        Ok(fd)
    }
}
