//! Switches and small properties of tasks and processes that are asked for and set one by one.

use super::capture::Capture;
use super::numa::{self, Policy};
use crate::error::Result;
use crate::sys::proc::{read, stat, status::Status};
use crate::sys::{ptrace, task};
use crate::tracee::stub::{Script, Stub};
use crate::tracee::volley::{Answers, Question};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// Of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskAttributes {
    /// ioprio_get(2), 0 when it was never set.
    pub ioprio: u32,
    /// Store bypass and indirect branches, as prctl(2) `PR_SET_SPECULATION_CTRL` takes them; 0 where no task has a say.
    pub speculation: [u32; 2],
    /// `PR_GET_IO_FLUSHER`.
    pub io_flusher: bool,
    /// `PR_MCE_KILL_GET`: `PR_MCE_KILL_LATE`, `PR_MCE_KILL_EARLY`; `None` is the default.
    pub mce_kill: Option<u32>,
    /// Which of the tree's cookies of core scheduling it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u32>,
    /// Its modes, when they are not those of its process's first thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modes: Option<Modes>,
}

/// What each thread sets for itself although most processes have it the same in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Modes {
    /// Reading the time stamp counter is an error: `PR_TSC_SIGSEGV`.
    pub tsc_faults: bool,
    /// The cpuid instruction is an error: arch_prctl(2) `ARCH_SET_CPUID` 0.
    pub cpuid_faults: bool,
    /// get_mempolicy(2); `None` is the default.
    pub mempolicy: Option<Policy>,
}

/// Of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessAttributes {
    /// Flags of `PR_SET_THP_DISABLE` (Linux 6.18: `PR_THP_DISABLE_EXCEPT_ADVISED`).
    pub thp_flags: u32,
    /// `PR_GET_MDWE` (Linux 6.3).
    pub mdwe: u32,
    /// Commands of membarrier(2) that it has registered for (Linux 6.3).
    pub membarrier: u32,
    /// `/proc/PID/coredump_filter`; `None` is the default.
    pub coredump_filter: Option<u32>,
    /// [`Modes::tsc_faults`] of the first thread, and of those that have no [`Modes`] of their own.
    pub tsc_faults: bool,
    /// [`Modes::cpuid_faults`], likewise.
    pub cpuid_faults: bool,
    /// [`Modes::mempolicy`], likewise.
    pub mempolicy: Option<Policy>,
    /// Nice value of the session's group of tasks (sched(7), autogroup), of a session's leader.
    pub autogroup_nice: i32,
    /// `/proc/PID/loginuid`; `None` when it was never set.
    pub loginuid: Option<u32>,
    /// Label of a security module, `/proc/PID/attr/current`.
    pub label: Option<String>,
}

const PF_MCE_PROCESS: u32 = 0x80;
const PF_MEMALLOC_NOIO: u32 = 0x0008_0000;
const PF_MCE_EARLY: u32 = 0x0800_0000;
const PR_MCE_KILL_LATE: u32 = 0;
const PR_MCE_KILL_EARLY: u32 = 1;
const PR_SET_IO_FLUSHER: u64 = 57;
const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
const PR_SPEC_PRCTL: u32 = 1;
const PR_SPEC_ENABLE: u32 = 1 << 1;
const PR_SPEC_DISABLE: u32 = 1 << 2;
const PR_SPEC_FORCE_DISABLE: u32 = 1 << 3;
const DEFAULT_COREDUMP_FILTER: u32 = 0x33;

impl TaskAttributes {
    /// Whether there is nothing to set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Reads them from outside.
    pub fn capture(pid: i32, tid: i32, status: &Status, capture: &mut Capture) -> Result<Self> {
        let stat = read::parsed_task(pid, tid, "stat", stat::parse)?;
        let mce = |flag: u32| stat.flags & flag != 0;
        Ok(TaskAttributes {
            ioprio: task::ioprio(tid).unwrap_or(0),
            speculation: speculation(status),
            io_flusher: stat.flags & PF_MEMALLOC_NOIO != 0,
            mce_kill: mce(PF_MCE_PROCESS).then_some(if mce(PF_MCE_EARLY) { PR_MCE_KILL_EARLY } else { PR_MCE_KILL_LATE }),
            cookie: cookie(tid, capture),
            modes: None, // what the task itself tells
        })
    }

