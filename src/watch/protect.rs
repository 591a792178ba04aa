//! What the primary does: the machine with all that it hears on a thread of its own, since it must answer in time, and the tree
//! on this one, since ptrace binds a tree to a thread.

mod court;

pub use court::{Witness, contact};

use super::again::{self, Calls, Found, Reach, Standing, Whom};
use super::beat::{Beats, Came};
use super::bell::Bell;
use super::comeback::Stood;
use super::control::Control;
use super::copies::{Copies, Known};
use super::ear::Ear;
use super::fence::Fence;
use super::frame;
use super::gate::{Gate, Held, News};
use super::history::{Entry, History};
use super::lease::Lease;
use super::pulse::Pulse;
use super::record::{Back, Claim, Record, Store};
use super::say::Seen;
use super::setup::{EPOCH, Epoch, OVER, PACKETS, WHY, WORD};
use super::start::Start;
use super::state::{Action, Activation, Event, Frame, Hand, Limits, Mark, Path, Primary, Said, Word};
use super::status::{Board, Role, State};
use super::switch::{Course, Still, are_down};
use super::tree::{Order, Tree};
use super::witness::Client;
use crate::dump;
use crate::error::{Error, Result};
use crate::migrate::address::Address;
use crate::migrate::plan::pack;
use crate::migrate::record::Member;
use crate::progress::{Report, phase};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::manager::Manager;
use crate::sys::priority::Urgent;
use crate::sys::signal;
use crate::transport::{self, Destination, How, Peer, Sender as Streams};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the watch.
    pub name: String,
    /// The tree, and how it is copied.
    pub dump: dump::Options,
    /// Where it goes on if this host is lost.
    pub standby: Destination,
    /// On which way.
    pub how: How,
    /// Addresses that go with it.
    pub addresses: Vec<Address>,
    /// It is to live in a pid namespace of its own there.
    pub pid_namespace: bool,
    /// Where the standby keeps its copy; empty for memory.
    pub spool: PathBuf,
    /// What was chosen.
    pub limits: Limits,
    /// The command that ends the standby's host at the primary, and the primary's at the standby.
    pub fence: Option<String>,
    /// Who says which of the two hosts may go on.
    pub witness: Option<Witness>,
    /// The command that is told of what happens, on each of the hosts.
    pub on_event: Option<String>,
    /// The group whose members may ask and command.
    pub control_group: Option<String>,
    /// Set when nothing stands in the way any more.
    pub begun: Arc<AtomicBool>,
}

/// How a watch has ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Name of the standby's machine, as it says itself.
    pub host: String,
    /// Epochs that the standby had as a whole.
    pub epochs: u64,
    /// Bytes that were sent, packed.
    pub bytes: u64,
    /// The longest stop of the tree.
    pub longest: Duration,
    /// All stops, the first epoch's left out.
    pub stops: Vec<Duration>,
    /// What became of packets that were held, if any had to be.
    pub held: Option<Held>,
    /// Somebody else has taken over: the tree stands still here.
    pub demoted: bool,
    /// It runs there, and was ended here.
    pub replaced: bool,
    /// The tree has ended.
    pub ended: bool,
    /// It runs at the standby, as was wanted, and was ended here.
    pub switched: bool,
    /// This host has come back, and stood by: how that has ended.
    pub stood: Option<Stood>,
    /// What is different.
    pub warnings: Vec<String>,
}

/// Watches the tree until that is over: asked for by a signal, by the tree's own end, or since nobody is left to watch for.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    run_over(options, Reach::Called, report)
}

