//! All hosts of a watch, as each of them can show them: what they tell each other of how they stand, and when each was last heard.
//!
//! Over the link, which only its two ends can read and write, each end says twice a second how it stands; the primary says, too, how
//! the others do. What was heard last is kept with the time, so that any of them can answer at once, also when the others are gone. Nothing
//! is decided by it.

use super::state::Mark;
use super::status::{Board, Role, State, Status, ms};
use crate::error::Result;
use crate::migrate::plan::{pack, unpack};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often they are sent.
pub const EACH: Duration = Duration::from_millis(500);
/// Other hosts that are kept, at most.
const MOST: usize = 16;
/// Longest frame that is read.
const LONGEST: usize = 16 << 10;
/// Longest name, and longest word for a state: an answer of the control socket has room for all of them.
const NAME: usize = 64;
const WORD: usize = 16;
/// Epochs whose time is remembered.
const REMEMBERED: usize = 256;
/// Who was heard through somebody else is not lost sooner.
const LEAST: Duration = Duration::from_millis(1500);

/// One host of a watch. Times are milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// What it calls itself.
    pub host: String,
    /// What it is for the watch, as it has said last.
    pub role: Role,
    /// As [`Status::state`] there; of one of several standbys also `out-of-step`.
    pub state: String,
    /// Which of several standbys it is in the user's order, from 0.
    pub place: Option<usize>,
    /// Of who answers, as it knows.
    pub generation: u64,
    /// The last epoch that is whole there; at the primary, at enough standbys.
    pub epoch: Option<Mark>,
    /// How old the state is that one could go on from there.
    pub age_ms: Option<f64>,
    /// At the primary: from the copy of that epoch until it was known to be whole.
    pub lag_ms: Option<f64>,
    /// How far heartbeats are off that it hears.
    pub jitter_ms: Option<f64>,
    /// At a standby: bytes that its copy takes, in memory or in its folder.
    pub copy_bytes: Option<u64>,
    /// How long ago it was heard; `None`: it is the one that tells this.
    pub heard_ms: Option<f64>,
    /// That is too long.
    pub lost: bool,
}

/// One that was heard.
struct Other {
    node: Node,
    /// When it was heard last,
    heard: Instant,
    /// and when that was so which it has said.
    told: Instant,
}

#[derive(Default)]
struct Known {
    own: String,
    patience: Duration,
    others: Vec<Other>,
    /// When epochs were copied here.
    copied: VecDeque<(Mark, Instant)>,
}

/// What one of them knows of all.
#[derive(Default)]
pub struct Hosts(Mutex<Known>);

/// What this host calls itself.
pub fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A moment that was so long ago.
fn before(now: Instant, ms: f64) -> Instant {
    /// What was longer ago was so long ago.
    const FAR: f64 = 365.0 * 86_400e3;
    let ago = if ms.is_finite() { Duration::from_secs_f64(ms.clamp(0.0, FAR) / 1e3) } else { Duration::ZERO };
    now.checked_sub(ago).unwrap_or(now)
}