    /// Sets what a task sets by itself, before it gives its privileges away.
    pub fn tell(&self, script: &mut Script<'_>) -> Result<()> {
        for (which, &wanted) in self.speculation.iter().enumerate() {
            let now = task::speculation(which as u64); // which stubs inherit
            if wanted != now && wanted != 0 && now != 0 {
                let args = [libc::PR_SET_SPECULATION_CTRL as u64, which as u64, u64::from(wanted & !PR_SPEC_PRCTL), 0, 0];
                script.attempt("prctl PR_SET_SPECULATION_CTRL", libc::SYS_prctl, &args)?;
            }
        }
        if self.io_flusher {
            script.call("prctl PR_SET_IO_FLUSHER", libc::SYS_prctl, &[PR_SET_IO_FLUSHER, 1, 0, 0, 0])?;
        }
        if let Some(policy) = self.mce_kill {
            const PR_MCE_KILL_SET: u64 = 1;
            let args = [libc::PR_MCE_KILL as u64, PR_MCE_KILL_SET, u64::from(policy), 0, 0];
            script.call("prctl PR_MCE_KILL", libc::SYS_prctl, &args)?;
        }
        Ok(())
    }

    /// Sets what is set from outside. A warning for what is not permitted or does not hold.
    pub fn apply(&self, tid: i32, name: i32) -> Option<String> {
        if task::ioprio(tid) == Ok(self.ioprio) {
            return None;
        }
        let e = task::set_ioprio(tid, self.ioprio).err()?;
        Some(format!("task {name}: its I/O priority could not be set to {:#x}: {e}", self.ioprio))
    }
}

/// The number of a task's cookie among those of the tree. Whoever outside has the same will not have it any more.
fn cookie(tid: i32, capture: &mut Capture) -> Option<u32> {
    let value = task::core_cookie(tid).ok().filter(|&value| value != 0)?;
    let known = capture.core_cookies.iter().position(|&c| c == value);
    Some(known.unwrap_or_else(|| {
        capture.core_cookies.push(value);
        capture.core_cookies.len() - 1
    }) as u32)
}

/// `Speculation_Store_Bypass` and `SpeculationIndirectBranch` of proc_pid_status(5), where a task has a say.
fn speculation(status: &Status) -> [u32; 2] {
    let store = match status.speculation_store_bypass.as_slice() {
        b"thread vulnerable" => PR_SPEC_PRCTL | PR_SPEC_ENABLE,
        b"thread mitigated" => PR_SPEC_PRCTL | PR_SPEC_DISABLE,
        b"thread force mitigated" => PR_SPEC_PRCTL | PR_SPEC_FORCE_DISABLE,
        _ => 0,
    };
    let branch = match status.speculation_indirect_branch.as_slice() {
        b"conditional enabled" => PR_SPEC_PRCTL | PR_SPEC_ENABLE,
        b"conditional disabled" => PR_SPEC_PRCTL | PR_SPEC_DISABLE,
        b"conditional force disabled" => PR_SPEC_PRCTL | PR_SPEC_FORCE_DISABLE,
        _ => 0,
    };
    [store, branch]
}

/// Switches of a task that cannot be kept, or would make injected calls fail.
pub fn refuse_task(pid: i32, tid: i32, status: &Status, capture: &mut Capture) {
    let object = format!("task {tid}");
    if status.untag_mask.is_some_and(|mask| mask != u64::MAX) {
        let reason = "it uses tagged addresses (LAM), which cannot be switched on again";
        capture.refuse(pid, object.clone(), reason, "start it without (for glibc: GLIBC_TUNABLES=glibc.mem.tagging=0)");
    }
    if ptrace::syscall_user_dispatch(tid).unwrap_or(false) {
        let reason = "its system calls are dispatched in user space (PR_SET_SYSCALL_USER_DISPATCH)";
        capture.refuse(pid, object, reason, "not supported: calls of meio's would be dispatched as well");
    }
}

