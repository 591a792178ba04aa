//! What the source does.

mod leave;
mod rounds;

use super::address::{Address, Taken};
use super::feed::Feed;
use super::files::{self, Carry};
use super::frozen::{owner, watch_over};
use super::message::{Frame, Id, Message};
use super::outcome::{Ended, Outcome};
use super::plan::{Details, Remark, pack, unpack};
use super::preflight::{fresh_id, limits, plan, refuse};
use super::record::{Claim, Member, Record, Store};
use super::rounds::Bulk;
use super::state::{Action, Event, Mark, Outcome as Verdict, Recorded, Source};
use super::{MOVE, REMARK};
use crate::dump;
use crate::dump::moving::{Moving, Standing};
use crate::error::{Context, Error, Kind, Result};
use crate::progress::{Report, phase};
use crate::resource::capture::Decisions;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::signal;
use crate::transport::{self, Destination, How, Peer};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What happens when the tree writes faster than it can be sent, or the time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It stays.
    Cancel,
    /// It is moved, however long that takes.
    Force,
    /// It is moved, and what is left comes when it runs there.
    Lazy,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The tree, and how it is copied.
    pub dump: dump::Options,
    /// Where to.
    pub to: Destination,
    /// On which way.
    pub how: How,
    /// How long nobody may run, as far as that can be foreseen.
    pub max_downtime: Duration,
    /// How long rounds may go on.
    pub timeout: Duration,
    /// What then.
    pub policy: Policy,
    /// No rounds: it runs there first, and its memory follows.
    pub lazy: bool,
    /// It is to live in a pid namespace of its own there.
    pub pid_namespace: bool,
    /// Addresses that move with it.
    pub addresses: Vec<Address>,
    /// Where the images are put at the target.
    pub spool: PathBuf,
    /// Which files are sent.
    pub files: files::Choice,
}

impl Options {
    /// As it goes when nothing else is asked for.
    pub fn new(pid: i32, capsule: Option<String>, to: Destination, how: How, decisions: Decisions) -> Self {
        const S: fn(u64) -> Duration = Duration::from_secs;
        let dump = dump::Options {
            pid,
            capsule,
            output: dump::Output::Stdout,
            kill: false,
            level: Some(1),
            freeze_timeout: S(5),
            decisions,
            live: Some(dump::MAX_PAUSE),
            track: dump::Track::Auto,
            parent: None,
        };
        let (max_downtime, timeout, policy, spool) = (Duration::from_millis(300), S(600), Policy::Cancel, PathBuf::from("/var/tmp"));
        let (addresses, files) = (Vec::new(), files::Choice::default());
        Options { dump, to, how, max_downtime, timeout, policy, lazy: false, pid_namespace: false, addresses, spool, files }
    }
}

/// Moves the tree below `options.dump.pid`.
///
/// Guarantee: until the target has everything in place, and it is on record here that it may run there, whatever fails and
/// whenever either meio dies the tree goes on here as before. From then on it never does but on the target's word.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    let begun = Instant::now();
    signal::catch();
    let mut phases = Vec::new();
    let (plan, counts, seen) = phase(report, &mut phases, "check", |_| plan(options, false))?;
    let connected = phase(report, &mut phases, "connect", |report| transport::connect(&options.to, &options.how, report));
    let peer = connected.map_err(|e| stays(e, None))?;
    let id = fresh_id()?;
    let store = Store::open()?;
    let guardian = watch_over(&store, id, Member::of(options.dump.pid)?, &options.addresses)?;
    let claim = store.claim(&id)?;
    let machine = Source::begin(1, pack(&plan)?, limits(&plan));
    let outcome = Outcome { ended: Ended::Moved, ..Outcome::begin(&plan, counts, &peer.hello.host, phases) };
    let mut end = End {
        options,
        id,
        begun,
        machine,
        peer,
        linked: true,
        moving: None,
        bulk: None,
        standing: None,
        leave: options.lazy,
        feed: None,
        record: None,
        store,
        _claim: claim,
        carry: Carry::new(options.dump.pid, super::record::boot()?, plan.files, seen),
        taken: Vec::new(),
        forwarded: 0,
        have: 0,
        error: None,
        outcome,
    };
    let done = end.drive(report);
    guardian.dismiss()?;
    // Nobody is to wait until what has watched the tree is taken away.
    let _ = crate::sys::calls::leave();
    done?;
    end.outcome.total = begun.elapsed();
    Ok(end.outcome)
}

