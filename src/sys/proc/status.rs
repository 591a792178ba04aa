//! /proc/PID/status and /proc/PID/task/TID/status: proc_pid_status(5).

use super::text::{decimal, fields, hex, int, lines, malformed, missing, octal, split_once};
use crate::error::Result;

/// One process or thread, as proc_pid_status(5) shows it.
///
/// An `Option` is `None` where the kernel is too old or built without the
/// feature, and the `vm_*` ones are `None` for zombies and kernel threads.
/// Of lists, the empty one stands for a line that is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the kernel's own, in lower case
pub struct Status {
    /// Name of the thread, with the kernel's `\n` and `\\` undone.
    pub name: Vec<u8>,
    /// File mode creation mask; `None` for zombies.
    pub umask: Option<u32>,
    /// State letter: `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub state: u8,
    pub tgid: i32,
    pub pid: i32,
    pub ppid: i32,
    /// The tracer's pid; 0 when not traced.
    pub tracer_pid: i32,
    /// Real, effective, saved and filesystem user id.
    pub uid: [u32; 4],
    /// Real, effective, saved and filesystem group id.
    pub gid: [u32; 4],
    /// Slots of the descriptor table; 0 for zombies.
    pub fd_size: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Thread group id in each pid namespace, from the reader's to the innermost.
    pub ns_tgid: Vec<i32>,
    /// Thread id in each pid namespace.
    pub ns_pid: Vec<i32>,
    /// Process group id in each pid namespace.
    pub ns_pgid: Vec<i32>,
    /// Session id in each pid namespace.
    pub ns_sid: Vec<i32>,
    pub threads: u32,
    /// Signals queued for the real user id, and their limit.
    pub sig_q: (u64, u64),
    /// Signals pending for the thread; signal N is bit N-1, as in all sets here.
    pub sig_pnd: u64,
    /// Signals pending for the process.
    pub shd_pnd: u64,
    pub sig_blk: u64,
    pub sig_ign: u64,
    pub sig_cgt: u64,
    pub cap_inh: u64,
    pub cap_prm: u64,
    pub cap_eff: u64,
    pub cap_bnd: u64,
    pub cap_amb: u64,
    /// Linux 4.10; false where it is not shown.
    pub no_new_privs: bool,
    /// Seccomp mode: 0 off, 1 strict, 2 filter; 0 in a kernel without it.
    pub seccomp: u32,
    /// Number of seccomp filters, Linux 5.9.
    pub seccomp_filters: Option<u32>,
    /// Whether transparent huge pages are allowed, prctl(2) `PR_SET_THP_DISABLE`.
    pub thp_enabled: Option<bool>,
    /// `thread mitigated` and the like, Linux 4.17.
    pub speculation_store_bypass: Vec<u8>,
    /// `conditional enabled` and the like, Linux 5.11.
    pub speculation_indirect_branch: Vec<u8>,
    /// Address bits that the processor does not ignore (LAM), Linux 6.4.
    pub untag_mask: Option<u64>,
    /// Peak resident memory in KiB.
    pub vm_hwm_kib: Option<u64>,
    /// Resident memory in KiB.
    pub vm_rss_kib: Option<u64>,
    /// Swapped memory in KiB.
    pub vm_swap_kib: Option<u64>,
    /// Locked memory in KiB.
    pub vm_lck_kib: Option<u64>,
    /// Features such as `shstk` and `wrss`, Linux 6.6.
    pub x86_thread_features: Vec<Vec<u8>>,
    /// Features that can no longer be changed.
    pub x86_thread_features_locked: Vec<Vec<u8>>,
    pub voluntary_ctxt_switches: u64,
    pub nonvoluntary_ctxt_switches: u64,
}

/// Lines that every kernel shows of every task.
const REQUIRED: [&str; 18] = [
    "Name", "State", "Tgid", "Pid", "PPid", "Uid", "Gid", "Threads", "SigQ", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh",
    "CapPrm", "CapEff", "CapBnd",
];

