//! Reading an image: section by section, in order, believing nothing before it was checked.

use super::Hash;
use super::format::{HEADER, Header, PAGE, Place, SECTION, SectionHeader, SectionKind, Trailer};
use super::index::{self, Entry, Front};
use super::link::ParentLink;
use super::pages::{BLOCK_HEADER, Block, Lineage, Meta, Owner, Run, Stored};
use super::source::{FileAt, Positioned, Source, Walk};
use crate::error::{Context, Error, Result};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// One section of an image, as `meio verify` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Its version.
    pub version: u16,
    /// Where its header stands, in bytes.
    pub offset: u64,
    /// Where its payload stands, in bytes.
    pub payload: u64,
    /// Bytes of payload.
    pub length: u64,
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Manifest,
    Tree,
    Pages,
    Ended,
}

/// Reads one image: [`Reader::manifest`], [`Reader::tree`], then [`Reader::next_block`] until it says `None`.
///
/// Memory: a page section takes at most 2 MiB, a metadata section what has arrived of it (times at most 24 for
/// the decoded values) and 1 MiB for each level of lists in it.
pub struct Reader<'a> {
    source: Source<'a>,
    /// Length of the file, when it is one.
    length: Option<u64>,
    hash: blake3::Hasher,
    sections: Vec<Section>,
    blocks: u32,
    stage: Stage,
    name: Option<Hash>,
    id: [u8; 16],
    parent: Option<ParentLink>,
    folder: PathBuf,
    machine: u16,
}

impl<'a> Reader<'a> {
    /// Reads from a stream; `machine` is the architecture that the image must be of.
    pub fn open(input: impl Read + Send + 'a, machine: u16) -> Result<Self> {
        Reader::start(Source::stream(input), None, machine)
    }