fn short(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl Node {
    /// How this host stands.
    fn of(status: &Status, host: &str) -> Node {
        Node {
            host: host.to_owned(),
            role: status.role,
            state: status.state.name().to_owned(),
            place: status.place,
            generation: status.generation,
            epoch: status.epoch,
            age_ms: status.age_ms,
            lag_ms: status.lag_ms,
            jitter_ms: status.jitter_ms,
            copy_bytes: status.copy_bytes,
            heard_ms: None,
            lost: false,
        }
    }

    /// What somebody else has said, with nothing in it that is too long.
    fn checked(self) -> Node {
        Node { host: short(&self.host, NAME), state: short(&self.state, WORD), ..self }
    }
}

impl Known {
    /// One of them, who is there from now on if he was not.
    fn meet(&mut self, node: Node, heard: Instant, told: Instant) {
        if node.host == self.own || node.host.is_empty() {
            return;
        }
        // Another one has its place.
        let place = |other: &Other| node.place.is_some() && other.node.place == node.place && other.node.role == node.role;
        self.others.retain(|other| other.node.host == node.host || !place(other));
        match self.others.iter_mut().find(|other| other.node.host == node.host) {
            Some(other) if other.heard > heard => {}
            Some(other) => {
                let place = node.place.or(other.node.place);
                (other.node, other.heard, other.told) = (Node { place, ..node }, heard, told);
            }
            None => self.others.push(Other { node, heard, told }),
        }
        if self.others.len() > MOST
            && let Some(oldest) = (0..self.others.len()).min_by_key(|n| self.others[*n].heard)
        {
            self.others.remove(oldest);
        }
    }

    fn copied(&self, mark: Option<Mark>) -> Option<Instant> {
        self.copied.iter().find(|(of, _)| Some(*of) == mark).map(|(_, at)| *at)
    }

    fn all(&self, status: &Status, now: Instant) -> Vec<Node> {
        let patience = self.patience.max(LEAST);
        let told = |other: &Other| {
            let (heard, since) = (now.saturating_duration_since(other.heard), now.saturating_duration_since(other.told));
            let copied = self.copied(other.node.epoch).map(|at| ms(now.saturating_duration_since(at)));
            let age_ms = copied.or(other.node.age_ms.map(|age| age + ms(since)));
            Node { age_ms, heard_ms: Some(ms(heard)), lost: heard >= patience, ..other.node.clone() }
        };
        let mut all = vec![Node::of(status, &self.own)];
        all.extend(self.others.iter().map(told));
        // The primary first, then those who stand by, in their order.
        all.sort_by(|a, b| (a.role != Role::Primary, a.place, &a.host).cmp(&(b.role != Role::Primary, b.place, &b.host)));
        all
    }
}

impl Hosts {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Others than this host, which calls itself so; who is not heard for so long is lost.
    pub fn begin(&self, own: String, patience: Duration) {
        let mut known = self.known();
        (known.own, known.patience) = (short(&own, NAME), patience);
    }

    /// Somebody is there.
    pub fn meets(&self, host: &str, role: Role, place: Option<usize>) {
        let now = Instant::now();
        let mut known = self.known();
        if let Some(other) = known.others.iter_mut().find(|other| other.node.host == host && other.node.role == role) {
            (other.heard, other.node.place) = (now, place);
            return;
        }
        known.meet(Node { host: short(host, NAME), role, state: State::Starting.name().to_owned(), place, ..Node::default() }, now, now);
    }

    /// Something was heard of this host so long ago.
    pub fn hears(&self, host: &str, ago: Duration) {
        let heard = Instant::now().checked_sub(ago);
        let mut known = self.known();
        if let (Some(other), Some(heard)) = (known.others.iter_mut().find(|other| other.node.host == host), heard) {
            other.heard = other.heard.max(heard);
        }
    }

    /// One of several standbys has said this to another one.
    pub fn polled(&self, place: usize, generation: u64, mark: Mark, runs: bool) {
        let now = Instant::now();
        let mut known = self.known();
        let Some(other) = known.others.iter_mut().find(|other| other.node.place == Some(place)) else { return };
        other.heard = now;
        let node = &mut other.node;
        node.generation = node.generation.max(generation);
        if mark.number > 0 && node.epoch != Some(mark) {
            // It has had it for a moment.
            (node.epoch, node.age_ms, other.told) = (Some(mark), Some(0.0), now);
        }
        if runs {
            State::Running.name().clone_into(&mut node.state);
        }
    }

    /// An epoch was copied here.
    pub fn copied(&self, mark: Mark, at: Instant) {
        let mut known = self.known();
        known.copied.push_back((mark, at));
        if known.copied.len() > REMEMBERED {
            known.copied.pop_front();
        }
    }

    /// What has come in a frame of this host. What makes no sense is not heeded.
    pub fn takes(&self, from: &str, payload: &[u8]) {
        let now = Instant::now();
        let nodes: Vec<Node> = match payload.len() {
            ..=LONGEST => unpack(payload).unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut known = self.known();
        for node in nodes.into_iter().take(MOST).map(Node::checked) {
            // It speaks of itself, whatever it calls itself in that.
            let own = node.heard_ms.is_none();
            let heard = before(now, node.heard_ms.unwrap_or_default());
            let node = if own { Node { host: short(from, NAME), ..node } } else { node };
            // What it says of itself counts more than what others do, who have it from there.
            if own || node.host != from {
                known.meet(node, heard, now);
            }
        }
    }

    /// All of them: this one, which stands so, among the others.
    pub fn all(&self, status: &Status) -> Vec<Node> {
        let known = self.known();
        if known.own.is_empty() { Vec::new() } else { known.all(status, Instant::now()) }
    }
}

impl Board {
    /// What is to be said to others: of this host alone, or of all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn tells(&self, all: bool) -> Result<Vec<u8>> {
        let mut nodes = self.bare().nodes;
        nodes.retain(|node| all || node.heard_ms.is_none());
        nodes.truncate(MOST);
        pack(&nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);
    const MARK: Mark = Mark { series: 1, number: 7 };

    fn board(host: &str, role: Role) -> Board {
        let board = Board::new(Status { name: "web".into(), role, generation: 3, ..Status::default() });
        board.hosts.begin(host.to_owned(), PATIENCE);
        board
    }

    fn names(board: &Board) -> Vec<String> {
        board.status().nodes.into_iter().map(|node| node.host).collect()
    }

    /// A primary and its two standbys, of which each knows all.
    #[test]
    fn each_knows_all() {
        let primary = board("one", Role::Primary);
        let standbys = [board("two", Role::Standby), board("three", Role::Standby)];
        for (place, (standby, host)) in standbys.iter().zip(["two", "three"]).enumerate() {
            primary.hosts.meets(host, Role::Standby, Some(place));
            standby.hosts.meets("one", Role::Primary, None);
            standby.note(|status| (status.place, status.copy_bytes) = (Some(place), Some(4096)));
            primary.hosts.takes(host, &standby.tells(false).expect("a frame"));
        }
        standbys[1].whole(MARK);
        primary.hosts.copied(MARK, Instant::now() - Duration::from_secs(5));
        primary.hosts.takes("three", &standbys[1].tells(false).expect("a frame"));
        let told = primary.tells(true).expect("a frame");
        assert!(told.len() < LONGEST);
        standbys.iter().for_each(|standby| standby.hosts.takes("one", &told));
        for board in standbys.iter().chain([&primary]) {
            assert_eq!(names(board), ["one", "two", "three"]);
            let nodes = board.status().nodes;
            assert!(nodes.iter().filter(|node| node.heard_ms.is_none()).count() == 1 && nodes.iter().all(|node| !node.lost), "{nodes:?}");
            assert!(nodes[2].epoch == Some(MARK) && nodes[2].copy_bytes == Some(4096) && nodes[2].generation == 3, "{nodes:?}");
        }
        // The primary knows how old that is; who has it knows when it came.
        assert!(primary.status().nodes[2].age_ms >= Some(5000.0) && standbys[0].status().nodes[2].age_ms >= Some(5000.0));
        assert!(standbys[1].status().nodes[2].age_ms < Some(5000.0));
    }

    /// What was said stays, with how long ago that was; another one may have the same place then.
    #[test]
    fn who_is_lost_is_told_of() {
        let board = board("one", Role::Primary);
        board.hosts.meets("two", Role::Standby, Some(0));
        let mut known = board.hosts.known();
        known.others[0].heard = Instant::now() - Duration::from_secs(12);
        (known.others[0].told, known.others[0].node.age_ms) = (known.others[0].heard, Some(1.0));
        drop(known);
        let lost = board.status().nodes[1].clone();
        assert!(lost.lost && lost.heard_ms >= Some(12_000.0) && lost.age_ms >= Some(12_000.0), "{lost:?}");
        board.hosts.hears("two", Duration::from_secs(1));
        assert!(!board.status().nodes[1].lost);
        // What is said of it by others, who have heard it before, is old.
        let old = Node { host: "two".into(), role: Role::Standby, heard_ms: Some(60_000.0), generation: 1, ..Node::default() };
        board.hosts.takes("three", &pack(&[Node::default(), old]).expect("a frame"));
        let nodes = board.status().nodes;
        assert!(nodes.iter().all(|node| !node.lost) && nodes.iter().any(|node| node.host == "three"), "{nodes:?}");
        board.hosts.meets("four", Role::Standby, Some(0));
        assert!(!names(&board).contains(&"two".to_owned()), "{:?}", names(&board));
    }

    #[test]
    fn what_is_strange_is_bounded() {
        let board = board("one", Role::Primary);
        board.hosts.takes("two", &[0xff; 100]);
        board.hosts.takes("two", &pack(&vec!["x".repeat(LONGEST)]).expect("a frame"));
        assert_eq!(names(&board), ["one"]);
        for n in 0..3 {
            let name = |m: usize| format!("\x07{m}{}", "\u{1F4A9}".repeat(60 + n));
            let node = |m: usize| Node { host: name(m), state: "\n".repeat(20), heard_ms: Some(f64::MAX), ..Node::default() };
            board.hosts.takes("two", &pack(&(0..20).map(node).collect::<Vec<_>>()).expect("a frame"));
        }
        let nodes = board.status().nodes;
        assert!(nodes.len() == 1 + MOST && nodes.iter().all(|node| node.host.chars().count() <= NAME), "{nodes:?}");
        // An answer of the control socket has room for it.
        assert!(serde_json::to_string(&board.status()).expect("JSON").len() < 14 << 10);
        // Nobody is told of as himself by another.
        let own = Node { host: "one".into(), heard_ms: Some(1.0), ..Node::default() };
        board.hosts.takes("two", &pack(&[own]).expect("a frame"));
        assert_eq!(board.status().nodes.iter().filter(|node| node.host == "one").count(), 1);
    }
}
