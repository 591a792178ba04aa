//! The INDEX section: what the fronts of all blocks hold, together at the end of an image, so that a reader of a file knows
//! where every page stands without having seen the pages.
//!
//! It repeats each PAGES section's header and its block header and runs, and ends with its own length, by which it is found
//! from the end of the file. The image's name covers the section headers, so an index that lies does not go unseen.

use super::Hash;
use super::format::{MAX_METADATA, SECTION, SectionHeader, SectionKind, TRAILER, Trailer};
use super::pages::{BLOCK_HEADER, Lineage, Meta};
use super::source::{FileAt, Positioned};
use crate::error::Result;
use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes behind the last record: the length of the payload.
const LENGTH: usize = 8;
/// Bytes before the end of a file that are read at once: of an image that holds little its whole index is there.
const TAIL: u64 = 16 << 10;

/// An index while blocks are written. One that would be too long is none.
#[derive(Debug, Default)]
pub struct Building(Option<Vec<u8>>);

impl Building {
    pub fn begin() -> Self {
        Building(Some(Vec::new()))
    }

    /// The next block.
    pub fn add(&mut self, header: &SectionHeader, meta: &[u8]) {
        if let Some(bytes) = &mut self.0 {
            bytes.extend(header.to_bytes());
            bytes.extend(meta);
            if (bytes.len() + LENGTH) as u64 > MAX_METADATA {
                self.0 = None;
            }
        }
    }

    /// The payload.
    pub fn payload(self) -> Option<Vec<u8>> {
        let mut bytes = self.0?;
        bytes.extend(((bytes.len() + LENGTH) as u64).to_le_bytes());
        Some(bytes)
    }
}

/// Where the sections of an image that come before its pages end.
pub struct Front {
    /// Offset of the first section after them.
    pub offset: u64,
    /// Its number.
    pub sections: u32,
    /// Over all that stands before it.
    pub hash: blake3::Hasher,
    /// Whether the image has a parent.
    pub lineage: Lineage,
}

/// A block as the index knows it.
pub struct Entry {
    pub header: SectionHeader,
    /// Where its header stands.
    pub offset: u64,
    pub meta: Meta,
    /// XXH3-64 of block header and runs.
    pub front: u64,
}

/// What the end of an image says.
pub struct Found {
    pub entries: Vec<Entry>,
    pub hash: Hash,
}

/// Reads the index of a file of this length. `None` when there is none, or its end is not what one expects: who reads the image
/// from the start says more of it.
pub fn read(file: &Arc<File>, length: u64, front: Front) -> Result<Option<Found>> {
    let Some(tail) = Tail::read(file, length) else { return Ok(None) };
    let Some((trailer, end)) = trailer(&tail, length) else { return Ok(None) };
    let Some(number) = trailer.sections.checked_sub(1).and_then(|n| u32::try_from(n).ok()) else { return Ok(None) };
    let Some((header, offset)) = header(&tail, end, number, &front) else { return Ok(None) };
    let place = super::format::Place::Section(SectionKind::Index, number, offset);
    let start = offset + SECTION as u64;
    let payload = match tail.part(start, header.length) {
        Some(there) => Cow::Borrowed(there),
        None => Cow::Owned(FileAt { file: Arc::clone(file), position: start }.take_bytes(header.length, place)?),
    };
    if xxh3_64(&payload) != header.checksum {
        return Err(place.damaged("wrong checksum of its payload"));
    }
    let records = &payload[..payload.len() - LENGTH];
    let wrong = |what: &str| place.damaged(what.to_owned());
    let Front { offset: mut next, sections: mut count, mut hash, lineage } = front;
    let mut entries = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let short = || wrong("it ends inside of a block");
        let (bytes, after) = rest.split_first_chunk::<SECTION>().ok_or_else(short)?;
        let header = SectionHeader::parse(bytes, count, next)?;
        if header.kind != SectionKind::Pages || !header.known() {
            return Err(wrong("it names a section that holds no pages"));
        }
        let first = after.first_chunk::<BLOCK_HEADER>().ok_or_else(short)?;
        let length = Meta::length_from(first).map_err(|what| place.damaged(what))?;
        let (bytes_of_meta, after) = after.split_at_checked(length).ok_or_else(short)?;
        let meta = Meta::parse(bytes_of_meta, lineage).map_err(|what| place.damaged(what))?;
        if meta.block as usize != entries.len() {
            return Err(wrong("its blocks are not in order"));
        }
        hash.update(bytes);
        entries.push(Entry { header, offset: next, meta, front: xxh3_64(bytes_of_meta) });
        next = next + SECTION as u64 + u64::from(header.padding) + header.length;
        count += 1;
        rest = after;
    }
    hash.update(&header.to_bytes());
    let hash = hash.finalize();
    let whole = next == offset && count == number && entries.len() as u64 == trailer.blocks && trailer.hash == *hash.as_bytes();
    if !whole {
        return Err(wrong("it is not that of this image"));
    }
    Ok(Some(Found { entries, hash }))
}

/// The last bytes of a file, and what else of it is asked for.
struct Tail<'f> {
    file: &'f File,
    from: u64,
    bytes: Vec<u8>,
}

impl<'f> Tail<'f> {
    fn read(file: &'f File, length: u64) -> Option<Tail<'f>> {
        let from = length.saturating_sub(TAIL);
        let mut bytes = vec![0; (length - from) as usize];
        file.read_exact_at(&mut bytes, from).ok()?;
        Some(Tail { file, from, bytes })
    }

    /// What has been read of the file there, when that is all of it.
    fn part(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.from)?).ok()?;
        self.bytes.get(from..from.checked_add(usize::try_from(length).ok()?)?)
    }

    fn array<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        if let Some(there) = self.part(offset, N as u64) {
            return there.try_into().ok();
        }
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
    }
}

/// The trailer, and where END begins.
fn trailer(tail: &Tail<'_>, length: u64) -> Option<(Trailer, u64)> {
    let end = length.checked_sub((SECTION + TRAILER) as u64)?;
    let bytes: [u8; SECTION + TRAILER] = tail.array(end)?;
    let trailer = Trailer::parse(&bytes[SECTION..])?;
    let header = SectionHeader::parse(bytes.first_chunk()?, u32::try_from(trailer.sections).ok()?, end).ok()?;
    let fits = header.kind == SectionKind::End && header.known() && header.padding == 0 && header.length == TRAILER as u64;
    (fits && header.checksum == xxh3_64(&bytes[SECTION..]) && trailer.bytes == end).then_some((trailer, end))
}

/// The header of the index, when the last section before `end` is one, and where it stands.
fn header(tail: &Tail<'_>, end: u64, number: u32, front: &Front) -> Option<(SectionHeader, u64)> {
    let length = u64::from_le_bytes(tail.array(end.checked_sub(LENGTH as u64)?)?);
    if !(LENGTH as u64..=MAX_METADATA).contains(&length) {
        return None;
    }
    let offset = end.checked_sub(length)?.checked_sub(SECTION as u64).filter(|&offset| offset >= front.offset)?;
    let header = SectionHeader::parse(&tail.array(offset)?, number, offset).ok()?;
    (header.kind == SectionKind::Index && header.known() && header.padding == 0 && header.length == length).then_some((header, offset))
}
