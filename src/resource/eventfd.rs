//! eventfd(2): counters.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use crate::error::{Context, Result};
use crate::sys::{anon, apart};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
    // The kernel's own users can bring a counter to its end, no write(2) can.
    if count == Some(u64::MAX) {
        capture.refuse(found.pid, found.object(), "its counter has overflown", "let the program read it first");
        return None;
    }
    let Some(count) = count else {
        capture.refuse(found.pid, found.object(), "this kernel does not show its counter", "close it first");
        return None;
    };
    // Linux 6.5 shows it. While it runs it is not tried.
    let semaphore = found.info.decimal("eventfd-semaphore");
    if semaphore.is_none() && capture.standing {
        capture.untried.push((found.pid, found.fd));
    }
    Some(FileKind::EventFd(EventFd { count, semaphore: semaphore.is_some_and(|s| s != 0) }))
}

/// Finds out, before Linux 6.5, which counters give one at a time. Only reading tells, which takes from the counter: a keeper does that.
/// What it puts back is news to those who watch the counter: an edge-triggered entry of epoll(7) that has reported it reports it once
/// more. So it is done when all else is known, what waits to be reported above all.
pub fn resolve(capture: &mut Capture) {
    for holder in std::mem::take(&mut capture.untried) {
        let Some(&id) = capture.descriptors.get(&holder) else { continue };
        let fd = capture.duplicate(holder);
        let FileKind::EventFd(counter) = &mut capture.files[id as usize].kind else { continue };
        let count = counter.count;
        match fd.and_then(|fd| apart::keep(|| gives_one(fd.as_fd(), count))) {
            Ok(one) => counter.semaphore = one,
            Err(e) => {
                let object = format!("fd {} ({})", holder.1, capture.files[id as usize].link);
                let advice = "use Linux 6.5 or newer, or close it";
                capture.refuse(holder.0, object, format!("this kernel does not tell all about it, and trying it failed: {e}"), advice);
            }
        }
    }
}

/// Whether a counter gives one at a time: with two or more in it a read shows that. It is as before afterwards.
fn gives_one(fd: BorrowedFd<'_>, count: u64) -> Result<bool> {
    let doing = || "trying an eventfd";
    let add = |n: u64| if n == 0 { Ok(()) } else { anon::add_ticks(fd, n).context(doing) };
    let more = if count < 2 { 2 } else { 0 };
    add(more)?;
    let taken = anon::take_ticks(fd).context(doing)?;
    if taken != 1 {
        add(taken - more.min(taken))?;
        return Ok(false);
    }
    if more == 0 {
        add(1)?;
    } else {
        anon::take_ticks(fd).context(doing)?;
    }
    Ok(true)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_can_be_tried() {
        for semaphore in [false, true] {
            for count in [0, 1, 2, 3, 1 << 40, u64::MAX - 1] {
                let fd = EventFd { count, semaphore }.make().expect("eventfd");
                assert_eq!(gives_one(fd.as_fd(), count).expect("tried"), semaphore, "{count}");
                let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fd))).expect("fdinfo");
                let now = text.lines().find_map(|l| l.strip_prefix("eventfd-count:")).expect("its counter").trim().to_owned();
                assert_eq!(u64::from_str_radix(&now, 16).expect("hexadecimal"), count, "semaphore: {semaphore}");
            }
        }
    }
}
