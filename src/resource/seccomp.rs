//! seccomp(2): strict mode and filters.
//!
//! Injected calls would be subject to them, so they are out of force while a task is held (`PTRACE_O_SUSPEND_SECCOMP`).
//! The kernel puts them into force again when meio ends, however it ends: from then on a task whose calls were being
//! injected makes no other call but rt_sigreturn(2), which every filter that lets a program have signal handlers
//! allows; a filter that does not is named in a warning. What is left is the one call that was just under way: where
//! a filter would kill for it, the death of meio within those microseconds is the death of the task, which is noted.

use super::capture::Capture;
use crate::error::{Context, Error, Result};
use crate::sys::proc::{read, status};
use crate::sys::seccomp::{Confinement, INSTRUCTION, LONGEST, filter, filter_flags, notifies};
use crate::sys::{arch::Registers, ptrace};
use crate::tracee::Held;
use crate::tracee::inject::ERESTART_RESTARTBLOCK;
use crate::tracee::stub::Script;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::rc::Rc;

/// One filter; tasks that have the same one share it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Classic BPF: `struct sock_filter`, 8 bytes each.
    #[serde(with = "crate::image::bytes")]
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_LOG`.
    pub log: bool,
}

/// What confines one task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    /// `SECCOMP_MODE_*`: 0 off, 1 strict, 2 filter.
    pub mode: u32,
    /// Indices into [`crate::resource::Tree::filters`], the oldest first.
    pub filters: Vec<u32>,
}

impl Seccomp {
    /// Whether nothing confines the task.
    pub fn is_off(&self) -> bool {
        self.mode == 0
    }
}

/// The table of filters while it is filled.
#[derive(Debug, Default)]
pub struct Filters {
    index: HashMap<(Rc<[u8]>, bool), u32>,
}

impl Filters {
    fn add(&mut self, program: &Rc<[u8]>, log: bool) -> u32 {
        let next = self.index.len() as u32;
        *self.index.entry((program.clone(), log)).or_insert(next)
    }

    /// All filters in the order of their numbers.
    pub fn take(&mut self) -> Vec<Filter> {
        let mut all: Vec<_> = self.index.drain().collect();
        all.sort_by_key(|(_, number)| *number);
        all.into_iter().map(|((program, log), _)| Filter { program: program.to_vec(), log }).collect()
    }
}

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Whether the filters of a running task will be seen; else it is refused.
pub fn survey(pid: i32, tid: i32, capture: &mut Capture) -> Result<()> {
    let own = read::parsed(std::process::id() as i32, "status", status::parse)?;
    let (reason, advice) = if own.seccomp != 0 {
        ("it runs under seccomp, and so does meio, which may therefore not look at it", "run meio outside of the container")
    } else if own.cap_eff & CAP_SYS_ADMIN == 0 {
        ("it runs under seccomp, which only CAP_SYS_ADMIN may look at", "run meio as root, or give it CAP_SYS_ADMIN")
    } else {
        return Ok(());
    };
    capture.refuse(pid, format!("task {tid}"), reason, advice);
    Ok(())
}

/// Reads what confines a held task and puts it out of force until the task is let go.
pub fn capture(held: &mut Held, saved: &mut Seccomp, capture: &mut Capture) -> Result<()> {
    let tid = held.tid;
    let object = format!("task {tid}");
    if let Err(e) = ptrace::set_options(tid, ptrace::FOLLOW | ptrace::SYSGOOD | ptrace::SUSPEND_SECCOMP) {
        let reason = format!("its seccomp filters cannot be put out of force for the moment of the dump: {e}");
        capture.refuse(held.pid, object, reason, "run meio as root, outside of containers, on a kernel with CONFIG_CHECKPOINT_RESTORE=y");
        return Ok(());
    }
    let mut confinement = Confinement { strict: saved.mode == 1, filters: Vec::new() };
    while !confinement.strict {
        let number = confinement.filters.len();
        let program = match filter(tid, number) {
            Ok(Some(program)) => Rc::<[u8]>::from(program),
            Ok(None) => break,
            Err(Errno::EMEDIUMTYPE) => {
                capture.refuse(held.pid, object, "the kernel has not kept its seccomp filter", "start it without the filter");
                return Ok(());
            }
            Err(e) => return Err(e).context(|| format!("reading seccomp filter {number} of task {tid}")),
        };
        if notifies(&program) {
            let reason = "its seccomp filter asks a listener in user space (SECCOMP_RET_USER_NOTIF), which cannot be connected again";
            capture.refuse(held.pid, object, reason, "start it without that supervisor");
            return Ok(());
        }
        let log = filter_flags(tid, number).unwrap_or(0) & libc::SECCOMP_FILTER_FLAG_LOG != 0;
        saved.filters.push(capture.filters.add(&program, log));
        confinement.filters.push(program);
    }
    held.confined = Some(confinement);
    Ok(())
}

/// A task that may not call restart_syscall(2) makes an interrupted call again from its start: its registers then. The
/// interruption by meio alone would otherwise end it.
pub fn restart(held: &Held, number: u64) -> Option<Registers> {
    let confined = held.confined.as_ref()?;
    let r = &held.registers;
    let waits = r.rax as i64 == ERESTART_RESTARTBLOCK && (r.orig_rax as i64) >= 0;
    let may = confined.allows(libc::SYS_restart_syscall, &[r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9], r.rip);
    (waits && !may).then(|| Registers { rip: r.rip - 2, rax: number, orig_rax: u64::MAX, ..*r })
}

/// What is to be said about the safety of a task that calls were injected into: a warning, or a note.
pub fn safety(held: &Held, trampoline: u64) -> (Option<String>, Option<String>) {
    let Some(confined) = &held.confined else { return (None, None) };
    let returns = confined.survives(libc::SYS_rt_sigreturn, &[0; 6], trampoline);
    let warning =
        format!("task {}: its seccomp filter forbids rt_sigreturn: it was not protected against a sudden death of meio", held.tid);
    let note = format!("task {}: its seccomp filter would have ended it if meio had died just while a call was injected", held.tid);
    ((!returns).then_some(warning), held.exposed.then_some(note))
}

/// Makes the stub of a task put itself under what confined it. The filters are out of force until it is let go, so
/// that this comes early, while it still has the privilege. `others` are all tasks of its process; the first one
/// installs what all of them have in common for all, so that they go on sharing it and `SECCOMP_FILTER_FLAG_TSYNC` still works.
pub fn tell(script: &mut Script<'_>, leader: bool, own: &Seccomp, others: &[&Seccomp], filters: &[Filter]) -> Result<()> {
    const SECCOMP_SET_MODE_STRICT: u64 = 0;
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    match own.mode {
        0 => return Ok(()),
        1 => return script.call("seccomp SECCOMP_SET_MODE_STRICT", libc::SYS_seccomp, &[SECCOMP_SET_MODE_STRICT, 0, 0]),
        _ => {}
    }
    let common = in_common(others);
    for (n, &number) in own.filters.iter().enumerate().filter(|&(n, _)| leader || n >= common) {
        let filter = filters.get(number as usize).ok_or_else(|| Error::image("image damaged: an impossible seccomp filter"))?;
        let length = filter.program.len() / INSTRUCTION;
        if length == 0 || length > LONGEST || !filter.program.len().is_multiple_of(INSTRUCTION) {
            return Err(Error::image("image damaged: a seccomp filter of an impossible length"));
        }
        // SPEC_ALLOW: what speculation was switched off is known by itself.
        let mut flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        if filter.log {
            flags |= libc::SECCOMP_FILTER_FLAG_LOG;
        }
        if n < common && others.len() > 1 {
            flags |= libc::SECCOMP_FILTER_FLAG_TSYNC;
        }
        let program = script.data(&filter.program);
        let at = script.data(&[length as u64, program].map(u64::to_le_bytes).concat());
        script.expect("seccomp SECCOMP_SET_MODE_FILTER", 0, libc::SYS_seccomp, &[SECCOMP_SET_MODE_FILTER, flags, at])?;
    }
    Ok(())
}

/// How many filters, from the oldest on, all tasks of a process have in common.
fn in_common(tasks: &[&Seccomp]) -> usize {
    let Some((first, rest)) = tasks.split_first() else { return 0 };
    let same = |n: &usize| rest.iter().all(|t| t.filters.get(*n) == first.filters.get(*n));
    (0..first.filters.len()).take_while(same).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_prefix() {
        let with = |filters: &[u32]| Seccomp { mode: 2, filters: filters.to_vec() };
        let (a, b, c) = (with(&[0, 1, 2]), with(&[0, 1]), with(&[0, 3, 2]));
        assert_eq!(in_common(&[&a, &b]), 2);
        assert_eq!(in_common(&[&a, &b, &c]), 1);
        assert_eq!(in_common(&[&a]), 3);
        assert_eq!(in_common(&[&a, &Seccomp::default()]), 0);
    }

    #[test]
    fn filters_are_shared() {
        let mut table = Filters::default();
        let (a, b): (Rc<[u8]>, Rc<[u8]>) = (vec![1u8; 8].into(), vec![2u8; 8].into());
        assert_eq!([table.add(&a, false), table.add(&b, false), table.add(&a, false), table.add(&a, true)], [0, 1, 0, 2]);
        let all = table.take();
        assert_eq!((all.len(), all[1].program[0], all[2].log), (3, 2, true));
    }
}
