//! Which system calls somebody has made since one looked last: counters of the kernel's own tracepoints
//! (perf_event_open(2), `PERF_TYPE_TRACEPOINT`; Linux 2.6.31, `CONFIG_FTRACE_SYSCALLS`). A task that is counted needs about
//! 80 ns longer for any call, nothing of it can see that it is counted, and the counters go with their descriptors.

use super::file::own;
use nix::errno::Errno;
use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

const PERF_TYPE_TRACEPOINT: u32 = 2;
/// `perf_event_attr.flags`: tasks born of the counted one are counted with it.
const INHERIT: u64 = 1 << 1;
const PERF_FLAG_FD_CLOEXEC: u64 = 1 << 3;
/// `perf_event_attr.read_format`: all of a group are read by one call.
const PERF_FORMAT_GROUP: u64 = 1 << 3;
/// `_IOW('$', 6, char *)`
const PERF_EVENT_IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;

/// `struct perf_event_attr`, first published size: `PERF_ATTR_SIZE_VER0`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    bp_addr: u64,
}

/// A system call by its name, and which calls of it count: a filter on its arguments (Documentation/trace/events.rst).
pub type Call = (&'static str, Option<&'static CStr>);

/// The tracepoints of some system calls.
#[derive(Debug)]
pub struct Calls(Vec<(u64, Option<Cow<'static, CStr>>)>);

/// Counters of them over some tasks and all that are born of these.
#[derive(Debug)]
pub struct Counters {
    /// Those of one task each; the first leads them.
    groups: Vec<Vec<File>>,
    last: Option<u64>,
}

/// Leaves all counters of this process to another one, which lets go of them when this one has ended: the kernel takes tens of
/// milliseconds over the last user of each, one after the other.
///
/// # Errors
/// When the kernel gives no process or no pipe: then this one waits as it lets go.
pub fn leave() -> io::Result<()> {
    let mut own: Vec<u32> = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let is = std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == "anon_inode:[perf_event]");
        own.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()).filter(|_| is));
    }
    if own.is_empty() {
        return Ok(());
    }
    let (gone, here) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    own.push(gone.as_raw_fd() as u32);
    own.sort_unstable();
    let mut byte = 0u8;
    // SAFETY: both children make system calls on numbers, and one writes a byte of its own; they end without the clean-up that is
    // meio's.
    let child = Errno::result(unsafe {
        let child = libc::fork();
        if child == 0 {
            if libc::fork() == 0 {
                let mut from = 0;
                for &fd in &own {
                    if fd > from {
                        libc::syscall(libc::SYS_close_range, from, fd - 1, 0);
                    }
                    from = fd + 1;
                }
                libc::syscall(libc::SYS_close_range, from, u32::MAX, 0);
                libc::read(gone.as_raw_fd(), (&raw mut byte).cast(), 1);
            }
            libc::_exit(0);
        }
        child
    })?;
    while let Err(Errno::EINTR) = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None) {}
    // It ends with this process.
    std::mem::forget(here);
    Ok(())
}

