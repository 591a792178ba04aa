//! Where the data pages of an image went, so that copies of them can be made.

use super::format::PAGE;
use super::pages::{Block, Content, Owner};
use crate::error::{Error, Result};
use std::collections::HashMap;

/// Remembers where the data pages of each block belong. A copy run names a block and a data page in it; with this,
/// the pages are found at the place where they were put. Takes a few bytes a run.
#[derive(Debug, Default)]
pub struct Placement {
    blocks: HashMap<u32, (Owner, Vec<Stretch>)>,
}

/// Data pages from `first` on stand at `address`.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    first: u32,
    pages: u32,
    address: u64,
}

impl Placement {
    /// Remembers the data runs of `block`. In any order of blocks.
    pub fn note(&mut self, block: &Block) {
        let mut first = 0;
        let mut stretches = Vec::new();
        for run in &block.runs {
            match run.content {
                Content::Data => stretches.push(Stretch { first, pages: run.pages, address: run.address }),
                // Nothing is a copy of how a page differs.
                Content::Unused | Content::Delta => {}
                Content::Zero | Content::Copy { .. } | Content::Parent => continue,
            }
            first += run.pages;
        }
        self.blocks.insert(block.number, (block.owner, stretches));
    }

    /// Where `pages` data pages of `block`, from data page `page` on, were put: owner, then pieces of
    /// (address, pages) in order. For blocks that have been noted; an image that names others is damaged.
    pub fn find(&self, block: u32, page: u32, pages: u32) -> Result<(Owner, Vec<(u64, u32)>)> {
        let lost = || Error::image(format!("image damaged: {pages} pages are copies of block {block}, page {page}, which is not there"));
        let (owner, stretches) = self.blocks.get(&block).ok_or_else(lost)?;
        let end = page.checked_add(pages).ok_or_else(lost)?;
        let mut next = page;
        let mut found = Vec::new();
        for s in stretches {
            if next < end && (s.first..s.first + s.pages).contains(&next) {
                let n = end.min(s.first + s.pages) - next;
                found.push((s.address + u64::from(next - s.first) * PAGE as u64, n));
                next += n;
            }
        }
        if next == end { Ok((*owner, found)) } else { Err(lost()) }
    }
}
