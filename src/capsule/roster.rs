//! Who lives: a file for each capsule in `/run/meio`, or `$XDG_RUNTIME_DIR/meio` for who is not root. An entry counts only
//! while the process that it names is that very one.

use crate::error::{Context, Error, Kind, Result};
use crate::sys::proc::{read, stat};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// One living capsule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its init as it is seen from here.
    pub pid: i32,
    /// When that process began, in clock ticks since boot: another one with the same pid is not it.
    pub start: u64,
    /// Inode of the pid namespace that the pid belongs to.
    pub space: u64,
    /// When the capsule was started, or brought back: seconds since 1970.
    pub since: u64,
    /// The last image that was made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
}

/// The folder with an entry for each capsule.
#[derive(Debug, Clone)]
pub struct Roster(PathBuf);

/// An entry that is being written.
const DRAFT: &str = ".draft";
/// Longest name.
const LONGEST: usize = 48;

/// Whether a text can be the name of a capsule; a number could be a pid.
pub fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty()
        && text.len() <= LONGEST
        && text.chars().all(fits)
        && !text.starts_with(['.', '-'])
        && text.chars().any(|c| !c.is_ascii_digit())
}

fn start_of(pid: i32) -> Option<u64> {
    read::parsed(pid, "stat", stat::parse).ok().filter(|s| !matches!(s.state, b'Z' | b'X')).map(|s| s.start_time)
}

/// The pid namespace of meio.
fn space() -> Result<u64> {
    read::namespace(std::process::id() as i32, "pid").map(|(_, inode)| inode)
}

impl Entry {
    /// An entry of a capsule whose init runs.
    pub fn of(name: &str, pid: i32) -> Result<Self> {
        let gone = || Error::new(Kind::NotFound, format!("the capsule {name} ended at once"));
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Ok(Entry { name: name.to_owned(), pid, start: start_of(pid).ok_or_else(gone)?, space: space()?, since, image: None })
    }

    fn lives(&self) -> bool {
        start_of(self.pid) == Some(self.start)
    }
}

/// Where what meio keeps for this run of the machine is, for this user.
pub fn folder() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/run/meio"));
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    Ok(runtime.ok_or_else(|| Error::other("XDG_RUNTIME_DIR is not set").help("run meio as root"))?.join("meio"))
}

