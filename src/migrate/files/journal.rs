//! What a target has done to single files, so that it can be undone also when meio has been killed: a file beside the images, which is
//! locked as long as somebody answers for it.

use super::super::message::Id;
use super::super::plan::pack;
use super::super::record::{self, Store};
use super::super::state::Verdict;
use super::catalogue::read_one;
use crate::error::{Context, Result};
use crate::resource::path::FilePath;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the names of such files begin and end with; the move's name is between.
const BEFORE: &str = ".meio.";
const BEHIND: &str = ".files";

/// One thing that is about to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// This is the move.
    Of(Id),
    /// A folder is made.
    Made(FilePath),
    /// A file is built under a name of its own.
    Built(FilePath),
    /// It takes its place.
    Placed {
        /// There.
        path: FilePath,
        /// Where what was there waits.
        aside: Option<FilePath>,
        /// The new file.
        file: (u64, u64),
    },
    /// All of it stays.
    Kept,
}

/// Open, and locked.
pub struct Journal {
    path: PathBuf,
    file: Flock<File>,
}

impl Journal {
    /// A new one in `folder`.
    pub fn begin(folder: &Path, id: &Id) -> Result<Self> {
        let path = folder.join(format!("{BEFORE}{}{BEHIND}", record::name(id)));
        let doing = || path.display().to_string();
        let file = File::options().append(true).create_new(true).mode(0o600).open(&path).context(doing)?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).context(doing)?;
        let mut journal = Journal { path, file };
        journal.note(&Deed::Of(*id))?;
        Ok(journal)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes what is about to be done.
    pub fn note(&mut self, deed: &Deed) -> Result<()> {
        let bytes = pack(deed)?;
        let mut all = (bytes.len() as u32).to_le_bytes().to_vec();
        all.extend(bytes);
        self.file.write_all(&all).context(|| format!("writing {}", self.path.display()))
    }

    /// Has it on disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().context(|| format!("writing {}", self.path.display()))
    }
}

/// What is noted; what was not written to its end was not done either.
fn read(path: &Path) -> io::Result<Vec<Deed>> {
    let mut from = BufReader::new(File::open(path)?);
    let mut deeds = Vec::new();
    while let Ok(Some(deed)) = read_one(&mut from) {
        deeds.push(deed);
    }
    Ok(deeds)
}

/// Puts everything back, or clears up behind what stays, as far as that can be done: what could not be.
pub fn settle(path: &Path, stays: bool) -> Vec<String> {
    let deeds = match read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => return vec![format!("{}: {e}", path.display())],
        Ok(deeds) => deeds,
    };
    let stays = stays || deeds.contains(&Deed::Kept);
    let mut failed = Vec::new();
    for deed in deeds.iter().rev() {
        if let Err((place, e)) = if stays { clear(deed) } else { undo(deed) } {
            failed.push(format!("{place}: {e}"));
        }
    }
    // What could not be put back is tried again by whoever comes next.
    if failed.is_empty()
        && let Err(e) = fs::remove_file(path)
    {
        failed.push(format!("{}: {e}", path.display()));
    }
    failed
}

type Done<'d> = std::result::Result<(), (&'d FilePath, io::Error)>;

fn or_gone(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn undo(deed: &Deed) -> Done<'_> {
    match deed {
        Deed::Placed { path, aside: Some(aside), .. } => {
            let back = || {
                if fs::symlink_metadata(aside).is_err() {
                    return Ok(()); // it has not been done yet
                }
                fs::rename(aside, path)?;
                // Where both were the same file nothing was done.
                or_gone(fs::remove_file(aside))?;
                super::entry::sync_folder(path)
            };
            back().map_err(|e| (path, e))
        }
        Deed::Placed { path, aside: None, file } => match fs::symlink_metadata(path) {
            Ok(meta) if (meta.dev(), meta.ino()) == *file => or_gone(fs::remove_file(path)).map_err(|e| (path, e)),
            _ => Ok(()),
        },
        Deed::Built(path) => or_gone(fs::remove_file(path)).map_err(|e| (path, e)),
        Deed::Made(path) => match fs::remove_dir(path) {
            // Somebody else has put something there.
            Err(e) if e.raw_os_error() == Some(libc::ENOTEMPTY) => Ok(()),
            done => or_gone(done).map_err(|e| (path, e)),
        },
        Deed::Of(_) | Deed::Kept => Ok(()),
    }
}

fn clear(deed: &Deed) -> Done<'_> {
    match deed {
        Deed::Placed { aside: Some(path), .. } | Deed::Built(path) => or_gone(fs::remove_file(path)).map_err(|e| (path, e)),
        _ => Ok(()),
    }
}

/// Settles what meios have left that were killed: by what is on record of each move.
pub fn sweep(folder: &Path, store: &Store) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !(name.starts_with(BEFORE) && name.ends_with(BEHIND)) {
            continue;
        }
        let own = entry.metadata().is_ok_and(|m| m.is_file() && m.uid() == nix::unistd::geteuid().as_raw());
        let locked = own.then(|| Flock::lock(File::open(entry.path()).ok()?, FlockArg::LockExclusiveNonblock).ok()).flatten();
        if locked.is_some() {
            left(&entry.path(), store);
        }
    }
}

/// The same of one journal.
pub fn left(path: &Path, store: &Store) {
    let id = read(path).ok().and_then(|deeds| deeds.into_iter().find_map(|d| if let Deed::Of(id) = d { Some(id) } else { None }));
    let stays = id.and_then(|id| store.verdict(&id)).is_some_and(|v| matches!(v, Verdict::Going | Verdict::Alive));
    settle(path, stays);
}
