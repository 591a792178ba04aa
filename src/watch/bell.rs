//! What wakes the thread that has the machine.

use crate::transport::Waker;
use std::sync::{Arc, Mutex, PoisonError};

/// Tells who has the machine that something has happened, whichever link that waits for.
#[derive(Clone, Default)]
pub struct Bell(Arc<Mutex<Option<Waker>>>);

impl Bell {
    /// It wakes who waits for this link from now on.
    pub fn hang(&self, waker: Option<Waker>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = waker;
    }

    /// Something has happened.
    pub fn ring(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Waker::wake);
    }
}
