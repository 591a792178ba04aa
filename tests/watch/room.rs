//! What the standby keeps, and where there is no room for it; and links that do not carry all.

use super::control::is_clean;
use super::{Counter, PROTECTED, SERVICE, SLOW, Watched, answers_again, count, noted, redis};
use crate::lab::hosts::Host;
use crate::lab::{Lab, SOON, until};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long it may take until a standby that had no room is asked again, and has everything.
const LATER: Duration = Duration::from_secs(90);
/// Bytes of a value.
const VALUE: usize = 1 << 20;

/// Writes so many values that cannot be packed.
fn fill(keys: std::ops::Range<u64>) {
    let mut stream = TcpStream::connect(format!("{SERVICE}:6379")).expect("it answers");
    stream.set_read_timeout(Some(LATER)).expect("an option");
    let mut state = keys.start + 88172645463325252;
    let mut value = vec![0; VALUE];
    for key in keys {
        for part in value.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            part.copy_from_slice(&state.to_le_bytes());
        }
        let key = format!("large:{key}");
        stream.write_all(format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${VALUE}\r\n", key.len()).as_bytes()).expect("sent");
        stream.write_all(&value).and_then(|()| stream.write_all(b"\r\n")).expect("sent");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"+OK\r\n");
    }
}

/// A control group for memory, of either version.
struct Group {
    folder: PathBuf,
    most: &'static str,
    has: &'static str,
}

impl Group {
    /// A new one; `None` where none can be made.
    fn new(name: &str) -> Option<Group> {
        let kinds = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
            ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ];
        kinds.into_iter().find_map(|(root, most, has)| {
            // The number of the process is one of a namespace that the test has for itself.
            let unique = fs::metadata("/proc/self/ns/pid").expect("a namespace").ino();
            let folder = Path::new(root).join(format!("meio-{name}-{unique}"));
            fs::create_dir(&folder).ok()?;
            let group = Group { folder, most, has };
            group.folder.join(most).exists().then_some(group)
        })
    }

    /// MiB that it may have at most.
    fn limit(&self, mib: u64) {
        fs::write(self.folder.join(self.most), (mib << 20).to_string()).expect("a limit");
    }

    /// MiB that it has.
    fn has(&self) -> u64 {
        fs::read_to_string(self.folder.join(self.has)).expect("a number").trim().parse::<u64>().expect("a number") >> 20
    }

    /// Whatever a host is asked to do by others is done in it from now on.
    fn serves(&self, host: &Host) {
        let join = format!("echo $(pgrep -o -x sshd) > {}", self.folder.join("cgroup.procs").display());
        host.plain("bash", &["-c", &join]);
    }

    /// How often the kernel has ended somebody in it since there was no memory.
    fn killed(&self) -> u64 {
        let text = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let said = text("memory.oom_control") + &text("memory.events");
        said.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).expect("a number")
    }
}

impl Drop for Group {
    /// Who is in it may take a moment to end.
    fn drop(&mut self) {
        until(SOON, || fs::remove_dir(&self.folder).is_ok() || !self.folder.exists());
    }
}

/// MiB in the folder that a host keeps a copy in.
fn kept(host: &Host, folder: &str) -> u64 {
    host.plain("df", &["--output=used", "-BM", folder])
        .lines()
        .last()
        .and_then(|l| l.trim().trim_end_matches('M').parse().ok())
        .expect("MiB")
}

