//! What a series of images comes to, however long it is: every page once, each in a place of its own in one file.
//!
//! An image is brought in when it is whole. Pages that were there before are written over where they are, so that pages that
//! belong together stay together however often they change; those that are new get room that nobody uses. What is known of the
//! place of each page changes last. Until then whoever has the image has everything: what has been written over already is in
//! it. So images may be brought in while it is open whether they will be needed as they are: [`Resolved::read`] puts them on top.

use super::entries::missing;
use super::format::PAGE;
use super::pages::Owner;
use super::reader::Reader;
use super::resolved::{At, Image, Place, Resolved, push};
use super::spread::spread;
use crate::error::{Context, Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pages that are read at a time when one of them is wanted.
pub(super) const TOGETHER: u32 = 64;
/// Room is taken from the end of the file in steps, in pages.
const STEP: u32 = 4096;
/// Blocks of an image that one thread brings in; where there are more it has help.
const FEW: usize = 64;

/// Gives back what a part of a file takes, from a byte on, so many: nobody will read it before it is written again.
pub type GiveBack = fn(&File, u64, u64);

/// The pages, and where they are.
pub struct Flat {
    file: Arc<File>,
    give_back: GiveBack,
    now: Option<Arc<Resolved>>,
    room: Room,
    /// Some pages are as an image has them, and others as they were, that were to be told from these.
    torn: bool,
}

/// Pages of the file that nobody uses: first and how many.
#[derive(Debug, Clone, Default)]
struct Room {
    free: BTreeMap<u32, u32>,
    /// Pages that the file has.
    end: u32,
}

/// Pages of a block of an image that are put into the file.
#[derive(Debug, Clone, Copy)]
struct Put {
    page: u32,
    pages: u32,
    slot: u32,
    /// What is there, and in the block, is how it differs from that.
    delta: bool,
}

/// What bringing in an image comes to.
#[derive(Default)]
struct Plan {
    owners: HashMap<Owner, Vec<Place>>,
    /// By block of the image.
    puts: BTreeMap<u32, Vec<Put>>,
    /// Room that is not used any more.
    freed: Vec<(u32, u32)>,
}

impl Room {
    /// So many pages that stand together: where.
    fn take(&mut self, pages: u32) -> Result<u32> {
        loop {
            if let Some((&first, &there)) = self.free.iter().find(|free| *free.1 >= pages) {
                self.free.remove(&first);
                if there > pages {
                    self.free.insert(first + pages, there - pages);
                }
                return Ok(first);
            }
            let more = pages.div_ceil(STEP).checked_mul(STEP).ok_or_else(too_much)?;
            let end = self.end.checked_add(more).ok_or_else(too_much)?;
            self.give(self.end, more);
            self.end = end;
        }
    }

    fn give(&mut self, mut first: u32, mut pages: u32) {
        if let Some((&before, &length)) = self.free.range(..first).next_back().filter(|(at, length)| **at + **length == first) {
            self.free.remove(&before);
            (first, pages) = (before, pages + length);
        }
        if let Some(length) = self.free.remove(&(first + pages)) {
            pages += length;
        }
        self.free.insert(first, pages);
    }
}

fn too_much() -> Error {
    Error::other("the tree has more memory than can be kept")
}

fn slot(at: At) -> u32 {
    at.block * TOGETHER + at.page
}

impl Flat {
    /// Without a page, in an empty file.
    pub fn new(file: File, give_back: GiveBack) -> Flat {
        Flat { file: Arc::new(file), give_back, now: None, room: Room::default(), torn: false }
    }

    /// Where every page is after the last image that was brought in.
    pub fn now(&self) -> Option<&Arc<Resolved>> {
        self.now.as_ref()
    }

    /// Whether bringing in an image has failed where it could not be begun again: what is here is of no use to anybody.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Bytes of pages that it has.
    pub fn taken(&self) -> u64 {
        let free: u64 = self.room.free.values().map(|pages| u64::from(*pages)).sum();
        (u64::from(self.room.end) - free) * PAGE as u64
    }

    /// Bytes that the file reaches to.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        u64::from(self.room.end) * PAGE as u64
    }

    /// Brings in an image of which no block has been read, the child of the last one or one that stands alone. False: it was not
    /// to `go on`, and what is known of all pages is what it was, which holds for those who have the image, too. Pages of
    /// which it says how they differ are written over last, which needs no room, and all of them in any case.
    ///
    /// # Errors
    /// When it is damaged or builds upon another one, or there is no room; likewise.
    pub fn bring_in(&mut self, reader: &mut Reader<'_>, path: &Path, goes_on: &AtomicBool) -> Result<bool> {
        let new = Resolved::read(reader, path, self.now.as_deref())?;
        let link = reader.parent().cloned();
        let image = new.images.last().and_then(Option::clone).ok_or_else(|| Error::other("an image is missing"))?;
        let own = new.images.len() as u32 - 1;
        let before = self.now.as_ref().filter(|_| link.is_some());
        let there = |owner| link.as_ref().and_then(|link| link.there(owner));
        let mut room = self.room.clone();
        let mut plan = Plan::default();
        let mut gone: HashMap<Owner, &[Place]> = self.now.iter().flat_map(|now| now.owners()).collect();
        for (owner, places) in new.owners() {
            let old = there(owner).filter(|_| before.is_some()).and_then(|there| gone.remove(&there)).unwrap_or_default();
            plan.owner(owner, places, old, own, &mut room)?;
        }
        plan.freed.extend(gone.values().flat_map(|places| places.iter()).filter_map(|place| Some((slot(place.at?), place.pages))));
        self.file.set_len(u64::from(room.end) * PAGE as u64).context(|| "making room for pages")?;
        if !self.write(&image, &plan, goes_on)? {
            return Ok(false);
        }
        for &(first, pages) in &plan.freed {
            room.give(first, pages);
            (self.give_back)(&self.file, u64::from(first) * PAGE as u64, u64::from(pages) * PAGE as u64);
        }
        self.room = room;
        let image = Image::Flat { file: self.file.clone(), blocks: self.room.end / TOGETHER, give_back: self.give_back };
        self.now = Some(Arc::new(Resolved { images: vec![Some(Arc::new(image))], owners: plan.owners, elsewhere: None, ..new }));
        Ok(true)
    }

    fn write(&mut self, image: &Image, plan: &Plan, goes_on: &AtomicBool) -> Result<bool> {
        if !self.write_those(image, plan, false, goes_on)? {
            return Ok(false);
        }
        if plan.puts.values().flatten().any(|put| put.delta) {
            self.torn = true;
            self.write_those(image, plan, true, &AtomicBool::new(true))?;
        }
        self.torn = false;
        Ok(true)
    }

    /// Writes those pages of which the image says how they differ, or all others.
    fn write_those(&self, image: &Image, plan: &Plan, delta: bool, goes_on: &AtomicBool) -> Result<bool> {
        let work = |(block, puts): &(&u32, &Vec<Put>), buffer: &mut Vec<u8>| -> Result<u64> {
            if !goes_on.load(Ordering::Acquire) || puts.iter().all(|put| put.delta != delta) {
                return Ok(0);
            }
            let mut data = image.decode_any(**block, std::mem::take(buffer), true)?;
            for put in puts.iter().filter(|put| put.delta == delta) {
                let from = put.page as usize * PAGE;
                let bytes = data.get_mut(from..from + put.pages as usize * PAGE);
                let bytes = bytes.ok_or_else(|| Error::image("image damaged: a block has not got all pages that others are copies of"))?;
                let at = u64::from(put.slot) * PAGE as u64;
                if put.delta {
                    self.apply(bytes, at)?;
                }
                self.file.write_all_at(bytes, at).context(|| "keeping pages")?;
            }
            *buffer = data;
            Ok(0)
        };
        let blocks: Vec<_> = plan.puts.iter().collect();
        if blocks.len() > FEW {
            spread(&blocks, &work, &mut |_| Ok(()))?;
        } else {
            let mut buffer = Vec::new();
            blocks.iter().try_for_each(|block| work(block, &mut buffer).map(drop))?;
        }
        Ok(goes_on.load(Ordering::Acquire))
    }

    /// Makes pages of how they differ from those that are in the file from `at` on.
    fn apply(&self, pages: &mut [u8], at: u64) -> Result<()> {
        let mut before = [0; PAGE];
        for (page, at) in pages.chunks_exact_mut(PAGE).zip((at..).step_by(PAGE)) {
            self.file.read_exact_at(&mut before, at).context(|| "reading pages that were kept")?;
            page.iter_mut().zip(&before).for_each(|(new, old)| *new ^= old);
        }
        Ok(())
    }
}

