//! timerfd_create(2): timers as something to read.
//!
//! A relative timer has the time left to it that it had: the clock stands still while the tree is away. An absolute one
//! keeps its instant, and has expired when that has passed, as often as its interval fits.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use crate::error::{Context, Error, Result};
use crate::sys::anon;
use crate::sys::proc::fdinfo::{self, FdInfo};
use crate::sys::proc::read;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One timer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimerFd {
    /// Clock id.
    pub clock: i32,
    /// `TFD_TIMER_*` with which it was armed.
    pub flags: u32,
    /// Time left in nanoseconds; 0 when it is disarmed or has expired for good.
    pub remaining_ns: u64,
    /// Instant on its clock in nanoseconds, when it was armed with `TFD_TIMER_ABSTIME` and is still to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ns: Option<u64>,
    /// Interval in nanoseconds.
    pub interval_ns: u64,
    /// Expirations that have not been read.
    pub ticks: u64,
}

/// What proc_pid_fdinfo(5) shows of a timer.
fn parse(info: &FdInfo) -> Option<TimerFd> {
    Some(TimerFd {
        clock: info.decimal("clockid")?.try_into().ok()?,
        flags: info.octal("settime flags")?.try_into().ok()?,
        remaining_ns: nanoseconds(info.value("it_value")?)?,
        deadline_ns: None,
        interval_ns: nanoseconds(info.value("it_interval")?)?,
        ticks: info.decimal("ticks")?,
    })
}

/// `(seconds, nanoseconds)`.
fn nanoseconds(value: &[u8]) -> Option<u64> {
    let inner = value.strip_prefix(b"(")?.strip_suffix(b")")?;
    let (seconds, rest) = std::str::from_utf8(inner).ok()?.split_once(", ")?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(rest.parse().ok()?)
}

/// The present instant on a timer's clock. Those that wake the machine run with those that do not.
fn now_ns(clock: i32) -> Result<u64> {
    let clock = match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => other,
    };
    let now = clock_gettime(ClockId::from_raw(clock))?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// Saves a timer.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let again = || read::parsed(found.pid, &format!("fdinfo/{}", found.fd), fdinfo::parse);
    let mut timer = parse(&found.info);
    if timer.as_ref().is_some_and(|t| t.remaining_ns == 0 && t.ticks == 0) {
        // Nothing left and nothing counted is also how it looks while it expires.
        timer = parse(&again()?);
    }
    let Some(mut timer) = timer else {
        capture.refuse(found.pid, found.object(), "its state cannot be read", "close it first");
        return Ok(None);
    };
    let once = timer.interval_ns == 0;
    if once && timer.ticks != 0 && timer.remaining_ns != 0 {
        let advice = "let the program read it first: try again a moment later";
        capture.refuse(found.pid, found.object(), "the clock has been set, and it has not been told yet (TFD_TIMER_CANCEL_ON_SET)", advice);
        return Ok(None);
    }
    if capture.standing && !once && timer.ticks != 0 && timer.remaining_ns == 0 {
        // It has expired and stands still until it is read. When its next round ends only timerfd_gettime(2) tells,
        // which lets the round begin as a read would; what a read will count stays the same.
        anon::timer_left_ns(found.duplicate()?.as_fd()).context(|| "asking a timer")?;
        timer = parse(&again()?).ok_or_else(|| Error::other("a timer cannot be read any more"))?;
    }
    if timer.flags & libc::TFD_TIMER_ABSTIME as u32 != 0 && timer.remaining_ns != 0 {
        timer.deadline_ns = Some(now_ns(timer.clock)? + timer.remaining_ns);
    }
    Ok(Some(FileKind::TimerFd(timer)))
}

impl TimerFd {
    /// The timer again, still disarmed.
    pub fn make(&self) -> Result<OwnedFd> {
        anon::timerfd(self.clock, libc::TFD_CLOEXEC).context(|| format!("making a timer on clock {}", self.clock))
    }

    /// Starts it, when the tree is about to go on.
    pub fn arm(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let (value, flags) = match self.deadline_ns {
            Some(deadline) => (deadline, self.flags as i32),
            None => (self.remaining_ns, self.flags as i32 & !libc::TFD_TIMER_ABSTIME),
        };
        anon::set_timer(fd, flags, value, self.interval_ns).context(|| "arming a timer")?;
        if self.ticks != 0 {
            anon::set_ticks(fd, self.ticks).context(|| "setting the expirations of a timer")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str, value: &str) -> Option<TimerFd> {
        let mut lines = vec![("clockid", "1"), ("ticks", "0"), ("settime flags", "00"), ("it_value", "(0, 1)"), ("it_interval", "(0, 0)")];
        for line in lines.iter_mut().filter(|l| l.0 == name) {
            line.1 = value;
        }
        parse(&FdInfo { extra: lines.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect(), ..FdInfo::default() })
    }

    #[test]
    fn lines_of_fdinfo() {
        let plain = TimerFd { clock: 1, remaining_ns: 1, ..TimerFd::default() };
        assert_eq!(shown("", ""), Some(plain.clone()));
        assert_eq!(shown("settime flags", "03"), Some(TimerFd { flags: 3, ..plain.clone() }));
        assert_eq!(shown("it_value", "(99999, 440206590)"), Some(TimerFd { remaining_ns: 99_999_440_206_590, ..plain }));
        for bad in ["(18446744073709551615, 0)", "(1 2)", "1, 2", ""] {
            assert_eq!(shown("it_interval", bad), None);
        }
    }
}
