//! What the target does: changes as they come.

use super::ops::{MAGIC, Op, SINGLE, next};
use super::stage::Stage;
use super::{Folder, entry, walk};
use crate::error::{Context, Error, Result};
use crate::resource::path::FilePath;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Longest piece of data.
const PIECE: u32 = 1 << 20;

/// Makes changes.
pub struct Applier {
    folders: Vec<PathBuf>,
    stage: Arc<Mutex<Option<Stage>>>,
    /// Bytes of data and zeros, used again.
    buffer: Vec<u8>,
    /// Sets of changes that were made.
    sets: u64,
    /// Folders whose names have changed.
    renamed: BTreeSet<PathBuf>,
}

/// What changes are about.
#[derive(Clone, Copy)]
enum Root {
    Single,
    Folder { number: usize, last: bool },
}

/// A file that is being written.
struct Open {
    file: File,
    /// Where it is now, and what it is called.
    at: PathBuf,
    place: PathBuf,
    single: bool,
    last: bool,
}

impl Applier {
    /// Of what was agreed.
    pub fn new(folders: &[Folder], stage: Arc<Mutex<Option<Stage>>>) -> Self {
        let folders = folders.iter().map(|f| f.path.to_path_buf()).collect();
        Applier { folders, stage, buffer: Vec::new(), sets: 0, renamed: BTreeSet::new() }
    }

    /// Whether something that begins with this is for it.
    pub fn is_for(head: &[u8]) -> bool {
        head == MAGIC
    }

    /// Makes a set of changes, from after its first bytes on.
    pub fn apply(&mut self, from: &mut impl Read) -> Result<()> {
        let mut root = None;
        let mut open: Option<Open> = None;
        self.sets += 1;
        loop {
            match (next(from)?, &mut open) {
                (Op::End, None) => break,
                (Op::Root { number: SINGLE, .. }, None) => root = Some(Root::Single),
                (Op::Root { number, last }, None) if (number as usize) < self.folders.len() => {
                    root = Some(Root::Folder { number: number as usize, last });
                }
                (Op::Write { path, fresh, apart }, None) => open = Some(self.open(root, &path, fresh, apart)?),
                (Op::Data { at, length }, Some(open)) if length <= PIECE => {
                    self.buffer.resize(length as usize, 0);
                    from.read_exact(&mut self.buffer)?;
                    open.file.write_all_at(&self.buffer, at).context(|| format!("writing {}", open.place.display()))?;
                }
                (Op::Hole { at, length }, Some(open)) => {
                    hole(&open.file, at, length).context(|| format!("writing {}", open.place.display()))?
                }
                (Op::Close { size, meta }, Some(_)) => {
                    if let Some(open) = open.take() {
                        let doing = || format!("writing {}", open.place.display());
                        open.file.set_len(size).context(doing)?;
                        meta.set(&open.at).context(doing)?;
                        if open.single || open.last {
                            open.file.sync_all().context(doing)?;
                        }
                    }
                }
                (op, None) => self.change(root, op)?,
                _ => return Err(nonsense()),
            }
        }
        // The first set may be of very many files: they go to their disks together.
        let renamed = std::mem::take(&mut self.renamed);
        if self.sets > 1 {
            for folder in renamed.iter().filter(|f| f.is_dir()) {
                File::open(folder).and_then(|f| f.sync_all()).context(|| format!("writing {}", folder.display()))?;
            }
        } else {
            for folder in self.folders.iter().filter(|f| f.is_dir()) {
                let file = File::open(folder).context(|| folder.display())?;
                nix::unistd::syncfs(&file).context(|| format!("writing {}", folder.display()))?;
            }
        }
        Ok(())
    }

    fn place(&self, root: Option<Root>, path: &FilePath) -> Result<PathBuf> {
        if !entry::is_inside(path) {
            return Err(nonsense());
        }
        match root {
            Some(Root::Single) => Ok(path.below(Path::new("/"))),
            Some(Root::Folder { number, .. }) => Ok(entry::join(&self.folders[number], path)),
            None => Err(nonsense()),
        }
    }

