//! Writing an image: append-only, never seeking back.

use super::Hash;
use super::encode::{Counts, Encoded};
use super::format::{Header, MANDATORY, MAX_LINK, MAX_METADATA, PAGE, SECTION, SECTION_VERSION, SectionHeader, SectionKind, Trailer};
use super::index::Building;
use super::link::ParentLink;
use super::pages::{Lineage, Stored, meta_length};
use crate::error::{Context, Error, Result};
use serde::Serialize;
use std::io::Write;
use xxhash_rust::xxh3::xxh3_64;

/// What stands in the image header.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Architecture of the saved processes: [`crate::sys::arch::MACHINE`].
    pub machine: u16,
    /// Random bytes, new for every image; the same must key its [`super::Dedup`].
    pub id: [u8; 16],
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length of the image in bytes.
    pub bytes: u64,
    /// The image's name.
    pub hash: Hash,
    /// Sections, with END.
    pub sections: u32,
    /// PAGES sections.
    pub blocks: u32,
    /// What became of the pages.
    pub pages: Counts,
}

/// Where the data of a raw block with so many runs stands when its section begins at `position`: at a page border, so
/// that a restore can map it.
pub fn raw_data_at(position: u64, runs: usize) -> u64 {
    data_at(position, meta_length(runs))
}

fn data_at(position: u64, meta: usize) -> u64 {
    (position + (SECTION + meta) as u64).next_multiple_of(PAGE as u64)
}

/// Where a block goes.
#[derive(Debug)]
pub struct Placed {
    /// Offset in the image, in bytes.
    pub offset: u64,
    /// What stands there, in front of the data.
    pub front: Vec<u8>,
}

/// Writes one image to `W`: metadata itself, blocks by whoever has encoded them. No buffer is needed in front of a file.
pub struct Writer<W: Write> {
    out: W,
    position: u64,
    sections: u32,
    blocks: u32,
    hash: blake3::Hasher,
    pages: Counts,
    next: SectionKind,
    lineage: Lineage,
    index: Building,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub fn new(out: W, options: Options) -> Result<Self> {
        let mut writer = Writer {
            out,
            position: 0,
            sections: 0,
            blocks: 0,
            hash: blake3::Hasher::new(),
            pages: Counts::default(),
            next: SectionKind::Manifest,
            lineage: Lineage::Flat,
            index: Building::begin(),
        };
        let header = Header { machine: options.machine, id: options.id }.to_bytes();
        writer.hash.update(&header);
        writer.put(&header)?;
        Ok(writer)
    }

    /// Writes a metadata section: first [`SectionKind::Manifest`], then [`SectionKind::Tree`], each once and
    /// before all pages.
    pub fn section(&mut self, kind: SectionKind, value: &impl Serialize) -> Result<()> {
        self.after(kind)?;
        let mut payload = Vec::new();
        ciborium::into_writer(value, &mut payload).map_err(|e| Error::other(format!("{kind} section: {e}")))?;
        if payload.len() as u64 > MAX_METADATA {
            return Err(Error::new(
                crate::error::Kind::Unsupported,
                format!("{kind} section would have {} bytes, at most {MAX_METADATA} are allowed", payload.len()),
            ));
        }
        self.section_as_it_is(kind, &payload)
    }

    /// The same with the bytes that such a section of another image has.
    pub fn section_as_it_is(&mut self, kind: SectionKind, payload: &[u8]) -> Result<()> {
        self.next = self.after(kind)?;
        self.raw_section(kind, SECTION_VERSION, MANDATORY, payload)
    }

    /// What comes after a metadata section, whose turn it must be.
    fn after(&self, kind: SectionKind) -> Result<SectionKind> {
        if kind != self.next || kind == SectionKind::Pages {
            return Err(Error::other(format!("{kind} section written where {} belongs", self.next)));
        }
        Ok(if kind == SectionKind::Manifest { SectionKind::Tree } else { SectionKind::Pages })
    }

    /// Says that the image has a parent: after the manifest, before the tree. Its blocks are then those of
    /// [`super::encode_child`] and [`super::encode_kept`].
    pub fn parent(&mut self, link: &ParentLink) -> Result<()> {
        if self.next != SectionKind::Tree || self.lineage == Lineage::Child {
            return Err(Error::other(format!("{} section written where {} belongs", SectionKind::Parent, self.next)));
        }
        let mut payload = Vec::new();
        ciborium::into_writer(link, &mut payload).map_err(|e| Error::other(format!("{} section: {e}", SectionKind::Parent)))?;
        if payload.len() as u64 > MAX_LINK {
            return Err(Error::new(crate::error::Kind::Unsupported, "too many memory objects for an image with a parent"));
        }
        self.lineage = Lineage::Child;
        self.raw_section(SectionKind::Parent, SECTION_VERSION, MANDATORY, &payload)
    }