/// The same, with a standby that is reached so.
pub fn run_over(options: &Options, reach: Reach, report: &mut dyn Report) -> Result<Outcome> {
    signal::catch();
    let begun = Instant::now();
    let mut phases = Vec::new();
    let (here, known, door) = match reach {
        Reach::Called => (None, None, None),
        Reach::Calls(here) => (Some(here.peer), here.witness, Some(here.door)),
    };
    let mut start = Start::look(options, begun, known, report, &mut phases)?;
    let control = Control::of(options, &start.store)?;
    let board = control.board();
    let mut witness = court::look(options, &mut start, &board, door.is_some())?;
    let resumes = start.resumed.is_some();
    // Who goes on asks when all is in place that holds what it is not to say.
    let peer = match (resumes, here) {
        // Who has called comes to the door then.
        (true, here) => {
            drop(here);
            None
        }
        (false, Some(peer)) => Some(peer),
        (false, None) => Some(phase(report, &mut phases, "connect", |report| again::connect(options, &start.first, report))?),
    };
    let bell = Bell::default();
    let came = bell.clone();
    let gate = Gate::prepare(options.limits.guarantee, &options.name, &options.addresses, resumes, move || came.ring())?;
    start.lease.holds()?;
    board.holds(gate.clone());
    let found = peer.map(|peer| phase(report, &mut phases, "standby", |_| again::agree(&start.ask, &start.first, peer))).transpose()?;
    let mut outcome = Outcome { host: start.host(), ..Outcome::default() };
    let generation = match &found {
        Some(Found::Standby(standing)) => standing.generation,
        Some(Found::Taken { .. }) => return Err(Error::link("the standby has taken over what has not begun")),
        None => start.first.generation.unwrap_or_default(),
    };
    court::begin(options, witness.as_mut().filter(|_| !resumes), generation)?;
    let (events, from_tree) = channel();
    let (orders, to_tree) = channel();
    let (packets, came) = channel();
    let (wishes, rings) = (events.clone(), bell.clone());
    board.granted_by(move |wish| {
        let _ = wishes.send(wish.event());
        rings.ring();
    });
    let (mut record, machine) = start.machine(generation);
    record.door = door.as_ref().map(|door| door.token().to_owned());
    let Start { store, claim, tree: _tree, lease, ask, first, .. } = start;
    // From here on a signal ends the watch, not what is just being done.
    signal::pass();
    let complaints = orders.clone();
    let complain = move |text: &str| drop(complaints.send(Order::Tell(text.to_owned())));
    let history = History::begin(&store, &options.name, Role::Primary, options.on_event.clone(), complain)?;
    let manager = Arc::new(Manager::of_environment());
    let copies = Copies::default();
    let root = Member::of(options.dump.pid)?;
    let mut end = End {
        machine,
        fence: options.fence.clone(),
        fencing: None,
        stale: 0,
        begun,
        peer: None,
        beats: None,
        ear: None,
        known: copies.known(),
        link: 0,
        calls: Calls::new(ask, options.limits.again, door)?,
        witness,
        whom: Whom { generation: Some(generation), ..first },
        tree: root,
        limits: options.limits,
        bell: bell.clone(),
        lease,
        gate: gate.clone(),
        store,
        record,
        events: from_tree,
        orders,
        complaint: None,
        course: Course::default(),
        packets: came,
        history,
        manager: manager.clone(),
        board: board.clone(),
        _claim: claim,
    };
    let mut tree = Tree {
        options,
        copies,
        moving: None,
        still: Still::new(packets),
        events,
        bell,
        orders: to_tree,
        gate: gate.clone(),
        board: board.clone(),
        root,
        ended: false,
        asked: 0,
        pulse: Pulse::new(options.limits.guarantee),
        shown: None,
    };
    if let Some(Found::Standby(standing)) = found {
        outcome.host.clone_from(&standing.peer.hello.host);
        outcome.warnings.clone_from(&standing.warnings);
        outcome.warnings.iter().for_each(|warning| report.warning(warning));
        // It is used before anything else is done: the machine begins with a link.
        let sender = end.meet(*standing)?;
        end.history.note(end.about(Entry::new(Role::Primary, "begun", format!("process {} is watched", root.pid))));
        tree.copies.link(end.link, sender, None);
    }
    if resumes {
        end.history.note(end.about(Entry::new(Role::Primary, "resumed", "the meio of this watch was killed")));
    }
    options.begun.store(true, Ordering::Relaxed);
    manager.ready();
    let thread = std::thread::Builder::new().name("watch".into()).spawn(move || end.run())?;
    let done = tree.serve(&mut outcome, report);
    // What runs elsewhere is stood by for next.
    if !outcome.replaced {
        manager.stopping();
    }
    let ended = thread.join().map_err(|_| Error::other("the watch has failed"));
    outcome.held = gate.held();
    // Who has asked for the end hears of it when nothing is left.
    drop(gate);
    let alone = matches!(board.status().state, State::Cut | State::AtRisk);
    let unheard = alone.then(|| format!("nothing was heard of {}: clean up there, too: meio unwatch {}", outcome.host, options.name));
    board.end(ended.clone().map(|()| unheard.into_iter().collect()));
    done.and(ended)?;
    Ok(outcome)
}