/// The source at work.
struct End<'o> {
    options: &'o Options,
    id: Id,
    begun: Instant,
    machine: Source,
    peer: Peer,
    /// That the link is lost is said once: from then on time goes by.
    linked: bool,
    moving: Option<Moving<'o>>,
    bulk: Option<Bulk>,
    standing: Option<Standing>,
    /// Memory that may come later does.
    leave: bool,
    feed: Option<(Feed, Instant)>,
    record: Option<Record>,
    store: Store,
    _claim: Claim,
    carry: Carry,
    /// Addresses that are down here.
    taken: Vec<(Address, Taken)>,
    /// Packets that were sent after the tree.
    forwarded: u64,
    /// The last image that the target is known to have.
    have: u64,
    /// What failed first, in full.
    error: Option<Error>,
    outcome: Outcome,
}

/// The error of a move that came to nothing, with what was left there, and where the tree is.
fn stays(e: Error, left: Option<String>) -> Error {
    let said = e.help.clone().into_iter().chain(left).chain(["it goes on running here, as before".to_owned()]);
    Error { help: Some(said.collect::<Vec<_>>().join("; ")), ..e }
}

/// How long connections that the tree has closed are waited for before it is stopped, and when it stands still.
const CLOSED: Duration = Duration::from_millis(500);
const CLOSED_STILL: Duration = Duration::from_millis(5);

/// How long the target may be silent while nobody runs and it was not told that it may: then the tree goes on here. Those who wait
/// for it send again after ever longer pauses.
fn patience(max_downtime: Duration) -> Duration {
    const LEAST: Duration = Duration::from_secs(2);
    (max_downtime * 10).clamp(LEAST, transport::PATIENCE)
}