impl Modes {
    /// The calls that tell them. That of cpuid only where it can fault; that of the memory policy only where it may be apart.
    pub fn questions(policy: bool) -> impl Iterator<Item = Question> {
        let tsc = Question::new(libc::SYS_prctl, [libc::PR_GET_TSC as u64, 0, 0, 0, 0, 0]).leaving(1, 4);
        let cpuid = Question::new(libc::SYS_arch_prctl, [ARCH_GET_CPUID, 0, 0, 0, 0, 0]);
        [Some(tsc), task::cpuid_can_fault().then_some(cpuid), policy.then(numa::question)].into_iter().flatten()
    }

    /// Takes the answers. What this kernel does not know, or what was not asked, is in its default mode.
    pub fn answers(policy: bool, answers: &mut Answers) -> Result<Modes> {
        let tsc = answers.next()?;
        Ok(Modes {
            tsc_faults: tsc.returned == 0 && i32::from_le_bytes(tsc.get(0)) == libc::PR_TSC_SIGSEGV,
            cpuid_faults: task::cpuid_can_fault() && answers.next()?.returned == 0,
            mempolicy: if policy { numa::answer(&answers.next()?) } else { None },
        })
    }

    /// What every task sets by itself; a warning for what does not hold.
    pub fn tell(&self, stub: &Stub, name: i32) -> Result<Option<String>> {
        let mut script = stub.script();
        if self.tsc_faults {
            let args = [libc::PR_SET_TSC as u64, libc::PR_TSC_SIGSEGV as u64, 0, 0, 0];
            script.call("prctl PR_SET_TSC", libc::SYS_prctl, &args)?;
        }
        if self.cpuid_faults {
            script.call("arch_prctl ARCH_SET_CPUID", libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0])?;
        }
        script.run()?;
        self.mempolicy.as_ref().map_or(Ok(None), |policy| numa::set(stub, policy, name))
    }
}

/// Whether a security module gives labels here: else nobody has one.
fn labels() -> bool {
    static GIVES: OnceLock<bool> = OnceLock::new();
    *GIVES.get_or_init(|| read::read(std::process::id() as i32, "attr/current").is_ok())
}

impl ProcessAttributes {
    /// Whether there is nothing to set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Reads what is seen from outside.
    pub fn capture(pid: i32, leads_session: bool) -> Self {
        let text = |name: &str| read::read(pid, name).ok().and_then(|t| String::from_utf8(t).ok());
        let filter = text("coredump_filter").and_then(|t| u32::from_str_radix(t.trim(), 16).ok());
        let nice = || text("autogroup").and_then(|t| t.trim().rsplit(' ').next()?.parse().ok());
        let label = if labels() { text("attr/current") } else { None }.map(|t| t.trim_end_matches(['\0', '\n']).to_owned());
        ProcessAttributes {
            coredump_filter: filter.filter(|&f| f != DEFAULT_COREDUMP_FILTER),
            autogroup_nice: if leads_session { nice().unwrap_or(0) } else { 0 },
            loginuid: text("loginuid").and_then(|t| t.trim().parse().ok()).filter(|&uid| uid != u32::MAX),
            label: label.filter(|l| !l.is_empty()),
            ..ProcessAttributes::default()
        }
    }

    /// The calls that tell what only the process itself knows.
    pub fn questions() -> [Question; 2] {
        [
            Question::new(libc::SYS_prctl, [PR_GET_MDWE, 0, 0, 0, 0, 0]),
            Question::new(libc::SYS_membarrier, [MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0, 0, 0, 0]),
        ]
    }

    /// Takes the answers.
    pub fn answers(&mut self, answers: &mut Answers) -> Result<()> {
        self.mdwe = answers.next()?.returned.max(0) as u32;
        self.membarrier = answers.next()?.returned.max(0) as u32;
        Ok(())
    }

