//! The tree is rebuilt from the last whole epoch, and runs when it may.

use super::{Agent, EARLY, Next};
use crate::error::{Error, Result};
use crate::migrate::agent::Told;
use crate::migrate::plan::Remark;
use crate::migrate::record::Member;
use crate::netlock;
use crate::progress::Report;
use crate::restore::{self, Input, SharedLock};
use crate::sys::priority::Urgent;
use crate::transport;
use crate::watch::setup::WHY;
use crate::watch::state::{Event, Guarantee};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

impl Agent<'_> {
    /// Rebuilds everything, and lets it run when the machine says so.
    pub(super) fn bring_back(&mut self) {
        let mut told = Told::default();
        self.restoring = true;
        let restored = self.restore(&mut told);
        (self.restoring, self.planted) = (false, None);
        let took = |what: &Remark| match what {
            Remark::Note(text) | Remark::Warning(text) => Some(text.clone()),
            _ => None,
        };
        told.0.iter().filter_map(took).for_each(|text| self.note(&text));
        match restored {
            Ok(root) => {
                netlock::let_go(self.lock.take());
                self.root = Member::of(root).ok();
                self.waiting.deliver();
                // Who brings the pages has what it needs.
                self.spool.drop_all();
                self.raised.stay();
                self.record.about.tree = self.root;
                let _ = self.store.write(&self.record);
                self.board.note(|status| status.pid = Some(root));
                self.events.push_back(Event::Runs);
            }
            Err(e) => {
                // Nobody is to be told that there is nobody.
                self.raised.take_down();
                self.lock = None;
                self.note(&format!("it could not be brought back: {}", in_full(&e)));
                self.failure = Some(in_full(&e));
                if self.machine.is_planned() {
                    self.say_why(&in_full(&e));
                }
                self.events.push_back(Event::Failed);
            }
        }
    }

    /// The primary's user is told why it could not be taken over as he wanted.
    pub(super) fn say_why(&self, why: &str) {
        if let Some(peer) = &self.peer {
            let (generation, payload) = (self.machine.generation(), why.as_bytes().to_vec());
            let _ = peer.link.send(&transport::Frame { kind: WHY, generation, payload });
        }
    }

    fn restore(&mut self, told: &mut Told) -> Result<i32> {
        let (_, image) = self.kept.ok_or_else(|| Error::other("there is nothing to take over from"))?;
        let mut begun = Instant::now();
        let known = self.spool.take(image)?;
        let _urgent = Urgent::begin();
        let holds = self.guarantee == Guarantee::Hold;
        let mut options = restore::Options {
            input: Input::Known(Arc::new(known)),
            detach: true,
            pidfile: None,
            pid_namespace: self.plan.pid_namespace,
            close_connections: !holds,
            only_at: holds.then(|| self.plan.addresses.iter().map(|address| address.ip).collect()),
            lazy: true,
            parent: None,
            absent: None,
            settled: Default::default(),
            lock: self.lock.clone(),
        };
        let mut asked = false;
        let mut done = restore::run_when(&options, &mut |root| self.may_run(root, &mut begun, &mut asked), told);
        if let Err(e) = &done
            && holds
            && !asked
        {
            told.warning(&format!("it cannot go on with its connections, which are broken off: {}", in_full(e)));
            options.close_connections = true;
            done = restore::run_when(&options, &mut |root| self.may_run(root, &mut begun, &mut asked), told);
        }
        let outcome = done?;
        if let Some(steps) = &mut self.steps {
            steps.parts(&outcome.phases);
            steps.done("run", begun.elapsed());
            told.note(&format!("taken over in {:.1} ms: {steps}", steps.total().as_secs_f64() * 1e3));
        }
        Ok(outcome.root_pid)
    }

    /// Everything is rebuilt: asks the machine whether it may run, and says since when it may.
    fn may_run(&mut self, root: i32, begun: &mut Instant, asked: &mut bool) -> Result<()> {
        *asked = true;
        self.planted = Member::of(root).ok();
        self.raised.planted(root);
        if let Some(steps) = &mut self.steps {
            steps.done("restore", begun.elapsed());
        }
        self.events.push_back(Event::Restored);
        let next = self.drive()?;
        *begun = Instant::now();
        match next {
            Next::Run => Ok(()),
            _ => Err(Error::other("it is not to be taken over any more")),
        }
    }

    pub(super) fn is_address_free(&mut self) -> bool {
        let early = self.early.take().filter(|(begun, _)| begun.elapsed() < 3 * EARLY);
        early.is_some_and(|(_, free)| free.recv() == Ok(true)) || self.raised.question()()
    }

    /// Who will have to be asked soon whether he has the address is asked while the primary is not lost for certain: by then it
    /// has given it up, whatever has become of it.
    pub(super) fn look_ahead(&mut self) {
        let silence = self.machine.silence(self.begun.elapsed());
        let soon = self.kept.is_some() && self.root.is_none() && (self.timeout..self.timeout + EARLY).contains(&(silence + EARLY));
        if !soon || self.early.as_ref().is_some_and(|(begun, _)| begun.elapsed() < 3 * EARLY) {
            return;
        }
        let (told, free) = channel();
        let question = self.raised.question();
        let look = move || {
            let _ = told.send(question());
        };
        if std::thread::Builder::new().name("probe".into()).spawn(look).is_ok() {
            self.early = Some((Instant::now(), free));
        }
    }

    /// Nothing of it is here yet, and as soon as its address is nobody answers.
    pub(super) fn block(&mut self) -> Result<()> {
        let (_, image) = self.kept.ok_or_else(|| Error::other("there is nothing to take over from"))?;
        if self.lock.is_none() {
            self.lock = Some(SharedLock::prepare()?);
        }
        let known = self.spool.known(image)?;
        self.lock.as_ref().map_or(Ok(()), |lock| lock.block(&known.tree))
    }

    /// Nothing is left of what was done to take over: at once, or when what is planted has been ended.
    pub(super) fn undo(&mut self) -> Option<Next> {
        self.note("it is not to be taken over after all");
        if self.restoring {
            return Some(Next::Undo);
        }
        self.raised.take_down();
        self.lock = None;
        None
    }
}

/// With everything that stood in the way.
fn in_full(e: &Error) -> String {
    let refusals = e.refusals.iter().map(|r| format!("; {}: {}", r.object, r.reason));
    std::iter::once(e.to_string()).chain(refusals).collect()
}
