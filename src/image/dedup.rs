//! Pages that were stored before, found again by their hash.

use super::format::PAGE;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_128_with_secret;

/// Number of independently locked parts; a power of two.
const SHARDS: usize = 64;
/// Pages that are remembered at most. 7/8 of a power of two is what the tables hold before they grow:
/// 2^21 slots of 25 bytes, 53 MB in all. Pages beyond that are stored without being remembered.
pub const MAX_ENTRIES: usize = (1 << 21) / 8 * 7;

/// A page's XXH3-128. Two words, because an `u128` would be aligned to 16 bytes and cost 8 more an entry.
pub type Key = [u64; 2];

/// Makes the keys of pages. With a random id behind it, nobody can prepare two pages that have the same.
pub struct Keyed {
    secret: [u8; 192],
}

impl Keyed {
    /// `id` is the random id of an image.
    pub fn new(id: &[u8; 16]) -> Self {
        let mut secret = [0; 192];
        blake3::Hasher::new_derive_key("meio image: hash of a page").update(id).finalize_xof().fill(&mut secret);
        Keyed { secret }
    }

    /// The key of a page.
    pub fn key(&self, page: &[u8]) -> Key {
        debug_assert_eq!(page.len(), PAGE);
        let hash = xxh3_128_with_secret(page, &self.secret);
        [hash as u64, (hash >> 64) as u64]
    }
}

/// The key is a hash already: its two words need no more than being put together.
#[derive(Default)]
struct Passed(u64);

impl Hasher for Passed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(b);
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = self.0.rotate_left(32) ^ word;
    }
    fn write_usize(&mut self, _: usize) {} // the length in front of an array
}

type Shard = HashMap<Key, (u32, u32), BuildHasherDefault<Passed>>;

/// The pages stored so far in one image. Shared by the workers; bounded by [`MAX_ENTRIES`].
///
/// Blocks are encoded in any order but stand in the image by their number, so a page is only ever given out as
/// the copy of one in a block with a lower number, or of an earlier one in the same block. Every block that was
/// encoded with it must be written.
pub struct Dedup {
    keyed: Keyed,
    shards: Vec<Mutex<Shard>>,
}

impl Dedup {
    /// The same with room for so many pages: a table that grows meanwhile costs time.
    pub fn with_room(id: &[u8; 16], pages: u64) -> Self {
        let room = pages.min(MAX_ENTRIES as u64) as usize / SHARDS;
        let dedup = Dedup::new(id);
        // The parts fill evenly, but not exactly so.
        dedup
            .shards
            .iter()
            .for_each(|s| s.lock().unwrap_or_else(PoisonError::into_inner).reserve((room + room / 16).min(MAX_ENTRIES / SHARDS)));
        dedup
    }

    /// An empty table. `id` is the image's random id, or that of its parent when pages are compared with those of it.
    pub fn new(id: &[u8; 16]) -> Self {
        Dedup { keyed: Keyed::new(id), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// What makes its keys.
    pub(super) fn keyed(&self) -> &Keyed {
        &self.keyed
    }

    /// The keys of pages.
    pub fn keys(&self, pages: &[u8]) -> Vec<Key> {
        pages.chunks_exact(PAGE).map(|page| self.keyed.key(page)).collect()
    }

    /// The earlier (block, data page) with the same content as the page with this key; when there is none, remembers it as
    /// data page `index` of `block`.
    pub(super) fn find(&self, key: Key, block: u32, index: u32) -> Option<(u32, u32)> {
        let shard = &self.shards[(key[1] >> 58) as usize % SHARDS];
        // A worker that panicked has left a whole table behind: an insert is all that happens under the lock.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shard.get_mut(&key) {
            if *known < (block, index) {
                return Some(*known);
            }
            // Known from a later block: the earlier one serves more.
            *known = (block, index);
        } else if shard.len() < MAX_ENTRIES / SHARDS {
            // Not `entry`: that makes room before it is known whether any is needed.
            shard.insert(key, (block, index));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(n: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[..8].copy_from_slice(&n.to_le_bytes());
        page
    }

    #[test]
    fn only_earlier_pages_are_found() {
        let dedup = Dedup::new(&[7; 16]);
        let [one, two] = [1, 2].map(|n| dedup.keyed().key(&page(n)));
        assert_eq!(dedup.find(one, 5, 3), None);
        assert_eq!(dedup.find(one, 5, 4), Some((5, 3)));
        assert_eq!(dedup.find(one, 9, 0), Some((5, 3)));
        assert_eq!(dedup.find(two, 9, 0), None);
        // A lower block comes late: it stores its own page, and later ones refer to that.
        assert_eq!(dedup.find(one, 2, 8), None);
        assert_eq!(dedup.find(one, 4, 0), Some((2, 8)));
    }

    #[test]
    fn the_table_is_bounded() {
        let dedup = Dedup::new(&[0; 16]);
        // Fill one part: the pages beyond its share are not remembered, the others still are.
        let full = MAX_ENTRIES / SHARDS;
        for n in 0..full as u64 {
            dedup.shards[0].lock().unwrap().insert([n, 1], (0, 0));
        }
        let key = (0..).map(|n| dedup.keyed().key(&page(n))).find(|key| key[1] >> 58 == 0).unwrap();
        assert_eq!(dedup.find(key, 1, 0), None);
        assert_eq!(dedup.find(key, 2, 0), None, "remembered beyond the bound");
        assert_eq!(dedup.shards[0].lock().unwrap().len(), full);
        assert!(dedup.shards[0].lock().unwrap().capacity() * SHARDS <= MAX_ENTRIES);
    }
}
