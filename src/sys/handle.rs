//! Files found by what the kernel's own lists show of them: a device, an inode number and a handle (open_by_handle_at(2)).

use super::file::own;
use super::proc::read;
use crate::error::Result;
use nix::errno::Errno;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A place where a file system is mounted, as a process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Id, as fdinfo and mountinfo show it.
    pub id: i32,
    /// Device in the kernel's own coding (`major << 20 | minor`).
    pub device: u64,
    /// Where it is mounted, seen from the process's root.
    pub path: PathBuf,
}

/// A file that is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handle {
    /// Device in the kernel's own coding (`major << 20 | minor`).
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Type of the handle, and its bytes.
    pub handle: Option<(i32, Vec<u8>)>,
}

/// The mounts that a process sees, in the order of proc_pid_mountinfo(5).
pub fn mounts(pid: i32) -> Result<Vec<Mount>> {
    Ok(read::read(pid, "mountinfo")?.split(|b| *b == b'\n').filter_map(mount).collect())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').take(5).collect();
    let [id, _, device, _, path] = fields[..] else { return None };
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    let path = super::proc::text::unescape(path, b" \t\n\\#");
    Some(Mount {
        id: std::str::from_utf8(id).ok()?.parse().ok()?,
        device: major.parse::<u64>().ok()? << 20 | minor.parse::<u64>().ok()?,
        path: PathBuf::from(std::ffi::OsString::from_vec(path)),
    })
}

/// Present paths of files as process `pid` sees them; `None` for one that has none, or that cannot be found. Nothing is
/// opened in a way that anybody who watches the files could notice.
pub fn paths(pid: i32, mounts: &[Mount], wanted: &[Handle]) -> Vec<Option<PathBuf>> {
    // The kernel takes the file system from a descriptor, whose opening would be noticed, or from the current
    // directory: a thread has one of its own.
    let search = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).ok()?;
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        // A link to a file shows its path up to the root of its mount namespace.
        let shown = std::fs::read_link(&root).ok()?;
        Some(wanted.iter().map(|file| Search { mounts, root: &root, shown: &shown, file }.path()).collect())
    };
    let none = || vec![None; wanted.len()];
    std::thread::scope(|scope| std::thread::Builder::new().spawn_scoped(scope, search).ok()?.join().ok().flatten()).unwrap_or_else(none)
}

struct Search<'a> {
    mounts: &'a [Mount],
    /// The process's root directory, as we reach it.
    root: &'a Path,
    /// The same as links show it.
    shown: &'a Path,
    file: &'a Handle,
}

impl Search<'_> {
    /// A path of the process as we reach it.
    fn reach(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn is_it(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(self.reach(path)).is_ok_and(|meta| {
            let device = std::os::unix::fs::MetadataExt::dev(&meta);
            let same = (u64::from(libc::major(device)) << 20 | u64::from(libc::minor(device))) == self.file.device;
            same && std::os::unix::fs::MetadataExt::ino(&meta) == self.file.inode
        })
    }

    fn path(&self) -> Option<PathBuf> {
        let there = || self.mounts.iter().filter(|m| m.device == self.file.device);
        // Some file systems give no handles that can be opened, like proc(5), but their roots are known.
        if let Some(root) = there().find(|m| self.is_it(&m.path)) {
            return Some(root.path.clone());
        }
        let (kind, bytes) = self.file.handle.as_ref()?;
        for mount in there() {
            let opened = nix::unistd::chdir(&self.reach(&mount.path)).and_then(|()| open_here(*kind, bytes));
            let Ok(fd) = opened else { continue };
            let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
            let Ok(below) = link.strip_prefix(self.shown) else { continue };
            let path = Path::new("/").join(below);
            if self.is_it(&path) {
                return Some(path);
            }
        }
        None
    }
}

/// open_by_handle_at(2) on the file system of the current directory, as a mere path.
fn open_here(kind: i32, bytes: &[u8]) -> nix::Result<OwnedFd> {
    // struct file_handle: number of bytes, type, bytes.
    let mut handle = Vec::with_capacity(8 + bytes.len());
    handle.extend_from_slice(&(bytes.len() as u32).to_ne_bytes());
    handle.extend_from_slice(&kind.to_ne_bytes());
    handle.extend_from_slice(bytes);
    // SAFETY: the structure has the length that it names; on success the descriptor is new and ours.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, libc::AT_FDCWD, handle.as_mut_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    Errno::result(fd).map(|fd| own(fd as i32))
}

/// A path as system calls take it.
pub fn c_path(path: &Path) -> nix::Result<CString> {
    CString::new(OsStr::as_bytes(path.as_os_str())).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let shown = mount(br"36 35 98:1 /mnt1 /a\040b rw,noatime master:1 - ext3 /dev/root rw").expect("a mount");
        assert_eq!(shown, Mount { id: 36, device: 98 << 20 | 1, path: PathBuf::from("/a b") });
        assert_eq!(mount(b"36 35 98"), None);
    }
}
