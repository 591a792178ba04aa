//! Pages go into the image file as they are first: the tree stands still for as long as that takes, and what they
//! contain is looked at when it goes on already.
//!
//! Each block is put where it belongs if it is stored as it is, with all its pages. So of blocks that turn out to be
//! just that, only the front remains to be written. All others become shorter, and move towards the start of the file,
//! never over what has not been read yet: a block's place ends, at the latest, where its bytes ended before. A page less
//! makes room for the runs that it adds.

use super::read::{BATCH, batches, fill, fill_all, share};
use super::{Job, total};
use crate::error::{Context, Error, Result};
use crate::image::{PAGE, raw_data_at};
use crate::sys::region::Region;
use crate::sys::room;
use nix::sys::statfs;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes whose pages a worker makes at once.
const PART: usize = 8 << 20;

/// An image file that takes pages before they are known.
pub struct Spool<'t> {
    file: &'t File,
    in_memory: bool,
    /// The first part of a file in memory (tmpfs), with all its pages: the kernel copies into it without more ado.
    mapped: Option<Region>,
    /// One for each worker.
    buffers: Vec<Region>,
    /// Where each job's bytes begin, and end.
    places: Vec<(u64, u64)>,
}

impl<'t> Spool<'t> {
    /// For an image of about `bytes`; `None` where it is better written as it comes: where memory is short, where the disk
    /// would have to be waited for, on file systems that this is not known to be good for.
    pub fn prepare(file: &'t File, bytes: u64) -> Option<Spool<'t>> {
        let system = statfs::fstatfs(file).ok()?;
        let in_memory = match system.filesystem_type() {
            statfs::TMPFS_MAGIC => true,
            statfs::EXT4_SUPER_MAGIC | statfs::XFS_SUPER_MAGIC => false,
            _ => return None,
        };
        let free = system.blocks_available().saturating_mul(system.block_size().try_into().ok()?);
        let workers = rayon::current_num_threads();
        let buffers = (0..workers).map(|_| buffer()).collect::<std::io::Result<_>>().ok()?;
        let mut spool = Spool { file, in_memory, mapped: None, buffers, places: Vec::new() };
        if !spool.has_room(bytes) || free < bytes {
            return None;
        }
        file.set_len(bytes).ok()?;
        if in_memory {
            spool.mapped = spool.map(bytes as usize);
            if spool.mapped.is_none() {
                // What pages it has got goes back.
                let _ = file.set_len(0);
                return None;
            }
        }
        Some(spool)
    }

    fn has_room(&self, bytes: u64) -> bool {
        let enough = |room: u64| bytes <= room - room / 4;
        enough(room::available()) && (self.in_memory || enough(room::before_the_disk()))
    }

    fn map(&self, length: usize) -> Option<Region> {
        let region = Region::of(self.file, length).ok()?;
        let parts = (0..length).step_by(PART).collect();
        let populate = |(): &mut (), at: usize| Ok(region.populate(at, PART.min(length - at))?);
        share(parts, &mut vec![(); self.buffers.len()], populate).ok()?;
        Some(region)
    }

    /// Reads all that the jobs name: afterwards the tree may go on. `start`: where the first block begins in the image.
    /// False, and nothing is read, when they turn out to be too many.
    pub fn read(&mut self, jobs: &[Job], objects: &[File], start: u64) -> Result<bool> {
        let ready = self.mapped.as_ref().map_or(0, |region| region.len() as u64);
        if total(jobs) > ready && !self.has_room(total(jobs) - ready) {
            return Ok(false);
        }
        let mut end = start;
        self.places = jobs
            .iter()
            .map(|job| {
                let begin = raw_data_at(end, job.ranges.len());
                end = begin + job.bytes();
                (begin, end)
            })
            .collect();
        let split = self.places.partition_point(|place| place.1 <= ready);
        let (into_memory, by_writing) = jobs.split_at(split);
        if let Some(region) = &mut self.mapped {
            let mut left = region.bytes_mut();
            let mut at = 0;
            let mut pieces = Vec::with_capacity(split);
            for &(begin, end) in &self.places[..split] {
                let (_, rest) = left.split_at_mut((begin - at) as usize);
                let (piece, rest) = rest.split_at_mut((end - begin) as usize);
                pieces.push(piece);
                (left, at) = (rest, end);
            }
            fill_all(into_memory, objects, pieces)?;
        }
        let (file, places) = (self.file, &self.places[split..]);
        share(batches(by_writing, BATCH), &mut self.buffers, |buffer, batch| {
            let mut left = buffer.bytes_mut();
            let mut pieces = Vec::with_capacity(batch.len());
            for job in &by_writing[batch.clone()] {
                let (piece, rest) = left.split_at_mut(job.bytes() as usize);
                pieces.push(piece);
                left = rest;
            }
            fill(&by_writing[batch.clone()], objects, &mut pieces)?;
            let mut pieces = batch.zip(pieces);
            pieces.try_for_each(|(n, piece)| file.write_all_at(piece, places[n].0)).context(|| "writing the image")
        })?;
        Ok(true)
    }

    /// Gives back what only the reading needed.
    pub fn settle(&mut self) {
        self.mapped = None;
        self.buffers = Vec::new();
    }

    /// The bytes of a job that was read, as long as no block behind it has been written.
    pub fn take(&self, job: usize, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, self.places[job].0).context(|| "reading the image")
    }

