//! Interval timers and POSIX timers.

use serde::{Deserialize, Serialize};

/// One POSIX timer, as timer_create(2) made it and timer_gettime(2) shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosixTimer {
    /// Timer id.
    pub id: i32,
    /// Clock id.
    pub clock: i32,
    /// `SIGEV_*`, possibly with `SIGEV_THREAD_ID`.
    pub notify: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// Thread that is notified, with `SIGEV_THREAD_ID`.
    pub tid: i32,
    /// Interval in nanoseconds.
    pub interval_ns: u64,
    /// Time left in nanoseconds; 0 when disarmed.
    pub remaining_ns: u64,
    /// Overruns counted so far.
    pub overrun: i32,
}

/// The timers of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timers {
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`: (interval, remaining) in microseconds.
    pub interval: [(u64, u64); 3],
    /// POSIX timers.
    pub posix: Vec<PosixTimer>,
}
