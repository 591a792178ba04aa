//! A tree that is to go on elsewhere: images of it while it runs, each of what has changed since the one before, and the last
//! one of a tree that stands still until it is known where it goes on.

use super::lock::Locks;
use super::parent::Heritage;
use super::tracking::Tracking;
use super::{Base, Made, Options, Outcome, Output, Rest, Session, Standstill, Then, kill};
use crate::error::Result;
use crate::image;
use crate::netlock::Manner;
use crate::netlock::kept::Owner;
use crate::progress::Report;
use crate::resource::birth::Birth;
use crate::resource::{Tree, mqueue, system_v};
use crate::sys::ear::Heard;
use crate::sys::namespace::Kind;
use crate::tracee::stop::Stopped;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The images of one move.
pub struct Moving<'o> {
    session: Session<'o>,
    before: Option<([u8; 16], image::Hash, Birth)>,
    /// Locks of images before the last: to take them away empties all queues of their network namespace.
    locks: Option<Locks>,
    /// How many were made.
    count: u64,
    processes: Vec<i32>,
    base: Option<Base>,
}

/// File name of an image of a move, by its number from 1.
pub fn name(n: u64) -> String {
    format!("{n}.meio")
}

impl<'o> Moving<'o> {
    /// Looks at everything that could stand in the way, and has the memory of the tree watched from the first image on, unless
    /// there will be but one.
    ///
    /// # Errors
    /// As [`super::run`]; nothing was touched.
    pub fn begin(options: &'o Options, once: bool, report: &mut dyn Report) -> Result<Self> {
        let mut session = Session::begin(options, report)?;
        if !once {
            session.track(report)?;
        }
        // To take a table away empties all queues of its network namespace, that of the next image's lock, too.
        session.lasting = Some(None);
        session.manner = Manner::Copy;
        Ok(Moving { session, before: None, locks: None, count: 0, processes: Vec::new(), base: None })
    }

    /// There will be no last image; `stands` is told whenever the tree stands still and nothing comes in, before anything of it is
    /// looked at, and says how it was answered who began connections, where that has to be asked of it.
    pub fn steadily(&mut self, stands: impl FnMut() -> Result<Option<Vec<Heard>>> + 'o) {
        self.session.manner = Manner::Hold;
        self.session.stands = Some(Box::new(stands));
        self.session.tracking.iter_mut().for_each(Tracking::compares);
    }

    /// [`Moving::last`] of one whose images were made [steadily](Moving::steadily): packets that come from then on can be taken.
    pub fn yields(&mut self, pipe: File, report: &mut dyn Report) -> Result<(Outcome, Standing)> {
        self.session.manner = Manner::Copy;
        // To make others takes longer than the tree stands still.
        let same = self.session.lasting.iter_mut().flatten().any(|locks| locks.copy().is_ok());
        if !same {
            self.locks = self.session.lasting.replace(None).flatten();
        }
        self.last(pipe, false, report)
    }

    /// An image of the tree, which goes on, into a pipe. The first is whole.
    pub fn round(&mut self, pipe: File, report: &mut dyn Report) -> Result<Outcome> {
        self.image(pipe, Then::LetGo, report).map(|made| made.outcome)
    }

    /// Waits until connections that the tree has closed have delivered everything, but not for longer than `patience`: they are in
    /// no image.
    pub fn settle(&self, patience: Duration) {
        if let Some(Some(locks)) = &self.session.lasting {
            locks.finish(patience);
        }
    }

    /// The last image, of a tree that stands still from then on. `leave`: what memory may come later is not in it.
    pub fn last(&mut self, pipe: File, leave: bool, report: &mut dyn Report) -> Result<(Outcome, Standing)> {
        self.session.leave = leave;
        let mut made = self.image(pipe, Then::Hold, report)?;
        let still = made.held.take().ok_or_else(|| crate::error::Error::other("the tree is not held"))?;
        Ok((made.outcome, Standing { still, owner: Owner::image(&made.id), rest: Arc::new(made.rest) }))
    }

    fn image(&mut self, pipe: File, then: Then, report: &mut dyn Report) -> Result<Made> {
        self.session.begun = Instant::now();
        let parent = self.before.take().map(|(id, hash, birth)| Heritage::named((id, hash), birth, &name(self.count)));
        // Whoever stands by keeps the tree of the image before.
        self.session.recall.files.follow(parent.is_some() && self.session.stands.is_some() && !self.session.based);
        let mut made = self.session.image(&Output::Pipe(Arc::new(pipe)), parent, then, report)?;
        self.count += 1;
        if let Some(tracking) = &mut self.session.tracking {
            tracking.saved();
        }
        self.before = Some((made.id, made.hash, made.birth.clone()));
        self.processes = std::mem::take(&mut made.processes);
        self.base = made.base.take();
        Ok(made)
    }

