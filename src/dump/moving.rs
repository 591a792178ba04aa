//! A tree that is to go on elsewhere: images of it while it runs, each of what has changed since the one before, and the last
//! one of a tree that stands still until it is known where it goes on.

use super::parent::Heritage;
use super::{Made, Options, Outcome, Output, Session, Standstill, Then, kill};
use crate::error::Result;
use crate::image;
use crate::netlock::Manner;
use crate::netlock::kept::Owner;
use crate::progress::Report;
use crate::resource::birth::Birth;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The images of one move.
pub struct Moving<'o> {
    session: Session<'o>,
    before: Option<([u8; 16], image::Hash, Birth)>,
    /// How many were made.
    count: u64,
}

/// File name of an image of a move, by its number from 1.
pub fn name(n: u64) -> String {
    format!("{n}.meio")
}

impl<'o> Moving<'o> {
    /// Looks at everything that could stand in the way, and has the memory of the tree watched from the first image on.
    ///
    /// # Errors
    /// As [`super::run`]; nothing was touched.
    pub fn begin(options: &'o Options, report: &mut dyn Report) -> Result<Self> {
        let mut session = Session::begin(options, report)?;
        session.track(report)?;
        Ok(Moving { session, before: None, count: 0 })
    }

    /// An image of the tree, which goes on, into a pipe. The first is whole.
    pub fn round(&mut self, pipe: File, report: &mut dyn Report) -> Result<Outcome> {
        self.image(pipe, Then::LetGo, report).map(|made| made.outcome)
    }

    /// The last image, of a tree that stands still from then on.
    pub fn last(&mut self, pipe: File, report: &mut dyn Report) -> Result<(Outcome, Standing)> {
        self.session.manner = Manner::Copy;
        let mut made = self.image(pipe, Then::Hold, report)?;
        let still = made.held.take().ok_or_else(|| crate::error::Error::other("the tree is not held"))?;
        Ok((made.outcome, Standing { still, owner: Owner::image(&made.id) }))
    }

    fn image(&mut self, pipe: File, then: Then, report: &mut dyn Report) -> Result<Made> {
        self.session.begun = Instant::now();
        let parent = self.before.take().map(|(id, hash, birth)| Heritage::named((id, hash), birth, &name(self.count)));
        let made = self.session.image(&Output::Pipe(Arc::new(pipe)), parent, then, report)?;
        self.count += 1;
        if let Some(tracking) = &mut self.session.tracking {
            tracking.saved();
        }
        self.before = Some((made.id, made.hash, made.birth.clone()));
        Ok(made)
    }

    /// How many images were made.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// A tree that stands still, and whose last image is complete. Dropped, it goes on.
pub struct Standing {
    still: Standstill,
    owner: Owner,
}

impl Standing {
    /// How long it has stood still.
    pub fn for_long(&self) -> Duration {
        self.still.since.elapsed()
    }

    /// Packets that have come for it since this was asked last, from the IP header on.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        self.still.locks.copies()
    }

    /// It goes on here.
    ///
    /// # Errors
    /// When the network lock does not open; the tree runs all the same.
    pub fn thaw(self) -> Result<()> {
        let Standstill { frozen, mut locks, .. } = self.still;
        frozen.release();
        locks.open()?;
        locks.let_go();
        Ok(())
    }

    /// It goes on elsewhere: it is ended here, without a word to those whom it is connected with.
    pub fn end(self) -> Result<()> {
        let Standstill { frozen, captured, mut locks, .. } = self.still;
        kill(frozen, &captured, &mut locks, &self.owner)?;
        locks.take_back(&self.owner);
        Ok(())
    }
}
