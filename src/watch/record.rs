//! What is durable of a watch on each of its hosts: who may answer, with which generation. Unlike the records of moves these
//! outlive the run of the machine: a host that comes back must know that another one has taken over.
//!
//! A file a watch in `/var/lib/meio/watch` (`$XDG_STATE_HOME/meio/watch`, or `~/.local/state/meio/watch`, for who is not root).
//! One that cannot be read decides nothing: its watch does not begin.

use super::setup::Seat;
use super::state::{Activation, Limits, Vote};
use super::witness::Contact;
use crate::error::{Context, Error, Kind, Result};
use crate::migrate::address::Address;
use crate::migrate::record::Member;
use crate::sys::durable;
use crate::sys::proc::{read, stat};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Gid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest file that is read.
const LONGEST: u64 = 64 << 10;

/// What one host knows of one watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Name of the watch.
    pub name: String,
    /// Which of the watches of that name: made when it was begun.
    pub watch: u128,
    /// Who answers.
    pub activation: Option<Activation>,
    /// Of the last process that this host had for it.
    pub instance: u64,
    /// At a standby: the generation for which the last process stood by.
    #[serde(default, skip_serializing_if = "is_none")]
    pub stood: u64,
    /// At one of several standbys: whose its vote is, for that generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vote: Option<Vote>,
    /// At the primary: what another meio must know that goes on where one was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Back>,
    /// At a primary that is called by its standby: what that is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<String>,
    /// What is to be known to clean up behind a meio that was killed.
    #[serde(default, skip_serializing_if = "About::is_nothing")]
    pub about: About,
}

fn is_none(generation: &u64) -> bool {
    *generation == 0
}

/// What leads back to a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Back {
    /// Root of the tree.
    pub tree: Member,
    /// What both ends were told.
    pub limits: Limits,
    /// What the standby's machine calls itself,
    pub host: String,
    /// which process it is there,
    pub instance: u64,
    /// and what it is to be told by who comes back.
    pub token: String,
    /// What leads to the witness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Contact>,
    /// Each of several standbys, in the user's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub each: Vec<Each>,
}

/// What leads back to one of several standbys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Each {
    /// What its machine calls itself,
    pub host: String,
    /// which process it is there,
    pub instance: u64,
    /// and what it is to be told by who comes back.
    pub token: String,
    /// What it is told of the others, should it have to be begun anew.
    pub seat: Option<Box<Seat>>,
}

/// What a watch has made or taken on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct About {
    /// Root of the tree, where it is here.
    pub tree: Option<Member>,
    /// Addresses that go with it.
    pub addresses: Vec<Address>,
    /// The other host.
    pub other: String,
    /// Nothing that it says gets out without the standby.
    pub holds: bool,
    /// This host is the standby.
    pub standby: bool,
}

impl About {
    fn is_nothing(&self) -> bool {
        *self == About::default()
    }
}

/// All records of this user on this machine.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

/// The only process that may be at work on a watch here; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    lock: Flock<File>,
    path: PathBuf,
}

