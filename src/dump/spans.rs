//! Sets of addresses as ranges (start, end): in order, apart, not touching.

/// A set of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spans(Vec<(u64, u64)>);

impl Spans {
    /// Of ranges in any order, which may overlap.
    pub fn of(mut ranges: Vec<(u64, u64)>) -> Spans {
        if !ranges.is_sorted_by_key(|r| r.0) {
            ranges.sort_unstable();
        }
        let mut spans = Spans(Vec::with_capacity(ranges.len()));
        ranges.into_iter().for_each(|range| spans.push(range));
        spans
    }

    /// Adds a range that does not begin before the last one.
    fn push(&mut self, (start, end): (u64, u64)) {
        match self.0.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ if start < end => self.0.push((start, end)),
            _ => {}
        }
    }

    /// The ranges.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Addresses in them.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|r| r.1 - r.0).sum()
    }

    /// Whether an address is among them.
    pub fn contains(&self, address: u64) -> bool {
        let next = self.0.partition_point(|r| r.1 <= address);
        self.0.get(next).is_some_and(|r| r.0 <= address)
    }

    /// What is in either.
    pub fn or(&self, other: &Spans) -> Spans {
        let (mut a, mut b) = (self.0.iter().copied().peekable(), other.0.iter().copied().peekable());
        let mut both = Spans(Vec::with_capacity(self.0.len() + other.0.len()));
        while let Some(next) = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if y.0 < x.0 => b.next(),
            (None, Some(_)) => b.next(),
            _ => a.next(),
        } {
            both.push(next);
        }
        both
    }

    /// What is in both.
    pub fn and(&self, other: &Spans) -> Spans {
        let (mut i, mut j) = (0, 0);
        let mut both = Spans::default();
        while let (Some(x), Some(y)) = (self.0.get(i), other.0.get(j)) {
            both.push((x.0.max(y.0), x.1.min(y.1)));
            if x.1 < y.1 { i += 1 } else { j += 1 }
        }
        both
    }

    /// What is in this and not in the other.
    pub fn without(&self, other: &Spans) -> Spans {
        let mut left = Spans::default();
        let mut next = 0;
        for &(mut start, end) in &self.0 {
            while other.0.get(next).is_some_and(|r| r.1 <= start) {
                next += 1;
            }
            let mut at = next;
            while let Some(&(from, to)) = other.0.get(at).filter(|r| r.0 < end) {
                left.push((start, from.max(start)));
                start = to.min(end);
                at += 1;
            }
            left.push((start, end));
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a plain set, for random ranges.
    #[test]
    fn as_sets_of_numbers() {
        use std::collections::BTreeSet;
        let mut seed = 7u64;
        let mut below = |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        for _ in 0..2000 {
            let mut some = || {
                let ranges: Vec<(u64, u64)> = {
                    let mut one = || {
                        let start = below(60);
                        (start, start + below(12))
                    };
                    (0..4).map(|_| one()).collect()
                };
                let set: BTreeSet<u64> = ranges.iter().flat_map(|r| r.0..r.1).collect();
                (Spans::of(ranges), set)
            };
            let ((a, x), (b, y)) = (some(), some());
            let plain = |spans: &Spans| {
                assert!(spans.0.windows(2).all(|w| w[0].1 < w[1].0) && spans.0.iter().all(|r| r.0 < r.1), "{spans:?}");
                spans.0.iter().flat_map(|r| r.0..r.1).collect::<BTreeSet<u64>>()
            };
            assert_eq!(plain(&a), x);
            assert_eq!(plain(&a.or(&b)), &x | &y);
            assert_eq!(plain(&a.and(&b)), &x & &y);
            assert_eq!(plain(&a.without(&b)), &x - &y);
            assert_eq!(a.len(), x.len() as u64);
            assert!((0..80).all(|n| a.contains(n) == x.contains(&n)));
        }
    }
}
