//! A folder from top to bottom, in an order that both ends have: by the bytes of each part of a path.

use crate::error::{Context, Result};
use crate::resource::path::FilePath;
use std::cmp::Ordering;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is met on the way.
pub enum Step {
    /// Something, below the folder or (with an empty path) the folder itself; what is in it comes next.
    Enter(FilePath, Box<Metadata>),
    /// A folder, after everything that is in it.
    Leave(FilePath),
}

/// On its way. Only the names of the folders above are kept.
pub struct Walk {
    top: PathBuf,
    device: u64,
    /// Each folder that is open, with the names in it that are still to come, the next one last.
    open: Vec<(FilePath, Vec<OsString>)>,
    begun: bool,
    /// File systems of their own that were met: they are not entered.
    pub foreign: Vec<FilePath>,
}

/// The order of two paths below a folder.
pub fn order(a: &FilePath, b: &FilePath) -> Ordering {
    let parts = |p: &FilePath| p.bytes().split(|b| *b == b'/').filter(|p| !p.is_empty()).map(<[u8]>::to_vec).collect::<Vec<_>>();
    parts(a).cmp(&parts(b))
}

/// Whether a path is below another one.
pub fn is_below(path: &FilePath, folder: &FilePath) -> bool {
    folder.bytes().is_empty() || path.bytes().strip_prefix(folder.bytes()).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn child(folder: &FilePath, name: &OsString) -> FilePath {
    let mut path = folder.bytes().to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    FilePath::from(path.as_slice())
}

impl Walk {
    /// Of a folder.
    pub fn new(top: &Path) -> Result<Self> {
        let meta = std::fs::symlink_metadata(top).context(|| top.display())?;
        Ok(Walk { top: top.to_owned(), device: meta.dev(), open: Vec::new(), begun: false, foreign: Vec::new() })
    }

    /// The next step; what vanishes meanwhile was not there.
    pub fn step(&mut self) -> Result<Option<Step>> {
        if !self.begun {
            self.begun = true;
            return self.enter(FilePath::default());
        }
        while let Some((folder, names)) = self.open.last_mut() {
            let Some(name) = names.pop() else {
                let folder = folder.clone();
                self.open.pop();
                return Ok(Some(Step::Leave(folder)));
            };
            let path = child(folder, &name);
            if let Some(step) = self.enter(path)? {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    fn enter(&mut self, path: FilePath) -> Result<Option<Step>> {
        let place = super::entry::join(&self.top, &path);
        let doing = || place.display().to_string();
        let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        let meta = match std::fs::symlink_metadata(&place) {
            Err(e) if gone(&e) => return Ok(None),
            meta => meta.context(doing)?,
        };
        if meta.is_dir() {
            if meta.dev() != self.device {
                self.foreign.push(path);
                return Ok(None);
            }
            let mut names = Vec::new();
            match std::fs::read_dir(&place) {
                Err(e) if gone(&e) => return Ok(None),
                entries => {
                    for entry in entries.context(doing)? {
                        names.push(entry.context(doing)?.file_name());
                    }
                }
            }
            names.sort_unstable_by(|a, b| b.cmp(a));
            self.open.push((path.clone(), names));
        }
        Ok(Some(Step::Enter(path, Box::new(meta))))
    }
}

/// Removes whatever is at a path, with everything below it on the same file system.
pub fn remove(path: &Path) -> io::Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    if !meta.is_dir() {
        return std::fs::remove_file(path);
    }
    let above = path.parent().map(std::fs::symlink_metadata).transpose()?;
    if above.is_some_and(|a| a.dev() != meta.dev()) {
        return Err(io::Error::other("it is a file system of its own"));
    }
    let names: Vec<OsString> = std::fs::read_dir(path)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>()?;
    for name in names {
        remove(&path.join(OsString::from_vec(name.into_vec())))?;
    }
    std::fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn everything_is_met_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "a-b", "b/c", "b/c.d/e", "z"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        fs::create_dir(folder.path().join("a.d")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("l")).unwrap();
        let mut walk = Walk::new(folder.path()).unwrap();
        let (mut met, mut left) = (Vec::new(), Vec::new());
        while let Some(step) = walk.step().unwrap() {
            match step {
                Step::Enter(path, _) => met.push(path),
                Step::Leave(path) => left.push(path.to_string()),
            }
        }
        assert!(met.is_sorted_by(|a, b| order(a, b) == Ordering::Less), "{met:?}");
        let met: Vec<String> = met.iter().map(ToString::to_string).collect();
        assert_eq!(met, ["", "a", "a-b", "a.d", "b", "b/c", "b/c.d", "b/c.d/e", "l", "z"]);
        assert_eq!(left, ["a.d", "b/c.d", "b", ""]);
        remove(&folder.path().join("b")).unwrap();
        remove(&folder.path().join("l")).unwrap();
        remove(&folder.path().join("not there")).unwrap();
        assert!(!folder.path().join("b").exists() && folder.path().join("z").exists());
    }

    #[test]
    fn paths_are_ordered_by_their_parts() {
        let path = |text: &str| FilePath::from(text);
        assert_eq!(order(&path("a/b"), &path("a-b")), Ordering::Less);
        assert_eq!(order(&path(""), &path("a")), Ordering::Less);
        assert_eq!(order(&path("a/b"), &path("a/b")), Ordering::Equal);
        assert!(is_below(&path("a/b"), &path("a")) && is_below(&path("a"), &path("")));
        assert!(!is_below(&path("ab"), &path("a")) && !is_below(&path("a"), &path("a")));
    }
}