/// The machine's side.
struct End {
    machine: Primary,
    begun: Instant,
    /// The link, where there is one.
    peer: Option<Peer>,
    /// Its number.
    link: u64,
    beats: Option<Beats>,
    ear: Option<Ear>,
    known: Known,
    calls: Calls,
    witness: Option<Client>,
    whom: Whom,
    tree: Member,
    limits: Limits,
    bell: Bell,
    lease: Lease,
    gate: Gate,
    store: Store,
    record: Record,
    events: Receiver<Event>,
    orders: Sender<Order>,
    board: Arc<Board>,
    fence: Option<String>,
    fencing: Option<Fence>,
    /// Frames that were not heeded, as far as that was said.
    stale: u64,
    /// Why nobody could be called, as far as that was said.
    complaint: Option<String>,
    /// Of a switch-over.
    course: Course,
    /// What came for the tree since it stands still.
    packets: Receiver<Vec<Bytes>>,
    history: History,
    /// Who has started this meio, if that wants to know.
    manager: Arc<Manager>,
    _claim: Claim,
}

impl End {
    fn run(mut self) {
        // What it does takes little time, and behind a busy tree all clients would wait for it.
        let _urgent = Urgent::begin();
        let done = self.feed();
        // Who was overtaken is to know it when it is started again, unless a user has it forgotten.
        if done.is_ok() && (!self.machine.is_demoted() || self.board.is_over()) {
            if !self.machine.has_switched() && !self.machine.is_demoted() {
                self.see_off();
            }
            let _ = self.store.forget(&self.record.name);
        }
        let _ = self.orders.send(Order::End(done));
    }

    /// A standby that has heard of the end tidies up before it is gone.
    fn see_off(&mut self) {
        const MOMENT: Duration = Duration::from_secs(2);
        let until = Instant::now() + MOMENT;
        let Some(peer) = &mut self.peer else { return };
        while peer.link.failure().is_none() && Instant::now() < until {
            let _ = peer.link.receive(Some(MOMENT / 100));
        }
    }

    /// Until there is nothing left to be done.
    fn feed(&mut self) -> Result<()> {
        let mut events = VecDeque::from([Event::Start]);
        loop {
            let Some(next) = events.pop_front().or_else(|| self.next()) else { continue };
            // The standby says so by the frame itself, which may come by either path.
            if let Event::Heard(_, Frame { word: Word::Standby { hand: Hand::Refused, .. }, .. }) = &next
                && let Some(witness) = self.witness.as_ref().filter(|_| self.machine.is_yielding())
            {
                self.course.why(format!("the witness {} did not let it", witness.at()).as_bytes());
            }
            let actions = self.machine.step(next, self.begun.elapsed());
            for action in actions {
                if action == Action::End {
                    return Ok(());
                }
                events.extend(self.perform(action)?);
            }
        }
    }

    /// What has happened; waits a moment for something.
    fn next(&mut self) -> Option<Event> {
        const STEP: Duration = Duration::from_millis(2);
        const SOON: Duration = Duration::from_micros(200);
        /// What does not wake who waits for the link is looked at so often.
        const BEATS: Duration = Duration::from_millis(8);
        self.forward();
        self.manager.lives();
        match self.events.try_recv() {
            // Another one may have been lost meanwhile.
            Ok(Event::Linked) if self.peer.is_none() || !self.known.uses(self.link) => return None,
            Ok(event) => return Some(event),
            Err(_) => {}
        }
        if self.peer.is_some() && self.calls.knocks() {
            return self.unlink(&Error::link("it has called again"));
        }
        let news = self.gate.news();
        if news == News::Waits {
            return Some(Event::Wanted);
        }
        match self.beats.as_mut().map_or(Came::Nothing, Beats::receive) {
            Came::Frame(heard) => return Some(Event::Heard(Path::Beat, heard)),
            Came::Refused if self.peer.is_none() => return Some(Event::Gone),
            _ => {}
        }
        if let Some(done) = self.fencing.as_ref().and_then(Fence::done) {
            self.fencing = None;
            return Some(Event::Fenced(done));
        }
        if self.peer.is_some()
            && let Some(why) = self.known.failure(self.link)
        {
            return self.unlink(&why);
        }
        if let Some(event) = self.ruling().or_else(|| self.answer()) {
            return Some(event);
        }
        let due = self.machine.wake().is_some_and(|wake| wake <= self.begun.elapsed());
        let Some(peer) = &mut self.peer else {
            self.calls.call(&self.whom);
            if !due {
                std::thread::sleep(STEP);
            }
            return due.then_some(Event::Tick);
        };
        // What has come is heard first: it may be what keeps the other one from being lost.
        // What comes for a tree that stands still does not, either.
        let most = match (news, self.machine.is_yielding()) {
            (News::Gathers, _) => SOON,
            (_, true) => STEP,
            _ => BEATS,
        };
        let wait = self.machine.wake().map_or(most, |wake| wake.saturating_sub(self.begun.elapsed()).min(most));
        match peer.link.receive(Some(wait)) {
            Ok(came) if came.kind == WORD => frame::read(&came.payload).map(|heard| Event::Heard(Path::Link, heard)),
            Ok(came) if came.kind == WHY => {
                self.course.why(&came.payload);
                None
            }
            Ok(came) => (came.kind == OVER).then_some(Event::Over),
            Err(_) => match peer.link.failure() {
                Some(why) => self.unlink(&why),
                None => due.then_some(Event::Tick),
            },
        }
    }