impl Plan {
    /// `places`: what it has now; `old`: what it had, all in the file.
    fn owner(&mut self, owner: Owner, places: &[Place], old: &[Place], own: u32, room: &mut Room) -> Result<()> {
        let mut new = Vec::with_capacity(places.len());
        let mut rest = old;
        for place in places {
            let Some(at) = place.at.filter(|at| at.image == own) else {
                push(&mut new, *place);
                continue;
            };
            let mut next = place.address;
            while next < place.end() {
                rest = &rest[rest.iter().take_while(|o| o.end() <= next).count()..];
                let (end, there) = match rest.first().filter(|o| o.address < place.end()) {
                    Some(o) if o.address <= next => (o.end().min(place.end()), o.at.map(|_| o)),
                    Some(o) => (o.address, None),
                    None => (place.end(), None),
                };
                let part = place.part(next, end);
                let first = match there.and_then(|o| o.part(next, end).at) {
                    Some(same) => slot(same),
                    None if at.delta => return Err(missing(owner)),
                    None => room.take(part.pages)?,
                };
                let page = at.page + ((next - place.address) / PAGE as u64) as u32;
                self.puts.entry(at.block).or_default().push(Put { page, pages: part.pages, slot: first, delta: at.delta });
                put(&mut new, part, first);
                next = end;
            }
        }
        let mut kept = new.iter().filter(|place| place.at.is_some()).peekable();
        for (place, at) in old.iter().filter_map(|place| Some((place, place.at?))) {
            let mut next = place.address;
            while next < place.end() {
                while kept.next_if(|k| k.end() <= next).is_some() {}
                let (start, end) = kept.peek().map_or((u64::MAX, u64::MAX), |k| (k.address, k.end()));
                let until = start.clamp(next, place.end());
                if until > next {
                    let skipped = ((next - place.address) / PAGE as u64) as u32;
                    self.freed.push((slot(at) + skipped, ((until - next) / PAGE as u64) as u32));
                }
                next = if until < place.end() { end.min(place.end()) } else { until };
            }
        }
        self.owners.insert(owner, new);
        Ok(())
    }
}

/// Notes that pages are in the file from this slot on, of which blocks of one size are made.
fn put(new: &mut Vec<Place>, part: Place, first: u32) {
    let (mut address, mut slot) = (part.address, first);
    while slot < first + part.pages {
        let end = (slot / TOGETHER + 1).saturating_mul(TOGETHER).min(first + part.pages);
        let at = Some(At { image: 0, block: slot / TOGETHER, page: slot % TOGETHER, delta: false });
        push(new, Place { address, pages: end - slot, at });
        address += u64::from(end - slot) * PAGE as u64;
        slot = end;
    }
}
