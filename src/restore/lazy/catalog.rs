//! Where every page stands in the image that is brought later.

use crate::error::{Error, Result};
use crate::image::{Content, EncodedBlock, Owner, PAGE, Reader, Run};
use rayon::prelude::*;
use std::collections::HashMap;

/// Pages of one process that stand one after the other in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// The process, by its pid in the image.
    pub owner: i32,
    /// Address of the first page there.
    pub address: u64,
    /// How many.
    pub pages: u32,
    /// Which block.
    pub block: u32,
    /// The first of the block's data pages.
    pub page: u32,
}

impl Piece {
    /// Address behind the last page.
    pub fn end(&self) -> u64 {
        self.address + u64::from(self.pages) * PAGE as u64
    }
}

/// All blocks of an image and what they describe; no page has been read.
pub struct Survey {
    blocks: Vec<EncodedBlock>,
    runs: Vec<(u32, Owner, Run)>,
}

/// Ranges (start, end) of each process, by its pid in the image, whose pages may come later.
pub type Later = HashMap<i32, Vec<(u64, u64)>>;

impl Survey {
    /// By the image's index; an image without one is read from its start to its end.
    pub fn read(reader: &mut Reader<'_>) -> Result<Survey> {
        let mut survey = Survey { blocks: Vec::new(), runs: Vec::new() };
        if let Some(index) = reader.index()? {
            for (block, owner, runs) in index {
                survey.add(block, owner, runs);
            }
            return Ok(survey);
        }
        let mut blocks = Vec::new();
        while let Some(block) = reader.next_block()? {
            blocks.push(block);
        }
        let described: Vec<_> = blocks.par_iter().map(EncodedBlock::describe).collect::<Result<_>>()?;
        for (block, (owner, runs)) in blocks.into_iter().zip(described) {
            survey.add(block, owner, runs);
        }
        Ok(survey)
    }

    fn add(&mut self, block: EncodedBlock, owner: Owner, runs: Vec<Run>) {
        let number = self.blocks.len() as u32;
        self.runs.extend(runs.into_iter().map(|run| (number, owner, run)));
        self.blocks.push(block);
    }

    /// Pages with content that each process has, by address.
    pub fn contents(&self) -> impl Iterator<Item = (i32, u64, u32)> + '_ {
        self.runs.iter().filter_map(|(_, owner, run)| match owner {
            Owner::Process(pid) if matches!(run.content, Content::Data | Content::Copy { .. }) => Some((*pid, run.address, run.pages)),
            _ => None,
        })
    }

    /// What comes later, and the blocks that hold everything else.
    pub fn split(self, later: &Later) -> Result<(Catalog, Vec<EncodedBlock>)> {
        let Survey { blocks, runs } = self;
        let mut first = vec![false; blocks.len()];
        let lost = || Error::image("image damaged: it has a copy of a block that is not there");
        for (number, _, run) in runs.iter().filter(|(_, owner, run)| !comes_later(later, *owner, run)) {
            first[*number as usize] = true;
            if let Content::Copy { block, .. } = run.content {
                *first.get_mut(block as usize).ok_or_else(lost)? = true;
            }
        }
        let mut pieces = Vec::new();
        let mut page_of = (0, 0);
        for (number, owner, run) in runs {
            if page_of.0 != number {
                page_of = (number, 0);
            }
            let (block, page) = match run.content {
                Content::Data => {
                    page_of.1 += run.pages;
                    if first[number as usize] {
                        continue;
                    }
                    (number, page_of.1 - run.pages)
                }
                Content::Copy { block, page } => (block, page),
                Content::Unused => {
                    page_of.1 += run.pages;
                    continue;
                }
                // There is none: see `Lazy::prepare`.
                Content::Zero | Content::Parent => continue,
            };
            if block as usize >= blocks.len() {
                return Err(lost());
            }
            if let Owner::Process(owner) = owner
                && comes_later(later, Owner::Process(owner), &run)
            {
                pieces.push(Piece { owner, address: run.address, pages: run.pages, block, page });
            }
        }
        let eager = blocks.iter().zip(&first).filter(|(_, first)| **first).map(|(block, _)| block.clone()).collect();
        Ok((Catalog::new(blocks, pieces), eager))
    }
}

/// Whether all pages of a run may come later.
pub fn comes_later(later: &Later, owner: Owner, run: &Run) -> bool {
    if run.content == Content::Unused {
        return true;
    }
    let Owner::Process(pid) = owner else { return false };
    let Some(ranges) = later.get(&pid) else { return false };
    let end = run.address + u64::from(run.pages) * PAGE as u64;
    let i = ranges.partition_point(|r| r.1 <= run.address);
    ranges.get(i).is_some_and(|r| r.0 <= run.address && end <= r.1)
}

/// What comes later.
pub struct Catalog {
    blocks: Vec<EncodedBlock>,
    /// By owner and address.
    pieces: Vec<Piece>,
    /// Indices of the pieces, by block and page.
    by_block: Vec<u32>,
}

impl Catalog {
    fn new(blocks: Vec<EncodedBlock>, mut pieces: Vec<Piece>) -> Self {
        pieces.sort_unstable();
        let mut by_block: Vec<u32> = (0..pieces.len() as u32).collect();
        by_block.sort_unstable_by_key(|&i| (pieces[i as usize].block, pieces[i as usize].page));
        Catalog { blocks, pieces, by_block }
    }

    /// How many blocks the image has.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many pages come later.
    pub fn pages(&self) -> u64 {
        self.pieces.iter().map(|p| u64::from(p.pages)).sum()
    }

    /// The piece in which a page of a process is.
    pub fn find(&self, owner: i32, address: u64) -> Option<Piece> {
        let i = self.pieces.partition_point(|p| (p.owner, p.address) <= (owner, address));
        self.pieces[..i].last().filter(|p| p.owner == owner && address < p.end()).copied()
    }

    /// The pieces whose content stands in a block.
    pub fn of_block(&self, block: u32) -> impl Iterator<Item = Piece> + '_ {
        let from = self.by_block.partition_point(|&i| self.pieces[i as usize].block < block);
        self.by_block[from..].iter().map(|&i| self.pieces[i as usize]).take_while(move |p| p.block == block)
    }

    /// A block's data pages, read into `buffer`, checked and decompressed.
    pub fn data(&self, block: u32, buffer: Vec<u8>) -> Result<Vec<u8>> {
        let lost = || Error::image("image damaged: a block is missing");
        let encoded = self.blocks.get(block as usize).ok_or_else(lost)?;
        encoded.clone().decode_into(buffer).map(|block| block.data)
    }
}

/// The bytes of a part of a piece in its block's data: from the page at `address` up to `end`.
pub fn bytes<'d>(piece: &Piece, address: u64, end: u64, data: &'d [u8]) -> Result<&'d [u8]> {
    let from = piece.page as usize * PAGE + (address - piece.address) as usize;
    let lost = || Error::image(format!("image damaged: block {} has not got all pages that others are copies of", piece.block));
    data.get(from..from + (end - address) as usize).ok_or_else(lost)
}
