//! What the target does: `meio agent`, which the source starts.

mod arrival;
mod told;

pub use told::Told;

use super::address::{Address, Probe};
use super::files::stage::Stage;
use super::files::{self, Applier, FILES, Word};
use super::message::{Frame, Id, Message};
use super::plan::{Details, Plan, Remark, pack, unpack};
use super::pull::{Near, Told as Pulled};
use super::record::{self, Member, Store};
use super::spool::Spool;
use super::state::{Action, Event, Life, Limits, Recorded, Target, Verdict};
use super::{MOVE, REMARK, ROOM, frozen, local, room};
use crate::error::{Error, Refusal, Result};
use crate::image::{Absent, Left, Owner};
use crate::netlock;
use crate::resource::Tree;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::restore::fits::{Needs, fits};
use crate::restore::{self, Input, SharedLock};
use crate::sys::priority::Urgent;
use crate::sys::proc::read;
use crate::sys::signal;
use crate::sys::wire::Wire;
use crate::transport::{self, Peer};
use arrival::Arrival;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Serves one source over standard input and output, until there is nothing left to do for it.
///
/// # Errors
/// When the link cannot be used; all else is told to the source.
pub fn run() -> Result<()> {
    signal::catch();
    let peer = transport::accept()?;
    let machine = Target::new(record::boot()?, Limits::default());
    let begun = Instant::now();
    let mut agent = Agent {
        peer,
        machine,
        begun,
        id: None,
        plan: None,
        spool: None,
        have: Arc::default(),
        have_told: 0,
        last: None,
        left: Vec::new(),
        near: None,
        pulled: None,
        lock: None,
        arrival: Arrival::default(),
        store: record_store()?,
        stage: Arc::default(),
        there: Vec::new(),
        planted: Vec::new(),
        linked: true,
        told: false,
        runs: false,
        again: false,
        waiting: Vec::new(),
        events: VecDeque::new(),
    };
    // Where nothing is planted there is nothing to destroy.
    let ended = loop {
        match agent.drive() {
            Ok(Next::Destroy) => {}
            ended => break ended,
        }
    };
    agent.clear_up();
    ended.map(drop)
}

/// All processes of a tree that is planted.
fn below(root: i32) -> Vec<Member> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(&pid) = pids.get(next) {
        pids.extend(read::children(pid).unwrap_or_default());
        next += 1;
    }
    pids.into_iter().filter_map(|pid| Member::of(pid).ok()).collect()
}

/// Bytes of memory from which on a tree runs before all of it is in place.
const LAZY_FROM: u64 = 32 << 20;

/// Why feeding the machine came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The planted tree may run.
    Release,
    /// Nothing of it may stay.
    Destroy,
    /// Everything is done.
    End,
}

/// The target at work.
struct Agent {
    peer: Peer,
    machine: Target,
    begun: Instant,
    id: Option<Id>,
    plan: Option<Plan>,
    spool: Option<Spool>,
    /// How many images have come, and how many the source knows of.
    have: Arc<AtomicU64>,
    have_told: u64,
    /// Number of the last image.
    last: Option<u64>,
    /// What is not in it.
    left: Vec<Left>,
    /// Where pages come in that are in no image.
    near: Option<Near>,
    /// What becomes of them, while some are missing.
    pulled: Option<mpsc::Receiver<Pulled>>,
    /// Over the addresses of the tree, until it runs.
    lock: Option<SharedLock>,
    /// Its addresses.
    arrival: Arrival,
    store: Store,
    /// Files under other names, and what was found in their places.
    stage: Arc<Mutex<Option<Stage>>>,
    there: Vec<Option<files::Identity>>,
    /// What is planted.
    planted: Vec<Member>,
    linked: bool,
    /// The source was told why nothing more can come.
    told: bool,
    /// The tree does.
    runs: bool,
    /// Neighbours are to be told again where it is.
    again: bool,
    /// Packets for it.
    waiting: Vec<Bytes>,
    events: VecDeque<Event>,
}