impl Roster {
    /// The folder of this user, made when it is not there.
    pub fn open() -> Result<Self> {
        let folder = folder()?;
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).context(|| format!("making {}", folder.display()))?;
        Ok(Roster(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// Nobody else changes the roster until this is dropped.
    fn lock(&self) -> Result<File> {
        let path = self.0.join("lock");
        let file = File::options().create(true).append(true).open(&path).context(|| format!("opening {}", path.display()))?;
        crate::sys::file::lock(&file).context(|| path.display())?;
        Ok(file)
    }

    /// The living capsule of that name. An entry that is left of one that has ended is taken away.
    fn look(&self, name: &str) -> Result<Option<Entry>> {
        let path = self.path(name);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.context(|| format!("reading {}", path.display()))?,
        };
        match serde_json::from_slice::<Entry>(&text) {
            // Somebody else's number: nothing can be said about it from here.
            Ok(entry) if entry.space != space()? => Ok(None),
            Ok(entry) if entry.lives() && entry.name == name => Ok(Some(entry)),
            _ => {
                let _ = fs::remove_file(&path);
                Ok(None)
            }
        }
    }

    /// The living capsule of that name.
    pub fn find(&self, name: &str) -> Result<Option<Entry>> {
        let _lock = self.lock()?;
        self.look(name)
    }

    /// All living capsules, by name.
    pub fn all(&self) -> Result<Vec<Entry>> {
        let _lock = self.lock()?;
        let mut all = Vec::new();
        for file in fs::read_dir(&self.0).context(|| format!("reading {}", self.0.display()))?.flatten() {
            let name = file.file_name().to_string_lossy().strip_suffix(".json").map(str::to_owned);
            match name {
                Some(name) if is_name(&name) => all.extend(self.look(&name)?),
                // Who is the only one to write has found somebody's who was killed at it.
                _ if file.file_name() == DRAFT => drop(fs::remove_file(file.path())),
                _ => {}
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Fails when a capsule of that name lives.
    pub fn must_be_free(&self, name: &str) -> Result<()> {
        match self.find(name)? {
            Some(entry) => Err(in_use(&entry)),
            None => Ok(()),
        }
    }

    /// A name that is free: the wish itself, or with a number behind it.
    pub fn free_name(&self, wish: &str) -> Result<String> {
        let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let wish: String = wish.chars().map(fits).take(LONGEST - 8).collect();
        let wish = wish.trim_start_matches(['.', '-']);
        let wish = if is_name(wish) { wish.to_owned() } else { format!("capsule{wish}") };
        let names = std::iter::once(wish.clone()).chain((2..).map(|n| format!("{wish}-{n}")));
        for name in names {
            if self.find(&name)?.is_none() {
                return Ok(name);
            }
        }
        Ok(wish)
    }

    /// Enters a capsule. Its name must be free.
    pub fn enter(&self, entry: &Entry) -> Result<()> {
        let _lock = self.lock()?;
        match self.look(&entry.name)? {
            Some(other) => Err(in_use(&other)),
            None => self.write(entry),
        }
    }

    fn write(&self, entry: &Entry) -> Result<()> {
        let path = self.path(&entry.name);
        let draft = self.0.join(DRAFT);
        let text = serde_json::to_vec(entry).map_err(|e| Error::other(e.to_string()))?;
        let write = || fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
        write().inspect_err(|_| drop(fs::remove_file(&draft))).context(|| format!("writing {}", path.display()))
    }

    /// Notes the last image of a capsule that still lives.
    pub fn saved(&self, name: &str, image: &Path) -> Result<()> {
        let _lock = self.lock()?;
        match self.look(name)? {
            Some(entry) => self.write(&Entry { image: Some(fs::canonicalize(image).unwrap_or_else(|_| image.to_owned())), ..entry }),
            None => Ok(()),
        }
    }

    /// Takes an entry away, unless the name is another capsule's by now.
    pub fn leave(&self, entry: &Entry) -> Result<()> {
        let _lock = self.lock()?;
        match self.look(&entry.name)? {
            Some(now) if (now.pid, now.start) == (entry.pid, entry.start) => {
                fs::remove_file(self.path(&entry.name)).context(|| format!("removing the entry of {}", entry.name))
            }
            _ => Ok(()),
        }
    }
}

fn in_use(entry: &Entry) -> Error {
    Error::other(format!("a capsule named {} lives already (pid {})", entry.name, entry.pid))
        .help("choose another name with --name, or end that capsule; see: meio list")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(["web", "a.b-c_1", "1a"].iter().all(|n| is_name(n)));
        assert!(["", "12", ".x", "-x", "a/b", "a b", "ä", &"x".repeat(49)].iter().all(|n| !is_name(n)));
    }

    #[test]
    fn an_entry_counts_while_its_process_lives() {
        let folder = tempfile::tempdir().unwrap();
        let roster = Roster(folder.path().to_owned());
        let own = Entry::of("own", std::process::id() as i32).unwrap();
        roster.enter(&own).unwrap();
        assert_eq!(roster.find("own").unwrap().as_ref(), Some(&own));
        assert!(roster.enter(&own).unwrap_err().message.contains("lives already"));
        assert_eq!(roster.free_name("own").unwrap(), "own-2");
        roster.saved("own", Path::new("/tmp")).unwrap();
        assert_eq!(roster.find("own").unwrap().unwrap().image, Some(PathBuf::from("/tmp")));
        // Another process has the pid by now.
        let stale = Entry { name: "stale".into(), start: own.start + 1, ..own.clone() };
        roster.write(&stale).unwrap();
        fs::write(roster.path("broken"), "{").unwrap();
        assert_eq!(roster.all().unwrap().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["own"]);
        assert!(!roster.path("stale").exists() && !roster.path("broken").exists());
        roster.leave(&own).unwrap();
        assert_eq!(roster.find("own").unwrap(), None);
    }
}
