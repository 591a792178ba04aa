//! Processes that did nothing, since they were looked at, that could change what is dear to look at again: what only they
//! can tell ([`Asked`]), and the flags of their mappings ([`Layout`]), for which the kernel walks all of their memory.
//!
//! The kernel counts the system calls that could have changed it. Where it does not, everything is looked at each time.

use super::numa::Policy;
use super::process::Process;
use super::thread::Thread;
use super::timers::Timers;
use crate::sys::calls::{Call, Calls, Counters};
use crate::sys::pagemap::{self, Guards};
use crate::sys::proc::maps::{self, Vma};
use crate::sys::proc::{read, stat};
use std::collections::{HashMap, HashSet};

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
    ("process_madvise", None),
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
    /// Counters of the calls of each process that concern what it is asked for.
    counters: HashMap<i32, Counters>,
    asked: HashMap<i32, Asked>,
    layouts: HashMap<i32, Layout>,
    born: HashMap<i32, u64>,
}

/// What a process told of itself.
#[derive(Debug)]
struct Asked {
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
    /// Text of proc_pid_maps(5), the mappings, and the guards in them; empty: not known.
    maps: Vec<u8>,
    vmas: Vec<Vma>,
    guards: Guards,
}

impl Quiet {
    /// Where the kernel counts calls for meio.
    pub fn new() -> Option<Quiet> {
        let (of_tasks, of_mappings) = (Calls::named(OF_TASKS).ok()?, Calls::named(OF_MAPPINGS).ok()?);
        Some(Quiet {
            of_tasks,
            of_mappings,
            counters: HashMap::new(),
            asked: HashMap::new(),
            layouts: HashMap::new(),
            born: HashMap::new(),
        })
    }

    /// Forgets all processes but these, each with the time of its start (proc_pid_stat(5)): pids are used again.
    pub fn keep(&mut self, processes: impl Iterator<Item = (i32, u64)>) {
        let now: HashMap<i32, u64> = processes.collect();
        let same = |pid: &i32| now.contains_key(pid) && now.get(pid) == self.born.get(pid);
        self.counters.retain(|pid, _| same(pid));
        self.asked.retain(|pid, _| same(pid));
        self.layouts.retain(|pid, _| same(pid));
        self.born = now;
    }

    /// Begins to count what a process does that runs; nothing to do for one that is counted.
    pub fn watch(&mut self, pid: i32) {
        if let Ok(stat) = read::parsed(pid, "stat", stat::parse) {
            self.born.insert(pid, stat.start_time);
        }
        if !self.counters.contains_key(&pid)
            && let Some(counters) = self.count(&self.of_tasks, pid)
        {
            self.counters.insert(pid, counters);
        }
        if !self.layouts.contains_key(&pid)
            && let Some(counters) = self.count(&self.of_mappings, pid)
        {
            self.layouts.insert(pid, Layout { counters, maps: Vec::new(), vmas: Vec::new(), guards: Vec::new() });
        }
    }

    /// Looks at the mappings of a process that runs, if they may be others than they were.
    pub fn look(&mut self, pid: i32) {
        let Some(layout) = self.layouts.get_mut(&pid) else { return };
        let maps = || read::read(pid, "maps").unwrap_or_default();
        let text = maps();
        if layout.counters.still() && layout.maps == text {
            return;
        }
        layout.maps.clear();
        let vmas = read::parsed(pid, "smaps", maps::parse);
        let guards = vmas.as_ref().ok().and_then(|vmas| pagemap::guards(pid, vmas).ok());
        // What changed in between is looked at again another time.
        if let (Ok(vmas), Some(guards)) = (vmas, guards)
            && layout.counters.still()
            && maps() == text
        {
            (layout.maps, layout.vmas, layout.guards) = (text, vmas, guards);
        }
    }

    /// The mappings of a process that stands still, and its guards, if they are as they were. `maps`: the text of
    /// proc_pid_maps(5) now.
    pub fn layout(&mut self, pid: i32, maps: &[u8]) -> Option<(Vec<Vma>, Guards)> {
        let layout = self.layouts.get_mut(&pid)?;
        (layout.counters.still() && layout.maps == maps).then(|| (layout.vmas.clone(), layout.guards.clone()))
    }

    /// Notes the mappings of a process that stands still, and its guards.
    pub fn note_layout(&mut self, pid: i32, maps: Vec<u8>, (vmas, guards): (&[Vma], &Guards)) {
        self.watch(pid);
        if let Some(layout) = self.layouts.get_mut(&pid) {
            layout.counters.still();
            (layout.maps, layout.vmas, layout.guards) = (maps, vmas.to_vec(), guards.clone());
        }
    }

    /// Counters for all threads of a process, while there are descriptors for them.
    fn count(&self, calls: &Calls, pid: i32) -> Option<Counters> {
        let all = self.counters.values().chain(self.layouts.values().map(|l| &l.counters));
        let used: usize = all.map(Counters::len).sum();
        let mut counters = Counters::default();
        let mut counted = HashSet::new();
        // What is born of a task that is counted is counted with it; what was born a moment before is found in the list.
        loop {
            let tids = read::tasks(pid).ok()?;
            let new: Vec<i32> = tids.into_iter().filter(|tid| !counted.contains(tid)).collect();
            if new.is_empty() {
                return Some(counters);
            }
            if used + counters.len() + new.len() * calls.len() > MOST_COUNTERS {
                return None;
            }
            counters.add(calls.count(new.iter().copied()).ok()?);
            counted.extend(new);
        }
    }

    /// Completes what was seen of a process by what it told before. False when it must be asked (again).
    pub fn answer(&mut self, process: &mut Process, threads: &mut [Thread], caught: u64) -> bool {
        let still = self.counters.get_mut(&process.pid).is_some_and(Counters::still);
        let Some(asked) = self.asked.get_mut(&process.pid) else { return false };
        if !still || asked.caught != caught || process.rings.len() != asked.process.rings.len() {
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
        self.watch(process.pid);
        // The calls that it was just made to run have been counted, too.
        let Some(counters) = self.counters.get_mut(&process.pid) else { return };
        counters.still();
        let mappings = process.memory.iter().flat_map(|m| &m.mappings);
        let policies = mappings.filter_map(|m| Some((m.start, m.policy.clone()?))).collect();
        let (process, threads) = (process.clone(), threads.to_vec());
        self.asked.insert(process.pid, Asked { caught, process, threads, policies });
    }
}
