//! Where every page stands that is brought later.

use crate::error::{Error, Result};
use crate::image::{At, Owner, PAGE, Piece as Part, Place, Resolved, Source};
use std::collections::HashMap;

/// Pages of one process that stand one after the other in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The process, by its pid in the image.
    pub owner: i32,
    /// Address of the first page there.
    pub address: u64,
    /// How many.
    pub pages: u32,
    /// Which block of the catalog.
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

/// Ranges (start, end) of each process, by its pid in the image, whose pages may come later; by address.
pub type Later = HashMap<i32, Vec<(u64, u64)>>;

/// What comes later.
pub struct Catalog {
    /// Those of the youngest image first: what has changed last is wanted first as a rule.
    blocks: Vec<Source>,
    /// By owner and address.
    pieces: Vec<Piece>,
    /// Indices of the pieces, those of one block together, by address.
    by_block: Vec<u32>,
    /// Where those of each block begin, and where the last ones end.
    starts: Vec<u32>,
}

/// What is there before the tree runs.
#[derive(Default)]
pub struct First {
    /// Blocks with pages that are wanted at once; others that stand in them come along.
    pub blocks: Vec<(Source, Vec<Part>)>,
    /// Pages of zeros.
    pub zero: Vec<(Owner, u64, u32)>,
}

/// Pages of the youngest image that are there at once: what was written last is touched first.
const HOT: u64 = 1024;

/// What a block is wanted for.
const NOTHING: u32 = u32::MAX;
const FIRST: u32 = u32::MAX - 1;
const LATER: u32 = u32::MAX - 2;

/// What comes later, and everything else.
pub fn split(resolved: &Resolved, later: &Later) -> Result<(Catalog, First)> {
    let ranges = |owner| match owner {
        Owner::Process(pid) => later.get(&pid).map_or(&[][..], |ranges| ranges),
        Owner::Object(_) => &[],
    };
    let mut owners: Vec<(Owner, &[Place])> = resolved.owners().collect();
    owners.sort_unstable_by_key(|o| o.0);
    // Of one that stands alone nothing is known but that it is all.
    let youngest = resolved.youngest().filter(|&n| n > 0);
    let is_youngest = |place: &Place| place.at.is_some_and(|at| Some(at.image) == youngest);
    let hot: u64 = owners.iter().flat_map(|o| o.1).filter(|p| is_youngest(p)).map(|p| u64::from(p.pages)).sum();
    let youngest = youngest.filter(|_| hot <= HOT);
    let mut numbers: Vec<Vec<u32>> = (0..resolved.images()).map(|n| vec![NOTHING; resolved.blocks(n as u32)]).collect();
    let mut first = First::default();
    let mut count = 0;
    for &(owner, places) in &owners {
        cut(places, ranges(owner), &mut |place, comes_later| match place.at {
            Some(At { image, block, .. }) => {
                let number = &mut numbers[image as usize][block as usize];
                let comes_later = comes_later && youngest != Some(image);
                *number = if comes_later && *number != FIRST { LATER } else { FIRST };
                count += 1;
            }
            None if comes_later => {}
            None => first.zero.push((owner, place.address, place.pages)),
        });
    }
    let mut blocks = Vec::new();
    let mut wanted: HashMap<(u32, u32), usize> = HashMap::new();
    for (image, numbers) in numbers.iter_mut().enumerate().rev() {
        for (block, number) in numbers.iter_mut().enumerate() {
            let (image, block) = (image as u32, block as u32);
            if *number == FIRST {
                wanted.insert((image, block), first.blocks.len());
                first.blocks.push((resolved.block(image, block)?, Vec::new()));
            } else if *number == LATER {
                *number = blocks.len() as u32;
                blocks.push(resolved.block(image, block)?);
            }
        }
    }
    let mut pieces = Vec::with_capacity(count);
    for &(owner, places) in &owners {
        cut(places, ranges(owner), &mut |Place { address, pages, at }, _| {
            let Some(at) = at else { return };
            match (owner, numbers[at.image as usize][at.block as usize]) {
                (Owner::Process(owner), block) if block != FIRST => pieces.push(Piece { owner, address, pages, block, page: at.page }),
                _ => first.blocks[wanted[&(at.image, at.block)]].1.push(Part { owner, address, pages, page: at.page }),
            }
        });
    }
    Ok((Catalog::new(blocks, pieces), first))
}

