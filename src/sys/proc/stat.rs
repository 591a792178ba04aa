//! /proc/PID/stat and /proc/PID/task/TID/stat: proc_pid_stat(5).

use super::text::{decimal, fields, int, malformed, signed};
use crate::error::Result;

/// `flags` of a thread that belongs to the kernel itself (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// One process or thread, as proc_pid_stat(5) shows it. Addresses are 0 to a
/// reader without ptrace(2) access.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// Process or thread id.
    pub pid: i32,
    /// Name of the thread: any bytes, not escaped.
    pub comm: Vec<u8>,
    /// State letter: `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub state: u8,
    /// Pid of the parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Device number of the controlling terminal; 0 without one.
    pub tty_nr: i32,
    /// Foreground process group of the terminal; -1 without one.
    pub tpgid: i32,
    /// `PF_*` flags of the kernel.
    pub flags: u32,
    /// Kernel priority; negative for realtime policies.
    pub priority: i64,
    /// Nice value, -20 to 19.
    pub nice: i64,
    /// Threads in the process.
    pub num_threads: i64,
    /// When it started, in clock ticks after boot.
    pub start_time: u64,
    /// First address of the program's code.
    pub startcode: u64,
    /// Last address of the program's code.
    pub endcode: u64,
    /// Bottom of the first thread's stack.
    pub startstack: u64,
    /// Signal sent to the parent at its end; -1 for a thread that is not the leader.
    pub exit_signal: i32,
    /// Processor it ran on last.
    pub processor: i32,
    /// Realtime priority, 1 to 99; 0 for other policies.
    pub rt_priority: u32,
    /// `SCHED_*` policy.
    pub policy: u32,
    /// First address of the program's data.
    pub start_data: u64,
    /// First address after the program's data.
    pub end_data: u64,
    /// First address of the heap of brk(2).
    pub start_brk: u64,
    /// First address of the arguments.
    pub arg_start: u64,
    /// First address after the arguments.
    pub arg_end: u64,
    /// First address of the environment.
    pub env_start: u64,
    /// First address after the environment.
    pub env_end: u64,
    /// Exit status in the form of waitpid(2).
    pub exit_code: i32,
}

impl Stat {
    /// Whether this is a thread of the kernel, which has no memory and cannot be traced.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }
}

/// Parses /proc/PID/stat.
pub fn parse(text: &[u8]) -> Result<Stat> {
    parts(text).ok_or_else(|| malformed("stat", text))
}

fn parts(text: &[u8]) -> Option<Stat> {
    // The name may itself hold parentheses, spaces and newlines: it ends at the last one.
    let open = text.iter().position(|&b| b == b'(')?;
    let close = text.iter().rposition(|&b| b == b')').filter(|&close| close > open)?;
    let pid = int(text[..open].trim_ascii())?;
    let rest: Vec<&[u8]> = fields(text[close + 1..].trim_ascii()).collect();
    // Fields are numbered as in the man page, where the state is 3.
    let at = |number: usize| rest.get(number - 3).copied();
    let address = |number| decimal(at(number)?);
    let small = |number| int(at(number)?);
    let &[state] = at(3)? else { return None };
    Some(Stat {
        pid,
        comm: text[open + 1..close].to_vec(),
        state,
        ppid: small(4)?,
        pgrp: small(5)?,
        session: small(6)?,
        tty_nr: small(7)?,
        tpgid: small(8)?,
        flags: u32::try_from(address(9)?).ok()?,
        priority: signed(at(18)?)?,
        nice: signed(at(19)?)?,
        num_threads: signed(at(20)?)?,
        start_time: address(22)?,
        startcode: address(26)?,
        endcode: address(27)?,
        startstack: address(28)?,
        exit_signal: small(38)?,
        processor: small(39)?,
        rt_priority: u32::try_from(address(40)?).ok()?,
        policy: u32::try_from(address(41)?).ok()?,
        start_data: address(45)?,
        end_data: address(46)?,
        start_brk: address(47)?,
        arg_start: address(48)?,
        arg_end: address(49)?,
        env_start: address(50)?,
        env_end: address(51)?,
        exit_code: small(52)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_name_that_looks_like_fields() {
        let stat = parse(fixture!("6.18/stat")).unwrap();
        assert_eq!(stat.comm, b"a) S (b c\n1");
        assert_eq!((stat.pid, stat.state, stat.ppid, stat.pgrp, stat.session), (11678, b'S', 11670, 11657, 4997));
        assert_eq!((stat.tty_nr, stat.tpgid, stat.num_threads, stat.start_time), (0, -1, 2, 217_133));
        assert_eq!((stat.startcode, stat.endcode), (93_973_410_734_080, 93_973_410_736_485));
        assert_eq!((stat.start_data, stat.end_data), (93_973_410_745_808, 93_973_410_746_688));
        assert_eq!((stat.startstack, stat.start_brk), (140_727_306_770_960, 93_974_443_581_440));
        assert_eq!((stat.arg_start, stat.arg_end), (140_727_306_779_187, 140_727_306_779_193));
        assert_eq!((stat.env_start, stat.env_end), (140_727_306_779_193, 140_727_306_780_658));
        assert_eq!((stat.exit_signal, stat.exit_code, stat.priority, stat.nice), (libc::SIGCHLD, 0, 20, 0));
        assert!(!stat.is_kernel_thread());
    }

    #[test]
    fn a_traced_realtime_thread_seen_without_access() {
        let stat = parse(fixture!("5.10/stat")).unwrap();
        assert_eq!(stat.comm, b"caf\xe9 (x) )");
        assert_eq!((stat.state, stat.tty_nr, stat.tpgid, stat.flags), (b't', 34816, 900, 0x4040_0100));
        assert_eq!((stat.priority, stat.nice, stat.processor), (-51, -20, 3));
        assert_eq!((stat.rt_priority, stat.policy, stat.exit_signal, stat.exit_code), (50, 2, -1, 9));
    }

    #[test]
    fn zombies_kernel_threads_and_later_fields() {
        let zombie = parse(fixture!("6.18/stat-zombie")).unwrap();
        assert_eq!((zombie.state, zombie.exit_code >> 8, zombie.start_brk), (b'Z', 7, 0));
        assert!(parse(fixture!("5.10/stat-kernel")).unwrap().is_kernel_thread());
        let kernel = parse(fixture!("6.18/stat-kernel")).unwrap();
        assert!(kernel.is_kernel_thread());
        assert_eq!(kernel.comm, b"rcu_exp_par_gp_kthread_worker/0");
        assert_eq!(parse(fixture!("6.1/stat")).unwrap().exit_code, 15);
    }

    #[test]
    fn a_cut_text_is_refused() {
        let whole = fixture!("6.18/stat");
        // The last field is a lone digit: without it there is nothing to take for the exit code.
        for length in 0..whole.len() - 2 {
            assert!(parse(&whole[..length]).is_err(), "{length} bytes");
        }
        assert!(parse(b")12(").is_err());
    }
}
