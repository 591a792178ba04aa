//! What is durable of a move: at the source where the tree stands and what was decided, at the target whether it was let run.
//!
//! A file a move and end in `/run/meio/migrate` (`$XDG_RUNTIME_DIR/meio/migrate` for who is not root). They end with the run of
//! the machine, as do the processes that they speak of.

use super::address::Address;
use super::message::{Boot, Id};
use super::state::{Life, Mark, Recorded, Verdict};
use crate::capsule::roster;
use crate::dump::moving::Leftover;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::proc::{read, stat, status};
use crate::sys::{durable, file};
use crate::tracee::stop::Stopped;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How the name of the file ends that [`Store::at_work`] makes.
const PAGES: &str = "pages";
/// Longest file that is read.
const LONGEST: u64 = 64 << 20;

/// A process that cannot be taken for another one with its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// As it is seen from here.
    pub pid: i32,
    /// When it began, in clock ticks since boot.
    pub start: u64,
}

/// What the source keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The move.
    #[serde(with = "hex")]
    pub id: Id,
    /// Of the meio that wrote it.
    pub generation: u64,
    /// What was decided.
    pub mark: Mark,
    /// This run of this machine.
    #[serde(with = "hex")]
    pub boot: Boot,
    /// Inode of the pid namespace that the pids belong to.
    pub space: u64,
    /// Seconds since 1970.
    pub since: u64,
    /// Where it was to go, as the user said.
    pub target: String,
    /// What the root is called.
    pub name: String,
    /// Name of the capsule that it is.
    pub capsule: Option<String>,
    /// Its connections go along: here they end without a word.
    pub silent: bool,
    /// All processes, parents before children.
    pub processes: Vec<Stopped>,
    /// Addresses that were taken down here for it.
    pub addresses: Vec<Address>,
    /// What does not end with its processes.
    #[serde(default, skip_serializing_if = "Leftover::is_empty")]
    pub leftover: Leftover,
}

/// What the target keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Judged {
    verdict: Verdict,
    #[serde(with = "hex")]
    boot: Boot,
    space: u64,
    since: u64,
    /// Who wrote it.
    agent: Member,
    /// What was let run.
    processes: Vec<Member>,
}

/// How things stand with a tree on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It stands still.
    Stands,
    /// Some of it runs.
    Runs,
    /// Nothing is left of it.
    Gone,
    /// Its pids are those of another pid namespace: nothing can be said.
    Elsewhere,
}

/// Somebody is at work on a move; given back when dropped.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "it is unlocked when it is dropped")] Flock<File>);

/// All records of this user on this machine.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

impl Member {
    /// A process that lives.
    pub fn of(pid: i32) -> Result<Self> {
        read::parsed(pid, "stat", stat::parse).map(|s| Member { pid, start: s.start_time })
    }

    pub fn lives(&self) -> bool {
        read::parsed(self.pid, "stat", stat::parse).is_ok_and(|s| s.start_time == self.start && !matches!(s.state, b'Z' | b'X'))
    }

    fn is_held(&self) -> bool {
        read::parsed(self.pid, "status", status::parse).is_ok_and(|s| s.tracer_pid != 0)
    }
}

/// This run of this machine.
pub fn boot() -> Result<Boot> {
    let text = read::read_machine("sys/kernel/random/boot_id")?;
    let digits: String = String::from_utf8_lossy(&text).chars().filter(char::is_ascii_hexdigit).collect();
    hex::parse(&digits).ok_or_else(|| Error::other("/proc/sys/kernel/random/boot_id: not what it was"))
}