    /// Reads from a file, from its start on whatever its offset is. What is no regular file is read as a stream.
    pub fn from_file(file: File, machine: u16) -> Result<Reader<'static>> {
        let metadata = file.metadata().context(|| "reading the image")?;
        if metadata.is_dir() {
            return Err(Error::image("is a directory, not an image"));
        }
        if !metadata.is_file() {
            return Reader::open(file, machine);
        }
        Reader::start(Source::File(Walk::new(Arc::new(file))), Some(metadata.len()), machine)
    }

    /// The same; the image's parent is looked for in this folder, else in the current one.
    pub fn beside(mut self, folder: PathBuf) -> Self {
        self.folder = folder;
        self
    }

    /// Where the image's parent is looked for.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The architecture that it is of.
    pub(super) fn machine(&self) -> u16 {
        self.machine
    }

    /// Whether the image can be read only once.
    pub fn is_stream(&self) -> bool {
        matches!(self.source, Source::Stream(_))
    }

    /// Another reader of the same file, at its start; of a stream there is none.
    pub(super) fn again(&self) -> Result<Option<Reader<'static>>> {
        match &self.source {
            Source::Stream(_) => Ok(None),
            Source::File(walk) => Reader::start(Source::File(Walk::new(walk.at.file.clone())), self.length, self.machine).map(Some),
        }
    }

    fn start(mut source: Source<'_>, length: Option<u64>, machine: u16) -> Result<Reader<'_>> {
        let mut bytes = [0; HEADER];
        source.fill(&mut bytes, Place::Header)?;
        Header::check(&bytes, machine)?;
        let id = std::array::from_fn(|n| bytes[16 + n]);
        let mut hash = blake3::Hasher::new();
        hash.update(&bytes);
        let (sections, stage) = (Vec::new(), Stage::Manifest);
        Ok(Reader { source, length, hash, sections, blocks: 0, stage, name: None, id, parent: None, folder: PathBuf::from("."), machine })
    }

    /// The image's name; known once [`Reader::next_block`] has returned `None`.
    pub fn hash(&self) -> Option<Hash> {
        self.name
    }

    /// The sections read so far.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Bytes of the image read or stepped over so far.
    pub fn position(&self) -> u64 {
        self.source.position()
    }

    /// Random bytes of this image, [`Header::id`].
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// The image that this one builds upon; known once the tree has been read.
    pub fn parent(&self) -> Option<&ParentLink> {
        self.parent.as_ref()
    }

    /// The payload of the MANIFEST section. To be called first, once.
    pub fn manifest<M: DeserializeOwned>(&mut self) -> Result<M> {
        let (place, payload) = self.metadata(SectionKind::Manifest)?;
        decode_cbor(&payload, place)
    }

    /// The payload of MANIFEST or TREE as it is, in place of [`Reader::manifest`] and [`Reader::tree`].
    pub fn metadata_as_it_is(&mut self, kind: SectionKind) -> Result<Vec<u8>> {
        self.metadata(kind).map(|(_, payload)| payload)
    }

    /// Which image this one builds upon, of one of which nothing else is to be read.
    pub fn link(&mut self) -> Result<Option<ParentLink>> {
        self.skip_metadata()?;
        Ok(self.parent.clone())
    }

    /// The payload of the TREE section. To be called before the first block is read, once.
    pub fn tree<T: DeserializeOwned>(&mut self) -> Result<T> {
        if self.stage == Stage::Manifest {
            self.metadata(SectionKind::Manifest)?;
        }
        let (place, payload) = self.metadata(SectionKind::Tree)?;
        decode_cbor(&payload, place)
    }

    /// The next block of pages, still encoded. `None` means that END was reached and everything that this
    /// reader has read was right and complete; the payloads of blocks are checked when they are decoded.
    pub fn next_block(&mut self) -> Result<Option<EncodedBlock>> {
        if self.stage == Stage::Manifest {
            self.metadata(SectionKind::Manifest)?;
        }
        if self.stage == Stage::Tree {
            self.metadata(SectionKind::Tree)?;
        }
        if self.stage == Stage::Ended {
            return Ok(None);
        }
        let (header, place) = self.next_known()?;
        match header.kind {
            SectionKind::Pages => self.block(header, place).map(Some),
            SectionKind::End => self.end(header, place).map(|()| None),
            kind => Err(place.damaged(format!("a second {kind} section"))),
        }
    }

    /// The next block with its runs. Of a file its data is stepped over: only where the image has a parent have the runs
    /// been compared with a checksum then; those of others are right when the block is decoded or described as well.
    pub(super) fn next_front(&mut self) -> Result<Option<(EncodedBlock, Meta)>> {
        let Some(block) = self.next_block()? else { return Ok(None) };
        let meta = match (&mut self.source, &block.payload) {
            (Source::File(walk), Payload::In(here)) => {
                let after = std::mem::replace(&mut walk.at.position, here.position);
                let front = Parts::front(&mut self.source, &block.header, block.place)?;
                if let Source::File(walk) = &mut self.source {
                    walk.at.position = after;
                }
                Parts::parse(&front, block.number, block.place, block.lineage)?
            }
            _ => block.meta()?,
        };
        Ok(Some((block, meta)))
    }

    /// Steps over MANIFEST and TREE of a file, without a look at what they hold.
    pub(super) fn skip_metadata(&mut self) -> Result<()> {
        for (now, kind, after) in [(Stage::Manifest, SectionKind::Manifest, Stage::Tree), (Stage::Tree, SectionKind::Tree, Stage::Pages)] {
            if self.stage != now {
                continue;
            }
            let (header, place) = self.header_of(kind)?;
            match &mut self.source {
                Source::File(walk) => walk.at.position += header.length,
                source => drop(source.take_bytes(header.length, place)?),
            }
            self.stage = after;
        }
        Ok(())
    }

    /// All blocks by the image's index, to be called instead of [`Reader::next_block`]: each with its owner and its runs, nothing
    /// of which has been read. `None` when there is no index: then nothing has happened. After it the image's name is known,
    /// and that it is complete.
    pub(super) fn index(&mut self) -> Result<Option<Vec<Indexed>>> {
        let (Stage::Pages, Source::File(Walk { at, .. }), Some(length), 0) = (self.stage, &self.source, self.length, self.blocks) else {
            return Ok(None);
        };
        let file = Arc::clone(&at.file);
        let sections = self.sections.len() as u32;
        let lineage = self.lineage();
        let front = Front { offset: at.position, sections, hash: self.hash.clone(), lineage };
        let Some(found) = index::read(&file, length, front)? else { return Ok(None) };
        let block = |entry: Entry| {
            let Entry { header, offset, meta, front } = entry;
            let start = offset + SECTION as u64 + u64::from(header.padding);
            let place = Place::Section(header.kind, header.number, offset);
            let payload = Payload::In(FileAt { file: Arc::clone(&file), position: start });
            (EncodedBlock { number: meta.block, header, place, start, payload, lineage, front: Some(front) }, meta)
        };
        self.name = Some(found.hash);
        self.stage = Stage::Ended;
        Ok(Some(found.entries.into_iter().map(block).collect()))
    }

    /// Reads the payload of the one section of this kind, which must be the next that is known.
    fn metadata(&mut self, kind: SectionKind) -> Result<(Place, Vec<u8>)> {
        let (now, after) = match kind {
            SectionKind::Manifest => (Stage::Manifest, Stage::Tree),
            _ => (Stage::Tree, Stage::Pages),
        };
        if self.stage != now {
            return Err(Error::other(format!("{kind} section was asked for out of its turn")));
        }
        let (header, place) = self.header_of(kind)?;
        let payload = self.source.take_bytes(header.length, place)?;
        check(&header, place, &[&payload])?;
        self.stage = after;
        Ok((place, payload))
    }

    /// The header of the one section of this kind, which must be the next that is known; takes the one about the parent that
    /// may stand before the tree.
    fn header_of(&mut self, kind: SectionKind) -> Result<(SectionHeader, Place)> {
        let (mut header, mut place) = self.next_known()?;
        if header.kind == SectionKind::Parent && kind == SectionKind::Tree {
            let payload = self.source.take_bytes(header.length, place)?;
            check(&header, place, &[&payload])?;
            self.parent = Some(decode_cbor(&payload, place)?);
            (header, place) = self.next_known()?;
        }
        if header.kind != kind {
            return Err(place.damaged(format!("the {kind} section belongs here")));
        }
        Ok((header, place))
    }

    /// The next section that this meio knows, read up to its payload; optional ones that it does not know, and the index, are
    /// checked and stepped over.
    fn next_known(&mut self) -> Result<(SectionHeader, Place)> {
        loop {
            let (header, place) = self.next_section()?;
            // The index says nothing to who reads all the blocks.
            if header.known() && header.kind != SectionKind::Index {
                return Ok((header, place));
            }
            let mut hash = Xxh3::new();
            let mut left = header.length;
            let mut buffer = vec![0; 1 << 16];
            while left > 0 {
                let chunk = &mut buffer[..left.min(1 << 16) as usize];
                self.source.fill(chunk, place)?;
                hash.update(chunk);
                left -= chunk.len() as u64;
            }
            if hash.digest() != header.checksum {
                return Err(place.damaged("wrong checksum of its payload"));
            }
        }
    }

    /// Reads one section header and its padding.
    fn next_section(&mut self) -> Result<(SectionHeader, Place)> {
        let offset = self.source.position();
        let number = u32::try_from(self.sections.len()).map_err(|_| Error::image("image has too many sections"))?;
        let mut bytes = [0; SECTION];
        self.source.fill(&mut bytes, Place::SectionHeader(number, offset))?;
        let header = SectionHeader::parse(&bytes, number, offset)?;
        let place = Place::Section(header.kind, number, offset);
        if header.kind != SectionKind::End {
            self.hash.update(&bytes);
        }
        let mut padding = [0; PAGE];
        let padding = &mut padding[..header.padding as usize];
        self.source.fill(padding, place)?;
        if padding.iter().any(|&b| b != 0) {
            return Err(place.damaged("its padding is not zero"));
        }
        let payload = self.source.position();
        let SectionHeader { kind, version, length, .. } = header;
        self.sections.push(Section { kind, version, offset, payload, length });
        Ok((header, place))
    }

    fn lineage(&self) -> Lineage {
        if self.parent.is_some() { Lineage::Child } else { Lineage::Flat }
    }

    /// Takes a PAGES section: from a stream its bytes, from a file where they are.
    fn block(&mut self, header: SectionHeader, place: Place) -> Result<EncodedBlock> {
        let (number, start) = (self.blocks, self.source.position());
        self.blocks = number.checked_add(1).ok_or_else(|| Error::image("image has too many blocks"))?;
        let payload = match &mut self.source {
            Source::Stream(_) => Payload::Read(Parts::read(&mut self.source, &header, place, Vec::new())?),
            Source::File(walk) => {
                let here = walk.at.clone();
                walk.at.position += header.length;
                match self.length {
                    Some(length) if walk.at.position > length => return Err(place.cut_off(length)),
                    _ => Payload::In(here),
                }
            }
        };
        Ok(EncodedBlock { number, header, place, start, payload, lineage: self.lineage(), front: None })
    }

    /// Compares the trailer with what was read.
    fn end(&mut self, header: SectionHeader, place: Place) -> Result<()> {
        let payload = self.source.take_bytes(header.length, place)?;
        check(&header, place, &[&payload])?;
        let trailer = Trailer::parse(&payload).ok_or_else(|| place.damaged("its length is wrong"))?;
        let hash = self.hash.finalize();
        let offset = self.sections.last().map_or(0, |s| s.offset);
        let found = Trailer { sections: header.number.into(), bytes: offset, blocks: self.blocks.into(), hash: hash.into() };
        if trailer != found {
            return Err(place.damaged("it does not belong to what stands before it"));
        }
        let position = self.source.position();
        if !self.source.ends()? {
            return Err(Error::image(format!("image is followed by other bytes, from byte {position} on")));
        }
        self.stage = Stage::Ended;
        self.name = Some(hash);
        Ok(())
    }
}

