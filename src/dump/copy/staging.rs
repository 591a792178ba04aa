//! Memory that pages are read into first, so that the tree can go on before they are looked at.

use super::read::fill_all;
use super::{Job, total};
use crate::error::{Context, Result};
use crate::sys::region::Region;
use std::fs::File;
use std::ops::Range;

/// Bytes that are staged at most: with all the rest, meio stays below 64 MiB.
pub const MOST: u64 = 40 << 20;

/// Room for pages, kept from one dump to the next: its memory is there before a tree is stopped.
pub struct Staging {
    region: Region,
    /// Where the bytes of each job are, after [`Staging::read`].
    places: Vec<Range<usize>>,
}

impl Staging {
    /// With room for so many bytes, but for [`MOST`] at most.
    pub fn with_room(bytes: u64) -> Result<Staging> {
        let making = || "making room for pages";
        let region = Region::anonymous(bytes.min(MOST) as usize).context(making)?;
        region.populate(0, region.len()).context(making)?;
        Ok(Staging { region, places: Vec::new() })
    }

    /// Bytes for which there is room.
    pub fn room(&self) -> u64 {
        self.region.len() as u64
    }

    /// Reads all that the jobs name: afterwards the tree may go on. False, and nothing is read, when it has no room.
    pub fn read(&mut self, jobs: &[Job], objects: &[File]) -> Result<bool> {
        self.places.clear();
        if total(jobs) > self.region.len() as u64 {
            return Ok(false);
        }
        let mut left = self.region.bytes_mut();
        let mut pieces = Vec::with_capacity(jobs.len());
        let mut at = 0;
        for job in jobs {
            let length = job.bytes() as usize;
            let (piece, others) = left.split_at_mut(length);
            left = others;
            pieces.push(piece);
            self.places.push(at..at + length);
            at += length;
        }
        fill_all(jobs, objects, pieces)?;
        Ok(true)
    }

    /// The bytes of a job that was read.
    pub fn bytes(&self, job: usize) -> &[u8] {
        &self.region.bytes()[self.places[job].clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{From, cut};
    use super::*;
    use crate::image::{Owner, PAGE};

    #[test]
    fn it_holds_what_it_has_room_for_again_and_again() {
        let own = std::process::id() as i32;
        let source: Vec<u8> = (0..1024 * PAGE).map(|n| (n / PAGE) as u8).collect();
        let start = source.as_ptr() as u64;
        let mut staging = Staging::with_room(201 * PAGE as u64).unwrap();
        for first in 0..3 {
            let mut jobs = Vec::new();
            let range = |from: u64, to: u64| (start + from * PAGE as u64, start + to * PAGE as u64);
            cut(Owner::Process(own), From::Memory(own), true, &[range(first, 200), range(300, 301)], &mut jobs);
            assert!(staging.read(&jobs, &[]).unwrap());
            assert_eq!(staging.bytes(0)[0], first as u8);
            assert_eq!(staging.bytes(1).last(), Some(&44));
            cut(Owner::Process(own), From::Memory(own), true, &[range(0, 512)], &mut jobs);
            assert!(!staging.read(&jobs, &[]).unwrap());
        }
    }
}