impl Drop for Claim {
    /// Where nothing is on record there is nothing to be claimed.
    fn drop(&mut self) {
        let inode = |meta: std::io::Result<fs::Metadata>| meta.map(|meta| meta.ino()).ok();
        let own = inode(self.lock.metadata()) == inode(fs::metadata(&self.path));
        if own && !self.path.with_extension("record").exists() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The only process that may watch a tree here; given back when dropped.
#[derive(Debug)]
pub struct TreeClaim {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for TreeClaim {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The processes above and below one.
fn relatives(pid: i32) -> Vec<i32> {
    let above = |pid: i32| read::parsed(pid, "stat", stat::parse).ok().map(|s| s.ppid).filter(|ppid| *ppid > 0);
    let mut all: Vec<i32> = std::iter::successors(above(pid), |pid| above(*pid)).collect();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        let children = read::children(pid).unwrap_or_default();
        all.extend(&children);
        next.extend(children);
    }
    all
}

impl Record {
    /// Who answers, as is seen now: what was about to be taken over was if its tree lives.
    pub fn settled(&self) -> Option<Activation> {
        match self.activation {
            Some(Activation::Taking(generation)) if self.about.tree.is_some_and(|tree| tree.lives()) => Some(Activation::Taken(generation)),
            other => other,
        }
    }

    /// It was taken over, and lives here.
    pub fn runs(&self) -> bool {
        matches!(self.settled(), Some(Activation::Taken(_))) && self.about.tree.is_some_and(|tree| tree.lives())
    }
}

impl Activation {
    /// The highest generation that this speaks of.
    pub fn generation(&self) -> u64 {
        match *self {
            Activation::Primary { generation, .. } => generation,
            Activation::Taken(generation) | Activation::Taking(generation) | Activation::Demoted(generation) => generation,
        }
    }
}

/// Whether a watch may be called so: it becomes part of a file's name.
pub fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(fine) && !name.starts_with(['.', '-'])
}

/// Where this user's meio keeps what outlives the run of the machine.
///
/// # Errors
/// When nothing in the environment says so.
pub fn state_folder() -> Result<PathBuf> {
    let state = || std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let above = if nix::unistd::geteuid().is_root() { Some(PathBuf::from("/var/lib")) } else { state().or_else(home) };
    let above = above.ok_or_else(|| Error::other("neither XDG_STATE_HOME nor HOME says where records are to be kept"))?;
    Ok(above.join("meio"))
}

impl Store {
    /// The folder of this user, made when it is not there.
    pub fn open() -> Result<Self> {
        Store::at(state_folder()?.join("watch"))
    }

    /// That folder.
    pub fn at(folder: PathBuf) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).context(|| format!("making {}", folder.display()))?;
        Ok(Store(folder))
    }

