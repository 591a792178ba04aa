//! A copy of everything for somebody who comes to a series later, made while the tree runs and the series goes on.
//!
//! It has the tree as the last image of the series has it, and every page that this image names, read at any moment after it. So the
//! pages do not belong together, but what has been written since that image is in those after it: with all of these, up to
//! one that was begun after the last page was read, it comes to the same as the series itself. Until then these have whole pages
//! ([`super::moving::Moving::plainly`]): a page may have held something else for a moment, and have been read just then. It stands for that image, of
//! which those after it are children.

use super::copy::{self, From, Job, cut};
use super::tracking::Tracking;
use crate::error::{Error, Result};
use crate::image::{self, Codec, Hash, Owner, PAGE, Pages, SectionKind, Writer, encode};
use crate::resource::{Manifest, Tree};
use crate::sys::{arch, priority};
use std::fs::File;
use std::io::Write;

/// What is to be copied, and as what.
pub struct Base {
    manifest: Manifest,
    tree: Tree,
    jobs: Vec<Job>,
    objects: Vec<File>,
    codec: Codec,
}

impl Base {
    /// Of a tree whose image, with this id and hash, was just made: as `tree`, with the content of `objects` by their numbers; `name`
    /// says what a process is called there.
    pub(super) fn of(
        (manifest, tree): (Manifest, Tree),
        (id, hash): ([u8; 16], Hash),
        tracking: &Tracking,
        objects: Vec<File>,
        (level, name): (Option<i32>, impl Fn(i32) -> i32),
    ) -> Base {
        let mut jobs = Vec::new();
        for (of, spans) in tracking.all_named() {
            let (owner, from) = match of {
                Owner::Process(pid) => (Owner::Process(name(pid)), From::Memory(pid)),
                Owner::Object(number) => (of, From::Object(number as usize)),
            };
            cut(owner, from, false, spans.ranges(), &mut jobs);
        }
        let manifest = Manifest { stands_for: Some((id, hash.into())), ..manifest };
        Base { manifest, tree, jobs, objects, codec: level.map_or(Codec::Raw, Codec::Zstd) }
    }

    /// Writes it; by any thread, as fast as `out` takes it. Every page has been read when this is done.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: impl Write) -> Result<()> {
        // Those who are protected come first.
        priority::yields_soon();
        let mut id = [0; 16];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut id)?;
        let mut writer = Writer::new(out, image::Options { machine: arch::MACHINE, id })?;
        writer.section(SectionKind::Manifest, &self.manifest)?;
        writer.section(SectionKind::Tree, &self.tree)?;
        for (number, job) in self.jobs.iter().enumerate() {
            let data = read(job, &self.objects);
            let pages = Pages { ranges: &job.ranges, data, elide_zero: false };
            let number = u32::try_from(number).map_err(|_| Error::other("the tree has too many pages"))?;
            writer.append(&encode(number, job.owner, pages, self.codec, None))?;
        }
        writer.index()?;
        writer.finish().map(drop)
    }
}

/// All pages of a job. What is not there any more is in no image after this one but as something new: zeros will do.
fn read(job: &Job, objects: &[File]) -> Vec<u8> {
    let mut data = vec![0; job.bytes() as usize];
    let there = copy::fill_what_is_there(job, objects, &mut data);
    if there == job.ranges {
        return data;
    }
    let mut all = vec![0; job.bytes() as usize];
    let mut missing = Vec::new();
    let (mut from, mut known) = (0, there.iter().flat_map(pages).peekable());
    for (n, address) in job.ranges.iter().flat_map(pages).enumerate() {
        let place = &mut all[n * PAGE..(n + 1) * PAGE];
        if known.next_if_eq(&address).is_some() {
            place.copy_from_slice(&data[from..from + PAGE]);
            from += PAGE;
        } else {
            missing.push((n, address));
        }
    }
    // What the process itself cannot read.
    if let From::Memory(pid) = job.from {
        for (n, address) in missing {
            let mut page = vec![0; PAGE];
            let one = Job { owner: job.owner, from: From::Protected(pid), ranges: vec![(address, 1)], elide_zero: false };
            if !copy::fill_what_is_there(&one, objects, &mut page).is_empty() {
                all[n * PAGE..(n + 1) * PAGE].copy_from_slice(&page);
            }
        }
    }
    all
}

fn pages(&(address, pages): &(u64, u32)) -> impl Iterator<Item = u64> {
    (0..u64::from(pages)).map(move |n| address + n * PAGE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stands_where_it_belongs() {
        let own: Vec<u8> = (0..6 * PAGE).map(|n| (n / 5) as u8 ^ (n / PAGE) as u8 | 1).collect();
        let first = (own.as_ptr() as u64).next_multiple_of(PAGE as u64);
        let skipped = (first - own.as_ptr() as u64) as usize;
        let pid = std::process::id() as i32;
        let ranges = vec![(PAGE as u64, 1), (first, 2), (2 * PAGE as u64, 1), (first + 3 * PAGE as u64, 1)];
        let job = Job { owner: Owner::Process(pid), from: From::Memory(pid), ranges, elide_zero: false };
        let page = |n: usize| own[skipped + n * PAGE..skipped + (n + 1) * PAGE].to_vec();
        let nothing = vec![0; PAGE];
        assert!(read(&job, &[]) == [nothing.clone(), page(0), page(1), nothing, page(3)].concat());
    }
}