    fn staged<T>(&self, work: impl FnOnce(&mut Stage) -> Result<T>) -> Result<T> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        stage.as_mut().map_or_else(|| Err(nonsense()), work)
    }

    fn open(&mut self, root: Option<Root>, path: &FilePath, fresh: bool, apart: bool) -> Result<Open> {
        let place = self.place(root, path)?;
        let doing = || format!("writing {}", place.display());
        if let Some(Root::Single) = root {
            let at = self.staged(|stage| stage.build(&place, fresh))?;
            let file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(&at).context(doing)?;
            return Ok(Open { file, at, place, single: true, last: true });
        }
        let last = !matches!(root, Some(Root::Folder { last: false, .. })) || self.sets > 1;
        let open = |new: bool| {
            OpenOptions::new().write(true).create_new(new).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&place)
        };
        if fresh || apart {
            self.renamed.extend(place.parent().map(Path::to_owned));
        }
        let file = match fresh {
            true => {
                walk::remove(&place).context(doing)?;
                open(true).context(doing)?
            }
            false => {
                if apart {
                    anew(&place).context(doing)?;
                }
                match open(false) {
                    // Somebody runs it: that one keeps what it has.
                    Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => {
                        anew(&place).context(doing)?;
                        open(false).context(doing)?
                    }
                    file => file.context(doing)?,
                }
            }
        };
        Ok(Open { file, at: place.clone(), place, single: false, last })
    }

    fn change(&mut self, root: Option<Root>, op: Op) -> Result<()> {
        if let Some(Root::Single) = root {
            return match op {
                Op::Folder(path) => self.staged(|stage| stage.folder(&self.place(root, &path)?)),
                Op::Set { path, meta } => self.staged(|stage| stage.set(&self.place(root, &path)?, &meta)),
                _ => Err(nonsense()),
            };
        }
        let names = !matches!(op, Op::Set { .. });
        let (path, done) = match op {
            Op::Delete(path) if !path.bytes().is_empty() => {
                let place = self.place(root, &path)?;
                (place.clone(), walk::remove(&place))
            }
            Op::Folder(path) => {
                let place = self.place(root, &path)?;
                let mut builder = DirBuilder::new();
                builder.mode(0o755).recursive(path.bytes().is_empty());
                let there = fs::symlink_metadata(&place).is_ok_and(|m| m.is_dir());
                (place.clone(), if there { Ok(()) } else { builder.create(&place) })
            }
            Op::Symlink { path, to, meta } => {
                let place = self.place(root, &path)?;
                let make = || {
                    walk::remove(&place)?;
                    std::os::unix::fs::symlink(&*to, &place)?;
                    meta.set(&place)
                };
                (place.clone(), make())
            }
            Op::Node { path, device, meta } => {
                let place = self.place(root, &path)?;
                let make = || {
                    walk::remove(&place)?;
                    meta.make_node(&place, device)?;
                    meta.set(&place)
                };
                (place.clone(), make())
            }
            Op::Link { path, there } => {
                let (place, there) = (self.place(root, &path)?, self.place(root, &there)?);
                let make = || {
                    walk::remove(&place)?;
                    Ok(entry::link(&there, &place)?)
                };
                (place.clone(), make())
            }
            Op::Set { path, meta } => {
                let place = self.place(root, &path)?;
                (place.clone(), meta.set(&place))
            }
            _ => return Err(nonsense()),
        };
        if names {
            self.renamed.extend(path.parent().map(Path::to_owned));
        }
        done.context(|| format!("changing {}", path.display()))
    }
}

fn nonsense() -> Error {
    Error::link("what came about files makes no sense")
}

/// Makes a file one of its own, whatever other paths it has.
fn anew(place: &Path) -> io::Result<()> {
    let built = entry::beside(place, &format!(".meio.{}.apart", std::process::id()));
    let make = || {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&built)?;
        copy(place, &built)?;
        fs::rename(&built, place)
    };
    make().inspect_err(|_| drop(fs::remove_file(&built)))
}

/// Copies content into a file that is there and empty; holes stay holes.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let from = entry::open(from)?;
    let to = OpenOptions::new().write(true).open(to)?;
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut buffer = vec![0; PIECE as usize];
    for (start, length) in crate::sys::file::data_ranges(&from, size)? {
        let (mut at, end) = (start, (start + length).min(size));
        while at < end {
            let most = buffer.len().min((end - at) as usize);
            match from.read_at(&mut buffer[..most], at)? {
                0 => break,
                n => {
                    to.write_all_at(&buffer[..n], at)?;
                    at += n as u64;
                }
            }
        }
    }
    Ok(())
}

/// Nothing is there any more; where there can be no holes, zeros.
fn hole(file: &File, at: u64, length: u64) -> io::Result<()> {
    let (Ok(start), Ok(long)) = (i64::try_from(at), i64::try_from(length)) else { return Err(io::ErrorKind::InvalidInput.into()) };
    match fallocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, long) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            // Behind its end there is nothing anyway.
            let end = (at + length).min(file.metadata()?.len());
            let zeros = vec![0; 64 << 10];
            let mut at = at;
            while at < end {
                let some = zeros.len().min((end - at) as usize);
                file.write_all_at(&zeros[..some], at)?;
                at += some as u64;
            }
            Ok(())
        }
        done => Ok(done?),
    }
}