impl Calls {
    /// Finds tracepoints by the names of their system calls; a call that this kernel does not have cannot be made.
    ///
    /// # Errors
    /// Where the kernel has no such tracepoints, or meio may not see them (`CAP_SYS_ADMIN` is needed).
    pub fn named(names: &[Call]) -> io::Result<Calls> {
        let tracefs = mount_tracefs()?;
        let open = |path: &str| {
            use nix::fcntl::{OFlag, openat};
            openat(&tracefs, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty()).map(File::from)
        };
        open("events/syscalls/enable")?;
        let mut ids = Vec::new();
        for (name, filter) in names {
            match open(&format!("events/syscalls/sys_enter_{name}/id")) {
                Ok(mut file) => {
                    let mut text = String::new();
                    file.read_to_string(&mut text)?;
                    ids.push((text.trim().parse().map_err(io::Error::other)?, filter.map(Cow::Borrowed)));
                }
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Calls(ids))
    }

    /// All calls with these numbers as one: a single counter for each task, where the arguments of a call do not matter.
    ///
    /// # Errors
    /// As of [`Calls::named`].
    pub fn numbered(numbers: &[i64]) -> io::Result<Calls> {
        use nix::fcntl::{OFlag, openat};
        let tracefs = mount_tracefs()?;
        let path = "events/raw_syscalls/sys_enter/id";
        let mut file = File::from(openat(&tracefs, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?);
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let id = text.trim().parse().map_err(io::Error::other)?;
        let filter = numbers.iter().map(|number| format!("id == {number}")).collect::<Vec<_>>().join(" || ");
        Ok(Calls(vec![(id, Some(Cow::Owned(CString::new(filter)?)))]))
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Counts from now on. The tasks stand still, or what they do before this returns is not told apart.
    pub fn count(&self, tids: impl Iterator<Item = i32>) -> io::Result<Counters> {
        let mut groups = Vec::new();
        for tid in tids {
            let mut group: Vec<File> = Vec::with_capacity(self.0.len());
            for &(id, ref filter) in &self.0 {
                let attributes = Attributes {
                    kind: PERF_TYPE_TRACEPOINT,
                    size: size_of::<Attributes>() as u32,
                    config: id,
                    read_format: PERF_FORMAT_GROUP,
                    flags: INHERIT,
                    ..Attributes::default()
                };
                let leader = group.first().map_or(-1, AsRawFd::as_raw_fd);
                // SAFETY: the structure has the size that it names and outlives the call; on success the descriptor is ours.
                let fd = Errno::result(unsafe {
                    libc::syscall(libc::SYS_perf_event_open, &raw const attributes, tid, -1, leader, PERF_FLAG_FD_CLOEXEC)
                })?;
                let counter = File::from(own(fd as i32));
                if let Some(filter) = filter {
                    // SAFETY: the kernel reads the text.
                    Errno::result(unsafe { libc::ioctl(counter.as_raw_fd(), PERF_EVENT_IOC_SET_FILTER, filter.as_ptr()) })?;
                }
                group.push(counter);
            }
            groups.push(group);
        }
        Ok(Counters { groups, last: Some(0) })
    }
}

impl Default for Counters {
    fn default() -> Self {
        Counters { groups: Vec::new(), last: Some(0) }
    }
}

impl Counters {
    /// Joins others with these.
    pub fn add(&mut self, others: Counters) {
        self.groups.extend(others.groups);
        self.last = self.last.zip(others.last).map(|(a, b)| a.wrapping_add(b));
    }

    /// Descriptors that they take.
    pub fn len(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    /// Whether none of the calls has been made since this was asked last.
    pub fn still(&mut self) -> bool {
        let now = self.sum().ok();
        let still = now.is_some() && now == self.last;
        self.last = now;
        still
    }

    fn sum(&self) -> io::Result<u64> {
        let mut sum = 0u64;
        let mut bytes = Vec::new();
        for group in &self.groups {
            let Some(mut leader) = group.first() else { continue };
            // How many there are, and each: PERF_FORMAT_GROUP of perf_event_open(2).
            bytes.resize(8 * (1 + group.len()), 0);
            leader.read_exact(&mut bytes)?;
            sum = bytes[8..].as_chunks().0.iter().fold(sum, |sum, value| sum.wrapping_add(u64::from_ne_bytes(*value)));
        }
        Ok(sum)
    }
}

/// A mount of tracefs that no path leads to: fsopen(2), Linux 5.2.
fn mount_tracefs() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const CLOEXEC: u32 = 1;
    let name: &CStr = c"tracefs";
    // SAFETY: the kernel reads the name; on success the descriptor is ours.
    let context = own(Errno::result(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), CLOEXEC) })? as i32);
    let fd = context.as_raw_fd();
    let null = std::ptr::null::<u8>();
    // SAFETY: numbers and null pointers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0) })?;
    // SAFETY: numbers only; on success the descriptor is ours.
    Ok(own(Errno::result(unsafe { libc::syscall(libc::SYS_fsmount, fd, CLOEXEC, 0) })? as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_seen_and_no_other_is() {
        let Ok(calls) = Calls::named(&[("getpriority", None), ("getpgid", Some(c"pid != 77")), ("no_such_call", None)]) else {
            return; // not permitted, or a kernel without
        };
        assert_eq!(calls.0.len(), 2);
        let mut counters = calls.count([nix::unistd::gettid().as_raw()].into_iter()).unwrap();
        assert!(counters.still());
        let _ = (nix::unistd::getsid(None), nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(77))));
        assert!(counters.still());
        let _ = nix::unistd::getpgid(None);
        assert!(!counters.still());
        assert!(counters.still());
        // Of a thread that was born since.
        std::thread::spawn(|| nix::unistd::getpgid(None)).join().unwrap().unwrap();
        assert!(!counters.still());
    }
}
