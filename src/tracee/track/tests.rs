//! One property for all trackers: what is rebuilt from their answers is the memory itself, page for page.
//!
//! `fixtures/programs/chaos.c` does at random whatever can be done to memory. It is stopped at random instants; then what
//! was told to have changed is copied, what was told to be kept is taken from the copies before, and everything is compared
//! with the real memory. `TRACKERS=all` makes it thousands of epochs a tracker, `TRACKERS=N` N of them, `SEED` repeats a run, `CHAOS` and
//! `BUSY` are the programs when they are compiled already.

use super::hash::begin;
use super::*;
use crate::sys::memory::MemFile;
use crate::sys::proc::{maps, read, status};
use crate::tracee::freeze::{Frozen, freeze};
use nix::time::ClockId;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const PAGE: u64 = crate::sys::pagemap::PAGE;

type Memory = BTreeMap<u64, Box<[u8]>>;

/// Everything that was copied so far.
#[derive(Default)]
struct Copies {
    of: HashMap<Of, Memory>,
    kept: u64,
    changed: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// A program that ends with the test.
struct Program(Child);

impl Program {
    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// What its threads do.
    fn threads(&self) -> String {
        let of =
            |tid: i32, name| read::read_task(self.pid(), tid, name).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default();
        let tell = |tid| ["stat", "wchan", "syscall"].map(|name| of(tid, name)).join(" ");
        read::tasks(self.pid()).unwrap_or_default().into_iter().map(tell).collect::<Vec<_>>().join("; ")
    }

    /// Lets it have so much time of a processor.
    fn go_on(&self, time: Duration) {
        let clock = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(self.pid())).expect("clock");
        let used = || Duration::from(clock.now().expect("time"));
        let (until, limit) = (used() + time, Instant::now() + Duration::from_secs(30));
        while used() < until {
            assert!(Instant::now() < limit, "the program stands still: {}", self.threads());
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A compiled program; one that is there already when the variable of its name says where.
fn program(name: &str, folder: &tempfile::TempDir) -> PathBuf {
    if let Some(path) = std::env::var_os(name.to_uppercase()) {
        return path.into();
    }
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/programs").join(name).with_extension("c");
    let path = folder.path().join(name);
    let done = Command::new("gcc").args(["-O1", "-g", "-pthread", "-o"]).arg(&path).arg(source).status().expect("gcc");
    assert!(done.success());
    path
}

/// Runs a test in a process of its own: whoever traces waits for all children of the process.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os("TRACKER_ALONE").is_some() {
        return test();
    }
    let own = std::env::current_exe().expect("own path");
    let name = format!("tracee::track::tests::{name}");
    let run =
        Command::new(own).args([&name, "--exact", "--nocapture", "--test-threads=1"]).env("TRACKER_ALONE", "1").output().expect("run");
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    println!("{text}");
    assert!(run.status.success() && text.contains("1 passed"), "{name}");
}

fn private(vmas: &[Vma]) -> impl Iterator<Item = &Vma> {
    vmas.iter().filter(|v| !v.shared && !v.name.starts_with(b"[v"))
}

/// The private mappings of a process.
fn areas(vmas: &[Vma]) -> Vec<Area> {
    private(vmas)
        .map(|v| {
            let kind = if v.inode == 0 { Kind::Anonymous } else { Kind::File };
            let class = match kind {
                _ if v.prot & 1 == 0 => Class::Protected,
                Kind::File => Class::OverFile,
                _ => Class::Plain,
            };
            Area { start: v.start, end: v.end, class, kind, mergeable: true }
        })
        .collect()
}

fn list(ranges: &[(u64, u64)]) -> impl Iterator<Item = u64> + '_ {
    ranges.iter().flat_map(|&(start, end)| (start..end).step_by(PAGE as usize))
}

