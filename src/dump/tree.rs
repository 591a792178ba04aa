//! Turns a frozen tree into its saved form, and finds what stands in the way.

use super::ask::{Asked, ask};
use super::copy::{From, Job, cut};
use super::spans::Spans;
use super::tracking::Tracking;
use crate::error::{Context, Kind as Failure, Result};
use crate::image::Owner;
use crate::resource::capture::{Capture, Decisions};
use crate::resource::clocks::Clocks;
use crate::resource::memory::{AddressSpace, Backing, PAGE};
use crate::resource::namespace::{Look, Numbers};
use crate::resource::process::{Fs, Process, State};
use crate::resource::recall::Recall;
use crate::resource::shared::Origin;
use crate::resource::system_v;
use crate::resource::thread::Thread;
use crate::resource::{Tree, cgroup, descriptor, memory, mqueue, namespace, numa, pipe, pty, seccomp};
use crate::sys::file;
use crate::sys::namespace::Kind;
use crate::sys::pagemap::{Pagemap, Want};
use crate::sys::proc::ahead::{Ahead, Wanted};
use crate::sys::proc::{read, stat, status};
use crate::sys::task::{self, Shared};
use crate::tracee::foothold::Foothold;
use crate::tracee::freeze::{self, Frozen};
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Everything of a frozen tree but its pages.
pub struct Captured {
    /// The saved form.
    pub tree: Tree,
    /// The tables, with the sources of object content.
    pub capture: Capture,
    /// Page content that must be copied.
    pub jobs: Vec<Job>,
    /// Bytes in those jobs.
    pub bytes: u64,
    /// Bytes of memory in all mappings of the tree that are the tree's own.
    pub warnings: Vec<String>,
    /// The numbers of processes in the image.
    pub numbers: Numbers,
}

/// Looks at everything that can be refused; touches nothing. The processes may be running; returned is what was seen of
/// them.
pub fn survey(pids: &[i32], capture: &mut Capture) -> Result<Vec<Process>> {
    let mut seen: Vec<Process> = Vec::new();
    for &pid in pids {
        let look = |seen: &mut Vec<Process>, capture: &mut Capture| -> Result<()> {
            let ended = refuse_process(pid, true, capture)?;
            let ppid = read::parsed(pid, "stat", stat::parse)?.ppid;
            let process = Process::capture(pid, if seen.iter().any(|p| p.pid == ppid) { ppid } else { 0 }, &[])?;
            seen.push(process);
            if let (false, Some(process)) = (ended, seen.last_mut()) {
                process.places = namespace::survey(pid, Look::Running, capture)?;
                process.threads = read::tasks(pid)?.into_iter().map(|tid| Thread { tid, ..Thread::default() }).collect();
                let (space, vmas) = look_again(pid, capture, |capture| memory::survey(pid, capture))?;
                process.memory = Some(space);
                let _ = Foothold::find(pid, &vmas, 0, &mut capture.recall.footholds); // known when it stands still
                capture.recall.footholds.forget_misses();
                process.descriptors = descriptor::survey(pid, capture)?;
                process.fs = Fs::capture(pid, capture)?;
            }
            Ok(())
        };
        // A running process changes while it is looked at. What fails here is found again, or not, once it stands still.
        match look(&mut seen, capture) {
            // Of one that is just ending nothing may be seen any more.
            Err(e) if e.kind == Failure::Permission && !super::ended(pid) => return Err(e),
            _ => {}
        }
    }
    without_the_ending(&mut seen);
    let tree: HashSet<i32> = pids.iter().copied().collect();
    pty::finish(&tree, capture)?;
    mqueue::finish(&tree, &seen, capture)?;
    pipe::refuse_outsiders(&tree, std::process::id() as i32, capture);
    // Likewise.
    let _ = descriptor::settle(&tree, capture);
    Ok(seen)
}

/// Looks until nothing went away meanwhile: a busy server takes mappings and gives them back all the time.
fn look_again<T>(pid: i32, capture: &mut Capture, mut look: impl FnMut(&mut Capture) -> Result<T>) -> Result<T> {
    /// A number of times is over at once where a processor is shared with who changes things.
    const PATIENCE: Duration = Duration::from_secs(2);
    const BREATH: Duration = Duration::from_millis(1);
    let (begun, before) = (Instant::now(), capture.refusals.len());
    loop {
        match look(capture) {
            Err(e) if e.kind != Failure::Permission && !super::ended(pid) && begun.elapsed() < PATIENCE => {}
            seen => return seen,
        }
        capture.refusals.truncate(before);
        std::thread::sleep(BREATH);
    }
}

