//! What the standby does: `meio agent --watch`, which the primary starts, and which stays when that is gone; or a former primary that
//! has come back ([`super::comeback`]).

mod back;
mod seen;
mod votes;

pub use votes::Ended;

use super::beat::{Beats, Came, Key};
use super::clone::Clone;
use super::comeback::{Caller, Stood};
use super::control::Control;
use super::fence::Fence;
use super::history::{Entry, History};
use super::polls::{Ear, Polls};
use super::raised::{Raised, Waiting};
use super::record::{About, Claim, Record, Store};
use super::ring::{self, Ring};
use super::setup::{ANEW, EPOCH, Epoch, MORE, NODES, OVER, PACKETS, SETUP, Seat, Setup, WORD};
use super::state::{self, Action, Activation, Event, Guarantee, Mark, Path, Said, Standby, Votes, Word};
use super::status::{Board, Role, Status, Wish};
use super::steps::{Steps, step};
use super::visit::{Asked, News, Opened, Visits};
use super::witness::{self, Arbiter, Role as Whose};
use super::{fit, frame, nodes, turn};
use crate::error::{Error, Result};
use crate::migrate::plan::{Plan, pack, unpack};
use crate::migrate::record::Member;
use crate::progress::{Report, Silent};
use crate::restore::{self, SharedLock};
use crate::sys::priority::Urgent;
use crate::sys::signal;
use crate::transport::{self, Peer};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use votes::{Court, is_over};

/// For what the other end may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long asking who has the address takes, and a little more.
const EARLY: Duration = Duration::from_millis(40);

/// Stands by for one primary over standard input and output, until there is nothing left to do.
///
/// # Errors
/// When the link cannot be used before the watch begins, or a record cannot be read.
pub fn run() -> Result<()> {
    signal::catch();
    let mut peer = transport::accept()?;
    let asked = peer.link.receive(Some(PATIENCE))?;
    let ended = match unpack(&asked.payload)? {
        Setup::Returns(returns) => return turn::serve(peer, *returns),
        Setup::Invite(seat) => return turn::invited(peer, *seat),
        asked => begin(peer, asked, None, &mut Silent)?,
    };
    let (Some(role), Some(seat)) = (ended.next(), ended.seat) else { return Ok(()) };
    let mut noted = turn::Noted(Store::open()?, seat.returns.name.clone());
    let ring = Ring { gone: usize::from(!ended.planned), ..Ring::seated(&seat, ended.overtaken) };
    ring::run(ring, role, Vec::new(), &mut noted).map(drop)
}

