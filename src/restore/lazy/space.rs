//! Which page of the image belongs at an address, while the program maps, unmaps and moves.

use std::collections::BTreeMap;

/// The places of an address space whose pages may still be missing. What is at no place is zero.
#[derive(Debug, Clone, Default)]
pub struct Space {
    /// Those that are where they were: start and end. They do not overlap.
    same: BTreeMap<u64, u64>,
    /// Those that the program has moved (mremap(2)): start, end, and where they were.
    moved: Vec<(u64, u64, u64)>,
}

impl Space {
    /// All these ranges (start, end), where they were.
    pub fn new(ranges: &[(u64, u64)]) -> Self {
        Space { same: ranges.iter().copied().collect(), moved: Vec::new() }
    }

    /// Where the page at this address was.
    pub fn source(&self, address: u64) -> Option<u64> {
        let same = self.same.range(..=address).next_back().filter(|r| address < *r.1).map(|_| address);
        let moved = || self.moved.iter().find(|m| (m.0..m.1).contains(&address)).map(|m| m.2 + (address - m.0));
        same.or_else(moved)
    }

    /// Where what was between `source` and `end` belongs now: start, end, and where that was.
    pub fn places(&self, source: u64, end: u64) -> Vec<(u64, u64, u64)> {
        let first = self.same.range(..=source).next_back().map_or(source, |r| *r.0);
        let same = self.same.range(first..end).map(|(&a, &b)| (a.max(source), b.min(end))).map(|(a, b)| (a, b, a));
        let moved = self.moved.iter().map(|&(to, to_end, from)| {
            let (a, b) = (from.max(source), (from + (to_end - to)).min(end));
            (to.wrapping_add(a).wrapping_sub(from), to.wrapping_add(b).wrapping_sub(from), a, b)
        });
        let moved = moved.filter(|m| m.2 < m.3).map(|(a, b, from, _)| (a, b, from));
        same.filter(|s| s.0 < s.1).chain(moved).collect()
    }

    /// The program has given up what was there: it is zero from now on.
    pub fn give_up(&mut self, start: u64, end: u64) {
        self.take(start, end);
    }

    /// The program has moved `bytes` at `from` to `to`.
    pub fn remap(&mut self, from: u64, to: u64, bytes: u64) {
        let taken = self.take(from, from.saturating_add(bytes));
        self.take(to, to.saturating_add(bytes));
        for (start, end, source) in taken {
            let (start, end) = (start - from + to, end - from + to);
            if start == source {
                self.same.insert(start, end);
            } else {
                self.moved.push((start, end, source));
            }
        }
    }

    /// Cuts out what lies between two addresses: start, end and source of each piece.
    fn take(&mut self, start: u64, end: u64) -> Vec<(u64, u64, u64)> {
        let mut taken = Vec::new();
        let first = self.same.range(..=start).next_back().map_or(start, |r| *r.0);
        let touched: Vec<(u64, u64)> = self.same.range(first..end).map(|(&a, &b)| (a, b)).filter(|r| r.1 > start).collect();
        for (a, b) in touched {
            self.same.remove(&a);
            if a < start {
                self.same.insert(a, start);
            }
            if b > end {
                self.same.insert(end, b);
            }
            taken.push((a.max(start), b.min(end), a.max(start)));
        }
        let mut left = Vec::with_capacity(self.moved.len());
        for &(a, b, from) in &self.moved {
            let (cut, cut_end) = (a.max(start), b.min(end));
            if cut >= cut_end {
                left.push((a, b, from));
                continue;
            }
            taken.push((cut, cut_end, from + (cut - a)));
            left.extend((a < cut).then_some((a, cut, from)));
            left.extend((b > cut_end).then_some((cut_end, b, from + (cut_end - a))));
        }
        self.moved = left;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn pages_are_given_up_and_move() {
        let mut space = Space::new(&[(10, 20), (20, 30), (40, 50)]);
        assert_eq!(
            (space.source(9), space.source(10), space.source(19), space.source(20), space.source(30)),
            (None, Some(10), Some(19), Some(20), None)
        );
        space.give_up(18, 22);
        assert_eq!((space.source(17), space.source(18), space.source(21), space.source(22)), (Some(17), None, None, Some(22)));
        space.remap(12, 112, 4);
        assert_eq!(
            (space.source(11), space.source(12), space.source(16), space.source(112), space.source(115), space.source(116)),
            (Some(11), None, Some(16), Some(12), Some(15), None)
        );
        assert_eq!(space.places(10, 30), [(10, 12, 10), (16, 18, 16), (22, 30, 22), (112, 116, 12)]);
        space.remap(114, 12, 1);
        space.remap(112, 12, 1);
        assert_eq!((space.source(12), space.source(112), space.source(114)), (Some(12), None, None));
        assert_eq!(space.places(12, 16), [(12, 13, 12), (113, 114, 13), (115, 116, 15)]);
    }

    /// Whatever is done, it is what a page-by-page table says.
    #[test]
    fn it_is_a_table_of_pages() {
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let mut space = Space::new(&[(0, 16), (16, 40), (60, 90)]);
            let mut table: HashMap<u64, u64> = (0..40).chain(60..90).map(|n| (n, n)).collect();
            for _ in 0..30 {
                let (from, bytes, to) = (random(120), 1 + random(12), random(120));
                if random(2) == 0 {
                    space.give_up(from, from + bytes);
                    table.retain(|at, _| !(from..from + bytes).contains(at));
                } else if from + bytes <= to || to + bytes <= from {
                    space.remap(from, to, bytes);
                    let moved: Vec<_> = (0..bytes).map(|n| table.remove(&(from + n))).collect();
                    for (n, source) in (0..).zip(moved) {
                        table.remove(&(to + n));
                        table.extend(source.map(|source| (to + n, source)));
                    }
                }
            }
            for n in 0..140 {
                assert_eq!(space.source(n), table.get(&n).copied());
            }
            for (at, end) in [(0, 90), (10, 30), (35, 65)] {
                let mut all = HashMap::new();
                for (a, b, from) in space.places(at, end) {
                    all.extend((a..b).map(|n| (n, from + (n - a))));
                }
                let expected: HashMap<u64, u64> = table.iter().filter(|p| (at..end).contains(p.1)).map(|(a, b)| (*a, *b)).collect();
                assert_eq!(all, expected);
            }
        }
    }
}
