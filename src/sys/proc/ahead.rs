//! Texts of proc(5) about processes that stand still, read by another thread while this one is busy with the process before.
//! About a hundred files tell of one process: with many of them that is most of what a dump takes.

use super::maps;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How many processes it may be ahead.
const MOST: usize = 32;
/// What is read of a process. None of it changes while the process stands still, but for signals that come.
const OF_PROCESS: [&str; 9] = ["stat", "status", "auxv", "personality", "oom_score_adj", "coredump_filter", "loginuid", "timers", "cgroup"];
/// What is read of each thread.
const OF_THREAD: [&str; 3] = ["status", "stat", "cgroup"];
const NAMESPACES: [&str; 10] = ["user", "mnt", "pid", "pid_for_children", "net", "ipc", "uts", "time", "time_for_children", "cgroup"];

/// What is known of one process, by path.
#[derive(Debug, Default)]
struct Known {
    texts: HashMap<String, Vec<u8>>,
    /// Device and inode of namespaces.
    identities: HashMap<String, (u64, u64)>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Hands a text over that is known already.
pub(super) fn known<T, F: FnOnce(&[u8]) -> T>(path: &str, take: F) -> Result<T, F> {
    // Taken out, so that `take` may read another text.
    match KNOWN.with_borrow_mut(|known| known.texts.remove_entry(path)) {
        None => Err(take),
        Some((path, text)) => {
            let taken = take(&text);
            KNOWN.with_borrow_mut(|known| known.texts.insert(path, text));
            Ok(taken)
        }
    }
}

/// Device and inode of what a path leads to, if that is known already.
pub fn known_identity(path: &str) -> Option<(u64, u64)> {
    KNOWN.with_borrow(|known| known.identities.get(path).copied())
}

/// A process that is read about.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Process id.
    pub pid: i32,
    /// Its threads.
    pub tids: Vec<i32>,
    /// Also proc_pid_smaps(5), which takes as long as all others together.
    pub smaps: bool,
    /// Pages to a mapping up to which numa_maps (numa(7)), which goes through all of them, is read then.
    pub numa: u64,
}

#[derive(Default)]
struct State {
    /// Place of the process that is next.
    next: usize,
    reading: Option<i32>,
    done: HashMap<i32, Known>,
    stop: bool,
}

struct Shared {
    wanted: Vec<Wanted>,
    state: Mutex<State>,
    moved: Condvar,
}

/// The thread that reads.
pub struct Ahead {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

/// What is known is valid until this is dropped.
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        KNOWN.take();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) {
        let mut state = self.lock();
        while !state.stop && state.next < self.wanted.len() {
            if state.done.len() >= MOST {
                state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let wanted = &self.wanted[state.next];
            state.next += 1;
            state.reading = Some(wanted.pid);
            drop(state);
            let known = Known::of(wanted);
            state = self.lock();
            state.reading = None;
            state.done.insert(wanted.pid, known);
            self.moved.notify_all();
        }
    }
}

impl Known {
    /// What cannot be read is left to who asks for it.
    fn of(wanted: &Wanted) -> Known {
        let mut known = Known::default();
        let pid = wanted.pid;
        let text = |known: &mut Known, path: String| {
            if let Ok(text) = super::read::fetch(&path) {
                known.texts.insert(path, text);
            }
        };
        OF_PROCESS.iter().for_each(|name| text(&mut known, format!("/proc/{pid}/{name}")));
        if wanted.smaps {
            text(&mut known, format!("/proc/{pid}/smaps"));
        }
        let smaps = known.texts.get(&format!("/proc/{pid}/smaps")).and_then(|text| maps::parse(text).ok());
        let few = |vmas: &Vec<maps::Vma>| vmas.iter().map(|v| v.rss_kib / 4).sum::<u64>() <= wanted.numa * vmas.len() as u64;
        if smaps.as_ref().is_some_and(few) {
            text(&mut known, format!("/proc/{pid}/numa_maps"));
        }
        let others = || wanted.tids.iter().filter(|&&tid| tid != pid);
        for tid in others() {
            OF_THREAD.iter().for_each(|name| text(&mut known, format!("/proc/{pid}/task/{tid}/{name}")));
        }
        // The first thread's are those of the process, as far as anybody looks at them.
        for name in OF_THREAD {
            if let Some(text) = known.texts.get(&format!("/proc/{pid}/{name}")).cloned() {
                known.texts.insert(format!("/proc/{pid}/task/{pid}/{name}"), text);
            }
        }
        let of_threads = others().map(|tid| format!("/proc/{pid}/task/{tid}/ns/net"));
        for path in NAMESPACES.iter().map(|name| format!("/proc/{pid}/ns/{name}")).chain(of_threads) {
            if let Ok(meta) = fs::metadata(&path) {
                known.identities.insert(path, (meta.dev(), meta.ino()));
            }
        }
        known
    }
}

impl Ahead {
    /// Begins to read about these processes, which will be entered in this order. Where another thread is of no use, nothing is
    /// known ahead.
    pub fn of(wanted: Vec<Wanted>) -> Ahead {
        let few = wanted.len() < 2 || crate::sys::priority::processors() < 2;
        let shared = Arc::new(Shared { wanted, state: Mutex::default(), moved: Condvar::new() });
        let theirs = shared.clone();
        let start = || std::thread::Builder::new().name("ahead".into()).spawn(move || theirs.read()).ok();
        Ahead { reader: if few { None } else { start() }, shared }
    }

    /// From here on what is known of a process is taken for what there is. One that nobody reads about yet is left to the caller.
    pub fn enter(&self, pid: i32) -> Entered {
        let mut state = self.shared.lock();
        while state.reading == Some(pid) {
            state = self.shared.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let known = state.done.remove(&pid).unwrap_or_else(|| {
            let place = self.shared.wanted.iter().position(|wanted| wanted.pid == pid);
            state.next = state.next.max(place.map_or(0, |place| place + 1));
            Known::default()
        });
        drop(state);
        self.shared.moved.notify_all();
        KNOWN.set(known);
        Entered(())
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.moved.notify_all();
        self.reader.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{read, stat};
    use super::*;

    #[test]
    fn a_text_is_the_same_whoever_reads_it() {
        let own = std::process::id() as i32;
        let init = Wanted { pid: 1, tids: vec![1], smaps: false, numa: 0 };
        let ahead =
            Ahead::of(vec![init.clone(), Wanted { pid: own, tids: vec![own, nix::unistd::gettid().as_raw()], smaps: true, numa: 500 }]);
        for pid in [1, own] {
            let auxv = read::auxv(pid).ok();
            let entered = ahead.enter(pid);
            assert_eq!(read::auxv(pid).ok(), auxv);
            assert_eq!(read::parsed(pid, "stat", stat::parse).unwrap().pid, pid);
            let nested = read::parsed(pid, "stat", |_| read::parsed(pid, "stat", stat::parse));
            assert_eq!(nested.unwrap().pid, pid);
            drop(entered);
            assert!(KNOWN.with_borrow(|known| known.texts.is_empty()));
        }
        let known = Known::of(&init);
        assert_eq!(known.texts["/proc/1/task/1/status"], known.texts["/proc/1/status"]);
        assert!(known_identity("/proc/1/ns/net").is_none());
    }
}
