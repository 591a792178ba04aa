//! Who stands by, as the primary knows them: one, or several in the order of the user's. What happens with one of them is told to
//! [`Group`], which says what it is to the machine.

use super::{End, Standing, Whom};
use crate::error::{Error, Kind, Result};
use crate::migrate::plan::pack;
use crate::progress::Report;
use crate::transport::{self, Peer, Sender as Streams};
use crate::watch::again::{self, Ask, Calls, Found, Reply};
use crate::watch::beat::{Beats, Came, Key};
use crate::watch::comeback;
use crate::watch::ear::Ear;
use crate::watch::frame;
use crate::watch::gate::News;
use crate::watch::history::Entry;
use crate::watch::nodes::{EACH, hostname};
use crate::watch::porch::Porch;
use crate::watch::record::{Back, Each};
use crate::watch::setup::{EPOCH, Epoch, NODES, OVER, PACKETS, Seat, WHY, WORD};
use crate::watch::state::{Event, Frame, Hand, Mark, Path, Word};
use crate::watch::status::{One, Role};
use crate::watch::tree::Order;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One of them.
pub struct Other {
    /// The link, where there is one.
    pub peer: Option<Peer>,
    /// Its number.
    pub link: u64,
    pub beats: Option<Beats>,
    /// When something of it has come.
    heard: Instant,
    ear: Option<Ear>,
    calls: Calls,
    pub whom: Whom,
    /// How its machine is called,
    pub named: transport::Destination,
    /// and what it calls itself.
    host: String,
    /// When it was told how others stand.
    told: Instant,
    /// Why it could not be called, as far as that was said.
    complaint: Option<String>,
}

/// What each of them is asked.
pub fn asks(ask: &Ask) -> Vec<Ask> {
    let all = std::iter::once(&ask.options.standby).chain(&ask.options.others);
    let of = |standby: &transport::Destination| {
        let mut options = ask.options.clone();
        options.standby = standby.clone();
        Ask { options, plan: ask.plan.clone(), watch: ask.watch, witness: ask.witness.clone() }
    };
    all.map(of).collect()
}

/// Logs in to each of them.
///
/// # Errors
/// When one cannot be reached: a watch begins with all that it is to have.
pub fn connect(asks: &[Ask], whom: &Whom, report: &mut dyn Report) -> Result<Vec<Peer>> {
    asks.iter().map(|ask| again::connect(&ask.options, whom, report)).collect()
}

/// Comes to terms with all of them, before anything begins at any.
///
/// # Errors
/// With what stands in the way at one of them.
pub fn agree(asks: &[Ask], first: &Whom, peers: Vec<Peer>) -> Result<Vec<(Whom, Standing)>> {
    let taken = || Error::link("the standby has taken over what has not begun");
    if asks.len() == 1 {
        // Who is one of several for now knows of the others.
        let among = asks[0].options.among.as_ref().map(|_| Box::new(seat(asks, 0, [0; 32], &[])));
        let first = Whom { seat: among, ..first.clone() };
        let found = peers.into_iter().next().map(|peer| again::agree(&asks[0], &first, peer)).transpose()?;
        return match found {
            Some(Found::Standby(standing)) => Ok(vec![(first, *standing)]),
            Some(Found::Taken { .. }) => Err(taken()),
            None => Ok(Vec::new()),
        };
    }
    let mut answers = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for (ask, peer) in asks.iter().zip(peers) {
        let (host, own) = (peer.hello.host.clone(), peer.hello.host == hostname());
        if own || !names.insert(host.clone()) {
            let what = if own { format!("{host} is this host") } else { format!("{host} is named twice") };
            return Err(Error::new(Kind::Usage, what).help("each standby must be a host of its own"));
        }
        match again::question(ask, first, peer)? {
            Reply::Standby(answered) => answers.push(answered),
            Reply::Taken { .. } => return Err(taken()),
        }
    }
    let generation = answers.iter().map(|answered| answered.generation).fold(first.least, u64::max) + 1;
    let at: Option<Vec<SocketAddr>> = answers.iter().map(|answered| answered.polls).collect();
    let at = at.ok_or_else(|| Error::link("one of the standbys does not hear the others"))?;
    let key = *Key::make()?.bytes();
    let mut all = Vec::new();
    for (place, (ask, answered)) in asks.iter().zip(answers).enumerate() {
        let whom = Whom { seat: Some(Box::new(seat(asks, place, key, &at))), ..first.clone() };
        let standing = answered.begin(ask, &whom, generation)?;
        all.push((whom, standing));
    }
    Ok(all)
}

