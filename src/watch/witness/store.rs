//! The folder of a witness: a file with a key for each service, and one with the last generation of all. `/var/lib/meio/witness`,
//! or `$XDG_STATE_HOME/meio/witness` (`~/.local/state/meio/witness`) for who is not root.
//!
//! The file of generations is replaced as a whole: whatever ends while it is written, the one that was there or the new one is. One that
//! is damaged all the same decides nothing: a witness that knew nothing would grant what it has granted already.

use super::ledger::Entry;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::durable;
use crate::watch::beat::Key;
use crate::watch::record::is_name;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::SystemTime;

/// No more services.
pub const MOST: usize = 10_000;
/// Longest file that is read.
const LONGEST: u64 = 8 << 20;
/// What a key begins with, as text.
const KEY: &str = "meio-witness-key-1:";
const GENERATIONS: &str = "generations";
const KEYS: &str = "keys";

/// What stands in the file, before the line with its hash.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    v: u32,
    services: BTreeMap<String, Entry>,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

/// The only witness that is at work there; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: Flock<File>,
}

/// A key as text: one line.
pub fn text(key: &Key) -> String {
    key.bytes().iter().fold(KEY.to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// The other way round.
///
/// # Errors
/// [`Kind::Usage`] when it is not one.
pub fn key(text: &str) -> Result<Key> {
    let digits = text.trim().strip_prefix(KEY).filter(|digits| digits.len() == 64 && digits.is_ascii());
    let byte = |n: usize| digits.and_then(|digits| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).ok());
    let mut bytes = [0; 32];
    for (n, place) in bytes.iter_mut().enumerate() {
        let wrong =
            || Error::new(Kind::Usage, "this is not the key of a witness").help("meio witness --add NAME prints it, on the witness");
        *place = byte(n).ok_or_else(wrong)?;
    }
    Ok(Key::of(bytes))
}

impl Store {
    /// The one of this user, made when it is not there.
    pub fn open() -> Result<Store> {
        Store::at(crate::watch::record::state_folder()?.join("witness"))
    }

    /// That folder.
    pub fn at(folder: PathBuf) -> Result<Store> {
        let keys = folder.join(KEYS);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys).context(|| format!("making {}", keys.display()))?;
        Ok(Store(folder))
    }

    /// Where it is.
    #[cfg(test)]
    pub fn folder(&self) -> &std::path::Path {
        &self.0
    }

    /// Keeps other witnesses out.
    ///
    /// # Errors
    /// When there is one.
    pub fn claim(&self) -> Result<Claim> {
        let path = self.0.join("claim");
        let file = File::options().create(true).append(true).mode(0o600).open(&path).context(|| format!("opening {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map(|lock| Claim { _lock: lock }).map_err(|(_, e)| match e {
            Errno::EWOULDBLOCK => {
                Error::other(format!("another witness is at work in {}", self.0.display())).help("--dir names another folder")
            }
            e => Error::from(e).context(path.display().to_string()),
        })
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        if !is_name(name) {
            let what = format!("a service cannot be called {name:?}");
            return Err(Error::new(Kind::Usage, what).help("letters, digits, and - _ . within it; 64 at most"));
        }
        Ok(self.0.join(KEYS).join(format!("{name}.key")))
    }

    /// The key of a service, which is made when there is none.
    ///
    /// # Errors
    /// When it cannot be kept, or there are [`MOST`] already.
    pub fn add(&self, name: &str) -> Result<Key> {
        let path = self.path(name)?;
        let there = durable::read(&path, LONGEST).context(|| format!("reading {}", path.display()))?;
        if let Some(there) = there {
            return key(&String::from_utf8_lossy(&there))
                .map_err(|e| Error::other(format!("{} is damaged: {}", path.display(), e.message)));
        }
        if self.keys()?.len() >= MOST {
            return Err(Error::other(format!("there are {MOST} services already")).help("meio witness --remove NAME takes one away"));
        }
        let key = Key::make()?;
        let line = text(&key) + "\n";
        let draft = path.with_extension("draft");
        let written = match self.owner()? {
            Some(owner) => durable::replace_for(&path, &draft, line.as_bytes(), owner),
            None => durable::replace(&path, &draft, line.as_bytes()),
        };
        written.context(|| format!("writing {}", path.display()))?;
        Ok(key)
    }

    /// Whose what root puts there is to be: the witness's, which is the user whose folder it is, and is to read it.
    fn owner(&self) -> Result<Option<(u32, u32)>> {
        let keys = fs::metadata(self.0.join(KEYS)).context(|| self.0.display())?;
        Ok(Some((keys.uid(), keys.gid())).filter(|(uid, _)| *uid != 0 && nix::unistd::geteuid().is_root()))
    }

    /// Takes the key of a service away: nobody can ask for it any more.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::new(Kind::NotFound, format!("the witness knows no service {name}"))
                    .help(format!("its folder is {}", self.0.display())))
            }
            done => done.context(|| format!("removing {}", path.display())),
        }
    }

    /// All keys that can be read, by the names of their services.
    pub fn keys(&self) -> Result<BTreeMap<String, Key>> {
        let folder = self.0.join(KEYS);
        let folder = fs::read_dir(&folder).context(|| folder.display().to_string())?;
        let one = |file: fs::DirEntry| {
            let name = file.file_name().into_string().ok()?.strip_suffix(".key").filter(|name| is_name(name))?.to_owned();
            let line = durable::read(&file.path(), LONGEST).ok()??;
            Some((name, key(std::str::from_utf8(&line).ok()?).ok()?))
        };
        Ok(folder.flatten().filter_map(one).take(MOST).collect())
    }

    /// Changes when a key comes or goes.
    pub fn stamp(&self) -> Option<SystemTime> {
        fs::metadata(self.0.join(KEYS)).and_then(|meta| meta.modified()).ok()
    }

    /// What is durable of all services.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub fn read(&self) -> Result<BTreeMap<String, Entry>> {
        let path = self.0.join(GENERATIONS);
        let Some(bytes) = durable::read(&path, LONGEST).context(|| format!("reading {}", path.display()))? else {
            return Ok(BTreeMap::new());
        };
        parse(&bytes).ok_or_else(|| {
            Error::other(format!("{} is damaged", path.display()))
                .help("end the watches that ask this witness, take the file away, and begin them again")
        })
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// Those of the kernel: the old one is there, or the new one, which may not be on its disk.
    pub fn write(&self, services: &BTreeMap<String, Entry>) -> Result<()> {
        let path = self.0.join(GENERATIONS);
        let bytes = lines(services)?;
        durable::replace(&path, &path.with_extension("draft"), &bytes).context(|| format!("writing {}", path.display()))
    }
}