/// Leaves out what has ended while it was looked at, and was seen in part only. What it leaves behind is the root's for now.
fn without_the_ending(seen: &mut Vec<Process>) {
    let Some(root) = seen.first().map(|p| p.pid) else { return };
    let whole = |p: &Process| match p.state {
        State::Zombie(_) => p.memory.is_none() && p.threads.is_empty(),
        _ => p.memory.is_some() && p.threads.first().is_some_and(|t| t.tid == p.pid) && !p.fs.cwd.as_os_str().is_empty(),
    };
    seen.retain(|p| p.pid == root || whole(p));
    let there: HashSet<i32> = seen.iter().map(|p| p.pid).collect();
    for process in seen.iter_mut().filter(|p| p.pid != root && !there.contains(&p.ppid)) {
        process.ppid = root;
    }
}

/// Processes and all tables of a capture, in their saved form.
pub fn gather(processes: Vec<Process>, capture: &mut Capture) -> Tree {
    Tree {
        processes,
        files: std::mem::take(&mut capture.files),
        pipes: std::mem::take(&mut capture.pipes),
        terminals: std::mem::take(&mut capture.terminals),
        mapped: std::mem::take(&mut capture.mapped),
        objects: std::mem::take(&mut capture.objects),
        owners: std::mem::take(&mut capture.owners),
        cgroups: capture.cgroups.take(),
        decisions: capture.decisions.made(),
        filters: capture.filters.take(),
        namespaces: std::mem::take(&mut capture.namespaces.found),
        system_v: std::mem::take(&mut capture.system_v.of_root),
        system_v_elsewhere: std::mem::take(&mut capture.system_v.elsewhere),
        message_queues: std::mem::take(&mut capture.message_queues),
        clocks: None,
    }
}

/// Properties of a whole process that rule it out. True for a zombie, of which there is nothing more to see.
fn refuse_process(pid: i32, running: bool, capture: &mut Capture) -> Result<bool> {
    let stat = read::parsed(pid, "stat", stat::parse)?;
    if matches!(stat.state, b'Z' | b'X') {
        if stat.num_threads > 1 {
            // Also the look of a process that is just being killed.
            let advice = "let the process end, or start it differently";
            capture.refuse_for_now(pid, "main thread", "it has ended while others go on", advice);
        }
        return Ok(true);
    }
    // While the tree stands still only the one that programs do give to single threads.
    let own = namespace::of_process(pid, if running { &Kind::ALL[3..] } else { &[Kind::Net] });
    for tid in read::tasks(pid)? {
        if running {
            match read::parsed_task(pid, tid, "status", status::parse) {
                Err(e) if e.kind == Failure::NotFound && tid != pid => continue,
                Ok(status) if status.seccomp == 0 => {}
                status => status.map(drop).and_then(|()| seccomp::survey(pid, tid, capture))?,
            }
        }
        if tid != pid {
            if let Some(kind) = namespace::stray_thread(pid, tid, &own) {
                let reason = format!("it has left the {} namespace of its process", kind.name());
                capture.refuse(pid, format!("task {tid}"), reason, "not supported; start the program differently");
            }
            for (what, name) in [(Shared::Files, "descriptor table"), (Shared::Fs, "working directory")] {
                if !task::share(pid, tid, what).unwrap_or(true) {
                    let reason = format!("it has a {name} of its own (unshare), apart from its process");
                    capture.refuse(pid, format!("task {tid}"), reason, "not supported; start the program differently");
                }
            }
        }
    }
    if running {
        return Ok(false); // what follows comes and goes with every vfork(2)
    }
    let parent = stat.ppid;
    for (what, name) in [(Shared::Vm, "memory"), (Shared::Files, "descriptor table"), (Shared::Fs, "working directory")] {
        if task::share(pid, parent, what).unwrap_or(false) {
            let reason = format!("it shares its {name} with its parent {parent} (clone, vfork)");
            capture.refuse_for_now(pid, "process", reason, "wait until the child has called execve");
        }
    }
    Ok(false)
}

