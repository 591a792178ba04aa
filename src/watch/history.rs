//! What has become of a watch on this host, in the order in which it happened: one JSON object a line, on the disk, and no more than
//! [`LARGEST`] bytes of them. It outlives the watch. A command of the user's is told of each as it happens.
//!
//! A thread of its own writes and tells, so that neither a slow disk nor a command that hangs keeps anything waiting.

use super::record::Store;
use super::state::{Mark, Said};
use super::status::Role;
use super::switch::ms;
use crate::error::{Context, Error, Result};
use crate::sys::durable;
use crate::sys::manager::SOCKET;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Version of a line.
const VERSION: u32 = 1;
/// Bytes of one history; when there are more the older half goes.
pub const LARGEST: u64 = 256 << 10;
/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the end of a watch waits for what is still to be written or told.
const MOMENT: Duration = Duration::from_secs(1);

/// One thing that has happened.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Version of the line.
    pub v: u32,
    /// Seconds since 1970.
    pub at: f64,
    /// What this host was for the watch.
    pub role: Role,
    /// What has happened, in a word.
    pub event: String,
    /// Why.
    pub reason: String,
    /// The other host, as it calls itself.
    pub other: Option<String>,
    /// Of who answers, as far as it was known here.
    pub generation: u64,
    /// The last epoch that was whole.
    pub epoch: Option<Mark>,
    /// How long nobody ran, in milliseconds, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<f64>,
    /// How long each step of it took, in milliseconds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<(String, f64)>,
}

/// What is noted of the end of a watch where others who call are to hear of it.
const ENDED: &str = "ended";

impl Entry {
    /// The watch has ended where it ran, with this generation, and does not go on in other hands.
    pub fn ended(role: Role, generation: u64) -> Entry {
        let why = "nobody stands by any more, as a user wants it, or since what was watched has ended";
        Entry { generation, ..Entry::new(role, ENDED, why) }
    }

    /// Something that has happened now.
    pub fn new(role: Role, event: &str, reason: impl Into<String>) -> Entry {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| (since.as_secs_f64() * 1e3).round() / 1e3);
        Entry { v: VERSION, at, role, event: event.to_owned(), reason: reason.into(), ..Entry::default() }
    }

    /// What a machine has said, if that is part of the history.
    pub fn of(role: Role, said: Said) -> Option<Entry> {
        let standby = role == Role::Standby;
        let (event, reason) = match said {
            Said::Unprotected => ("unprotected", "everything is yet to be copied"),
            Said::Paused => ("paused", "a user wants it to be unprotected for a while"),
            Said::Protected if standby => ("ready", "everything is here"),
            Said::Protected => ("protected", "the standby has everything"),
            Said::Full => ("full", "the standby has no room for it"),
            Said::Cut => ("cut", "nothing is heard of the standby, and nobody answers here until that is known"),
            Said::AtRisk => ("at-risk", "nothing is heard of the standby, and it was to go on all the same"),
            Said::TakingOver => ("taking-over", "nothing is heard of the primary"),
            Said::Unvoted => ("unvoted", "too few of the other standbys vote for this one"),
            Said::Refused => ("refused", "the witness does not let it be taken over"),
            Said::Outdated => ("outdated", "the witness says that the primary goes on without this standby"),
            Said::Unruled => ("unruled", "the witness says nothing, and without its leave nothing is taken over"),
            Said::TakenOver => ("taken-over", "it runs here"),
            Said::Taken => ("address-taken", "somebody else has the address, and is waited for"),
            Said::Failed => ("failed", "it could not be taken over"),
            Said::Demoted => ("demoted", "another host has taken over: the tree stands still here"),
            Said::Replaced => ("replaced", "it runs on the other host: what stood still here was ended"),
            Said::Yielding => ("yielding", "a user wants the standby to take over"),
            Said::Stayed => ("stayed", "the standby has not taken over as was wanted: it goes on here"),
            Said::Unsure => ("unsure", "the standby was told to let it run, and is not heard: it stands still here"),
            Said::Switched => ("switched", "the standby has taken over, as was wanted"),
            Said::Over => ("over", "the watch has ended"),
            Said::OnePath(_) | Said::BothPaths | Said::Slow => return None,
        };
        Some(Entry::new(role, event, reason))
    }

    /// With what was measured of it.
    pub fn took(mut self, frozen: Option<f64>, steps: &[(String, f64)]) -> Entry {
        (self.frozen_ms, self.steps) = (frozen, steps.to_vec());
        self
    }
}

/// Where histories are, beside the folder of the records.
fn file(store: &Store, name: &str) -> PathBuf {
    let above = store.folder().parent().unwrap_or(store.folder());
    above.join("history").join(format!("{name}.jsonl"))
}

