//! What wakes the thread that has the machine.

use crate::transport::Waker;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Tells who has the machine that something has happened, whichever link that waits for.
#[derive(Clone, Default)]
pub struct Bell(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waker: Mutex<Option<Waker>>,
    rung: Mutex<bool>,
    changed: Condvar,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bell {
    /// It wakes who waits for this link from now on.
    pub fn hang(&self, waker: Option<Waker>) {
        *locked(&self.0.waker) = waker;
    }

    /// Something has happened.
    pub fn ring(&self) {
        locked(&self.0.waker).iter().for_each(Waker::wake);
        *locked(&self.0.rung) = true;
        self.0.changed.notify_all();
    }

    /// Waits until something has happened since the last wait, but not for longer than this: for who waits for several links.
    pub fn wait(&self, limit: Duration) {
        let wait = self.0.changed.wait_timeout_while(locked(&self.0.rung), limit, |rung| !*rung);
        *wait.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}
