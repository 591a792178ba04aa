//! A block as it stands in an image: checked, parsed and decompressed by whoever needs its pages.

use super::format::{BLOCK_PAGES, PAGE, Place, SectionHeader};
use super::pages::{BLOCK_HEADER, Block, Lineage, Meta, Owner, Run, Stored};
use super::source::{FileAt, Positioned};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::fs::File;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// Compares a payload with its checksum.
pub(super) fn check(header: &SectionHeader, place: Place, parts: &[&[u8]]) -> Result<()> {
    let mut hash = Xxh3::new();
    parts.iter().for_each(|part| hash.update(part));
    if hash.digest() != header.checksum {
        return Err(place.damaged("wrong checksum of its payload"));
    }
    Ok(())
}

/// The payload of a block in its two parts.
#[derive(Clone)]
pub(super) struct Parts {
    meta: Vec<u8>,
    data: Vec<u8>,
}

impl Parts {
    /// Reads them; the data goes into the memory of `data`, whatever that held.
    pub(super) fn read(input: &mut impl Positioned, header: &SectionHeader, place: Place, mut data: Vec<u8>) -> Result<Parts> {
        let meta = Parts::front(input, header, place)?;
        data.resize(header.length as usize - meta.len(), 0);
        input.fill(&mut data, place)?;
        Ok(Parts { meta, data })
    }

    /// Block header and runs.
    pub(super) fn front(input: &mut impl Positioned, header: &SectionHeader, place: Place) -> Result<Vec<u8>> {
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

    /// The two parts of a payload that has been read.
    fn split<'p>(payload: &'p [u8], header: &SectionHeader, place: Place) -> Result<(&'p [u8], &'p [u8])> {
        let short = || place.damaged(format!("{} bytes are too few for its runs", header.length));
        let length = Meta::length_from(payload.first_chunk().ok_or_else(short)?).map_err(|what| place.damaged(what))?;
        payload.split_at_checked(length).ok_or_else(short)
    }

    /// Checks every run; `number` is the index that the block must have.
    pub(super) fn parse(front: &[u8], number: u32, place: Place, lineage: Lineage) -> Result<Meta> {
        let meta = Meta::parse(front, lineage).map_err(|what| place.damaged(what))?;
        if meta.block != number {
            return Err(place.damaged(format!("block {} stands where block {number} belongs", meta.block)));
        }
        Ok(meta)
    }
}

/// Where the payload of a block is.
#[derive(Clone)]
pub(super) enum Payload {
    Read(Parts),
    In(FileAt),
    /// In a file that has been closed, here.
    Away(u64),
}

/// A block that was found in an image but not yet looked at. Send it to a worker and decode it there.
#[derive(Clone)]
pub struct EncodedBlock {
    pub(super) number: u32,
    pub(super) header: SectionHeader,
    pub(super) place: Place,
    /// Where its payload stands in the image.
    pub(super) start: u64,
    pub(super) payload: Payload,
    pub(super) lineage: Lineage,
    /// XXH3-64 of its block header and runs, as the index has them.
    pub(super) front: Option<u64>,
}

/// A block as an index knows it: whose pages it holds, and which.
pub type Indexed = (EncodedBlock, Meta);

impl EncodedBlock {
    /// What it holds, without its content: reads it (when it is in a file), compares the checksum, checks every run.
    pub fn describe(&self) -> Result<(Owner, Vec<Run>)> {
        let meta = self.meta()?;
        Ok((meta.owner, meta.runs))
    }