    /// Sets what the process sets by itself, once its memory is in place and before it gives its privileges away.
    pub fn tell(&self, script: &mut Script<'_>) -> Result<()> {
        for bit in (0..32).filter(|bit| self.membarrier >> bit & 1 != 0) {
            script.call("membarrier", libc::SYS_membarrier, &[1 << bit, 0, 0])?;
        }
        if self.thp_flags != 0 {
            let args = [libc::PR_SET_THP_DISABLE as u64, 1, u64::from(self.thp_flags), 0, 0];
            script.call("prctl PR_SET_THP_DISABLE", libc::SYS_prctl, &args)?;
        }
        if self.mdwe != 0 {
            script.call("prctl PR_SET_MDWE", libc::SYS_prctl, &[PR_SET_MDWE, u64::from(self.mdwe), 0, 0, 0])?;
        }
        Ok(())
    }

    /// The modes of the first thread.
    pub fn modes(&self) -> Modes {
        Modes { tsc_faults: self.tsc_faults, cpuid_faults: self.cpuid_faults, mempolicy: self.mempolicy.clone() }
    }

    /// Takes those of the first thread; the others of the process keep theirs when they differ. `alike`: none has been
    /// asked for its memory policy but the first.
    pub fn take_modes<'t>(&mut self, mut threads: impl Iterator<Item = &'t mut TaskAttributes>, alike: bool) {
        let first = threads.next().and_then(|t| t.modes.take()).unwrap_or_default();
        for task in threads {
            if let Some(modes) = task.modes.as_mut().filter(|_| alike) {
                modes.mempolicy.clone_from(&first.mempolicy);
            }
            task.modes.take_if(|modes| *modes == first);
        }
        Modes { tsc_faults: self.tsc_faults, cpuid_faults: self.cpuid_faults, mempolicy: self.mempolicy } = first;
    }

    /// Sets what is set from outside. Warnings for what is not permitted, or is another thing here.
    pub fn apply(&self, pid: i32, name: i32) -> Vec<String> {
        let now = ProcessAttributes::capture(pid, self.autogroup_nice != 0);
        let mut warnings = Vec::new();
        let mut write = |file: &str, value: String| {
            if let Err(e) = std::fs::write(format!("/proc/{pid}/{file}"), &value) {
                warnings.push(format!("process {name}: {file} could not be set to {value}: {e}"));
            }
        };
        if now.coredump_filter != self.coredump_filter {
            write("coredump_filter", format!("{:#x}", self.coredump_filter.unwrap_or(DEFAULT_COREDUMP_FILTER)));
        }
        if self.autogroup_nice != 0 && self.autogroup_nice != now.autogroup_nice {
            write("autogroup", self.autogroup_nice.to_string());
        }
        if self.loginuid.is_some() && self.loginuid != now.loginuid {
            let text = |uid: Option<u32>| uid.map_or("unset".to_owned(), |uid| uid.to_string());
            warnings.push(format!("process {name}: its login uid (audit) was {} and is {} now", text(self.loginuid), text(now.loginuid)));
        }
        if self.label.is_some() && self.label != now.label {
            let text = |label: &Option<String>| label.clone().unwrap_or_else(|| "none".into());
            warnings.push(format!("process {name}: its security label was {} and is {} now", text(&self.label), text(&now.label)));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speculation_in_words() {
        let status = |store: &[u8], branch: &[u8]| Status {
            speculation_store_bypass: store.to_vec(),
            speculation_indirect_branch: branch.to_vec(),
            ..Status::default()
        };
        assert_eq!(speculation(&status(b"thread vulnerable", b"conditional force disabled")), [3, 9]);
        assert_eq!(speculation(&status(b"thread mitigated", b"conditional disabled")), [5, 5]);
        assert_eq!(speculation(&status(b"vulnerable", b"always enabled")), [0, 0]);
        assert_eq!(speculation(&Status::default()), [0, 0]);
    }

    #[test]
    fn own_attributes_are_the_default() {
        let seen = ProcessAttributes::capture(std::process::id() as i32, false);
        assert_eq!((seen.mdwe, seen.autogroup_nice), (0, 0));
    }
}
