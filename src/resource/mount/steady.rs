//! Files in memory that are what they were when they were looked at last.
//!
//! Whoever writes to a file or changes its attributes by a system call changes a time that no program can set (`st_ctime`, stat(2)).
//! Who has it mapped and writes there does not. So files that are mapped are always read, and all are when somebody has mapped
//! anything that is shared since the last look, be it for a moment: the kernel counts these calls ([`crate::sys::calls`]); where it
//! does not, everything is read each time. What has changed just before a look is read again at the next one: what changes twice
//! within a tick of the kernel's clock may have the same time.

use super::contents::{Content, Place};
use crate::resource::path::FilePath;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::calls::{Call, Calls, Counters};
use crate::sys::proc::{read, stat};
use nix::time::{ClockId, clock_gettime};
use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// mmap(2) with `MAP_SHARED` or `MAP_SHARED_VALIDATE`.
const SHARING: &[Call] = &[("mmap", Some(c"flags & 1"))];
/// Tasks that are counted: each takes a descriptor.
const MOST_TASKS: usize = 1024;
/// Longer than a tick, in nanoseconds.
const TICK: i128 = 100_000_000;

/// What changes with a file: its size, and when it and its content were changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Stamp {
        Stamp { size: meta.len(), changed: (meta.ctime(), meta.ctime_nsec()), modified: (meta.mtime(), meta.mtime_nsec()) }
    }
}

/// Extended attributes and content of a file.
pub type Inside = (Vec<(FilePath, Bytes)>, Content);

/// What is known of one.
#[derive(Debug)]
struct Known {
    stamp: Stamp,
    inside: Inside,
    /// The number of the look by which it was told last, and where it was then.
    told: (u64, Place),
}

/// What is known of them.
#[derive(Debug, Default)]
pub struct Files {
    counters: Option<Counters>,
    counted: HashSet<i32>,
    /// When all tasks were counted, as proc_pid_stat(5) has it.
    since: u64,
    /// There are some.
    wanted: bool,
    calm: bool,
    /// When they were looked at last: `CLOCK_REALTIME` in nanoseconds.
    looked: i128,
    /// The number of this look.
    number: u64,
    /// What was told by the look of this number need not be told again, only named.
    after: Option<u64>,
    /// By device and inode.
    known: HashMap<(u64, u64), Known>,
}

fn now() -> i128 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |t| i128::from(t.tv_sec()) * 1_000_000_000 + i128::from(t.tv_nsec()))
}

impl Files {
    /// Looks whether what is known can still be true of a tree that stands still now. `again`: it will be looked at again.
    pub fn look(&mut self, pids: impl Iterator<Item = i32>, again: bool) {
        self.looked = now();
        self.number += 1;
        self.calm = false;
        if !again || !self.wanted {
            self.let_go();
        } else if let Some(counters) = &mut self.counters {
            // Somebody born since is counted with whom it was born of.
            let young = |pid| read::parsed(pid, "stat", stat::parse).is_ok_and(|s| s.start_time > self.since);
            let all = pids.into_iter().all(|pid| self.counted.contains(&pid) || young(pid));
            self.calm = counters.still() && all;
            if !all {
                self.let_go();
            }
        } else {
            self.count(pids);
        }
        // Those that were not met any more at the last look are gone.
        let (calm, number) = (self.calm, self.number);
        self.known.retain(|_, known| calm && known.told.0 + 1 >= number);
        self.wanted = false;
    }

    /// Nobody waits until the kernel has taken the counters away.
    fn let_go(&mut self) {
        if let Some(done) = self.counters.take() {
            let _ = std::thread::Builder::new().spawn(move || drop(done));
        }
    }

    /// Counts all threads of these processes.
    fn count(&mut self, pids: impl Iterator<Item = i32>) {
        self.counted = pids.collect();
        let tids: Vec<i32> = self.counted.iter().flat_map(|&pid| read::tasks(pid).unwrap_or_default()).collect();
        let counters = Calls::named(SHARING).ok().filter(|_| tids.len() <= MOST_TASKS);
        self.counters = counters.and_then(|calls| calls.count(tids.into_iter()).ok());
        let starts = self.counted.iter().map(|&pid| read::parsed(pid, "stat", stat::parse).map_or(u64::MAX, |s| s.start_time));
        self.since = starts.max().unwrap_or(u64::MAX);
    }

    /// Whether there are such files.
    pub fn is_used(&self) -> bool {
        self.wanted
    }

    /// Whether nothing was mapped since the last look but for what was mapped then.
    pub fn calm(&self) -> bool {
        self.calm
    }

    /// By what a file is known again that has been the same for a while.
    pub fn stamp(&self, meta: &Metadata) -> Option<Stamp> {
        let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        (changed + TICK < self.looked).then(|| Stamp::of(meta))
    }

