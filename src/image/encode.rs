//! From pages to the payload of a PAGES section. Pure, so that worker threads can do it.

use super::dedup::Dedup;
use super::format::{BLOCK_PAGES, MAX_DESCRIBED, MAX_RUNS, PAGE, u32_at, u64_at};
use super::inherited::Inherited;
use super::pages::{BLOCK_HEADER, Content, Lineage, Meta, Owner, RUN, Run, Stored, renumber};
use std::cell::RefCell;
use xxhash_rust::xxh3::Xxh3;

static ZERO: [u8; PAGE] = [0; PAGE];

/// How the data of a block shall be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is, at a page border of the image.
    Raw,
    /// zstd with this level.
    Zstd(i32),
}

/// Pages to be encoded as one block.
#[derive(Debug)]
pub struct Pages<'a> {
    /// Where the pages in `data` belong: address of the first, number of pages; by address.
    pub ranges: &'a [(u64, u32)],
    /// Their content in the same order, at most [`BLOCK_PAGES`] pages.
    pub data: Vec<u8>,
    /// Leave zero pages out altogether (anonymous memory is zero anyhow) instead of naming them.
    pub elide_zero: bool,
}

/// A block ready to be appended to an image.
#[derive(Debug)]
pub struct Encoded {
    pub(super) block: u32,
    pub(super) meta: Vec<u8>,
    pub(super) data: Vec<u8>,
    /// The buffer that the pages came in, when `data` is another one.
    pub(super) spare: Vec<u8>,
    pub(super) stored: Stored,
    pub(super) lineage: Lineage,
    /// XXH3-64 of `meta` and `data`.
    pub(super) checksum: u64,
    /// How many pages came out as what.
    pub counts: Counts,
}

/// How many pages came out as what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stored with their content.
    pub data: u64,
    /// Named as zero.
    pub zero: u64,
    /// Named as copies.
    pub copy: u64,
    /// Zero and left out altogether.
    pub elided: u64,
    /// Named as the parent's.
    pub parent: u64,
    /// Stored, but no page of the tree any more.
    pub unused: u64,
}

impl Counts {
    /// Adds those of another block.
    pub fn add(&mut self, other: Counts) {
        self.data += other.data;
        self.zero += other.zero;
        self.copy += other.copy;
        self.elided += other.elided;
        self.parent += other.parent;
        self.unused += other.unused;
    }
}

impl Encoded {
    /// The index that the block will have.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// What stands behind the front that [`super::Writer::place`] gives.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// What it describes, when nothing of that is stored in it and all of it is as in the parent: address and number of pages.
    pub fn kept(&self) -> Option<Vec<(u64, u32)>> {
        let Counts { data, zero, copy, unused, .. } = self.counts;
        let runs = || self.meta[BLOCK_HEADER..].chunks_exact(RUN).map(|run| (u64_at(run, 0), u32_at(run, 8))).collect();
        (self.lineage == Lineage::Child && data + zero + copy + unused == 0).then(runs)
    }

    /// The same block with another number, where those that it has copies from may have others, too.
    pub fn renumber(mut self, number: u32, there: impl Fn(u32) -> u32) -> Encoded {
        self.block = number;
        renumber(&mut self.meta, number, there, self.lineage);
        self.checksum = checksum(&self.meta, &self.data);
        self
    }

    /// The buffer that the pages came in, to be filled again once the block has been appended.
    pub fn into_buffer(self) -> Vec<u8> {
        if self.stored == Stored::Raw {
            return self.data;
        }
        PACKED.with_borrow_mut(|packed| packed.push(self.data));
        self.spare
    }
}

/// Encodes block number `block` (counted from 0 without gaps over the whole image).
///
/// # Panics
/// When the ranges and the data do not fit together, or the pages are too many for one block.
pub fn encode(block: u32, owner: Owner, pages: Pages<'_>, codec: Codec, dedup: Option<&Dedup>) -> Encoded {
    encode_any(block, owner, pages, codec, Before { dedup, lineage: Lineage::Flat, inherited: None, known: &[] })
}

