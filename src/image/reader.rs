//! Reading an image: section by section, in order, believing nothing before it was checked.

use super::Hash;
use super::encoded::{EncodedBlock, Indexed, Parts, Payload, check};
use super::format::{HEADER, Header, PAGE, Place, SECTION, SectionHeader, SectionKind, Trailer};
use super::index::{self, Entry, Front};
use super::link::ParentLink;
use super::pages::{Content, Lineage, Meta};
use super::source::{FileAt, Positioned, Source, Walk};
use crate::error::{Context, Error, Result};
use serde::de::DeserializeOwned;
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

    /// Length of the file, when it is one.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
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
    fn next_front(&mut self) -> Result<Option<(EncodedBlock, Meta)>> {
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

    /// All blocks with what they hold, and then the image's name: by the index, else by a walk through the image, as of
    /// [`Reader::next_front`].
    pub(super) fn fronts(&mut self) -> Result<(Vec<Indexed>, Hash)> {
        self.skip_metadata()?;
        let blocks = match self.index()? {
            Some(blocks) => blocks,
            None => std::iter::from_fn(|| self.next_front().transpose()).collect::<Result<_>>()?,
        };
        Ok((blocks, self.name.ok_or_else(|| Error::image("image has no end"))?))
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

    /// Whether it says of pages only how they differ from those of its parent ([`Content::Delta`]); of an image of which no block
    /// has been read.
    pub fn has_deltas(&mut self) -> Result<bool> {
        if self.link()?.is_none() {
            return Ok(false);
        }
        let mut runs = self.fronts()?.0.into_iter().flat_map(|(_, meta)| meta.runs);
        Ok(runs.any(|run| run.content == Content::Delta))
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