/// The same over a link on which this was asked. `caller`: it calls who runs it when that is lost.
///
/// # Errors
/// As [`run`].
pub fn begin(mut peer: Peer, asked: Setup, caller: Option<Caller>, report: &mut dyn Report) -> Result<Ended> {
    signal::catch();
    let Setup::Ask { name, watch, plan, key, known, generation: theirs, several, .. } = asked else {
        return Err(Error::link("the primary says something else than what a watch begins with"));
    };
    let store = Store::open()?;
    let claim = match store.claim(&name) {
        Ok(claim) => claim,
        Err(_) if is_over(&peer, &store, &name, theirs)? => return Ok(Ended::default()),
        Err(e) => return Err(e),
    };
    let there = store.read(&name)?;
    let former = there.as_ref().filter(|record| several && record.watch == watch).map(|record| (record.stood, record.vote));
    let instance = there.as_ref().map_or(0, |record| record.instance).max(known) + 1;
    let runs = there.as_ref().is_some_and(Record::runs);
    let before = there.and_then(|record| record.settled());
    // What was about to be taken over and does not live was not.
    let generation = before.map_or(0, |a| a.generation() - u64::from(matches!(a, Activation::Taking(_))));
    let status = Status {
        name: name.clone(),
        role: Role::Standby,
        other: Some(peer.hello.host.clone()),
        at: plan.addresses.iter().map(ToString::to_string).collect(),
        ..Status::default()
    };
    let control = Control::open(&store, &name, Arc::new(Board::new(status)), None)?;
    control.board().hosts.meets(&peer.hello.host, Role::Primary, None);
    let about = About { tree: None, addresses: plan.addresses.clone(), other: peer.hello.host.clone(), holds: false, standby: true };
    // Whoever answered here before does not any more.
    let activation = before.map(|before| match before {
        Activation::Primary { generation, .. } => Activation::Demoted(generation),
        other => other,
    });
    let mut record = Record { name, watch, activation, instance, stood: 0, vote: None, back: None, door: None, about };
    let beats = Beats::listen(&Key::of(key), SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
    let details = fit::check(&plan)?;
    let refusals = details.refusals.clone();
    let visits = Visits::begin()?;
    let ear = several.then(Ear::open).transpose()?;
    let (port, polls) = (beats.port()?, ear.as_ref().map_or(Ok(0), Ear::port)?);
    let answer = Setup::Answer { details, generation, instance, port, token: visits.token().to_owned(), runs, polls };
    peer.link.send(&transport::Frame { kind: SETUP, generation: 0, payload: pack(&answer)? })?;
    match (refusals.is_empty(), &caller) {
        (true, _) => {}
        (false, None) => return Ok(Ended::default()),
        (false, Some(_)) => return Err(Error::refused(&format!("{} cannot live here", record.name), refusals)),
    }
    restore::make_room(&plan.tree)?;
    let lock = SharedLock::prepare().ok(); // else it is tried again when it is needed
    let raised = Raised::guarded(&plan.addresses)?;
    let begin = peer.link.receive(Some(PATIENCE))?;
    let Setup::Begin { generation, limits, fence, witness, on_event, seat } = unpack(&begin.payload)? else {
        return Err(Error::link("the primary does not begin"));
    };
    // Who stood by for a lower generation has said nothing that counts. The primary knows of one whose record is lost, too.
    let again = former.map_or(several && known > 0, |(stood, _)| stood == generation);
    let vote = former.filter(|_| again).and_then(|(_, vote)| vote);
    (record.stood, record.vote) = (generation, vote);
    let witness = witness.map(|contact| witness::arbiter(&contact, watch, Whose::Standby, limits.lease())).transpose()?;
    peer.open_bulk()?;
    let spool = Clone::begin(Some(&*plan.spool).filter(|folder| !folder.as_os_str().is_empty()), peer.receiver()?)?;
    spool.wakes(peer.link.waker());
    // Who cleans up behind one that was killed finds what it had.
    store.write(&record)?;
    control.board().note(|status| {
        (status.generation, status.guarantee) = (generation, Some(limits.guarantee.name().to_owned()));
        status.witness = witness.as_ref().map(|witness| witness.status());
        status.place = seat.as_ref().map(|seat| seat.place);
    });
    control.board().hosts.begin(nodes::hostname(), limits.timeout);
    let (log, name) = (store.clone(), record.name.clone());
    let history = History::begin(&store, &record.name, Role::Standby, on_event, move |text| log.note(&name, text))?;
    let begun = Entry::new(Role::Standby, "standing-by", format!("{} has begun a watch", peer.hello.host));
    history.note(Entry { other: Some(peer.hello.host.clone()), generation, ..begun });
    let machine = Standby::begin(generation, instance, limits);
    let machine = if again { machine.after(vote.is_some()) } else { machine };
    let court = |(seat, ear): (&Seat, Ear)| -> Result<Court> {
        let (votes, key) = (Votes::begin(seat.place, instance, vote, limits), Key::of(seat.key));
        Ok(Court { votes, polls: Polls::new(ear, &key, seat.place, &seat.at)?, overtaken: None })
    };
    let court = seat.as_deref().zip(ear).map(court).transpose()?;
    if court.is_none() && limits.standbys > 1 {
        return Err(Error::link("the primary does not say who the others are"));
    }
    let mut agent = Agent {
        machine,
        begun: Instant::now(),
        primary: peer.hello.host.clone(),
        peer: Some(peer),
        linked: Instant::now(),
        told: Instant::now(),
        beats,
        visits,
        visitor: None,
        caller,
        seat,
        anew: false,
        more: false,
        handed: false,
        report: RefCell::new(report),
        guarantee: limits.guarantee,
        lock,
        plan: *plan,
        spool,
        store,
        record,
        coming: VecDeque::new(),
        kept: None,
        whole: Vec::new(),
        raised,
        waiting: Waiting::default(),
        restoring: false,
        planted: None,
        root: None,
        fence,
        fencing: None,
        witness,
        court,
        events: VecDeque::from([Event::Start]),
        board: control.board(),
        over: false,
        steps: None,
        early: None,
        timeout: limits.timeout,
        history,
        failure: None,
        _claim: claim,
    };
    let stood = agent.stand();
    let board = control.board();
    let ended = match agent.root {
        Some(root) if root.lives() && agent.handed && agent.leads() => Stood::Leads,
        Some(root) if root.lives() => Stood::Runs,
        Some(_) => Stood::Ran,
        None if agent.anew || agent.more && !agent.over => Stood::Anew,
        None => Stood::Over,
    };
    let overtaken = agent.court.as_ref().and_then(|court| court.overtaken);
    let planned = agent.machine.is_planned();
    let Agent { spool, seat, .. } = agent;
    drop(spool);
    board.end(stood.clone().map(|()| Vec::new()));
    stood.map(|()| Ended { stood: ended, seat, overtaken, planned })
}

/// Why feeding the machine came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The tree is to be brought back.
    Restore,
    /// It may run.
    Run,
    /// It is not to be brought back after all.
    Undo,
    /// Nothing is left to be done.
    End,
}

