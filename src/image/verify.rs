//! Checking a whole image: every checksum, every run, every reference.

use super::chain::{Chain, FromParent};
use super::encode::Counts;
use super::pages::Content;
use super::placement::Placement;
use super::reader::{Reader, Section};
use super::{Block, Hash};
use crate::error::{Context, Error, Result};
use serde::de::{DeserializeOwned, IgnoredAny};
use std::fs::File;
use std::path::{Path, PathBuf};

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
    /// The images that it builds upon, youngest first, which are whole as well.
    pub parents: Vec<PathBuf>,
}

/// Reads an image to its end, and all that it builds upon. An error says what is wrong first.
pub fn verify<M: DeserializeOwned, T: DeserializeOwned>(mut reader: Reader<'_>) -> Result<Report<M, T>> {
    let mut from_parent = FromParent::default();
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
        from_parent.note(block.owner, &block.runs)?;
        blocks += 1;
        buffer = block.data;
    }
    let hash = reader.hash().ok_or_else(|| Error::image("image has no end"))?;
    let parents = Chain::find(&reader, from_parent)?.members.into_iter().map(|member| member.path).collect::<Vec<_>>();
    parents.iter().try_for_each(|path| whole(path, reader.machine()).context(|| format!("parent image {}", path.display())))?;
    let sections = reader.sections().to_vec();
    Ok(Report { manifest, tree, sections, blocks, pages, bytes: reader.position(), hash, parents })
}

/// Reads one of the images that another builds upon to its end; how these hang together has been looked at.
fn whole(path: &Path, machine: u16) -> Result<()> {
    let mut reader = Reader::from_file(File::open(path)?, machine)?;
    reader.manifest::<IgnoredAny>()?;
    reader.tree::<IgnoredAny>()?;
    let mut buffer = Vec::new();
    while let Some(block) = reader.next_block()? {
        buffer = block.decode_into(buffer)?.data;
    }
    Ok(())
}

/// Counts the pages of a block and follows its copies.
fn count(block: &Block, placement: &Placement, pages: &mut Counts) -> Result<()> {
    for run in &block.runs {
        let n = u64::from(run.pages);
        match run.content {
            Content::Data | Content::Delta => pages.data += n,
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
