//! Where pages are put first, so that the tree can go on before they are looked at.

use super::copy::{Job, Ready, STAGED_MOST, Spool, Staging, image_bytes};
use super::output::Target;
use crate::error::Result;
use std::fs::File;

/// One of the places, and whether the pages are there.
pub struct Room<'t> {
    place: Place<'t>,
    filled: bool,
}

enum Place<'t> {
    /// Memory, for little.
    Staging(Staging),
    /// The image file.
    Spool(Spool<'t>),
    /// Nowhere: pages are written as they come.
    Nowhere,
}

impl<'t> Room<'t> {
    /// For a tree with about `bytes` of memory, which goes on afterwards unless it is to be killed.
    /// `kept`: what [`Room::keep`] gave back.
    pub fn prepare(target: &'t Target, bytes: u64, kill: bool, kept: Option<Staging>) -> Result<Room<'t>> {
        // Also for what is added until it stands still.
        let bytes = bytes + bytes / 8;
        let place = if let Some(staging) = kept.filter(|kept| kept.room() >= bytes) {
            Place::Staging(staging)
        } else if bytes <= STAGED_MOST {
            Place::Staging(Staging::with_room(bytes)?)
        } else if kill || !target.is_unnamed() {
            // There is nothing to hurry for, or the file is in reach of others.
            Place::Nowhere
        } else {
            Spool::prepare(target.open(), image_bytes(bytes)).map_or(Place::Nowhere, Place::Spool)
        };
        Ok(Room { place, filled: false })
    }

    /// Reads everything into memory, if that is the place and it is large enough: true, and the tree may go on.
    pub fn stage(&mut self, jobs: &[Job], objects: &[File]) -> Result<bool> {
        if let Place::Staging(staging) = &mut self.place {
            self.filled = staging.read(jobs, objects)?;
        }
        Ok(self.filled)
    }

    /// Likewise into the image file, whose blocks begin at `start`.
    pub fn spool(&mut self, jobs: &[Job], objects: &[File], start: u64) -> Result<bool> {
        if let Place::Spool(spool) = &mut self.place {
            self.filled = spool.read(jobs, objects, start)?;
        }
        Ok(self.filled)
    }

    /// The memory, for the next time.
    pub fn keep(self) -> Option<Staging> {
        match self.place {
            Place::Staging(staging) => Some(staging),
            _ => None,
        }
    }

    /// What there is for the copying, when the tree has been let go.
    pub fn ready(&mut self) -> Ready<'_> {
        match &mut self.place {
            Place::Staging(staging) if self.filled => Ready::Staged(staging),
            Place::Spool(spool) => {
                spool.settle();
                if self.filled { Ready::Spooled(spool) } else { Ready::No }
            }
            _ => Ready::No,
        }
    }
}