/// The standby at work.
struct Agent<'r> {
    machine: Standby,
    begun: Instant,
    /// What the primary's host calls itself.
    primary: String,
    /// The link to it, where there is one.
    peer: Option<Peer>,
    /// When that was made.
    linked: Instant,
    /// When it was last said how this end stands.
    told: Instant,
    beats: Beats,
    visits: Visits,
    /// Somebody who has come back, and waits for an answer.
    visitor: Option<(Peer, Asked)>,
    /// Who calls the primary when the link is lost, where that does not.
    caller: Option<Caller>,
    /// What leads to the others.
    seat: Option<Box<Seat>>,
    /// The primary has begun another watch,
    anew: bool,
    /// or is about to.
    more: bool,
    /// Another process goes on with what runs here.
    handed: bool,
    /// Whoever looks at this process.
    report: RefCell<&'r mut dyn Report>,
    guarantee: Guarantee,
    /// Over what the tree hears and says, until it runs.
    lock: Option<SharedLock>,
    plan: Plan,
    spool: Clone,
    store: Store,
    record: Record,
    /// Epochs that were announced, oldest first.
    coming: VecDeque<Epoch>,
    /// The last that is whole and may be taken over from, by its image.
    kept: Option<(Mark, u64)>,
    /// Those that are whole, and not kept yet.
    whole: Vec<(Mark, u64)>,
    /// The addresses that go with the tree.
    raised: Raised,
    /// Packets that came for it where it stood still, and wait until it runs.
    waiting: Waiting,
    /// It is being rebuilt.
    restoring: bool,
    /// Root of what was rebuilt, and is not to run yet.
    planted: Option<Member>,
    /// The command that ends the primary's host, and that at work.
    fence: Option<String>,
    fencing: Option<Fence>,
    /// Who says whether it may be taken over.
    witness: Option<Box<dyn Arbiter>>,
    /// What it has to do with other standbys.
    court: Option<Court>,
    /// Root of the tree that runs here.
    root: Option<Member>,
    events: VecDeque<Event>,
    board: Arc<Board>,
    /// Somebody here has asked for the end.
    over: bool,
    /// Of the take-over.
    steps: Option<Steps>,
    /// When it was asked ahead whether the address is free, and what comes of that.
    early: Option<(Instant, Receiver<bool>)>,
    /// Of the primary's silence.
    timeout: Duration,
    history: History,
    /// Why it could not be brought back.
    failure: Option<String>,
    _claim: Claim,
}

