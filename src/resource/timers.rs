//! Interval timers and POSIX timers.

use crate::error::Result;
use crate::sys::proc;
use crate::tracee::inject::Injector;
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

impl Timers {
    /// Asks a stopped process for its timers. `listed` is the parsed `/proc/PID/timers`.
    pub fn capture(run: &mut Injector<'_>, listed: &[proc::timers::Timer]) -> Result<Self> {
        let mut timers = Timers::default();
        for which in 0..3 {
            run.must(libc::SYS_getitimer, [which as u64, run.out(), 0, 0, 0, 0])?;
            let [interval_s, interval_us, value_s, value_us] = words(run.get(0)?);
            timers.interval[which] = (interval_s * 1_000_000 + interval_us, value_s * 1_000_000 + value_us);
        }
        for t in listed {
            run.must(libc::SYS_timer_gettime, [t.id as u64, run.out(), 0, 0, 0, 0])?;
            let [interval_s, interval_ns, value_s, value_ns] = words(run.get(0)?);
            let overrun = run.call(libc::SYS_timer_getoverrun, [t.id as u64, 0, 0, 0, 0, 0])?;
            timers.posix.push(PosixTimer {
                id: t.id,
                clock: t.clock,
                notify: t.sigev_notify(),
                signal: t.signal,
                value: t.value,
                tid: t.target,
                interval_ns: interval_s * 1_000_000_000 + interval_ns,
                remaining_ns: value_s * 1_000_000_000 + value_ns,
                overrun: overrun.max(0) as i32,
            });
        }
        Ok(timers)
    }
}

fn words(raw: [u8; 32]) -> [u64; 4] {
    std::array::from_fn(|i| u64::from_le_bytes(raw[i * 8..i * 8 + 8].try_into().unwrap_or_default()))
}
