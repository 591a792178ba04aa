//! The bytes of jobs, out of where they are into meio's memory.

use super::{From, Job};
use crate::error::{Context, Error, Result};
use crate::image::PAGE;
use crate::sys::memory::{self, MOST_RANGES, MemFile};
use crate::sys::pagemap;
use crate::sys::signal;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// What may be the cause where guards are not told.
const HIDDEN: &str = "it may have guards (MADV_GUARD_INSTALL), which a dump can see as of Linux 6.15, or with CAP_SYS_ADMIN";
/// Bytes that one call reads at most. Below 2 MiB the kernel looks up fewer pages at a time, which costs a fifth more.
pub const BATCH: u64 = 2 << 20;

/// Cuts jobs into batches: neighbours that one call can read, of at most `most` bytes unless one job alone has more.
pub fn batches(jobs: &[Job], most: u64) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let (mut bytes, mut ranges) = (0, 0);
    for (n, job) in jobs.iter().enumerate() {
        let joins = batches.last().is_some_and(|batch| {
            jobs[batch.start].from == job.from && bytes + job.bytes() <= most && ranges + job.ranges.len() <= MOST_RANGES
        });
        match batches.last_mut().filter(|_| joins) {
            Some(batch) => batch.end = n + 1,
            None => {
                batches.push(n..n + 1);
                (bytes, ranges) = (0, 0);
            }
        }
        bytes += job.bytes();
        ranges += job.ranges.len();
    }
    batches
}

