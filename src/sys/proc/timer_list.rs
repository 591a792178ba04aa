//! /proc/timer_list: proc_timer_list(5).

use super::text::{decimal, int, lines, malformed, missing, split_once};
use crate::error::Result;

/// All pending high-resolution timers of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimerList {
    /// `CLOCK_MONOTONIC` when the text was made, in nanoseconds.
    pub now_ns: u64,
    /// The timers, by processor and clock base, soonest first in each.
    pub timers: Vec<HrTimer>,
}

/// One pending high-resolution timer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HrTimer {
    /// Processor on whose queue it is.
    pub cpu: i32,
    /// Index of the clock base (kernel/time/hrtimer.c): 0 monotonic, 1 realtime,
    /// 2 boottime, 3 TAI, and from 4 on the same for timers run in softirq.
    pub base_index: u32,
    /// The timer's address as shown: hashed, or all the same under `kptr_restrict`.
    pub address: Vec<u8>,
    /// The kernel function that it calls: `it_real_fn`, `posix_timer_fn`, `hrtimer_wakeup`.
    pub function: Vec<u8>,
    /// When it may expire at the earliest, in nanoseconds of the clock base.
    pub softexpires_ns: u64,
    /// When it must expire at the latest, in nanoseconds of the clock base.
    pub expires_ns: u64,
}

/// Parses /proc/timer_list; only the timers, not the tick devices.
pub fn parse(text: &[u8]) -> Result<TimerList> {
    let mut now_ns = None;
    let mut timers = Vec::new();
    let (mut cpu, mut base_index) = (0, 0);
    // A timer is two lines, of which the second has the times.
    let mut begun = None;
    for line in lines(text) {
        let bad = || malformed("timer_list", line);
        let line = line.trim_ascii_start();
        if let Some(rest) = line.strip_prefix(b"now at ") {
            now_ns = Some(rest.strip_suffix(b" nsecs").and_then(decimal).ok_or_else(bad)?);
        } else if let Some(rest) = line.strip_prefix(b"cpu: ") {
            cpu = int(rest).ok_or_else(bad)?;
        } else if let Some(rest) = line.strip_prefix(b".index:") {
            base_index = decimal(rest.trim_ascii()).and_then(|i| u32::try_from(i).ok()).ok_or_else(bad)?;
        } else if let Some(rest) = line.strip_prefix(b"# expires at ") {
            let (softexpires_ns, expires_ns) = range(rest).ok_or_else(bad)?;
            let timer: HrTimer = begun.take().ok_or_else(bad)?;
            timers.push(HrTimer { softexpires_ns, expires_ns, ..timer });
        } else if line.starts_with(b"#") {
            let (address, function) = timer(line).ok_or_else(bad)?;
            let (address, function) = (address.to_vec(), function.to_vec());
            begun = Some(HrTimer { cpu, base_index, address, function, ..HrTimer::default() });
        }
    }
    Ok(TimerList { now_ns: now_ns.ok_or_else(|| missing("timer_list", "`now at`"))?, timers })
}

/// `#0: <00000000801377e4>, tick_nohz_handler, S:01`
fn timer(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, rest) = split_once(line, b'<')?;
    let (address, rest) = split_once(rest, b'>')?;
    let (function, _) = split_once(rest.strip_prefix(b", ")?, b',')?;
    Some((address, function))
}

/// `1688972000000-1688972050000 nsecs [in 1277084 to 1327084 nsecs]`
fn range(rest: &[u8]) -> Option<(u64, u64)> {
    let (soft, rest) = split_once(rest, b'-')?;
    let (hard, _) = split_once(rest, b' ')?;
    Some((decimal(soft)?, decimal(hard)?))
}