/// The same for an image that has a parent: pages that are equal to those of the parent become runs of that kind. Without
/// `inherited` none do; with it, `dedup` must be keyed likewise ([`Inherited::id`]).
pub fn encode_child(
    block: u32,
    owner: Owner,
    pages: Pages<'_>,
    codec: Codec,
    dedup: Option<&Dedup>,
    inherited: Option<&Inherited>,
) -> Encoded {
    encode_any(block, owner, pages, codec, Before { dedup, lineage: Lineage::Child, inherited, known: &[] })
}

/// What is known of a page beside what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    Nothing,
    /// It is the parent's.
    Same,
    /// What is given is how it differs from the parent's, bit by bit.
    Delta,
}

/// The same, where that is known of each page in its turn.
///
/// # Panics
/// Where it is not told of all.
pub fn encode_known(block: u32, owner: Owner, pages: Pages<'_>, codec: Codec, dedup: Option<&Dedup>, known: &[Known]) -> Encoded {
    assert_eq!(pages.data.len(), known.len() * PAGE, "not known of all pages of a block");
    encode_any(block, owner, pages, codec, Before { dedup, lineage: Lineage::Child, inherited: None, known })
}

/// A block of pages that are known to be as in the parent image, in an image that has one; by address.
///
/// # Panics
/// When they are more than one block may describe: [`MAX_KEPT`] ranges and pages.
pub fn encode_kept(block: u32, owner: Owner, ranges: &[(u64, u32)]) -> Encoded {
    let counts = Counts { parent: ranges.iter().map(|&(_, pages)| u64::from(pages)).sum(), ..Counts::default() };
    named(block, owner, ranges, Content::Parent, Lineage::Child, counts)
}

/// A block of pages of zeros that are to be named, in an image without a parent; the same holds for it.
pub fn encode_zero(block: u32, owner: Owner, ranges: &[(u64, u32)]) -> Encoded {
    let counts = Counts { zero: ranges.iter().map(|&(_, pages)| u64::from(pages)).sum(), ..Counts::default() };
    named(block, owner, ranges, Content::Zero, Lineage::Flat, counts)
}

fn named(block: u32, owner: Owner, ranges: &[(u64, u32)], content: Content, lineage: Lineage, counts: Counts) -> Encoded {
    let pages = counts.parent + counts.zero;
    assert!(ranges.len() <= MAX_KEPT.0 && pages <= MAX_KEPT.1, "{pages} pages are too many for one block");
    let runs = ranges.iter().map(|&(address, pages)| Run { address, pages, content }).collect();
    finish(Meta { block, owner, stored: Stored::Raw, data_pages: 0, runs }, Packed::default(), lineage, counts)
}

/// Ranges, and pages in them, that [`encode_kept`] and [`encode_zero`] take at most.
pub const MAX_KEPT: (usize, u64) = (MAX_RUNS, MAX_DESCRIBED);

/// What pages may be found to be equal to.
#[derive(Clone, Copy)]
struct Before<'a> {
    dedup: Option<&'a Dedup>,
    lineage: Lineage,
    inherited: Option<&'a Inherited>,
    /// Of each page, or of none.
    known: &'a [Known],
}

fn encode_any(block: u32, owner: Owner, pages: Pages<'_>, codec: Codec, before: Before<'_>) -> Encoded {
    let (meta, data, counts) = encode_meta(block, owner, pages, codec, before);
    finish(meta, data, before.lineage, counts)
}

/// The data of a block as it is stored.
#[derive(Default)]
struct Packed {
    data: Vec<u8>,
    /// The buffer that the pages came in, when `data` is another one.
    spare: Vec<u8>,
}

fn encode_meta(block: u32, owner: Owner, pages: Pages<'_>, codec: Codec, before: Before<'_>) -> (Meta, Packed, Counts) {
    let Pages { ranges, mut data, elide_zero } = pages;
    assert!(data.len() <= BLOCK_PAGES * PAGE, "{} bytes are too many for one block", data.len());
    let sum: u64 = ranges.iter().map(|&(_, pages)| u64::from(pages)).sum();
    assert_eq!(sum * PAGE as u64, data.len() as u64, "ranges and data of a block differ");

    let mut counts = Counts::default();
    let runs = sift((block, owner), ranges, &mut data, elide_zero, before, &mut counts);
    let (mut stored, mut spare) = (Stored::Raw, Vec::new());
    if let Codec::Zstd(level) = codec
        && let Some(smaller) = compress(&data, level)
    {
        spare = std::mem::replace(&mut data, smaller);
        stored = Stored::Zstd;
    }
    (Meta { block, owner, stored, data_pages: counts.data as u32, runs }, Packed { data, spare }, counts)
}

