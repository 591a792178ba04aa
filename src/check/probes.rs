//! The list of probes: what each one costs when it fails, and how that is mended.

use super::privileges::{Capabilities, give};
use super::{Finding, Weight};
use crate::netlock::{Manner, NetLock};
use crate::sys::feature::{self, Lack, Probe};
use crate::tracee::track::Choice as Tracker;
use nix::errno::Errno;

/// One line of the list.
struct Line {
    name: &'static str,
    weight: Weight,
    probe: fn() -> Probe,
    costs: &'static str,
    /// What to do when the kernel does not have it.
    kernel: &'static str,
    /// The capability that is missing when it was denied.
    capability: &'static str,
}

use Weight::{Feature, Required, Spare};

#[rustfmt::skip]
const LINES: [Line; 28] = [
    Line { name: "ptrace", weight: Required, probe: feature::ptrace, costs: "everything: tasks are held by ptrace",
        kernel: "allow ptrace in the seccomp profile (container: --security-opt seccomp=unconfined)", capability: "CAP_SYS_PTRACE" },
    Line { name: "process_vm_readv", weight: Required, probe: feature::read_memory, costs: "dump: memory is read with it",
        kernel: "a kernel with CONFIG_CROSS_MEMORY_ATTACH=y", capability: "CAP_SYS_PTRACE" },
    Line { name: "xsave", weight: Required, probe: feature::xsave, costs: "dump and restore: vector registers",
        kernel: "a processor with XSAVE, and no `noxsave` on the kernel's command line", capability: "CAP_SYS_PTRACE" },
    Line { name: "pagemap", weight: Required, probe: feature::pagemap, costs: "dump: it tells which pages there are",
        kernel: "a kernel with CONFIG_PROC_PAGE_MONITOR=y", capability: "CAP_SYS_PTRACE" },
    Line { name: "pidfd_getfd", weight: Required, probe: feature::pidfd_getfd, costs: "dump of pipes, terminals and memfds",
        kernel: "Linux 5.6 or later; in a container, allow pidfd_getfd in the seccomp profile", capability: "CAP_SYS_PTRACE" },
    Line { name: "kcmp", weight: Required, probe: feature::kcmp, costs: "dump: which descriptors share one open file",
        kernel: "a kernel with CONFIG_KCMP=y; in a container, allow kcmp in the seccomp profile", capability: "CAP_SYS_PTRACE" },
    Line { name: "PR_SET_MM_MAP", weight: Required, probe: feature::mm_map, costs: "restore: heap, arguments and environment",
        kernel: "a kernel with CONFIG_CHECKPOINT_RESTORE=y", capability: "CAP_CHECKPOINT_RESTORE" },
    Line { name: "clone3 set_tid", weight: Feature, probe: feature::set_tid, costs: "restore with the same pids",
        kernel: "Linux 5.5 or later; in a container, allow clone3 in the seccomp profile", capability: "CAP_CHECKPOINT_RESTORE" },
    Line { name: "rseq", weight: Feature, probe: feature::rseq, costs: "dump of threads with restartable sequences (glibc 2.35 and later)",
        kernel: "Linux 5.13 or later with CONFIG_RSEQ=y", capability: "CAP_SYS_PTRACE" },
    Line { name: "pagemap scan", weight: Feature, probe: feature::pagemap_scan, costs: "a short pause: pages are then found one by one",
        kernel: "Linux 6.7 or later", capability: "CAP_SYS_PTRACE" },
    Line { name: "/proc/PID/timers", weight: Feature, probe: || read("/proc/self/timers"), costs: "dump of processes with POSIX timers",
        kernel: "a kernel with CONFIG_CHECKPOINT_RESTORE=y and CONFIG_POSIX_TIMERS=y", capability: "CAP_SYS_PTRACE" },
    Line { name: "timer ids", weight: Spare, probe: timer_ids, costs: "nothing: timers are then made until one has the right id",
        kernel: "Linux 6.15 or later", capability: "CAP_SYS_PTRACE" },
    Line { name: "/proc/timer_list", weight: Feature, probe: || read("/proc/timer_list"), costs: "the time left of sleeps under way: they may sleep longer",
        kernel: "a kernel with CONFIG_PROC_FS=y that shows timer_list", capability: "CAP_DAC_READ_SEARCH" },
    Line { name: "memfd exec", weight: Feature, probe: feature::run_memfd, costs: "restore of programs whose file was deleted or replaced",
        kernel: "sysctl -w vm.memfd_noexec=0", capability: "CAP_SYS_ADMIN" },
    Line { name: "pid namespace", weight: Feature, probe: || feature::namespace(libc::CLONE_NEWPID), costs: "restore --pid-namespace",
        kernel: "a kernel with CONFIG_PID_NS=y", capability: "CAP_SYS_ADMIN" },
    Line { name: "mount namespace", weight: Feature, probe: || feature::namespace(libc::CLONE_NEWNS), costs: "restore --pid-namespace (it needs its own /proc)",
        kernel: "a kernel with CONFIG_NAMESPACES=y", capability: "CAP_SYS_ADMIN" },
    Line { name: "user namespace", weight: Spare, probe: || feature::namespace(libc::CLONE_NEWUSER), costs: "nothing in this version",
        kernel: "sysctl -w user.max_user_namespaces=10000", capability: "CAP_SYS_ADMIN" },
    Line { name: "network namespace", weight: Spare, probe: || feature::namespace(libc::CLONE_NEWNET), costs: "nothing in this version",
        kernel: "a kernel with CONFIG_NET_NS=y", capability: "CAP_SYS_ADMIN" },
    Line { name: "uts namespace", weight: Spare, probe: || feature::namespace(libc::CLONE_NEWUTS), costs: "nothing in this version",
        kernel: "a kernel with CONFIG_UTS_NS=y", capability: "CAP_SYS_ADMIN" },
    Line { name: "ipc namespace", weight: Spare, probe: || feature::namespace(libc::CLONE_NEWIPC), costs: "nothing in this version",
        kernel: "a kernel with CONFIG_IPC_NS=y", capability: "CAP_SYS_ADMIN" },
    Line { name: "time namespace", weight: Spare, probe: || feature::namespace(libc::CLONE_NEWTIME), costs: "nothing in this version",
        kernel: "a kernel with CONFIG_TIME_NS=y", capability: "CAP_SYS_ADMIN" },
    Line { name: "cgroup namespace", weight: Spare, probe: || feature::namespace(libc::CLONE_NEWCGROUP), costs: "nothing in this version",
        kernel: "a kernel with CONFIG_CGROUPS=y", capability: "CAP_SYS_ADMIN" },
    Line { name: "track uffd", weight: Spare, probe: || Tracker::Uffd.probe(), costs: "dump --live and --every with the shortest pause",
        kernel: "Linux 6.7 or later with CONFIG_USERFAULTFD=y; in a container, allow userfaultfd in the seccomp profile", capability: "CAP_SYS_PTRACE" },
    Line { name: "track soft-dirty", weight: Spare, probe: || Tracker::SoftDirty.probe(), costs: "nothing where uffd works, else dump --live and --every without reading all memory",
        kernel: "a kernel with CONFIG_MEM_SOFT_DIRTY=y", capability: "CAP_SYS_PTRACE" },
    Line { name: "track hash", weight: Spare, probe: || Tracker::Hash.probe(), costs: "dump --live and --every where nothing else works",
        kernel: "none: it works everywhere", capability: "CAP_SYS_PTRACE" },
    Line { name: "TCP_REPAIR", weight: Spare, probe: feature::tcp_repair, costs: "nothing in this version (connections, later)",
        kernel: "a kernel with CONFIG_CHECKPOINT_RESTORE=y", capability: "CAP_NET_ADMIN" },
    Line { name: "network lock", weight: Feature, probe: || lock(Manner::Drop), costs: "dump and restore of trees with connections",
        kernel: "a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", capability: "CAP_NET_ADMIN" },
    Line { name: "held packets", weight: Feature, probe: || lock(Manner::Hold), costs: "a short stall of peers: what arrives during a dump is dropped, and sent again",
        kernel: "a kernel with CONFIG_NFT_QUEUE, or CONFIG_NFT_COMPAT and CONFIG_NETFILTER_XT_TARGET_NFQUEUE", capability: "CAP_NET_ADMIN" },
];

