//! Comparing with what was copied before, by hash: 16 bytes a page in meio's memory. Works everywhere, and for everything;
//! all of it must be read at every look.
//!
//! A look only compares. What a page is compared with is what was copied last ([`Hashes::note`]), not what a look has seen:
//! between the two it may have changed, and may change back. A page that has gone is forgotten.

use super::ranges::Ranges;
use super::{Area, Class, Of, Pages, Seen, Tracker, apart};
use crate::error::{Context, Result};
use crate::sys::file;
use crate::sys::memory::{self, MemFile};
use crate::sys::pagemap::{PAGE, Pagemap, push};
use crate::sys::proc::maps::Vma;
use crate::sys::proc::{read, stat};
use crate::tracee::foothold::Known;
use crate::tracee::freeze;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};
use xxhash_rust::xxh3::xxh3_128_with_secret;

/// Pages that are read at once.
const PIECE: u64 = 128;
/// Pages of one part of a table.
const PART: usize = 512;
/// A page that is not known. One whose hash it is counts as changed.
const UNKNOWN: u128 = 0;

/// The hashes of one process or object, by number of the part.
type Table = HashMap<u64, Box<[u128; PART]>>;

/// What pages were like when they were copied last.
pub struct Hashes {
    /// Random: nobody can prepare two pages with the same hash.
    secret: [u8; 192],
    known: RwLock<HashMap<Of, Table>>,
}

impl Default for Hashes {
    fn default() -> Self {
        let random = RandomState::new();
        let seed: Vec<u8> = (0..4u64).flat_map(|n| random.hash_one(n).to_le_bytes()).collect();
        let mut secret = [0; 192];
        blake3::Hasher::new_derive_key("meio track: hash of a page").update(&seed).finalize_xof().fill(&mut secret);
        Hashes { secret, known: RwLock::default() }
    }
}

impl Hashes {
    fn hash(&self, page: &[u8]) -> u128 {
        xxh3_128_with_secret(page, &self.secret)
    }

    /// Takes note of bytes that were copied: pages at `ranges` (address or offset, pages), one after the other.
    pub fn note(&self, of: Of, ranges: &[(u64, u32)], bytes: &[u8]) {
        let hashes: Vec<u128> = bytes.chunks_exact(PAGE as usize).map(|page| self.hash(page)).collect();
        let pages = ranges.iter().flat_map(|&(start, pages)| (0..u64::from(pages)).map(move |n| start / PAGE + n));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let table = known.entry(of).or_default();
        for (page, hash) in pages.zip(hashes) {
            let part = table.entry(page / PART as u64).or_insert_with(|| Box::new([UNKNOWN; PART]));
            part[(page % PART as u64) as usize] = hash;
        }
    }

