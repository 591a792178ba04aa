//! Copying while the tree runs: round after round what was written since the last one, until what is left is little enough
//! for one short stop.
//!
//! What is copied is encoded at once and laid by in a file that has no name. In the stop the tracker says which of it is
//! still true ([`super::tracking`]); the blocks that hold it go into the image as they are, with those of their pages
//! named as unused that are not.

use super::copy::{self, Job, cut};
use super::output::Target;
use super::spans::Spans;
use super::tracking::{Of, Tracking};
use super::{Options, processes, tree};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Codec, Encoded, Owner, PAGE, Writer, encode_apart};
use crate::progress::Report;
use crate::resource::capture::Capture;
use crate::resource::recall::Recall;
use crate::sys::proc::{maps, read};
use crate::sys::{ptrace, signal};
use crate::tracee::freeze::freeze;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Rounds at most: what has not come to rest by then will not.
const MOST: u32 = 30;
/// A stop that is shorter by less than this is not worth another round.
const LITTLE: Duration = Duration::from_millis(2);
/// Blocks that are brought into the image at a time.
const AT_ONCE: usize = 32;

/// Blocks of pages that were copied while the tree ran, the newest last.
pub struct Laid {
    file: File,
    length: u64,
    blocks: Vec<Block>,
    /// What is in the blocks.
    covered: HashMap<Of, Spans>,
}

struct Block {
    laid: image::Laid,
    of: Of,
    offset: u64,
    length: usize,
}

impl Laid {
    /// In a file without a name beside the image.
    pub fn new(target: &Target) -> Result<Laid> {
        let file = target.beside().context(|| "creating a temporary file")?;
        Ok(Laid { file, length: 0, blocks: Vec::new(), covered: HashMap::new() })
    }

    /// What is there of a process or an object.
    pub fn of(&self, of: Of) -> Option<&Spans> {
        self.covered.get(&of)
    }

    /// Copies what these jobs name, as far as it is there: mappings come and go while a tree runs.
    /// Those that are not are returned. `copied` is told what was.
    fn copy(&mut self, due: &Due, codec: Codec, copied: impl Fn(Of, &[(u64, u32)], &[u8]) + Sync) -> Result<Spans> {
        let &Due { of, ref jobs, ref file } = due;
        let objects = file.as_slice();
        let changed = Spans::of(jobs.iter().flat_map(|j| &j.ranges).map(|&(a, n)| (a, a + u64::from(n) * PAGE as u64)).collect());
        let stale = self.covered.remove(&of).unwrap_or_default().without(&changed);
        let end = Mutex::new(self.length);
        let file = &self.file;
        let one = |job: &Job| -> Result<Option<Block>> {
            signal::check_interrupted()?;
            let mut data = vec![0; job.pages() as usize * PAGE];
            let ranges = copy::fill_what_is_there(job, objects, &mut data);
            if ranges.is_empty() {
                return Ok(None);
            }
            copied(of, &ranges, &data);
            let (laid, data) = encode_apart(job.owner, &ranges, data, codec);
            let length = data.len();
            let offset = {
                let mut end = end.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *end += length as u64;
                *end - length as u64
            };
            file.write_all_at(&data, offset).context(|| "copying memory beside the image")?;
            Ok(Some(Block { laid, of, offset, length }))
        };
        let blocks = jobs.par_iter().map(one).collect::<Result<Vec<_>>>()?;
        self.length = end.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let blocks: Vec<Block> = blocks.into_iter().flatten().collect();
        let there = blocks.iter().flat_map(|b| b.laid.ranges()).map(|(a, n)| (a, a + u64::from(n) * PAGE as u64)).collect();
        let there = Spans::of(there);
        self.covered.insert(of, stale.or(&there));
        self.blocks.extend(blocks);
        Ok(changed.without(&there))
    }

    /// Brings what is wanted into an image whose number of blocks is `first`. `name` says whose it is there.
    pub fn write<W: Write>(
        &self,
        writer: &mut Writer<W>,
        to: copy::Output<'_>,
        wanted: &HashMap<Of, Spans>,
        (first, child): (u32, bool),
        name: impl Fn(Of) -> Option<Owner> + Sync,
        mut progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let nothing = Spans::default();
        // The newest block that has a page has the one that counts.
        let mut seen: HashSet<(Of, u64)> = HashSet::new();
        let mut masks = vec![0u128; self.blocks.len()];
        for (block, mask) in self.blocks.iter().zip(&mut masks).rev() {
            let wanted = wanted.get(&block.of).unwrap_or(&nothing);
            let pages = block.laid.ranges().flat_map(|(a, n)| (0..u64::from(n)).map(move |k| a + k * PAGE as u64));
            for (n, address) in pages.enumerate().take(128) {
                if wanted.contains(address) && seen.insert((block.of, address)) {
                    *mask |= 1 << n;
                }
            }
        }
        drop(seen);
        let left: Vec<(&Block, u128)> = self.blocks.iter().zip(masks).filter(|(_, mask)| *mask != 0).collect();
        let mut written = 0;
        for (chunk, blocks) in left.chunks(AT_ONCE).enumerate() {
            let base = first + (chunk * AT_ONCE) as u32;
            let made = blocks.par_iter().enumerate().map(|(n, (block, mask))| {
                let owner = name(block.of).ok_or_else(|| Error::other("what was copied belongs to nobody"))?;
                block.again((base + n as u32, owner, child), *mask, &self.file)
            });
            // Every one of them has a page that is wanted.
            let made: Vec<Encoded> = made.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
            for block in &made {
                copy::put_in_order(writer, to, block)?;
            }
            written += blocks.iter().map(|(_, mask)| u64::from(mask.count_ones())).sum::<u64>();
            progress(written)?;
        }
        Ok(())
    }

