//! Tests of the whole format. Those of one part stand with it.

mod chain;
mod damaged;
mod forge;
mod golden;
mod index;
mod long_chain;
mod mutation;
mod round_trip;
pub mod sample;
mod tree;

use super::{Block, Reader, Report, verify};
use crate::error::Result;
use crate::resource::{Manifest, Tree};
use std::fs::File;
use std::io::Write;

/// All blocks of an image, decoded.
fn blocks(reader: &mut Reader<'_>) -> Vec<Block> {
    let mut blocks = Vec::new();
    while let Some(block) = reader.next_block().unwrap() {
        blocks.push(block.decode().unwrap());
    }
    blocks
}

/// A file with this content.
fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn verify_stream(bytes: &[u8]) -> Result<Report<Manifest, Tree>> {
    Reader::open(bytes, sample::MACHINE).and_then(|reader| verify(reader.beside(golden::folder())))
}

fn verify_file(bytes: &[u8]) -> Result<Report<Manifest, Tree>> {
    Reader::from_file(file(bytes), sample::MACHINE).and_then(|reader| verify(reader.beside(golden::folder())))
}