fn seat(asks: &[Ask], place: usize, key: [u8; 32], at: &[SocketAddr]) -> Seat {
    let options = &asks[place].options;
    let (how, among) = (&options.how, options.among.as_ref());
    Seat {
        place,
        key,
        at: at.to_vec(),
        hosts: asks.iter().map(|ask| ask.options.standby.to_string()).collect(),
        ssh: how.ssh.clone(),
        identity: how.identity.clone(),
        known_hosts: how.known_hosts.clone(),
        remote_path: how.remote_path.clone(),
        home: among.map(|among| among.own.clone()).filter(|own| !own.is_empty()).unwrap_or_else(|| comeback::own(&options.standby)),
        away: among.map(|among| among.away.clone()).unwrap_or_default(),
        left: among.map(|among| among.left.clone()).unwrap_or_default(),
        returns: comeback::returns(options, asks[place].witness.clone()),
    }
}

/// Nobody is met yet. Who calls by himself comes to the `porch`; `known`: who was there before, and how he is called, each at his place.
pub fn new(asks: Vec<Ask>, known: Vec<(String, Whom)>, again: Duration, porch: Option<&Arc<Porch>>) -> Vec<Other> {
    let other = |(of, (ask, (host, whom))): (usize, (Ask, (String, Whom)))| {
        let named = ask.options.standby.clone();
        let calls = Calls::new(ask, again, porch.map(|porch| (porch.clone(), of)), &host);
        Other {
            peer: None,
            named,
            link: 0,
            beats: None,
            ear: None,
            calls,
            whom,
            host,
            complaint: None,
            heard: Instant::now(),
            told: Instant::now(),
        }
    };
    asks.into_iter().zip(known).enumerate().map(other).collect()
}

impl End {
    fn is_several(&self) -> bool {
        self.others.len() > 1
    }

    /// What they call themselves.
    pub(super) fn hosts(&self) -> String {
        let names: Vec<&str> = self.others.iter().map(|other| other.host.as_str()).filter(|host| !host.is_empty()).collect();
        names.join(", ")
    }

    /// What has happened with one of them, as the machine hears it.
    pub(super) fn with(&mut self, of: usize, event: Event) -> Option<Event> {
        let generation = if self.machine.is_demoted() { 0 } else { self.machine.generation() };
        let at = (generation, self.machine.series());
        self.more.extend(self.group.take(of, event, at, self.begun.elapsed()));
        self.more.pop_front()
    }

    /// What has happened; waits a moment for something.
    pub(super) fn next(&mut self) -> Option<Event> {
        const STEP: Duration = Duration::from_millis(2);
        const SOON: Duration = Duration::from_micros(200);
        /// What does not wake who waits for the link is looked at so often.
        const BEATS: Duration = Duration::from_millis(8);
        if let Some(event) = self.more.pop_front() {
            return Some(event);
        }
        self.forward();
        self.manager.lives();
        match self.events.try_recv() {
            // Another one may have been lost meanwhile.
            Ok((Some(of), Event::Linked)) if self.others[of].peer.is_none() || !self.known.uses(of, self.others[of].link) => return None,
            Ok((Some(of), event)) => {
                if event == Event::Linked {
                    self.announce_again(of);
                }
                return self.with(of, event);
            }
            Ok((None, event)) => {
                if event == Event::Over {
                    self.tell_more();
                }
                return Some(event);
            }
            Err(_) => {}
        }
        let news = self.gate.news();
        if news == News::Waits {
            return Some(Event::Wanted);
        }
        for of in 0..self.others.len() {
            if let Some(event) = self.look(of) {
                return self.with(of, event);
            }
        }
        if let Some(done) = self.fencing.as_ref().and_then(super::Fence::done) {
            self.fencing = None;
            return Some(Event::Fenced(done));
        }
        if let Some(event) = self.ruling() {
            return Some(event);
        }
        for of in 0..self.others.len() {
            if let Some(event) = self.answer(of) {
                return self.with(of, event);
            }
        }
        self.fill();
        self.waits_in_vain();
        self.show();
        self.tell_hosts();
        let due = self.machine.wake().is_some_and(|wake| wake <= self.begun.elapsed());
        for other in self.others.iter_mut().filter(|other| other.peer.is_none()) {
            other.calls.call(&other.whom);
        }
        if self.others.iter().all(|other| other.peer.is_none()) {
            if !due {
                std::thread::sleep(STEP);
            }
            return due.then_some(Event::Tick);
        }
        // What has come is heard first: it may be what keeps the other one from being lost.
        // What comes for a tree that stands still does not, either.
        let most = match (news, self.machine.is_yielding()) {
            (News::Gathers, _) => SOON,
            (_, true) => STEP,
            _ => BEATS,
        };
        let wait = self.machine.wake().map_or(most, |wake| wake.saturating_sub(self.begun.elapsed()).min(most));
        if !self.is_several() {
            return self.receive(0, wait).unwrap_or(due.then_some(Event::Tick));
        }
        for of in 0..self.others.len() {
            if let Some(event) = self.receive(of, Duration::ZERO) {
                return event.and_then(|event| self.with(of, event));
            }
        }
        if !due {
            self.bell.wait(wait);
        }
        due.then_some(Event::Tick)
    }