    /// Those in which watches are that this user may see: his own, and root's. None is made.
    pub fn visible() -> Vec<Store> {
        let state = || std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
        let own = if nix::unistd::geteuid().is_root() { None } else { state().or_else(home) };
        own.into_iter().chain([PathBuf::from("/var/lib")]).map(|above| Store(above.join("meio/watch"))).collect()
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Lets the members of a group see which watches there are, and reach their control sockets. Records stay their owner's.
    pub fn open_to(&self, group: Gid) -> Result<()> {
        for (folder, mode) in self.0.parent().map(|above| (above, 0o710)).into_iter().chain([(self.0.as_path(), 0o750)]) {
            let doing = || format!("opening {} to a group", folder.display());
            let meta = fs::metadata(folder).context(doing)?;
            // One that others see already is somebody else's business.
            if meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o007 == 0 {
                std::os::unix::fs::chown(folder, None, Some(group.as_raw())).context(doing)?;
                fs::set_permissions(folder, fs::Permissions::from_mode(mode)).context(doing)?;
            }
        }
        Ok(())
    }

    /// Names of all watches of which something is here.
    ///
    /// # Errors
    /// Those of the kernel; that there is no such folder is none.
    pub fn names(&self) -> Result<Vec<String>> {
        let folder = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            folder => folder.context(|| self.0.display().to_string())?,
        };
        let name = |file: fs::DirEntry| {
            let file = file.file_name().into_string().ok()?;
            let (name, end) = file.rsplit_once('.')?;
            (["record", "claim", "control"].contains(&end) && is_name(name)).then(|| name.to_owned())
        };
        Ok(folder.flatten().filter_map(name).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn path(&self, name: &str, end: &str) -> Result<PathBuf> {
        if !is_name(name) {
            return Err(Error::new(Kind::Usage, format!("a watch cannot be called {name:?}"))
                .help("letters, digits, and - _ . within it; 64 at most"));
        }
        Ok(self.0.join(format!("{name}.{end}")))
    }

    /// Keeps others from working on the same watch.
    ///
    /// # Errors
    /// When somebody does.
    pub fn claim(&self, name: &str) -> Result<Claim> {
        // Who only looks whether somebody does is gone in no time.
        const MOMENT: Duration = Duration::from_millis(200);
        let until = Instant::now() + MOMENT;
        loop {
            match self.try_claim(name) {
                Err(e) if e.errno == Some(Errno::EWOULDBLOCK as i32) && Instant::now() < until => {
                    std::thread::sleep(MOMENT / 20);
                }
                claim => return claim,
            }
        }
    }

    fn try_claim(&self, name: &str) -> Result<Claim> {
        let path = self.path(name, "claim")?;
        let file = File::options().create(true).append(true).mode(0o600).open(&path).context(|| format!("opening {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Who ended may have taken the file away that was just opened: another one would be locked next.
            Ok(lock) if !fs::metadata(&path).is_ok_and(|there| lock.metadata().is_ok_and(|own| own.ino() == there.ino())) => {
                self.try_claim(name)
            }
            Ok(lock) => Ok(Claim { lock, path }),
            Err((_, e @ Errno::EWOULDBLOCK)) => {
                let taken = Error { errno: Some(e as i32), ..Error::other(format!("another meio is at work on the watch {name} here")) };
                Err(taken.help(format!("meio status {name} says what it does; --name gives this one another name")))
            }
            Err((_, e)) => Err(e).context(|| path.display().to_string()),
        }
    }

    fn tree(&self, pid: i32) -> PathBuf {
        let space = read::namespace(std::process::id() as i32, "pid").map_or(0, |n| n.1);
        self.0.join(format!(".{space}-{pid}.tree"))
    }

    /// Keeps others from watching the tree below `pid` as `name`, or one that it has processes in common with.
    ///
    /// # Errors
    /// When somebody does.
    pub fn claim_tree(&self, pid: i32, name: &str) -> Result<TreeClaim> {
        let taken = |pid: i32| {
            let other = durable::read(&self.tree(pid), LONGEST).ok().flatten().and_then(|text| String::from_utf8(text).ok());
            let other = other.filter(|other| is_name(other)).unwrap_or_else(|| "?".to_owned());
            Error::other(format!("process {pid} is watched already, as {other}")).help(format!("meio unwatch {other} ends that"))
        };
        let path = self.tree(pid);
        let doing = || format!("opening {}", path.display());
        let file = File::options().create(true).append(true).mode(0o600).open(&path).context(doing)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((_, Errno::EWOULDBLOCK)) => return Err(taken(pid)),
            lock => lock.map_err(|(_, e)| e).context(doing)?,
        };
        lock.set_len(0).and_then(|()| (&*lock).write_all(name.as_bytes())).context(doing)?;
        let claim = TreeClaim { path, _lock: lock };
        // Whoever comes at the same time has locked his own first, too: one of the two sees the other.
        for relative in relatives(pid) {
            let Ok(file) = File::open(self.tree(relative)) else { continue };
            if Flock::lock(file, FlockArg::LockSharedNonblock).is_err() {
                return Err(taken(relative));
            }
        }
        Ok(claim)
    }

    /// Takes away what a meio has left that had claimed a tree and was killed.
    pub fn forget_tree(&self, pid: i32) {
        let path = self.tree(pid);
        if File::open(&path).is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok()) {
            let _ = fs::remove_file(path);
        }
    }

    /// Whether somebody is at work on a watch.
    pub fn is_claimed(&self, name: &str) -> Result<bool> {
        let file = match File::open(self.path(name, "claim")?) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            file => file.context(|| format!("looking at the watch {name}"))?,
        };
        Ok(Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
    }

    /// What is on record; `None` if nothing is.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub fn read(&self, name: &str) -> Result<Option<Record>> {
        let path = self.path(name, "record")?;
        let read = durable::read(&path, LONGEST).context(|| format!("reading {}", path.display()))?;
        let Some(text) = read else { return Ok(None) };
        let damaged = |why: String| {
            Error::other(format!("{} is damaged: {why}", path.display()))
                .help("find out which host answers for it; take the file away on the one that does not")
        };
        let record: Record = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if record.name != name { Err(damaged("it is about another watch".into())) } else { Ok(Some(record)) }
    }

    /// Makes it durable: under its name when it is complete and on its disk.
    ///
    /// # Errors
    /// When a higher generation is on record already, and then nothing was written; else it may be there or not.
    pub fn write(&self, record: &Record) -> Result<()> {
        let (path, draft) = (self.path(&record.name, "record")?, self.path(&record.name, "draft")?);
        let generation = |record: &Record| record.activation.map_or(0, |a| a.generation());
        if let Some(there) = self.read(&record.name)?
            && there.watch == record.watch
            && (generation(&there), there.instance) > (generation(record), record.instance)
        {
            return Err(Error::other(format!("generation {} is on record for {} already", generation(&there), record.name)));
        }
        let text = serde_json::to_vec(record).map_err(|e| Error::other(e.to_string()))?;
        durable::replace(&path, &draft, &text).context(|| format!("writing {}", path.display()))
    }