    /// Bytes that it takes on the disk.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of memory that are wanted of it.
    pub fn bytes(wanted: &HashMap<Of, Spans>) -> u64 {
        wanted.values().map(Spans::len).sum()
    }
}

impl Block {
    fn again(&self, place: (u32, Owner, bool), mask: u128, file: &File) -> Result<Option<Encoded>> {
        let mut next = 0;
        let wanted = |_| {
            next += 1;
            mask >> (next - 1) & 1 != 0
        };
        let data = || {
            let mut data = vec![0; self.length];
            file.read_exact_at(&mut data, self.offset).map(|()| data)
        };
        self.laid.block(place, data, wanted).context(|| "reading what was copied")
    }
}

/// Why the rounds ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What is left fits into the pause that was allowed.
    Fits,
    /// It is written about as fast as it can be copied.
    Restless,
}

/// How the rounds went.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Why they ended.
    pub end: End,
    /// How many there were.
    pub count: u32,
    /// The longest stop: to be watched, a process must stand still once.
    pub stop: Duration,
    /// Bytes that were copied.
    pub bytes: u64,
    /// Bytes of the last one.
    last: u64,
}

impl Rounds {
    /// Bytes that may be left to be copied, with room for more.
    pub fn expected(&self) -> u64 {
        (8 << 20) + self.last * 4
    }
}

/// Copies rounds until what is left is expected to take no longer than `allowed` of a pause that takes `base` anyhow.
pub fn copy_rounds(
    options: &Options,
    (tracking, recall): (&mut Tracking, &mut Recall),
    target: &Target,
    (allowed, base): (Duration, Duration),
    report: &mut dyn Report,
) -> Result<Rounds> {
    let codec = options.level.map_or(Codec::Raw, Codec::Zstd);
    let mut rounds = Rounds { end: End::Restless, count: 0, stop: Duration::ZERO, bytes: 0, last: 0 };
    let mut laid = Laid::new(target)?;
    let (mut looked, mut restless, mut before, mut whole) = (Instant::now(), 0, u64::MAX, 0);
    while rounds.count < MOST {
        let stop = meet(options, tracking, recall)?;
        rounds.stop = rounds.stop.max(stop);
        let since = looked.elapsed();
        looked = Instant::now();
        let mut bytes = 0;
        let mut due = Vec::new();
        for pid in processes(options.pid) {
            let Some(changed) = changed(tracking, pid)? else { continue };
            if let Some(quiet) = &mut recall.quiet {
                quiet.watch(pid);
            }
            let mut jobs = Vec::new();
            for (from, spans) in &changed {
                cut(Owner::Process(pid), *from, false, spans.ranges(), &mut jobs);
                bytes += spans.len();
            }
            due.push(Due { of: Of::Process(pid), jobs, file: None });
        }
        for (of, file) in shared(&processes(options.pid)) {
            // What cannot be read now is read in the stop.
            let Ok(changed) = tracking.changed_object(of, &file) else { continue };
            let mut jobs = Vec::new();
            cut(Owner::Object(0), copy::From::Object(0), false, changed.ranges(), &mut jobs);
            bytes += changed.len();
            due.push(Due { of, jobs, file: Some(file) });
        }
        whole = whole.max(bytes);
        let barrier = let_calls_end(options)?;
        rounds.stop = rounds.stop.max(barrier);
        for due in due {
            // What was copied stands beside the image until that has all that is still true of it.
            let needed = rounds.bytes + bytes + copy::image_bytes(whole);
            let missed = laid.copy(&due, codec, |of, ranges, bytes| tracking.tracker.copied(of, ranges, bytes));
            let missed = missed.map_err(|e| target.no_room(e, needed))?;
            missed.ranges().iter().for_each(|&range| tracking.tracker.missed(due.of, range));
        }
        rounds.count += 1;
        rounds.bytes += bytes;
        rounds.last = bytes;
        report.bytes(rounds.bytes, None);
        let took = looked.elapsed();
        report.note(&format!("round {}: {} KiB in {:.1} ms", rounds.count, bytes >> 10, took.as_secs_f64() * 1e3));
        // In the time that this round took, as much is written as in the same time before it; copying that takes as long as
        // copying this did.
        let fraction = if rounds.count == 1 { 1.0 } else { (took.as_secs_f64() / since.as_secs_f64().max(1e-6)).min(1.0) };
        if took.mul_f64(fraction) <= allowed.saturating_sub(base).max(LITTLE) && rounds.count > 1 || bytes == 0 {
            rounds.end = End::Fits;
            break;
        }
        restless = if bytes.saturating_mul(10) > before.saturating_mul(9) { restless + 1 } else { 0 };
        if restless == 3 {
            break;
        }
        before = bytes;
        signal::check_interrupted()?;
    }
    if let Some(quiet) = &mut recall.quiet {
        processes(options.pid).into_iter().for_each(|pid| quiet.look(pid));
    }
    tracking.laid = Some(laid);
    Ok(rounds)
}

