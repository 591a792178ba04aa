//! What an image names of each owner, by address: the step from its blocks to any table of pages.

use super::encoded::EncodedBlock;
use super::format::PAGE;
use super::pages::{Content, Meta, Owner};
use crate::error::{Error, Result};
use std::collections::HashMap;

/// What stands at some pages of an owner.
#[derive(Clone, Copy)]
pub enum What {
    Data {
        block: u32,
        page: u32,
    },
    /// See [`Content::Delta`].
    Delta {
        block: u32,
        page: u32,
    },
    Zero,
    Parent,
}

/// Consecutive pages.
pub struct Entry {
    pub address: u64,
    pub pages: u32,
    pub what: What,
}

impl Entry {
    /// Address behind the last page.
    pub fn end(&self) -> u64 {
        self.address + u64::from(self.pages) * PAGE as u64
    }
}

/// All that an image names of each owner that is `sought`, in order; none of it twice.
pub fn entries(blocks: &[(EncodedBlock, Meta)], sought: impl Fn(Owner) -> bool) -> Result<HashMap<Owner, Vec<Entry>>> {
    let mut lists: HashMap<Owner, Vec<Entry>> = HashMap::new();
    for (number, (_, meta)) in blocks.iter().enumerate() {
        if !sought(meta.owner) {
            continue;
        }
        let list = lists.entry(meta.owner).or_default();
        let mut next = 0;
        for run in &meta.runs {
            let what = match run.content {
                Content::Parent => What::Parent,
                Content::Zero => What::Zero,
                Content::Copy { block, page } => {
                    let there = blocks.get(block as usize).map_or(0, |(_, meta)| meta.data_pages);
                    if page.checked_add(run.pages).is_none_or(|end| end > there) {
                        let pages = run.pages;
                        let what = format!("image damaged: {pages} pages are copies of block {block}, page {page}, which is not there");
                        return Err(Error::image(what));
                    }
                    What::Data { block, page }
                }
                Content::Data | Content::Delta => {
                    let (block, page) = (number as u32, next);
                    next += run.pages;
                    if run.content == Content::Delta { What::Delta { block, page } } else { What::Data { block, page } }
                }
                Content::Unused => {
                    next += run.pages;
                    continue;
                }
            };
            list.push(Entry { address: run.address, pages: run.pages, what });
        }
    }
    for (&owner, list) in &mut lists {
        if !list.is_sorted_by_key(|e| e.address) {
            list.sort_unstable_by_key(|e| e.address);
        }
        if let Some(pair) = list.windows(2).find(|pair| pair[0].end() > pair[1].address) {
            return Err(twice(owner, pair[0].address));
        }
    }
    Ok(lists)
}

pub fn twice(owner: Owner, address: u64) -> Error {
    Error::image(format!("image damaged: a page of {owner:?} at {address:#x} or right behind it is named twice"))
}

/// Of an image that says of pages only how they differ, where nobody has the others at hand.
pub fn differs() -> Error {
    Error::image("the image says of pages only how they differ from those before them: it is of use to a standby alone")
}

pub fn missing(owner: Owner) -> Error {
    Error::image(format!("image damaged: pages of {owner:?} are as in a parent that does not have them"))
}
