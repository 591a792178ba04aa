//! The thread that has the tree, since ptrace binds it to one: images of it, and what it is to do at the end of a watch.

use super::bell::Bell;
use super::clean;
use super::copies::Ways;
use super::gate::Gate;
use super::protect::{Options, Outcome};
use super::pulse::Pulse;
use super::say::{Seen, Steady, tell};
use super::state::{Event, Guarantee, Mark, Said};
use super::status::Board;
use super::switch::Still;
use crate::dump::{self, moving::Moving};
use crate::error::{Error, Result};
use crate::migrate::record::Member;
use crate::progress::Report;
use crate::sys::signal;
use crate::transport::Sender as Streams;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

/// What the thread with the machine wants of the one with the tree.
pub enum Order {
    /// An epoch.
    Capture(Mark),
    /// It is to stand still: somebody else answers.
    Demote,
    /// The last epoch: it stands still from then on,
    Last(Mark),
    /// and goes on,
    Thaw,
    /// or ends here.
    Finish,
    /// What stands still since [`Order::Demote`] runs elsewhere, and ends here.
    Reap,
    /// This is to be known.
    Say(Said, Seen),
    /// The standby has had one more epoch.
    Whole(Mark),
    /// Copies up to this epoch are not needed any more.
    Discard(Mark),
    /// From now on images go to the standby at this place over these streams of a link of this number, to somebody who has so many of
    /// them already.
    Link(usize, u64, Streams, Option<u64>),
    /// Which of several standbys get the series that begins.
    Join(Vec<bool>),
    /// The standby at this place gets a copy of everything beside what the others get.
    Fill(usize),
    /// Something that is to be known,
    Tell(String),
    /// and by who wants to know much.
    Note(String),
    /// It is over.
    End(Result<()>),
}

/// Who has the tree: ptrace binds it to a thread.
pub struct Tree<'o> {
    /// What the user asked for.
    pub options: &'o Options,
    /// Images on their way.
    pub copies: Ways,
    /// Who makes them.
    pub moving: Option<Moving<'o>>,
    /// Who gets a copy of everything with the next one.
    pub fills: Option<usize>,
    /// It, when it stands still for the standby.
    pub still: Still,
    /// What has happened; with the standby at which place, if with one.
    pub events: Sender<(Option<usize>, Event)>,
    /// Of who takes the events.
    pub bell: Bell,
    /// What is wanted.
    pub orders: Receiver<Order>,
    /// Where what leaves it waits.
    pub gate: Gate,
    /// How things stand.
    pub board: Arc<Board>,
    /// Whether it does anything.
    pub pulse: Pulse,
    /// Its root.
    pub root: Member,
    /// It was said that the tree has ended.
    pub ended: bool,
    /// How often it was asked to end.
    pub asked: u32,
    /// When it was said last how things stand.
    pub shown: Option<Instant>,
}

