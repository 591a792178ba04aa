//! Page content on its way from stopped processes into an image.
//!
//! Workers read and encode blocks in parallel; the calling thread, which holds the tree by ptrace, appends them in
//! order. At most [`WINDOW`] blocks are in flight, so memory stays bounded whatever the size of the tree. The tree
//! is needed only until the last block has been *read*: `read_all` is called then, while the rest is still written.

use crate::error::{Context, Error, Result};
use crate::image::{BLOCK_PAGES, Codec, Dedup, Encoded, Owner, PAGE, Pages, Writer, encode};
use crate::sys::memory::{self, MemFile};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex};

/// Blocks of at most 1 MiB that may be read but not yet written.
const WINDOW: usize = 24;

/// Where the bytes of a block are.
#[derive(Debug, Clone, Copy)]
pub enum From {
    /// Memory of a process, by process_vm_readv(2).
    Memory(i32),
    /// Memory that is not readable to the process itself, by `/proc/PID/mem`.
    Protected(i32),
    /// Content of the object with this number.
    Object(usize),
}

/// One block to be.
#[derive(Debug)]
pub struct Job {
    /// Whose pages.
    pub owner: Owner,
    /// Where they are.
    pub from: From,
    /// Address (or offset) and number of pages.
    pub ranges: Vec<(u64, u32)>,
    /// Pages of zeros need not be named.
    pub elide_zero: bool,
}

/// Cuts ranges (start, end) into jobs of at most one block each.
pub fn cut(owner: Owner, from: From, elide_zero: bool, ranges: &[(u64, u64)], jobs: &mut Vec<Job>) {
    let page = PAGE as u64;
    let mut job: Option<(Vec<(u64, u32)>, u64)> = None;
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            let (list, room) = job.get_or_insert_with(|| (Vec::new(), BLOCK_PAGES as u64));
            let pages = ((end - at) / page).min(*room);
            list.push((at, pages as u32));
            *room -= pages;
            at += pages * page;
            if *room == 0
                && let Some((ranges, _)) = job.take()
            {
                jobs.push(Job { owner, from, ranges, elide_zero });
            }
        }
    }
    if let Some((ranges, _)) = job {
        jobs.push(Job { owner, from, ranges, elide_zero });
    }
}

/// What the workers and the writer share.
#[derive(Default)]
struct Flow {
    /// Next job to take.
    next: usize,
    /// Jobs whose bytes have been read.
    read: usize,
    /// Blocks that have been written.
    written: usize,
    ready: BTreeMap<usize, Result<Encoded>>,
    buffers: Vec<Vec<u8>>,
    stopped: bool,
}

struct Shared<'a> {
    flow: Mutex<Flow>,
    moved: Condvar,
    jobs: &'a [Job],
    objects: &'a [File],
    codec: Codec,
    dedup: &'a Dedup,
}

/// Copies all jobs into `writer`. `progress` is told the pages written so far.
pub fn copy<W: Write>(
    jobs: &[Job],
    objects: &[File],
    codec: Codec,
    dedup: &Dedup,
    writer: &mut Writer<W>,
    mut read_all: impl FnMut(),
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    if jobs.is_empty() {
        read_all();
        return Ok(());
    }
    let shared = Shared { flow: Mutex::default(), moved: Condvar::new(), jobs, objects, codec, dedup };
    let workers = rayon::current_num_threads().min(jobs.len());
    rayon::in_place_scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|_| shared.work());
        }
        let result = shared.write(writer, &mut read_all, &mut progress);
        shared.lock().stopped = true;
        shared.moved.notify_all();
        result
    })
}

