//! What a process does with signals, and which ones wait for it.

use super::thread::serde_bytes_vec::Bytes;
use serde::{Deserialize, Serialize};

/// The kernel's `struct kernel_sigaction` of one signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Handler address, or 0 (`SIG_DFL`) or 1 (`SIG_IGN`).
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// `sa_restorer`.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: u64,
}

/// Signals of a whole process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signals {
    /// Disposition of each signal that is not plainly `SIG_DFL`: (number, action).
    pub actions: Vec<(i32, Action)>,
    /// Signals pending for the process as a whole: raw `siginfo_t`.
    pub pending: Vec<Bytes>,
}