/// Takes over what a look has told. In a process that runs what was told may have gone since.
fn take(
    tracker: &mut dyn Tracker,
    of: Of,
    told: &[&Pages],
    copies: &mut Copies,
    still: bool,
    read: impl Fn(u64, &mut [u8]) -> std::io::Result<()>,
) {
    let before = copies.of.remove(&of).unwrap_or_default();
    // A round in between adds to what there is; a look at a tree that stands still says what there is.
    let mut now = if still { Memory::new() } else { before.clone() };
    for pages in told {
        for set in [&pages.changed, &pages.kept] {
            assert!(set.iter().all(|r| r.0 < r.1 && r.0 % PAGE == 0 && r.1 % PAGE == 0), "{of:?}: {set:x?}");
            assert!(set.is_sorted() && set.windows(2).all(|w| w[0].1 < w[1].0), "{of:?}: {set:x?}");
        }
        for &(start, end) in &pages.changed {
            let mut bytes = vec![0; (end - start) as usize];
            let mut count = (end - start) / PAGE;
            // In a process that runs a part of it may have gone.
            while count > 0 && read(start, &mut bytes[..(count * PAGE) as usize]).is_err() {
                assert!(!still, "{of:?}: pages {start:x}-{end:x} cannot be read");
                count /= 2;
            }
            let copied = start + count * PAGE;
            if copied < end {
                tracker.missed(of, (copied, end));
                list(&[(copied, end)]).for_each(|page| drop(now.remove(&page)));
            }
            tracker.copied(of, &[(start, count as u32)], &bytes[..(count * PAGE) as usize]);
            for (page, bytes) in list(&[(start, copied)]).zip(bytes.chunks(PAGE as usize)) {
                assert!(now.insert(page, bytes.into()).is_none() || !still, "{of:?}: {page:x} is told twice");
            }
            copies.changed += count;
        }
        if !still {
            continue;
        }
        for page in list(&pages.kept) {
            let bytes = before.get(&page).unwrap_or_else(|| panic!("{of:?}: page {page:x} is kept but was never told"));
            assert!(now.insert(page, bytes.clone()).is_none(), "{of:?}: {page:x} is told twice");
            copies.kept += 1;
        }
    }
    copies.of.insert(of, now);
}

/// Looks at processes while they run.
fn round(tracker: &mut dyn Tracker, pids: &[i32], copies: &mut Copies) {
    for &pid in pids.iter().filter(|&&pid| !tracker.stranger(pid)).collect::<Vec<_>>() {
        let Ok(vmas) = read::parsed(pid, "maps", maps::parse) else { continue };
        let mut seen = Seen::default();
        if tracker.look(pid, &areas(&vmas), &mut seen).is_err() {
            tracker.doubt();
            continue;
        }
        let Ok(memory) = MemFile::open(pid) else { continue };
        let told = [&seen[Class::Plain], &seen[Class::OverFile], &seen[Class::Protected]];
        take(tracker, Of::Process(pid), &told, copies, false, |page, bytes| memory.read(page, bytes));
    }
}

/// One epoch of a tree that stands still.
fn epoch(tracker: &mut dyn Tracker, frozen: &mut Frozen, copies: &mut Copies) {
    let mut all: HashSet<Of> = HashSet::new();
    let mut known = Known::default();
    for process in frozen.processes.iter_mut().filter(|p| !p.threads.is_empty()) {
        let pid = process.pid;
        let vmas = read::parsed(pid, "maps", maps::parse).expect("maps");
        if tracker.stranger(pid) {
            let why = tracker.enter(process, &vmas, None, &mut known).expect("enter");
            assert_eq!(why, None);
        }
        let areas = areas(&vmas);
        let mut seen = Seen::default();
        tracker.look(pid, &areas, &mut seen).unwrap_or_else(|e| panic!("look at {pid}: {e}"));
        let memory = MemFile::open(pid).expect("memory");
        let told = [&seen[Class::Plain], &seen[Class::OverFile], &seen[Class::Protected]];
        take(tracker, Of::Process(pid), &told, copies, true, |page, bytes| memory.read(page, bytes));
        // Mappings may have become one by being registered.
        let vmas = read::parsed(pid, "maps", maps::parse).expect("maps");
        compare(pid, &vmas, &memory, &copies.of[&Of::Process(pid)], tracker.name());
        all.insert(Of::Process(pid));
        objects(tracker, pid, &vmas, &mut all, copies);
    }
    tracker.retain(&all);
    copies.of.retain(|of, _| all.contains(of));
}

