//! What the primary does: the machine with all that it hears on a thread of its own, since it must answer in time, and the tree
//! on this one, since ptrace binds a tree to a thread.

mod court;
mod fill;
mod more;
mod others;

pub use court::{Witness, contact};

use super::again::{self, Reach, Standing, Whom};
use super::bell::Bell;
use super::change;
use super::comeback::Stood;
use super::control::Control;
use super::copies::{Seen as Known, Ways};
use super::fence::Fence;
use super::frame;
use super::gate::{Gate, Held};
use super::history::{Entry, History};
use super::lease::Lease;
use super::nodes;
use super::pulse::Pulse;
use super::record::{Claim, Record, Store};
use super::ring::Among;
use super::say::Seen;
use super::setup::{EPOCH, Epoch, Setup, WORD};
use super::start::Start;
use super::state::{Acks, Action, Activation, Event, Frame, Group, Hand, Limits, Mark, Path, Primary, Said, Word};
use super::status::{Board, Role, State, ms};
use super::switch::{Course, Still, are_down};
use super::tree::{Order, Tree};
use super::witness::Arbiter;
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
use crate::transport::{self, Destination, How, Peer};
use others::Other;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the watch.
    pub name: String,
    /// The tree, and how it is copied.
    pub dump: dump::Options,
    /// Where it goes on if this host is lost,
    pub standby: Destination,
    /// or where, in this order.
    pub others: Vec<Destination>,
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
    /// How many of several standbys are waited for.
    pub acks: Acks,
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
    /// Why others do not stand by, as was wanted before.
    pub refused: Option<String>,
    /// How this one belongs to several hosts, of whom any may be the primary.
    pub among: Option<Among>,
    /// The standby is to take over, as is wanted; with whom it goes on if it does not.
    pub hands: Option<Box<Options>>,
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
    /// It is to go on so.
    pub changes: Option<Box<Options>>,
    /// What is different.
    pub warnings: Vec<String>,
}

impl Outcome {
    /// With what was done before.
    pub fn after(mut self, before: &Outcome) -> Outcome {
        self.epochs += before.epochs;
        self.bytes += before.bytes;
        self.longest = self.longest.max(before.longest);
        self.stops.splice(0..0, before.stops.iter().copied());
        self.warnings.splice(0..0, before.warnings.iter().cloned());
        self
    }
}

/// Watches the tree until that is over: asked for by a signal, by the tree's own end, or since nobody is left to watch for.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    run_over(options, Reach::Called, report)
}