/// Compares a payload with its checksum.
fn check(header: &SectionHeader, place: Place, parts: &[&[u8]]) -> Result<()> {
    let mut hash = Xxh3::new();
    parts.iter().for_each(|part| hash.update(part));
    if hash.digest() != header.checksum {
        return Err(place.damaged("wrong checksum of its payload"));
    }
    Ok(())
}

fn decode_cbor<T: DeserializeOwned>(payload: &[u8], place: Place) -> Result<T> {
    let mut rest = payload;
    let value = ciborium::from_reader(&mut rest).map_err(|e| match e {
        ciborium::de::Error::Semantic(_, what) => place.damaged(what),
        ciborium::de::Error::Io(_) => place.damaged("its CBOR ends too early"),
        ciborium::de::Error::Syntax(at) => place.damaged(format!("its CBOR is wrong at its byte {at}")),
        ciborium::de::Error::RecursionLimitExceeded => place.damaged("its CBOR is nested too deeply"),
    })?;
    if !rest.is_empty() {
        return Err(place.damaged(format!("{} bytes follow its CBOR", rest.len())));
    }
    Ok(value)
}

/// The payload of a block in its two parts.
#[derive(Clone)]
struct Parts {
    meta: Vec<u8>,
    data: Vec<u8>,
}

impl Parts {
    /// Reads them; the data goes into the memory of `data`, whatever that held.
    fn read(input: &mut impl Positioned, header: &SectionHeader, place: Place, mut data: Vec<u8>) -> Result<Parts> {
        let meta = Parts::front(input, header, place)?;
        data.resize(header.length as usize - meta.len(), 0);
        input.fill(&mut data, place)?;
        Ok(Parts { meta, data })
    }