    /// Whether what the last look has told is in the image that the next one builds upon, from which whoever gets that takes it.
    pub fn follow(&mut self, told: bool) {
        self.after = told.then_some(self.number);
    }

    /// What is in a file, if it is as it was; its place is now this one.
    pub fn inside(&mut self, meta: &Metadata, place: Place) -> Option<Inside> {
        self.wanted = true;
        let known = self.known.get_mut(&(meta.dev(), meta.ino())).filter(|known| known.stamp == Stamp::of(meta))?;
        let (look, before) = std::mem::replace(&mut known.told, (self.number, place));
        let (attributes, content) = &known.inside;
        let is_file = matches!(content, Content::File { data, .. } if !data.is_empty());
        let content = if is_file && self.after == Some(look) { Content::Before(before) } else { content.clone() };
        Some((attributes.clone(), content))
    }

    /// Notes what is in a file.
    pub fn note(&mut self, meta: &Metadata, inside: &Inside, place: Place) {
        if let Some(stamp) = self.stamp(meta)
            && self.counters.is_some()
        {
            self.known.insert((meta.dev(), meta.ino()), Known { stamp, inside: inside.clone(), told: (self.number, place) });
        }
    }

    /// Forgets files that are mapped.
    pub fn forget(&mut self, mapped: &HashSet<(u64, u64)>) {
        self.known.retain(|file, _| !mapped.contains(file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    /// Known again, as long as nobody has changed or mapped it; not in the moment in which it has changed.
    #[test]
    fn a_file_is_known_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let meta = |file: &tempfile::NamedTempFile| file.as_file().metadata().unwrap();
        let own = || std::iter::once(std::process::id() as i32);
        let content = Content::File { size: 1, data: vec![(0, Bytes(vec![7]))] };
        let inside: Inside = (Vec::new(), content);
        let mut files = Files::default();
        files.look(own(), true);
        assert_eq!(files.stamp(&meta(&file)), None, "it has just changed");
        assert_eq!(files.inside(&meta(&file), Place::default()), None);
        std::thread::sleep(std::time::Duration::from_millis(150));
        // Counted from here on.
        files.look(own(), true);
        assert!(!files.calm() && files.inside(&meta(&file), Place::default()).is_none());
        files.note(&meta(&file), &inside, Place::default());
        if files.counters.is_none() {
            return; // not permitted, or a kernel without
        }
        assert_eq!(files.inside(&meta(&file), Place::default()), Some(inside));
        // What the image before has is only named, where it was then, and only after that image.
        let place = Place { namespace: 1, own: 2, inode: 3 };
        files.follow(true);
        files.number += 1;
        assert_eq!(files.inside(&meta(&file), place).unwrap().1, Content::Before(Place::default()));
        files.number += 1;
        assert!(matches!(files.inside(&meta(&file), place).unwrap().1, Content::File { .. }), "that one was given up");
        files.follow(true);
        files.number += 1;
        assert_eq!(files.inside(&meta(&file), Place::default()).unwrap().1, Content::Before(place));
        files.follow(false);
        files.number += 1;
        assert!(matches!(files.inside(&meta(&file), place).unwrap().1, Content::File { .. }));
        file.write_all(b"more").unwrap();
        assert_eq!(files.inside(&meta(&file), Place::default()), None);
        let stamp = files.stamp(&meta(&file));
        assert_eq!(stamp, None);
        files.forget(&HashSet::from([(meta(&file).dev(), meta(&file).ino())]));
        assert!(files.known.is_empty());
    }

    /// A mapping that was shared for a moment is enough to believe nothing, and so is a process that nobody has counted.
    #[test]
    fn what_was_mapped_is_noticed() {
        const SCRIPT: &str =
            "import mmap, sys\nfor line in sys.stdin:\n  if line == 'map\\n': mmap.mmap(-1, 4096).close()\n  print(flush=True)";
        let mut child = Command::new("python3");
        let mut child = child.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let pid = child.id() as i32;
        let mut files = Files::default();
        let mut look = |files: &mut Files, what: &[u8], more: Option<i32>| {
            child.stdin.as_mut().unwrap().write_all(what).unwrap();
            lines.next().unwrap().unwrap();
            files.wanted = true;
            files.look(std::iter::once(pid).chain(more), true);
            files.calm()
        };
        assert!(!look(&mut files, b"begin\n", None));
        if files.counters.is_some() {
            assert!(look(&mut files, b"nothing\n", None));
            assert!(!look(&mut files, b"map\n", None));
            assert!(look(&mut files, b"nothing\n", None));
            assert!(!look(&mut files, b"nothing\n", Some(std::process::id() as i32)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
