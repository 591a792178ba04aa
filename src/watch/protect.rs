//! What the primary does: the machine with all that it hears on a thread of its own, since it must answer in time, and the tree
//! on this one, since ptrace binds a tree to a thread.

use super::beat::{Beats, Came, Key};
use super::fence::Fence;
use super::gate::{Gate, Held};
use super::lease::Lease;
use super::record::{Claim, Record, Store};
use super::setup::{EPOCH, Epoch, SETUP, Setup, WORD};
use super::state::{Action, Activation, Event, Guarantee, Limits, Mark, Path, Primary, Said};
use super::{fit, frame};
use crate::dump::{self, moving::Moving};
use crate::error::{Error, Kind, Result};
use crate::migrate::address::Address;
use crate::migrate::frozen::silence;
use crate::migrate::plan::{Plan, pack, unpack};
use crate::migrate::rounds::Bulk;
use crate::progress::{Report, phase};
use crate::sys::signal;
use crate::tracee::freeze::freeze;
use crate::transport::{self, Destination, How, Peer, Waker};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
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
    /// What is different.
    pub warnings: Vec<String>,
}

/// What was measured until something was said.
#[derive(Debug, Clone, Copy)]
struct Seen {
    jitter: Option<Duration>,
    interval: Duration,
    stale: u64,
}

impl Seen {
    fn tell(self, report: &mut dyn Report) {
        let jitter = self.jitter.map_or(String::new(), |most| format!("heartbeats are up to {most:.1?} off; "));
        report.note(&format!("{jitter}an epoch every {:.0?}; {} frames were not heeded", self.interval, self.stale));
    }
}

/// What the thread with the machine wants of the one with the tree.
#[derive(Debug)]
enum Order {
    Capture(Mark),
    Demote,
    Say(Said, Seen),
    /// The standby has had one more epoch.
    Whole,
    End(Result<()>),
}

/// Watches the tree until that is over: asked for by a signal, by the tree's own end, or since nobody is left to watch for.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    signal::catch();
    let begun = Instant::now();
    let mut phases = Vec::new();
    let store = Store::open()?;
    let holds = options.limits.guarantee == Guarantee::Hold;
    let lease = Lease::take(&options.addresses, begun, Some(options.name.as_str()).filter(|_| holds))?;
    let claim = store.claim(&options.name)?;
    let plan = phase(report, &mut phases, "check", |_| fit::plan(options))?;
    let mut peer =
        phase(report, &mut phases, "connect", |report| transport::connect_to(&options.standby, &options.how, "agent --watch", report))?;
    let key = Key::make()?;
    let waker = peer.link.waker();
    let came = waker.clone();
    let gate = Gate::prepare(options.limits.guarantee, &options.name, &options.addresses, move || came.wake())?;
    lease.holds()?;
    let (record, beats, warnings) = phase(report, &mut phases, "standby", |_| agree(options, &store, &mut peer, plan, &key))?;
    peer.open_bulk()?;
    let bulk = Bulk::new(peer.sender()?);
    let mut outcome = Outcome { host: peer.hello.host.clone(), warnings, ..Outcome::default() };
    outcome.warnings.iter().for_each(|warning| report.warning(warning));
    let generation = record.activation.map_or(0, |a| a.generation());
    let (events, from_tree) = channel();
    let (orders, to_tree) = channel();
    let machine = Primary::begin(generation, options.limits);
    // From here on a signal ends the watch, not what is just being done.
    signal::pass();
    let end = End {
        machine,
        fence: options.fence.clone(),
        fencing: None,
        stale: 0,
        begun,
        peer,
        beats,
        lease,
        gate: gate.clone(),
        store,
        record,
        events: from_tree,
        orders,
        image: 0,
        linked: true,
        _claim: claim,
    };
    let thread = std::thread::Builder::new().name("watch".into()).spawn(move || end.run())?;
    let tree = Tree { options, bulk, moving: None, events, waker, orders: to_tree, gate: gate.clone(), asked: 0, shown: None };
    let done = tree.serve(&mut outcome, report);
    let ended = thread.join().map_err(|_| Error::other("the watch has failed"));
    outcome.held = gate.held();
    done.and(ended)?;
    Ok(outcome)
}