    /// Tells which of these pages are what was copied last. What cannot be read counts as changed.
    fn compare(&self, of: Of, ranges: &[(u64, u64)], read: impl Fn(u64, &mut [u8]) -> bool + Sync, pages: &mut Pages) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let table = known.get(&of);
        let pieces: Vec<(u64, u64)> = ranges
            .iter()
            .flat_map(|&(start, end)| (start..end).step_by((PIECE * PAGE) as usize).map(move |at| (at, end.min(at + PIECE * PAGE))))
            .collect();
        let same = |buffer: &mut Vec<u8>, &(start, end): &(u64, u64)| -> Vec<bool> {
            let count = ((end - start) / PAGE) as usize;
            let expected = |n: usize| {
                let page = start / PAGE + n as u64;
                table.and_then(|t| t.get(&(page / PART as u64))).map_or(UNKNOWN, |part| part[(page % PART as u64) as usize])
            };
            // What is not known need not be read.
            if (0..count).all(|n| expected(n) == UNKNOWN) {
                return vec![false; count];
            }
            buffer.resize(count * PAGE as usize, 0);
            let whole = read(start, buffer);
            let hashes = buffer.chunks_exact(PAGE as usize).enumerate();
            hashes.map(|(n, page)| whole && expected(n) != UNKNOWN && expected(n) == self.hash(page)).collect()
        };
        let answers: Vec<Vec<bool>> = pieces.par_iter().map_init(Vec::new, same).collect();
        for (&(start, _), answers) in pieces.iter().zip(answers) {
            for (n, same) in answers.into_iter().enumerate() {
                let page = start + n as u64 * PAGE;
                push(if same { &mut pages.kept } else { &mut pages.changed }, page, page + PAGE);
            }
        }
    }

    /// Forgets all pages but these.
    fn keep(&self, of: Of, ranges: &[(u64, u64)]) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = known.get_mut(&of) else { return };
        let inside = |start: u64, end: u64| {
            let next = ranges.partition_point(|r| r.1 <= start);
            ranges.get(next).map_or((false, false), |r| (r.0 < end, r.0 <= start && r.1 >= end))
        };
        table.retain(|&number, part| {
            let start = number * PART as u64 * PAGE;
            match inside(start, start + PART as u64 * PAGE) {
                (false, _) => return false,
                (_, true) => return true,
                _ => {}
            }
            for (n, hash) in part.iter_mut().enumerate() {
                let page = start + n as u64 * PAGE;
                if !inside(page, page + PAGE).0 {
                    *hash = UNKNOWN;
                }
            }
            true
        });
    }

    /// Forgets some pages.
    pub fn forget(&mut self, of: Of, (start, end): (u64, u64)) {
        let Some(table) = self.known.get_mut().unwrap_or_else(PoisonError::into_inner).get_mut(&of) else { return };
        for page in start / PAGE..end.div_ceil(PAGE) {
            if let Some(part) = table.get_mut(&(page / PART as u64)) {
                part[(page % PART as u64) as usize] = UNKNOWN;
            }
        }
    }

    /// See [`Tracker::object`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn object(&self, of: Of, file: &File, size: u64, pages: &mut Pages) -> Result<()> {
        let data = file::data_ranges(file, size).context(|| "looking for data in shared memory")?;
        let mut ranges = Ranges::new();
        data.iter().for_each(|&(start, length)| push(&mut ranges, start, (start + length).next_multiple_of(PAGE)));
        self.keep(of, &ranges);
        let read = |at: u64, buffer: &mut [u8]| {
            let mut done = 0;
            while done < buffer.len() {
                match file.read_at(&mut buffer[done..], at + done as u64) {
                    // Beyond the end there are zeros.
                    Ok(0) => {
                        buffer[done..].fill(0);
                        break;
                    }
                    Ok(n) => done += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
            }
            true
        };
        self.compare(of, &ranges, read, pages);
        Ok(())
    }

    /// Forgets all other processes and objects.
    pub fn retain(&mut self, of: &HashSet<Of>) {
        self.known.get_mut().unwrap_or_else(PoisonError::into_inner).retain(|one, _| of.contains(one));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// See the [module](self).
#[derive(Default)]
pub struct Hash {
    hashes: Hashes,
    /// When each process began: another one may get its number.
    begun: HashMap<i32, u64>,
}

impl Tracker for Hash {
    fn name(&self) -> &'static str {
        "hash"
    }

    fn still(&self) -> bool {
        false
    }

    fn stranger(&self, pid: i32) -> bool {
        self.begun.get(&pid).copied() != begin(pid)
    }

    fn enter(&mut self, process: &mut freeze::Process, _: &[Vma], _: Option<u64>, _: &mut Known) -> Result<Option<String>> {
        if let Some(at) = begin(process.pid) {
            self.begun.insert(process.pid, at);
        }
        Ok(None)
    }

    fn look(&mut self, pid: i32, areas: &[Area], seen: &mut Seen) -> Result<()> {
        let context = || format!("reading the page map of process {pid}");
        let mut map = Pagemap::open(pid).context(context)?;
        let protected = MemFile::open(pid).context(|| format!("opening the memory of process {pid}"))?;
        let mut all = Ranges::new();
        for area in apart(areas) {
            let mut own = Ranges::new();
            map.ranges(area.start, area.end, area.want(), &mut own).context(context)?;
            let read = |at: u64, buffer: &mut [u8]| match area.class {
                Class::Protected => protected.read(at, buffer).is_ok(),
                _ => memory::read(pid, at, buffer).is_ok(),
            };
            self.hashes.compare(Of::Process(pid), &own, read, &mut seen[area.class]);
            own.iter().for_each(|r| push(&mut all, r.0, r.1));
        }
        self.hashes.keep(Of::Process(pid), &all);
        Ok(())
    }

    fn copied(&self, of: Of, ranges: &[(u64, u32)], bytes: &[u8]) {
        self.hashes.note(of, ranges, bytes);
    }

    fn missed(&mut self, of: Of, range: (u64, u64)) {
        self.hashes.forget(of, range);
    }

    fn doubt(&mut self) {
        self.hashes.clear();
    }

    fn protects(&self, _: i32) -> bool {
        false
    }

    fn retain(&mut self, of: &HashSet<Of>) {
        self.begun.retain(|&pid, _| of.contains(&Of::Process(pid)));
        self.hashes.retain(of);
    }

    fn hashes(&self) -> &Hashes {
        &self.hashes
    }
}

/// When a process began, in clock ticks since the boot.
pub fn begin(pid: i32) -> Option<u64> {
    read::parsed(pid, "stat", stat::parse).ok().map(|s| s.start_time)
}
