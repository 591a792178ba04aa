//! Clocks: `CLOCK_MONOTONIC`, and how the scheduler's clock relates to it.

use super::proc::sched;
use super::task::Pinned;
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// What must be added to `se.exec_start` of `/proc/TID/sched` to get `CLOCK_MONOTONIC`, in nanoseconds, for tasks that
/// were switched out on `cpu`. Each CPU has its own: its clock leaves out what interrupts and the hypervisor took.
/// Measured once per CPU, which takes some 300 µs; `None` where the kernel does not tell.
pub fn scheduler_offset_ns(cpu: usize) -> Option<i64> {
    static OFFSETS: Mutex<BTreeMap<usize, Option<i64>>> = Mutex::new(BTreeMap::new());
    let mut offsets = OFFSETS.lock().unwrap_or_else(PoisonError::into_inner);
    *offsets.entry(cpu).or_insert_with(|| measure(cpu))
}

/// A task that has just been switched in shows that instant, so the present instant is a bound, and a tight one.
fn measure(cpu: usize) -> Option<i64> {
    let _pinned = Pinned::to(cpu);
    let own = format!("/proc/self/task/{}/sched", nix::unistd::gettid());
    let sample = || {
        std::thread::sleep(Duration::from_nanos(1));
        let start = sched::parse(&std::fs::read(&own).ok()?).exec_start_ns?;
        Some(monotonic_ns() as i64 - start as i64)
    };
    (0..4).filter_map(|_| sample()).min()
}