    /// Whether a job's block, whose data belongs at `begin`, stands there already.
    pub fn holds(&self, job: usize, begin: u64, length: usize) -> Result<bool> {
        let place = self.places[job];
        if begin + length as u64 > place.1 {
            return Err(Error::other(format!("block {job} has grown while it was being written")));
        }
        Ok(place == (begin, begin + length as u64))
    }
}

fn buffer() -> std::io::Result<Region> {
    let region = Region::anonymous(BATCH as usize)?;
    region.populate(0, region.len())?;
    Ok(region)
}

const _: () = assert!(BATCH as usize >= super::JOB_PAGES * PAGE);

#[cfg(test)]
mod tests {
    use super::super::{From, Output, Ready, Source, copy, cut, image_bytes};
    use super::*;
    use crate::image::{self, Codec, Content, Dedup, Owner, Reader, SectionKind, Writer};
    use crate::sys::arch;
    use std::collections::HashMap;
    use std::io::{Seek, SeekFrom};

    /// Pages of zeros, pages that stand twice, pages like no other, and stretches of each.
    fn memory(pages: usize) -> Vec<u8> {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let mut bytes = vec![0u8; pages * PAGE];
        for (n, page) in bytes.chunks_exact_mut(PAGE).enumerate() {
            let kind = if n < pages / 3 { 1 } else { n / (1 + n % 5) % 4 };
            for word in page.chunks_exact_mut(8) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let put = match kind {
                    0 => 0,
                    1 => x,
                    2 => n as u64 % 97,
                    _ => n as u64,
                };
                word.copy_from_slice(&put.to_le_bytes());
            }
        }
        bytes
    }

    fn read_back(file: &File) -> HashMap<u64, Vec<u8>> {
        let mut reader = Reader::from_file(file.try_clone().unwrap(), arch::MACHINE).unwrap();
        let (mut blocks, mut pages) = (Vec::<Vec<u8>>::new(), HashMap::new());
        while let Some(block) = reader.next_block().unwrap() {
            let block = block.decode().unwrap();
            let mut next = 0;
            blocks.push(block.data.clone());
            for run in &block.runs {
                for n in 0..run.pages as usize {
                    let content = match run.content {
                        Content::Data => {
                            next += PAGE;
                            block.data[next - PAGE..next].to_vec()
                        }
                        Content::Zero => vec![0; PAGE],
                        Content::Copy { block, page } => blocks[block as usize][(page as usize + n) * PAGE..][..PAGE].to_vec(),
                        other => panic!("{other:?}"),
                    };
                    assert!(pages.insert(run.address + (n * PAGE) as u64, content).is_none());
                }
            }
        }
        pages
    }

    /// Takes memory into a file and back. False where the file system is none for this.
    fn there_and_back(folder: &std::path::Path, codec: Codec, expected: u64) -> bool {
        let own = std::process::id() as i32;
        let source = memory(3000);
        let start = source.as_ptr() as u64;
        let at = |page: u64| start + page * PAGE as u64;
        let mut jobs = Vec::new();
        cut(Owner::Process(own), From::Memory(own), true, &[(at(0), at(1200)), (at(1300), at(1301)), (at(1400), at(2000))], &mut jobs);
        cut(Owner::Process(own), From::Memory(own), false, &[(at(2000), at(3000))], &mut jobs);
        let file = tempfile::tempfile_in(folder).unwrap();
        let Some(mut spool) = Spool::prepare(&file, expected) else { return false };
        let id = [5; 16];
        let mut writer = Writer::new(&file, image::Options { machine: arch::MACHINE, id }).unwrap();
        writer.section(SectionKind::Manifest, &"manifest").unwrap();
        writer.section(SectionKind::Tree, &"tree").unwrap();
        assert!(spool.read(&jobs, &[], writer.position()).unwrap());
        spool.settle();
        let dedup = Dedup::new(&id);
        let from = Source { jobs: &jobs, objects: &[], codec, dedup: &dedup, parent: None, ready: Ready::Spooled(&spool), tracking: None };
        copy(from, &mut writer, Output::File(&file), || (), |_| Ok(())).unwrap();
        (&file).seek(SeekFrom::Start(writer.position())).unwrap();
        let summary = writer.finish().unwrap().1;
        file.set_len(summary.bytes).unwrap();
        assert!(summary.pages.data > 0 && summary.pages.zero > 0 && summary.pages.copy > 0 && summary.pages.elided > 0);

        let pages = read_back(&file);
        let mut seen = 0;
        for n in (0..1200).chain([1300]).chain(1400..3000) {
            let page = &source[n as usize * PAGE..][..PAGE];
            match pages.get(&at(n)) {
                Some(found) => {
                    seen += 1;
                    assert!(found == page, "page {n}");
                }
                None => assert!(n < 2000 && page.iter().all(|&b| b == 0), "page {n} is lost"),
            }
        }
        assert_eq!(seen, pages.len());
        true
    }

    #[test]
    fn what_was_put_down_is_found_whatever_it_turned_out_to_be() {
        let shared = std::path::Path::new("/dev/shm");
        let in_memory = statfs::statfs(shared).is_ok_and(|s| s.filesystem_type() == statfs::TMPFS_MAGIC);
        for codec in [Codec::Raw, Codec::Zstd(1)] {
            // The second time only a part has been expected: the rest is written.
            for expected in [image_bytes(3000 * PAGE as u64), 4 << 20] {
                assert!(!in_memory || there_and_back(shared, codec, expected), "nothing to be had of {}", shared.display());
                there_and_back(&std::env::temp_dir(), codec, expected);
            }
        }
    }
}