/// The pid namespace of meio.
fn space() -> Result<u64> {
    read::namespace(std::process::id() as i32, "pid").map(|(_, inode)| inode)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The moves that were left, oldest first: all records of the source that nobody has settled yet. None where they cannot be seen.
pub fn left() -> Vec<Record> {
    let there = roster::folder().is_ok_and(|folder| folder.join("migrate").is_dir());
    if there { Store::open().and_then(|store| store.all()).unwrap_or_default() } else { Vec::new() }
}

/// How a move is called where a user sees it.
pub fn name(id: &Id) -> String {
    hex::text(id)
}

impl Record {
    /// Of a tree that is about to be stopped.
    pub fn new(id: Id, generation: u64, target: &str, processes: Vec<Stopped>) -> Result<Self> {
        let root = processes.first().ok_or_else(|| Error::other("a tree without processes"))?.pid;
        let name = read::parsed(root, "stat", stat::parse).map(|s| String::from_utf8_lossy(&s.comm).into_owned())?;
        let (boot, space, since) = (boot()?, space()?, now());
        let target = target.to_owned();
        Ok(Record {
            id,
            generation,
            mark: Mark::Stopping,
            boot,
            space,
            since,
            target,
            name,
            capsule: None,
            silent: true,
            processes,
            addresses: Vec::new(),
            leftover: Leftover::default(),
        })
    }

    /// What has become of its processes.
    pub fn standing(&self) -> Standing {
        if space().is_ok_and(|own| own != self.space) {
            return Standing::Elsewhere;
        }
        let mut living = self.processes.iter().filter(|p| p.lives()).peekable();
        match () {
            () if living.peek().is_none() => Standing::Gone,
            () if living.all(Stopped::stands) => Standing::Stands,
            () => Standing::Runs,
        }
    }
}

impl Store {
    /// The folder of this user, made when it is not there.
    pub fn open() -> Result<Self> {
        Store::at(roster::folder()?.join("migrate"))
    }

    pub(super) fn at(folder: PathBuf) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).context(|| format!("making {}", folder.display()))?;
        Ok(Store(folder))
    }

    fn path(&self, id: &Id, end: &str) -> PathBuf {
        self.0.join(format!("{}.{end}", hex::text(id)))
    }

    /// Under its name when it is complete and on its disk.
    fn write(&self, id: &Id, end: &str, value: &impl Serialize) -> Result<()> {
        let (path, draft) = (self.path(id, end), self.path(id, &format!("{end}.draft")));
        let text = serde_json::to_vec(value).map_err(|e| Error::other(e.to_string()))?;
        durable::replace(&path, &draft, &text).context(|| format!("writing {}", path.display()))
    }

    fn read<T: for<'d> Deserialize<'d>>(&self, id: &Id, end: &str) -> Result<Option<T>> {
        let path = self.path(id, end);
        let read = durable::read(&path, LONGEST).context(|| format!("reading {}", path.display()))?;
        let Some(text) = read else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::other(format!("{} is damaged: {e}", path.display())))
    }

    /// Finds out whether a record of so many processes could be written.
    ///
    /// # Errors
    /// When it could not.
    pub fn has_room(&self, processes: usize) -> Result<()> {
        const EACH: usize = 64;
        const MORE: usize = 4096;
        let path = self.0.join(format!("room.{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(&vec![b' '; MORE + processes * EACH])?;
            file.sync_all()
        };
        let written = write().context(|| format!("no record can be written in {}", self.0.display()));
        let _ = fs::remove_file(&path);
        written
    }

    /// Makes a record of the source durable.
    ///
    /// # Errors
    /// Then it may be there or not.
    pub fn mark(&self, record: &Record) -> Result<()> {
        self.write(&record.id, "source", record)
    }

    /// Takes the record of a move away that is settled.
    pub fn forget(&self, id: &Id) -> Result<()> {
        match fs::remove_file(self.path(id, "source")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(|| "removing the record of the move"),
            _ => {}
        }
        let _ = fs::remove_file(self.path(id, "claim"));
        Ok(())
    }

    /// One record of the source; one of another run of the machine counts for nothing.
    pub fn get(&self, id: &Id) -> Result<Option<Record>> {
        let own = boot()?;
        Ok(self.read::<Record>(id, "source")?.filter(|record| record.boot == own))
    }

    /// All records of the source, oldest first.
    pub fn all(&self) -> Result<Vec<Record>> {
        let mut all = Vec::new();
        for file in fs::read_dir(&self.0).context(|| format!("reading {}", self.0.display()))?.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if let Some(id) = name.strip_suffix(".source").and_then(hex::parse) {
                all.extend(self.get(&id)?);
            }
        }
        all.sort_by_key(|record| (record.since, record.id));
        Ok(all)
    }

    /// The record whose id is, or begins with, `name`.
    pub fn find(&self, name: &str) -> Result<Record> {
        const SHORTEST: usize = 4;
        let mut found = self.all()?;
        found.retain(|record| name.len() >= SHORTEST && hex::text(&record.id).starts_with(name));
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(Error::new(Kind::NotFound, format!("no move {name} is on record here")).help("meio check lists those that are")),
            n => Err(Error::other(format!("{n} moves begin with {name}")).help("give more of its id")),
        }
    }

    /// Keeps others from working on the same move.
    ///
    /// # Errors
    /// When somebody does.
    pub fn claim(&self, id: &Id) -> Result<Claim> {
        let path = self.path(id, "claim");
        let file = File::options().create(true).append(true).mode(0o600).open(&path).context(|| format!("opening {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Claim(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(Error::other(format!("another meio is at work on the move {}", name(id)))),
            Err((_, e)) => Err(e).context(|| path.display().to_string()),
        }
    }

    /// Writes the verdict of a target, unless the other one is there: see [`Recorded::Is`]. `agent`: who says so.
    pub fn judge(&self, id: &Id, verdict: Verdict, agent: Member, processes: &[Member]) -> Recorded {
        let judge = || -> Result<Recorded> {
            let path = self.0.join("lock");
            let lock = File::options().create(true).append(true).mode(0o600).open(&path).context(|| path.display().to_string())?;
            file::lock(&lock).context(|| path.display().to_string())?;
            let boot = boot()?;
            let there = self.read::<Judged>(id, "target")?.filter(|judged| judged.boot == boot);
            let processes = match &there {
                Some(going) if verdict == Verdict::Alive && processes.is_empty() => going.processes.clone(),
                _ => processes.to_vec(),
            };
            match there.map(|judged| (judged.verdict, judged.agent)) {
                Some((Verdict::Going, writer)) if verdict == Verdict::Refused && writer == agent => {}
                Some((Verdict::Going, _)) if verdict == Verdict::Alive => {}
                Some((verdict, _)) => return Ok(Recorded::Is(verdict)),
                None => {}
            }
            self.write(id, "target", &Judged { verdict, boot, space: space()?, since: now(), agent, processes })?;
            Ok(Recorded::Written)
        };
        judge().unwrap_or(Recorded::Failed)
    }

    /// What a target has on record about a move.
    pub fn verdict(&self, id: &Id) -> Option<Verdict> {
        self.read::<Judged>(id, "target").ok().flatten().map(|judged| judged.verdict)
    }

    /// What has become of a tree that an agent began to let run. An agent that dies over it takes what it has not let run with
    /// it, which takes a moment.
    pub fn look(&self, id: &Id) -> Result<Life> {
        const MOMENT: Duration = Duration::from_millis(500);
        let Some(judged) = self.read::<Judged>(id, "target")? else { return Ok(Life::Gone) };
        if judged.space != space()? {
            return Ok(Life::AtWork); // nobody here can know
        }
        // Without the agent it is ended, unless all was there.
        if judged.agent.lives() || self.is_at_work(id) {
            return Ok(Life::AtWork);
        }
        let runs = || judged.processes.iter().any(|p| p.lives() && !p.is_held());
        if !runs() {
            return Ok(Life::Gone);
        }
        std::thread::sleep(MOMENT);
        Ok(if runs() { Life::Runs } else { Life::Gone })
    }

    /// Takes verdicts away that are older than this: no agent that could heed a go of then lives any more.
    pub fn sweep(&self, older: Duration) -> Result<()> {
        let limit = now().saturating_sub(older.as_secs());
        for file in fs::read_dir(&self.0).context(|| format!("reading {}", self.0.display()))?.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_suffix(".target").and_then(hex::parse) else { continue };
            if let Ok(Some(judged)) = self.read::<Judged>(&id, "target")
                && judged.since < limit
            {
                let _ = fs::remove_file(self.path(&id, PAGES));
                let _ = fs::remove_file(file.path());
            }
        }
        Ok(())
    }

    /// A file that tells, as long as somebody has it, that a tree is being brought its pages.
    pub fn at_work(&self, id: &Id) -> Result<File> {
        let path = self.path(id, PAGES);
        let made = File::options().create(true).append(true).mode(0o600).open(&path).context(|| path.display().to_string())?;
        file::lock(&made).context(|| path.display().to_string())?;
        Ok(made)
    }

    /// Whether somebody has it.
    fn is_at_work(&self, id: &Id) -> bool {
        let lock = |file| matches!(Flock::lock(file, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK)));
        File::open(self.path(id, PAGES)).is_ok_and(lock)
    }
}