/// A lock over nothing is made, and is gone again at once.
fn lock(manner: Manner) -> Probe {
    match NetLock::prepare(None, manner) {
        Ok(lock) if lock.remark.is_some() => Err(Errno::EOPNOTSUPP.into()),
        Ok(_) if manner == Manner::Hold => Ok("packets can wait in a queue".into()),
        Ok(_) => Ok("chosen connections can be locked".into()),
        Err(e) if e.kind == crate::error::Kind::Permission => Err(Errno::EPERM.into()),
        Err(_) => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// A file of /proc that must be readable.
fn read(path: &str) -> Probe {
    std::fs::read(path)?;
    Ok("can be read".into())
}

/// `PR_TIMER_CREATE_RESTORE_IDS`: POSIX timers get the ids that they had.
fn timer_ids() -> Probe {
    if feature::timer_ids_can_be_chosen() { Ok("can be chosen".into()) } else { Err(Errno::EINVAL.into()) }
}

/// Runs every probe.
pub fn all(capabilities: &Capabilities) -> Vec<Finding> {
    LINES.iter().map(|line| finding(line, (line.probe)(), capabilities)).collect()
}

fn finding(line: &Line, probe: Result<String, Lack>, capabilities: &Capabilities) -> Finding {
    let works = probe.is_ok();
    let mend = match &probe {
        Ok(_) => String::new(),
        // Denied though the capability is there: a filter stands in between.
        Err(lack) if lack.denied() && capabilities.has(line.capability) => {
            format!(
                "a seccomp profile or security module forbids it; in a container: --security-opt seccomp=unconfined, or {}",
                line.kernel
            )
        }
        Err(lack) if lack.denied() => give(line.capability),
        Err(_) => line.kernel.into(),
    };
    let detail = probe.unwrap_or_else(|lack| lack.to_string());
    Finding { name: line.name, works, weight: line.weight, detail, costs: line.costs, mend }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_fits_the_cause() {
        let line = &LINES[7];
        let none = Capabilities::of(&[]);
        let all = Capabilities::of(&["CAP_CHECKPOINT_RESTORE"]);
        assert!(finding(line, Err(Errno::ENOSYS.into()), &none).mend.starts_with("Linux 5.5"));
        assert!(finding(line, Err(Errno::EPERM.into()), &none).mend.to_lowercase().contains("cap_checkpoint_restore"));
        assert!(finding(line, Err(Errno::EPERM.into()), &all).mend.contains("seccomp"));
        assert!(finding(line, Ok("fine".into()), &all).works);
    }

    #[test]
    fn names_are_unique_and_every_gap_has_advice() {
        for (n, line) in LINES.iter().enumerate() {
            assert!(!line.costs.is_empty() && !line.kernel.is_empty(), "{}", line.name);
            assert!(LINES[..n].iter().all(|other| other.name != line.name), "{}", line.name);
        }
    }
}