/// All that is known of a watch here, the oldest first; nothing when there is none. Lines that were cut off count for nothing.
///
/// # Errors
/// Those of the kernel.
pub fn read(store: &Store, name: &str) -> Result<Vec<Entry>> {
    let path = file(store, name);
    let text = durable::read(&path, 2 * LARGEST).context(|| format!("reading {}", path.display()))?.unwrap_or_default();
    Ok(text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Puts a line at the end, and on the disk.
fn append(path: &Path, entry: &Entry) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).context(doing)?;
    let mut file = File::options().create(true).read(true).append(true).mode(0o600).open(path).context(doing)?;
    let line = serde_json::to_string(entry).map_err(|e| Error::other(e.to_string()))?;
    let length = file.seek(SeekFrom::End(0)).context(doing)?;
    if length + line.len() as u64 >= LARGEST {
        return halve(path, &line).context(doing);
    }
    let mut last = [b'\n'];
    if length > 0 {
        file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).context(doing)?;
    }
    // What a power cut has cut off stays a line of its own.
    let cut = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{cut}{line}\n").as_bytes()).and_then(|()| file.sync_data()).context(doing)
}

/// The same where nobody else writes. What cannot be noted is not heard of.
pub fn ends(store: &Store, name: &str, generation: u64) {
    let _ = append(&file(store, name), &Entry::ended(Role::Primary, generation));
}

/// Whether a watch has ended here that had this generation or a higher one, and no other one has begun since.
pub fn has_ended(store: &Store, name: &str, generation: u64) -> bool {
    let own = |entry: &&Entry| !["over", "hook-failed"].contains(&entry.event.as_str());
    let all = read(store, name).unwrap_or_default();
    all.iter().rfind(own).is_some_and(|last| last.event == ENDED && last.generation >= generation)
}

/// The newer half, and one line more.
fn halve(path: &Path, line: &str) -> std::io::Result<()> {
    let text = durable::read(path, 2 * LARGEST)?.unwrap_or_default();
    let half = &text[text.len() / 2..];
    let from = half.iter().position(|&byte| byte == b'\n').map_or(half.len(), |at| at + 1);
    durable::replace(path, &path.with_extension("draft"), &[&half[from..], line.as_bytes(), b"\n"].concat())
}

/// Where things are noted. Dropped, it waits for a moment until all are.
pub struct History {
    tell: Option<Sender<Entry>>,
    done: Receiver<()>,
    role: Role,
}

impl History {
    /// Of one watch. `command` is told of each thing; what goes wrong with that is said by `complain`, too.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn begin(
        store: &Store,
        name: &str,
        role: Role,
        command: Option<String>,
        complain: impl Fn(&str) + Send + 'static,
    ) -> Result<History> {
        let (tell, told) = channel::<Entry>();
        let (ends, done) = channel();
        let (path, name) = (file(store, name), name.to_owned());
        let work = move || {
            // Told over and over it helps nobody.
            let mut said = false;
            let mut keep = |entry: &Entry| {
                if let Err(e) = append(&path, entry)
                    && !std::mem::replace(&mut said, true)
                {
                    complain(&format!("what happens cannot be noted: {e}"));
                }
            };
            for entry in told {
                keep(&entry);
                if let Some(Err(why)) = command.as_ref().map(|command| run(command, &name, &entry, PATIENCE)) {
                    let why = format!("the command that is to be told of {:?} {why}", entry.event);
                    keep(&Entry {
                        epoch: entry.epoch,
                        ..Entry { generation: entry.generation, ..Entry::new(entry.role, "hook-failed", why.clone()) }
                    });
                    complain(&why);
                }
            }
            let _ = ends.send(());
        };
        std::thread::Builder::new().name("history".into()).spawn(work).context(|| "cannot start a thread")?;
        Ok(History { tell: Some(tell), done, role })
    }

    /// Something has happened.
    pub fn note(&self, entry: Entry) {
        if let Some(tell) = &self.tell {
            let _ = tell.send(entry);
        }
    }

    /// The same, of what a machine has said: with what is known of how things stand.
    pub fn said(&self, said: Said, about: impl FnOnce(Entry) -> Entry) {
        if let Some(entry) = Entry::of(self.role, said) {
            self.note(about(entry));
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        drop(self.tell.take());
        let _ = self.done.recv_timeout(MOMENT);
    }
}