    /// Somebody who comes to the series later is to have a copy of everything: the next image is the one that it stands for.
    pub fn wants_base(&mut self) {
        self.session.based = true;
    }

    /// Whether somebody has pages that were read while the tree ran, and may be other than those of the image before: then the next image
    /// says of no page how it differs, or that it is as it was.
    pub fn plainly(&mut self, plain: bool) {
        self.session.tracking.iter_mut().for_each(|tracking| tracking.plain = plain);
    }

    /// That copy, once the image was made.
    pub fn base(&mut self) -> Option<Base> {
        self.base.take()
    }

    /// How many images were made.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The pids of those that the last one has.
    pub fn processes(&self) -> &[i32] {
        &self.processes
    }
}

/// A tree that stands still, and whose last image is complete. Dropped, it goes on.
pub struct Standing {
    still: Standstill,
    owner: Owner,
    rest: Arc<Rest>,
}

impl Standing {
    /// How long it has stood still.
    pub fn for_long(&self) -> Duration {
        self.still.since.elapsed()
    }

    /// The other ends of connections that the tree has closed and that have still something to deliver after `patience`.
    pub fn unfinished(&self, patience: Duration) -> Vec<SocketAddr> {
        self.still.locks.finish(patience).into_iter().map(|(_, peer)| peer).collect()
    }

    /// What was left out of the last image.
    pub fn rest(&self) -> Arc<Rest> {
        self.rest.clone()
    }

    /// Packets that have come for it since this was asked last, from the IP header on.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        self.still.locks.copies()
    }

    /// What must be known to let it go on once it [stands by itself](Standing::stop).
    pub fn stopped(&self) -> Result<Vec<Stopped>> {
        self.still.frozen.stopped()
    }

    /// What does not end with its processes.
    pub fn leftover(&self) -> Leftover {
        Leftover::of(&self.still.captured.tree)
    }

    /// Brings it into a group stop: whatever becomes of meio, it stands still.
    pub fn stop(&mut self) -> Result<()> {
        self.still.frozen.stop()
    }

    /// It goes on here. `stopped`: what was told before it was brought into a group stop, if it was.
    ///
    /// # Errors
    /// When a process does not wake or the network lock does not open; all else runs all the same.
    pub fn thaw(self, stopped: Option<&[Stopped]>) -> Result<()> {
        let Standstill { frozen, mut locks, .. } = self.still;
        let woken = match stopped {
            Some(stopped) => frozen.wake(stopped),
            None => {
                frozen.release();
                Ok(())
            }
        };
        let opened = locks.open();
        locks.let_go();
        woken.and(opened.map(drop))
    }

    /// It stands still here without meio, in its group stop, and nothing answers for it but under the name of `owner`.
    pub fn leave(self, owner: &Owner) {
        let Standstill { frozen, mut locks, .. } = self.still;
        // A lock that cannot be kept ends with meio; its connections are at addresses that are not here any more.
        let _ = locks.keep(owner);
        frozen.release();
    }

    /// It goes on elsewhere: it is ended here, without a word to those whom it is connected with.
    pub fn end(self) -> Result<()> {
        let Standstill { frozen, captured, mut locks, .. } = self.still;
        let leftover = Leftover::of(&captured.tree);
        kill(frozen, &captured, &mut locks, &self.owner)?;
        locks.take_back(&self.owner);
        leftover.remove();
        Ok(())
    }
}

/// What of a tree does not end with its processes, in the namespaces of meio: those of others go with these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Leftover {
    #[serde(skip_serializing_if = "system_v::Leftover::is_empty")]
    system_v: system_v::Leftover,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    message_queues: Vec<mqueue::Left>,
}

impl Leftover {
    /// Of a tree.
    pub fn of(tree: &Tree) -> Self {
        let root = tree.processes.first().and_then(|root| root.places.of(&tree.namespaces, Kind::Ipc));
        let elsewhere = tree.system_v_elsewhere.iter().map(|e| (e.namespace, &e.objects));
        let here = std::iter::once((root, &tree.system_v)).chain(elsewhere).find(|(namespace, _)| namespace.is_none());
        Leftover {
            system_v: here.map(|(_, objects)| system_v::Leftover::of(objects)).unwrap_or_default(),
            message_queues: mqueue::Left::of(&tree.message_queues),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Leftover::default()
    }

    /// Takes it away where the tree has ended, and lives elsewhere; not what others use.
    pub fn remove(&self) {
        self.system_v.remove();
        self.message_queues.iter().for_each(mqueue::Left::remove);
    }
}
