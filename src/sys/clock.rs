//! Clocks: `CLOCK_MONOTONIC`, and how the scheduler's clock relates to it.

use super::proc::{read, sched};
use nix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;
use std::time::Duration;

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// What must be added to `se.exec_start` of `/proc/TID/sched` to get `CLOCK_MONOTONIC`, in nanoseconds.
/// A task that has just been switched in shows the present instant there.
pub fn scheduler_offset_ns() -> i64 {
    static OFFSET: OnceLock<i64> = OnceLock::new();
    *OFFSET.get_or_init(|| {
        std::thread::sleep(Duration::from_nanos(1));
        let now = monotonic_ns() as i64;
        let own = read::read(std::process::id() as i32, "sched").map(|t| sched::parse(&t)).unwrap_or_default();
        own.exec_start_ns.map_or(0, |start| now - start as i64)
    })
}
