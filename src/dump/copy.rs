//! Page content on its way from stopped processes into an image.
//!
//! Workers read and encode blocks in parallel. Into a file they also write them, each to its place, which is known as
//! soon as all blocks before it are encoded: a block never leaves the cache of the processor that read it. To a
//! stream the calling thread, which holds the tree by ptrace, appends them in order. At most [`WINDOW`] blocks are in
//! flight, so memory stays bounded whatever the size of the tree. The tree is needed only until the last block has
//! been *read*: `read_all` is called then, while the rest is still written. What was read before ([`Ready`]) needs it
//! not at all.

mod gather;
mod read;
mod spool;
mod staging;

use super::output::Interruptible;
use super::parent::Heritage;
use super::tracking::Tracking;
use crate::error::{Context, Error, Result};
use crate::image::{
    BLOCK_PAGES, Codec, Dedup, Encoded, MAX_KEPT, Owner, PAGE, Pages, Placed, Writer, encode, encode_child, encode_kept, encode_known,
};
use gather::{Gather, Next};
pub use read::fill_what_is_there;
pub use spool::Spool;
pub use staging::{MOST as STAGED_MOST, Staging};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Blocks that may be read but not yet written.
const WINDOW: usize = 32;
/// Pages of a block. Half of what the format allows: 512 KiB are hashed twice and written while they are still in the
/// second-level cache, and zstd's fast levels look back no further.
const JOB_PAGES: usize = BLOCK_PAGES / 2;
/// How often the caller hears of the progress, and is asked whether to go on.
const TELL: Duration = Duration::from_millis(40);

/// Where the bytes of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Memory of a process, by process_vm_readv(2).
    Memory(i32),
    /// Memory that is not readable to the process itself, by `/proc/PID/mem`.
    Protected(i32),
    /// Content of the object with this number.
    Object(usize),
    /// As in the parent image: nothing is read. Only where that has every one of these pages.
    Parent,
}

impl From {
    /// Ranges, and pages in them, that one block holds at most.
    fn room(self) -> (usize, u64) {
        match self {
            From::Parent => MAX_KEPT,
            _ => (usize::MAX, JOB_PAGES as u64),
        }
    }
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

impl Job {
    /// Pages that are read for it.
    pub fn pages(&self) -> u64 {
        if matches!(self.from, From::Parent) { 0 } else { self.ranges.iter().map(|r| u64::from(r.1)).sum() }
    }

    /// Bytes that are read for it.
    pub fn bytes(&self) -> u64 {
        self.pages() * PAGE as u64
    }
}

/// Bytes to read in all jobs.
pub fn total(jobs: &[Job]) -> u64 {
    jobs.iter().map(Job::bytes).sum()
}

/// Cuts ranges (start, end) into jobs of at most one block each.
pub fn cut(owner: Owner, from: From, elide_zero: bool, ranges: &[(u64, u64)], jobs: &mut Vec<Job>) {
    let page = PAGE as u64;
    let (most, room) = from.room();
    let mut job: Option<(Vec<(u64, u32)>, u64)> = None;
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            let (list, room) = job.get_or_insert_with(|| (Vec::new(), room));
            let pages = ((end - at) / page).min(*room);
            list.push((at, pages as u32));
            *room -= pages;
            at += pages * page;
            if (*room == 0 || list.len() == most)
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

/// About how large an image with so many bytes of memory becomes when nothing of it is left out.
pub fn image_bytes(memory: u64) -> u64 {
    let fronts = memory / (JOB_PAGES * PAGE) as u64 + 2;
    memory + fronts * PAGE as u64
}

/// What the workers and the calling thread share.
struct Flow<'w, W: Write> {
    writer: &'w mut Writer<W>,
    /// Next job to take.
    next: usize,
    /// Jobs whose bytes have been read.
    read: usize,
    /// Blocks that have their place in the image: all before this one.
    placed: usize,
    /// Blocks that have been written.
    written: usize,
    /// Pages that have been written.
    pages: u64,
    /// Encoded, by number.
    ready: BTreeMap<usize, Encoded>,
    /// What of them is written.
    gather: Gather,
    /// To be written, with the numbers of their jobs.
    due: VecDeque<(usize, Placed, Encoded)>,
    buffers: Vec<Vec<u8>>,
    failure: Option<Error>,
    stopped: bool,
}

struct Shared<'a, 'w, W: Write> {
    flow: Mutex<Flow<'w, W>>,
    /// There is room, or something to write, or it is over.
    moved: Condvar,
    /// Something for the calling thread.
    news: Condvar,
    from: Source<'a>,
    to: Output<'a>,
}

/// Where blocks are written; the same that the writer has as its output.
#[derive(Clone, Copy)]
pub enum Output<'a> {
    /// At any place of a file, in parallel. Its offset must be set to the writer's position afterwards.
    File(&'a File),
    /// One after the other.
    Stream(&'a File),
}

/// What is copied, and how.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// All blocks to be.
    pub jobs: &'a [Job],
    /// The objects that they name.
    pub objects: &'a [File],
    /// How data is stored.
    pub codec: Codec,
    /// Pages known so far.
    pub dedup: &'a Dedup,
    /// The parent of the image.
    pub parent: Option<&'a Heritage>,
    /// Whom to tell what was copied.
    pub tracking: Option<&'a Tracking>,
    /// What has been read already.
    pub ready: Ready<'a>,
}

/// Where the bytes of the jobs are when the copying begins.
#[derive(Clone, Copy)]
pub enum Ready<'a> {
    /// Where the jobs say: they are read one by one.
    No,
    /// In memory, all of them.
    Staged(&'a Staging),
    /// In the image file, all of them.
    Spooled(&'a Spool<'a>),
}

/// Copies all jobs into `writer`'s image. `progress` is told the pages written so far.
pub fn copy<W: Write + Send>(
    from: Source<'_>,
    writer: &mut Writer<W>,
    to: Output<'_>,
    mut read_all: impl FnMut(),
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let read = match from.ready {
        Ready::No => 0,
        Ready::Staged(_) | Ready::Spooled(_) => from.jobs.len(),
    };
    let flow = Flow {
        writer,
        next: 0,
        read,
        placed: 0,
        written: 0,
        pages: 0,
        ready: BTreeMap::new(),
        gather: Gather::default(),
        due: VecDeque::new(),
        buffers: Vec::new(),
        failure: None,
        stopped: false,
    };
    let shared = Shared { flow: Mutex::new(flow), moved: Condvar::new(), news: Condvar::new(), from, to };
    let workers = rayon::current_num_threads().min(from.jobs.len());
    rayon::in_place_scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|_| shared.work());
        }
        let result = shared.attend(&mut read_all, &mut progress);
        shared.lock().stopped = true;
        shared.moved.notify_all();
        result
    })?;
    let Flow { writer, mut gather, .. } = shared.flow.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (number, job) in (gather.blocks()..).zip(gather.rest()) {
        put_in_order(writer, to, &encode_kept(number, job.owner, &job.ranges))?;
    }
    Ok(())
}

