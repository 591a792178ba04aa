//! How a watch stands, for people: its threads note what they see on a board, and who asks over the control socket
//! ([`super::control`]) is told.

mod loss;

use super::change::Change;
use super::gate::Gate;
use super::handover::Login;
use super::nodes::{Hosts, Node};
use super::state::{Event, Mark, Path, Said};
use super::switch::Switched;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What this host is for the watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The tree runs here, and is watched.
    #[default]
    Primary,
    /// It goes on here if the primary is lost.
    Standby,
    /// Images of it are kept here.
    Series,
}

/// How things stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing has been copied yet, or all of it is copied anew.
    #[default]
    Starting,
    /// Primary: nobody can take over.
    Unprotected,
    /// Primary: nobody can take over, since a user wants it so for a while.
    Paused,
    /// Primary: the standby can take over.
    Protected,
    /// Primary: nothing is heard of the standby, and nobody answers here.
    Cut,
    /// Primary: nothing is heard of the standby, and it goes on all the same.
    AtRisk,
    /// Primary: another host has taken over, and the tree stands still here.
    Stopped,
    /// Standby: it can take over.
    Ready,
    /// Standby: it does.
    TakingOver,
    /// Standby: it has, and the tree runs here.
    Running,
    /// Standby: it could not.
    Failed,
    /// Series: one can go on from the last image.
    Saved,
    /// Nobody is at work any more who said that it is over.
    LeftBehind,
    /// Somebody is at work and does not answer.
    Silent,
}

impl State {
    /// As it is written for machines.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Unprotected => "unprotected",
            State::Paused => "paused",
            State::Protected => "protected",
            State::Cut => "cut",
            State::AtRisk => "at-risk",
            State::Stopped => "stopped",
            State::Ready => "ready",
            State::TakingOver => "taking-over",
            State::Running => "running",
            State::Failed => "failed",
            State::Saved => "saved",
            State::LeftBehind => "left-behind",
            State::Silent => "silent",
        }
    }
}

/// What waits for its epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Packets that wait now.
    pub now: u32,
    /// Those that were let out.
    pub packets: u64,
    /// How long one of these has waited.
    pub median_ms: f64,
    /// All but one in a hundred waited no longer.
    pub p99_ms: f64,
    /// The one that waited longest.
    pub longest_ms: f64,
    /// Those that were lost for want of room.
    pub lost: u32,
}

/// All that is told of one watch. Times are milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What this host is for it.
    pub role: Role,
    /// How things stand.
    pub state: State,
    /// Root of the tree, where it is here.
    pub pid: Option<i32>,
    /// The other host, as it calls itself.
    pub other: Option<String>,
    /// Addresses that go with the tree; the folder of a series.
    pub at: Vec<String>,
    /// What clients may rely on: `hold` or `hot`.
    pub guarantee: Option<String>,
    /// Of who answers, as far as is known here.
    pub generation: u64,
    /// The last epoch that is whole at the standby, or the last image of a series.
    pub epoch: Option<Mark>,
    /// How old the state is that one can go on from.
    pub age_ms: Option<f64>,
    /// From its copy until it was known to be whole.
    pub lag_ms: Option<f64>,
    /// Time between two epochs, as it is now.
    pub interval_ms: Option<f64>,
    /// The last stop of the tree.
    pub pause_ms: Option<f64>,
    /// The longest.
    pub longest_pause_ms: Option<f64>,
    /// What waits.
    pub held: Option<Held>,
    /// How far heartbeats are off.
    pub jitter_ms: Option<f64>,
    /// Bytes that were sent or saved, packed.
    pub bytes: u64,
    /// Epochs that were whole.
    pub epochs: u64,
    /// Frames that were not heeded.
    pub unheeded: u64,
    /// The one of the two paths that is silent: `link` or `heartbeats`.
    pub silent: Option<String>,
    /// Each of several standbys, in the user's order; empty where there is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<One>,
    /// How many of these must be ready for one of them to take over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed: Option<usize>,
    /// Which of several standbys this is, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<usize>,
    /// At a standby: bytes that its copy takes, in memory or in its folder.
    pub copy_bytes: Option<u64>,
    /// Who says which of the two hosts may go on, where somebody does.
    pub witness: Option<Witness>,
    /// All hosts of the watch, this one among them; empty for a series, and where nobody is at work.
    pub nodes: Vec<Node>,
    /// Why others do not stand by, as was wanted last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What would be lost if the host died on which the tree runs.
    pub loses: String,
}