    /// Notes what has happened, for people: a line with the seconds since 1970. That it cannot be noted stops nothing.
    pub fn note(&self, name: &str, text: &str) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let note = || -> Result<()> {
            let mut file = File::options().create(true).append(true).mode(0o600).open(self.path(name, "log")?)?;
            Ok(file.write_all(format!("{since:.3} {text}\n").as_bytes())?)
        };
        let _ = note();
    }

    /// Takes away what is on record of a watch that is over.
    pub fn forget(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.path(name, "record")?) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(|| format!("forgetting the watch {name}")),
            _ => {}
        }
        for end in ["claim", "log", "control"] {
            let _ = fs::remove_file(self.path(name, end)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::at(folder.path().join("watch")).expect("a store");
        (folder, store)
    }

    fn record(generation: u64, instance: u64) -> Record {
        let activation = Some(Activation::Primary { generation, instance });
        Record { name: "web".into(), watch: 7, activation, instance, stood: 0, vote: None, back: None, door: None, about: About::default() }
    }

    #[test]
    fn records_come_back_and_never_go_back() {
        let (_folder, store) = store();
        assert_eq!(store.read("web").expect("nothing"), None);
        for record in [record(1, 1), record(1, 2), record(4, 2), Record { activation: Some(Activation::Taken(5)), ..record(0, 3) }] {
            store.write(&record).expect("written");
            store.write(&record).expect("written again");
            assert_eq!(store.read("web").expect("read"), Some(record));
        }
        assert!(store.write(&record(4, 9)).is_err());
        assert_eq!(store.read("web").expect("read").and_then(|r| r.activation), Some(Activation::Taken(5)));
        // A watch that is begun anew counts from the beginning.
        store.write(&Record { watch: 8, ..record(1, 1) }).expect("written");
        store.forget("web").expect("forgotten");
        assert_eq!(store.read("web").expect("nothing"), None);
    }

    /// What a machine leaves that loses its power while it writes is the record that was there, whatever is in the draft.
    #[test]
    fn cut_off_at_any_byte() {
        let (_folder, store) = store();
        store.write(&record(3, 1)).expect("written");
        let text = serde_json::to_vec(&record(4, 1)).expect("text");
        for n in 0..=text.len() {
            fs::write(store.0.join("web.draft"), &text[..n]).expect("a draft");
            assert_eq!(store.read("web").expect("read"), Some(record(3, 1)));
        }
        store.write(&record(4, 1)).expect("written over the draft");
        assert_eq!(store.read("web").expect("read"), Some(record(4, 1)));
        // A file that is cut off itself, as no rename leaves it, decides nothing.
        for n in 0..text.len() {
            fs::write(store.0.join("web.record"), &text[..n]).expect("damaged");
            assert!(store.read("web").is_err() && store.write(&record(9, 9)).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn one_at_a_time() {
        let (_folder, store) = store();
        let claim = store.claim("web").expect("free");
        assert!(store.claim("web").is_err());
        store.claim("other").expect("free");
        drop(claim);
        store.claim("web").expect("free again");
    }

    #[test]
    fn one_watch_of_a_tree() {
        let (_folder, store) = store();
        let own = std::process::id() as i32;
        let claim = store.claim_tree(own, "web").expect("free");
        let parent = std::os::unix::process::parent_id() as i32;
        for pid in [own, parent] {
            let e = store.claim_tree(pid, "other").expect_err("it is watched");
            assert!(e.message.ends_with("as web"), "{e}");
        }
        drop(claim);
        drop(store.claim_tree(parent, "other").expect("free again"));
        fs::write(store.tree(7), "left").expect("a file");
        store.forget_tree(7);
        assert_eq!(fs::read_dir(&store.0).expect("a folder").count(), 0);
    }

    #[test]
    fn names_stay_in_their_folder() {
        let (_folder, store) = store();
        for wrong in ["", ".", "..", "../x", "a/b", "-x", "a b", "a\0", &"x".repeat(65)] {
            assert!(store.read(wrong).is_err() && store.claim(wrong).is_err(), "{wrong:?}");
        }
        assert!(is_name("web-1.example_2"));
    }
}
