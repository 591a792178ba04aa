//! Checking a whole image: every checksum, every run, every reference.

use super::encode::Counts;
use super::pages::Content;
use super::placement::Placement;
use super::reader::{Reader, Section};
use super::{Block, Hash};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;

/// What a whole and undamaged image consists of.
#[derive(Debug)]
pub struct Report<M, T> {
    /// Payload of MANIFEST.
    pub manifest: M,
    /// Payload of TREE.
    pub tree: T,
    /// Every section, in order.
    pub sections: Vec<Section>,
    /// Number of blocks.
    pub blocks: u32,
    /// Pages by kind; elided ones have left no trace.
    pub pages: Counts,
    /// Length in bytes.
    pub bytes: u64,
    /// The image's name.
    pub hash: Hash,
}

/// Reads an image to its end. An error says what is wrong first.
pub fn verify<M: DeserializeOwned, T: DeserializeOwned>(mut reader: Reader<'_>) -> Result<Report<M, T>> {
    let manifest = reader.manifest()?;
    let tree = reader.tree()?;
    let mut pages = Counts::default();
    let mut placement = Placement::default();
    let mut blocks = 0;
    let mut buffer = Vec::new();
    while let Some(block) = reader.next_block()? {
        let block = block.decode_into(std::mem::take(&mut buffer))?;
        placement.note(&block);
        count(&block, &placement, &mut pages)?;
        blocks += 1;
        buffer = block.data;
    }
    let hash = reader.hash().ok_or_else(|| Error::image("image has no end"))?;
    Ok(Report { manifest, tree, sections: reader.sections().to_vec(), blocks, pages, bytes: reader.position(), hash })
}

/// Counts the pages of a block and follows its copies.
fn count(block: &Block, placement: &Placement, pages: &mut Counts) -> Result<()> {
    for run in &block.runs {
        let n = u64::from(run.pages);
        match run.content {
            Content::Data => pages.data += n,
            Content::Zero => pages.zero += n,
            Content::Copy { block: from, page } => {
                placement.find(from, page, run.pages)?;
                pages.copy += n;
            }
            Content::Parent => pages.parent += n,
            Content::Unused => pages.unused += n,
        }
    }
    Ok(())
}