/// One of several standbys.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct One {
    /// What it calls itself.
    pub host: String,
    /// `starting`, `ready` (it has all that was acknowledged to it), `out-of-step` (it misses something), `copying` (everything is
    /// copied to it), or `lost`.
    pub state: String,
    /// The last epoch that it has.
    pub epoch: Option<Mark>,
}

/// What is known of a witness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Witness {
    /// Where it is.
    pub at: String,
    /// What is wrong with it, in words.
    pub trouble: Option<String>,
}

/// Milliseconds with three decimals.
pub fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

/// What somebody wants of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// An epoch, now.
    Epoch,
    /// Its end.
    Over,
    /// The end of who has taken over, whose tree goes on in other hands.
    Handover,
    /// That the standby takes over.
    Switch,
    /// That nothing is copied for a while,
    Pause,
    /// and that it is again.
    Resume,
}

impl Wish {
    /// What it is to a primary.
    pub fn event(self) -> Event {
        match self {
            // One that it is never asked for.
            Wish::Handover => Event::Tick,
            Wish::Epoch => Event::Wanted,
            Wish::Over => Event::Over,
            Wish::Switch => Event::Yield,
            Wish::Pause => Event::Pause,
            Wish::Resume => Event::Resume,
        }
    }
}

/// Whom it is told.
type Grant = Box<dyn Fn(Wish) + Send>;

/// Who looks whether others can stand by, and how many will, and has that come about.
type Changer = Box<dyn Fn(&Status, &Change) -> Result<usize, crate::error::Error> + Send>;

/// How it has ended: what is to be said of it.
pub type Ended = Result<Vec<String>, crate::error::Error>;

#[derive(Default)]
struct Inner {
    status: Status,
    /// The last epoch whose copy was begun.
    begun: Option<Mark>,
    /// When epochs were copied that are not known to be whole.
    copied: VecDeque<(Mark, Instant)>,
    /// When the state was copied, or came, that one can go on from.
    since: Option<Instant>,
    gate: Option<Gate>,
    grant: Option<Grant>,
    changer: Option<Changer>,
    /// Why it did not come to a change.
    unchanged: Option<crate::error::Error>,
    wish: Option<Wish>,
    ended: Option<Ended>,
    /// Its end was wished for.
    over: bool,
    /// What the other host was called by the user.
    called: String,
    /// How those are logged in to who stand by.
    logins: Vec<Login>,
    /// How many switch-overs have ended, and how the last one has.
    switched: (u64, Option<Result<Switched, crate::error::Error>>),
}

/// Where it is noted.
#[derive(Default)]
pub struct Board {
    inner: Mutex<Inner>,
    /// What is known of the other hosts.
    pub hosts: Hosts,
}

/// Epochs under way whose time is remembered.
const REMEMBERED: usize = 64;