/// Has a shell run a command, in a process group of its own; all it needs to know is in its environment.
fn run(command: &str, name: &str, entry: &Entry, patience: Duration) -> std::result::Result<(), String> {
    const LOOK: Duration = Duration::from_millis(10);
    let role = serde_json::to_value(entry.role).ok().and_then(|role| role.as_str().map(str::to_owned)).unwrap_or_default();
    let epoch = entry.epoch.map_or(String::new(), |epoch| format!("{}.{}", epoch.series, epoch.number));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    shell.env_remove(SOCKET);
    shell.env("MEIO_NAME", name).env("MEIO_ROLE", role).env("MEIO_EVENT", &entry.event).env("MEIO_REASON", &entry.reason);
    shell
        .env("MEIO_GENERATION", entry.generation.to_string())
        .env("MEIO_EPOCH", epoch)
        .env("MEIO_OTHER", entry.other.as_deref().unwrap_or(""));
    let mut child = shell.spawn().map_err(|e| format!("cannot be run: {e}"))?;
    let until = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK),
            Ok(None) => {
                let group = nix::unistd::Pid::from_raw(child.id() as i32);
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                let _ = child.wait();
                return Err(format!("has not ended within {} ms, and was killed", ms(patience)));
            }
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("has failed ({status})")),
            // Somebody else has waited for it.
            Err(e) if e.kind() != ErrorKind::Interrupted => return Ok(()),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Only what ended last counts, and only for those who know of nothing newer.
    #[test]
    fn an_end_is_known_until_another_one_begins() {
        let (_folder, store) = store();
        let note =
            |event: &str| append(&file(&store, "web"), &Entry { generation: 3, ..Entry::new(Role::Primary, event, "") }).expect("a line");
        note("begun");
        assert!(!has_ended(&store, "web", 3));
        ends(&store, "web", 3);
        note("over");
        assert!(has_ended(&store, "web", 3) && has_ended(&store, "web", 0) && !has_ended(&store, "web", 4));
        note("begun");
        assert!(!has_ended(&store, "web", 3) && !has_ended(&store, "other", 0));
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::at(folder.path().join("watch")).expect("a store");
        (folder, store)
    }

    fn entry(n: u64) -> Entry {
        let epoch = Some(Mark { series: 1, number: n });
        Entry { generation: 2, epoch, ..Entry::new(Role::Primary, "protected", "x".repeat(200)) }
            .took(Some(1.5), &[("copy".to_owned(), 0.25)])
    }

    #[test]
    fn what_has_happened_comes_back_and_stays_small() {
        let (_folder, store) = store();
        assert_eq!(read(&store, "web").expect("nothing"), []);
        let path = file(&store, "web");
        append(&path, &entry(1)).expect("written");
        assert_eq!(read(&store, "web").expect("read"), [entry(1)].map(|one| Entry { at: read(&store, "web").expect("read")[0].at, ..one }));
        // Cut off in the middle of a line.
        let mut file = File::options().append(true).open(&path).expect("a file");
        file.write_all(b"{\"v\":1,\"at\":3").expect("written");
        append(&path, &entry(2)).expect("written");
        let numbers = || read(&store, "web").expect("read").iter().filter_map(|e| e.epoch).map(|e| e.number).collect::<Vec<_>>();
        assert_eq!(numbers(), [1, 2]);
        for n in 3..3000 {
            // As large as it can be, without waiting for the disk each time.
            let line = serde_json::to_string(&entry(n)).expect("text");
            let length = fs::metadata(&path).expect("a file").len();
            match length + line.len() as u64 >= LARGEST {
                true => append(&path, &entry(n)).expect("written"),
                false => file.write_all(format!("{line}\n").as_bytes()).expect("written"),
            }
            file = File::options().append(true).open(&path).expect("a file");
        }
        assert!(fs::metadata(&path).expect("a file").len() <= LARGEST);
        let left = numbers();
        assert!(left.len() > 100 && left.last() == Some(&2999) && left.windows(2).all(|two| two[0] + 1 == two[1]), "{}", left.len());
    }

    #[test]
    fn a_command_is_told() {
        let (folder, store) = store();
        let out = folder.path().join("told");
        let command = format!("echo $MEIO_NAME $MEIO_ROLE $MEIO_EVENT $MEIO_GENERATION $MEIO_EPOCH >> {}", out.display());
        let history = History::begin(&store, "web", Role::Standby, Some(command), |_| {}).expect("a thread");
        history.said(Said::BothPaths, |entry| entry);
        history.said(Said::TakenOver, |entry| Entry { generation: 3, epoch: Some(Mark { series: 2, number: 7 }), ..entry });
        drop(history);
        assert_eq!(fs::read_to_string(&out).expect("it was told"), "web standby taken-over 3 2.7\n");
        assert_eq!(read(&store, "web").expect("read").len(), 1);
    }

    #[test]
    fn a_command_that_fails_or_hangs_is_said() {
        let (_folder, store) = store();
        let said = Arc::new(Mutex::new(Vec::new()));
        let theirs = said.clone();
        let complain = move |text: &str| theirs.lock().expect("whole").push(text.to_owned());
        let history = History::begin(&store, "web", Role::Primary, Some("exit 7".to_owned()), complain).expect("a thread");
        history.said(Said::Cut, |entry| entry);
        drop(history);
        let events: Vec<String> = read(&store, "web").expect("read").into_iter().map(|entry| entry.event).collect();
        assert_eq!(events, ["cut", "hook-failed"]);
        assert!(said.lock().expect("whole")[0].contains("exit status: 7"), "{said:?}");
        let begun = Instant::now();
        let hung = run("sleep 100 & sleep 100", "web", &entry(1), Duration::from_millis(100));
        assert!(hung.is_err_and(|why| why.contains("was killed")) && begun.elapsed() < PATIENCE);
        // Nobody waits for one that hangs.
        let history = History::begin(&store, "web", Role::Primary, Some("sleep 3".to_owned()), |_| {}).expect("a thread");
        let begun = Instant::now();
        (0..100).for_each(|_| history.said(Said::Cut, |entry| entry));
        assert!(begun.elapsed() < MOMENT);
        drop(history);
        assert!(begun.elapsed() < 3 * MOMENT);
    }
}
