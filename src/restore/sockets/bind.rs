//! Names. That of a path is what bind(2) was given, wherever the file is now: it is made below a folder that is the
//! root of whoever binds, and then moved to its place, or away.

use crate::error::{Context, Error, Kind, Result};
use crate::resource::socket::unix::{BoundFile, readable};
use crate::sys::sock_diag::unix as diag;
use crate::sys::{apart, socket};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// How a bound socket is reached whatever has become of its path.
pub struct Reach {
    name: Vec<u8>,
    _file: Option<OwnedFd>,
}

impl Reach {
    /// The way to a socket of our own.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Reach> {
        let name = socket::name(fd)?.ok_or_else(|| Error::image("image damaged: a socket without a name cannot be reached"))?;
        if name.first() == Some(&0) {
            return Ok(Reach { name, _file: None });
        }
        let file = socket::bound_file(fd).context(|| format!("looking for the file of {}", readable(&name)))?;
        Ok(Reach { name: format!("/proc/self/fd/{}", file.as_raw_fd()).into_bytes(), _file: Some(file) })
    }

    /// connect(2).
    pub fn connect(&self, fd: BorrowedFd<'_>) -> nix::Result<()> {
        socket::connect(fd, &self.name)
    }

    /// The address, to send to.
    pub fn address(&self) -> Vec<u8> {
        self.name.clone()
    }
}

/// Gives a socket its name; the file of a path ends up where meio finds that place, or nowhere.
pub fn bind(fd: BorrowedFd<'_>, name: &[u8], file: Option<(&BoundFile, &Path)>) -> Result<()> {
    if name.first() == Some(&0) {
        return socket::bind(fd, name).map_err(|e| match e {
            Errno::EADDRINUSE => Error::new(Kind::Unsupported, format!("the abstract name {} is in use", readable(name)))
                .help("end the program that has it, or restore in a network namespace of its own"),
            e => Error::from(e).context(format!("binding {}", readable(name))),
        });
    }
    if let Some((_, place)) = file {
        free(place)?;
    }
    // By a child that goes on when meio is killed: else the folder would be left.
    apart::run(0, || put(fd, name, file)).context(|| format!("binding {}", readable(name)))?
}

fn put(fd: BorrowedFd<'_>, name: &[u8], file: Option<(&BoundFile, &Path)>) -> Result<()> {
    // Where the file is there still, as in a file system of the tree's own, nothing in its folder is to look changed.
    let was = file.and_then(|(_, place)| Some((Times::of(place)?, Times::of(place.parent()?)?)));
    let folder = file.and_then(|(_, place)| place.parent()).map_or_else(std::env::temp_dir, Path::to_owned);
    let root = Root::make(&folder)?;
    root.within(|| {
        for (at, _) in name.iter().enumerate().filter(|&(at, b)| at > 0 && *b == b'/') {
            match nix::unistd::mkdir(OsStr::from_bytes(&name[..at]), nix::sys::stat::Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
        socket::bind(fd, name)
    })
    .context(|| format!("binding {}", readable(name)))?;
    let Some((file, place)) = file else { return Ok(()) };
    let doing = || format!("putting the socket {} into its place", file.path.as_ref().map(ToString::to_string).unwrap_or_default());
    let made = below(&root.path, name);
    std::os::unix::fs::lchown(&made, Some(file.owner.0), Some(file.owner.1)).context(doing)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(file.mode & 0o7777)).context(doing)?;
    std::fs::rename(&made, place).context(doing)?;
    drop(root);
    if let Some((of_file, of_folder)) = was {
        of_file.set(place).and_then(|()| of_folder.set(&folder)).context(doing)?;
    }
    Ok(())
}

/// Access and modification time of a file.
struct Times([TimeSpec; 2]);

impl Times {
    fn of(path: &Path) -> Option<Times> {
        let meta = std::fs::symlink_metadata(path).ok()?;
        Some(Times([TimeSpec::new(meta.atime(), meta.atime_nsec()), TimeSpec::new(meta.mtime(), meta.mtime_nsec())]))
    }

    fn set(&self, path: &Path) -> nix::Result<()> {
        utimensat(AT_FDCWD, path, &self.0[0], &self.0[1], UtimensatFlags::NoFollowSymlink)
    }
}

/// Where a name leads to for whose root and current directory is `root`, which holds no symbolic links.
fn below(root: &Path, name: &[u8]) -> PathBuf {
    let mut parts = Vec::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    root.join(parts.into_iter().collect::<PathBuf>())
}

/// Whether a socket may be put at a path: nothing is there, or a socket that nobody is bound to any more.
fn free(place: &Path) -> Result<()> {
    let shown = place.display();
    let taken =
        |what: &str| Err(Error::new(Kind::Unsupported, format!("{shown} is {what}")).help("move it away, or end the program that has it"));
    let Ok(meta) = std::fs::symlink_metadata(place) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return taken("there and is not a socket");
    }
    let device = libc::major(meta.dev()) << 20 | libc::minor(meta.dev());
    let identity = Some((meta.ino() as u32, device));
    let all = diag::list().context(|| "listing unix sockets (sock_diag)")?;
    if all.iter().any(|s| s.file == identity) { taken("in use by another program") } else { Ok(()) }
}

/// A folder that is a root for a moment. Its maker holds a lock on it.
struct Root {
    path: PathBuf,
    folder: Flock<File>,
}

/// What the names of such folders begin with.
const PREFIX: &str = ".meio-";

/// One that is older than this, in seconds, and that nobody holds is left from a meio that could not end its work.
const LEFT: u64 = 10;

impl Root {
    fn make(folder: &Path) -> Result<Root> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        if SWEPT.lock().is_ok_and(|mut swept| swept.insert(folder.to_owned())) {
            sweep(folder);
        }
        let doing = || format!("making a folder in {}", folder.display());
        let path = folder.join(format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::DirBuilder::new().mode(0o700).create(&path).context(doing)?;
        let folder = File::open(&path).context(doing)?;
        let folder = Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, e)| e).context(doing)?;
        Ok(Root { path, folder })
    }

    /// Works where the folder is the root, and the current directory; in a process that shares neither with others.
    fn within(&self, work: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
        let outside = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
        nix::unistd::fchdir(&*self.folder)?;
        nix::unistd::chroot(".")?;
        let done = work();
        nix::unistd::fchdir(&outside)?;
        nix::unistd::chroot(".")?;
        done
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes what is left of others in a folder.
fn sweep(folder: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let ours = entry
            .file_name()
            .as_bytes()
            .strip_prefix(PREFIX.as_bytes())
            .is_some_and(|rest| rest.contains(&b'-') && rest.iter().all(|b| b.is_ascii_digit() || *b == b'-'));
        let old = |meta: &std::fs::Metadata| meta.modified().is_ok_and(|m| m.elapsed().is_ok_and(|age| age.as_secs() > LEFT));
        if ours
            && entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own && old(&meta))
            && let Ok(left) = File::open(entry.path())
            && Flock::lock(left, FlockArg::LockExclusiveNonblock).is_ok()
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_below_a_root() {
        let of = |name: &str| below(Path::new("/r"), name.as_bytes());
        assert_eq!(of("/run/x"), Path::new("/r/run/x"));
        assert_eq!(of("x"), Path::new("/r/x"));
        assert_eq!(of("../../a/./../b//x"), Path::new("/r/b/x"));
    }
}