/// Tells of the parts of all places that are in one of the ranges, and of those that are in none.
fn cut(places: &[Place], ranges: &[(u64, u64)], tell: &mut impl FnMut(Place, bool)) {
    let mut ranges = ranges.iter().peekable();
    for place in places {
        let mut next = place.address;
        while next < place.end() {
            while ranges.next_if(|r| r.1 <= next).is_some() {}
            let (end, inside) = match ranges.peek() {
                Some(r) if r.0 <= next => (r.1, true),
                Some(r) => (r.0, false),
                None => (u64::MAX, false),
            };
            let end = end.min(place.end());
            tell(place.part(next, end), inside);
            next = end;
        }
    }
}

impl Catalog {
    /// The pieces are in order.
    fn new(blocks: Vec<Source>, pieces: Vec<Piece>) -> Self {
        let mut starts = vec![0; blocks.len() + 1];
        pieces.iter().for_each(|p| starts[p.block as usize + 1] += 1);
        for n in 1..starts.len() {
            starts[n] += starts[n - 1];
        }
        let mut next = starts.clone();
        let mut by_block = vec![0; pieces.len()];
        for (n, piece) in pieces.iter().enumerate() {
            let place = &mut next[piece.block as usize];
            by_block[*place as usize] = n as u32;
            *place += 1;
        }
        Catalog { blocks, pieces, by_block, starts }
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many pages come later.
    pub fn pages(&self) -> u64 {
        self.pieces.iter().map(|p| u64::from(p.pages)).sum()
    }

    /// All pieces, by owner and address.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Numbers of the descriptors of all files that the blocks are in.
    pub fn files(&self) -> Vec<i32> {
        let mut files: Vec<i32> = self.blocks.iter().filter_map(Source::file).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// The piece in which a page of a process is.
    pub fn find(&self, owner: i32, address: u64) -> Option<Piece> {
        let i = self.pieces.partition_point(|p| (p.owner, p.address) <= (owner, address));
        self.pieces[..i].last().filter(|p| p.owner == owner && address < p.end()).copied()
    }

    /// The pieces whose content stands in a block.
    pub fn of_block(&self, block: u32) -> impl Iterator<Item = Piece> + '_ {
        let bounds = (self.starts[block as usize] as usize, self.starts[block as usize + 1] as usize);
        self.by_block[bounds.0..bounds.1].iter().map(|&i| self.pieces[i as usize])
    }

    /// Everybody has what is in a block.
    pub fn done(&self, block: u32) {
        self.blocks[block as usize].done();
    }

    /// A block's data pages for somebody who waits, read into `buffer`, checked and decompressed.
    pub fn data(&self, block: u32, buffer: Vec<u8>) -> Result<Vec<u8>> {
        self.blocks[block as usize].data(buffer)
    }

    /// The same for somebody who needs all blocks, one after the other.
    pub fn in_order(&self, block: u32, buffer: Vec<u8>) -> Result<Vec<u8>> {
        self.blocks[block as usize].in_order(buffer)
    }
}

/// The bytes of a part of a piece in its block's data: from the page at `address` up to `end`.
pub fn bytes<'d>(piece: &Piece, address: u64, end: u64, data: &'d [u8]) -> Result<&'d [u8]> {
    let from = piece.page as usize * PAGE + (address - piece.address) as usize;
    let lost = || Error::image(format!("image damaged: block {} has not got all pages that others are copies of", piece.block));
    data.get(from..from + (end - address) as usize).ok_or_else(lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_cut_where_ranges_end() {
        const STEP: u64 = PAGE as u64;
        let at = |page| Some(At { image: 1, block: 2, page, delta: false });
        let places = [
            Place { address: 0, pages: 4, at: at(3) },
            Place { address: 6 * STEP, pages: 2, at: None },
            Place { address: 8 * STEP, pages: 6, at: at(9) },
        ];
        let mut seen = Vec::new();
        let ranges = [(2 * STEP, 3 * STEP), (3 * STEP, 7 * STEP), (9 * STEP, 10 * STEP), (20 * STEP, 30 * STEP)];
        cut(&places, &ranges, &mut |p, later| seen.push((p.address / STEP, p.pages, p.at.map(|at| at.page), later)));
        let expected = [
            (0, 2, Some(3), false),
            (2, 1, Some(5), true),
            (3, 1, Some(6), true),
            (6, 1, None, true),
            (7, 1, None, false),
            (8, 1, Some(9), false),
            (9, 1, Some(10), true),
            (10, 4, Some(11), false),
        ];
        assert_eq!(seen, expected);
    }
}