impl Agent {
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
            // Nobody waits for this any more.
            if std::mem::take(&mut self.again) {
                self.announce(frozen::announce_again);
            }
            if !self.linked {
                return Ok(Next::End);
            }
            if let Some(pulled) = self.pulled.as_ref().and_then(|pulled| pulled.try_recv().ok()) {
                self.pulled(pulled);
                continue;
            }
            if signal::take().is_some() {
                self.events.push_back(Event::Interrupted);
                continue;
            }
            let have = self.have.load(Ordering::Acquire);
            if have > self.have_told {
                self.have_told = have;
                self.remark(&Remark::Have(have));
            }
            // What ends the streams is said before the source finds that they have ended.
            if let Some(e) = self.spool.as_ref().and_then(Spool::failure).filter(|_| self.planted.is_empty() && !self.told) {
                self.told = true;
                self.events.push_back(Event::Failed(in_full(&e)));
                continue;
            }
            const STEP: Duration = Duration::from_millis(20);
            let wake = self.machine.wake().map_or(STEP, |at| at.saturating_sub(self.begun.elapsed()).min(STEP));
            self.hear(wake.max(Duration::from_millis(1)));
        }
    }

    /// What the source says, or that nothing came.
    fn hear(&mut self, limit: Duration) {
        let event = match self.peer.link.receive(Some(limit)) {
            Ok(frame) if frame.kind == MOVE => match unpack::<Frame>(&frame.payload) {
                Ok(heard) if self.id.is_none_or(|id| id == heard.id) => {
                    self.id = Some(heard.id);
                    Event::Heard { generation: heard.generation, message: heard.message }
                }
                _ => Event::Tick,
            },
            Ok(frame) if frame.kind == FILES => match unpack(&frame.payload).and_then(|word| self.word(word)) {
                Ok(()) => Event::Tick,
                Err(e) => Event::Failed(in_full(&e)),
            },
            Ok(frame) if frame.kind == ROOM => {
                let _ = room::answer(&self.peer.link); // that the link is lost is heard soon enough
                Event::Tick
            }
            Ok(frame) => {
                match unpack(&frame.payload) {
                    Ok(Remark::Last(n)) if frame.kind == REMARK => self.last = Some(n),
                    Ok(Remark::Left(blocks)) if frame.kind == REMARK => {
                        self.left.extend(blocks.into_iter().map(|(pid, ranges)| Left { owner: Owner::Process(pid), ranges }));
                    }
                    Ok(Remark::Packets(packets)) if frame.kind == REMARK => self.packets(packets),
                    _ => {}
                }
                Event::Tick
            }
            Err(_) if self.peer.link.failure().is_none() => Event::Tick, // nothing came
            Err(_) => {
                self.linked = false;
                self.events.push_back(Event::LinkLost);
                // What waits for its go waits in vain: another link finds another agent, which promises that it never runs.
                Event::Interrupted
            }
        };
        self.events.push_back(event);
    }

    /// What the source wants to know of files.
    fn word(&mut self, word: Word) -> Result<()> {
        let Some(plan) = &mut self.plan else { return Ok(()) };
        let link = &self.peer.link;
        let go_on = || link.failure().is_none() && !signal::is_pending();
        let say = |word: &Word| link.send(&transport::Frame { kind: FILES, generation: self.machine.generation(), payload: pack(word)? });
        match word {
            Word::List(n) => {
                let folder = plan.files.folders.get(n as usize).ok_or_else(|| Error::other("there is no such folder"))?;
                files::list(&folder.path, &go_on, &mut |some| say(&Word::Entries(some)))?;
                say(&Word::Listed)
            }
            Word::Look(wanted) => {
                let request = files::Request { wanted, copying: plan.files.copying, ..files::Request::default() };
                let found = files::compare::look(&request, record::boot()?, &go_on)?;
                if let Some(stage) = locked(&self.stage).as_mut() {
                    stage.expect(&request.wanted, &found.there);
                }
                plan.files.wanted.extend(request.wanted);
                say(&Word::Looked(found.reply.states, found.refusals))
            }
            Word::Applied(n) => {
                let spool = self.spool.as_ref().ok_or_else(|| Error::other("no files came"))?;
                while !spool.applied(n)? {
                    if !go_on() {
                        return Ok(()); // heard of soon
                    }
                }
                say(&Word::Done(n))
            }
            _ => Ok(()),
        }
    }

    /// They wait until the tree runs.
    fn packets(&mut self, packets: Vec<Bytes>) {
        const MOST: usize = 1 << 16;
        let room = MOST.saturating_sub(self.waiting.len());
        self.waiting.extend(packets.into_iter().take(room));
        if self.runs {
            self.deliver();
        }
    }

    /// Hands on what came for the tree; what cannot be is sent again by whoever sent it.
    fn deliver(&mut self) {
        let wire = Wire::new(netlock::PASS);
        for Bytes(packet) in self.waiting.drain(..) {
            let _ = wire.as_ref().map(|wire| wire.packet(&packet));
        }
    }

    fn perform(&mut self, action: Action) -> Result<Option<Next>> {
        let event = match action {
            Action::Send(message) => {
                let prepared = matches!(message, Message::Prepared { .. });
                let _ = self.send(message);
                return if prepared { self.receive_images().map(|()| None) } else { Ok(None) };
            }
            Action::Check(plan) => match self.check(&plan) {
                Ok(details) => Event::Prepared(details),
                Err(e) => Event::Failed(e.message),
            },
            Action::Plant => return self.plant().map(|()| None),
            Action::Judge(verdict) => Event::Judged(verdict, self.judge(verdict)),
            Action::Look => Event::Looked(self.store.look(&self.id.unwrap_or_default()).unwrap_or(Life::AtWork)),
            Action::Release => return Ok(Some(Next::Release)),
            Action::Destroy => return Ok(Some(Next::Destroy)),
            Action::End => return Ok(Some(Next::End)),
            _ => return Ok(None),
        };
        self.events.push_back(event);
        Ok(None)
    }

    fn judge(&self, verdict: Verdict) -> Recorded {
        let Some(id) = &self.id else { return Recorded::Failed };
        match Member::of(std::process::id() as i32) {
            Ok(own) => self.store.judge(id, verdict, own, &self.planted),
            Err(_) => Recorded::Failed,
        }
    }

    fn send(&mut self, message: Message) -> Result<()> {
        let generation = self.machine.generation();
        let frame = Frame { id: self.id.unwrap_or_default(), generation, message };
        self.peer.link.send(&transport::Frame { kind: MOVE, generation, payload: pack(&frame)? })
    }

    fn remark(&self, remark: &Remark) {
        if let Ok(payload) = pack(remark) {
            let _ = self.peer.link.send(&transport::Frame { kind: REMARK, generation: self.machine.generation(), payload });
        }
    }

    /// Everything that stands in the way.
    fn check(&mut self, plan: &[u8]) -> Result<Vec<u8>> {
        let plan: Plan = unpack(plan)?;
        let arriving: Vec<(IpAddr, u8)> = plan.addresses.iter().map(|a| (a.ip, a.length)).collect();
        let settled = plan.files.settled(&plan.tree);
        let needs =
            Needs { pid_namespace: plan.pid_namespace, arriving: &arriving, memory: plan.memory, spool: &plan.spool, settled: &settled };
        let found = fits(&plan.manifest, &plan.tree, needs)?;
        // Who only looks has the time to ask thoroughly.
        let probe = if plan.dry_run { Probe::CAREFUL } else { Probe::QUICK };
        if !plan.dry_run {
            files::sweep(&plan.spool, &self.store);
        }
        // Comparing takes its time: what is said meanwhile is not to pile up.
        let link = RefCell::new(&mut self.peer.link);
        let go_on = || {
            let gives_up = |frame: transport::Frame| {
                frame.kind == MOVE && unpack::<Frame>(&frame.payload).is_ok_and(|f| matches!(f.message, Message::Abort { .. }))
            };
            let heard = link.borrow_mut().try_receive();
            !signal::is_pending() && heard.is_ok_and(|frame| !frame.is_some_and(gives_up))
        };
        let compared = files::compare::look(&plan.files, record::boot()?, &go_on)?;
        let mut details = Details { refusals: found.refusals, warnings: found.warnings, files: compared.reply };
        details.refusals.extend(compared.refusals);
        self.there = compared.there;
        details.refusals.extend(plan.addresses.iter().filter_map(|a| local::cannot_have(a, &plan.neighbours, probe)));
        details.refusals.extend(local::not_allowed(&plan));
        // It must say here what becomes of the tree.
        if let Err(e) = self.store.has_room(plan.tree.processes.len()) {
            let advice = "make room on the target".to_owned();
            details.refusals.push(Refusal { object: "records".into(), reason: e.message, advice, ..Refusal::default() });
        }
        let wanted = details.refusals.is_empty() && !plan.dry_run;
        self.plan = wanted.then_some(plan);
        pack(&details)
    }

    /// From now on images may come.
    fn receive_images(&mut self) -> Result<()> {
        let Some(plan) = self.plan.as_ref().filter(|_| self.spool.is_none()) else { return Ok(()) };
        let (peer, id) = (&mut self.peer, self.id.unwrap_or_default());
        let (stage, there, store) = (&self.stage, &self.there, &self.store);
        let mut begin = || -> Result<_> {
            restore::make_room(&plan.tree)?;
            // While this process is small, and nobody waits.
            if !plan.addresses.is_empty() {
                self.lock = Some(SharedLock::prepare()?);
                self.arrival = Arrival::expect(&plan.addresses, store, id)?;
            }
            *locked(stage) = Stage::begin(&plan.spool, &id, &plan.files, there, store)?;
            peer.open_bulk()?;
            let mut near = Near::new()?;
            let pages = near.stream.take().ok_or_else(|| Error::other("pages have no way"))?;
            let applier = Applier::new(&plan.files.folders, stage.clone());
            let lazily = (plan.memory > LAZY_FROM).then_some(plan.memory);
            let (have, waker) = (self.have.clone(), peer.link.waker());
            let have = move |n| {
                have.store(n, Ordering::Release);
                waker.wake();
            };
            Ok((Spool::begin(&plan.spool, &id, peer.receiver()?, Some((applier, pages)), lazily, have)?, near))
        };
        match begin() {
            Ok((spool, near)) => (self.spool, self.near) = (Some(spool), Some(near)),
            Err(e) => self.events.push_back(Event::Failed(in_full(&e))),
        }
        Ok(())
    }

    /// Rebuilds everything, and lets it run when the machine says so.
    fn plant(&mut self) -> Result<()> {
        let mut told = Told::default();
        let mut released = false;
        let done = self.bring_back(&mut told, &mut released);
        for remark in told.0 {
            self.remark(&remark);
        }
        match done {
            Ok(outcome) => {
                self.runs = true;
                self.deliver();
                // Until then who knows the source's address only was heard there, and what was said is in what is delivered.
                self.announce(Address::announce_once);
                if self.pulled.is_none() {
                    self.arrival.keep();
                }
                let left = locked(&self.stage).as_mut().map_or_else(Vec::new, Stage::keep);
                left.iter().for_each(|what| self.remark(&Remark::Warning(format!("what was replaced is still there: {what}"))));
                outcome.warnings.iter().for_each(|w| self.remark(&Remark::Warning(w.clone())));
                for (name, took) in &outcome.phases {
                    self.remark(&Remark::Phase((*name).to_owned(), took.as_micros() as u64));
                }
                self.remark(&Remark::Root(outcome.root_pid));
                // What is told of it from now on is told by the process that brings them.
                let missing = self.pulled.is_some();
                self.events.push_back(if missing { Event::Pulling } else { Event::Released });
                self.again = true;
            }
            Err(e) => {
                self.arrival.take_down();
                self.lock = None;
                self.put_back();
                // Where the machine itself had it destroyed it knows.
                self.events.push_back(Event::Failed(in_full(&e)));
            }
        }
        Ok(())
    }

    fn bring_back(&mut self, told: &mut Told, released: &mut bool) -> Result<restore::Outcome> {
        let plan = self.plan.clone().ok_or_else(|| Error::other("nothing was agreed upon"))?;
        let last = self.last.ok_or_else(|| Error::other("no last image was named"))?;
        let spool = self.spool.as_mut().ok_or_else(|| Error::other("no images came"))?;
        let begun = Instant::now();
        let (image, parent) = spool.wait(last, Limits::default().ready)?;
        let _urgent = Urgent::begin();
        told.phase("image", begun);
        let begun = Instant::now();
        locked(&self.stage).as_mut().map_or(Ok(()), Stage::take_places)?;
        self.bring_addresses_up(&plan, &image)?;
        told.phase("addresses", begun);
        let absent = self.leave()?;
        let options = restore::Options {
            input: Input::Path(image),
            detach: true,
            pidfile: None,
            pid_namespace: plan.pid_namespace,
            close_connections: false,
            only_at: None,
            // Until all pages are there the tree dies with whoever brings them; little memory is there at once.
            lazy: absent.is_some() || plan.memory > LAZY_FROM,
            parent,
            settled: plan.files.settled(&plan.tree),
            absent,
            lock: self.lock.clone(),
        };
        let mut waited = Duration::ZERO;
        let may_run = &mut |root| {
            self.planted = below(root);
            // What cannot be put on record could not be told either once the source has let go.
            self.store.has_room(self.planted.len())?;
            self.events.push_back(Event::Planted);
            let begun = Instant::now();
            match self.drive()? {
                Next::Release => {}
                _ => return Err(Error::other("the move was given up")),
            }
            *released = true;
            waited = begun.elapsed();
            Ok(())
        };
        let done = restore::run_when(&options, may_run, told);
        if done.is_ok() {
            netlock::let_go((options.lock, self.lock.take()));
        }
        told.0.push(Remark::Phase("go".into(), waited.as_micros() as u64));
        done
    }

    /// Who has what is not in the last image.
    fn leave(&mut self) -> Result<Option<Absent>> {
        let (left, id) = (std::mem::take(&mut self.left), self.id.unwrap_or_default());
        let Some(near) = self.near.as_mut().filter(|_| !left.is_empty()) else { return Ok(None) };
        let left = Arc::new(left);
        let (far, pulled) = near.begin(left.clone(), self.store.at_work(&id)?, self.peer.link.beside())?;
        self.pulled = Some(pulled);
        Ok(Some(Absent { left, from: Arc::new(far) }))
    }

    /// All pages are there, or it has been ended for want of them.
    fn pulled(&mut self, pulled: Pulled) {
        self.pulled = None;
        match pulled {
            Pulled::Whole => {
                self.arrival.keep();
                self.events.push_back(Event::Whole);
            }
            Pulled::Ended(why) => {
                self.arrival.take_down();
                let why = if why.is_empty() { "whoever brought them has ended" } else { &why };
                let what = format!("pages that were missing could not be brought, and it was ended: {why}");
                self.remark(&Remark::Warning(what.clone()));
                self.events.push_back(Event::Failed(what));
            }
        }
    }

    /// Its addresses come up, and nobody answers at them yet.
    fn bring_addresses_up(&mut self, plan: &Plan, image: &std::path::Path) -> Result<()> {
        if plan.addresses.is_empty() {
            return Ok(());
        }
        let tree: Tree = restore::tree_of(image)?;
        self.lock.as_ref().map_or(Ok(()), |lock| lock.block(&tree))?;
        self.arrival.bring_up(&plan.addresses)
    }

    /// Tells the neighbours where its addresses are.
    fn announce<T>(&self, how: impl Fn(&Address) -> T) {
        self.plan.iter().flat_map(|plan| &plan.addresses).for_each(|address| drop(how(address)));
    }

    /// Single files are as they were.
    fn put_back(&self) {
        let left = locked(&self.stage).as_mut().map_or_else(Vec::new, Stage::undo);
        left.iter().for_each(|what| self.remark(&Remark::Warning(format!("this could not be put back: {what}"))));
    }

    /// What a tree that did not come has left.
    fn clear_up(&mut self) {
        if std::mem::take(&mut self.again) {
            self.announce(frozen::announce_again);
        }
        drop(self.near.take());
        // The link was lost while pages were missing: it is ended now, unless all were just there.
        const ENDS: Duration = Duration::from_secs(60);
        if let Some(pulled) = self.pulled.take().and_then(|pulled| pulled.recv_timeout(ENDS).ok()) {
            let whole = pulled == Pulled::Whole && self.machine.is_released();
            self.pulled(pulled);
            for action in whole.then(|| self.machine.step(Event::Whole, self.begun.elapsed())).into_iter().flatten() {
                if let Action::Judge(verdict) = action {
                    self.judge(verdict);
                }
            }
        }
        if !self.machine.is_released() {
            self.arrival.take_down();
            // Nobody makes changes any more.
            self.spool = None;
            self.put_back();
        }
        self.lock = None;
    }
}

/// Also what somebody held who panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A failure in one sentence, for who sees only that.
fn in_full(e: &Error) -> String {
    let refusals: String = e.refusals.iter().map(|r| format!("; {}: {} ({})", r.object, r.reason, r.advice)).collect();
    let help = e.help.as_ref().filter(|_| refusals.is_empty()).map(|help| format!(" ({help})"));
    format!("{}{refusals}{}", e.message, help.unwrap_or_default())
}

/// Where verdicts are; those that nobody asks for any more are taken away.
fn record_store() -> Result<Store> {
    const OLD: Duration = Duration::from_secs(7 * 24 * 3600);
    let store = Store::open()?;
    store.sweep(OLD)?;
    Ok(store)
}