/// Parses /proc/PID/status. Lines that are not known are skipped.
pub fn parse(text: &[u8]) -> Result<Status> {
    let mut status = Status::default();
    let mut seen = [false; REQUIRED.len()];
    for line in lines(text) {
        let Some((key, value)) = split_once(line, b':') else { continue };
        set(&mut status, key, value.strip_prefix(b"\t").unwrap_or(value)).ok_or_else(|| malformed("status", line))?;
        if let Some(i) = REQUIRED.iter().position(|name| name.as_bytes() == key) {
            seen[i] = true;
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(i) => Err(missing("status", REQUIRED[i])),
        None => Ok(status),
    }
}

fn set(status: &mut Status, key: &[u8], value: &[u8]) -> Option<()> {
    let s = status;
    match key {
        b"Name" => s.name = unescape_name(value),
        b"Umask" => s.umask = Some(u32::try_from(octal(value.trim_ascii())?).ok()?),
        b"State" => s.state = *value.first()?,
        b"Tgid" => s.tgid = int(value)?,
        b"Pid" => s.pid = int(value)?,
        b"PPid" => s.ppid = int(value)?,
        b"TracerPid" => s.tracer_pid = int(value)?,
        b"Uid" => s.uid = ids(value)?.try_into().ok()?,
        b"Gid" => s.gid = ids(value)?.try_into().ok()?,
        b"FDSize" => s.fd_size = small(value)?,
        b"Groups" => s.groups = ids(value)?,
        b"NStgid" => s.ns_tgid = pids(value)?,
        b"NSpid" => s.ns_pid = pids(value)?,
        b"NSpgid" => s.ns_pgid = pids(value)?,
        b"NSsid" => s.ns_sid = pids(value)?,
        b"Threads" => s.threads = small(value)?,
        b"SigQ" => {
            let (queued, limit) = split_once(value, b'/')?;
            s.sig_q = (decimal(queued)?, decimal(limit)?);
        }
        b"SigPnd" => s.sig_pnd = hex(value)?,
        b"ShdPnd" => s.shd_pnd = hex(value)?,
        b"SigBlk" => s.sig_blk = hex(value)?,
        b"SigIgn" => s.sig_ign = hex(value)?,
        b"SigCgt" => s.sig_cgt = hex(value)?,
        b"CapInh" => s.cap_inh = hex(value)?,
        b"CapPrm" => s.cap_prm = hex(value)?,
        b"CapEff" => s.cap_eff = hex(value)?,
        b"CapBnd" => s.cap_bnd = hex(value)?,
        b"CapAmb" => s.cap_amb = hex(value)?,
        b"NoNewPrivs" => s.no_new_privs = decimal(value)? != 0,
        b"Seccomp" => s.seccomp = small(value)?,
        b"Seccomp_filters" => s.seccomp_filters = Some(small(value)?),
        b"THP_enabled" => s.thp_enabled = Some(decimal(value)? != 0),
        b"Speculation_Store_Bypass" => s.speculation_store_bypass = value.trim_ascii().to_vec(),
        b"SpeculationIndirectBranch" => s.speculation_indirect_branch = value.trim_ascii().to_vec(),
        b"untag_mask" => s.untag_mask = Some(hex(value.trim_ascii().strip_prefix(b"0x")?)?),
        b"VmHWM" => s.vm_hwm_kib = Some(kib(value)?),
        b"VmRSS" => s.vm_rss_kib = Some(kib(value)?),
        b"VmSwap" => s.vm_swap_kib = Some(kib(value)?),
        b"VmLck" => s.vm_lck_kib = Some(kib(value)?),
        b"x86_Thread_features" => s.x86_thread_features = words(value),
        b"x86_Thread_features_locked" => s.x86_thread_features_locked = words(value),
        b"voluntary_ctxt_switches" => s.voluntary_ctxt_switches = decimal(value)?,
        b"nonvoluntary_ctxt_switches" => s.nonvoluntary_ctxt_switches = decimal(value)?,
        _ => {}
    }
    Some(())
}

fn small(value: &[u8]) -> Option<u32> {
    u32::try_from(decimal(value)?).ok()
}

fn ids(value: &[u8]) -> Option<Vec<u32>> {
    fields(value).map(small).collect()
}

fn pids(value: &[u8]) -> Option<Vec<i32>> {
    fields(value).map(int).collect()
}

fn words(value: &[u8]) -> Vec<Vec<u8>> {
    fields(value).map(<[u8]>::to_vec).collect()
}

fn kib(value: &[u8]) -> Option<u64> {
    decimal(value.strip_suffix(b" kB")?.trim_ascii())
}

/// In this text alone, the name has newline and backslash as in a C string.
fn unescape_name(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        out.push(match (byte, bytes.peek()) {
            (b'\\', Some(b'n')) => {
                bytes.next();
                b'\n'
            }
            (b'\\', Some(b'\\')) => {
                bytes.next();
                b'\\'
            }
            _ => byte,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn all_fields() {
        let s = parse(fixture!("6.6/status")).unwrap();
        assert_eq!((&*s.name, s.umask, s.state), (&b"a\\b\nc"[..], Some(0o77), b'T'));
        assert_eq!((s.tgid, s.pid, s.ppid, s.tracer_pid), (812, 813, 1, 4000));
        assert_eq!((s.uid, s.gid), ([1000, 1001, 1002, u32::MAX], [100, 101, 102, 103]));
        assert_eq!((s.fd_size, &*s.groups), (64, &[4, 24, u32::MAX - 1][..]));
        assert_eq!((&*s.ns_tgid, &*s.ns_pid), (&[812, 12, 1][..], &[813, 13, 2][..]));
        assert_eq!((&*s.ns_pgid, &*s.ns_sid), (&[812, 12, 1][..], &[700, 0, 0][..]));
        assert_eq!((s.threads, s.sig_q), (3, (1, 31192)));
        assert_eq!((s.sig_pnd, s.shd_pnd, s.sig_blk), (1, 1 << 63, 1 << 16));
        assert_eq!((s.sig_ign, s.sig_cgt), (1 << 12, 0x1_8000_4a02));
        assert_eq!((s.cap_inh, s.cap_prm, s.cap_eff, s.cap_bnd, s.cap_amb), (1, 2, 4, 0x3f_ffff_ffff, 8));
        assert_eq!((s.no_new_privs, s.seccomp, s.seccomp_filters, s.thp_enabled), (true, 2, Some(3), Some(true)));
        assert_eq!((s.vm_hwm_kib, s.vm_rss_kib), (Some(2376), Some(1376)));
        assert_eq!((s.vm_swap_kib, s.vm_lck_kib), (Some(12), Some(64)));
        assert_eq!(s.x86_thread_features, [b"shstk".to_vec(), b"wrss".to_vec()]);
        assert_eq!(s.x86_thread_features_locked, [b"shstk".to_vec()]);
        assert_eq!((s.voluntary_ctxt_switches, s.nonvoluntary_ctxt_switches), (15, 545));
    }

    #[test]
    fn older_and_smaller_kernels() {
        let old = parse(fixture!("5.10/status")).unwrap();
        assert_eq!((old.thp_enabled, old.x86_thread_features.len()), (Some(false), 0));
        let small = parse(fixture!("6.1/status-small")).unwrap();
        assert_eq!((small.seccomp, small.seccomp_filters, small.thp_enabled), (0, None, None));
        assert_eq!((small.umask, small.no_new_privs, small.cap_amb, small.vm_rss_kib), (None, false, 0, None));
        assert!(small.ns_pid.is_empty());
        assert_eq!(small.cap_eff, 4);
    }

    #[test]
    fn tasks_without_memory() {
        let zombie = parse(fixture!("6.18/status-zombie")).unwrap();
        assert_eq!((zombie.state, zombie.umask, zombie.vm_rss_kib, zombie.fd_size), (b'Z', None, None, 0));
        assert_eq!(parse(fixture!("6.18/status-kernel")).unwrap().vm_rss_kib, None);
        let live = parse(fixture!("6.18/status")).unwrap();
        assert_eq!((&*live.name, live.vm_lck_kib, live.sig_blk), (&b"a) S (b c\n1"[..], Some(8), 0x2_0000_0200));
        assert!(live.groups.is_empty());
    }

    #[test]
    fn a_line_too_few_is_named() {
        for name in REQUIRED {
            let without: Vec<u8> = fixture!("5.10/status")
                .split_inclusive(|&b| b == b'\n')
                .filter(|line| !line.starts_with(format!("{name}:").as_bytes()))
                .flatten()
                .copied()
                .collect();
            assert_eq!(parse(&without).unwrap_err().message, format!("status: no {name}"));
        }
        assert!(parse(b"Uid:\t1\t2\t3\n").unwrap_err().message.contains("Uid"));
    }
}
