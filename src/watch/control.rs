//! The control socket of a watch on one of its hosts: a unix socket beside its record, over which people ask and command.
//!
//! A line is a request, `{"v":1,"do":"status"}`, and a line answers it: `{"v":1,"status":{…}}`, `{"v":1,"epoch":{…}}` when the
//! epoch is whole that `checkpoint` has asked for, `{"v":1,"ended":{"warnings":[…]}}` when all is undone that `unwatch` undoes,
//! `{"v":1,"switched":{…}}` when it runs at the standby since `switchover` has asked for that (of "to", if one is named),
//! `{"v":1,"hosts":[{…}]}` for `hosts` ([`super::handover::Login`]), or `{"v":1,"error":{"code":11,"message":"…","help":"…"}}`.
//!
//! It is for root, for the user whose watch it is, and for a named group. One thread serves all who ask: there are few, and what
//! they can make it keep is bounded.

use super::change::{self, Change, What};
use super::handover::Login;
use super::protect::Options;
use super::record::Store;
use super::state::Mark;
use super::status::{Board, One, Role, State, Status, Wish};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::socket;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Group, geteuid};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Version of what is said.
const VERSION: u32 = 1;
/// Longest request and answer.
const LONGEST: usize = 16 << 10;
/// Who may ask at the same time; more wait until one has gone.
const CALLERS: usize = 16;
/// How long one may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);
/// The group whose members may ask, where there is one of this name.
const GROUP: &str = "meio";
/// How often it is looked whether somebody has what he waits for.
const STEP: u8 = 10;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// How things stand.
    Status,
    /// How those are logged in to who stand by.
    Hosts,
    /// An epoch, now.
    Checkpoint,
    /// The end of the watch.
    Unwatch,
    /// That the standby takes over.
    Switchover,
    /// That nothing is copied, and nothing waits, for a while.
    Pause,
    /// Of the one that has taken over: its end, since another process goes on with it here.
    Handover,
    /// That it is protected again.
    Resume,
    /// One more standby,
    #[serde(rename = "add-standby")]
    AddStandby,
    /// or one less.
    #[serde(rename = "remove-standby")]
    RemoveStandby,
}

#[derive(Serialize, Deserialize)]
struct Request {
    v: u32,
    #[serde(rename = "do")]
    what: Ask,
    /// The host that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<String>,
}

/// Somebody who has connected.
struct Caller {
    stream: UnixStream,
    said: Vec<u8>,
    since: Instant,
    waits: Option<Waits>,
}

/// What somebody waits for.
#[derive(Clone, Copy)]
enum Waits {
    /// An epoch that is later than this one.
    Epoch(Option<Mark>),
    /// The end, which is asked for again then.
    End(Instant),
    /// The end of this process, and of nothing else.
    Handover,
    /// What comes of a switch-over after so many.
    Switch(u64),
    /// That nobody can take over any more.
    Pause,
    /// The end, after which so many are to stand by.
    Change(usize),
}

/// The socket, and who serves it. Dropped, it is gone, and who waited has heard how the watch has ended.
pub struct Control {
    board: Arc<Board>,
    path: PathBuf,
    inode: u64,
    /// Closed, it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Whose members may ask: of the group that was named, or of the usual one if there is one.
fn group(named: Option<&str>) -> Result<Option<Gid>> {
    let find = |name: &str| Group::from_name(name).context(|| format!("looking for the group {name}")).map(|group| group.map(|g| g.gid));
    match named {
        None if !geteuid().is_root() => Ok(None),
        None => find(GROUP),
        Some(name) => match find(name)? {
            None => Err(Error::new(Kind::Usage, format!("there is no group {name}")).help("see: getent group")),
            found => Ok(found),
        },
    }
}

/// A way to a socket in a folder that is short enough for any folder. The descriptor must live as long as the path is used.
fn short(folder: &Path, name: &str) -> Result<(OwnedFd, PathBuf)> {
    let folder = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).context(|| folder.display())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}.control", folder.as_raw_fd()));
    Ok((folder, path))
}