/// What belongs to no single process.
fn objects(tracker: &mut dyn Tracker, pid: i32, vmas: &[Vma], all: &mut HashSet<Of>, copies: &mut Copies) {
    for vma in vmas.iter().filter(|v| v.shared && v.inode != 0) {
        let path = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end);
        let file = File::open(&path).expect("mapped file");
        let meta = file.metadata().expect("metadata");
        let of = Of::Object(meta.dev(), meta.ino());
        if !all.insert(of) {
            continue;
        }
        let mut pages = Pages::default();
        tracker.object(of, &file, meta.len(), &mut pages).expect("object");
        let read = |at: u64, bytes: &mut [u8]| {
            let n = file.read_at(bytes, at)?;
            bytes[n..].fill(0);
            Ok(())
        };
        take(tracker, of, &[&pages], copies, true, read);
        for at in (0..meta.len()).step_by(PAGE as usize) {
            let mut bytes = vec![0; PAGE as usize];
            read(at, &mut bytes).expect("read");
            let same = copies.of[&of].get(&at).map_or_else(|| bytes.iter().all(|b| *b == 0), |copy| **copy == *bytes);
            assert!(same, "{}: page {at:x} of {of:?}, {}", tracker.name(), String::from_utf8_lossy(&vma.name));
        }
    }
}

/// Compares copies with the real memory: every page that has one, or that the page table knows.
fn compare(pid: i32, vmas: &[Vma], memory: &MemFile, copies: &Memory, name: &str) {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("pagemap");
    let mut inside = 0;
    for (area, vma) in areas(vmas).iter().zip(private(vmas)) {
        let mut words = vec![0u8; ((area.end - area.start) / PAGE * 8) as usize];
        pagemap.read_exact_at(&mut words, area.start / PAGE * 8).expect("words");
        inside += copies.range(area.start..area.end).count();
        let word = |page: u64| {
            let at = ((page - area.start) / PAGE * 8) as usize;
            u64::from_le_bytes(words[at..at + 8].try_into().expect("8 bytes"))
        };
        let mut there = Vec::new();
        for page in list(&[(area.start, area.end)]).filter(|&page| word(page) >> 62 != 0 || copies.contains_key(&page)) {
            crate::sys::pagemap::push(&mut there, page, page + PAGE);
        }
        for (start, end) in there {
            let mut real = vec![0; (end - start) as usize];
            if memory.read(start, &mut real).is_err() {
                // Beyond the end of a file that was cut.
                let beyond = |page| memory.read(page, &mut [0; 8]).is_err();
                let gone = list(&[(start, end)]).all(|page| !copies.contains_key(&page) || !beyond(page));
                assert!(gone && area.kind == Kind::File, "pages {start:x}-{end:x} of {pid} in {area:x?}");
                continue;
            }
            let same = if area.kind == Kind::File { of_file(pid, vma, start, real.len()) } else { vec![0; real.len()] };
            for ((page, real), same) in list(&[(start, end)]).zip(real.chunks(PAGE as usize)).zip(same.chunks(PAGE as usize)) {
                let copy = copies.get(&page);
                let same = copy.map_or(same, |copy| copy) == real;
                let word = word(page);
                assert!(same, "{name}: page {page:x} of process {pid} in {area:x?}, word {word:x}, copied {}", copy.is_some());
            }
        }
    }
    assert_eq!(inside, copies.len(), "{name}: pages of process {pid} are told that are in no mapping");
}

/// Pages as the file behind a mapping has them.
fn of_file(pid: i32, vma: &Vma, page: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let file = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end)).expect("mapped file");
    let mut done = 0;
    while let Ok(n @ 1..) = file.read_at(&mut bytes[done..], vma.offset + page - vma.start + done as u64) {
        done += n;
    }
    bytes
}