    /// What comes for a tree that stands still is wanted where it will run.
    fn forward(&self) {
        const TOGETHER: usize = 64;
        let generation = self.machine.generation();
        for some in self.packets.try_iter().collect::<Vec<_>>().iter().flat_map(|all| all.chunks(TOGETHER)) {
            if let (Some(peer), Ok(payload)) = (&self.peer, pack(&some)) {
                let _ = peer.link.send(&transport::Frame { kind: PACKETS, generation, payload });
            }
        }
    }

    /// The link is over.
    fn unlink(&mut self, why: &Error) -> Option<Event> {
        self.bell.hang(None);
        let peer = self.peer.take()?;
        self.tell(&format!("the link to the standby is lost: {}", why.message));
        // To end it takes its time where nothing gets through.
        let _ = std::thread::Builder::new().name("unlink".into()).spawn(move || drop(peer));
        Some(Event::LinkLost)
    }

    fn tell(&mut self, text: &str) {
        if self.complaint.as_deref() != Some(text) {
            self.complaint = Some(text.to_owned());
            let _ = self.orders.send(Order::Tell(text.to_owned()));
        }
    }

    /// Somebody who was called has answered.
    fn answer(&mut self) -> Option<Event> {
        let standing = match self.calls.answer()? {
            // It is not known there that it was taken over: nobody here can say that it was not.
            Ok(Found::Standby(_)) if self.machine.is_demoted() => return None,
            Ok(Found::Standby(standing)) => standing,
            Ok(Found::Taken { generation, instance, runs }) => {
                let (whole, hand) = (Mark::default(), if runs { Hand::Runs } else { Hand::Nothing });
                let word = Word::Standby { whole, ready: true, left: false, full: false, echo: 0, hand };
                return Some(Event::Heard(Path::Link, Frame { generation, instance, sequence: 0, word }));
            }
            Err(e) => {
                self.tell(&format!("nobody stands by: {}", e.message));
                return None;
            }
        };
        let host = &standing.peer.hello.host;
        let known = self.record.back.as_ref().map_or(host, |back| &back.host);
        if known != host && !self.machine.is_free() {
            self.tell(&format!("nobody stands by: {host} answers, which is not {known}"));
            return None;
        }
        let images = standing.images;
        match self.meet(*standing) {
            Ok(streams) => drop(self.orders.send(Order::Link(self.link, streams, images))),
            Err(e) => self.tell(&format!("nobody stands by: {}", e.message)),
        }
        None
    }

    /// There is somebody who stands by.
    fn meet(&mut self, standing: Standing) -> Result<Streams> {
        let Standing { peer, sender, instance, beats, token, .. } = standing;
        self.whom.instance = instance;
        if let Some(beats) = beats {
            self.ear = Some(Ear::listen(&beats, self.bell.clone())?);
            self.beats = Some(beats);
        }
        self.whom.fresh = self.beats.is_none();
        if let Some(token) = token {
            self.whom.token = Some(token.clone());
            let (tree, limits, host) = (self.tree, self.limits, peer.hello.host.clone());
            self.record.about.other.clone_from(&host);
            let witness = self.calls.witness();
            self.record.back = Some(Back { tree, limits, host, instance, token, witness });
            self.store.write(&self.record)?;
        }
        let (host, generation) = (peer.hello.host.clone(), self.machine.generation());
        self.board.note(|status| (status.other, status.generation) = (Some(host), generation));
        self.complaint = None;
        self.link += 1;
        self.bell.hang(Some(peer.link.waker()));
        self.peer = Some(peer);
        Ok(sender)
    }