impl Shared<'_> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A worker: takes jobs until there are none.
    fn work(&self) {
        loop {
            let (number, mut buffer) = {
                let mut flow = self.lock();
                while !flow.stopped && flow.next < self.jobs.len() && flow.next >= flow.written + WINDOW {
                    flow = self.moved.wait(flow).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                if flow.stopped || flow.next >= self.jobs.len() {
                    return;
                }
                flow.next += 1;
                (flow.next - 1, flow.buffers.pop().unwrap_or_default())
            };
            let job = &self.jobs[number];
            let pages: usize = job.ranges.iter().map(|r| r.1 as usize).sum();
            buffer.resize(pages * PAGE, 0);
            let filled = fill(job, self.objects, &mut buffer);
            {
                let mut flow = self.lock();
                flow.read += 1;
                if flow.read == self.jobs.len() {
                    self.moved.notify_all();
                }
            }
            let encoded = filled.map(|()| {
                let pages = Pages { ranges: &job.ranges, data: buffer, elide_zero: job.elide_zero };
                encode(number as u32, job.owner, pages, self.codec, Some(self.dedup))
            });
            self.lock().ready.insert(number, encoded);
            self.moved.notify_all();
        }
    }

    /// The writer: appends blocks in order.
    fn write<W: Write>(
        &self,
        writer: &mut Writer<W>,
        read_all: &mut dyn FnMut(),
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        let mut told = false;
        for number in 0..self.jobs.len() {
            let block = {
                let mut flow = self.lock();
                loop {
                    if flow.read == self.jobs.len() && !told {
                        told = true;
                        drop(flow);
                        read_all();
                        flow = self.lock();
                    }
                    if let Some(block) = flow.ready.remove(&number) {
                        break block?;
                    }
                    flow = self.moved.wait(flow).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
            };
            writer.append(&block)?;
            done += self.jobs[number].ranges.iter().map(|r| u64::from(r.1)).sum::<u64>();
            let buffer = block.into_buffer();
            let mut flow = self.lock();
            flow.written = number + 1;
            flow.buffers.push(buffer);
            drop(flow);
            self.moved.notify_all();
            progress(done)?;
        }
        if !told {
            read_all();
        }
        Ok(())
    }
}

/// Reads the bytes of a job.
fn fill(job: &Job, objects: &[File], buffer: &mut [u8]) -> Result<()> {
    let bytes = |pages: u32| u64::from(pages) * PAGE as u64;
    match job.from {
        From::Memory(pid) => {
            let remote: Vec<(u64, u64)> = job.ranges.iter().map(|&(a, n)| (a, bytes(n))).collect();
            let n = memory::read_ranges(pid, &remote, buffer).context(|| format!("reading the memory of process {pid}"))?;
            if n == buffer.len() { Ok(()) } else { Err(Error::other(format!("memory of process {pid} became unreadable"))) }
        }
        From::Protected(pid) => {
            let file = MemFile::open(pid).context(|| format!("opening the memory of process {pid}"))?;
            let mut at = 0;
            for &(address, pages) in &job.ranges {
                let n = bytes(pages) as usize;
                file.read(address, &mut buffer[at..at + n]).context(|| format!("reading protected memory of process {pid}"))?;
                at += n;
            }
            Ok(())
        }
        From::Object(number) => {
            let mut at = 0;
            for &(offset, pages) in &job.ranges {
                let piece = &mut buffer[at..at + bytes(pages) as usize];
                read_padded(&objects[number], offset, piece)?;
                at += piece.len();
            }
            Ok(())
        }
    }
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

    #[test]
    fn cutting_keeps_every_page_once_and_fills_blocks() {
        let page = PAGE as u64;
        let ranges = [(0, 300 * page), (400 * page, 401 * page), (1000 * page, 1600 * page)];
        let mut jobs = Vec::new();
        cut(Owner::Process(1), From::Memory(1), true, &ranges, &mut jobs);
        let sizes: Vec<u32> = jobs.iter().map(|j| j.ranges.iter().map(|r| r.1).sum()).collect();
        assert_eq!(sizes, [256, 256, 256, 133]);
        let mut pages: Vec<u64> =
            jobs.iter().flat_map(|j| &j.ranges).flat_map(|&(a, n)| (0..u64::from(n)).map(move |i| a / page + i)).collect();
        let expected: Vec<u64> = (0..300).chain([400]).chain(1000..1600).collect();
        pages.dedup();
        assert_eq!(pages, expected);
    }
}