/// The same, with standbys that are reached so.
pub fn run_over(options: &Options, reach: Reach, report: &mut dyn Report) -> Result<Outcome> {
    signal::catch();
    let begun = Instant::now();
    let mut phases = Vec::new();
    let (here, contact, porch, claim) = match reach {
        Reach::Called => (None, None, None, None),
        Reach::Calls(here) => (Some(here.peers), here.witness, Some(here.porch), here.claim),
    };
    let mut start = Start::look(options, begun, (contact, claim), report, &mut phases)?;
    let control = Control::of(options, &start.store)?;
    let board = control.board();
    let mut witness = court::look(options, &mut start, &board)?;
    let resumes = start.resumed.is_some();
    // Who goes on asks when all is in place that holds what it is not to say.
    let asks = others::asks(&start.ask);
    let peers = match (resumes, here) {
        // Who has called comes to the door then.
        (true, here) => {
            let not_yet = Setup::NotYet { why: "a meio was killed there, and what it has left is taken up".to_owned() };
            here.iter().flatten().for_each(|peer| drop(again::say(peer, &not_yet)));
            Vec::new()
        }
        (false, Some(peers)) => peers,
        (false, None) => phase(report, &mut phases, "connect", |report| others::connect(&asks, &start.first, report))?,
    };
    let bell = Bell::default();
    let came = bell.clone();
    let gate = Gate::prepare(options.limits.guarantee, &options.name, &options.addresses, resumes, move || came.ring())?;
    start.lease.holds()?;
    board.holds(gate.clone());
    board.hosts.begin(nodes::hostname(), options.limits.timeout);
    let found = phase(report, &mut phases, "standby", |_| others::agree(&asks, &start.first, peers))?;
    let mut outcome = Outcome { host: start.host(), ..Outcome::default() };
    let generation = found.first().map_or(start.first.generation.unwrap_or_default(), |(_, standing)| standing.generation);
    court::begin(options, witness.as_mut().filter(|_| !resumes), generation)?;
    let (events, from_tree) = channel();
    let (orders, to_tree) = channel();
    let (packets, came) = channel();
    let (wishes, rings) = (events.clone(), bell.clone());
    board.granted_by(move |wish| {
        let _ = wishes.send((None, wish.event()));
        rings.ring();
    });
    let changes = Arc::<Mutex<Option<Box<Options>>>>::default();
    if porch.is_none() || options.among.is_some() {
        let (events, bell, theirs, ask) = (events.clone(), bell.clone(), changes.clone(), start.ask.clone());
        let over = move |next| {
            *theirs.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(next));
            let _ = events.send((None, Event::Over));
            bell.ring();
        };
        if let Some(porch) = porch.as_ref().filter(|_| options.among.is_some() && options.hands.is_none()) {
            change::joined(&board, porch, options, over.clone());
        }
        change::changes(&board, ask, over);
    }
    let (mut record, machine) = start.machine(generation);
    record.door = porch.as_ref().map(|porch| porch.token().to_owned());
    let known = start.known(asks.len(), generation);
    let Start { store, claim, tree: _tree, lease, .. } = start;
    // From here on a signal ends the watch, not what is just being done.
    signal::pass();
    let complaints = orders.clone();
    let complain = move |text: &str| drop(complaints.send(Order::Tell(text.to_owned())));
    let history = History::begin(&store, &options.name, Role::Primary, options.on_event.clone(), complain)?;
    let manager = Arc::new(Manager::of_environment());
    let copies = Ways::to(options.limits.standbys, options.limits.quorum());
    let group = Group::new(options.limits);
    let others = others::new(asks, known, options.limits.again, porch.as_ref());
    let root = Member::of(options.dump.pid)?;
    let mut end = End {
        machine,
        fence: options.fence.clone(),
        fencing: None,
        stale: 0,
        begun,
        known: copies.known(),
        others,
        group,
        links: 0,
        more: VecDeque::new(),
        announced: VecDeque::new(),
        shown: begun,
        standing: Vec::new(),
        witness,
        tree: root,
        limits: options.limits,
        bell: bell.clone(),
        lease,
        gate: gate.clone(),
        store,
        record,
        events: from_tree,
        orders,
        course: Course::default(),
        packets: came,
        history,
        manager: manager.clone(),
        board: board.clone(),
        next: changes.clone(),
        lets_in: porch.is_some(),
        among: options.among.is_some(),
        hands: options.hands.clone(),
        _claim: claim,
    };
    let mut tree = Tree {
        options,
        copies,
        moving: None,
        fills: None,
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
    for (of, (whom, standing)) in found.into_iter().enumerate() {
        standing.warnings.iter().for_each(|warning| report.warning(warning));
        outcome.warnings.extend(standing.warnings.iter().cloned());
        // It is used before anything else is done: the machine begins with a link.
        end.others[of].whom.seat = whom.seat;
        let sender = end.meet(of, standing)?;
        tree.copies.link(of, end.others[of].link, sender, None);
        let _ = end.with(of, Event::Linked);
    }
    if !resumes {
        outcome.host = end.hosts();
        end.history.note(end.about(Entry::new(Role::Primary, "begun", format!("process {} is watched", root.pid))));
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
    let over = !outcome.demoted && !outcome.replaced && !outcome.switched && !outcome.ended;
    outcome.changes = changes.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|_| over);
    Ok(outcome)
}

/// The machine's side.
struct End {
    machine: Primary,
    begun: Instant,
    /// Who stands by, in the user's order,
    others: Vec<Other>,
    /// and what they are together.
    group: Group,
    /// Number of the last link.
    links: u64,
    /// What is yet to be told to the machine.
    more: VecDeque<Event>,
    /// Epochs that were said to be on their way, to several.
    announced: VecDeque<(Mark, bool)>,
    /// When it was looked last how several stand, and how they did.
    shown: Instant,
    standing: Vec<&'static str>,
    known: Known,
    witness: Option<Box<dyn Arbiter>>,
    tree: Member,
    limits: Limits,
    bell: Bell,
    lease: Lease,
    gate: Gate,
    store: Store,
    record: Record,
    events: Receiver<(Option<usize>, Event)>,
    orders: Sender<Order>,
    board: Arc<Board>,
    fence: Option<String>,
    fencing: Option<Fence>,
    /// Frames that were not heeded, as far as that was said.
    stale: u64,
    /// Of a switch-over.
    course: Course,
    /// What came for the tree since it stands still.
    packets: Receiver<Vec<Bytes>>,
    history: History,
    /// Who has started this meio, if that wants to know.
    manager: Arc<Manager>,
    /// With whom it is to go on,
    next: Arc<Mutex<Option<Box<Options>>>>,
    /// who come by themselves,
    lets_in: bool,
    /// and belong to it, each of them as its primary or not.
    among: bool,
    /// With whom it goes on if the standby does not take over, as is wanted.
    hands: Option<Box<Options>>,
    _claim: Arc<Claim>,
}