/// Everything that stands in the way is said before anything is touched.
fn agree(options: &Options, store: &Store, peer: &mut Peer, plan: Plan, key: &Key) -> Result<(Record, Beats, Vec<String>)> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let watch = u128::from_le_bytes(Key::make()?.bytes()[..16].try_into().unwrap_or_default());
    let say = |peer: &Peer, setup: &Setup| peer.link.send(&transport::Frame { kind: SETUP, generation: 0, payload: pack(setup)? });
    say(peer, &Setup::Ask { name: options.name.clone(), watch, plan: Box::new(plan), key: *key.bytes() })?;
    let frame = peer.link.receive(Some(PATIENCE))?;
    let Setup::Answer { details, generation, instance: _, port } = unpack(&frame.payload)? else {
        return Err(Error::link("the standby says something else than was asked"));
    };
    if !details.refusals.is_empty() {
        let what = format!("process {} cannot live on {}", options.dump.pid, options.standby.host);
        return Err(Error::refused(&what, details.refusals));
    }
    let own = store.read(&options.name)?.and_then(|record| record.activation).map_or(0, |a| a.generation());
    let generation = own.max(generation) + 1;
    let record =
        Record { name: options.name.clone(), watch, activation: Some(Activation::Primary { generation, instance: 0 }), instance: 0 };
    let beats = Beats::to(key, address(&options.standby.host, port)?)?;
    if let Some(own) = beats.local().filter(|own| options.addresses.iter().any(|a| a.ip == own.ip())) {
        let what = format!("the way to {} begins at {}, which goes with the tree", options.standby.host, own.ip());
        return Err(Error::new(Kind::Usage, what).help("name the standby by an address to which this host has another way"));
    }
    say(peer, &Setup::Begin { generation, limits: options.limits, fence: options.fence.clone() })?;
    Ok((record, beats, details.warnings))
}

/// Where heartbeats go to.
fn address(host: &str, port: u16) -> Result<SocketAddr> {
    let found = (host, port).to_socket_addrs().ok().and_then(|mut all| all.next());
    found.ok_or_else(|| Error::link(format!("{host} has no address for heartbeats")).help("name the standby as it is known here"))
}

/// The tree's side.
struct Tree<'o> {
    options: &'o Options,
    bulk: Bulk,
    moving: Option<Moving<'o>>,
    events: Sender<Event>,
    /// Of who takes the events.
    waker: Waker,
    orders: Receiver<Order>,
    gate: Gate,
    /// How often it was asked to end.
    asked: u32,
    /// When it was said last how things stand.
    shown: Option<Instant>,
}

/// Tells of one epoch among many: of how it was made nobody wants to know.
struct Steady<'r>(&'r mut dyn Report);