impl End<'_> {
    /// Feeds the machine until it has said how it ended.
    fn drive(&mut self, report: &mut dyn Report) -> Result<()> {
        let mut events = VecDeque::from([Event::Start]);
        let mut interrupted = false;
        loop {
            while let Some(event) = events.pop_front() {
                for action in self.machine.step(event, self.begun.elapsed()) {
                    if let Action::Report(verdict) = action {
                        return self.conclude(verdict);
                    }
                    events.extend(self.perform(action, report));
                }
            }
            if !interrupted && signal::check_interrupted().is_err() {
                interrupted = true;
                events.push_back(Event::Interrupted);
                continue;
            }
            self.forward();
            let wake = self.machine.wake().map_or(Duration::from_millis(100), |at| at.saturating_sub(self.begun.elapsed()));
            // Packets do not say when they come.
            let step = Duration::from_millis(if self.standing.is_some() { 1 } else { 100 });
            events.push_back(self.hear(wake.clamp(Duration::from_millis(1), step), report));
        }
    }

    /// What the target says, or that nothing came.
    fn hear(&mut self, limit: Duration, report: &mut dyn Report) -> Event {
        if !self.linked {
            std::thread::sleep(limit);
            return Event::Tick;
        }
        match self.peer.link.receive(Some(limit)) {
            Ok(frame) if frame.kind == MOVE => match unpack::<Frame>(&frame.payload) {
                Ok(heard) if heard.id == self.id => {
                    if let Message::Prepared { details } = &heard.message
                        && let Err(e) = self.prepared(details, report)
                    {
                        return self.failed(e);
                    }
                    Event::Heard { generation: heard.generation, message: heard.message }
                }
                _ => Event::Tick,
            },
            Ok(frame) if frame.kind == REMARK => {
                if let Ok(remark) = unpack(&frame.payload) {
                    self.remark(remark, report);
                }
                Event::Tick
            }
            Ok(_) => Event::Tick,
            Err(_) if self.peer.link.failure().is_none() => Event::Tick, // nothing came
            Err(e) => {
                self.error.get_or_insert(e);
                self.linked = false;
                Event::LinkLost
            }
        }
    }

    /// What comes for a tree that stands still is wanted where it will run.
    fn forward(&mut self) {
        let Some(standing) = &self.standing else { return };
        let packets: Vec<Bytes> = standing.packets().into_iter().map(Bytes).collect();
        for some in packets.chunks(64) {
            let remark = pack(&Remark::Packets(some.to_vec()));
            if let Ok(payload) = remark
                && self.peer.link.send(&transport::Frame { kind: REMARK, generation: 1, payload }).is_ok()
            {
                self.forwarded += some.len() as u64;
            }
        }
    }

    fn remark(&mut self, remark: Remark, report: &mut dyn Report) {
        match remark {
            Remark::Warning(text) => {
                report.warning(&text);
                self.outcome.warnings.push(text);
            }
            Remark::Note(text) => report.note(&format!("target: {text}")),
            Remark::Phase(name, took) => self.outcome.phases.push((format!("target: {name}"), Duration::from_micros(took))),
            Remark::Root(pid) => self.outcome.root_pid = Some(pid),
            Remark::Have(n) => self.have = n,
            Remark::Last(_) | Remark::Left(_) | Remark::Packets(_) => {}
        }
    }

    fn prepared(&mut self, details: &[u8], report: &mut dyn Report) -> Result<()> {
        let details: Details = unpack(details)?;
        refuse(self.options, &details)?;
        self.carry.agreed(&details.files)?;
        for warning in details.warnings {
            report.warning(&warning);
            self.outcome.warnings.push(warning);
        }
        Ok(())
    }

    fn failed(&mut self, e: Error) -> Event {
        let text = e.message.clone();
        let interrupted = e.kind == Kind::Interrupted;
        self.error.get_or_insert(e);
        if interrupted { Event::Interrupted } else { Event::Failed(text) }
    }

    fn stuck(&mut self, e: Error) -> Event {
        let text = e.message.clone();
        self.error.get_or_insert(e);
        Event::Stuck(text)
    }

    fn perform(&mut self, action: Action, report: &mut dyn Report) -> Option<Event> {
        let done = match action {
            Action::Send(message) => {
                let _ = self.send(message); // that the link is lost is heard soon enough
                return None;
            }
            Action::Rounds => self.rounds(report).map(|()| Event::RoundsDone),
            Action::Freeze => {
                self.peer.link.set_patience(patience(self.options.max_downtime));
                self.freeze(report).map(|()| Event::LastSent)
            }
            Action::Stop => self.stop(report).map(|()| Event::Stopped),
            Action::Mark(mark) => {
                let recorded = self.mark(mark);
                // From here on giving up is no way back.
                if let Mark::Committed { .. } = mark {
                    self.peer.link.set_patience(transport::PATIENCE);
                }
                return Some(Event::Marked(match recorded {
                    Ok(()) => Recorded::Written,
                    Err(e) => {
                        self.error.get_or_insert(e);
                        Recorded::Failed
                    }
                }));
            }
            Action::Feed => {
                // When it does not, the target says so.
                if let Err(e) = self.feed(report) {
                    self.error.get_or_insert(e);
                }
                return None;
            }
            Action::Thaw => return Some(self.thaw(report).map_or_else(|e| self.stuck(e), |()| Event::Thawed)),
            Action::Reap => return Some(self.reap(report).map_or_else(|e| self.stuck(e), |()| Event::Reaped)),
            Action::Forget => {
                if self.record.take().is_some()
                    && let Err(e) = self.store.forget(&self.id)
                {
                    report.warning(&e.message);
                }
                return None;
            }
            // The target that is ready waits for a while, but its agent ends with the link: the tree is asked for by --resume.
            Action::Link => return Some(Event::Stuck("the link was lost when it may have been told to run there".to_owned())),
            _ => return None,
        };
        Some(done.unwrap_or_else(|e| self.failed(e)))
    }

    fn send(&mut self, message: Message) -> Result<()> {
        let generation = self.machine.generation();
        let frame = Frame { id: self.id, generation, message };
        self.peer.link.send(&transport::Frame { kind: MOVE, generation, payload: pack(&frame)? })
    }

    fn phase<T>(
        &mut self,
        name: &'static str,
        report: &mut dyn Report,
        work: impl FnOnce(&mut Self, &mut dyn Report) -> Result<T>,
    ) -> Result<T> {
        report.started(name);
        let begun = Instant::now();
        let done = work(self, report);
        report.ended(name, begun.elapsed());
        self.outcome.phases.push((name.to_owned(), begun.elapsed()));
        done
    }

    /// That a pipe is broken says only that the link is, or that the target takes no more.
    fn explain(&mut self, e: Error) -> Error {
        files::why(&mut self.peer, e)
    }

    fn files<T>(
        &mut self,
        report: &mut dyn Report,
        work: impl FnOnce(&mut Carry, &mut Peer, &mut Bulk, &mut dyn Report) -> Result<T>,
    ) -> Result<()> {
        let bulk = self.bulk.as_mut().ok_or_else(|| Error::other("there are no streams"))?;
        let done = work(&mut self.carry, &mut self.peer, bulk, report);
        self.outcome.file_bytes = self.carry.sent.bytes;
        std::mem::take(&mut self.carry.remarks).into_iter().for_each(|remark| self.remark(remark, report));
        done.map(drop)
    }

    /// The last image, of a tree that stands still from now on; its addresses are nobody's.
    fn freeze(&mut self, report: &mut dyn Report) -> Result<()> {
        let mut moving = self.moving.take().ok_or_else(|| Error::other("nothing was copied yet"))?;
        moving.settle(CLOSED);
        let sent = self.phase("last image", report, |end, report| {
            let bulk = end.bulk.as_mut().ok_or_else(|| Error::other("there are no streams"))?;
            bulk.item(|pipe| moving.last(pipe, end.leave, report)).map_err(|e| end.explain(e))
        });
        // The kernel takes its time to let go of what has watched the tree: later.
        let count = moving.count();
        self.moving = Some(moving);
        let ((made, standing), _) = sent?;
        self.standing = Some(standing);
        self.outcome.phases.extend(made.phases.iter().map(|(name, took)| (format!("last image: {name}"), *took)));
        self.outcome.rounds = count;
        self.outcome.bytes += made.image_bytes;
        self.outcome.memory_bytes = made.memory_bytes;
        (self.outcome.processes, self.outcome.tasks) = (made.processes, made.tasks);
        self.phase("files", report, |end, report| end.files(report, |carry, peer, bulk, _| carry.round(peer, bulk, true)))?;
        self.outcome.warnings.extend(made.warnings);
        self.finish(report);
        self.phase("addresses", report, |end, _| {
            for address in &end.options.addresses {
                end.taken.push((address.clone(), address.take()?));
            }
            Ok(())
        })?;
        self.leave_rest()?;
        let last = transport::Frame { kind: REMARK, generation: 1, payload: pack(&Remark::Last(count))? };
        self.peer.link.send(&last)
    }

    /// Connections that the tree has closed have had the time of the last image to deliver what they had; for those of clients
    /// that are slow nothing more can be done.
    fn finish(&mut self, report: &mut dyn Report) {
        const NAMED: usize = 3;
        let left = self.standing.as_ref().map(|standing| standing.unfinished(CLOSED_STILL)).unwrap_or_default();
        if left.is_empty() {
            return;
        }
        let some = left.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let others = left.len().checked_sub(NAMED).filter(|n| *n > 0).map_or(String::new(), |n| format!(" and {n} others"));
        let text = format!("the program has closed connections that had not delivered everything yet: lost for {some}{others}");
        report.warning(&text);
        self.outcome.warnings.push(text);
    }

    /// From now on it stands still whatever becomes of meio.
    fn stop(&mut self, report: &mut dyn Report) -> Result<()> {
        self.phase("hold", report, |end, _| match &mut end.standing {
            Some(standing) => standing.stop(),
            None => Err(Error::other("the tree is not held")),
        })
    }

    fn mark(&mut self, mark: Mark) -> Result<()> {
        let generation = self.machine.generation();
        let mut record = match self.record.take() {
            Some(record) => record,
            None => {
                let standing = self.standing.as_ref().ok_or_else(|| Error::other("the tree is not held"))?;
                let record = Record::new(self.id, generation, &self.options.to.to_string(), standing.stopped()?)?;
                let (addresses, capsule) = (self.options.addresses.clone(), self.options.dump.capsule.clone());
                Record { addresses, capsule, leftover: standing.leftover(), ..record }
            }
        };
        (record.mark, record.generation) = (mark, generation);
        let written = self.store.mark(&record);
        self.record = Some(record);
        written.context(|| "writing the record of the move")
    }

    /// It goes on here; its addresses first, so that nobody is told that it is not there.
    fn thaw(&mut self, report: &mut dyn Report) -> Result<()> {
        for (address, taken) in self.taken.drain(..) {
            if let Err(e) = address.give_back(&taken) {
                report.warning(&format!("the address {address} could not be taken back: {e}"));
            }
        }
        self.feed = None;
        match self.standing.take() {
            Some(standing) => standing.thaw(self.record.as_ref().map(|record| record.processes.as_slice())),
            None => Ok(()),
        }
    }

    /// It runs there: what is left here is ended.
    fn reap(&mut self, report: &mut dyn Report) -> Result<()> {
        self.forward();
        self.fed(report);
        if let Some(standing) = self.standing.as_ref().filter(|_| self.outcome.downtime.is_zero()) {
            self.outcome.downtime = standing.for_long();
        }
        self.phase("end", report, |end, _| end.standing.take().map_or(Ok(()), Standing::end))
    }

    fn conclude(&mut self, verdict: Verdict) -> Result<()> {
        let to = &self.options.to;
        match verdict {
            Verdict::Moved => Ok(()),
            Verdict::Stayed(why) => {
                let e = self.error.take().unwrap_or_else(|| match self.peer.link.failure() {
                    Some(e) => e,
                    None => Error::other(format!("process {} was not moved: {why}", self.options.dump.pid)),
                });
                Err(stays(e, self.carry.left(&to.host)))
            }
            Verdict::Frozen { why, .. } => {
                if let Some(standing) = self.standing.take() {
                    standing.leave(&owner(&self.id));
                }
                let id = super::record::name(&self.id);
                let fed = self.feed.take().and_then(|(feed, _)| feed.failure().map(|e| format!("{why} ({e})")));
                let why = fed.unwrap_or(why);
                let what = format!(
                    "process {} stands still here, and it is not known whether it runs on {}: {why}",
                    self.options.dump.pid, to.host
                );
                Err(Error::new(Kind::Frozen, what).help(format!(
                    "when {} can be reached again: meio migrate --resume {id}; to have it here if it does not run there: meio migrate --abort {id}",
                    to.host
                )))
            }
            Verdict::RunsThere => Err(Error::other(format!("it runs on {}", to.host))),
        }
    }
}