crate::alone! {
    /// A standby whose disk is full says so: the service goes on unprotected, and is protected again when there is room.
    fn a_standby_that_is_full() {
        let lab = Lab::new("watch-full");
        let (mut hosts, pid) = redis(&lab);
        let folder = lab.path("copy").display().to_string();
        fs::create_dir(&folder).expect("a folder");
        hosts.hosts[1].plain("mount", &["-t", "tmpfs", "-o", "size=40m", "copy", &folder]);
        let mut watched = Watched::with(&lab, &hosts, pid, &["--timeout", "2500ms", "--spool", &folder]);
        fill(0..48);
        assert!(until(LATER, || watched.said().contains("the standby has no room for it")), "{}\n{}", watched.said(), noted(&hosts));
        // Nothing waits for a standby that has nothing, and nothing is left of what it had.
        let before = count().expect("it answers");
        assert!(until(LATER, || count().is_some_and(|n| n > before + 20)), "{}", watched.said());
        let said = watched.said().matches(PROTECTED).count();
        hosts.hosts[1].plain("mount", &["-o", "remount,size=512m", &folder]);
        let again = || watched.is_protected() && watched.said().matches(PROTECTED).count() > said;
        assert!(until(LATER, again), "{}\n{}", watched.said(), noted(&hosts));
        // The same pages, again and again: no more is kept of them.
        for _ in 0..2 {
            fill(0..16);
        }
        assert!(until(LATER, || watched.is_protected()), "{}", watched.said());
        assert!(until(LATER, || kept(&hosts.hosts[1], &folder) < 120), "{} MiB are kept", kept(&hosts.hosts[1], &folder));
        hosts.wire(0, false);
        hosts.hosts[0].fail();
        let _ = watched.meio.wait();
        assert!(answers_again(&watched, &hosts, &lab) > 20);
        assert!(noted(&hosts).contains("taken over in "), "{}", noted(&hosts));
        // What was taken over is given back.
        assert!(until(LATER, || kept(&hosts.hosts[1], &folder) == 0), "{} MiB are kept", kept(&hosts.hosts[1], &folder));
        assert!(hosts.hosts[1].runs(pid));
    }

    /// A standby without the memory for a tree says so before anything is touched: neither for the tree, nor for its copy beside it.
    fn a_standby_of_little_memory() {
        let Some(group) = Group::new("little") else { return println!("skipped: no control groups for memory") };
        let lab = Lab::new("watch-little");
        let (hosts, pid) = redis(&lab);
        group.serves(&hosts.hosts[1]);
        fill(0..96);
        for (limit, wanted) in [(60, "it has "), (150, "a copy and the tree brought back from it take ")] {
            group.limit(limit);
            let mut watched = Watched::start(&lab, &hosts, pid, SLOW);
            let code = watched.meio.wait().expect("it ends").code();
            let said = watched.said();
            assert!(code == Some(13) && said.contains("memory") && said.contains(wanted) && said.contains("free here"), "{limit}: {code:?} {said}");
            assert!(until(SOON, || is_clean(&hosts.hosts[0]) && is_clean(&hosts.hosts[1])), "{}", noted(&hosts));
            assert!(count().is_some() && hosts.hosts[0].runs(pid));
        }
        assert_eq!(group.killed(), 0);
    }

    /// A standby whose memory runs short gives its copy up: the service goes on unprotected, and is protected again when there is
    /// memory. Neither the copy nor a take-over ever takes what is not there.
    fn a_standby_whose_memory_runs_short() {
        let Some(group) = Group::new("short") else { return println!("skipped: no control groups for memory") };
        let lab = Lab::new("watch-short");
        let (mut hosts, pid) = redis(&lab);
        group.serves(&hosts.hosts[1]);
        group.limit(240);
        let mut watched = Watched::with(&lab, &hosts, pid, SLOW);
        let counter = Counter::begin();
        assert!(counter.go_on(20), "{}", watched.said());
        // The copy alone would have room, but not the tree beside it.
        fill(0..100);
        assert!(until(LATER, || watched.said().contains("the standby has no room for it")), "{}\n{}", watched.said(), noted(&hosts));
        assert!(!watched.is_protected() && noted(&hosts).contains("MiB of memory are free here"), "{}\n{}", watched.said(), noted(&hosts));
        assert!(until(LATER, || group.has() < 100), "{} MiB are kept", group.has());
        // Nothing waits for a standby that has nothing.
        assert!(counter.go_on(200), "{}", watched.said());
        let said = watched.said().matches(PROTECTED).count();
        group.limit(1024);
        let again = || watched.is_protected() && watched.said().matches(PROTECTED).count() > said;
        assert!(until(LATER, again), "{}\n{}", watched.said(), noted(&hosts));
        assert!(counter.go_on(20), "{}", watched.said());
        assert!(until(LATER, || watched.is_protected()), "{}", watched.said());
        hosts.wire(0, false);
        hosts.hosts[0].fail();
        let _ = watched.meio.wait();
        assert!(counter.go_on(100), "it does not go on: {}\n{}\n{}", watched.said(), noted(&hosts), lab.log());
        counter.end();
        assert!(hosts.hosts[1].runs(pid));
        assert_eq!(group.killed(), 0);
    }

    /// What the link does not carry in time comes later: epochs follow each other more slowly, and nothing piles up.
    fn a_link_that_carries_little() {
        let lab = Lab::new("watch-slow");
        let (hosts, pid) = redis(&lab);
        let watched = Watched::begin(&lab, &hosts, pid, &["--timeout", "4s", "--bandwidth", "8M"]);
        // Several times what the link carries meanwhile.
        (0..3).for_each(|_| fill(0..12));
        let slow = || watched.said().contains("the link does not carry an epoch");
        assert!(until(LATER, slow), "{}\n{}", watched.said(), noted(&hosts));
        let status = "for p in $(pgrep -x meio); do sed -n 's/^RssAnon:[ \t]*//p' /proc/$p/status; done";
        let most = hosts.hosts[0].plain("bash", &["-c", status]);
        let most = most.lines().filter_map(|l| l.split(' ').next()?.parse::<u64>().ok()).max().expect("a meio");
        assert!(most < 300 << 10, "the primary's meio has {most} KiB");
        assert!(count().is_some() && hosts.hosts[0].runs(pid));
        assert!(until(LATER, || watched.is_protected()), "{}\n{}", watched.said(), noted(&hosts));
    }
}
