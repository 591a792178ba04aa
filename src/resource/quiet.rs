//! Processes that did nothing, since they were looked at, that could change what is dear to look at again: what only they
//! can tell ([`Asked`]), and the flags of their mappings ([`Layout`]), for which the kernel walks all of their memory.
//!
//! The kernel counts the system calls that could have changed it. Where it does not, everything is looked at each time.

use super::numa::Policy;
use super::process::Process;
use super::thread::Thread;
use super::timers::Timers;
use crate::sys::calls::{Call, Calls, Counters};
use crate::sys::proc::maps::Vma;
use std::collections::HashMap;

/// Descriptors that the counters may take.
const MOST_COUNTERS: usize = 4096;
/// sigaltstack(2), Linux 4.7: the kernel itself takes the stack away when a handler runs on it.
const SS_AUTODISARM: u32 = 1 << 31;

/// Calls that change what a task must be asked for. What changes by itself (timers that run) is asked for each time.
const OF_TASKS: &[Call] = &[
    ("rt_sigaction", None),
    ("sigaltstack", None),
    ("set_tid_address", None),
    // Names of tasks (15) and of mappings are seen from outside.
    ("prctl", Some(c"option != 15 && option != 0x53564d41")),
    ("arch_prctl", None),
    ("membarrier", Some(c"cmd != 0 && cmd != 1 && cmd != 2 && cmd != 8 && cmd != 32 && cmd != 128")),
    ("brk", None),
    ("setitimer", None),
    ("alarm", None),
    ("timer_create", None),
    ("timer_settime", None),
    ("timer_delete", None),
    ("set_mempolicy", None),
    ("mbind", None),
    ("set_mempolicy_home_node", None),
    ("migrate_pages", None),
    ("keyctl", None),
    ("add_key", None),
    ("request_key", None),
    ("setuid", None),
    ("setgid", None),
    ("setreuid", None),
    ("setregid", None),
    ("setresuid", None),
    ("setresgid", None),
    ("setfsuid", None),
    ("setfsgid", None),
    ("capset", None),
    ("execve", None),
    ("execveat", None),
    ("unshare", None),
    ("setns", None),
    ("io_setup", None),
    ("io_destroy", None),
    ("semop", None),
    ("semtimedop", None),
];

/// Calls that change mappings in ways that proc_pid_maps(5) does not show.
const OF_MAPPINGS: &[Call] = &[
    ("mmap", None),
    ("munmap", None),
    ("mremap", None),
    ("mprotect", None),
    ("pkey_mprotect", None),
    // Those that only concern what is in the pages: WILLNEED, DONTNEED, FREE, REMOVE, COLD, PAGEOUT, POPULATE, COLLAPSE.
    ("madvise", Some(c"behavior != 3 && behavior != 4 && behavior != 8 && behavior != 9 && (behavior < 20 || behavior > 25)")),
    ("mlock", None),
    ("mlock2", None),
    ("munlock", None),
    ("mlockall", None),
    ("munlockall", None),
    ("shmat", None),
    ("shmdt", None),
    ("remap_file_pages", None),
    ("mseal", None),
    ("brk", None),
    ("execve", None),
    ("execveat", None),
    ("userfaultfd", None),
];

/// What processes told, and whether it is still so.
#[derive(Debug)]
pub struct Quiet {
    of_tasks: Calls,
    of_mappings: Calls,
    asked: HashMap<i32, Asked>,
    layouts: HashMap<i32, Layout>,
    born: HashMap<i32, u64>,
}

/// What a process told of itself.
#[derive(Debug)]
struct Asked {
    counters: Counters,
    /// Signals that were caught or ignored: a handler can be for one signal only.
    caught: u64,
    process: Process,
    threads: Vec<Thread>,
    policies: Vec<(u64, Policy)>,
}

/// The mappings of a process with their flags.
#[derive(Debug)]
struct Layout {
    counters: Counters,
    maps: Vec<u8>,
    vmas: Vec<Vma>,
}

impl Quiet {
    /// Where the kernel counts calls for meio.
    pub fn new() -> Option<Quiet> {
        let (of_tasks, of_mappings) = (Calls::named(OF_TASKS).ok()?, Calls::named(OF_MAPPINGS).ok()?);
        Some(Quiet { of_tasks, of_mappings, asked: HashMap::new(), layouts: HashMap::new(), born: HashMap::new() })
    }