/// What is to be copied of one process or object.
struct Due {
    of: Of,
    jobs: Vec<Job>,
    /// Of an object.
    file: Option<File>,
}

/// Shared memory that goes along with a tree that runs: what its processes have mapped and no path leads to. Segments of System V
/// are told apart by nothing, and are copied in the stop.
fn shared(pids: &[i32]) -> Vec<(Of, File)> {
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    for &pid in pids {
        // One that has ended has none; what is missing is copied in the stop.
        let vmas = read::parsed(pid, "maps", maps::parse).unwrap_or_default();
        for vma in vmas.iter().filter(|v| v.shared && v.inode != 0 && !v.name.starts_with(b"/SYSV") && v.path().1) {
            if !seen.insert((vma.dev, vma.inode)) {
                continue;
            }
            let Ok(file) = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end)) else { continue };
            if let Ok(meta) = file.metadata().as_ref().map(|m| (m.is_file(), m.dev(), m.ino()))
                && meta.0
            {
                found.push((Of::Object(meta.1, meta.2), file));
            }
        }
    }
    found
}

/// A call that was under way when its pages were looked at may still write to them unseen: the kernel had them in its hands
/// before (read(2) with `O_DIRECT`, process_vm_writev(2)). What stands still is in no call. How long that took.
fn let_calls_end(options: &Options) -> Result<Duration> {
    let stopped = Instant::now();
    freeze(options.pid, options.freeze_timeout)?.release();
    Ok(stopped.elapsed())
}

/// What has changed of a process since the last look; `None` when there is nothing to see of it now.
fn changed(tracking: &mut Tracking, pid: i32) -> Result<Option<Vec<(copy::From, Spans)>>> {
    if tracking.tracker.stranger(pid) {
        return Ok(None); // a moment old: it is copied in the next round, or in the stop
    }
    let look = |tracking: &mut Tracking| {
        let vmas = read::parsed(pid, "maps", maps::parse)?;
        // Asynchronous reads may end at any time.
        let asynchronous = vmas.iter().any(|v| v.name.starts_with(b"/[aio]"));
        if asynchronous { Ok(Vec::new()) } else { tracking.changed(pid, &vmas) }
    };
    match look(tracking) {
        Err(e) if matches!(e.kind, Kind::NotFound | Kind::Permission) => Ok(None),
        seen => seen.map(Some),
    }
}

/// Prepares processes that are new to the tracker. How long the tree stood still for that.
fn meet(options: &Options, tracking: &mut Tracking, recall: &mut Recall) -> Result<Duration> {
    let pids = processes(options.pid);
    tracking.retain(&pids);
    if !pids.iter().any(|&pid| tracking.tracker.stranger(pid)) {
        return Ok(Duration::ZERO);
    }
    let stopped = Instant::now();
    let mut frozen = freeze(options.pid, options.freeze_timeout)?;
    let mut capture = Capture { standing: true, recall: std::mem::take(recall), ..Capture::default() };
    let mut greet = || -> Result<()> {
        for process in frozen.processes.iter_mut().filter(|p| !p.threads.is_empty()) {
            let threads = tree::threads(process, &mut capture, &mut Vec::new())?;
            if !capture.refusals.is_empty() {
                continue; // that comes when the image is made
            }
            if tracking.tracker.stranger(process.pid) {
                let vmas = read::parsed(process.pid, "maps", maps::parse)?;
                let call = threads.first().and_then(|t| t.waiting.as_ref()).map(|w| w.number);
                // That it cannot be watched is told when the image is made.
                tracking.tracker.enter(process, &vmas, call, &mut capture.recall.footholds)?;
            }
            process.threads.iter().try_for_each(settle)?;
        }
        Ok(())
    };
    let met = greet();
    frozen.release();
    *recall = capture.recall;
    met.map(|()| stopped.elapsed())
}

/// Gives a task the registers with which it goes on as if it had not been stopped, when no call was made in it.
pub fn settle(held: &crate::tracee::Held) -> Result<()> {
    let set = || match ptrace::registers(held.tid) {
        Ok(now) if now == held.registers => Ok(()),
        Ok(_) => ptrace::set_registers(held.tid, &held.registers),
        Err(e) => Err(e),
    };
    set().map_err(Error::from).context(|| format!("giving back task {}", held.tid))
}