fn finish(meta: Meta, Packed { data, spare }: Packed, lineage: Lineage, counts: Counts) -> Encoded {
    let Meta { block, stored, .. } = meta;
    let meta = meta.to_bytes(lineage);
    let checksum = checksum(&meta, &data);
    Encoded { block, meta, data, spare, stored, lineage, checksum, counts }
}

fn checksum(meta: &[u8], data: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(meta);
    hash.update(data);
    hash.digest()
}

/// A block whose data is kept elsewhere until it is known which of its pages are wanted.
#[derive(Debug)]
pub struct Laid {
    stored: Stored,
    data_pages: u32,
    runs: Vec<Run>,
}

/// Encodes pages without giving them a place in an image: what is kept in memory of them, and their data. Zero pages are
/// named, none is taken for a copy of another: either may be the wrong thing once some of them are not wanted any more.
pub fn encode_apart(owner: Owner, ranges: &[(u64, u32)], data: Vec<u8>, codec: Codec) -> (Laid, Vec<u8>) {
    let pages = Pages { ranges, data, elide_zero: false };
    let before = Before { dedup: None, lineage: Lineage::Flat, inherited: None, known: &[] };
    let (meta, Packed { data, .. }, _) = encode_meta(0, owner, pages, codec, before);
    (Laid { stored: meta.stored, data_pages: meta.data_pages, runs: meta.runs }, data)
}

impl Laid {
    /// The block with this number that has those of its pages that are `wanted`, each asked for by its address in order;
    /// `None` when none is.
    pub fn block(
        &self,
        (number, owner, child): (u32, Owner, bool),
        data: impl FnOnce() -> std::io::Result<Vec<u8>>,
        mut wanted: impl FnMut(u64) -> bool,
    ) -> std::io::Result<Option<Encoded>> {
        let mut runs = Vec::with_capacity(self.runs.len());
        let mut counts = Counts::default();
        for run in &self.runs {
            for n in 0..u64::from(run.pages) {
                let address = run.address + n * PAGE as u64;
                let content = match (run.content, wanted(address)) {
                    (Content::Data, false) => Content::Unused,
                    (_, false) => continue,
                    (content, true) => content,
                };
                match content {
                    Content::Data => counts.data += 1,
                    Content::Unused => counts.unused += 1,
                    _ => counts.zero += 1,
                }
                push(&mut runs, address, content);
            }
        }
        if counts.data + counts.zero == 0 {
            return Ok(None);
        }
        let (data_pages, data) = if counts.data == 0 {
            runs.retain(|run| run.content != Content::Unused);
            counts.unused = 0;
            (0, Vec::new())
        } else {
            (self.data_pages, data()?)
        };
        let stored = if data_pages == 0 { Stored::Raw } else { self.stored };
        let lineage = if child { Lineage::Child } else { Lineage::Flat };
        Ok(Some(finish(Meta { block: number, owner, stored, data_pages, runs }, Packed { data, ..Packed::default() }, lineage, counts)))
    }

    /// Address and number of pages of what it holds, in order.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u32)> {
        self.runs.iter().map(|run| (run.address, run.pages))
    }
}