/// What `work` does with each of `items`, done by as many workers as there are `states`, one for each.
pub fn share<T: Send, S: Send>(items: Vec<T>, states: &mut [S], work: impl Fn(&mut S, T) -> Result<()> + Sync) -> Result<()> {
    if items.len() < 2 || states.len() < 2 {
        // Waking workers takes longer.
        let Some(state) = states.first_mut() else { return Ok(()) };
        return items.into_iter().try_for_each(|item| work(state, item));
    }
    let items = Mutex::new(items.into_iter());
    let failure = Mutex::new(None);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    rayon::in_place_scope(|scope| {
        for state in states {
            scope.spawn(|_| {
                while let Some(item) = next() {
                    if let Err(e) = signal::check_interrupted().and_then(|()| work(state, item)) {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        while next().is_some() {}
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Reads all jobs, each into its place, by all workers at once.
pub fn fill_all(jobs: &[Job], objects: &[File], mut places: Vec<&mut [u8]>) -> Result<()> {
    let workers = rayon::current_num_threads();
    // Small ones for little: nobody shall wait for the other's last one.
    let bytes: u64 = jobs.iter().map(Job::bytes).sum();
    let most = (bytes / (3 * workers as u64)).clamp(BATCH / 8, BATCH);
    let mut left = places.as_mut_slice();
    let mut items = Vec::new();
    for batch in batches(jobs, most) {
        let (these, others) = std::mem::take(&mut left).split_at_mut(batch.len());
        left = others;
        items.push((batch, these));
    }
    share(items, &mut vec![(); workers], |(), (batch, places)| fill(&jobs[batch], objects, places))
}

/// Reads a batch, each job into its place.
pub fn fill(jobs: &[Job], objects: &[File], places: &mut [&mut [u8]]) -> Result<()> {
    let Some(first) = jobs.first() else { return Ok(()) };
    match first.from {
        From::Memory(pid) => {
            let mut remote: Vec<(u64, u64)> = Vec::with_capacity(MOST_RANGES);
            for &(address, pages) in jobs.iter().flat_map(|job| &job.ranges) {
                match remote.last_mut() {
                    Some(last) if last.0 + last.1 == address => last.1 += bytes(pages),
                    _ => remote.push((address, bytes(pages))),
                }
            }
            let wanted = remote.iter().map(|r| r.1).sum::<u64>();
            let n = memory::read_ranges(pid, &remote, places).context(|| format!("reading the memory of process {pid}"))?;
            if n as u64 == wanted {
                return Ok(());
            }
            let unreadable = Error::other(format!("memory of process {pid} became unreadable"));
            Err(if pagemap::are_hidden() { unreadable.help(HIDDEN) } else { unreadable })
        }
        From::Protected(pid) => {
            let file = MemFile::open(pid).context(|| format!("opening the memory of process {pid}"))?;
            each_range(jobs, places, |address, piece| {
                file.read(address, piece).context(|| format!("reading protected memory of process {pid}"))
            })
        }
        From::Parent => Ok(()),
        From::Object(number) => each_range(jobs, places, |offset, piece| read_padded(&objects[number], offset, piece)),
    }
}

/// Reads the bytes of a job of a tree that runs, as far as they can be read; which those are. `buffer` has no others then.
pub fn fill_what_is_there(job: &Job, objects: &[File], buffer: &mut Vec<u8>) -> Vec<(u64, u32)> {
    if fill(std::slice::from_ref(job), objects, &mut [buffer]).is_ok() {
        return job.ranges.clone();
    }
    let mut ranges: Vec<(u64, u32)> = Vec::new();
    let mut filled = 0;
    for (address, n) in job.ranges.iter().flat_map(|&(a, n)| (0..u64::from(n)).map(move |k| (a + k * PAGE as u64, k))) {
        let page = Job { ranges: vec![(address, 1)], ..*job };
        if fill(&[page], objects, &mut [&mut buffer[filled..filled + PAGE]]).is_err() {
            continue;
        }
        filled += PAGE;
        match ranges.last_mut() {
            Some((start, pages)) if n > 0 && *start + bytes(*pages) == address => *pages += 1,
            _ => ranges.push((address, 1)),
        }
    }
    buffer.truncate(filled);
    ranges
}

fn bytes(pages: u32) -> u64 {
    u64::from(pages) * PAGE as u64
}

fn each_range(jobs: &[Job], places: &mut [&mut [u8]], read: impl Fn(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    for (job, place) in jobs.iter().zip(places) {
        let mut left = &mut **place;
        for &(address, pages) in &job.ranges {
            let (piece, others) = left.split_at_mut(bytes(pages) as usize);
            read(address, piece)?;
            left = others;
        }
    }
    Ok(())
}

/// Reads at `offset`; beyond the end of the file there are zeros.
fn read_padded(file: &File, offset: u64, piece: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < piece.len() {
        match file.read_at(&mut piece[done..], offset + done as u64).context(|| "reading shared memory")? {
            0 => {
                piece[done..].fill(0);
                break;
            }
            n => done += n,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Owner;

    fn job(from: From, ranges: &[(u64, u32)]) -> Job {
        Job { owner: Owner::Process(1), from, ranges: ranges.to_vec(), elide_zero: true }
    }

    #[test]
    fn a_batch_is_what_one_call_can_read() {
        let scattered: Vec<(u64, u32)> = (0..600).map(|n| (n * 8192, 1)).collect();
        let jobs = [
            job(From::Memory(1), &[(0, 128)]),
            job(From::Memory(1), &[(1 << 20, 128)]),
            job(From::Memory(1), &[(2 << 20, 1)]),
            job(From::Memory(2), &[(0, 1)]),
            job(From::Memory(2), &scattered),
            job(From::Memory(2), &scattered),
            job(From::Protected(2), &[(0, 900)]),
            job(From::Object(0), &[(0, 1)]),
        ];
        assert_eq!(batches(&jobs, 1 << 20), [0..2, 2..3, 3..4, 4..5, 5..6, 6..7, 7..8]);
        assert_eq!(batches(&jobs, 8 << 20), [0..3, 3..5, 5..6, 6..7, 7..8]);
    }

    #[test]
    fn workers_stop_at_the_first_failure() {
        let done = Mutex::new(0);
        let work = |(): &mut (), n: i32| {
            *done.lock().unwrap() += 1;
            if n == 3 { Err(Error::other("three")) } else { Ok(()) }
        };
        assert_eq!(share((0..1000).collect(), &mut [(), ()], work).unwrap_err().message, "three");
        assert!(*done.lock().unwrap() < 1000);
        share(vec![1, 2], &mut [(), ()], work).unwrap();
        share(vec![1], &mut [(), ()], work).unwrap();
    }

    #[test]
    fn what_was_read_stands_where_it_belongs() {
        let own = std::process::id() as i32;
        let source: Vec<u8> = (0..20 * PAGE).map(|n| (n / 7) as u8 ^ (n / PAGE) as u8).collect();
        let start = source.as_ptr() as u64;
        let at = |page: u64| start + page * PAGE as u64;
        let jobs = [job(From::Memory(own), &[(at(1), 2), (at(5), 1)]), job(From::Memory(own), &[(at(6), 3)])];
        let mut into = vec![0u8; 6 * PAGE];
        let (a, b) = into.split_at_mut(3 * PAGE);
        fill_all(&jobs, &[], vec![a, b]).unwrap();
        let page = |n: usize| &source[n * PAGE..(n + 1) * PAGE];
        assert_eq!(into, [page(1), page(2), page(5), page(6), page(7), page(8)].concat());
    }
}