    /// Writes a section of any kind.
    pub(super) fn raw_section(&mut self, kind: SectionKind, version: u16, flags: u32, payload: &[u8]) -> Result<()> {
        let header = SectionHeader {
            kind,
            version,
            flags,
            padding: 0,
            length: payload.len() as u64,
            number: self.sections,
            checksum: xxh3_64(payload),
        };
        let front = self.front(header, &[])?;
        self.out.write_all(&front).context(|| "writing the image")?;
        self.put(payload)
    }

    /// Skips to where blocks may be written, after metadata that the test has written as raw sections.
    #[cfg(test)]
    pub(super) fn after_metadata(mut self) -> Self {
        self.next = SectionKind::Pages;
        self
    }

    /// Writes a block where [`Writer::place`] wants it, for those who write images one block after the other.
    ///
    /// # Errors
    /// As there, and those of the output.
    pub fn append(&mut self, block: &Encoded) -> Result<()> {
        let Placed { front, .. } = self.place(block)?;
        self.out.write_all(&front).and_then(|()| self.out.write_all(&block.data)).context(|| "writing the image")
    }

    /// Counts a block as written, in the order of their numbers, and says what must be written where: its front, and
    /// right behind it its [`Encoded::data`]. So that many can write one file at once; before [`Writer::finish`] the
    /// output must stand at [`Writer::position`].
    pub fn place(&mut self, block: &Encoded) -> Result<Placed> {
        if self.next != SectionKind::Pages || block.block != self.blocks {
            return Err(Error::other(format!("block {} written where block {} belongs", block.block, self.blocks)));
        }
        if block.lineage != self.lineage {
            return Err(Error::other("a block of an image with a parent, in one without, or the other way round"));
        }
        let mut header = SectionHeader {
            kind: SectionKind::Pages,
            version: SECTION_VERSION,
            flags: MANDATORY,
            padding: 0,
            length: (block.meta.len() + block.data.len()) as u64,
            number: self.sections,
            checksum: block.checksum,
        };
        if block.stored == Stored::Raw && !block.data.is_empty() {
            let unpadded = self.position + (SECTION + block.meta.len()) as u64;
            header.padding = (data_at(self.position, block.meta.len()) - unpadded) as u32;
        }
        self.index.add(&header, &block.meta);
        let offset = self.position;
        let front = self.front(header, &block.meta)?;
        self.position += block.data.len() as u64;
        self.blocks = self.blocks.checked_add(1).ok_or_else(|| Error::other("too many blocks for one image"))?;
        self.pages.add(block.counts);
        Ok(Placed { offset, front })
    }

    /// Writes the index of all blocks, after the last; the output must stand at [`Writer::position`].
    pub fn index(&mut self) -> Result<()> {
        match std::mem::take(&mut self.index).payload() {
            Some(payload) => self.raw_section(SectionKind::Index, SECTION_VERSION, 0, &payload),
            None => Ok(()),
        }
    }

    /// Writes the trailer and hands the output back, with what was written.
    pub fn finish(mut self) -> Result<(W, Summary)> {
        if self.next != SectionKind::Pages {
            return Err(Error::other(format!("image finished without its {} section", self.next)));
        }
        let hash = self.hash.finalize();
        let trailer = Trailer { sections: self.sections.into(), bytes: self.position, blocks: self.blocks.into(), hash: hash.into() };
        self.raw_section(SectionKind::End, SECTION_VERSION, MANDATORY, &trailer.to_bytes())?;
        self.out.flush().context(|| "writing the image")?;
        let Writer { out, position, sections, blocks, pages, .. } = self;
        Ok((out, Summary { bytes: position, hash, sections, blocks, pages }))
    }

    /// Blocks that have their place so far.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Counts a section, up to the first byte after `meta`: what stands there.
    fn front(&mut self, header: SectionHeader, meta: &[u8]) -> Result<Vec<u8>> {
        let bytes = header.to_bytes();
        self.hash.update(&bytes);
        let padding = header.padding as usize;
        let mut front = Vec::with_capacity(SECTION + padding + meta.len());
        front.extend(bytes);
        front.resize(SECTION + padding, 0);
        front.extend(meta);
        self.position += front.len() as u64;
        self.sections = self.sections.checked_add(1).ok_or_else(|| Error::other("too many sections for one image"))?;
        Ok(front)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).context(|| "writing the image")?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}