    /// Forgets all processes but these, each with the time of its start (proc_pid_stat(5)): pids are used again.
    pub fn keep(&mut self, processes: impl Iterator<Item = (i32, u64)>) {
        let now: HashMap<i32, u64> = processes.collect();
        let same = |pid: &i32| now.contains_key(pid) && now.get(pid) == self.born.get(pid);
        self.asked.retain(|pid, _| same(pid));
        self.layouts.retain(|pid, _| same(pid));
        self.born = now;
    }

    /// The mappings of a process, if they are as they were. `maps`: the text of proc_pid_maps(5) now.
    pub fn layout(&mut self, pid: i32, maps: &[u8]) -> Option<Vec<Vma>> {
        let layout = self.layouts.get_mut(&pid)?;
        (layout.counters.still() && layout.maps == maps).then(|| layout.vmas.clone())
    }

    /// Notes the mappings of a process that stands still.
    pub fn note_layout(&mut self, pid: i32, maps: Vec<u8>, vmas: &[Vma]) {
        match self.layouts.get_mut(&pid) {
            Some(layout) => (layout.maps, layout.vmas) = (maps, vmas.to_vec()),
            None => {
                let Some(counters) = self.count(&self.of_mappings, pid) else { return };
                self.layouts.insert(pid, Layout { counters, maps, vmas: vmas.to_vec() });
            }
        }
    }

    /// Counters for all threads of a process, while there are descriptors for them.
    fn count(&self, calls: &Calls, pid: i32) -> Option<Counters> {
        let tids = crate::sys::proc::read::tasks(pid).ok()?;
        let used: usize = self.asked.values().map(|a| a.counters.len()).chain(self.layouts.values().map(|l| l.counters.len())).sum();
        if used + tids.len() * calls.len() > MOST_COUNTERS {
            return None;
        }
        calls.count(tids.into_iter()).ok()
    }

    /// Completes what was seen of a process by what it told before. False when it must be asked (again).
    pub fn answer(&mut self, process: &mut Process, threads: &mut [Thread], caught: u64) -> bool {
        let Some(asked) = self.asked.get_mut(&process.pid) else { return false };
        if !asked.counters.still() || asked.caught != caught || process.rings.len() != asked.process.rings.len() {
            return false;
        }
        let of = |tid: i32| asked.threads.iter().find(|t| t.tid == tid);
        if !threads.iter().all(|t| of(t.tid).is_some()) {
            return false;
        }
        for thread in threads {
            let Some(told) = of(thread.tid) else { continue };
            thread.altstack = told.altstack;
            thread.clear_child_tid = told.clear_child_tid;
            thread.pdeathsig = told.pdeathsig;
            thread.credentials.securebits = told.credentials.securebits;
            thread.attributes.modes.clone_from(&told.attributes.modes);
        }
        let told = &asked.process;
        (process.dumpable, process.subreaper, process.thp_disable) = (told.dumpable, told.subreaper, told.thp_disable);
        let (now, then) = (&mut process.attributes, &told.attributes);
        (now.thp_flags, now.mdwe, now.membarrier) = (then.thp_flags, then.mdwe, then.membarrier);
        (now.tsc_faults, now.cpuid_faults) = (then.tsc_faults, then.cpuid_faults);
        now.mempolicy.clone_from(&then.mempolicy);
        process.signals.actions.clone_from(&told.signals.actions);
        if let (Some(now), Some(then)) = (&mut process.memory, &told.memory) {
            now.borders.brk = then.borders.brk;
            for (start, policy) in &asked.policies {
                now.mappings.iter_mut().filter(|m| m.start == *start).for_each(|m| m.policy = Some(policy.clone()));
            }
        }
        true
    }

    /// Notes what a process told that stands still, if it can be believed the next time.
    pub fn note(&mut self, process: &Process, threads: &[Thread], caught: u64) {
        let by_itself = process.timers != Timers::default()
            || !process.rings.is_empty()
            || !process.undo.is_empty()
            || threads.iter().any(|t| t.altstack.1 & SS_AUTODISARM != 0);
        if by_itself {
            self.asked.remove(&process.pid);
            return;
        }
        let counters = match self.asked.remove(&process.pid) {
            // The calls that it was just made to run have been counted; those of new threads are, with their parents'.
            Some(mut asked) => {
                asked.counters.still();
                Some(asked.counters)
            }
            None => self.count(&self.of_tasks, process.pid),
        };
        let Some(counters) = counters else { return };
        let mappings = process.memory.iter().flat_map(|m| &m.mappings);
        let policies = mappings.filter_map(|m| Some((m.start, m.policy.clone()?))).collect();
        let (process, threads) = (process.clone(), threads.to_vec());
        self.asked.insert(process.pid, Asked { counters, caught, process, threads, policies });
    }
}
