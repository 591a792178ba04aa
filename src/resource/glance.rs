//! The mappings of large processes, seen while they still run: the kernel walks all memory of a process to tell the flags
//! of its mappings (some 40 ms a GiB) and its guards, which it should not have to stand still for. What was seen is believed when the
//! kernel has counted no call since that could have changed it.

use crate::error::Result;
use crate::sys::calls::{Calls, Counters};
use crate::sys::pagemap::{self, Guards};
use crate::sys::proc::maps::{self, Vma};
use crate::sys::proc::{read, stat};
use std::collections::HashMap;

/// Below this, walking through a process's pages takes no time to speak of.
const LARGE: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// Threads that are counted at most, with a descriptor for each.
const MOST_THREADS: usize = 512;

/// Calls that change mappings, or their flags.
const CALLS: [i64; 20] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_pkey_mprotect,
    libc::SYS_madvise,
    libc::SYS_process_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_shmat,
    libc::SYS_shmdt,
    libc::SYS_remap_file_pages,
    libc::SYS_brk,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_userfaultfd,
    // mseal(2)
    462,
];

/// Large processes as they were seen.
#[derive(Debug, Default)]
pub struct Glance(HashMap<i32, Seen>);

#[derive(Debug)]
struct Seen {
    born: u64,
    counters: Counters,
    maps: Vec<u8>,
    vmas: Vec<Vma>,
    guards: Guards,
}

impl Glance {
    /// Looks at those of the processes that are large. Where the kernel does not count for meio, at none.
    pub fn at(pids: &[i32]) -> Glance {
        let mut seen = HashMap::new();
        let large: Vec<i32> = pids.iter().copied().filter(|&pid| resident(pid).is_some_and(|bytes| bytes >= LARGE)).collect();
        let Some(calls) = Some(&large).filter(|large| !large.is_empty()).and_then(|_| Calls::numbered(&CALLS).ok()) else {
            return Glance::default();
        };
        let mut threads = 0;
        for pid in large {
            // It may end, or be in turmoil: then it is looked at when it stands still.
            if let Ok(Some(one)) = look(pid, &calls, MOST_THREADS - threads) {
                threads += one.counters.len();
                seen.insert(pid, one);
            }
        }
        Glance(seen)
    }

    /// Whether it may know the mappings of a process.
    pub fn knows(&self, pid: i32) -> bool {
        self.0.contains_key(&pid)
    }

    /// The mappings of a process that stands still, and its guards, if they are as they were seen. `maps`: what
    /// proc_pid_maps(5) says now.
    pub fn layout(&mut self, pid: i32, maps: &[u8]) -> Option<(Vec<Vma>, Guards)> {
        let Seen { born, mut counters, maps: then, vmas, guards } = self.0.remove(&pid)?;
        let same = then == maps && read::parsed(pid, "stat", stat::parse).is_ok_and(|s| s.start_time == born) && counters.still();
        // Only once: nothing is known of the time after.
        self.0.insert(pid, Seen { born, counters, maps: Vec::new(), vmas: Vec::new(), guards: Vec::new() });
        same.then_some((vmas, guards))
    }

    /// Gives the counters back, for each of which the kernel waits until nobody can use it any more: not while anybody
    /// waits for this.
    pub fn end(self) {
        if !self.0.is_empty() {
            // Without a thread for it, it ends here and now.
            let _ = std::thread::Builder::new().spawn(move || drop(self));
        }
    }
}

/// Bytes of memory that are there, proc_pid_statm(5).
fn resident(pid: i32) -> Option<u64> {
    let text = String::from_utf8(read::read(pid, "statm").ok()?).ok()?;
    Some(text.split(' ').nth(1)?.parse::<u64>().ok()? * PAGE)
}

/// `None` when it has more than so many threads, or others meanwhile.
fn look(pid: i32, calls: &Calls, most: usize) -> Result<Option<Seen>> {
    let tasks = read::tasks(pid)?;
    if tasks.len() * calls.len() > most {
        return Ok(None);
    }
    let counters = calls.count(tasks.iter().copied())?;
    // Of threads that are born from now on the kernel counts for itself.
    if read::tasks(pid)? != tasks {
        return Ok(None);
    }
    let born = read::parsed(pid, "stat", stat::parse)?.start_time;
    let vmas = read::parsed(pid, "smaps", maps::parse)?;
    let guards = pagemap::guards(pid, &vmas)?;
    Ok(Some(Seen { born, counters, maps: read::read(pid, "maps")?, vmas, guards }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::region::Region;
    use std::sync::mpsc;

    /// A thread that sleeps until it is told to map something, and says when it has.
    fn sleeper() -> (i32, impl Fn()) {
        let ((tell, told), (say, said)) = (mpsc::channel::<()>(), mpsc::channel());
        std::thread::spawn(move || {
            let _ = say.send(nix::unistd::gettid().as_raw());
            while told.recv().is_ok() {
                let _ = Region::anonymous(1);
                let _ = say.send(0);
            }
        });
        let tid = said.recv().unwrap();
        (tid, move || {
            tell.send(()).unwrap();
            said.recv().unwrap();
        })
    }

    #[test]
    fn what_was_seen_is_believed_once_and_only_if_nothing_has_changed() {
        let Ok(calls) = Calls::numbered(&CALLS) else {
            return; // not permitted, or a kernel without
        };
        let own = std::process::id() as i32;
        let born = read::parsed(own, "stat", stat::parse).unwrap().start_time;
        let (tid, map) = sleeper();
        let glance = || {
            let counters = calls.count([tid].into_iter()).unwrap();
            Glance(HashMap::from([(
                own,
                Seen { born, counters, maps: b"as it was".to_vec(), vmas: vec![Vma::default()], guards: Vec::new() },
            )]))
        };
        let mut same = glance();
        assert!(same.knows(own));
        assert_eq!(same.layout(own, b"as it was"), Some((vec![Vma::default()], Vec::new())));
        assert_eq!(same.layout(own, b"as it was"), None, "believed twice");
        let mut other = glance();
        assert_eq!(other.layout(own, b"as it is"), None);
        let mut called = glance();
        map();
        assert_eq!(called.layout(own, b"as it was"), None);
    }
}