/// How many processes the tree below `pid` has now, and about how many bytes of memory of its own; it may be running.
pub fn extent(pid: i32) -> (usize, u64) {
    let mut pids = vec![pid];
    let (mut count, mut pages) = (0, 0);
    while let Some(pid) = pids.pop() {
        count += 1;
        pids.extend(read::children(pid).unwrap_or_default());
        // proc_pid_statm(5): size, resident, resident shared (of files, and shared memory).
        let text = read::read(pid, "statm").unwrap_or_default();
        let mut fields = text.split(|b| *b == b' ').map(|f| std::str::from_utf8(f).ok()?.parse::<u64>().ok());
        if let (Some(Some(resident)), Some(Some(shared))) = (fields.nth(1), fields.next()) {
            pages += resident.saturating_sub(shared);
        }
    }
    (count, pages * PAGE)
}

/// Reads everything of a frozen tree. When `capture.refusals` is not empty afterwards, nothing must be written.
pub fn capture(frozen: &mut Frozen, decisions: &Decisions, recall: Recall, mut tracking: Option<&mut Tracking>) -> Result<Captured> {
    let mut capture = Capture { standing: true, decisions: decisions.clone().into(), recall, ..Capture::default() };
    if let Some(tracking) = &tracking {
        capture.watched_by_meio = frozen.processes.iter().map(|p| p.pid).filter(|&pid| tracking.tracker.protects(pid)).collect();
    }
    if let Some(quiet) = &mut capture.recall.quiet {
        let born = |pid| read::parsed(pid, "stat", stat::parse).map_or(0, |s| s.start_time);
        quiet.keep(frozen.processes.iter().map(|p| (p.pid, born(p.pid))));
    }
    capture.recall.deadlines.keep(&frozen.processes.iter().flat_map(|p| &p.threads).map(|held| held.tid).collect());
    let again = capture.recall.quiet.is_some();
    capture.recall.connections.look(frozen.processes.iter().map(|p| p.pid), again);
    capture.recall.files.look(frozen.processes.iter().map(|p| p.pid), again);
    capture.system_v = system_v::Listed::of(frozen.processes.iter().map(|p| p.pid))?;
    let mut processes = Vec::new();
    let mut jobs = Vec::new();
    let mut warnings = Vec::new();
    let ahead = Ahead::of(frozen.processes.iter().filter(|p| !p.threads.is_empty()).map(|p| wanted(p, &capture)).collect());
    let tree: HashSet<i32> = frozen.processes.iter().map(|p| p.pid).collect();
    let mut asked: VecDeque<(i32, Asked<'_>)> = VecDeque::new();
    let count = frozen.processes.len();
    for (n, process) in frozen.processes.iter_mut().enumerate() {
        let (pid, ended) = (process.pid, process.threads.is_empty());
        let entered = ahead.enter(pid);
        let last = n + 1 == count;
        let captured = capture_process(process, last, &mut capture, tracking.as_deref_mut(), &mut jobs, &mut warnings);
        drop(entered);
        match captured {
            // It had ended, and somebody outside of the tree has taken notice since.
            Err(e) if e.kind == Failure::NotFound && ended => {}
            captured => asked.extend(captured.context(|| format!("capturing process {pid}"))?.map(|asked| (pid, asked))),
        }
        while asked.len() > MOST_ASKED {
            processes.extend(answered(&mut asked, &mut capture)?);
        }
    }
    while !asked.is_empty() {
        processes.extend(answered(&mut asked, &mut capture)?);
    }
    drop(ahead);
    descriptor::find_unheld(&mut capture)?;
    pipe::refuse_outsiders(&tree, std::process::id() as i32, &mut capture);
    descriptor::settle(&tree, &mut capture)?;
    system_v::capture(&processes, &tree, &mut capture)?;
    pty::finish(&tree, &mut capture)?;
    mqueue::finish(&tree, &processes, &mut capture)?;
    warnings.append(&mut capture.warnings);
    let mapped = if capture.recall.files.is_used() { capture.mapped_files(&processes) } else { HashSet::new() };
    let calm = capture.recall.files.calm();
    capture.recall.files.forget(&mapped);
    tracking.iter_mut().for_each(|tracking| tracking.begin_objects(&mapped, calm));
    for (number, source) in capture.sources.iter().enumerate() {
        // Those of several ipc namespaces are told apart by nothing.
        let own = !matches!(capture.objects[number].origin, Origin::SystemV { .. });
        if let Some(tracking) = tracking.as_mut().filter(|_| own) {
            tracking.object(number as u32, (&source.file, source.stamp), capture.objects[number].size, &mut jobs)?;
            continue;
        }
        let ranges = file::data_ranges(&source.file, capture.objects[number].size).context(|| "looking for data in shared memory")?;
        let ranges: Vec<(u64, u64)> = ranges.iter().map(|&(start, len)| (start, start + len)).collect();
        cut(Owner::Object(number as u32), From::Object(number), true, &ranges, &mut jobs);
        tracking.iter_mut().for_each(|tracking| tracking.unwatched());
    }
    let bytes = jobs.iter().map(|j| j.pages() * PAGE).sum();
    let numbers = numbers(&mut processes, &capture)?;
    namespace::complete(&processes, &mut capture);
    let clocks = if processes.iter().any(reads_clock) { Some(Clocks::capture()?) } else { None };
    let mut tree = Tree { clocks, ..gather(processes, &mut capture) };
    capture.settle(&tree);
    warnings.extend(capture.decisions.unused());
    if !numbers.same() {
        tree.renumber(|number| numbers.translate(number));
        for job in &mut jobs {
            if let Owner::Process(pid) = &mut job.owner {
                *pid = numbers.translate(*pid);
            }
        }
    }
    Ok(Captured { tree, capture, jobs, bytes, warnings, numbers })
}

/// Processes that are asked at a time.
const MOST_ASKED: usize = 16;

/// The first of the processes that are being asked, when it has told everything.
fn answered(asked: &mut VecDeque<(i32, Asked<'_>)>, capture: &mut Capture) -> Result<Option<Process>> {
    match asked.pop_front() {
        None => Ok(None),
        Some((_, Asked::Done(process))) => Ok(Some(*process)),
        Some((pid, Asked::Flying(flight))) => flight.land(capture).map(Some).context(|| format!("capturing process {pid}")),
    }
}

/// What is to be read about a process.
fn wanted(process: &freeze::Process, capture: &Capture) -> Wanted {
    let recall = &capture.recall;
    let smaps = recall.quiet.is_none() && !recall.glance.knows(process.pid);
    Wanted { pid: process.pid, tids: process.threads.iter().map(|t| t.tid).collect(), smaps, numa: numa::PAGES_PER_CALL }
}

/// Whether a thread was stopped inside the vDSO.
fn reads_clock(process: &Process) -> bool {
    let vdso = process.memory.iter().flat_map(|m| &m.mappings).find(|m| m.backing == Backing::Kernel && m.name == "[vdso]");
    vdso.is_some_and(|vdso| process.threads.iter().any(|t| vdso.contains(t.registers.rip)))
}

/// The numbers of the tree's own pid namespace, by those that meio sees. Notes those of nested namespaces.
fn numbers(processes: &mut [Process], capture: &Capture) -> Result<Numbers> {
    let Some(root) = processes.first().map(|root| root.pid) else { return Ok(Numbers::default()) };
    if capture.namespaces.found.iter().all(|n| n.kind != Kind::Pid) {
        return Ok(Numbers::default());
    }
    let mut numbers = Numbers::of(&read::parsed(root, "status", status::parse)?);
    for process in processes {
        process.places.inner = numbers.learn(&read::parsed(process.pid, "status", status::parse)?);
        for thread in &mut process.threads {
            thread.inner = numbers.learn(&read::parsed_task(process.pid, thread.tid, "status", status::parse)?);
        }
    }
    Ok(numbers)
}

/// `last`: all others were looked at.
fn capture_process<'f>(
    frozen: &'f mut freeze::Process,
    last: bool,
    capture: &mut Capture,
    tracking: Option<&mut Tracking>,
    jobs: &mut Vec<Job>,
    warnings: &mut Vec<String>,
) -> Result<Option<Asked<'f>>> {
    let pid = frozen.pid;
    if refuse_process(pid, false, capture)? {
        let places = namespace::survey(pid, Look::Ended, capture)?;
        return Process::capture(pid, frozen.ppid, &[]).map(|ended| Some(Asked::Done(Box::new(Process { places, ..ended }))));
    }
    let places = namespace::survey(pid, Look::Still, capture)?;
    // First, as it goes on beside all else.
    let descriptors = descriptor::survey(pid, capture)?;
    if last {
        descriptor::begin_reading(capture)?;
    }
    let (space, vmas) = memory::survey(pid, capture)?;
    system_v::survey(pid, capture)?;
    let fs = Fs::capture(pid, capture)?;
    if !capture.refusals.is_empty() {
        return Ok(None); // only to list all of them
    }
    let mut threads = threads(frozen, capture, warnings)?;
    if !capture.refusals.is_empty() {
        return Ok(None);
    }
    let mut saved = Process::capture(pid, frozen.ppid, &threads)?;
    saved.cgroups = cgroup::capture(pid, pid, capture);
    for thread in threads.iter_mut().skip(1) {
        thread.cgroups = cgroup::capture(pid, thread.tid, capture).filter(|_| saved.cgroups.is_some());
        thread.cgroups.take_if(|number| Some(*number) == saved.cgroups);
    }
    saved.state = frozen.threads[0].group_stop.map_or(State::Running, State::Stopped);
    saved.memory = Some(space);
    saved.descriptors = descriptors;
    saved.fs = fs;
    saved.places = places;
    let Some(tracking) = tracking else {
        if let Some(space) = &saved.memory {
            pages(pid, space, jobs)?;
        }
        return Asked::begin(frozen, &vmas, saved, threads, capture, warnings).map(Some);
    };
    ask(frozen, &vmas, &mut saved, &mut threads, capture, warnings)?;
    saved.threads = threads;
    if let Some(space) = &saved.memory {
        let call = saved.threads[0].waiting.as_ref().map(|w| w.number);
        warnings.extend(tracking.pages(frozen, (&vmas, space), (call, &mut capture.recall.footholds), jobs)?);
    }
    Ok(Some(Asked::Done(Box::new(saved))))
}

