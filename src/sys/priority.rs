//! Running before all others for a moment, sched(7): while a tree stands still nothing else on the machine is as urgent as who
//! lets it go on, and who waits for a processor behind its clients makes them all wait.

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    /// The calling thread is [`Urgent`].
    static URGENT: Cell<bool> = const { Cell::new(false) };
}

/// While this lives the thread that made it runs before all that are not urgent (`SCHED_FIFO`), if it may (`CAP_SYS_NICE`); who is
/// born of it does not. It must not wait for others without sleeping.
#[derive(Debug)]
pub struct Urgent {
    /// The policy to go back to.
    before: Option<i32>,
    /// It is of one thread.
    _here: PhantomData<*const ()>,
}

impl Urgent {
    /// Nothing happens to a thread that has a policy of its own already.
    pub fn begin() -> Urgent {
        // SAFETY: no memory is passed.
        let now = unsafe { libc::sched_getscheduler(0) };
        let usual = matches!(now, libc::SCHED_OTHER | libc::SCHED_BATCH);
        let urgent = usual && set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
        URGENT.with(|of_thread| of_thread.set(urgent || of_thread.get()));
        Urgent { before: urgent.then_some(now), _here: PhantomData }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            set(before, 0);
            URGENT.with(|of_thread| of_thread.set(false));
        }
    }
}

/// Has the child of an urgent thread that is born in `work` be urgent, too.
pub fn inherited<T>(work: impl FnOnce() -> T) -> T {
    if !URGENT.with(Cell::get) {
        return work();
    }
    set(libc::SCHED_FIFO, 1);
    let done = work();
    set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
    done
}

/// Of the calling thread.
fn set(policy: i32, priority: i32) -> bool {
    // SAFETY: a structure of numbers, for which zero will do.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = priority;
    // SAFETY: the structure outlives the call.
    unsafe { libc::sched_setscheduler(0, policy, &raw const param) == 0 }
}

/// From now on whoever wakes may run instead of the calling thread after a tenth of a millisecond: it has much to do, and nobody waits
/// for it. Its share stays the same (`sched_attr.sched_runtime`, Linux 6.12; no difference before).
pub fn yields_soon() {
    const SLICE: u64 = 100_000;
    // SAFETY: a structure of numbers, for which zero will do.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    (attributes.size, attributes.sched_runtime) = (size_of::<libc::sched_attr>() as u32, SLICE);
    (attributes.sched_policy, attributes.sched_flags) = (libc::SCHED_BATCH as u32, libc::SCHED_FLAG_RESET_ON_FORK as u64);
    // SAFETY: the structure outlives the call.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// Processors that may be used: what the standard library finds out anew each time, from files.
pub fn processors() -> usize {
    static COUNT: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: no memory is passed.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn only_for_a_moment_and_for_nobody_else() {
        let before = policy();
        if before != libc::SCHED_OTHER {
            return;
        }
        let urgent = Urgent::begin();
        let may = policy() & !libc::SCHED_RESET_ON_FORK == libc::SCHED_FIFO;
        assert_eq!(may, urgent.before.is_some());
        let other = std::thread::spawn(policy).join().unwrap();
        assert_eq!(other, libc::SCHED_OTHER);
        // Within another one nothing changes, nor at its end.
        drop(Urgent::begin());
        assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK == libc::SCHED_FIFO, may);
        let born = inherited(|| crate::sys::apart::run(0, policy).unwrap());
        assert_eq!(born == libc::SCHED_FIFO, may);
        drop(urgent);
        assert_eq!(policy(), before);
        assert_eq!(inherited(|| std::thread::spawn(policy).join().unwrap()), libc::SCHED_OTHER);
    }
}
