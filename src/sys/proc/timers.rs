//! /proc/PID/timers: proc_pid_timers(5).

use super::text::{hex, int, lines, malformed, split_once};
use crate::error::Result;

/// How the expiration of a timer is told, `sigev_notify` of sigevent(3type).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Notify {
    /// `SIGEV_SIGNAL`.
    #[default]
    Signal,
    /// `SIGEV_NONE`.
    None,
    /// `SIGEV_THREAD`.
    Thread,
}

/// One POSIX timer, as proc_pid_timers(5) shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timer {
    /// Timer id, as timer_create(2) gave it.
    pub id: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// How the expiration is told.
    pub notify: Notify,
    /// `SIGEV_THREAD_ID`: the signal goes to the thread `target` instead of the process `target`.
    pub thread_id: bool,
    /// The process or thread that is told, in the reader's pid namespace; 0 when that is gone.
    pub target: i32,
    /// Clock id of clock_gettime(2); negative ones are clocks of a process or thread.
    pub clock: i32,
}

impl Timer {
    /// `sigev_notify` as timer_create(2) takes it.
    pub fn sigev_notify(&self) -> i32 {
        let notify = match self.notify {
            Notify::Signal => libc::SIGEV_SIGNAL,
            Notify::None => libc::SIGEV_NONE,
            Notify::Thread => libc::SIGEV_THREAD,
        };
        if self.thread_id { notify | libc::SIGEV_THREAD_ID } else { notify }
    }
}

/// Parses /proc/PID/timers.
pub fn parse(text: &[u8]) -> Result<Vec<Timer>> {
    let mut timers = Vec::new();
    // Lines of the last timer that are still to come; every timer has all of them.
    let mut seen = 0;
    for line in lines(text) {
        let bad = || malformed("timers", line);
        let (key, value) = split_once(line, b':').ok_or_else(bad)?;
        let value = value.trim_ascii();
        if key == b"ID" {
            if seen != 3 && !timers.is_empty() {
                return Err(bad());
            }
            timers.push(Timer { id: int(value).ok_or_else(bad)?, ..Timer::default() });
            seen = 0;
        } else {
            seen += set(timers.last_mut().ok_or_else(bad)?, key, value).ok_or_else(bad)?;
        }
    }
    if seen != 3 && !timers.is_empty() {
        return Err(malformed("timers", b"an unfinished timer"));
    }
    Ok(timers)
}

/// Returns how many of the three lines after `ID` this one is: 1, or 0 for one that is not known.
fn set(timer: &mut Timer, key: &[u8], value: &[u8]) -> Option<usize> {
    match key {
        b"signal" => {
            let (signal, pointer) = split_once(value, b'/')?;
            timer.signal = int(signal)?;
            timer.value = hex(pointer)?;
        }
        b"notify" => {
            let (notify, target) = split_once(value, b'/')?;
            let (kind, id) = split_once(target, b'.')?;
            timer.notify = match notify {
                b"signal" => Notify::Signal,
                b"none" => Notify::None,
                b"thread" => Notify::Thread,
                _ => return None,
            };
            timer.thread_id = match kind {
                b"tid" => true,
                b"pid" => false,
                _ => return None,
            };
            timer.target = int(id)?;
        }
        b"ClockID" => timer.clock = int(value)?,
        _ => return Some(0),
    }
    Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn each_way_to_notify() {
        let timers = parse(fixture!("6.18/timers")).unwrap();
        assert_eq!(timers.iter().map(|t| (t.id, t.clock)).collect::<Vec<_>>(), [(2, -6), (1, 0), (0, 1)]);
        let ways: Vec<_> = timers.iter().map(Timer::sigev_notify).collect();
        assert_eq!(ways, [libc::SIGEV_NONE, libc::SIGEV_SIGNAL | libc::SIGEV_THREAD_ID, libc::SIGEV_SIGNAL]);
        assert!(timers.iter().all(|t| t.signal == 34 && t.value == 0x7fff_86e4_52a8 && t.target == 11678));
        let thread = &parse(fixture!("5.10/timers")).unwrap()[0];
        assert_eq!((thread.id, thread.sigev_notify(), thread.value), (3, libc::SIGEV_THREAD, 0xdead_beef));
        assert_eq!((thread.signal, thread.target, thread.clock), (0, 0, libc::CLOCK_BOOTTIME));
    }

    #[test]
    fn half_timers_are_refused() {
        assert_eq!(parse(fixture!("6.1/timers")).unwrap(), []);
        let text = fixture!("6.18/timers");
        for cut in ["ClockID: -6\n", "ID: 2\n", "notify: none/pid.11678\n"] {
            let found = text.windows(cut.len()).position(|w| w == cut.as_bytes()).unwrap();
            let without = [&text[..found], &text[found + cut.len()..]].concat();
            assert!(parse(&without).is_err(), "without {cut}");
        }
        assert!(parse(&text[..text.len() - "ClockID: 1\n".len()]).is_err());
        assert!(parse(b"ID: 1\nsignal: 1/0\nnotify: pigeon/pid.1\nClockID: 0\n").is_err());
    }
}