/// Decides for every page what it becomes, and moves those that stay to the front of `data`.
fn sift(
    (block, owner): (u32, Owner),
    ranges: &[(u64, u32)],
    data: &mut Vec<u8>,
    elide_zero: bool,
    known: Before<'_>,
    counts: &mut Counts,
) -> Vec<Run> {
    let mut before = known.inherited.map(|inherited| inherited.of(owner));
    let mut told = known.known.iter();
    let mut runs = Vec::new();
    let mut from = 0;
    let mut kept = 0;
    let addresses = ranges.iter().flat_map(|&(start, pages)| (0..u64::from(pages)).map(move |n| start + n * PAGE as u64));
    for address in addresses {
        let page = &data[from..from + PAGE];
        let told = told.next().copied().unwrap_or(Known::Nothing);
        let content = if told == Known::Same {
            Content::Parent
        } else if told == Known::Delta {
            Content::Delta
        } else if *page == ZERO {
            Content::Zero
        } else {
            let index = (kept / PAGE) as u32;
            let keyed = known.inherited.map(Inherited::keyed).or(known.dedup.map(Dedup::keyed));
            let key = keyed.map(|keyed| keyed.key(page));
            if before.as_mut().is_some_and(|before| key.is_some_and(|key| before.has(address, key))) {
                Content::Parent
            } else {
                match known.dedup.zip(key).and_then(|(dedup, key)| dedup.find(key, block, index)) {
                    Some((block, page)) => Content::Copy { block, page },
                    None => Content::Data,
                }
            }
        };
        match content {
            Content::Zero if elide_zero => counts.elided += 1,
            Content::Zero => counts.zero += 1,
            Content::Copy { .. } => counts.copy += 1,
            Content::Parent => counts.parent += 1,
            Content::Unused => counts.unused += 1, // no page is sifted out as that
            Content::Data | Content::Delta => {
                counts.data += 1;
                if kept != from {
                    data.copy_within(from..from + PAGE, kept);
                }
                kept += PAGE;
            }
        }
        if content != Content::Zero || !elide_zero {
            push(&mut runs, address, content);
        }
        from += PAGE;
    }
    data.truncate(kept);
    runs
}

/// Adds one page to the last run when it continues it, else as a run of its own.
fn push(runs: &mut Vec<Run>, address: u64, content: Content) {
    if let Some(last) = runs.last_mut() {
        let continues = match (last.content, content) {
            (Content::Data, Content::Data) | (Content::Zero, Content::Zero) | (Content::Parent, Content::Parent) => true,
            (Content::Unused, Content::Unused) | (Content::Delta, Content::Delta) => true,
            (Content::Copy { block: a, page: first }, Content::Copy { block: b, page }) => a == b && first + last.pages == page,
            _ => false,
        };
        if continues && last.address + u64::from(last.pages) * PAGE as u64 == address {
            last.pages += 1;
            return;
        }
    }
    runs.push(Run { address, pages: 1, content });
}

thread_local! {
    // Making a compressor costs more than compressing a block with a fast level.
    static COMPRESSOR: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) };
    /// Room for compressed data: fresh memory for each block costs as much as hashing it.
    static PACKED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of a block that are tried first, and in how many pieces.
const SAMPLE: usize = 16 << 10;
const PIECES: usize = 8;

/// The data as one zstd frame, if that saves at least a sixteenth of it; else reading it raw costs less.
fn compress(data: &[u8], level: i32) -> Option<Vec<u8>> {
    let mut out = PACKED.with_borrow_mut(Vec::pop).unwrap_or_default();
    let smaller = COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot.take() {
            Some((known, compressor)) if known == level => compressor,
            _ => zstd::bulk::Compressor::new(level).ok()?,
        };
        let (_, compressor) = slot.insert((level, compressor));
        let mut within = |data: &[u8], room: usize| {
            out.clear();
            out.reserve(room);
            // Also fails when the output has no room; then it is not small enough.
            compressor.compress_to_buffer(data, &mut out).is_ok_and(|length| length <= room)
        };
        promising(data, &mut within).then(|| within(data, data.len() - data.len() / 16)).filter(|&fits| fits)
    });
    if smaller.is_none() {
        PACKED.with_borrow_mut(|packed| packed.push(out));
        return None;
    }
    Some(out)
}

/// Whether a part of the data, taken from all over it, becomes smaller. Of what has been compressed or encrypted already,
/// that costs a thirtieth of trying it all. Pages that are the same twice have been found before.
fn promising(data: &[u8], within: &mut impl FnMut(&[u8], usize) -> bool) -> bool {
    if data.len() < 4 * SAMPLE {
        return true;
    }
    let mut sample = [0; SAMPLE];
    let length = SAMPLE / PIECES;
    for (n, piece) in sample.chunks_exact_mut(length).enumerate() {
        // From the middle of each eighth, which is the start of no page.
        let from = data.len() / PIECES * n + data.len() / (2 * PIECES) + length / 4;
        piece.copy_from_slice(&data[from..from + length]);
    }
    within(&sample, SAMPLE - SAMPLE / 32)
}