impl Control {
    /// Serves the watch `name`, whose claim the caller has.
    ///
    /// # Errors
    /// When there is no such group, or no socket to be had.
    pub fn open(store: &Store, name: &str, board: Arc<Board>, named: Option<&str>) -> Result<Control> {
        let group = group(named)?;
        let doing = || format!("making the control socket of {name}");
        let (_folder, path) = short(store.folder(), name)?;
        // What is there is of a meio that has ended: the claim is ours.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).context(doing)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).context(doing)?;
        if let Some(group) = group {
            store.open_to(group)?;
            std::os::unix::fs::chown(&path, None, Some(group.as_raw())).context(doing)?;
            fs::set_permissions(&path, Permissions::from_mode(0o660)).context(doing)?;
        }
        listener.set_nonblocking(true).context(doing)?;
        let path = store.folder().join(format!("{name}.control"));
        let inode = fs::symlink_metadata(&path).context(doing)?.ino();
        let (stopped, stop) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context(doing)?;
        let theirs = board.clone();
        let serve = move || Server { listener, stopped, board: theirs, group, callers: Vec::new() }.serve();
        let thread = std::thread::Builder::new().name("control".into()).spawn(serve).context(doing)?;
        Ok(Control { board, path, inode, stop: Some(stop), thread: Some(thread) })
    }

    /// The same at the primary, with what is known of it before anything was asked.
    pub fn of(options: &Options, store: &Store) -> Result<Control> {
        let hosts: Vec<String> = std::iter::once(&options.standby).chain(&options.others).map(|standby| standby.host.clone()).collect();
        let one = |host: &String| One { host: host.clone(), state: "starting".into(), epoch: None };
        let standbys = if hosts.len() > 1 { hosts.iter().map(one).collect() } else { Vec::new() };
        let status = Status {
            name: options.name.clone(),
            role: Role::Primary,
            pid: Some(options.dump.pid),
            other: Some(hosts.join(", ")),
            needed: (standbys.len() > 1).then(|| options.limits.votes()),
            standbys,
            refused: options.refused.clone(),
            at: options.addresses.iter().map(ToString::to_string).collect(),
            guarantee: Some(options.limits.guarantee.name().to_owned()),
            ..Status::default()
        };
        let board = Arc::new(Board::new(status));
        board.other_is(&options.standby.host);
        board.reached_by(Login::all(options));
        Control::open(store, &options.name, board, options.control_group.as_deref())
    }

