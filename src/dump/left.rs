//! What is left out of an image of a tree that stands still: its pages are read when somebody asks for them.

use super::copy::{From, Job, total};
use super::tree::Captured;
use crate::error::{Context, Error, Result};
use crate::image::{Left, Owner, PAGE};
use crate::resource::memory::{AddressSpace, LATER_FROM};
use crate::sys::memory;
use std::collections::{BTreeMap, HashMap};

const STEP: u64 = PAGE as u64;
/// Pages of a block: as much as one who waits for a page is kept waiting for.
const BLOCK: u32 = 32;

/// Pages of a tree that stands still, in blocks.
#[derive(Debug, Clone, Default)]
pub struct Rest {
    /// The blocks, as the other end knows them.
    pub blocks: Vec<Left>,
    /// The processes that have them, by their pids in the image.
    pids: HashMap<i32, i32>,
}

impl Rest {
    /// Takes out of what is to be copied what may come later.
    pub fn of(captured: &mut Captured) -> Rest {
        let mut rest = Rest::default();
        let mut all: BTreeMap<i32, Vec<(u64, u32)>> = BTreeMap::new();
        for process in &captured.tree.processes {
            let Some(space) = &process.memory else { continue };
            let of = |job: &Job| matches!(job.from, From::Memory(_)) && job.owner == Owner::Process(process.pid);
            let ranges = large(space, captured.jobs.iter().filter(|job| of(job)));
            if ranges.is_empty() {
                continue;
            }
            let mut taken = Vec::new();
            for job in captured.jobs.iter_mut().filter(|job| of(job)) {
                let From::Memory(pid) = job.from else { continue };
                rest.pids.insert(process.pid, pid);
                taken.extend(take(&mut job.ranges, &ranges));
            }
            taken.sort_unstable();
            all.insert(process.pid, taken);
        }
        captured.jobs.retain(|job| !job.ranges.is_empty());
        captured.bytes = total(&captured.jobs);
        rest.blocks = all.into_iter().flat_map(|(pid, ranges)| cut(Owner::Process(pid), &ranges)).collect();
        rest
    }

    /// How many bytes they are.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.bytes() as u64).sum()
    }

    /// The data of a block, into `buffer`.
    ///
    /// # Errors
    /// When the tree is not there any more.
    pub fn read(&self, block: u32, buffer: &mut Vec<u8>) -> Result<()> {
        let none = || Error::other(format!("there is no block {block}"));
        let left = self.blocks.get(block as usize).ok_or_else(none)?;
        let Owner::Process(owner) = left.owner else { return Err(none()) };
        let pid = *self.pids.get(&owner).ok_or_else(none)?;
        buffer.resize(left.bytes(), 0);
        let ranges: Vec<(u64, u64)> = left.ranges.iter().map(|&(address, pages)| (address, u64::from(pages) * STEP)).collect();
        let read = memory::read_ranges(pid, &ranges, &mut [&mut buffer[..]]).context(|| format!("reading the memory of process {pid}"))?;
        if read == buffer.len() { Ok(()) } else { Err(Error::other(format!("not all memory of process {pid} can be read"))) }
    }
}

/// The mappings that may come later and of which enough is to be copied.
fn large<'j>(space: &AddressSpace, jobs: impl Iterator<Item = &'j Job>) -> Vec<(u64, u64)> {
    let mut pages = vec![0u64; space.mappings.len()];
    for &(address, count) in jobs.flat_map(|job| &job.ranges) {
        // A range is in one mapping, or in several that touch.
        let (mut at, end) = (address, address + u64::from(count) * STEP);
        let mut i = space.mappings.partition_point(|m| m.end <= at);
        while let Some(mapping) = space.mappings.get(i).filter(|m| m.start < end) {
            let to = mapping.end.min(end);
            pages[i] += to.saturating_sub(at.max(mapping.start)) / STEP;
            (at, i) = (to, i + 1);
        }
    }
    let large = space.mappings.iter().zip(pages).filter(|(m, pages)| *pages >= LATER_FROM && m.can_wait());
    large.map(|(m, _)| (m.start, m.end)).collect()
}

/// Takes out of the ranges of a job what is in one of these.
fn take(ranges: &mut Vec<(u64, u32)>, from: &[(u64, u64)]) -> Vec<(u64, u32)> {
    let mut taken = Vec::new();
    let mut kept = Vec::new();
    for &(address, pages) in ranges.iter() {
        let (mut at, end) = (address, address + u64::from(pages) * STEP);
        while at < end {
            let next = from.get(from.partition_point(|r| r.1 <= at));
            let (to, inside) = match next {
                Some(r) if r.0 <= at => (r.1.min(end), true),
                Some(r) => (r.0.min(end), false),
                None => (end, false),
            };
            let list = if inside { &mut taken } else { &mut kept };
            list.push((at, ((to - at) / STEP) as u32));
            at = to;
        }
    }
    *ranges = kept;
    taken
}

/// Blocks of these ranges.
fn cut(owner: Owner, ranges: &[(u64, u32)]) -> Vec<Left> {
    let mut blocks = Vec::new();
    let mut room = 0;
    for &(mut address, mut pages) in ranges {
        while pages > 0 {
            if room == 0 {
                blocks.push(Left { owner, ranges: Vec::new() });
                room = BLOCK;
            }
            let some = pages.min(room);
            if let Some(block) = blocks.last_mut() {
                block.ranges.push((address, some));
            }
            room -= some;
            pages -= some;
            address += u64::from(some) * STEP;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_and_nothing_comes_twice() {
        let at = |list: &[(u64, u32)]| list.iter().map(|r| (r.0 * STEP, r.1)).collect::<Vec<_>>();
        let mut ranges = at(&[(1, 10), (20, 5), (40, 100)]);
        let taken = take(&mut ranges, &[(0, 4 * STEP), (8 * STEP, 22 * STEP), (50 * STEP, 60 * STEP)]);
        assert_eq!(taken, at(&[(1, 3), (8, 3), (20, 2), (50, 10)]));
        assert_eq!(ranges, at(&[(4, 4), (22, 3), (40, 10), (60, 80)]));
        let blocks = cut(Owner::Process(3), &at(&[(0, 30), (50, 40), (200, 1)]));
        let seen: Vec<Vec<(u64, u32)>> = blocks.into_iter().map(|b| b.ranges).collect();
        assert_eq!(seen, [at(&[(0, 30), (50, 2)]), at(&[(52, 32)]), at(&[(84, 6), (200, 1)])]);
    }
}