    /// Whether its runs have been compared with a checksum, when those of the image have none of their own.
    pub(super) fn proven(&self) -> bool {
        self.front.is_some()
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

    /// Where its payload stands in the image, from and to.
    pub(super) fn extent(&self) -> (u64, u64) {
        (self.start, self.start + self.header.length)
    }

    pub(super) fn meta(&self) -> Result<Meta> {
        match &self.payload {
            Payload::Read(parts) => self.check(&parts.meta, &parts.data),
            Payload::In(at) => {
                let parts = Parts::read(&mut at.clone(), &self.header, self.place, memory())?;
                let meta = self.check(&parts.meta, &parts.data);
                keep(parts.data);
                meta
            }
            Payload::Away(_) => Err(closed()),
        }
    }

    /// Compares the checksum of its payload, whose parts these are, and checks every run.
    fn check(&self, front: &[u8], data: &[u8]) -> Result<Meta> {
        check(&self.header, self.place, &[front, data])?;
        Parts::parse(front, self.number, self.place, self.lineage)
    }

    /// Reads it (when it is in a file), compares the checksum, checks every run, decompresses.
    pub fn decode(self) -> Result<Block> {
        self.decode_into(Vec::new())
    }

    /// The same with memory for the data: that of a block which is done with. Fresh memory for each block would
    /// cost as much as all the rest.
    pub fn decode_into(mut self, buffer: Vec<u8>) -> Result<Block> {
        let in_file = matches!(self.payload, Payload::In(_));
        let parts = match std::mem::replace(&mut self.payload, Payload::Away(0)) {
            Payload::Read(parts) => parts,
            Payload::In(mut at) => Parts::read(&mut at, &self.header, self.place, memory())?,
            Payload::Away(_) => return Err(closed()),
        };
        let meta = self.agreed(&parts.meta, &parts.data)?;
        let (data, done_with) = match meta.stored {
            Stored::Raw => (parts.data, buffer),
            Stored::Zstd => (self.inflate(&parts.data, &meta, buffer)?, parts.data),
        };
        keep(done_with);
        self.block(meta, parts.meta.len(), data, in_file)
    }

    /// The same of one in a file whose payload has been read together with others. Its data may end behind the first `pages`.
    pub(super) fn decode_from(&self, payload: &[u8], pages: u32, mut buffer: Vec<u8>) -> Result<Block> {
        let (front, data) = Parts::split(payload, &self.header, self.place)?;
        let meta = self.agreed(front, data)?;
        let data = match meta.stored {
            Stored::Raw => {
                buffer.clear();
                buffer.extend_from_slice(data);
                buffer
            }
            Stored::Zstd
                if pages.saturating_add(STEP) <= meta.data_pages && decompress_first(data, pages as usize * PAGE, &mut buffer).is_ok() =>
            {
                // No more of it is asked for, and it is that whose checksum is right.
                return Ok(Block { number: self.number, owner: meta.owner, runs: meta.runs, data: buffer, offset: None });
            }
            Stored::Zstd => self.inflate(data, &meta, buffer)?,
        };
        self.block(meta, front.len(), data, true)
    }

    /// [`EncodedBlock::check`], and that its runs are those of the index.
    fn agreed(&self, front: &[u8], data: &[u8]) -> Result<Meta> {
        let meta = self.check(front, data)?;
        if self.front.is_some_and(|known| known != xxhash_rust::xxh3::xxh3_64(front)) {
            return Err(self.place.damaged("its runs are not those of the index"));
        }
        Ok(meta)
    }

    fn inflate(&self, data: &[u8], meta: &Meta, buffer: Vec<u8>) -> Result<Vec<u8>> {
        decompress(data, meta.data_pages as usize * PAGE, buffer).map_err(|e| self.place.damaged(format!("zstd: {e}")))
    }

    fn block(&self, meta: Meta, front: usize, data: Vec<u8>, in_file: bool) -> Result<Block> {
        let length = meta.data_pages as usize * PAGE;
        if data.len() != length {
            return Err(self.place.damaged(format!("its data has {} bytes, its runs {length}", data.len())));
        }
        let offset = self.start + front as u64;
        let raw = meta.stored == Stored::Raw && length > 0;
        if raw && !offset.is_multiple_of(PAGE as u64) {
            return Err(self.place.damaged("its raw pages are not at a page border"));
        }
        let offset = (raw && in_file).then_some(offset);
        Ok(Block { number: self.number, owner: meta.owner, runs: meta.runs, data, offset })
    }
}

/// Pages that zstd decompresses in one go.
const STEP: u32 = (128 << 10) / PAGE as u32;

thread_local! {
    /// Memory for what is read of an image and done with when it has been decompressed.
    static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Memory of a block that is done with; it holds whatever that held.
pub(super) fn memory() -> Vec<u8> {
    MEMORY.take()
}

/// Gives memory to the next one.
pub(super) fn keep(memory: Vec<u8>) {
    MEMORY.with_borrow_mut(|slot| {
        if memory.capacity() > slot.capacity() {
            *slot = memory;
        }
    });
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

/// Decompresses the first `length` bytes of a zstd frame that holds more. An error may mean that this way is not for it.
fn decompress_first(data: &[u8], length: usize, out: &mut Vec<u8>) -> std::io::Result<()> {
    thread_local! {
        static DECODER: RefCell<Option<Decoder<'static>>> = const { RefCell::new(None) };
    }
    out.resize(length, 0);
    DECODER.with_borrow_mut(|slot| {
        let decoder = match slot {
            Some(decoder) => decoder,
            None => {
                let mut decoder = Decoder::new()?;
                // A frame with more than a block of pages has been made by nobody.
                decoder.set_parameter(DParameter::WindowLogMax((BLOCK_PAGES * PAGE).ilog2()))?;
                slot.insert(decoder)
            }
        };
        decoder.reinit()?;
        let (mut input, mut output) = (InBuffer::around(data), OutBuffer::around(&mut out[..]));
        while output.pos() < length {
            let before = (input.pos(), output.pos());
            decoder.run(&mut input, &mut output)?;
            if before == (input.pos(), output.pos()) {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    })
}