    /// Where those write who know how things stand.
    pub fn board(&self) -> Arc<Board> {
        self.board.clone()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.board.end(Err(Error::other("the watch has failed")));
        drop(self.stop.take());
        // Another one may have this name already.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    listener: UnixListener,
    stopped: OwnedFd,
    board: Arc<Board>,
    group: Option<Gid>,
    callers: Vec<Caller>,
}

/// Whether it can be unprotected for a while.
fn may_pause(status: &Status) -> Result<()> {
    let (name, other) = (&status.name, status.other.clone().unwrap_or_default());
    match (status.role, status.state) {
        (Role::Primary, State::Starting | State::Unprotected | State::Paused | State::Protected) => Ok(()),
        (Role::Primary, _) => Err(Error::other(format!("{name} cannot be paused now")).help("meio status says how it stands")),
        (Role::Standby, _) => Err(Error::other(format!("this is the standby of {name}")).help(format!("on {other}: meio pause {name}"))),
        (Role::Series, _) => Err(Error::other(format!("nobody stands by for {name}: its images are kept in a folder"))),
    }
}

/// Whether the standby of a watch could take over now.
///
/// # Errors
/// Why it could not.
pub fn may_take_over(status: &Status) -> Result<()> {
    let (name, other) = (&status.name, status.other.clone().unwrap_or_default());
    if status.role == Role::Series {
        return Err(Error::other(format!("nobody stands by for {name}: its images are kept in a folder")));
    }
    if status.role == Role::Standby {
        return Err(Error::other(format!("this is the standby of {name}")).help(format!("on {other}: meio switchover {name}")));
    }
    if let Some(witness) = &status.witness
        && let Some(trouble) = &witness.trouble
    {
        let what = format!("{other} could not take over {name} now: the witness {}, which has to let it, {trouble}", witness.at);
        return Err(Error::other(what).help("meio status says when it is there again"));
    }
    match status.state {
        State::Protected => Ok(()),
        _ => Err(Error::other(format!("{other} could not take over {name} now")).help("meio status says how it stands")),
    }
}

fn answer(mut stream: &UnixStream, value: Value) -> bool {
    let text = format!("{value}\n");
    // A unix socket has room for it, or its owner does not listen.
    text.len() <= LONGEST && stream.write_all(text.as_bytes()).is_ok()
}

fn failure(e: &Error) -> Value {
    json!({"v": VERSION, "error": {"code": e.kind.code(), "message": e.message, "help": e.help}})
}

impl Server {
    fn serve(mut self) {
        loop {
            let waits = self.callers.iter().any(|caller| caller.waits.is_some());
            let timeout = if waits { PollTimeout::from(STEP) } else { PollTimeout::from(1000u16) };
            let listens = self.callers.len() < CALLERS;
            let mut fds = vec![PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN)];
            fds.extend(listens.then(|| PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)));
            fds.extend(self.callers.iter().map(|caller| PollFd::new(caller.stream.as_fd(), PollFlags::POLLIN)));
            let came = poll(&mut fds, timeout);
            let over = fds[0].any().unwrap_or(true);
            drop(fds);
            if over || came.is_err_and(|e| e != Errno::EINTR) {
                break;
            }
            if listens && let Ok((stream, _)) = self.listener.accept() {
                self.meet(stream);
            }
            let callers = std::mem::take(&mut self.callers);
            self.callers = callers.into_iter().filter_map(|caller| self.look(caller)).collect();
        }
        let callers = std::mem::take(&mut self.callers);
        callers.into_iter().for_each(|caller| drop(self.look(caller)));
    }

    /// Only who may ask is listened to.
    fn meet(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.may(&stream) {
            self.callers.push(Caller { stream, said: Vec::new(), since: Instant::now(), waits: None });
        } else {
            answer(&stream, failure(&Error::new(Kind::Permission, "this watch is another user's")));
        }
    }

    fn may(&self, stream: &UnixStream) -> bool {
        let Ok(peer) = getsockopt(stream, PeerCredentials) else { return false };
        let member = |group: Gid| {
            let groups = socket::option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, 1 << 18).unwrap_or_default();
            peer.gid() == group.as_raw() || groups.chunks_exact(4).any(|id| id == group.as_raw().to_ne_bytes())
        };
        peer.uid() == 0 || peer.uid() == geteuid().as_raw() || self.group.is_some_and(member)
    }

    /// Serves one; `None` when that is done with.
    fn look(&self, mut caller: Caller) -> Option<Caller> {
        let mut bytes = [0; 1024];
        match caller.stream.read(&mut bytes) {
            Ok(0) => return None,
            Ok(read) => caller.said.extend_from_slice(&bytes[..read]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return None,
        }
        if caller.said.len() > LONGEST {
            answer(&caller.stream, failure(&Error::new(Kind::Usage, "a request is one short line")));
            return None;
        }
        if caller.waits.is_none()
            && let Some(end) = caller.said.iter().position(|&b| b == b'\n')
        {
            let line: Vec<u8> = caller.said.drain(..=end).collect();
            caller.since = Instant::now();
            caller.waits = match self.hear(&line) {
                Ok(Ok(value)) => return answer(&caller.stream, value).then_some(caller),
                Ok(Err(waits)) => Some(waits),
                Err(e) => {
                    answer(&caller.stream, failure(&e));
                    return None;
                }
            };
        }
        match caller.waits {
            None => (caller.since.elapsed() < PATIENCE).then_some(caller),
            Some(waits) => match self.granted(waits) {
                Ok(value) => {
                    caller.waits = None;
                    answer(&caller.stream, value).then_some(caller)
                }
                Err(waits) => {
                    caller.waits = Some(waits);
                    Some(caller)
                }
            },
        }
    }

    /// The answer to a request, or what is to be waited for.
    fn hear(&self, line: &[u8]) -> Result<std::result::Result<Value, Waits>> {
        let wrong = |_| Error::new(Kind::Usage, "that is no request").help(r#"write {"v":1,"do":"status"}"#);
        let request: Request = serde_json::from_slice(line).map_err(wrong)?;
        if request.v != VERSION {
            return Err(Error::new(Kind::Usage, format!("version {} is not spoken here", request.v)).help("use the meio that watches"));
        }
        let status = self.board.status();
        match request.what {
            Ask::Status => Ok(Ok(json!({"v": VERSION, "status": status}))),
            Ask::Handover if status.role == Role::Standby => {
                self.board.wish(Wish::Handover);
                Ok(Err(Waits::Handover))
            }
            Ask::Handover => Err(Error::other(format!("nobody stands by for {} here", status.name))),
            Ask::Checkpoint if status.role == Role::Standby => {
                let other = status.other.unwrap_or_default();
                Err(Error::other("this is the standby").help(format!("on {other}: meio checkpoint {}", status.name)))
            }
            Ask::Checkpoint if status.state == State::Paused => {
                Err(Error::other(format!("{} is paused", status.name)).help(format!("meio resume {}", status.name)))
            }
            Ask::Checkpoint => {
                let begun = self.board.begun();
                self.board.wish(Wish::Epoch);
                Ok(Err(Waits::Epoch(begun)))
            }
            Ask::Switchover if status.standbys.len() > 1 => self.change(&status, What::Hands, request.to.unwrap_or_default()),
            Ask::Switchover => {
                self.may_switch(&status, request.to.as_deref())?;
                let (before, _) = self.board.switched();
                self.board.wish(Wish::Switch);
                Ok(Err(Waits::Switch(before)))
            }
            Ask::Pause => {
                may_pause(&status)?;
                self.board.wish(Wish::Pause);
                Ok(Err(Waits::Pause))
            }
            Ask::AddStandby => self.change(&status, What::Adds, request.to.unwrap_or_default()),
            Ask::RemoveStandby => self.change(&status, What::Removes, request.to.unwrap_or_default()),
            Ask::Hosts => Ok(Ok(json!({"v": VERSION, "hosts": self.board.logins()}))),
            Ask::Resume if status.state != State::Paused => {
                Err(Error::other(format!("{} is not paused", status.name)).help("meio status says how it stands"))
            }
            Ask::Resume => {
                self.board.wish(Wish::Resume);
                Ok(Ok(json!({"v": VERSION, "resumes": true})))
            }
            Ask::Unwatch => {
                self.board.wish(Wish::Over);
                Ok(Err(Waits::End(Instant::now())))
            }
        }
    }

    /// Whether the standby could take over now, and is the one that is meant.
    /// Others are to stand by.
    fn change(&self, status: &Status, what: What, host: String) -> Result<std::result::Result<Value, Waits>> {
        change::may(status)?;
        self.board.change(&Change { what, host }).map(|count| Err(Waits::Change(count)))
    }

    fn may_switch(&self, status: &Status, to: Option<&str>) -> Result<()> {
        let (name, other) = (&status.name, status.other.clone().unwrap_or_default());
        if let (Role::Primary, Some(to)) = (status.role, to.filter(|to| !self.board.is_other(to))) {
            return Err(Error::new(Kind::Usage, format!("{to} does not stand by for {name}")).help(format!("{other} does")));
        }
        may_take_over(status)
    }

    /// The answer, or what is still to be waited for.
    fn granted(&self, waits: Waits) -> std::result::Result<Value, Waits> {
        /// Nothing is heard of a standby that has not answered in this time.
        const AGAIN: Duration = Duration::from_secs(10);
        if let (Waits::Switch(before), (now, Some(how))) = (waits, self.board.switched())
            && now > before
        {
            return Ok(how.map_or_else(|e| failure(&e), |switched| json!({"v": VERSION, "switched": switched})));
        }
        if let (Waits::Change(_), Some(e)) = (waits, self.board.unchanged()) {
            return Ok(failure(&e));
        }
        match (waits, self.board.ended()) {
            (Waits::Change(count), Some(Ok(_))) => Ok(json!({"v": VERSION, "changes": count})),
            (Waits::End(_) | Waits::Handover, Some(Ok(warnings))) => Ok(json!({"v": VERSION, "ended": {"warnings": warnings}})),
            (_, Some(Err(e))) => Ok(failure(&e)),
            (Waits::Pause, None) if self.board.status().state == State::Paused => Ok(json!({"v": VERSION, "paused": true})),
            (Waits::Switch(_) | Waits::Pause | Waits::Change(_), None) => Err(waits),
            (Waits::Epoch(_) | Waits::Switch(_) | Waits::Pause, Some(_)) => Ok(failure(&Error::other("the watch has ended"))),
            (Waits::Epoch(begun), None) => match self.board.epoch().filter(|epoch| Some(*epoch) > begun) {
                Some(epoch) => Ok(json!({"v": VERSION, "epoch": epoch})),
                None => Err(waits),
            },
            (Waits::End(asked), None) if asked.elapsed() > AGAIN => {
                self.board.wish(Wish::Over);
                Err(Waits::End(Instant::now()))
            }
            (Waits::End(_) | Waits::Handover, None) => Err(waits),
        }
    }
}

/// Asks a watch of this host; `None` when nobody serves it.
///
/// # Errors
/// [`Kind::Permission`] when one may not ask, what it answers that it cannot do, or that it does not answer within `patience`.
pub fn ask(store: &Store, name: &str, what: Ask, patience: Duration) -> Result<Option<Value>> {
    ask_of(store, name, (what, None), patience)
}

/// The same, of the host that is meant, if one is named.
///
/// # Errors
/// As [`ask`].
pub fn ask_of(store: &Store, name: &str, (what, to): (Ask, Option<String>), patience: Duration) -> Result<Option<Value>> {
    let doing = || format!("asking the watch {name}");
    let refused = |e: std::io::Error| Error::from(e).context(doing()).help("root, the user whose watch it is, and a group may ask");
    let (_folder, path) = match short(store.folder(), name) {
        Err(e) if e.errno == Some(libc::ENOENT) => return Ok(None),
        found => found?,
    };
    let stream = match UnixStream::connect(&path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(refused(e)),
        stream => stream.context(doing)?,
    };
    let request = serde_json::to_string(&Request { v: VERSION, what, to }).map_err(|e| Error::other(e.to_string()))?;
    (&stream).write_all(format!("{request}\n").as_bytes()).context(doing)?;
    let mut said = Vec::new();
    let until = Instant::now() + patience;
    while !said.ends_with(b"\n") {
        crate::sys::signal::check_interrupted()?;
        let silent = || Error::other(format!("the meio of the watch {name} does not answer")).help("it may be stopped: see ps");
        if Instant::now() >= until || said.len() > LONGEST {
            return Err(silent());
        }
        stream.set_read_timeout(Some(Duration::from_millis(50))).context(doing)?;
        let mut bytes = [0; 4096];
        match (&stream).read(&mut bytes) {
            Ok(0) => return Err(Error::other(format!("the meio of the watch {name} has ended")).help("see: meio status")),
            Ok(read) => said.extend_from_slice(&bytes[..read]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e).context(doing),
        }
    }
    let value: Value = serde_json::from_slice(&said).map_err(|e| Error::other(e.to_string()).context(doing()))?;
    match value.get("error") {
        None => Ok(Some(value)),
        Some(error) => {
            let kind = error["code"].as_i64().and_then(|code| Kind::of(code as i32)).unwrap_or(Kind::Other);
            let e = Error::new(kind, error["message"].as_str().unwrap_or("it cannot do that"));
            Err(error["help"].as_str().map_or_else(|| e.clone(), |help| e.clone().help(help)))
        }
    }
}

/// How a watch of this host stands; `None` when nobody serves it.
pub fn status(store: &Store, name: &str) -> Result<Option<Status>> {
    const MOMENT: Duration = Duration::from_secs(3);
    let answer = ask(store, name, Ask::Status, MOMENT)?;
    answer.map(|mut value| serde_json::from_value(value["status"].take()).map_err(|e| Error::other(e.to_string()))).transpose()
}

#[cfg(test)]
mod tests;
