//! How changes to files travel: a [`MAGIC`], then each change with its length before it, data after the change that announces it.

use super::entry::Meta;
use crate::error::{Error, Result};
use crate::resource::path::FilePath;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};

/// What a set of changes begins with; images begin with their own.
pub const MAGIC: [u8; 8] = *b"\x89meiofil";
/// The number of a root that stands for single files, whose paths are absolute but for the first `/`.
pub const SINGLE: u32 = u32::MAX;

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Op {
    /// What follows concerns the folder of data of this number, or [`SINGLE`] files.
    Root {
        /// Which.
        number: u32,
        /// The tree stands still: what is changed is to be on disk at once.
        last: bool,
    },
    /// Nothing is to be there.
    Delete(FilePath),
    /// A folder is to be there; its attributes come later.
    Folder(FilePath),
    /// Content follows.
    Write {
        /// Of this file.
        path: FilePath,
        /// Nothing of what is there is to be kept.
        fresh: bool,
        /// What is there may have other paths, which are not to change.
        apart: bool,
    },
    /// So many bytes follow; they belong here.
    Data {
        /// Where.
        at: u64,
        /// How many.
        length: u32,
    },
    /// There is nothing here.
    Hole {
        /// Where.
        at: u64,
        /// How long.
        length: u64,
    },
    /// The content is complete.
    Close {
        /// Bytes of the file.
        size: u64,
        /// All else.
        meta: Meta,
    },
    /// A symbolic link.
    Symlink {
        /// Where.
        path: FilePath,
        /// What it says.
        to: FilePath,
        /// All else.
        meta: Meta,
    },
    /// A FIFO, a socket or a device.
    Node {
        /// Where.
        path: FilePath,
        /// Its number.
        device: u64,
        /// All else.
        meta: Meta,
    },
    /// Another path of a file.
    Link {
        /// The other one.
        path: FilePath,
        /// The one that is there.
        there: FilePath,
    },
    /// Attributes.
    Set {
        /// Of this one.
        path: FilePath,
        /// They.
        meta: Meta,
    },
    /// That was all.
    End,
}

/// Writes changes.
pub struct Out<W: Write> {
    to: W,
    /// Changes so far.
    pub changes: u64,
    /// Bytes so far.
    pub bytes: u64,
}

impl<W: Write> Out<W> {
    /// Begins.
    pub fn new(mut to: W) -> Result<Self> {
        to.write_all(&MAGIC)?;
        Ok(Out { to, changes: 0, bytes: MAGIC.len() as u64 })
    }

    /// One change.
    pub fn op(&mut self, op: &Op) -> Result<()> {
        let bytes = super::super::plan::pack(op)?;
        self.to.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.to.write_all(&bytes)?;
        self.bytes += 4 + bytes.len() as u64;
        self.changes += u64::from(!matches!(op, Op::Root { .. } | Op::End));
        Ok(())
    }

    /// Bytes that belong at a place of the file that is being written.
    pub fn data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        const PIECE: usize = 1 << 20;
        for (n, piece) in bytes.chunks(PIECE).enumerate() {
            self.op(&Op::Data { at: at + (n * PIECE) as u64, length: piece.len() as u32 })?;
            self.to.write_all(piece)?;
            self.bytes += piece.len() as u64;
        }
        Ok(())
    }

    /// Ends: what there is to count.
    pub fn end(mut self) -> Result<(u64, u64)> {
        self.op(&Op::End)?;
        self.to.flush()?;
        Ok((self.changes, self.bytes))
    }
}

/// The next change.
pub fn next(from: &mut impl Read) -> Result<Op> {
    super::catalogue::read_one(from)?.ok_or_else(|| Error::link("changes to files have ended in the middle"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_as_they_were_said() {
        let mut bytes = Vec::new();
        let mut out = Out::new(&mut bytes).unwrap();
        let ops = [
            Op::Root { number: SINGLE, last: true },
            Op::Write { path: "a/b".into(), fresh: true, apart: false },
            Op::Hole { at: 7, length: 9 },
        ];
        ops.iter().for_each(|op| out.op(op).unwrap());
        out.data(5, b"content").unwrap();
        let (changes, length) = out.end().unwrap();
        assert_eq!((changes, length), (3, bytes.len() as u64));
        let mut from = bytes.strip_prefix(&MAGIC).unwrap();
        for op in ops {
            assert_eq!(next(&mut from).unwrap(), op);
        }
        assert_eq!(next(&mut from).unwrap(), Op::Data { at: 5, length: 7 });
        from = from.strip_prefix(b"content").unwrap();
        assert_eq!(next(&mut from).unwrap(), Op::End);
        assert!(next(&mut from).is_err(), "there is no more");
    }
}