/// The threads of a process, as far as can be seen from outside; what is asked of them then leaves no trace.
pub fn threads(frozen: &mut freeze::Process, capture: &mut Capture, warnings: &mut Vec<String>) -> Result<Vec<Thread>> {
    let mut threads = Vec::with_capacity(frozen.threads.len());
    for held in &mut frozen.threads {
        let mut thread = Thread::capture(held, capture)?;
        if !thread.seccomp.is_off() {
            seccomp::capture(held, &mut thread.seccomp, capture)?;
            warnings.extend(thread.keep_clear_of_restart(held));
        }
        threads.push(thread);
    }
    Ok(threads)
}

/// Finds the pages of a process that must be copied.
fn pages(pid: i32, space: &AddressSpace, jobs: &mut Vec<Job>) -> Result<()> {
    let mut pagemap = Pagemap::open(pid).context(|| format!("opening the page map of process {pid}"))?;
    // Three kinds of source: plain memory, memory over a file (where a page of zeros is not nothing), unreadable memory.
    let mut plain = Vec::new();
    let mut over_file = Vec::new();
    let mut protected = Vec::new();
    for mapping in space.mappings.iter().filter(|m| !m.shared) {
        let list = match mapping.backing {
            Backing::Kernel if mapping.name == "[vdso]" => {
                over_file.push((mapping.start, mapping.end)); // for people and debuggers; a restore has its own
                continue;
            }
            Backing::Kernel => continue,
            _ if mapping.prot & libc::PROT_READ as u32 == 0 => &mut protected,
            Backing::Anonymous => &mut plain,
            _ => &mut over_file,
        };
        let anonymous = mapping.backing == Backing::Anonymous && mapping.huge_page_kib == 0;
        let want = if anonymous { Want::Anonymous } else { Want::Own };
        pagemap.ranges(mapping.start, mapping.end, want, list).context(|| format!("reading the page map of process {pid}"))?;
    }
    let owner = Owner::Process(pid);
    let guards = Spans::of(space.guards.clone());
    let mut cut = |from, elide_zero, list| cut(owner, from, elide_zero, Spans::of(list).without(&guards).ranges(), jobs);
    cut(From::Memory(pid), true, plain);
    cut(From::Memory(pid), false, over_file);
    cut(From::Protected(pid), false, protected);
    Ok(())
}