impl Tree<'_> {
    fn tell(&self, event: Event) {
        self.tell_of(None, event);
    }

    fn tell_of(&self, of: Option<usize>, event: Event) {
        let _ = self.events.send((of, event));
        self.bell.ring();
    }

    /// Does what is wanted until that is the end.
    ///
    /// # Errors
    /// What the watch has failed of.
    pub fn serve(mut self, outcome: &mut Outcome, report: &mut dyn Report) -> Result<()> {
        const STEP: Duration = Duration::from_millis(50);
        let mut failed = None;
        loop {
            for signal in signal::passed().chain(signal::take()) {
                let wanted = signal == libc::SIGUSR1;
                self.asked += u32::from(!wanted);
                self.tell(if wanted { Event::Wanted } else { Event::Over });
            }
            self.still.forward();
            if self.pulse.quickens() {
                self.tell(Event::Idle(false));
            }
            match self.orders.recv_timeout(self.still.step(STEP)) {
                Ok(Order::Capture(mark)) => match self.capture(mark, false, outcome, report) {
                    Ok(()) => {
                        self.gate.captured(mark);
                        self.tell(Event::Captured(mark));
                    }
                    // Nothing is wrong with the tree.
                    Err(_) if !self.copies.has_streams() => {
                        self.tell(Event::Failed);
                        self.tell(Event::Anew);
                    }
                    Err(e) => {
                        outcome.ended = dump::ended(self.options.dump.pid);
                        if !outcome.ended {
                            failed.get_or_insert(e);
                        }
                        self.tell(Event::Failed);
                        self.tell(Event::Over);
                    }
                },
                Ok(Order::Last(mark)) => match self.capture(mark, true, outcome, report) {
                    Ok(()) => {
                        self.gate.captured(mark);
                        self.tell(Event::Captured(mark));
                    }
                    // What is wrong with the tree is seen by the next epoch.
                    Err(e) => {
                        report.warning(&format!("the last epoch could not be copied: {}", e.message));
                        self.tell(Event::Failed);
                        self.tell(Event::Anew);
                    }
                },
                Ok(Order::Thaw) => self.still.thaw(report),
                Ok(Order::Finish) => {
                    self.still.end(report);
                    self.gate.lose();
                    outcome.switched = true;
                    self.tell(Event::Finished);
                }
                Ok(Order::Demote) => {
                    self.still.thaw(report);
                    self.moving = None;
                    self.stop(report);
                    self.gate.lose();
                    outcome.demoted = true;
                    self.tell(Event::Demoted);
                }
                Ok(Order::Reap) => {
                    outcome.replaced = self.reap(report);
                    self.tell(if outcome.replaced { Event::Finished } else { Event::Failed });
                }
                Ok(Order::Say(said, seen)) => {
                    tell(said, outcome, report);
                    seen.tell(report);
                    if let Some(held) = self.gate.held().filter(|held| held.waits.count() > 0) {
                        report.note(&held.to_string());
                    }
                }
                Ok(Order::Whole(mark)) => {
                    self.copies.forget(mark);
                    outcome.epochs += 1;
                    self.show(outcome, report);
                }
                Ok(Order::Discard(mark)) => self.copies.forget(mark),
                Ok(Order::Link(of, link, streams, images)) => {
                    if !self.copies.link(of, link, streams, images) {
                        self.tell_of(Some(of), Event::Anew);
                    }
                    self.tell_of(Some(of), Event::Linked);
                }
                Ok(Order::Join(joined)) => self.copies.join(&joined),
                Ok(Order::Fill(of)) => self.fills = Some(of),
                Ok(Order::Tell(text)) => report.warning(&text),
                Ok(Order::Note(text)) => report.note(&text),
                Ok(Order::End(done)) => return failed.filter(|_| self.asked == 0 && !outcome.demoted).map_or(done, Err),
                // Without a standby nobody looks at the tree.
                Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                    if !self.ended && !outcome.switched && !outcome.replaced && !self.root.lives() =>
                {
                    (self.ended, outcome.ended) = (true, true);
                    self.tell(Event::Over);
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(_) => return Err(Error::other("the watch has failed")),
            }
        }
    }

    /// An image of what has changed, on its way to the standby.
    fn capture(&mut self, mark: Mark, last: bool, outcome: &mut Outcome, report: &mut dyn Report) -> Result<()> {
        if mark.number == 1 {
            (self.moving, self.fills) = (None, None);
            let mut moving = Moving::begin(&self.options.dump, false, report)?;
            let gate = self.gate.clone();
            moving.steadily(move || gate.stands());
            self.moving = Some(moving);
            // Whoever looks at a tree wants to be interrupted.
            signal::pass();
        }
        let nothing = || Error::other("there is nothing to go on from");
        let mut steady = Steady(report);
        let report: &mut dyn Report = if mark.number > 1 { &mut steady } else { steady.0 };
        self.board.begins(mark);
        let idle = self.pulse.begin();
        self.tell(Event::Idle(idle));
        let moving = self.moving.as_mut().ok_or_else(nothing)?;
        if self.fills.is_some() && !last {
            moving.wants_base();
        }
        moving.plainly(self.copies.is_open());
        let still = &mut self.still;
        let make = |pipe| if last { still.stop(moving, pipe, report) } else { moving.round(pipe, report) };
        let made = self.copies.item(mark, make)?;
        self.pulse.note(moving.processes(), made.tasks);
        self.fill(mark);
        let stop = made.pause.max(made.stops.unwrap_or_default());
        outcome.bytes += made.image_bytes;
        self.board.copied(mark, stop, made.image_bytes);
        outcome.longest = outcome.longest.max(stop);
        if mark.number > 1 {
            outcome.stops.push(stop);
            self.tell(Event::Stood(stop));
        }
        Ok(())
    }

    /// Somebody gets a copy of everything that stands for this epoch, which was just made.
    fn fill(&mut self, mark: Mark) {
        let Some(base) = self.moving.as_mut().and_then(Moving::base) else { return };
        let Some(of) = self.fills.take() else { return };
        let Some(mut filler) = self.copies.fill(of, mark) else { return self.tell_of(Some(of), Event::Anew) };
        // When it fails its link does.
        let work = move || drop(base.write(&mut filler).map(|()| filler.finish()));
        let _ = std::thread::Builder::new().name("fill".into()).spawn(work);
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
        let holds = self.options.limits.guarantee == Guarantee::Hold;
        let stopped = clean::stop(self.options.dump.pid, self.options.dump.freeze_timeout, holds);
        if let Err(e) = stopped {
            report.warning(&format!("the tree could not be stopped here: {}", e.message));
        }
    }

    /// It runs there, and ends here. Says whether it has.
    fn reap(&self, report: &mut dyn Report) -> bool {
        let holds = self.options.limits.guarantee == Guarantee::Hold;
        let ended = if self.root.lives() { clean::end(&self.options.dump, holds) } else { Ok(()) };
        if let Err(e) = &ended {
            report.warning(&format!("the tree stands still here, and could not be ended: {}", e.message));
        }
        ended.is_ok()
    }
}
