//! The image file: it gets its name only when it is complete and on disk.

use crate::error::{Context, Error, Result};
use crate::sys::signal;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where the bytes go while the image is written.
pub enum Target {
    /// A file without a name (open(2) `O_TMPFILE`): nothing is left of it when meio dies.
    Unnamed { file: File, path: PathBuf },
    /// A file under a temporary name, where the file system has no `O_TMPFILE`.
    Temporary { file: File, temporary: PathBuf, path: PathBuf },
    /// A pipe, terminal or device: standard output, or a path that is no regular file.
    Stream(File),
}

impl Target {
    /// Prepares the file at `path`. Images are readable by their owner alone.
    pub fn file(path: &Path) -> Result<Self> {
        let doing = || format!("creating {}", path.display());
        if let Ok(meta) = std::fs::metadata(path)
            && (meta.file_type().is_fifo() || meta.file_type().is_char_device())
        {
            return Ok(Target::Stream(OpenOptions::new().write(true).open(path).context(doing)?));
        }
        let folder = match path.parent() {
            Some(p) if p != Path::new("") => p,
            _ => Path::new("."),
        };
        let unnamed = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(folder);
        if let Ok(file) = unnamed {
            return Ok(Target::Unnamed { file, path: path.to_owned() });
        }
        let temporary = temporary_name(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary).context(doing)?;
        Ok(Target::Temporary { file, temporary, path: path.to_owned() })
    }

    /// The open file.
    pub fn open(&self) -> &File {
        match self {
            Target::Unnamed { file, .. } | Target::Temporary { file, .. } | Target::Stream(file) => file,
        }
    }

    /// The folder of the image; of a stream there is none.
    fn folder(&self) -> Option<PathBuf> {
        match self {
            Target::Unnamed { path, .. } | Target::Temporary { path, .. } => Some(match path.parent() {
                Some(p) if p != Path::new("") => p.to_owned(),
                _ => PathBuf::from("."),
            }),
            Target::Stream(_) => None,
        }
    }

    /// Says of a failure for want of room where that is wanted, and how many bytes it takes at most.
    pub fn no_room(&self, e: Error, bytes: u64) -> Error {
        let mib = bytes.div_ceil(1 << 20);
        let place = self
            .folder()
            .map_or("what is written to".into(), |folder| std::fs::canonicalize(&folder).unwrap_or(folder).display().to_string());
        match e.errno {
            Some(libc::ENOSPC | libc::EDQUOT) => e.help(format!("up to {mib} MiB are needed in {place}: make room, or write elsewhere")),
            Some(libc::EFBIG) => e.help(format!(
                "a file of up to {mib} MiB is needed in {place}: raise the limit of its size (ulimit -f), or write elsewhere"
            )),
            _ => e,
        }
    }

    /// A file without a name for what is not in its place yet: on the same file system, where there is one.
    pub fn beside(&self) -> io::Result<File> {
        let folder = self.folder().unwrap_or_else(std::env::temp_dir);
        let unnamed = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(&folder);
        unnamed.or_else(|_| {
            let temporary = folder.join(format!(".meio.{}.part", std::process::id()));
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
            std::fs::remove_file(&temporary).map(|()| file)
        })
    }

    /// Whether it is a file that can be written at any place.
    pub fn is_file(&self) -> bool {
        !matches!(self, Target::Stream(_))
    }

    /// Whether it is a file that nobody else can reach.
    pub fn is_unnamed(&self) -> bool {
        matches!(self, Target::Unnamed { .. })
    }

    /// Takes room for an image of about `bytes` on a disk, where that costs next to nothing, so that the tree need not
    /// wait for it while it stands still. No room is no failure yet: less may be needed.
    pub fn reserve(&self, bytes: u64) {
        let file = self.open();
        let in_memory = || nix::sys::statfs::fstatfs(file).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
        if self.is_file() && !in_memory() {
            let _ = nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes as i64);
        }
    }

    /// Gives back what was taken and not used, once the image has its size in bytes.
    pub fn trim(&self, bytes: u64) -> Result<()> {
        if !self.is_file() {
            return Ok(());
        }
        self.open().set_len(bytes).context(|| "writing the image")
    }

    /// Flushes to disk and gives the file its name, replacing what had it.
    pub fn commit(mut self) -> Result<()> {
        let result = self.name();
        if let (Err(_), Target::Temporary { temporary, .. }) = (&result, &self) {
            let _ = std::fs::remove_file(temporary);
        }
        if result.is_ok() {
            self = Target::Stream(self.open().try_clone()?); // nothing is to be removed any more
        }
        drop(self);
        result
    }

    fn name(&self) -> Result<()> {
        match self {
            Target::Stream(file) => (&*file).flush().context(|| "writing the image"),
            Target::Temporary { file, temporary, path } => {
                file.sync_all().context(|| format!("flushing {}", path.display()))?;
                std::fs::rename(temporary, path).context(|| format!("naming {}", path.display()))?;
                sync_folder(path)
            }
            Target::Unnamed { file, path } => {
                file.sync_all().context(|| format!("flushing {}", path.display()))?;
                let from = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                let link = |to: &Path| {
                    nix::unistd::linkat(nix::fcntl::AT_FDCWD, &from, nix::fcntl::AT_FDCWD, to, nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW)
                        .map_err(io::Error::from)
                };
                match link(path) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        let temporary = temporary_name(path);
                        link(&temporary).context(|| format!("naming {}", path.display()))?;
                        std::fs::rename(&temporary, path).inspect_err(|_| drop(std::fs::remove_file(&temporary)))
                    }
                    other => other,
                }
                .context(|| format!("naming {}", path.display()))?;
                sync_folder(path)
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Target::Temporary { temporary, .. } = self {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Writes to a file, and stops writing when meio is interrupted: a pipe that nobody reads must not hold it for ever.
pub struct Interruptible<'a>(pub &'a File);

impl Write for Interruptible<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        signal::check_interrupted().map_err(io::Error::other)?;
        match self.0.write(bytes) {
            // Not tried again by the caller then.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(signal::check_interrupted().map_or_else(io::Error::other, |()| e)),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.part", std::process::id()))
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if p != Path::new("") => p,
        _ => Path::new("."),
    };
    // A folder that cannot be synchronised (some network file systems) is no reason to call the image unsafe.
    let _ = File::open(folder).and_then(|f| f.sync_all());
    Ok(())
}