impl Report for Steady<'_> {
    fn started(&mut self, _: &'static str) {}
    fn ended(&mut self, _: &'static str, _: Duration) {}
    fn bytes(&mut self, _: u64, _: Option<u64>) {}
    fn note(&mut self, _: &str) {}
    fn warning(&mut self, text: &str) {
        self.0.warning(text);
    }
    fn last_words(&mut self, e: &Error) {
        self.0.last_words(e);
    }
    fn clear(&mut self) {}
}

impl Tree<'_> {
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
        self.waker.wake();
    }

    fn serve(mut self, outcome: &mut Outcome, report: &mut dyn Report) -> Result<()> {
        const STEP: Duration = Duration::from_millis(50);
        let mut failed = None;
        loop {
            for signal in signal::passed().chain(signal::take()) {
                let wanted = signal == libc::SIGUSR1;
                self.asked += u32::from(!wanted);
                self.tell(if wanted { Event::Wanted } else { Event::Over });
            }
            match self.orders.recv_timeout(STEP) {
                Ok(Order::Capture(mark)) => match self.capture(mark, outcome, report) {
                    Ok(()) => {
                        self.gate.captured(mark);
                        self.tell(Event::Captured(mark));
                    }
                    Err(e) => {
                        failed.get_or_insert(e);
                        self.tell(Event::Failed);
                        self.tell(Event::Over);
                    }
                },
                Ok(Order::Demote) => {
                    self.moving = None;
                    self.stop(report);
                    self.gate.lose();
                    outcome.demoted = true;
                    self.tell(Event::Demoted);
                }
                Ok(Order::Say(said, seen)) => {
                    tell(said, outcome, report);
                    seen.tell(report);
                    if let Some(held) = self.gate.held().filter(|held| held.waits.count() > 0) {
                        report.note(&held.to_string());
                    }
                }
                Ok(Order::Whole) => {
                    outcome.epochs += 1;
                    self.show(outcome, report);
                }
                Ok(Order::End(done)) => return failed.filter(|_| self.asked == 0 && !outcome.demoted).map_or(done, Err),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(_) => return Err(Error::other("the watch has failed")),
            }
        }
    }

    /// An image of what has changed, on its way to the standby.
    fn capture(&mut self, mark: Mark, outcome: &mut Outcome, report: &mut dyn Report) -> Result<()> {
        if mark.number == 1 {
            self.moving = None;
            let mut moving = Moving::begin(&self.options.dump, false, report)?;
            let gate = self.gate.clone();
            moving.steadily(move || gate.stands());
            self.moving = Some(moving);
            // Whoever looks at a tree wants to be interrupted.
            signal::pass();
        }
        let moving = self.moving.as_mut().ok_or_else(|| Error::other("there is nothing to go on from"))?;
        let mut steady = Steady(report);
        let report: &mut dyn Report = if mark.number > 1 { &mut steady } else { steady.0 };
        let made = self.bulk.item(|pipe| moving.round(pipe, report))?;
        let stop = made.pause.max(made.stops.unwrap_or_default());
        outcome.bytes += made.image_bytes;
        outcome.longest = outcome.longest.max(stop);
        if mark.number > 1 {
            outcome.stops.push(stop);
        }
        Ok(())
    }

    /// How things stand, now and then.
    fn show(&mut self, outcome: &Outcome, report: &mut dyn Report) {
        const OFTEN: Duration = Duration::from_secs(1);
        if self.shown.is_some_and(|shown| shown.elapsed() < OFTEN) {
            return;
        }
        self.shown = Some(Instant::now());
        let stop = outcome.stops.last().copied().unwrap_or_default();
        let held = self.gate.held().map_or(String::new(), |held| format!("; {held}"));
        report.standing(&format!("epochs that {} has: {}; the last stop took {stop:.1?}{held}", outcome.host, outcome.epochs));
    }

    /// Somebody else answers: it stands still, and is there to be looked at.
    fn stop(&self, report: &mut dyn Report) {
        let stopped = freeze(self.options.dump.pid, self.options.dump.freeze_timeout).and_then(|mut frozen| {
            let mut stopped = frozen.stop();
            // Its connections live elsewhere, which whoever ends it here is not to disturb.
            if self.options.limits.guarantee == Guarantee::Hold {
                stopped = stopped.and(frozen.processes.iter().try_for_each(|process| silence(process.pid)));
            }
            frozen.release();
            stopped
        });
        if let Err(e) = stopped {
            report.warning(&format!("the tree could not be stopped here: {}", e.message));
        }
    }
}

/// The machine's side.
struct End {
    machine: Primary,
    begun: Instant,
    peer: Peer,
    beats: Beats,
    lease: Lease,
    gate: Gate,
    store: Store,
    record: Record,
    events: Receiver<Event>,
    orders: Sender<Order>,
    /// How many images were sent.
    image: u64,
    linked: bool,
    fence: Option<String>,
    fencing: Option<Fence>,
    /// Frames that were not heeded, as far as that was said.
    stale: u64,
    _claim: Claim,
}

impl End {
    fn run(mut self) {
        let done = self.feed();
        if done.is_ok() && !self.machine.is_demoted() {
            let _ = self.store.forget(&self.record.name);
        }
        let _ = self.orders.send(Order::End(done));
    }

    /// Until there is nothing left to be done.
    fn feed(&mut self) -> Result<()> {
        let mut event = Some(Event::Start);
        loop {
            while let Some(next) = event.take().or_else(|| self.next()) {
                let actions = self.machine.step(next, self.begun.elapsed());
                for action in actions {
                    if action == Action::End {
                        return Ok(());
                    }
                    event = self.perform(action)?.or(event);
                }
            }
            if !self.linked && self.machine.is_free() {
                let why = self.peer.link.failure().unwrap_or_else(|| Error::link("the standby is gone"));
                return Err(why.help("the tree goes on here, and nobody is there to take over: watch it again"));
            }
        }
    }

