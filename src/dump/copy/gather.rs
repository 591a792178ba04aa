//! Blocks of which every page turns out to be the parent's: they are not written one by one, but named together at the end.
//! Whoever changes little between two images has many of them.

use super::{From, Job, cut};
use crate::image::{Encoded, Owner, PAGE};
use std::collections::BTreeMap;

/// What is done with a block.
pub enum Next {
    /// It is written.
    Now(Encoded),
    /// What it says is said by others, later.
    Later(Encoded),
}

/// What becomes of the blocks in their turn.
#[derive(Default)]
pub struct Gather {
    /// The number that each block has in the image, so far.
    numbers: Vec<u32>,
    blocks: u32,
    kept: BTreeMap<Owner, Vec<(u64, u64)>>,
}

impl Gather {
    /// Takes the next block, of this job, and gives it its number in the image when it is to be written.
    pub fn next(&mut self, job: &Job, block: Encoded) -> Next {
        let kept = if matches!(job.from, From::Parent) { None } else { block.kept() };
        if let Some(kept) = kept {
            self.numbers.push(u32::MAX); // nothing is a copy of what it does not hold
            let ranges = kept.into_iter().map(|(at, pages)| (at, at + u64::from(pages) * PAGE as u64));
            self.kept.entry(job.owner).or_default().extend(ranges);
            return Next::Later(block);
        }
        let number = self.blocks;
        self.numbers.push(number);
        self.blocks += 1;
        let numbers = &self.numbers;
        Next::Now(if number == block.block() { block } else { block.renumber(number, |n| numbers[n as usize]) })
    }

    /// What is to be named: by owner and address, as few blocks as it takes.
    pub fn rest(&mut self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (owner, mut ranges) in std::mem::take(&mut self.kept) {
            ranges.sort_unstable();
            ranges.dedup_by(|next, last| {
                let joined = last.1 == next.0;
                if joined {
                    last.1 = next.1;
                }
                joined
            });
            cut(owner, From::Parent, true, &ranges, &mut jobs);
        }
        jobs
    }

    /// How many blocks have a number.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }
}
