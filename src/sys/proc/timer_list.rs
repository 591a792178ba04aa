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

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn timers_of_6_18() {
        let list = parse(fixture!("6.18/timer_list")).unwrap();
        assert_eq!(list.timers.len(), 14);
        let one = |function: &[u8]| list.timers.iter().find(|t| t.function == function).unwrap();
        let real = one(b"it_real_fn");
        assert_eq!((real.cpu, real.base_index, &*real.address), (1, 0, &b"000000009bc8fb7a"[..]));
        assert_eq!((real.softexpires_ns, real.expires_ns), (7_171_337_242_649, 7_171_337_242_649));
        // setitimer(2) was called with 5000.000007 s.
        assert!(real.expires_ns - list.now_ns < 5_000_000_007_000);
        let wakeup = list.timers.iter().find(|t| t.address == b"000000001e6906b1").unwrap();
        assert_eq!((wakeup.softexpires_ns, wakeup.expires_ns), (2_174_242_768_589, 2_174_245_613_588));
        assert_eq!(one(b"watchdog_timer_fn").cpu, 0);
    }

    #[test]
    fn timers_of_5_10() {
        let list = parse(fixture!("5.10/timer_list")).unwrap();
        assert_eq!((list.now_ns, list.timers.len()), (5_000_000_000, 4));
        let places: Vec<_> = list.timers.iter().map(|t| (t.cpu, t.base_index)).collect();
        assert_eq!(places, [(0, 0), (0, 0), (0, 1), (11, 2)]);
        assert_eq!(list.timers[1].address, b"(____ptrval____)");
        assert_eq!(list.timers[2].function, b"timerfd_tmrproc [timerfd]");
        assert_eq!(list.timers[2].expires_ns, i64::MAX as u64);
    }

    #[test]
    fn damaged_lists_are_refused() {
        assert_eq!(parse(b"cpu: 0\n").unwrap_err().message, "timer_list: no `now at`");
        for bad in [&b"now at 1 nsecs\n # expires at 1-2 nsecs [in]\n"[..], b"now at 1 nsecs\n #0: <1>\n", b"now at x nsecs\n"] {
            assert!(parse(bad).is_err());
        }
    }
}