    /// Block header and runs.
    fn front(input: &mut impl Positioned, header: &SectionHeader, place: Place) -> Result<Vec<u8>> {
        let mut front = [0; BLOCK_HEADER];
        let short = || place.damaged(format!("{} bytes are too few for its runs", header.length));
        header.length.checked_sub(BLOCK_HEADER as u64).ok_or_else(short)?;
        input.fill(&mut front, place)?;
        let length = Meta::length_from(&front).map_err(|what| place.damaged(what))?;
        // At most MAX_BLOCK, checked with the section header.
        header.length.checked_sub(length as u64).ok_or_else(short)?;
        let mut meta = vec![0; length];
        meta[..BLOCK_HEADER].copy_from_slice(&front);
        input.fill(&mut meta[BLOCK_HEADER..], place)?;
        Ok(meta)
    }

    /// Compares the checksum and checks every run; `number` is the index that the block must have.
    fn check(&self, number: u32, header: &SectionHeader, place: Place, lineage: Lineage) -> Result<Meta> {
        check(header, place, &[&self.meta, &self.data])?;
        Parts::parse(&self.meta, number, place, lineage)
    }

    /// Checks every run; `number` is the index that the block must have.
    fn parse(front: &[u8], number: u32, place: Place, lineage: Lineage) -> Result<Meta> {
        let meta = Meta::parse(front, lineage).map_err(|what| place.damaged(what))?;
        if meta.block != number {
            return Err(place.damaged(format!("block {} stands where block {number} belongs", meta.block)));
        }
        Ok(meta)
    }
}