impl Board {
    /// With what is known from the beginning.
    pub fn new(status: Status) -> Board {
        Board { inner: Mutex::new(Inner { status, ..Inner::default() }), hosts: Hosts::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known.
    pub fn note(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.inner().status);
    }

    /// Packets are held there.
    pub fn holds(&self, gate: Gate) {
        self.inner().gate = Some(gate);
    }

    /// The copy of an epoch begins.
    pub fn begins(&self, mark: Mark) {
        self.inner().begun = Some(mark);
    }

    /// It was copied.
    pub fn copied(&self, mark: Mark, stop: Duration, bytes: u64) {
        let mut inner = self.inner();
        let at = Instant::now() - stop.min(Duration::from_secs(60));
        self.hosts.copied(mark, at);
        inner.copied.push_back((mark, at));
        if inner.copied.len() > REMEMBERED {
            inner.copied.pop_front();
        }
        let status = &mut inner.status;
        status.bytes += bytes;
        status.pause_ms = Some(ms(stop));
        status.longest_pause_ms = Some(status.longest_pause_ms.unwrap_or_default().max(ms(stop)));
    }

    /// This epoch and those before it are whole.
    pub fn whole(&self, mark: Mark) {
        let mut inner = self.inner();
        let now = Instant::now();
        let known = inner.copied.iter().take_while(|(of, _)| *of <= mark).count();
        let last = inner.copied.drain(..known).next_back();
        inner.since = Some(last.map_or(now, |(_, at)| at));
        let status = &mut inner.status;
        status.epoch = Some(mark);
        status.epochs += 1;
        status.lag_ms = last.map(|(_, at)| ms(now - at));
    }

    /// An image of a series is in its place, of a tree as it was then.
    pub fn saved(&self, mark: Mark, then: Instant, stop: Duration, bytes: u64) {
        self.copied(mark, stop, bytes);
        self.whole(mark);
        let mut inner = self.inner();
        inner.since = Some(then);
        inner.status.lag_ms = None;
    }

    /// What there was to go on from is no use any more.
    pub fn dropped(&self) {
        let mut inner = self.inner();
        inner.since = None;
        inner.status.epoch = None;
        inner.status.state = State::Starting;
    }

    /// Something is heard again.
    pub fn heard(&self) {
        let status = &mut self.inner().status;
        if status.state == State::Cut {
            status.state = State::Protected;
        }
    }

    /// A machine has said how things stand.
    pub fn said(&self, said: Said) {
        let status = &mut self.inner().status;
        let standby = status.role == Role::Standby;
        match said {
            Said::Protected => status.state = if standby { State::Ready } else { State::Protected },
            Said::Unprotected => status.state = State::Unprotected,
            Said::Paused => status.state = State::Paused,
            Said::Cut => status.state = State::Cut,
            Said::AtRisk => status.state = State::AtRisk,
            Said::Demoted => status.state = State::Stopped,
            Said::TakingOver | Said::Taken => status.state = State::TakingOver,
            Said::Unvoted | Said::Refused | Said::Unruled => status.state = State::Ready,
            // What is here is of no use.
            Said::Outdated => status.state = State::Starting,
            Said::TakenOver => status.state = State::Running,
            Said::Failed => status.state = State::Failed,
            Said::OnePath(path) => status.silent = Some(if path == Path::Link { "link" } else { "heartbeats" }.to_owned()),
            Said::BothPaths => status.silent = None,
            Said::Full => status.state = State::Unprotected,
            Said::Yielding => status.state = State::TakingOver,
            Said::Stayed if status.state == State::TakingOver => status.state = State::Starting,
            Said::Unsure => status.state = State::Cut,
            Said::Switched => status.state = State::Stopped,
            Said::Stayed | Said::Slow | Said::Over | Said::Replaced => {}
        }
    }

    /// How things stand now, but for what waits, and what that means.
    pub fn bare(&self) -> Status {
        let inner = self.inner();
        let mut status = inner.status.clone();
        status.age_ms = inner.since.map(|since| ms(since.elapsed()));
        drop(inner);
        status.nodes = self.hosts.all(&status);
        status
    }

    /// How things stand now.
    pub fn status(&self) -> Status {
        let mut status = self.bare();
        let gate = self.inner().gate.clone();
        status.held = gate.and_then(|gate| gate.held()).map(|held| Held {
            now: held.now,
            packets: held.waits.count(),
            median_ms: ms(held.waits.quantile(0.5)),
            p99_ms: ms(held.waits.quantile(0.99)),
            longest_ms: ms(held.waits.longest()),
            lost: held.lost,
        });
        status.told()
    }

    /// Who grants wishes. One that is never named finds them by [`Board::wished`].
    pub fn granted_by(&self, grant: impl Fn(Wish) + Send + 'static) {
        self.inner().grant = Some(Box::new(grant));
    }

    /// Tells a wish to who can grant it.
    pub fn wish(&self, wish: Wish) {
        let mut inner = self.inner();
        inner.over |= wish == Wish::Over;
        match &inner.grant {
            Some(grant) => grant(wish),
            // The end is not forgotten over an epoch.
            None if inner.wish != Some(Wish::Over) => inner.wish = Some(wish),
            None => {}
        }
    }

    /// Who has others stand by; he must not look at the board.
    pub fn changed_by(&self, changer: impl Fn(&Status, &Change) -> Result<usize, crate::error::Error> + Send + 'static) {
        self.inner().changer = Some(Box::new(changer));
    }

    /// Others are to stand by; how many will.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn change(&self, change: &Change) -> Result<usize, crate::error::Error> {
        let status = self.status();
        let mut inner = self.inner();
        inner.unchanged = None;
        let none = || crate::error::Error::other("who stands by here has called by itself, and cannot be changed");
        let changer = inner.changer.as_ref().ok_or_else(|| none().help("meio unwatch and meio watch begin anew"))?;
        changer(&status, change)
    }

    /// It does not come to that.
    pub fn stays(&self, why: crate::error::Error) {
        self.inner().unchanged = Some(why);
    }