    /// What has happened; waits a moment for something.
    fn next(&mut self) -> Option<Event> {
        const STEP: Duration = Duration::from_millis(2);
        if let Ok(event) = self.events.try_recv() {
            return Some(event);
        }
        if self.gate.has_news() {
            return Some(Event::Wanted);
        }
        match self.beats.receive() {
            Came::Frame(heard) => return Some(Event::Heard(Path::Beat, heard)),
            Came::Refused if !self.linked => return Some(Event::Gone),
            _ => {}
        }
        if let Some(done) = self.fencing.as_ref().and_then(Fence::done) {
            self.fencing = None;
            return Some(Event::Fenced(done));
        }
        let due = self.machine.wake().is_some_and(|wake| wake <= self.begun.elapsed());
        if !self.linked {
            if !due {
                std::thread::sleep(STEP);
            }
            return due.then_some(Event::Tick);
        }
        // What has come is heard first: it may be what keeps the other one from being lost.
        match self.peer.link.receive(Some(if due { Duration::ZERO } else { STEP })) {
            Ok(came) if came.kind == WORD => frame::read(&came.payload).map(|heard| Event::Heard(Path::Link, heard)),
            Ok(_) => None,
            Err(_) if self.peer.link.failure().is_none() => due.then_some(Event::Tick),
            Err(_) => {
                self.linked = false;
                Some(Event::LinkLost)
            }
        }
    }

    fn perform(&mut self, action: Action) -> Result<Option<Event>> {
        let generation = self.machine.generation();
        let send = |peer: &Peer, kind, payload| drop(peer.link.send(&transport::Frame { kind, generation, payload }));
        match action {
            Action::Send(Path::Link, word) if self.linked => send(&self.peer, WORD, frame::write(&word).to_vec()),
            Action::Send(Path::Link, _) => {}
            Action::Send(Path::Beat, word) => drop(self.beats.send(&word)?),
            Action::Record(activation) => {
                self.record.activation = Some(activation);
                return Ok(Some(Event::Recorded(self.store.write(&self.record).is_ok())));
            }
            Action::Capture(mark) => drop(self.orders.send(Order::Capture(mark))),
            Action::Ship { mark, ready } => {
                self.image += 1;
                let epoch = Epoch { generation, mark, ready, image: self.image };
                send(&self.peer, EPOCH, pack(&epoch)?);
                return Ok(Some(Event::Sent(mark)));
            }
            Action::Hold => self.gate.close()?,
            Action::Release(mark) => {
                self.gate.release(mark)?;
                let _ = self.orders.send(Order::Whole);
            }
            Action::Lease(until) => self.lease.until(until)?,
            Action::Free => {
                self.lease.free()?;
                self.gate.open()?;
            }
            Action::Hide => self.lease.hide()?,
            Action::Demote => {
                self.lease.hide()?;
                let _ = self.orders.send(Order::Demote);
            }
            Action::Fence => self.fencing = self.fence.as_ref().map(|command| Fence::run(command, &self.peer.hello.host)),
            Action::Say(said) => {
                let stale = self.machine.stale() + self.beats.dropped().all();
                let fresh = stale - std::mem::replace(&mut self.stale, stale);
                let seen = Seen { jitter: self.machine.jitter(), interval: self.machine.interval(), stale: fresh };
                drop(self.orders.send(Order::Say(said, seen)));
            }
            _ => {}
        }
        Ok(None)
    }
}

/// What people are told.
fn tell(said: Said, outcome: &mut Outcome, report: &mut dyn Report) {
    let mut warn = |text: &str| {
        report.warning(text);
        if !outcome.warnings.iter().any(|warning| warning == text) {
            outcome.warnings.push(text.to_owned());
        }
    };
    match said {
        Said::Protected => report.note("protected: if this host is lost, it goes on at the standby"),
        Said::BothPaths => report.note("both paths to the standby are there"),
        Said::OnePath(Path::Link) => warn("the link to the standby is silent; its heartbeats come"),
        Said::OnePath(Path::Beat) => warn("no heartbeats of the standby come; its link is there (is a firewall in the way of UDP?)"),
        Said::Unprotected => report.note("unprotected: if this host is lost, it ends"),
        // Not one of the outcome: it may have been for a moment.
        Said::Slow => report.warning("the link does not carry an epoch in the time that was wished: they follow each other more slowly"),
        Said::Full => warn("the standby has no room for it: it is copied again later"),
        Said::Cut => warn("nothing is heard of the standby: nobody answers here until it is known what has become of it"),
        Said::AtRisk => warn("it goes on alone, since that was wanted: if the standby lives, two answer"),
        Said::Demoted => warn("the standby has taken over: the tree stands still here"),
        _ => {}
    }
}