/// How long a tracker is tried in `make test`; with `TRACKERS=all`, how many epochs.
fn effort() -> (Duration, u64) {
    match std::env::var("TRACKERS").as_deref() {
        Ok("all") => (Duration::from_secs(3600), 3000),
        Ok(n) => (Duration::from_secs(3600), n.parse().expect("a number of epochs")),
        Err(_) => (Duration::from_secs(4), 300),
    }
}

fn prove(choice: Choice, least: u64) {
    if let Err(lack) = choice.probe() {
        println!("{}: {lack}: not tried", choice.name());
        return;
    }
    let seed = std::env::var("SEED")
        .ok()
        .map_or_else(|| u64::from(std::process::id()) << 32 | begin(1).unwrap_or(7), |s| s.parse().expect("seed"));
    println!("{}: SEED={seed}", choice.name());
    let mut random = Random(seed | 1);
    let folder = tempfile::tempdir().expect("folder");
    let chaos = Program(Command::new(program("chaos", &folder)).args([seed.to_string(), "4".into()]).spawn().expect("chaos"));
    let mut tracker = tracker(choice).expect("tracker");
    let mut copies = Copies::default();
    let (time, most) = effort();
    let begun = Instant::now();
    let mut epochs = 0;
    let mut pids = Vec::new();
    let mut looking = Duration::ZERO;
    while epochs < most && (begun.elapsed() < time || epochs < least) {
        chaos.go_on(Duration::from_micros(random.below(1500)));
        for _ in 0..random.below(3) {
            if !tracker.still() {
                round(&mut *tracker, &pids, &mut copies);
            }
        }
        let mut frozen = freeze(chaos.pid(), Duration::from_secs(20)).expect("freeze");
        pids = frozen.processes.iter().filter(|p| !p.threads.is_empty()).map(|p| p.pid).collect();
        let at = Instant::now();
        epoch(&mut *tracker, &mut frozen, &mut copies);
        looking += at.elapsed();
        if random.below(50) == 0 {
            tracker.doubt();
        }
        frozen.release();
        epochs += 1;
    }
    println!("{}: {epochs} epochs, pages kept {}, changed {}, {looking:?} standing still", choice.name(), copies.kept, copies.changed);
    // Soft-dirty marks all of a mapping when another one is joined to it, which happens all the time here.
    let one_in = if choice == Choice::SoftDirty { 1000 } else { 50 };
    assert!(epochs >= least && copies.kept > copies.changed / one_in, "{epochs} epochs, kept {}, changed {}", copies.kept, copies.changed);
}

#[test]
fn memory_is_rebuilt_by_uffd() {
    alone("memory_is_rebuilt_by_uffd", || prove(Choice::Uffd, 20));
}

#[test]
fn memory_is_rebuilt_by_soft_dirty() {
    alone("memory_is_rebuilt_by_soft_dirty", || prove(Choice::SoftDirty, 20));
}

#[test]
fn memory_is_rebuilt_by_hash() {
    alone("memory_is_rebuilt_by_hash", || prove(Choice::Hash, 20));
}

/// What a process has beside its memory.
fn belongings(pid: i32) -> (Vec<String>, usize) {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let link = |e: std::fs::DirEntry| format!("{:?} {:?}", e.file_name(), std::fs::read_link(e.path()).ok());
    let mut fds: Vec<String> = fds.flatten().map(link).collect();
    fds.sort();
    (fds, read::tasks(pid).expect("threads").len())
}

/// Mappings whose pages are protected.
fn protected(pid: i32) -> usize {
    let vmas = read::parsed(pid, "smaps", maps::parse).expect("smaps");
    vmas.iter().filter(|v| v.has(b"uw")).count()
}