/// What a worker does next.
enum Step {
    Read(usize, Vec<u8>),
    Write(usize, Placed, Encoded),
}

impl<'w, W: Write + Send> Shared<'_, 'w, W> {
    fn lock(&self) -> MutexGuard<'_, Flow<'w, W>> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker: reads, encodes and writes until all is done.
    fn work(&self) {
        while let Some(step) = self.step() {
            let result = match step {
                Step::Read(number, buffer) => self.read(number, buffer).and_then(|encoded| self.encoded(number, encoded)),
                Step::Write(job, placed, block) => self.put(job, &placed, block),
            };
            if let Err(e) = result {
                let mut flow = self.lock();
                flow.failure.get_or_insert(e);
                flow.stopped = true;
                self.moved.notify_all();
                self.news.notify_all();
            }
        }
    }

    /// Waits for something to do. Writing comes first: it makes room.
    fn step(&self) -> Option<Step> {
        let mut flow = self.lock();
        loop {
            if flow.stopped {
                return None;
            }
            if let Some((job, placed, block)) = flow.due.pop_front() {
                return Some(Step::Write(job, placed, block));
            }
            if flow.next < self.from.jobs.len() && flow.next < flow.written + WINDOW {
                flow.next += 1;
                return Some(Step::Read(flow.next - 1, flow.buffers.pop().unwrap_or_default()));
            }
            if flow.next == self.from.jobs.len() && (matches!(self.to, Output::Stream(_)) || flow.placed == flow.next) {
                return None;
            }
            flow = self.moved.wait(flow).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read(&self, number: usize, mut buffer: Vec<u8>) -> Result<Encoded> {
        let job = &self.from.jobs[number];
        match self.from.ready {
            Ready::Staged(staging) => {
                buffer.clear();
                buffer.extend_from_slice(staging.bytes(number));
            }
            Ready::Spooled(spool) => {
                buffer.resize(job.bytes() as usize, 0);
                spool.take(number, &mut buffer)?;
            }
            Ready::No => {
                buffer.resize(job.bytes() as usize, 0);
                read::fill(std::slice::from_ref(job), self.from.objects, &mut [&mut buffer])?;
                let mut flow = self.lock();
                flow.read += 1;
                if flow.read == self.from.jobs.len() {
                    self.news.notify_all();
                }
            }
        }
        let mut known = Vec::new();
        if let Some(tracking) = self.from.tracking {
            tracking.copied(job.from, &job.ranges, &buffer);
            known = tracking.compare(job, &mut buffer, self.from.parent.is_some());
        }
        let number = number as u32;
        let pages = Pages { ranges: &job.ranges, data: buffer, elide_zero: job.elide_zero };
        let (codec, dedup) = (self.from.codec, Some(self.from.dedup));
        Ok(match (job.from, self.from.parent) {
            (From::Parent, _) => encode_kept(number, job.owner, &job.ranges),
            (_, Some(_)) if !known.is_empty() => encode_known(number, job.owner, pages, codec, dedup, &known),
            (_, Some(parent)) => encode_child(number, job.owner, pages, codec, dedup, parent.inherited.as_ref()),
            _ => encode(number, job.owner, pages, codec, dedup),
        })
    }

    /// Takes an encoded block in, and places all whose turn it is.
    fn encoded(&self, number: usize, block: Encoded) -> Result<()> {
        let mut flow = self.lock();
        flow.ready.insert(number, block);
        if let Output::Stream(_) = self.to {
            self.news.notify_all();
            return Ok(());
        }
        loop {
            let turn = flow.placed;
            let Some(block) = flow.ready.remove(&turn) else { break };
            flow.placed += 1;
            match flow.gather.next(&self.from.jobs[turn], block) {
                Next::Now(block) => {
                    let placed = flow.writer.place(&block)?;
                    flow.due.push_back((turn, placed, block));
                }
                Next::Later(block) => self.done(&mut flow, turn, block),
            }
        }
        // One of them is for this worker. The last one also ends the waiting of the others.
        if flow.due.len() > 1 || flow.placed == self.from.jobs.len() {
            self.moved.notify_all();
        }
        Ok(())
    }

    /// Writes the block of a job to its place.
    fn put(&self, job: usize, placed: &Placed, block: Encoded) -> Result<()> {
        let after = placed.offset + placed.front.len() as u64;
        let data = match self.from.ready {
            Ready::Spooled(spool) if spool.holds(job, after, block.data().len())? => &[],
            _ => block.data(),
        };
        put_at(placed, self.to, data)?;
        self.done(&mut self.lock(), job, block);
        Ok(())
    }

    /// Nothing is to be done any more for a job.
    fn done(&self, flow: &mut Flow<'w, W>, job: usize, block: Encoded) {
        let full = flow.next == flow.written + WINDOW;
        flow.written += 1;
        flow.pages += self.from.jobs[job].pages();
        flow.buffers.push(block.into_buffer());
        if full {
            self.moved.notify_all();
        }
        if flow.written == self.from.jobs.len() {
            self.news.notify_all();
        }
    }

    /// The calling thread: lets the tree go in time, tells the progress, and appends blocks to a stream.
    fn attend(&self, read_all: &mut dyn FnMut(), progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let mut told = false;
        let mut flow = self.lock();
        loop {
            if let Some(e) = flow.failure.take() {
                return Err(e);
            }
            if flow.read == self.from.jobs.len() && !told {
                told = true;
                drop(flow);
                read_all();
                flow = self.lock();
                continue;
            }
            if flow.written == self.from.jobs.len() {
                return Ok(());
            }
            let turn = flow.placed;
            let block = if matches!(self.to, Output::Stream(_)) { flow.ready.remove(&turn) } else { None };
            if let Some(block) = block {
                flow.placed += 1;
                match flow.gather.next(&self.from.jobs[turn], block) {
                    Next::Now(block) => {
                        let placed = flow.writer.place(&block)?;
                        drop(flow);
                        self.put(turn, &placed, block)?;
                    }
                    Next::Later(block) => {
                        self.done(&mut flow, turn, block);
                        drop(flow);
                    }
                }
            } else {
                let (back, waited) = self.news.wait_timeout(flow, TELL).unwrap_or_else(PoisonError::into_inner);
                if !waited.timed_out() {
                    flow = back;
                    continue;
                }
                drop(back);
            }
            let pages = self.lock().pages;
            progress(pages)?;
            flow = self.lock();
        }
    }
}

/// Writes a block behind all others.
pub fn put_in_order<W: Write>(writer: &mut Writer<W>, to: Output<'_>, block: &Encoded) -> Result<()> {
    let placed = writer.place(block)?;
    put_at(&placed, to, block.data())
}

fn put_at(placed: &Placed, to: Output<'_>, data: &[u8]) -> Result<()> {
    let after = placed.offset + placed.front.len() as u64;
    match to {
        Output::File(file) => file.write_all_at(&placed.front, placed.offset).and_then(|()| file.write_all_at(data, after)),
        Output::Stream(file) => {
            let mut file = Interruptible(file);
            file.write_all(&placed.front).and_then(|()| file.write_all(data))
        }
    }
    .context(|| "writing the image")
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
        assert_eq!(sizes, [128, 128, 128, 128, 128, 128, 128, 5]);
        let mut pages: Vec<u64> =
            jobs.iter().flat_map(|j| &j.ranges).flat_map(|&(a, n)| (0..u64::from(n)).map(move |i| a / page + i)).collect();
        let expected: Vec<u64> = (0..300).chain([400]).chain(1000..1600).collect();
        pages.dedup();
        assert_eq!(pages, expected);
    }
}
