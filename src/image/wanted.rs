//! Sets of pages that are still looked for, on the way down a chain of images.

use super::format::PAGE;
use std::collections::BTreeMap;

const STEP: u64 = PAGE as u64;
/// Pages of a part that is counted page by page.
const PART: u64 = 512;
const PART_BYTES: u64 = PART * STEP;

/// One for each page of a part.
type Bits = [u64; (PART / 64) as usize];

/// Pages of one owner. A chain of many images takes pages out in thousands of places: what was touched is counted page by
/// page, the rest stays as the ranges that were added, so that memory follows the number of runs, not what they describe.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Start and end of ranges that are looked for as a whole.
    whole: BTreeMap<u64, u64>,
    /// Parts, by their start, of which some pages are looked for; none is empty.
    parts: BTreeMap<u64, Bits>,
}

/// The start of the part that an address lies in.
fn part(address: u64) -> u64 {
    address - address % PART_BYTES
}

/// The pages between two addresses of one part, as words and masks for its bits.
fn masks(start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (start % PART_BYTES / STEP, (end - STEP) % PART_BYTES / STEP);
    (first / 64..=last / 64).map(move |word| {
        let low = if word == first / 64 { first % 64 } else { 0 };
        let high = if word == last / 64 { last % 64 } else { 63 };
        (word as usize, (u64::MAX >> (63 - high)) & (u64::MAX << low))
    })
}

impl Wanted {
    /// Adds pages that have not been added before, in any order; false when one of them has.
    pub fn add(&mut self, mut address: u64, pages: u32) -> bool {
        let mut end = address + u64::from(pages) * STEP;
        if self.any(address, end) {
            return false;
        }
        if let Some((&before, _)) = self.whole.range(..address).next_back().filter(|&(_, &e)| e == address) {
            self.whole.remove(&before);
            address = before;
        }
        if let Some(after) = self.whole.remove(&end) {
            end = after;
        }
        self.whole.insert(address, end);
        true
    }

    /// Whether nothing is looked for any more.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.parts.is_empty()
    }

    /// The first whole range that reaches beyond `start` and begins before `end`.
    fn whole_in(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let before = self.whole.range(..=start).next_back().filter(|&(_, &e)| e > start);
        before.or_else(|| self.whole.range(start..end).next()).map(|(&s, &e)| (s, e)).filter(|&(s, _)| s < end)
    }

    /// Whether a page between these addresses is looked for.
    pub fn any(&self, start: u64, end: u64) -> bool {
        let in_part = |(&at, bits): (&u64, &Bits)| {
            let (low, high) = (start.max(at), end.min(at.saturating_add(PART_BYTES)));
            low < high && masks(low, high).any(|(word, mask)| bits[word] & mask != 0)
        };
        start < end && (self.whole_in(start, end).is_some() || self.parts.range(part(start)..end).any(in_part))
    }

    /// Takes out the pages between two addresses; tells `found` address and number of those that were looked for.
    pub fn take(&mut self, start: u64, end: u64, found: &mut dyn FnMut(u64, u32)) {
        while let Some((from, to)) = self.whole_in(start, end) {
            self.whole.remove(&from);
            let (low, high) = (from.max(start), to.min(end));
            // Only the parts at both ends may keep some of their pages.
            let (first, last) = (part(low), part(high - STEP).saturating_add(PART_BYTES));
            if from < first {
                self.whole.insert(from, first);
            }
            if last < to {
                self.whole.insert(last, to);
            }
            if from.max(first) < low {
                self.keep(from.max(first), low);
            }
            tell(low, high, found);
            if high < to.min(last) {
                self.keep(high, to.min(last));
            }
        }
        let mut empty = Vec::new();
        for (&at, bits) in self.parts.range_mut(part(start)..end) {
            let (low, high) = (start.max(at), end.min(at.saturating_add(PART_BYTES)));
            if low >= high {
                continue;
            }
            for (word, mask) in masks(low, high) {
                let mut hit = bits[word] & mask;
                bits[word] &= !mask;
                while hit != 0 {
                    let first = hit.trailing_zeros();
                    let pages = (hit >> first).trailing_ones();
                    found(at + (word as u64 * 64 + u64::from(first)) * STEP, pages);
                    hit &= u64::MAX.checked_shl(first + pages).unwrap_or(0);
                }
            }
            if bits.iter().all(|&word| word == 0) {
                empty.push(at);
            }
        }
        for at in empty {
            self.parts.remove(&at);
        }
    }

    /// Pages of one part that are looked for still.
    fn keep(&mut self, start: u64, end: u64) {
        let bits = self.parts.entry(part(start)).or_default();
        masks(start, end).for_each(|(word, mask)| bits[word] |= mask);
    }
}

/// Tells of consecutive pages, in numbers that fit.
fn tell(mut start: u64, end: u64, found: &mut dyn FnMut(u64, u32)) {
    while start < end {
        let pages = ((end - start) / STEP).min(1 << 20);
        found(start, pages as u32);
        start += pages * STEP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::sample::Random;
    use std::collections::BTreeSet;

    fn take(wanted: &mut Wanted, from: u64, to: u64) -> Vec<u64> {
        let mut pages = Vec::new();
        wanted.take(from * STEP, to * STEP, &mut |at, n| pages.extend((0..u64::from(n)).map(|k| at / STEP + k)));
        pages.sort_unstable();
        pages
    }

    #[test]
    fn it_is_a_set() {
        let mut random = Random(9);
        for round in 0..60 {
            let (mut wanted, mut model) = (Wanted::default(), BTreeSet::new());
            let size = [200, 3000, 20_000][round % 3];
            for _ in 0..40 {
                let (start, pages) = (random.below(size) as u64, 1 + random.below(size / 8) as u64);
                let free = model.range(start..start + pages).next().is_none();
                assert_eq!(wanted.add(start * STEP, pages as u32), free);
                if free {
                    model.extend(start..start + pages);
                }
            }
            while !model.is_empty() {
                let start = random.below(size + size / 8) as u64;
                let most = [3, 70, 2000][random.below(3)];
                let end = start + 1 + random.below(most) as u64;
                let there: Vec<u64> = model.range(start..end).copied().collect();
                assert_eq!(wanted.any(start * STEP, end * STEP), !there.is_empty());
                assert_eq!(take(&mut wanted, start, end), there);
                assert!(!wanted.any(start * STEP, end * STEP));
                there.iter().for_each(|page| assert!(model.remove(page)));
                assert_eq!(wanted.is_empty(), model.is_empty());
            }
        }
    }

    /// What a few bytes describe takes a few bytes.
    #[test]
    fn memory_follows_the_runs() {
        let mut wanted = Wanted::default();
        for n in 0..1000u64 {
            assert!(wanted.add(n << 45, u32::MAX));
            wanted.take((n << 45) + STEP, (n << 45) + 2 * STEP, &mut |_, n| assert_eq!(n, 1));
        }
        assert_eq!((wanted.whole.len(), wanted.parts.len()), (1000, 1000));
    }

    #[test]
    fn the_last_page_there_is() {
        let top = u64::MAX - (STEP - 1) - STEP;
        let mut wanted = Wanted::default();
        assert!(wanted.add(top - STEP, 2));
        assert!(wanted.any(top, top + STEP));
        let mut seen = Vec::new();
        wanted.take(top, top + STEP, &mut |at, n| seen.push((at, n)));
        wanted.take(0, u64::MAX, &mut |at, n| seen.push((at, n)));
        assert_eq!(seen, [(top, 1), (top - STEP, 1)]);
        assert!(wanted.is_empty());
    }
}
