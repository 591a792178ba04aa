//! /proc/PID/syscall and /proc/PID/task/TID/syscall: proc_pid_syscall(5).

use super::text::{fields, hex, malformed, signed};
use crate::error::Result;

/// What a thread is doing in the kernel, as proc_pid_syscall(5) shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syscall {
    /// It runs or is about to: nothing is known.
    Running,
    /// It waits in the kernel, but not in a system call: after a fault or an interrupt.
    Outside {
        /// Stack pointer.
        sp: u64,
        /// Program counter.
        pc: u64,
    },
    /// It waits in a system call.
    Inside {
        /// Number of the call.
        nr: i64,
        /// All six argument registers.
        args: [u64; 6],
        /// Stack pointer.
        sp: u64,
        /// Program counter.
        pc: u64,
    },
}

/// Parses /proc/PID/syscall.
pub fn parse(text: &[u8]) -> Result<Syscall> {
    parts(text.trim_ascii()).ok_or_else(|| malformed("syscall", text))
}

fn parts(text: &[u8]) -> Option<Syscall> {
    if text == b"running" {
        return Some(Syscall::Running);
    }
    let mut words = fields(text);
    let nr = signed(words.next()?)?;
    let values = words.map(hex).collect::<Option<Vec<u64>>>()?;
    match *values {
        [sp, pc] if nr == -1 => Some(Syscall::Outside { sp, pc }),
        [a, b, c, d, e, f, sp, pc] => Some(Syscall::Inside { nr, args: [a, b, c, d, e, f], sp, pc }),
        _ => None,
    }
}
