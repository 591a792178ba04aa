//! One message on the control link, as bytes.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | bytes of payload, at most [`LARGEST`] |
//! | 4 | 2 | kind |
//! | 6 | 2 | 0 |
//! | 8 | 8 | generation |
//! | 16 | 8 | XXH3 of what stands before, and of the payload |
//!
//! All little-endian. ssh and TLS keep strangers from changing anything; the checksum finds what is no frame at all.

use crate::error::{Error, Result};
use xxhash_rust::xxh3::Xxh3;

/// Bytes before the payload.
pub const HEADER: usize = 24;
/// No payload may be longer.
pub const LARGEST: usize = 16 << 20;
/// Kinds below are the transport's own; a caller's begin here.
pub const FIRST_KIND: u16 = 16;
/// Kinds from here on are for [`super::Beside`].
pub const BESIDE: u16 = 0x8000;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it says; the caller's numbers begin at [`FIRST_KIND`].
    pub kind: u16,
    /// Of the sender; who holds the highest may run.
    pub generation: u64,
    /// In the words of the caller.
    pub payload: Vec<u8>,
}

/// What a header announces.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    start: [u8; 16],
    sum: u64,
    /// Bytes of payload that follow.
    pub length: usize,
}

impl Frame {
    /// A frame with nothing in it.
    pub fn bare(kind: u16) -> Frame {
        Frame { kind, generation: 0, payload: Vec::new() }
    }

    /// As it travels.
    ///
    /// # Errors
    /// When the payload is too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.payload.len() > LARGEST {
            return Err(Error::other(format!("a message of {} bytes is longer than the link allows ({LARGEST})", self.payload.len())));
        }
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend((self.payload.len() as u32).to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(sum(&bytes[..16], &self.payload).to_le_bytes());
        bytes.extend(&self.payload);
        Ok(bytes)
    }
}

impl Header {
    /// Reads a header; nothing may be allocated before.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Header> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let start: [u8; 16] = std::array::from_fn(|i| bytes[i]);
        let length = (word(0) & 0xffff_ffff) as usize;
        if length > LARGEST || bytes[6..8] != [0; 2] {
            return Err(Error::link("what comes over the link is not meio's"));
        }
        Ok(Header { start, sum: word(16), length })
    }

    /// Puts the frame together.
    ///
    /// # Errors
    /// When the checksum does not agree.
    pub fn with(self, payload: Vec<u8>) -> Result<Frame> {
        if sum(&self.start, &payload) != self.sum {
            return Err(Error::link("a message on the link is damaged"));
        }
        let generation = u64::from_le_bytes(std::array::from_fn(|i| self.start[8 + i]));
        Ok(Frame { kind: u16::from_le_bytes([self.start[4], self.start[5]]), generation, payload })
    }
}

fn sum(start: &[u8], payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(start);
    hash.update(payload);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Frame> {
        let header = Header::decode(bytes[..HEADER].try_into().expect("a header"))?;
        header.with(bytes[HEADER..].to_vec())
    }

    #[test]
    fn a_frame_comes_back() {
        let frame = Frame { kind: 300, generation: u64::MAX - 5, payload: b"what the caller says".to_vec() };
        assert_eq!(decode(&frame.encode().expect("bytes")).expect("frame"), frame);
        assert_eq!(decode(&Frame::bare(7).encode().expect("bytes")).expect("frame"), Frame::bare(7));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let whole = Frame { kind: 17, generation: 3, payload: b"abc".to_vec() }.encode().expect("bytes");
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_allocated() {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&(LARGEST as u32 + 1).to_le_bytes());
        assert!(Header::decode(&bytes).is_err());
        assert!(Frame { payload: vec![0; LARGEST + 1], ..Frame::bare(16) }.encode().is_err());
    }
}
