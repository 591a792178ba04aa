//! The XSAVE area in the shape that debuggers expect. Where each component of the vector state lies is
//! the processor's choice (CPUID leaf 0xd), but a core file does not say it, so debuggers take the
//! places that Intel's processors use, or refuse the note when its length is another. AMD's leave out
//! the gap of MPX, which they never had: only their own order is known here, by its length.

/// Offset of XCR0 in the area, where the kernel puts it for debuggers (`struct user_xstateregs`).
const XCR0: usize = 464;

/// A component: its bit in XCR0, its length, its offset with and without the gap of MPX.
struct Component {
    bit: u32,
    length: usize,
    usual: usize,
    packed: usize,
}

/// AVX, the three parts of AVX-512, protection keys.
const COMPONENTS: [Component; 5] = [
    Component { bit: 2, length: 256, usual: 576, packed: 576 },
    Component { bit: 5, length: 64, usual: 1088, packed: 832 },
    Component { bit: 6, length: 512, usual: 1152, packed: 896 },
    Component { bit: 7, length: 1024, usual: 1664, packed: 1408 },
    Component { bit: 9, length: 8, usual: 2688, packed: 2432 },
];
/// The bits of MPX.
const MPX: u64 = 0b11000;

/// The area with its components where debuggers look for them; as it is when it is not known how they lie.
pub fn for_debuggers(area: &[u8]) -> Vec<u8> {
    let Some(xcr0) = area.get(XCR0..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_le_bytes(*b)) else {
        return area.to_vec();
    };
    let there = || COMPONENTS.iter().filter(|c| xcr0 >> c.bit & 1 == 1);
    let end = |at: fn(&Component) -> usize| there().map(|c| at(c) + c.length).max().unwrap_or(576);
    let (usual, packed) = (end(|c| c.usual), end(|c| c.packed));
    if xcr0 & MPX != 0 || usual == packed || area.len() >= usual || area.len() < packed {
        return area.to_vec();
    }
    let mut out = area[..576].to_vec();
    out.resize(usual, 0);
    for c in there() {
        out[c.usual..c.usual + c.length].copy_from_slice(&area[c.packed..c.packed + c.length]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(xcr0: u64, length: usize) -> Vec<u8> {
        let mut area: Vec<u8> = (0..length).map(|n| (n / 64) as u8).collect();
        area[XCR0..XCR0 + 8].copy_from_slice(&xcr0.to_le_bytes());
        area
    }

    #[test]
    fn packed_components_are_moved() {
        let out = for_debuggers(&area(0xe7, 2432));
        assert_eq!(out.len(), 2688);
        assert_eq!((out[576], out[1088], out[1152], out[1664], out[2687]), (9, 13, 14, 22, 37));
        assert_eq!(for_debuggers(&area(0x2e7, 2440)).len(), 2696);
    }

    #[test]
    fn what_is_usual_or_unknown_stays() {
        for (xcr0, length) in [(0xff, 2688), (0xe7, 2688), (7, 832), (3, 576), (0xe7, 2000), (0, 512)] {
            let area = area(xcr0, length);
            assert_eq!(for_debuggers(&area), area);
        }
        assert_eq!(for_debuggers(&[1, 2]), [1, 2]);
    }
}
