//! The allocator of the tests: the system's, counting what each thread holds, so that a test can say how much
//! memory something took at most.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes that this thread has allocated and not freed. Below zero when it frees what others allocated.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most that `HELD` has been since the last [`peak_of`].
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Counts a change. Plain cells without destructors: using them never allocates.
fn count(change: isize) {
    let held = HELD.get().wrapping_add(change);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; counting touches no memory
// that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the same promises to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the same promises to us.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may be there at the same time.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the same promises to us.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the same promises to us.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `work` returns, and how many bytes it had allocated at most at one time, on this thread.
pub fn peak_of<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get().wrapping_sub(before).max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::peak_of;

    #[test]
    fn counts_the_most_that_was_held_at_once() {
        let (_, peak) = peak_of(|| {
            for _ in 0..10 {
                std::hint::black_box(vec![0u8; 1000]);
            }
            std::hint::black_box((vec![1u8; 3000], Vec::<u8>::with_capacity(4000)));
        });
        assert_eq!(peak, 7000);
    }
}