    /// Why it did not, said once.
    pub fn unchanged(&self) -> Option<crate::error::Error> {
        self.inner().unchanged.take()
    }

    /// Whether its end was ever wished for.
    pub fn is_over(&self) -> bool {
        self.inner().over
    }

    /// A wish that nobody has granted yet.
    pub fn wished(&self) -> Option<Wish> {
        self.inner().wish.take()
    }

    /// The last epoch whose copy was begun: what is wished for now is in a later one.
    pub fn begun(&self) -> Option<Mark> {
        self.inner().begun
    }

    /// The last epoch that is whole.
    pub fn epoch(&self) -> Option<Mark> {
        self.inner().status.epoch
    }

    /// The other host was called so.
    pub fn other_is(&self, name: &str) {
        self.inner().called = name.to_owned();
    }

    /// Those who stand by are logged in to so.
    pub fn reached_by(&self, logins: Vec<Login>) {
        self.inner().logins = logins;
    }

    /// How they are.
    pub fn logins(&self) -> Vec<Login> {
        self.inner().logins.clone()
    }

    /// Whether somebody means the other host.
    pub fn is_other(&self, name: &str) -> bool {
        let inner = self.inner();
        inner.called == name || inner.status.other.as_deref() == Some(name)
    }

    /// This is what came of a switch-over.
    pub fn switch_ends(&self, how: Result<Switched, crate::error::Error>) {
        let mut inner = self.inner();
        inner.switched = (inner.switched.0 + 1, Some(how));
    }

    /// How many have ended, and how the last one has.
    pub fn switched(&self) -> (u64, Option<Result<Switched, crate::error::Error>>) {
        self.inner().switched.clone()
    }

    /// It is over; what was said first counts.
    pub fn end(&self, ended: Ended) {
        let mut inner = self.inner();
        // What is held goes with who held it.
        (inner.gate, inner.grant) = (None, None);
        inner.ended.get_or_insert(ended);
    }

    /// How it has ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.inner().ended.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(role: Role, guarantee: &str) -> Board {
        Board::new(Status { role, guarantee: Some(guarantee.to_owned()), ..Status::default() })
    }

    const FIRST: Mark = Mark { series: 1, number: 1 };

    #[test]
    fn what_would_be_lost_is_said() {
        let hold = board(Role::Primary, "hold");
        assert!(hold.status().loses.starts_with("everything"));
        hold.begins(FIRST);
        hold.copied(FIRST, Duration::from_millis(2), 100);
        assert!(hold.status().age_ms.is_none() && hold.status().loses.starts_with("everything"));
        hold.whole(FIRST);
        hold.said(Said::Protected);
        let status = hold.status();
        assert!(status.loses.starts_with("nothing that clients were told; it goes on from"), "{}", status.loses);
        assert!(status.age_ms >= Some(2.0) && status.lag_ms >= Some(2.0) && status.bytes == 100);
        hold.said(Said::Cut);
        assert!(hold.status().loses.contains("nobody answers"));
        hold.heard();
        assert_eq!(hold.status().state, State::Protected);
        let hot = board(Role::Standby, "hot");
        hot.whole(FIRST);
        hot.said(Said::Protected);
        assert!(hot.status().state == State::Ready && hot.status().loses.starts_with("what happened of the last"));
        hot.dropped();
        assert!(hot.status().loses.starts_with("everything") && hot.status().epoch.is_none());
    }

    #[test]
    fn a_wish_is_told_or_waits() {
        let board = board(Role::Primary, "hold");
        board.wish(Wish::Over);
        board.wish(Wish::Epoch);
        assert_eq!((board.wished(), board.wished()), (Some(Wish::Over), None));
        let (tell, told) = std::sync::mpsc::channel();
        board.granted_by(move |wish| tell.send(wish).expect("somebody listens"));
        board.wish(Wish::Epoch);
        assert_eq!((told.try_recv(), board.wished()), (Ok(Wish::Epoch), None));
    }

    #[test]
    fn what_is_told_can_be_read() {
        let status = board(Role::Primary, "hold").status();
        let text = serde_json::to_string(&status).expect("JSON");
        assert_eq!(serde_json::from_str::<Status>(&text).expect("JSON"), status);
        // Of a meio that knows more or less than this one.
        let other: Status = serde_json::from_str(r#"{"name":"web","role":"standby","more":1}"#).expect("JSON");
        assert_eq!((other.name.as_str(), other.role), ("web", Role::Standby));
    }
}