    /// What has come by the link to one of them; `None`: nothing.
    fn receive(&mut self, of: usize, wait: Duration) -> Option<Option<Event>> {
        let other = &mut self.others[of];
        let peer = other.peer.as_mut()?;
        let came = if wait.is_zero() { peer.link.try_receive().transpose()? } else { peer.link.receive(Some(wait)) };
        if came.is_ok() {
            other.heard = Instant::now();
        }
        match came {
            Ok(came) if came.kind == WORD => Some(frame::read(&came.payload).map(|heard| Event::Heard(Path::Link, heard))),
            Ok(came) if came.kind == WHY => {
                self.course.why(&came.payload);
                Some(None)
            }
            Ok(came) if came.kind == NODES => {
                self.board.hosts.takes(&other.host, &came.payload);
                Some(None)
            }
            Ok(came) => Some((came.kind == OVER).then_some(Event::Over)),
            Err(_) => peer.link.failure().map(|why| self.unlink(of, &why)),
        }
    }

    /// What has happened beside its link.
    fn look(&mut self, of: usize) -> Option<Event> {
        let other = &mut self.others[of];
        if other.peer.is_some() && other.calls.knocks() {
            return self.unlink(of, &Error::link("it has called again"));
        }
        match other.beats.as_mut().map_or(Came::Nothing, Beats::receive) {
            Came::Frame(heard) => {
                other.heard = Instant::now();
                return Some(Event::Heard(Path::Beat, heard));
            }
            Came::Refused if other.peer.is_none() => return Some(Event::Gone),
            _ => {}
        }
        let why = other.peer.as_ref().and_then(|_| self.known.failure(of, other.link))?;
        self.unlink(of, &why)
    }

    /// What comes for a tree that stands still is wanted where it will run.
    fn forward(&self) {
        const TOGETHER: usize = 64;
        let generation = self.machine.generation();
        for some in self.packets.try_iter().collect::<Vec<_>>().iter().flat_map(|all| all.chunks(TOGETHER)) {
            if let (Some(peer), Ok(payload)) = (&self.others[0].peer, pack(&some)) {
                let _ = peer.link.send(&transport::Frame { kind: PACKETS, generation, payload });
            }
        }
    }

    /// The link is over.
    fn unlink(&mut self, of: usize, why: &Error) -> Option<Event> {
        if !self.is_several() {
            self.bell.hang(None);
        }
        let peer = self.others[of].peer.take()?;
        let which = if self.is_several() { self.others[of].host.clone() } else { "the standby".to_owned() };
        self.tell(of, &format!("the link to {which} is lost: {}", why.message));
        // To end it takes its time where nothing gets through.
        let _ = std::thread::Builder::new().name("unlink".into()).spawn(move || drop(peer));
        Some(Event::LinkLost)
    }

    /// Links that carry nothing are made again.
    pub(super) fn relink(&mut self) {
        for of in 0..self.others.len() {
            if (!self.is_several() || self.group.is_mute(of, self.begun.elapsed()))
                && let Some(event) = self.unlink(of, &Error::link("nothing comes over it"))
            {
                let event = self.with(of, event);
                self.more.extend(event);
            }
        }
    }