/// A line of JSON, and one with its hash.
fn lines(services: &BTreeMap<String, Entry>) -> Result<Vec<u8>> {
    let written = Written { v: 1, services: services.clone() };
    let mut line = serde_json::to_vec(&written).map_err(|e| Error::other(e.to_string()))?;
    let hash = blake3::hash(&line).to_hex();
    line.extend_from_slice(format!("\n{hash}\n").as_bytes());
    Ok(line)
}

fn parse(bytes: &[u8]) -> Option<BTreeMap<String, Entry>> {
    let (line, hash) = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split_once('\n')?;
    if blake3::hash(line.as_bytes()).to_hex().as_str() != hash {
        return None;
    }
    serde_json::from_str(line).ok().filter(|written: &Written| written.v == 1).map(|written| written.services)
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Holder, Role};
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::at(folder.path().join("witness")).expect("a store");
        (folder, store)
    }

    fn services(generation: u64) -> BTreeMap<String, Entry> {
        let entry =
            |n: u64| Entry { generation: generation + n, holder: Holder { watch: u128::MAX - 7, role: Role::Standby }, lease_ms: 750 };
        (0..3).map(|n| (format!("web{n}"), entry(n))).collect()
    }

    /// What a machine leaves that loses its power while it writes is what was there, however much of the draft is. What no rename
    /// leaves, a file that is cut off or has a changed byte, is never taken for another one.
    #[test]
    fn cut_off_at_any_byte() {
        let (_folder, store) = store();
        assert_eq!(store.read().expect("nothing"), BTreeMap::new());
        store.write(&services(3)).expect("written");
        let text = lines(&services(4)).expect("text");
        for n in 0..=text.len() {
            fs::write(store.0.join("generations.draft"), &text[..n]).expect("a draft");
            assert_eq!(store.read().expect("read"), services(3));
        }
        store.write(&services(4)).expect("written over the draft");
        assert_eq!(store.read().expect("read"), services(4));
        for n in 0..text.len() {
            fs::write(store.0.join(GENERATIONS), &text[..n]).expect("cut off");
            assert!(store.read().is_err(), "{n} bytes");
            let mut other = text.clone();
            other[n] ^= 1;
            fs::write(store.0.join(GENERATIONS), &other).expect("damaged");
            assert!(store.read().is_err(), "byte {n}");
        }
        fs::write(store.0.join(GENERATIONS), "").expect("empty");
        assert!(store.read().is_err());
    }

    #[test]
    fn keys_come_and_go() {
        let (_folder, store) = store();
        let key = store.add("web").expect("a key");
        assert_eq!(store.add("web").expect("the same").bytes(), key.bytes());
        assert_ne!(store.add("other").expect("another").bytes(), key.bytes());
        assert_eq!(super::key(&text(&key)).expect("a key").bytes(), key.bytes());
        assert_eq!(store.keys().expect("keys").len(), 2);
        fs::write(store.0.join("keys/damaged.key"), "meio-witness-key-1:zz").expect("a file");
        assert!(store.add("damaged").is_err() && store.keys().expect("keys").len() == 2);
        store.remove("web").expect("removed");
        assert_eq!(store.remove("web").map_err(|e| e.kind), Err(Kind::NotFound));
        for wrong in ["", "../x", "a/b", "x y"] {
            assert!(store.add(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["", "x", "meio-witness-key-1:", &text(&key)[1..], &format!("{}0", text(&key)), &"ä".repeat(40)] {
            assert!(super::key(wrong).is_err(), "{wrong:?}");
        }
    }

    /// Root's keys are the witness's, who is somebody else.
    #[test]
    fn a_key_is_its_owners() {
        let (_folder, store) = store();
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        std::os::unix::fs::chown(store.0.join(KEYS), Some(61234), Some(61235)).expect("root may");
        fs::write(store.0.join("keys/web.draft"), "left by one that was killed").expect("a file");
        let key = store.add("web").expect("a key");
        let meta = fs::metadata(store.0.join("keys/web.key")).expect("it is there");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (61234, 61235, 0o600));
        assert_eq!(store.keys().expect("keys")["web"].bytes(), key.bytes());
    }

    #[test]
    fn one_witness_a_folder() {
        let (_folder, store) = store();
        let claim = store.claim().expect("free");
        assert!(store.claim().is_err());
        drop(claim);
        store.claim().expect("free again");
    }
}