/// Sixteen bytes as a text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn text(bytes: &[u8; 16]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    pub fn parse(text: &str) -> Option<[u8; 16]> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(u128::to_be_bytes)
    }

    pub fn serialize<S: Serializer>(bytes: &[u8; 16], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&text(bytes))
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<[u8; 16], D::Error> {
        parse(&String::deserialize(from)?).ok_or_else(|| D::Error::custom("not an id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("migrate")).unwrap();
        (folder, store)
    }

    fn own() -> Member {
        Member::of(std::process::id() as i32).unwrap()
    }

    #[test]
    fn a_record_comes_back() {
        let (_folder, store) = store();
        let Member { pid, start } = own();
        let stopped = Stopped { pid, start, before: false, thread: (pid, 7), continued: false };
        let mut record = Record::new([0xab; 16], 1, "root@there:22", vec![stopped]).unwrap();
        for mark in [Mark::Stopping, Mark::Committed { boot: [9; 16] }, Mark::Moved, Mark::Stays] {
            record = Record { mark, generation: record.generation + 1, ..record };
            store.mark(&record).unwrap();
            assert_eq!(store.get(&record.id).unwrap().as_ref(), Some(&record));
        }
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(store.path(&record.id, "source")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(record.standing(), Standing::Runs);
        assert_eq!(store.find("abab").unwrap(), record);
        assert_eq!(store.find("abac").unwrap_err().kind, Kind::NotFound);
        assert_eq!(store.find("").unwrap_err().kind, Kind::NotFound);
        // Another process with that pid; another run of the machine.
        let other = Record { processes: vec![Stopped { start: start + 1, ..record.processes[0].clone() }], ..record.clone() };
        assert_eq!(other.standing(), Standing::Gone);
        assert_eq!(Record { space: 1, ..record.clone() }.standing(), Standing::Elsewhere);
        store.mark(&Record { boot: [1; 16], id: [1; 16], ..record.clone() }).unwrap();
        assert_eq!(store.get(&[1; 16]).unwrap(), None);
        assert_eq!(store.all().unwrap(), [record.clone()]);
        let claim = store.claim(&record.id).unwrap();
        assert!(store.claim(&record.id).unwrap_err().message.contains("at work"));
        drop(claim);
        store.claim(&record.id).unwrap();
        store.forget(&record.id).unwrap();
        store.forget(&record.id).unwrap();
        assert_eq!(store.get(&record.id).unwrap(), None);
        fs::write(store.path(&record.id, "source"), "{").unwrap();
        assert!(store.get(&record.id).unwrap_err().message.contains("damaged"));
    }

    #[test]
    fn going_and_refused_exclude_each_other() {
        let (_folder, store) = store();
        let (own, other) = (own(), Member { pid: own().pid, start: 1 });
        let judge = |id: u8, verdict, agent| store.judge(&[id; 16], verdict, agent, &[own]);
        assert_eq!(judge(1, Verdict::Going, own), Recorded::Written);
        assert_eq!(judge(1, Verdict::Refused, other), Recorded::Is(Verdict::Going));
        assert_eq!(judge(1, Verdict::Going, other), Recorded::Is(Verdict::Going));
        assert_eq!(store.look(&[1; 16]).unwrap(), Life::AtWork);
        assert_eq!(judge(1, Verdict::Refused, own), Recorded::Written, "its own, which was not heeded");
        assert_eq!(judge(1, Verdict::Going, own), Recorded::Is(Verdict::Refused));
        assert_eq!(judge(2, Verdict::Refused, other), Recorded::Written);
        assert_eq!(judge(2, Verdict::Going, own), Recorded::Is(Verdict::Refused));
        // One that has died: what it let run is there, or not.
        assert_eq!(judge(3, Verdict::Going, other), Recorded::Written);
        assert_eq!(store.look(&[3; 16]).unwrap(), Life::Runs);
        assert_eq!(store.judge(&[3; 16], Verdict::Alive, own, &[]), Recorded::Written);
        assert_eq!(judge(3, Verdict::Refused, other), Recorded::Is(Verdict::Alive));
        assert_eq!(store.judge(&[4; 16], Verdict::Going, other, &[other]), Recorded::Written);
        assert_eq!(store.look(&[4; 16]).unwrap(), Life::Gone);
        // What brings pages lives longer than the agent, and has the file from it.
        let at_work = store.at_work(&[3; 16]).unwrap();
        assert_eq!(store.judge(&[6; 16], Verdict::Going, other, &[own]), Recorded::Written);
        let (kept, work) = (store.at_work(&[6; 16]).unwrap(), store.clone());
        let held = kept.try_clone().unwrap();
        drop(kept);
        assert_eq!(work.look(&[6; 16]).unwrap(), Life::AtWork);
        drop((held, at_work));
        assert_eq!(work.look(&[6; 16]).unwrap(), Life::Runs);
        store.sweep(Duration::from_secs(3600)).unwrap();
        assert_eq!(judge(4, Verdict::Refused, own), Recorded::Is(Verdict::Going));
        // Nothing can be written: nothing is promised.
        fs::remove_dir_all(&store.0).unwrap();
        assert_eq!(judge(5, Verdict::Refused, own), Recorded::Failed);
    }
}
