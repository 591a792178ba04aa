//! A move that an earlier meio left, taken up from its record.

use super::frozen;
use super::message::{Frame, Message};
use super::plan::{pack, unpack};
use super::record::{Claim, Record, Store};
use super::state::{Action, Event, Limits, Outcome, Recorded, Source, Wish};
use super::{MOVE, record};
use crate::error::{Context, Error, Kind, Result};
use crate::progress::Report;
use crate::sys::signal;
use crate::transport::{self, Destination, How, Peer};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Finds out where the tree of a move runs, and sees to it that it does where it should: what came of that, in words.
///
/// # Errors
/// Exit code 10 when no such move is on record, 16 when it still stands still.
pub fn take_up(name: &str, wish: Wish, how: &How, report: &mut dyn Report) -> Result<String> {
    signal::catch();
    let store = Store::open()?;
    let record = store.find(name)?;
    let claim = store.claim(&record.id)?;
    let machine = Source::resume(record.generation + 1, record.mark, wish, Limits::default());
    Again { store, record, machine, how, peer: None, begun: Instant::now(), error: None, _claim: claim }.drive(report)
}

struct Again<'h> {
    store: Store,
    record: Record,
    machine: Source,
    how: &'h How,
    peer: Option<Peer>,
    begun: Instant,
    error: Option<Error>,
    _claim: Claim,
}

impl Again<'_> {
    fn drive(&mut self, report: &mut dyn Report) -> Result<String> {
        let mut events = VecDeque::from([Event::Start]);
        loop {
            while let Some(event) = events.pop_front() {
                for action in self.machine.step(event, self.begun.elapsed()) {
                    if let Action::Report(outcome) = action {
                        return self.conclude(outcome);
                    }
                    events.extend(self.perform(action, report));
                }
            }
            if signal::take().is_some() {
                events.push_back(Event::Interrupted);
                continue;
            }
            const STEP: Duration = Duration::from_millis(100);
            events.push_back(self.hear(STEP));
        }
    }

    fn hear(&mut self, limit: Duration) -> Event {
        let Some(peer) = &mut self.peer else {
            std::thread::sleep(limit);
            return Event::Tick;
        };
        match peer.link.receive(Some(limit)) {
            Ok(frame) if frame.kind == MOVE => match unpack::<Frame>(&frame.payload) {
                Ok(heard) if heard.id == self.record.id => Event::Heard { generation: heard.generation, message: heard.message },
                _ => Event::Tick,
            },
            Ok(_) => Event::Tick,
            Err(_) if peer.link.failure().is_none() => Event::Tick, // nothing came
            Err(e) => {
                self.error.get_or_insert(e);
                self.peer = None;
                Event::LinkLost
            }
        }
    }

    fn perform(&mut self, action: Action, report: &mut dyn Report) -> Option<Event> {
        match action {
            Action::Send(message) => {
                let _ = self.send(message); // that the link is lost is heard soon enough
                None
            }
            Action::Link => Some(match self.connect(report) {
                Ok(()) => Event::Linked,
                Err(e) => {
                    report.note(&e.message);
                    self.error = Some(e);
                    std::thread::sleep(Duration::from_millis(200));
                    Event::LinkLost
                }
            }),
            Action::Mark(mark) => {
                (self.record.mark, self.record.generation) = (mark, self.machine.generation());
                Some(Event::Marked(self.store.mark(&self.record).map_or(Recorded::Failed, |()| Recorded::Written)))
            }
            Action::Thaw => Some(self.thaw(report).map_or_else(|e| self.stuck(e), |()| Event::Thawed)),
            Action::Reap => {
                let done = frozen::reap(&self.record).and_then(|()| frozen::unlock(&self.record));
                self.record.leftover.remove();
                Some(done.map_or_else(|e| self.stuck(e), |()| Event::Reaped))
            }
            Action::Forget => {
                if let Err(e) = self.store.forget(&self.record.id) {
                    report.warning(&e.message);
                }
                None
            }
            _ => None,
        }
    }

    fn stuck(&mut self, e: Error) -> Event {
        let text = e.message.clone();
        self.error = Some(e);
        Event::Stuck(text)
    }

    fn connect(&mut self, report: &mut dyn Report) -> Result<()> {
        let to = Destination::parse(&self.record.target).context(|| "the target on record")?;
        self.peer = Some(transport::connect(&to, self.how, report)?);
        Ok(())
    }

    fn send(&mut self, message: Message) -> Result<()> {
        let Some(peer) = &self.peer else { return Ok(()) };
        let generation = self.machine.generation();
        let frame = Frame { id: self.record.id, generation, message };
        peer.link.send(&transport::Frame { kind: MOVE, generation, payload: pack(&frame)? })
    }

    /// It goes on here, with its addresses.
    fn thaw(&mut self, report: &mut dyn Report) -> Result<()> {
        for address in &self.record.addresses {
            match address.bring_up() {
                Ok(()) => frozen::announce(address),
                Err(e) => report.warning(&format!("the address {address} could not be taken back: {e}")),
            }
        }
        frozen::thaw(&self.record)
    }

    fn conclude(&mut self, outcome: Outcome) -> Result<String> {
        let Record { target, .. } = &self.record;
        let pid = self.record.processes.first().map_or(0, |p| p.pid);
        let id = record::name(&self.record.id);
        match outcome {
            Outcome::Moved => Ok(format!("process {pid} runs on {target}; what was left here was ended")),
            Outcome::Stayed(why) => Ok(format!("process {pid} goes on running here: {why}")),
            Outcome::RunsThere => Err(Error::other(format!("process {pid} runs on {target}: it was left there, and stands still here"))
                .help(format!("to end what is left here: meio migrate --resume {id}"))),
            Outcome::Frozen { why, perhaps } => {
                let why = self.error.take().map_or(why, |e| e.message);
                let what = match perhaps {
                    true => format!("process {pid} stands still here; it does not run on {target} any more, but may have: {why}"),
                    false => format!("process {pid} stands still here, and it is not known whether it runs on {target}: {why}"),
                };
                let help = match perhaps {
                    true => format!("look there; when it is sure that it does not run: meio migrate --abort {id} --force"),
                    false => format!("try again when {target} can be reached; when it is gone for good: meio migrate --abort {id} --force"),
                };
                Err(Error::new(Kind::Frozen, what).help(help))
            }
        }
    }
}
