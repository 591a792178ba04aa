//! A [`Frame`] as bytes: the same on both paths, and all of one length.

use super::state::{Frame, Hand, Mark, Word};

/// Bytes of every frame.
pub const LENGTH: usize = 64;

const PRIMARY: u8 = 1;
const STANDBY: u8 = 2;
/// As their numbers stand in the flags of a standby, above the others.
const HANDS: [Hand; 5] = [Hand::Nothing, Hand::Set, Hand::Runs, Hand::Cannot, Hand::Refused];
/// Where.
const HAND: u8 = 3;

/// Writes it: who speaks, flags, six bytes of zeros, and seven numbers, little-endian.
pub fn write(frame: &Frame) -> [u8; LENGTH] {
    let flag = |set: bool, bit: u8| if set { 1 << bit } else { 0 };
    let (who, flags, own) = match frame.word {
        Word::Primary { series, wedged, over, last, go } => (PRIMARY, flag(wedged, 0) | flag(over, 1) | flag(go, 2), [series, last, 0]),
        Word::Standby { whole, ready, left, full, echo, hand } => {
            let hand = HANDS.iter().position(|one| *one == hand).unwrap_or_default() as u8;
            (STANDBY, flag(ready, 0) | flag(left, 1) | flag(full, 2) | hand << HAND, [whole.series, whole.number, echo])
        }
    };
    let mut bytes = [0; LENGTH];
    (bytes[0], bytes[1]) = (who, flags);
    let numbers = [frame.generation, frame.instance, frame.sequence].into_iter().chain(own);
    for (place, number) in bytes[8..].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// Reads it. `None`: it is not one, or one of another version.
pub fn read(bytes: &[u8]) -> Option<Frame> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    let (numbers, []) = rest.as_chunks::<8>() else { return None };
    let &[generation, instance, sequence, series, number, echo, spare] = numbers else { return None };
    let value = u64::from_le_bytes;
    let flags = head[1];
    if head[2..] != [0; 6] || value(spare) != 0 {
        return None;
    }
    let word = match head[0] {
        PRIMARY if value(echo) == 0 && flags <= 0b111 => {
            let (wedged, over, go) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
            Word::Primary { series: value(series), wedged, over, last: value(number), go }
        }
        STANDBY => {
            let whole = Mark { series: value(series), number: value(number) };
            let (ready, left, full) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
            Word::Standby { whole, ready, left, full, echo: value(echo), hand: *HANDS.get(usize::from(flags >> HAND))? }
        }
        _ => return None,
    };
    Some(Frame { generation: value(generation), instance: value(instance), sequence: value(sequence), word })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// One of each kind, with `n` in it.
    pub fn some(n: u64) -> [Frame; 2] {
        let frame = |word| Frame { generation: n + 1, instance: n + 2, sequence: n + 3, word };
        let whole = Mark { series: n + 4, number: n + 5 };
        let full = n.is_multiple_of(5);
        let hand = HANDS[(n % 5) as usize];
        let standby = Word::Standby { whole, ready: n.is_multiple_of(2), left: n.is_multiple_of(3), full, echo: u64::MAX - n, hand };
        let (wedged, over, go) = (n.is_multiple_of(2), n.is_multiple_of(3), n.is_multiple_of(7));
        [frame(Word::Primary { series: n + 4, wedged, over, last: n % 6, go }), frame(standby)]
    }

    #[test]
    fn frames_come_back() {
        for frame in (0..20).flat_map(some) {
            assert_eq!(read(&write(&frame)), Some(frame));
        }
    }

    #[test]
    fn what_is_no_frame_is_none() {
        let bytes = write(&some(1)[0]);
        (0..LENGTH).for_each(|n| assert_eq!(read(&bytes[..n]), None));
        assert_eq!(read(&[&bytes[..], &[0]].concat()), None);
        for place in (0..8).chain(LENGTH - 8..LENGTH) {
            let mut other = bytes;
            other[place] |= 0x80;
            assert_eq!(read(&other), None, "{place}");
        }
        // Whatever the bytes: what is read is written so.
        let mut state = 7u64;
        for _ in 0..20_000 {
            let mut random = [0; LENGTH];
            for byte in &mut random {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (state >> 33) as u8;
            }
            let head = [random[0] % 3, random[1] % 49, 0, 0, 0, 0, 0, 0];
            random[..8].copy_from_slice(&head);
            random[LENGTH - 8..].fill(0);
            assert!(read(&random).is_none_or(|frame| write(&frame) == random));
        }
    }
}
