//! The pages of a parent image by their hashes: what a child may refer to.

use super::chain::{Chain, Needed};
use super::dedup::{Key, Keyed};
use super::format::PAGE;
use super::link::ParentLink;
use super::pages::{Block, Owner};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Hashes of consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    address: u64,
    pages: u32,
    /// Index of the first one's hash.
    first: usize,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.address + u64::from(self.pages) * PAGE as u64
    }
}

/// The hash of each page that a parent image has and that is not zero: 16 bytes a page, and a few for consecutive ones.
pub struct Inherited {
    id: [u8; 16],
    keyed: Keyed,
    keys: Vec<Key>,
    owners: HashMap<Owner, Vec<Stretch>>,
}

impl Inherited {
    /// Room for the pages of the parent with this id: (owner, address, pages), by owner and address; for `most` of them.
    pub(super) fn new(id: [u8; 16], pages: impl Iterator<Item = (Owner, u64, u32)>, most: u64) -> Self {
        let mut owners: HashMap<Owner, Vec<Stretch>> = HashMap::new();
        let mut first = 0;
        for (owner, address, pages) in pages {
            if first as u64 + u64::from(pages) > most {
                break;
            }
            let stretches = owners.entry(owner).or_default();
            match stretches.last_mut() {
                Some(last) if last.end() == address && last.pages.checked_add(pages).is_some() => last.pages += pages,
                _ => stretches.push(Stretch { address, pages, first }),
            }
            first += pages as usize;
        }
        owners.values_mut().for_each(Vec::shrink_to_fit);
        Inherited { id, keyed: Keyed::new(&id), keys: vec![[0; 2]; first], owners }
    }

