//! Sets of pages as ranges (start, end): in order, apart, none of them empty.

use crate::sys::pagemap::push;

/// A set of pages.
pub type Ranges = Vec<(u64, u64)>;

/// The part of a set between two addresses.
pub fn within(set: &[(u64, u64)], (start, end): (u64, u64)) -> impl Iterator<Item = (u64, u64)> + '_ {
    let first = set.partition_point(|r| r.1 <= start);
    set[first..].iter().take_while(move |r| r.0 < end).map(move |r| (r.0.max(start), r.1.min(end)))
}

/// What is in `set` and not in `other`.
pub fn without(set: &[(u64, u64)], other: &[(u64, u64)]) -> Ranges {
    let mut left = Ranges::new();
    let mut next = 0;
    for &(mut start, end) in set {
        while next < other.len() && other[next].1 <= start {
            next += 1;
        }
        let mut here = next;
        while start < end && here < other.len() && other[here].0 < end {
            if start < other[here].0 {
                push(&mut left, start, other[here].0);
            }
            start = start.max(other[here].1);
            here += 1;
        }
        if start < end {
            push(&mut left, start, end);
        }
    }
    left
}

/// The set with all gaps filled that are no longer than this many bytes.
pub fn joined(set: &[(u64, u64)], gap: u64) -> Ranges {
    let mut joined = Ranges::new();
    for &(start, end) in set {
        match joined.last_mut() {
            Some(last) if start - last.1 <= gap => last.1 = end,
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// What is in both sets.
pub fn both(set: &[(u64, u64)], other: &[(u64, u64)]) -> Ranges {
    let mut found = Ranges::new();
    for &range in set {
        within(other, range).for_each(|(start, end)| push(&mut found, start, end));
    }
    found
}

/// What is in either set.
pub fn either(a: &[(u64, u64)], b: &[(u64, u64)]) -> Ranges {
    let mut all = Ranges::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.iter().copied().peekable(), b.iter().copied().peekable());
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x.0 <= y.0 => a.next(),
            (Some(_), None) => a.next(),
            _ => b.next(),
        };
        let Some((start, end)) = next else { return all };
        match all.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => all.push((start, end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The set of the bits of a number.
    fn set(bits: u64) -> Ranges {
        let mut ranges = Ranges::new();
        (0..64).filter(|i| bits >> i & 1 != 0).for_each(|i| push(&mut ranges, i, i + 1));
        ranges
    }

    #[test]
    fn sets_are_those_of_bits() {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for round in 0..2000 {
            // Long runs as well as single bits.
            let (a, b) =
                if round % 2 == 0 { (next() & next(), next() | next()) } else { (next() >> (next() % 64), next() << (next() % 64)) };
            assert_eq!(without(&set(a), &set(b)), set(a & !b), "{a:x} {b:x}");
            assert_eq!(both(&set(a), &set(b)), set(a & b), "{a:x} {b:x}");
            assert_eq!(either(&set(a), &set(b)), set(a | b), "{a:x} {b:x}");
            let x = next() % 64;
            let y = x + 1 + next() % (64 - x);
            let mask = (0..64).filter(|i| (x..y).contains(i)).fold(0u64, |m, i| m | 1 << i);
            assert_eq!(within(&set(a), (x, y)).collect::<Ranges>(), set(a & mask), "{a:x} {x} {y}");
        }
    }
}