    fn tell(&mut self, of: usize, text: &str) {
        if self.others[of].complaint.as_deref() != Some(text) {
            self.others[of].complaint = Some(text.to_owned());
            let _ = self.orders.send(Order::Tell(text.to_owned()));
        }
    }

    /// Somebody who was called has answered.
    fn answer(&mut self, of: usize) -> Option<Event> {
        let standing = match self.others[of].calls.answer()? {
            // It is not known there that it was taken over: nobody here can say that it was not.
            Ok(Found::Standby(_)) if self.machine.is_demoted() => return None,
            Ok(Found::Standby(standing)) => standing,
            Ok(Found::Taken { generation, instance, runs }) => {
                let (whole, hand) = (Mark::default(), if runs { Hand::Runs } else { Hand::Nothing });
                let word = Word::Standby { whole, ready: true, left: false, full: false, echo: 0, hand };
                return Some(Event::Heard(Path::Link, Frame { generation, instance, sequence: 0, word }));
            }
            Err(e) => {
                let who = if self.is_several() { format!("{} does not stand by", self.others[of].host) } else { "nobody stands by".into() };
                self.tell(of, &format!("{who}: {}", e.message));
                return None;
            }
        };
        let host = &standing.peer.hello.host;
        let known = if self.others[of].host.is_empty() { host } else { &self.others[of].host };
        if known != host && (!self.machine.is_free() || self.is_several()) {
            self.tell(of, &format!("nobody stands by: {host} answers, which is not {known}"));
            return None;
        }
        let images = standing.images;
        match self.meet(of, *standing) {
            Ok(streams) => drop(self.orders.send(Order::Link(of, self.others[of].link, streams, images))),
            Err(e) => self.tell(of, &format!("nobody stands by: {}", e.message)),
        }
        None
    }

    /// There is somebody who stands by.
    pub(super) fn meet(&mut self, of: usize, standing: Standing) -> Result<Streams> {
        let Standing { peer, sender, instance, beats, token, polls, .. } = standing;
        let witness = self.others[of].calls.witness();
        let several = self.is_several();
        let other = &mut self.others[of];
        other.whom.instance = instance;
        if let Some(beats) = beats {
            other.ear = Some(Ear::listen(&beats, self.bell.clone())?);
            other.beats = Some(beats);
        }
        other.whom.fresh = other.beats.is_none();
        other.host.clone_from(&peer.hello.host);
        other.heard = Instant::now();
        self.board.hosts.meets(&peer.hello.host, Role::Standby, Some(of));
        other.calls.met(&peer.hello.host);
        if let Some(token) = &token {
            other.whom.token = Some(token.clone());
        }
        // Who is begun anew is to find the others, and they find him by what he says.
        for seat in self.others.iter_mut().filter_map(|other| other.whom.seat.as_mut()) {
            if let (Some(at), Some(polls)) = (seat.at.get_mut(of), polls) {
                *at = polls;
            }
        }
        if let Some(token) = token {
            let (tree, limits) = (self.tree, self.limits);
            let host = self.hosts();
            self.record.about.other.clone_from(&host);
            let each = |other: &Other| Each {
                host: other.host.clone(),
                instance: other.whom.instance,
                token: other.whom.token.clone().unwrap_or_default(),
                seat: other.whom.seat.clone(),
            };
            let each = if several { self.others.iter().map(each).collect() } else { Vec::new() };
            self.record.back = Some(Back { tree, limits, host, instance, token, witness, each });
            self.store.write(&self.record)?;
        }
        let (host, generation) = (self.hosts(), self.machine.generation());
        self.board.note(|status| (status.other, status.generation) = (Some(host), generation));
        self.links += 1;
        let other = &mut self.others[of];
        other.complaint = None;
        other.link = self.links;
        if several {
            let bell = self.bell.clone();
            peer.link.rings(Arc::new(move || bell.ring()));
        } else {
            self.bell.hang(Some(peer.link.waker()));
        }
        other.peer = Some(peer);
        Ok(sender)
    }

    /// A series begins: who is there gets it.
    pub(super) fn begins(&mut self, series: u64) {
        if self.is_several() {
            self.announced.clear();
            self.group.begins(series);
            let _ = self.orders.send(Order::Join((0..self.others.len()).map(|of| self.group.is_joined(of)).collect()));
        }
    }