    /// The pages of the parent that is the youngest of `chain`: `most` of them, since a few bytes can describe very many. Those
    /// beyond are as if they were not there. `progress` is told the bytes that have been looked at.
    pub fn of_image(chain: &Chain, most: u64, progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<Inherited> {
        let inherited = Inherited::room_for(chain, most)?;
        let keyed = Keyed::new(&inherited.id);
        let inherited = Mutex::new(inherited);
        let note = |needed: &Needed, block: &Block| {
            for piece in &needed.pieces {
                let lock = || inherited.lock().unwrap_or_else(PoisonError::into_inner);
                if lock().slots(piece.owner, piece.address, piece.pages).is_none() {
                    continue;
                }
                let keys: Vec<Key> = needed.bytes(block, piece)?.chunks_exact(PAGE).map(|page| keyed.key(page)).collect();
                lock().note(piece.owner, &[(piece.address, piece.pages)], &keys);
            }
            Ok(())
        };
        chain.deliver(&note, progress)?;
        Ok(inherited.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Room for the hashes of the pages of the youngest image of `chain`, for `most` of them.
    pub fn room_for(chain: &Chain, most: u64) -> Result<Inherited> {
        let id = chain.members.first().map(|member| member.id).ok_or_else(|| Error::other("a chain without an image"))?;
        let mut pieces: Vec<(Owner, u64, u32)> =
            chain.needed().flat_map(|(_, needed)| &needed.pieces).map(|p| (p.owner, p.address, p.pages)).collect();
        pieces.sort_unstable();
        Ok(Inherited::new(id, pieces.into_iter(), most))
    }

    /// Notes the hashes of pages, those of each range one after the other.
    pub fn note(&mut self, owner: Owner, ranges: &[(u64, u32)], mut keys: &[Key]) {
        for &(address, pages) in ranges {
            let (here, rest) = keys.split_at(pages as usize);
            if let Some(slots) = self.slots(owner, address, pages) {
                slots.copy_from_slice(here);
            }
            keys = rest;
        }
    }

    /// Whether both have the same pages, and these the same hashes.
    pub fn is_same(&self, other: &Inherited) -> bool {
        self.id == other.id && self.keys == other.keys && self.owners == other.owners
    }

    /// The id of the parent, with which the hashes are keyed: also that of the child's [`super::Dedup`].
    pub fn id(&self) -> &[u8; 16] {
        &self.id
    }

    pub(super) fn keyed(&self) -> &Keyed {
        &self.keyed
    }

    /// Where the hashes of consecutive pages belong; `None` for those that there is no room for.
    pub(super) fn slots(&mut self, owner: Owner, address: u64, pages: u32) -> Option<&mut [Key]> {
        let stretches = self.owners.get(&owner)?;
        let stretch = stretches[..stretches.partition_point(|s| s.address <= address)].last()?;
        let from = stretch.first + ((address - stretch.address) / PAGE as u64) as usize;
        let end = from + pages as usize;
        (end <= stretch.first + stretch.pages as usize).then(|| &mut self.keys[from..end])
    }

    /// From here on owners have the numbers of the child with this link.
    pub fn adopt(&mut self, link: &ParentLink) {
        let mut there = std::mem::take(&mut self.owners);
        for &(here, number) in &link.objects {
            if let Some(stretches) = there.remove(&Owner::Object(number)) {
                self.owners.insert(Owner::Object(here), stretches);
            }
        }
        self.owners.extend(there.into_iter().filter(|(owner, _)| matches!(owner, Owner::Process(_))));
    }

    /// The pages of one owner, to be asked for by ascending addresses.
    pub(super) fn of(&self, owner: Owner) -> Before<'_> {
        Before { keys: &self.keys, stretches: self.owners.get(&owner).map_or(&[], |s| s), next: 0 }
    }
}

/// The pages that one owner had.
pub struct Before<'a> {
    keys: &'a [Key],
    stretches: &'a [Stretch],
    next: usize,
}

impl Before<'_> {
    /// Whether the page with this key stood at `address`.
    pub fn has(&mut self, address: u64, key: Key) -> bool {
        let near = |s: Option<&Stretch>| s.is_some_and(|s| (s.address..s.end()).contains(&address));
        if !near(self.stretches.get(self.next)) {
            self.next = self.stretches.partition_point(|s| s.end() <= address);
        }
        let stretch = self.stretches.get(self.next).filter(|s| s.address <= address);
        stretch.is_some_and(|s| self.keys[s.first + ((address - s.address) / PAGE as u64) as usize] == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = PAGE as u64;

    #[test]
    fn pages_are_known_where_they_stood() {
        let (process, object) = (Owner::Process(7), Owner::Object(3));
        let pages = [(process, 0, 2), (process, 2 * STEP, 1), (process, 9 * STEP, 1), (object, 0, 2)];
        let mut inherited = Inherited::new([5; 16], pages.into_iter(), 6);
        let page = |n: u8| inherited.keyed().key(&[n; PAGE]);
        let keys = [1, 2, 3, 4, 5, 6].map(page);
        inherited.slots(process, 0, 3).unwrap().copy_from_slice(&keys[..3]);
        inherited.slots(process, 9 * STEP, 1).unwrap()[0] = keys[3];
        inherited.slots(object, STEP, 1).unwrap()[0] = keys[5];
        assert!(inherited.slots(process, 2 * STEP, 2).is_none());
        assert!(inherited.slots(Owner::Process(8), 0, 1).is_none());
        assert!(Inherited::new([5; 16], pages.into_iter(), 5).slots(object, 0, 1).is_none(), "beyond the bound");

        let mut before = inherited.of(process);
        assert!(before.has(0, keys[0]) && before.has(STEP, keys[1]) && before.has(2 * STEP, keys[2]));
        assert!(!before.has(3 * STEP, keys[3]) && before.has(9 * STEP, keys[3]));
        assert!(!before.has(9 * STEP, keys[0]) && !before.has(10 * STEP, keys[3]));
        assert!(before.has(0, keys[0]), "also backwards");

        let link = ParentLink { id: [5; 16], hash: [0; 32].into(), file: b"x".into(), objects: vec![(0, 3)] };
        inherited.adopt(&link);
        assert!(inherited.of(Owner::Object(0)).has(STEP, keys[5]));
        assert!(!inherited.of(object).has(STEP, keys[5]));
        assert!(inherited.of(process).has(0, keys[0]));
    }
}
