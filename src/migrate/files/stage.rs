//! Single files under other names, until they take their places.

use super::apply::copy;
use super::compare::now;
use super::entry::{self, Identity, Meta};
use super::journal::{self, Deed, Journal};
use super::{Copying, Request, Wanted};
use crate::error::{Context, Error, Result};
use crate::migrate::message::Id;
use crate::migrate::record::{self, Store};
use crate::resource::path::FilePath;
use crate::sys::guardian::Guardian;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The files of one move.
pub struct Stage {
    journal: Journal,
    guardian: Option<Guardian>,
    name: String,
    /// Places that may be taken, and what is in them.
    places: HashMap<PathBuf, Option<Identity>>,
    /// Built, by place.
    built: Vec<(PathBuf, PathBuf)>,
    made: BTreeSet<PathBuf>,
    /// Attributes of what was made: what takes its place in it changes its times.
    attributes: Vec<(PathBuf, Meta)>,
    /// It is on record what stays.
    settled: bool,
}

impl Stage {
    /// Nothing yet; none where nothing is to be sent. `there`: what was found in the place of each file. When this meio is killed
    /// a child of it puts everything back, which is to be posted before there are others to hold on to what meio has open.
    pub fn begin(folder: &Path, id: &Id, request: &Request, there: &[Option<Identity>], store: &Store) -> Result<Option<Self>> {
        if request.copying == Copying::Nothing {
            return Ok(None);
        }
        let journal = Journal::begin(folder, id)?;
        let (path, store) = (journal.path().to_owned(), store.clone());
        let guardian = Guardian::post(&[], move || journal::left(&path, &store))?;
        guardian.entrust()?;
        let places = request.wanted.iter().zip(there).map(|(w, there)| (w.path.to_path_buf(), *there)).collect();
        let (name, guardian) = (record::name(id), Some(guardian));
        Ok(Some(Stage {
            journal,
            guardian,
            name,
            places,
            built: Vec::new(),
            made: BTreeSet::new(),
            attributes: Vec::new(),
            settled: false,
        }))
    }

    /// More places that may be taken.
    pub fn expect(&mut self, wanted: &[Wanted], there: &[Option<Identity>]) {
        self.places.extend(wanted.iter().zip(there).map(|(w, there)| (w.path.to_path_buf(), *there)));
    }

    /// Where a file is built. `fresh`: without what is in its place now.
    pub fn build(&mut self, place: &Path, fresh: bool) -> Result<PathBuf> {
        if let Some((_, built)) = self.built.iter().find(|b| b.0 == place && !self.settled) {
            return Ok(built.clone());
        }
        self.as_it_was(place)?;
        let built = entry::beside(place, &format!(".meio.{}.{}", self.name, self.built.len()));
        self.journal.note(&Deed::Built(of(&built)))?;
        let doing = || format!("making {}", built.display());
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&built).context(doing)?;
        self.built.push((place.to_owned(), built.clone()));
        if !fresh {
            copy(place, &built).context(doing)?;
        }
        Ok(built)
    }

    /// Only what was agreed is touched, and only while it is as it was then.
    fn as_it_was(&self, place: &Path) -> Result<()> {
        match self.places.get(place) {
            _ if self.settled => Err(Error::other("the move was given up")),
            None => Err(Error::link(format!("nothing was agreed about {}", place.display()))),
            Some(before) if *before == now(place) => Ok(()),
            Some(None) => Err(Error::other(format!("{} has appeared while it was being sent", place.display()))),
            Some(_) => Err(Error::other(format!("{} was changed by somebody else while it was being sent", place.display()))),
        }
    }

    /// A folder is to be there.
    pub fn folder(&mut self, place: &Path) -> Result<()> {
        if place.is_dir() {
            return Ok(());
        }
        if self.settled || !self.places.keys().any(|p| p.starts_with(place)) {
            return Err(Error::link(format!("nothing was agreed about {}", place.display())));
        }
        self.journal.note(&Deed::Made(of(place)))?;
        DirBuilder::new().mode(0o700).create(place).context(|| format!("making {}", place.display()))?;
        self.made.insert(place.to_owned());
        Ok(())
    }

    /// Attributes of what was made or built; what was there has its own.
    pub fn set(&mut self, place: &Path, meta: &Meta) -> Result<()> {
        if self.made.contains(place) && !self.attributes.iter().any(|a| a.0 == place) {
            self.attributes.push((place.to_owned(), meta.clone()));
        }
        let built = self.built.iter().find(|b| b.0 == place).map(|b| b.1.as_path());
        let made = self.made.get(place).map(PathBuf::as_path);
        match built.or(made) {
            Some(path) => meta.set(path).context(|| format!("setting the attributes of {}", place.display())),
            None => Ok(()),
        }
    }

    /// All that was built takes its place.
    ///
    /// # Errors
    /// When it cannot be, or somebody else has changed something; [`Stage::undo`] puts all back.
    pub fn take_places(&mut self) -> Result<()> {
        let mut folders = BTreeSet::new();
        for (n, (place, built)) in self.built.iter().enumerate() {
            self.as_it_was(place)?;
            let meta = fs::symlink_metadata(built).context(|| built.display())?;
            let before = self.places.get(place).copied().flatten();
            let aside = before.map(|_| entry::beside(place, &format!(".meio.{}.{n}.before", self.name)));
            let file = (meta.dev(), meta.ino());
            self.journal.note(&Deed::Placed { path: of(place), aside: aside.as_deref().map(of), file })?;
            folders.insert(place.parent().unwrap_or(Path::new("/")).to_owned());
        }
        self.journal.sync()?;
        for (n, (place, built)) in self.built.iter().enumerate() {
            let doing = || format!("putting {} in its place", place.display());
            if self.places.get(place).copied().flatten().is_some() {
                let aside = entry::beside(place, &format!(".meio.{}.{n}.before", self.name));
                // There is always one of both, where the file system knows links.
                entry::link(place, &aside).or_else(|_| fs::rename(place, &aside)).context(doing)?;
                fs::rename(built, place).context(doing)?;
            } else {
                put(built, place).context(doing)?;
            }
        }
        for (folder, meta) in &self.attributes {
            meta.set(folder).context(|| folder.display())?;
        }
        for folder in folders {
            fs::File::open(&folder).and_then(|f| f.sync_all()).context(|| folder.display())?;
        }
        Ok(())
    }

    /// The tree runs: what was in the places goes.
    pub fn keep(&mut self) -> Vec<String> {
        self.settled = true;
        let noted = self.journal.note(&Deed::Kept).err().map(|e| e.message);
        noted.into_iter().chain(self.settle(true)).collect()
    }

    /// It does not: everything is as it was; what is not.
    pub fn undo(&mut self) -> Vec<String> {
        if std::mem::replace(&mut self.settled, true) { Vec::new() } else { self.settle(false) }
    }

    fn settle(&mut self, stays: bool) -> Vec<String> {
        let failed = journal::settle(self.journal.path(), stays);
        // It would find nothing to do.
        let _ = self.guardian.take().map(Guardian::dismiss);
        failed
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.undo();
    }
}

fn of(path: &Path) -> FilePath {
    FilePath::from(path.as_os_str().as_bytes())
}

/// Gives a file the name that nobody has.
fn put(built: &Path, place: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    match renameat2(AT_FDCWD, built, AT_FDCWD, place, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system knows how.
        Err(nix::errno::Errno::EINVAL) => fs::rename(built, place),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests;