#[test]
fn nothing_of_a_tracker_stays_in_the_process() {
    alone("nothing_of_a_tracker_stays_in_the_process", || {
        let Ok(mut tracker) = tracker(Choice::Uffd) else { return };
        let program = Program(Command::new("sleep").arg("1000").spawn().expect("sleep"));
        let pid = program.pid();
        let mut known = Known::default();
        for _ in 0..3 {
            // Until it sleeps: the loader has files open.
            let calls = [libc::SYS_clock_nanosleep, libc::SYS_restart_syscall].map(|n| format!("{n} "));
            let sleeps = || read::read(pid, "syscall").is_ok_and(|now| calls.iter().any(|call| now.starts_with(call.as_bytes())));
            while !sleeps() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let before = belongings(pid);
            let mut frozen = freeze(pid, Duration::from_secs(20)).expect("freeze");
            let vmas = read::parsed(pid, "maps", maps::parse).expect("maps");
            assert_eq!(tracker.enter(&mut frozen.processes[0], &vmas, None, &mut known).expect("enter"), None);
            assert!(!tracker.stranger(pid) && tracker.protects(pid));
            frozen.release();
            tracker.look(pid, &areas(&vmas), &mut Seen::default()).expect("look");
            assert_eq!(belongings(pid), before);
            assert!(protected(pid) > 3);
            tracker.retain(&HashSet::new());
            assert!(tracker.stranger(pid) && !tracker.protects(pid));
            assert_eq!(protected(pid), 0);
        }
    });
}

/// Tracks the process that it is told of, from the beginning again and again, until it is killed.
#[test]
fn a_tracker_that_is_killed() {
    let Ok(pid) = std::env::var("TRACKER_OF") else { return };
    let pid: i32 = pid.parse().expect("pid");
    let mut tracker = tracker(Choice::Uffd).expect("tracker");
    let mut known = Known::default();
    loop {
        let mut frozen = freeze(pid, Duration::from_secs(20)).expect("freeze");
        for process in &mut frozen.processes {
            let vmas = read::parsed(process.pid, "maps", maps::parse).expect("maps");
            tracker.enter(process, &vmas, None, &mut known).expect("enter");
            tracker.look(process.pid, &areas(&vmas), &mut Seen::default()).expect("look");
        }
        frozen.release();
        tracker.retain(&HashSet::new());
    }
}

#[test]
fn a_tracker_that_is_killed_leaves_nothing() {
    alone("a_tracker_that_is_killed_leaves_nothing", || {
        if Choice::Uffd.probe().is_err() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let prefix = folder.path().join("busy-run");
        let run = Command::new(program("busy", &folder)).arg(&prefix).stdout(std::process::Stdio::null()).spawn();
        let mut busy = Program(run.expect("busy"));
        let pid = busy.pid();
        let there = |end: &str| PathBuf::from(format!("{}{end}", prefix.display())).exists();
        until("the program is ready", || there(".ready"));
        let before = belongings(pid);
        let mut random = Random(u64::from(std::process::id()) << 20 | 1);
        let traced = |pid: i32| read::parsed(pid, "status", status::parse).is_ok_and(|s| s.tracer_pid != 0);
        let kills = match std::env::var("TRACKERS").as_deref() {
            Ok("all") => 1000,
            Ok(_) => (effort().1 / 10).max(20),
            Err(_) => 20,
        };
        for _ in 0..kills {
            let own = std::env::current_exe().expect("own path");
            let mut tracker = Command::new(own);
            tracker.args(["tracee::track::tests::a_tracker_that_is_killed", "--exact"]).env("TRACKER_OF", pid.to_string());
            let mut tracker = Program(tracker.stdout(std::process::Stdio::null()).spawn().expect("tracker"));
            until("the tracker is at work", || traced(pid));
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            tracker.0.kill().expect("kill");
            tracker.0.wait().expect("wait");
            until("nothing is left", || belongings(pid) == before && protected(pid) == 0 && !traced(pid));
        }
        std::fs::write(format!("{}.go", prefix.display()), "").expect("go");
        assert!(busy.0.wait().expect("wait").success());
        assert_eq!(std::fs::read(format!("{}.result", prefix.display())).expect("verdict"), b"ok\n");
    });
}

/// Waits for something that is sure to happen.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
