//! One task: registers, vector state, interrupted system call, per-thread pointers.

use crate::sys::arch::Registers;
use serde::{Deserialize, Serialize};

/// A system call with a relative time-out that was under way. The kernel keeps
/// the deadline to itself (`restart_block`), so it is saved as the time left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// The call's number; known even where the registers say `restart_syscall`.
    pub number: u64,
    /// Time left in nanoseconds; `None` when it waits without limit.
    pub remaining_ns: Option<u64>,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// Thread id in the tree's pid namespace.
    pub tid: i32,
    /// Name, at most 15 bytes (prctl(2) `PR_SET_NAME`).
    #[serde(with = "crate::image::bytes")]
    pub comm: Vec<u8>,
    /// General registers at the stop.
    pub registers: Registers,
    /// The XSAVE area as `PTRACE_GETREGSET NT_X86_XSTATE` returns it.
    #[serde(with = "crate::image::bytes")]
    pub xstate: Vec<u8>,
    /// The interrupted call, when it must be armed anew.
    pub waiting: Option<Waiting>,
    /// Blocked signals, bit n-1 for signal n.
    pub sigmask: u64,
    /// Signals pending for this thread: raw `siginfo_t`, 128 bytes each.
    pub pending: Vec<serde_bytes_vec::Bytes>,
    /// Alternate signal stack (sigaltstack(2)): address, flags, size.
    pub altstack: (u64, u32, u64),
    /// `set_tid_address(2)` pointer.
    pub clear_child_tid: u64,
    /// `set_robust_list(2)` head and length.
    pub robust_list: (u64, u64),
    /// rseq(2) registration: address, size, signature, flags.
    pub rseq: Option<(u64, u32, u32, u32)>,
    /// Identity and capabilities.
    pub credentials: super::credentials::Credentials,
    /// Scheduling.
    pub sched: super::sched::Sched,
    /// Signal sent when the parent dies (prctl(2) `PR_SET_PDEATHSIG`), 0 for none.
    pub pdeathsig: i32,
}

/// Byte strings inside lists, saved as CBOR byte strings.
pub mod serde_bytes_vec {
    use serde::{Deserialize, Serialize};
    /// A byte string.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct Bytes(#[serde(with = "crate::image::bytes")] pub Vec<u8>);
}