    fn perform(&mut self, action: Action) -> Result<Option<Event>> {
        let generation = self.machine.generation();
        let send = |peer: &Peer, kind, payload| drop(peer.link.send(&transport::Frame { kind, generation, payload }));
        if let Action::Send(_, Frame { word: Word::Primary { go: true, .. }, .. }) = action {
            self.course.starts();
        }
        match action {
            Action::Send(Path::Link, word) => self.peer.iter().for_each(|peer| send(peer, WORD, frame::write(&word).to_vec())),
            Action::Send(Path::Beat, word) => drop(self.beats.as_mut().map_or(Ok(false), |beats| beats.send(&word))?),
            Action::Ask(generation) => self.witness.iter_mut().for_each(|witness| witness.ask(generation)),
            Action::Cede(generation) => self.witness.iter_mut().for_each(|witness| witness.cede(generation)),
            Action::Record(activation) => {
                self.record.activation = Some(activation);
                // Who is overtaken asks as the one that it was.
                if matches!(activation, Activation::Primary { .. }) {
                    self.whom.generation = Some(generation);
                }
                return Ok(Some(Event::Recorded(self.store.write(&self.record).is_ok())));
            }
            Action::Capture(mark) => drop(self.orders.send(Order::Capture(mark))),
            Action::Last(mark) => {
                self.course.begins(mark);
                let _ = self.orders.send(Order::Last(mark));
            }
            Action::Thaw => drop(self.orders.send(Order::Thaw)),
            Action::Finish => {
                let host = self.record.back.as_ref().map_or("", |back| &back.host);
                self.board.switch_ends(Ok(self.course.ends(host, generation)));
                let _ = self.orders.send(Order::Finish);
            }
            Action::Ship { mark, ready } => {
                if let (Some(peer), Some(image)) = (&self.peer, self.known.image(mark)) {
                    send(peer, EPOCH, pack(&Epoch { generation, mark, ready, image })?);
                }
                return Ok(Some(Event::Sent(mark)));
            }
            Action::Hold => self.gate.close()?,
            Action::Release(mark) => {
                self.gate.release(mark)?;
                self.board.whole(mark);
                self.note();
                let _ = self.orders.send(Order::Whole(mark));
            }
            Action::Discard(mark) => drop(self.orders.send(Order::Discard(mark))),
            Action::Relink => return Ok(self.unlink(&Error::link("nothing comes over it"))),
            Action::Lease(until) => self.lease.until(until)?,
            Action::Free => {
                self.lease.free()?;
                self.gate.open()?;
            }
            Action::Hide => {
                self.lease.hide()?;
                if self.machine.is_yielding() {
                    self.course.copied();
                    are_down(&self.record.about.addresses);
                }
            }
            Action::Show => self.board.heard(),
            Action::Demote => {
                self.lease.hide()?;
                let _ = self.orders.send(Order::Demote);
            }
            Action::Reap => drop(self.orders.send(Order::Reap)),
            Action::Fence => {
                self.fencing =
                    self.fence.as_ref().map(|command| Fence::run(command, self.record.back.as_ref().map_or("", |back| &back.host)))
            }
            Action::Say(said) => {
                self.board.said(said);
                self.note();
                let mut reason = None;
                let failure = match said {
                    Said::Stayed => Some(self.course.stays(self.peer.is_some())),
                    Said::Unsure => Some(self.course.unsure(&self.record.about.other)),
                    _ => None,
                };
                if let Some(e) = failure {
                    reason = Some(e.message.clone());
                    self.board.switch_ends(Err(e));
                }
                self.history.said(said, |entry| {
                    self.manager.status(&format!("{}: {}", entry.event, entry.reason));
                    let switched = self.board.switched().1.and_then(Result::ok).filter(|_| said == Said::Switched).unwrap_or_default();
                    let frozen = Some(switched.frozen_ms).filter(|_| said == Said::Switched);
                    Entry { reason: reason.unwrap_or(entry.reason.clone()), ..self.about(entry) }.took(frozen, &switched.steps)
                });
                let stale = self.machine.stale() + self.beats.as_ref().map_or(0, |beats| beats.dropped().all());
                let fresh = stale - std::mem::replace(&mut self.stale, stale);
                let seen = Seen { jitter: self.machine.jitter(), interval: self.machine.interval(), stale: fresh };
                drop(self.orders.send(Order::Say(said, seen)));
            }
            _ => {}
        }
        Ok(None)
    }

    /// With what is known of how things stand.
    fn about(&self, entry: Entry) -> Entry {
        let other = Some(self.record.about.other.clone()).filter(|other| !other.is_empty());
        Entry { other, generation: self.machine.generation(), epoch: self.board.epoch(), ..entry }
    }

    /// What people may ask for.
    fn note(&self) {
        let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        self.board.note(|status| {
            status.generation = self.machine.generation();
            status.interval_ms = Some(ms(self.machine.interval()));
            status.jitter_ms = self.machine.jitter().map(ms);
            status.unheeded = self.machine.stale() + self.beats.as_ref().map_or(0, |beats| beats.dropped().all());
        });
    }
}
