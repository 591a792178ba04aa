//! Pages that stand in no image here: somebody else has them, and is asked.

use super::format::PAGE;
use super::pages::Owner;
use super::resolved::{At, Place};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// Who has them. They are in blocks, each of which is known to both ends by its number.
pub trait Elsewhere: Send + Sync + std::fmt::Debug {
    /// A block that somebody waits for; `buffer` is memory for it.
    fn urgent(&self, block: u32, buffer: Vec<u8>) -> Result<Vec<u8>>;
    /// A block that will be needed. Those who ask for one after the other need not wait.
    fn in_order(&self, block: u32, buffer: Vec<u8>) -> Result<Vec<u8>>;
    /// Numbers of the descriptors that it needs.
    fn files(&self) -> Vec<i32>;
    /// Tells that no more will be asked for: all is there, or this has stood in the way, and what needed it has been ended.
    fn over(&self, failure: Option<&Error>);
}

/// Which pages stand in no image, and who has them.
#[derive(Debug, Clone)]
pub struct Absent {
    /// All blocks, by their numbers.
    pub left: Arc<Vec<Left>>,
    /// Who is asked for them.
    pub from: Arc<dyn Elsewhere>,
}

/// A block of such pages: whose, and address and number of each range, by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Whose they are.
    pub owner: Owner,
    /// Address and pages.
    pub ranges: Vec<(u64, u32)>,
}

impl Left {
    /// Bytes of its data.
    pub fn bytes(&self) -> usize {
        self.ranges.iter().map(|r| r.1 as usize * PAGE).sum()
    }
}

/// Where all pages stand, when those of `left` are the blocks of this image number and go before all others.
pub fn overlay(owners: &mut HashMap<Owner, Vec<Place>>, image: u32, left: &[Left]) -> Result<()> {
    let mut new: HashMap<Owner, Vec<Place>> = HashMap::new();
    for (block, Left { owner, ranges }) in left.iter().enumerate() {
        let places = new.entry(*owner).or_default();
        let mut page = 0;
        for &(address, pages) in ranges {
            let wrong = || Error::other("what was left out of the image is said in a way that makes no sense");
            let end = address.checked_add(u64::from(pages) * PAGE as u64).ok_or_else(wrong)?;
            if pages == 0
                || !address.is_multiple_of(PAGE as u64)
                || end > i64::MAX as u64
                || places.last().is_some_and(|p| p.end() > address)
            {
                return Err(wrong());
            }
            places.push(Place { address, pages, at: Some(At { image, block: block as u32, page, delta: false }) });
            page += pages;
        }
    }
    for (owner, new) in new {
        let old = owners.entry(owner).or_default();
        *old = over(&new, old);
    }
    Ok(())
}

/// Both, by address, but for what of `old` is also in `new`.
fn over(new: &[Place], old: &[Place]) -> Vec<Place> {
    let mut all = Vec::with_capacity(new.len() + old.len());
    let mut next = 0;
    for &place in old {
        let mut from = place.address;
        while from < place.end() {
            while new.get(next).is_some_and(|n| n.end() <= from) {
                all.push(new[next]);
                next += 1;
            }
            let Some(n) = new.get(next).filter(|n| n.address < place.end()) else {
                all.push(place.part(from, place.end()));
                break;
            };
            if n.address > from {
                all.push(place.part(from, n.address));
            }
            from = n.end();
        }
    }
    all.extend_from_slice(&new[next..]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = PAGE as u64;
    const OWNER: Owner = Owner::Process(7);

    fn old(address: u64, pages: u32, page: u32) -> Place {
        Place { address: address * STEP, pages, at: Some(At { image: 0, block: 3, page, delta: false }) }
    }

    #[test]
    fn what_was_left_goes_before_what_is_there() {
        let mut owners = HashMap::from([(OWNER, vec![old(0, 4, 0), old(10, 10, 4), old(30, 2, 14)])]);
        let left = |ranges: &[(u64, u32)]| Left { owner: OWNER, ranges: ranges.iter().map(|r| (r.0 * STEP, r.1)).collect() };
        overlay(&mut owners, 1, &[left(&[(2, 1), (6, 1)]), left(&[(12, 3), (18, 14)]), left(&[(40, 1)])]).expect("places");
        let seen: Vec<_> =
            owners[&OWNER].iter().map(|p| (p.address / STEP, p.pages, p.at.map(|at| (at.image, at.block, at.page)))).collect();
        let expected = [
            (0, 2, Some((0, 3, 0))),
            (2, 1, Some((1, 0, 0))),
            (3, 1, Some((0, 3, 3))),
            (6, 1, Some((1, 0, 1))),
            (10, 2, Some((0, 3, 4))),
            (12, 3, Some((1, 1, 0))),
            (15, 3, Some((0, 3, 9))),
            (18, 14, Some((1, 1, 3))),
            (40, 1, Some((1, 2, 0))),
        ];
        assert_eq!(seen, expected);
        for wrong in [&[(4, 2), (5, 1)][..], &[(4, 0)], &[(u64::MAX / STEP, 9)]] {
            assert!(overlay(&mut HashMap::new(), 1, &[left(wrong)]).is_err(), "{wrong:?}");
        }
        assert!(overlay(&mut HashMap::new(), 1, &[Left { owner: OWNER, ranges: vec![(7, 1)] }]).is_err());
    }
}