    /// One epoch more that some have yet to hear of, should their links be made again.
    pub(super) fn announce(&mut self, mark: Mark, ready: bool) {
        const REMEMBERED: usize = 256;
        if self.is_several() {
            self.announced.push_back((mark, ready));
            if self.announced.len() > REMEMBERED {
                self.announced.pop_front();
            }
        }
    }

    fn announce_again(&self, of: usize) {
        let generation = self.machine.generation();
        let Some(peer) = &self.others[of].peer else { return };
        let there = self.group.whole(of);
        for (mark, ready) in self.announced.iter().filter(|(mark, _)| *mark > there) {
            if let Some(image) = self.known.image(of, *mark)
                && let Ok(payload) = pack(&Epoch { generation, mark: *mark, ready: *ready, image, part: self.known.part(of, *mark) })
            {
                let _ = peer.link.send(&transport::Frame { kind: EPOCH, generation, payload });
            }
        }
    }

    /// Frames that were not heeded, of any of them.
    pub(super) fn unheeded(&self) -> u64 {
        let dropped = self.others.iter().filter_map(|other| other.beats.as_ref()).map(|beats| beats.dropped().all());
        self.machine.stale() + self.group.stale() + dropped.sum::<u64>()
    }

    /// How far heartbeats are off, of the worst.
    pub(super) fn jitter(&self) -> Option<Duration> {
        if !self.is_several() {
            return self.machine.jitter();
        }
        (0..self.others.len()).filter_map(|of| self.group.jitter(of)).max()
    }

    /// How several of them stand.
    pub(super) fn stands(&self) -> Vec<One> {
        if !self.is_several() {
            return Vec::new();
        }
        let states = self.states();
        let one = |(of, state): (usize, &'static str)| One {
            host: self.others[of].host.clone(),
            state: state.to_owned(),
            epoch: Some(self.group.whole(of)).filter(|mark| mark.number > 0),
        };
        states.into_iter().enumerate().map(one).collect()
    }

    /// Each is told now and then how all of them stand.
    fn tell_hosts(&mut self) {
        let now = Instant::now();
        let due = |other: &Other| now.duration_since(other.told) >= EACH;
        if !self.others.iter().any(due) {
            return;
        }
        self.others.iter().for_each(|other| self.board.hosts.hears(&other.host, other.heard.elapsed()));
        let Ok(payload) = self.board.tells(true) else { return };
        let generation = self.machine.generation();
        for other in self.others.iter_mut() {
            other.told = now;
            // Who takes nothing is not to keep the others waiting.
            if let Some(peer) = other.peer.as_ref().filter(|_| other.heard.elapsed() < self.limits.timeout) {
                let _ = peer.link.send(&transport::Frame { kind: NODES, generation, payload: payload.clone() });
            }
        }
    }

    fn states(&self) -> Vec<&'static str> {
        let (series, now) = (self.machine.series(), self.begun.elapsed());
        let state = |of: usize| match () {
            () if self.group.is_lost(of, now) => "lost",
            () if self.group.is_filling(of) => "copying",
            () if self.group.is_behind(of) => "out-of-step",
            () if self.group.is_ready(of, series, now) => "ready",
            () => "starting",
        };
        (0..self.others.len()).map(state).collect()
    }

    /// What has become of each of several is said when it changes.
    fn show(&mut self) {
        const OFTEN: Duration = Duration::from_millis(250);
        if !self.is_several() || self.shown.elapsed() < OFTEN {
            return;
        }
        self.shown = Instant::now();
        let states = self.states();
        if states == self.standing {
            return;
        }
        for (of, state) in states.iter().enumerate() {
            let before = self.standing.get(of).copied().unwrap_or("starting");
            let host = self.others[of].host.clone();
            let (event, reason) = match *state {
                _ if before == *state => continue,
                "lost" => ("standby-lost", format!("nothing is heard of {host}")),
                "out-of-step" => ("standby-out-of-step", format!("{host} misses something: everything is to be copied to it again")),
                "copying" => ("standby-copying", format!("everything is copied to {host} beside what the others get")),
                "ready" => ("standby-ready", format!("{host} has everything")),
                _ => continue,
            };
            self.history.note(self.about(Entry::new(Role::Primary, event, reason.clone())));
            let _ = self.orders.send(if matches!(*state, "ready" | "copying") { Order::Note(reason) } else { Order::Tell(reason) });
        }
        self.standing = states;
        self.note();
    }
}