impl Agent<'_> {
    fn stand(&mut self) -> Result<()> {
        // The primary's clients wait for its word.
        let _urgent = Urgent::begin();
        loop {
            let next = self.drive().inspect_err(|e| self.store.note(&self.record.name, &format!("the standby fails: {e}")))?;
            match next {
                Next::Restore => self.bring_back(),
                Next::Run | Next::Undo => {}
                Next::End => {
                    // Who calls later is to hear of it.
                    if self.over && self.root.is_some() {
                        self.history.note(Entry::ended(Role::Standby, self.machine.generation()));
                    }
                    // What was taken over stays on record, and that it was by somebody else.
                    let stays =
                        self.root.is_some() || self.more || (self.caller.is_some() || self.court.is_some()) && !self.machine.has_left();
                    return if stays && !self.over { Ok(()) } else { self.store.forget(&self.record.name) };
                }
            }
        }
    }

    /// Feeds the machine until something is to be done that only the caller can do.
    fn drive(&mut self) -> Result<Next> {
        loop {
            while let Some(event) = self.events.pop_front() {
                let mut next = None;
                for action in self.machine.step(event, self.begun.elapsed()) {
                    next = self.perform(action)?.or(next);
                }
                if let Some(next) = next {
                    return Ok(next);
                }
            }
            let over = self.machine.is_over() || self.root.is_some_and(|root| !root.lives());
            let comes = self.visitor.is_some() || self.visits.is_answering();
            let idle = self.peer.is_none() && !comes && self.has_nothing_to_do();
            self.grant();
            let over = over || self.court.as_ref().is_some_and(|court| court.overtaken.is_some());
            if over || idle || self.over || self.handed || self.anew || self.interrupted() {
                return Ok(Next::End);
            }
            self.hear()?;
        }
    }

    /// What runs is not for who has started an agent over ssh to end.
    fn interrupted(&self) -> bool {
        signal::take().is_some_and(|_| self.root.is_none() || self.caller.is_some())
    }

    /// The end of the watch is the primary's to grant, where there is one.
    fn grant(&mut self) {
        let wished = self.board.wished();
        let alone = self.caller.as_ref().is_some_and(Caller::found_nobody);
        self.handed |= alone && self.root.is_some() || self.is_handed(wished);
        self.over |= self.root.is_none() && self.caller.as_ref().is_some_and(Caller::is_over);
        let asked = wished == Some(Wish::Over);
        match &self.peer {
            Some(peer) if asked && self.root.is_none() => {
                let _ = peer.link.send(&transport::Frame { kind: OVER, generation: self.machine.generation(), payload: Vec::new() });
            }
            _ => self.over |= asked,
        }
    }

    fn hear(&mut self) -> Result<()> {
        const STEP: Duration = Duration::from_millis(2);
        if let Some(peer) = &mut self.peer {
            match peer.link.receive(Some(STEP)) {
                Ok(came) if came.kind == WORD => {
                    self.events.extend(frame::read(&came.payload).map(|heard| Event::Heard(Path::Link, heard)));
                }
                Ok(came) if came.kind == EPOCH => self.coming.push_back(unpack(&came.payload)?),
                Ok(came) if came.kind == ANEW && came.generation == self.machine.generation() => {
                    self.coming.clear();
                    self.events.push_back(Event::Anew);
                }
                Ok(came) if came.kind == PACKETS => {
                    self.waiting.take(unpack(&came.payload)?);
                    if self.root.is_some() {
                        self.waiting.deliver();
                    }
                }
                Ok(came) if came.kind == MORE => self.more = true,
                Ok(came) if came.kind == NODES => self.board.hosts.takes(&self.primary, &came.payload),
                Ok(_) => {}
                Err(_) if peer.link.failure().is_none() => {}
                Err(_) => self.unlink(),
            }
        } else {
            std::thread::sleep(STEP);
        }
        while let Came::Frame(heard) = self.beats.receive() {
            self.events.push_back(Event::Heard(Path::Beat, heard));
        }
        if let Some(done) = self.fencing.as_ref().and_then(Fence::done) {
            self.fencing = None;
            self.note(if done { "the primary's host was ended" } else { "the primary's host could not be ended" });
            self.events.push_back(Event::Fenced(done));
        }
        self.ruling();
        self.polled();
        let whole = self.spool.whole();
        while self.coming.front().is_some_and(|epoch| epoch.image <= whole) {
            let Some(Epoch { generation, mark, ready, image, part }) = self.coming.pop_front() else { break };
            // What is not here for want of room was not whole either.
            if self.spool.has(image) {
                self.whole.push((mark, image));
                self.events.push_back(Event::Whole { generation, mark, ready, part });
            }
        }
        if let Some(e) = self.spool.short() {
            self.note(&format!("an epoch cannot be kept: {e}"));
            self.events.push_back(Event::Full);
        }
        self.visited()?;
        self.tell();
        self.look_ahead();
        if self.machine.wake().is_some_and(|wake| wake <= self.begun.elapsed()) {
            self.events.push_back(Event::Tick);
        }
        Ok(())
    }

    /// What the witness has said.
    fn ruling(&mut self) {
        let Some(witness) = &mut self.witness else { return };
        self.events.extend(witness.event());
        if let Some(news) = witness.news() {
            let status = witness.status();
            self.board.note(|all| all.witness = Some(status));
            self.note(&news);
        }
    }

    /// The link is over, and what was announced by it and has not come whole comes again.
    fn unlink(&mut self) {
        if self.peer.take().is_some() {
            self.events.push_back(Event::LinkLost);
        }
    }

    /// A primary that comes back is told what is here as soon as nothing more can come by the link that it had.
    fn visited(&mut self) -> Result<()> {
        self.call();
        let called = self.caller.as_mut().and_then(Caller::visitor).map(|came| News::Asks(Box::new(came)));
        match self.visits.news().or(called) {
            Some(News::Asks(visitor)) if visitor.1.watch != self.record.watch => self.anew |= self.caller.is_some(),
            Some(News::Asks(visitor)) => {
                self.unlink();
                if visitor.1.generation > self.machine.generation() {
                    // It has gone on without this one.
                    let word = Word::Primary { series: 0, wedged: false, over: false, last: 0, go: false };
                    let frame = state::Frame { generation: visitor.1.generation, instance: u64::MAX, sequence: 0, word };
                    self.events.push_back(Event::Heard(Path::Link, frame));
                } else {
                    self.visitor = Some(*visitor);
                }
            }
            Some(News::Open(_, opened)) => {
                let Opened { peer, receiver, beats } = *opened;
                self.spool.wakes(peer.link.waker());
                self.spool.go_on(receiver)?;
                (self.peer, self.linked) = (Some(peer), Instant::now());
                if let Some(beats) = beats {
                    self.beats = beats;
                }
                self.note("the primary has come back");
                self.events.push_back(Event::Linked);
            }
            _ => {}
        }
        if self.spool.stands()
            && let Some((peer, asked)) = self.visitor.take()
        {
            self.coming.clear();
            let own = (self.machine.generation(), self.record.instance);
            self.visits.answer(peer, asked, own, self.spool.whole(), self.root.is_some());
        }
        Ok(())
    }

    /// Where it is this end that calls it looks itself whether the link carries something, and says what has become of it here.
    fn call(&mut self) {
        const LEAST: Duration = Duration::from_secs(1);
        let now = self.begun.elapsed();
        let Some(caller) = &mut self.caller else { return };
        caller.lives();
        let quiet = self.machine.quiet(now) >= 2 * self.timeout.max(LEAST);
        let due = self.peer.is_none() && self.visitor.is_none() && !self.visits.is_answering() && !self.more;
        if due {
            caller.call(self.machine.generation(), self.record.instance, self.root.is_some());
        } else if quiet && self.peer.is_some() && self.linked.elapsed() >= 2 * self.timeout.max(LEAST) {
            self.unlink();
        }
    }

    fn perform(&mut self, action: Action) -> Result<Option<Next>> {
        let generation = self.machine.generation();
        let begun = Instant::now();
        let event = match action {
            Action::Send(Path::Link, word) => {
                if let Some(peer) = &self.peer {
                    let payload = frame::write(&word).to_vec();
                    let _ = peer.link.send(&transport::Frame { kind: WORD, generation, payload });
                }
                return Ok(None);
            }
            Action::Send(Path::Beat, word) => return self.beats.send(&word).map(|_| None),
            Action::Record(activation) => {
                self.record.activation = Some(activation);
                self.record.about.tree = self.planted.or(self.root);
                Event::Recorded(self.store.write(&self.record).is_ok())
            }
            Action::Keep(mark) => {
                self.kept = self.whole.iter().copied().find(|(of, _)| *of == mark);
                self.whole.retain(|(of, _)| *of > mark);
                self.board.whole(mark);
                self.kept.iter().for_each(|(_, image)| self.spool.keep(*image));
                if self.lock.is_none() {
                    self.lock = SharedLock::prepare().ok();
                }
                return Ok(None);
            }
            Action::Drop => {
                self.kept = None;
                self.board.dropped();
                self.whole.clear();
                self.spool.drop_all();
                return Ok(None);
            }
            Action::Poll(_) | Action::Forgo | Action::Ask(_) => {
                self.ask(action, generation);
                return Ok(None);
            }
            Action::Fence => {
                self.fencing = self.fence.as_ref().map(|command| Fence::run(command, &self.primary));
                return Ok(None);
            }
            Action::Block => match self.block() {
                Ok(()) => Event::Blocked,
                Err(e) => {
                    self.note(&format!("its address cannot be blocked: {e}"));
                    Event::Failed
                }
            },
            Action::Unblock => {
                self.lock = None;
                return Ok(None);
            }
            Action::Undo => return Ok(self.undo()),
            Action::Place(mark) if self.kept.is_some_and(|(of, _)| of == mark) => Event::Placed,
            Action::Place(_) => Event::Failed,
            Action::Restore => return Ok(Some(Next::Restore)),
            Action::Probe => Event::Probed(self.is_address_free()),
            Action::Raise => self.raised.raise().map_or(Event::Failed, |()| Event::Raised),
            Action::Tell => {
                self.raised.announce(!self.machine.is_planned());
                Event::Told
            }
            // Its connections stay locked until it runs: by the restore, which opens the lock then.
            Action::Open => Event::Unblocked,
            Action::Run => return Ok(Some(Next::Run)),
            Action::End => {
                self.anew |= self.caller.is_some();
                return Ok(Some(Next::End));
            }
            Action::Say(said) => {
                self.board.said(said);
                self.board.note(|status| status.generation = generation);
                if said == Said::TakingOver {
                    self.is_let();
                }
                self.history.said(said, |entry| self.about(said, entry));
                let jitter = self.machine.jitter().map_or(String::new(), |most| format!("; heartbeats are up to {most:.1?} off"));
                let dropped = self.machine.stale() + self.beats.dropped().all();
                self.note(&format!("{said:?}; {dropped} frames were not heeded{jitter}"));
                return Ok(None);
            }
            _ => return Ok(None),
        };
        if let (Some(name), Some(steps)) = (step(action), &mut self.steps) {
            steps.done(name, begun.elapsed());
        }
        self.events.push_back(event);
        Ok(None)
    }
}
