//! The content of a file in pieces, each known by a hash.

use crate::sys::file::data_ranges;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// What stands for the content of a block: the first half of a BLAKE3 hash.
pub const HASH: usize = 16;
/// Smallest block.
const SMALLEST: u64 = 64 << 10;
/// No file has more blocks when it is first seen, so that what is kept of it stays small.
const MOST: u64 = 1 << 16;

/// Bytes of a block of a file that has `size` bytes.
pub fn block_for(size: u64) -> u64 {
    size.div_ceil(MOST).next_power_of_two().max(SMALLEST)
}

/// The hash of some bytes.
pub fn hash(bytes: &[u8]) -> [u8; HASH] {
    let mut half = [0; HASH];
    half.copy_from_slice(&blake3::hash(bytes).as_bytes()[..HASH]);
    half
}

/// Stands for the content of a whole file.
pub fn content(size: u64, hashes: &[u8]) -> Vec<u8> {
    let mut all = blake3::Hasher::new();
    all.update(&size.to_le_bytes()).update(hashes);
    all.finalize().as_bytes().to_vec()
}

/// A file block by block: where its data is, and what is in it. The buffer is used again.
pub struct Blocks<'f> {
    file: &'f File,
    size: u64,
    block: u64,
    /// Start and length of what is no hole.
    data: Arc<[(u64, u64)]>,
    /// The first of `data` that is not behind.
    next: usize,
    at: u64,
    buffer: Vec<u8>,
    /// Of a block that is a hole.
    empty: Option<[u8; HASH]>,
}

/// One of them.
pub struct Block<'b> {
    /// Where it begins.
    pub at: u64,
    /// Of its content.
    pub hash: [u8; HASH],
    /// Its content; none where it is a hole.
    pub bytes: Option<&'b [u8]>,
    /// How long it is.
    pub length: u64,
}

impl<'f> Blocks<'f> {
    /// Of a file of `size` bytes.
    pub fn new(file: &'f File, size: u64, block: u64) -> io::Result<Self> {
        let data = data_ranges(file, size)?.into();
        Ok(Blocks { file, size, block, data, next: 0, at: 0, buffer: Vec::new(), empty: None })
    }

    /// The next one. What a file has lost since its size was taken reads as nothing.
    pub fn step(&mut self) -> io::Result<Option<Block<'_>>> {
        if self.at >= self.size {
            return Ok(None);
        }
        let (at, length) = (self.at, self.block.min(self.size - self.at));
        self.at += length;
        while self.data.get(self.next).is_some_and(|d| d.0 + d.1 <= at) {
            self.next += 1;
        }
        if self.data.get(self.next).is_none_or(|d| d.0 >= at + length) {
            let whole = length == self.block;
            let hash = match self.empty.filter(|_| whole) {
                Some(known) => known,
                None => {
                    let fresh = hash(&vec![0; length as usize]);
                    if whole {
                        self.empty = Some(fresh);
                    }
                    fresh
                }
            };
            return Ok(Some(Block { at, hash, bytes: None, length }));
        }
        self.buffer.resize(length as usize, 0);
        let mut read = 0;
        while read < self.buffer.len() {
            match self.file.read_at(&mut self.buffer[read..], at + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.buffer[read..].fill(0);
        Ok(Some(Block { at, hash: hash(&self.buffer), bytes: Some(&self.buffer), length }))
    }

    /// What of a range is data: starts and ends.
    pub fn data_in(data: &[(u64, u64)], at: u64, length: u64) -> Vec<(u64, u64)> {
        let first = data.partition_point(|d| d.0 + d.1 <= at);
        let within = data[first..].iter().take_while(|d| d.0 < at + length);
        within.map(|d| (d.0.max(at), (d.0 + d.1).min(at + length))).collect()
    }

    /// Start and length of what is no hole.
    pub fn data(&self) -> Arc<[(u64, u64)]> {
        self.data.clone()
    }
}

/// The hashes of all blocks of a file.
///
/// # Errors
/// When it cannot be read, or `go_on` says that nobody wants to know any more.
pub fn hashes(path: &Path, size: u64, block: u64, go_on: &dyn Fn() -> bool) -> io::Result<Vec<u8>> {
    let file = super::entry::open(path)?;
    let mut blocks = Blocks::new(&file, size, block)?;
    let mut all = Vec::new();
    while let Some(one) = blocks.step()? {
        all.extend_from_slice(&one.hash);
        if !go_on() {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    #[test]
    fn blocks_grow_with_the_file() {
        assert_eq!(block_for(0), SMALLEST);
        assert_eq!(block_for(4 << 30), SMALLEST);
        assert_eq!(block_for((4 << 30) + 1), 2 * SMALLEST);
        for size in [1u64, 1 << 20, 1 << 33, 1 << 40, (1 << 44) + 7] {
            assert!(size.div_ceil(block_for(size)) <= MOST, "{size}");
        }
    }

    #[test]
    fn holes_are_not_read_and_count_as_zeros() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let size = 4 * SMALLEST + 5;
        file.write_all(b"at the start").unwrap();
        file.seek(SeekFrom::Start(3 * SMALLEST)).unwrap();
        file.write_all(b"later").unwrap();
        file.as_file().set_len(size).unwrap();
        let sparse = hashes(file.path(), size, SMALLEST, &|| true).unwrap();
        assert_eq!(sparse.len(), 5 * HASH);
        let mut plain = tempfile::NamedTempFile::new().unwrap();
        plain.write_all(&std::fs::read(file.path()).unwrap()).unwrap();
        let full = hashes(plain.path(), size, SMALLEST, &|| true).unwrap();
        assert_eq!(full, sparse);
        let mut blocks = Blocks::new(file.as_file(), size, SMALLEST).unwrap();
        let mut holes = 0;
        while let Some(block) = blocks.step().unwrap() {
            holes += usize::from(block.bytes.is_none());
        }
        assert!(holes >= 2, "{holes} holes");
        assert_ne!(content(size, &sparse), content(size + 1, &sparse));
        assert!(hashes(plain.path(), size, SMALLEST, &|| false).is_err());
    }

    #[test]
    fn what_of_a_range_is_data() {
        let data = [(0, 10), (20, 10), (40, 100)];
        assert_eq!(Blocks::data_in(&data, 5, 20), [(5, 10), (20, 25)]);
        assert_eq!(Blocks::data_in(&data, 10, 10), []);
        assert_eq!(Blocks::data_in(&data, 100, 100), [(100, 140)]);
    }
}