impl End {
    fn run(mut self) {
        // What it does takes little time, and behind a busy tree all clients would wait for it.
        let _urgent = Urgent::begin();
        let done = self.feed();
        // Who was overtaken is to know it when it is started again, unless a user has it forgotten.
        if done.is_ok() && (!self.machine.is_demoted() || self.board.is_over()) {
            if !self.machine.has_switched() && !self.machine.is_demoted() && !self.follows() {
                if self.lets_in {
                    self.history.note(Entry::ended(Role::Primary, self.machine.generation()));
                }
                self.see_off();
            }
            self.forget();
        }
        let _ = self.orders.send(Order::End(done));
    }

    /// A standby that has heard of the end tidies up before it is gone.
    fn see_off(&mut self) {
        const MOMENT: Duration = Duration::from_secs(2);
        let until = Instant::now() + MOMENT;
        for peer in self.others.iter_mut().filter_map(|other| other.peer.as_mut()) {
            while peer.link.failure().is_none() && Instant::now() < until {
                let _ = peer.link.receive(Some(MOMENT / 100));
            }
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

    fn perform(&mut self, action: Action) -> Result<Option<Event>> {
        let generation = self.machine.generation();
        let send = |peer: &Peer, kind, payload| drop(peer.link.send(&transport::Frame { kind, generation, payload }));
        if let Action::Send(_, Frame { word: Word::Primary { go: true, .. }, .. }) = action {
            self.course.starts();
        }
        match action {
            Action::Send(Path::Link, word) => {
                let peers = self.others.iter().filter_map(|other| other.peer.as_ref());
                peers.for_each(|peer| send(peer, WORD, frame::write(&word).to_vec()));
            }
            Action::Send(Path::Beat, word) => {
                for beats in self.others.iter_mut().filter_map(|other| other.beats.as_mut()) {
                    beats.send(&word)?;
                }
            }
            Action::Ask(generation) => self.witness.iter_mut().for_each(|witness| witness.ask(generation)),
            Action::Cede(generation) => self.witness.iter_mut().for_each(|witness| witness.cede(generation)),
            Action::Record(activation) => {
                self.record.activation = Some(activation);
                // Who is overtaken asks as the one that it was.
                if matches!(activation, Activation::Primary { .. }) {
                    self.others.iter_mut().for_each(|other| other.whom.generation = Some(generation));
                }
                return Ok(Some(Event::Recorded(self.store.write(&self.record).is_ok())));
            }
            Action::Capture(mark) => {
                if mark.number == 1 {
                    self.begins(mark.series);
                }
                let _ = self.orders.send(Order::Capture(mark));
            }
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
                for (of, other) in self.others.iter().enumerate() {
                    // Whoever has just come back knows nothing of images of the link before.
                    let image = self.known.image(of, mark).filter(|_| self.known.uses(of, other.link));
                    if let (Some(peer), Some(image)) = (&other.peer, image) {
                        send(peer, EPOCH, pack(&Epoch { generation, mark, ready, image, part: self.known.part(of, mark) })?);
                    }
                }
                self.announce(mark, ready);
                return Ok(Some(Event::Sent(mark)));
            }
            Action::Hold => self.gate.close()?,
            Action::Release(mark) => {
                self.gate.release(mark)?;
                self.board.whole(mark);
                self.note();
                let _ = self.orders.send(Order::Whole(mark));
            }
            Action::Discard(mark) => {
                // The last epoch of a tree that stands still is whole.
                if self.machine.is_yielding() {
                    self.board.whole(mark);
                    self.note();
                }
                let _ = self.orders.send(Order::Discard(mark));
            }
            Action::Relink => self.relink(),
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
                    Said::Stayed => Some(self.course.stays(self.others.iter().any(|other| other.peer.is_some()))),
                    Said::Unsure => Some(self.course.unsure(&self.record.about.other)),
                    _ => None,
                };
                if let Some(e) = failure {
                    reason = Some(e.message.clone());
                    self.board.switch_ends(Err(e));
                    if said == Said::Stayed {
                        self.goes_back();
                    }
                }
                self.history.said(said, |entry| {
                    self.manager.status(&format!("{}: {}", entry.event, entry.reason));
                    let switched = self.board.switched().1.and_then(Result::ok).filter(|_| said == Said::Switched).unwrap_or_default();
                    let frozen = Some(switched.frozen_ms).filter(|_| said == Said::Switched);
                    Entry { reason: reason.unwrap_or(entry.reason.clone()), ..self.about(entry) }.took(frozen, &switched.steps)
                });
                let stale = self.unheeded();
                let fresh = stale - std::mem::replace(&mut self.stale, stale);
                let seen = Seen { jitter: self.jitter(), interval: self.machine.interval(), stale: fresh };
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
        self.board.note(|status| {
            status.generation = self.machine.generation();
            status.interval_ms = Some(ms(self.machine.interval()));
            status.jitter_ms = self.jitter().map(ms);
            status.unheeded = self.unheeded();
            status.standbys = self.stands();
        });
    }
}
