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

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn the_three_forms() {
        assert_eq!(parse(fixture!("5.10/syscall")).unwrap(), Syscall::Running);
        let outside = Syscall::Outside { sp: 0x7fff_5fe3_c1c8, pc: 0x7f3b_2d0c_1a37 };
        assert_eq!(parse(fixture!("6.1/syscall")).unwrap(), outside);
        let inside = Syscall::Inside {
            nr: libc::SYS_pause,
            args: [0, 0, 2, 0x7f5e_9cfa_6850, 0, 0x7ffd_a121_56a7],
            sp: 0x7ffd_a121_5770,
            pc: 0x7f5e_9d06_0df2,
        };
        assert_eq!(parse(fixture!("6.18/syscall")).unwrap(), inside);
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [&b""[..], b"run", b"34 0x1 0x2", b"-1 0x1", b"0 1 2 3 4 5 6 7 8 9", b"x 1 2"] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