#[derive(Clone)]
enum Payload {
    Read(Parts),
    In(FileAt),
    /// In a file that has been closed, here.
    Away(u64),
}

/// A block that was found in an image but not yet looked at. Send it to a worker and decode it there.
#[derive(Clone)]
pub struct EncodedBlock {
    number: u32,
    header: SectionHeader,
    place: Place,
    /// Where its payload stands in the image.
    start: u64,
    payload: Payload,
    lineage: Lineage,
    /// XXH3-64 of its block header and runs, as the index has them.
    front: Option<u64>,
}

/// A block as an index knows it: whose pages it holds, and which.
pub type Indexed = (EncodedBlock, Meta);

impl EncodedBlock {
    /// What it holds, without its content: reads it (when it is in a file), compares the checksum, checks every run.
    pub fn describe(&self) -> Result<(Owner, Vec<Run>)> {
        let meta = self.meta()?;
        Ok((meta.owner, meta.runs))
    }

    /// The number of the descriptor of the file that it is in, if any.
    pub(super) fn file(&self) -> Option<i32> {
        match &self.payload {
            Payload::In(at) => Some(std::os::fd::AsRawFd::as_raw_fd(&*at.file)),
            Payload::Read(_) | Payload::Away(_) => None,
        }
    }

    /// Lets go of the file that it is in.
    pub(super) fn away(mut self) -> Self {
        if let Payload::In(at) = &self.payload {
            self.payload = Payload::Away(at.position);
        }
        self
    }

    /// The same in its file, which has been opened again.
    pub(super) fn back(&self, file: &Arc<File>) -> Self {
        let mut block = self.clone();
        if let Payload::Away(position) = block.payload {
            block.payload = Payload::In(FileAt { file: file.clone(), position });
        }
        block
    }

    fn meta(&self) -> Result<Meta> {
        let read;
        let parts = match &self.payload {
            Payload::Read(parts) => parts,
            Payload::In(at) => {
                read = Parts::read(&mut at.clone(), &self.header, self.place, Vec::new())?;
                &read
            }
            Payload::Away(_) => return Err(closed()),
        };
        parts.check(self.number, &self.header, self.place, self.lineage)
    }

    /// Reads it (when it is in a file), compares the checksum, checks every run, decompresses.
    pub fn decode(self) -> Result<Block> {
        self.decode_into(Vec::new())
    }

    /// The same with memory for the data: that of a block which is done with. Fresh memory for each block would
    /// cost as much as all the rest.
    pub fn decode_into(self, buffer: Vec<u8>) -> Result<Block> {
        let EncodedBlock { number, header, place, start, payload, lineage, front } = self;
        let (parts, in_file, spare) = match payload {
            Payload::Read(parts) => (parts, false, buffer),
            Payload::In(mut at) => (Parts::read(&mut at, &header, place, buffer)?, true, Vec::new()),
            Payload::Away(_) => return Err(closed()),
        };
        let meta = parts.check(number, &header, place, lineage)?;
        if front.is_some_and(|front| front != xxhash_rust::xxh3::xxh3_64(&parts.meta)) {
            return Err(place.damaged("its runs are not those of the index"));
        }
        let Parts { meta: front, mut data } = parts;
        let length = meta.data_pages as usize * PAGE;
        if meta.stored == Stored::Zstd {
            data = decompress(&data, length, spare).map_err(|e| place.damaged(format!("zstd: {e}")))?;
        }
        if data.len() != length {
            return Err(place.damaged(format!("its data has {} bytes, its runs {length}", data.len())));
        }
        let offset = start + front.len() as u64;
        let raw = meta.stored == Stored::Raw && length > 0;
        if raw && !offset.is_multiple_of(PAGE as u64) {
            return Err(place.damaged("its raw pages are not at a page border"));
        }
        let offset = (raw && in_file).then_some(offset);
        Ok(Block { number, owner: meta.owner, runs: meta.runs, data, offset })
    }
}

fn closed() -> Error {
    Error::other("a block was asked for whose image has been closed")
}

/// Decompresses zstd frames that hold about `length` bytes: more than `out` has room for is an error.
fn decompress(data: &[u8], length: usize, mut out: Vec<u8>) -> std::io::Result<Vec<u8>> {
    thread_local! {
        // Making a decompressor costs more than many a block.
        static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    out.clear();
    out.reserve_exact(length);
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(data, &mut out)?;
        Ok(out)
    })
}
