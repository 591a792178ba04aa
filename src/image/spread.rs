//! Work on many blocks at once, whose progress is told.

use crate::error::Result;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How often the caller hears of the progress, and is asked whether to go on.
const TELL: Duration = Duration::from_millis(40);

/// How far it is.
#[derive(Default)]
struct Done {
    bytes: u64,
    ended: usize,
    failure: Option<crate::error::Error>,
}

/// Does all tasks, in parallel and in no order, up to the first that fails; each says how many bytes it was, and has a buffer
/// that the one before has left. `progress` is told the bytes so far. Returns them.
pub fn spread<T: Sync>(
    tasks: &[T],
    work: &(dyn Fn(&T, &mut Vec<u8>) -> Result<u64> + Sync),
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let next = AtomicUsize::new(0);
    let state = Mutex::new(Done::default());
    let news = Condvar::new();
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let workers = rayon::current_num_threads().min(tasks.len());
    rayon::in_place_scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|_| {
                let mut buffer = Vec::new();
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(task, &mut buffer);
                    let mut state = lock();
                    match result {
                        Ok(bytes) => state.bytes += bytes,
                        Err(e) => {
                            state.failure.get_or_insert(e);
                            next.store(tasks.len(), Ordering::Relaxed);
                        }
                    }
                }
                lock().ended += 1;
                news.notify_all();
            });
        }
        let mut state = lock();
        while state.ended < workers {
            let (back, waited) = news.wait_timeout(state, TELL).unwrap_or_else(PoisonError::into_inner);
            let bytes = back.bytes;
            drop(back);
            if waited.timed_out()
                && let Err(e) = progress(bytes)
            {
                next.store(tasks.len(), Ordering::Relaxed);
                lock().failure.get_or_insert(e);
            }
            state = lock();
        }
    });
    let Done { bytes, failure, .. } = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(bytes), Err)
}
