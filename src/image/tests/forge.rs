//! Changing images so that their checksums are right again: only then the code behind the checksums is reached.
//! Knows the byte tables by itself, so that it does not share a mistake with the code under test.

use xxhash_rust::xxh3::xxh3_64;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Where a section is.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub kind: u16,
    pub header: usize,
    pub payload: usize,
    pub end: usize,
}

/// The section that starts at `header`, if it lies inside the image.
fn span(bytes: &[u8], header: usize) -> Option<Span> {
    if bytes.get(header..header + 4)? != b"sect" || bytes.len() < header + 48 {
        return None;
    }
    let payload = (header + 48).checked_add(u32_at(bytes, header + 12) as usize)?;
    let end = payload.checked_add(usize::try_from(u64_at(bytes, header + 16)).ok()?)?;
    let kind = u16::from_le_bytes([bytes[header + 4], bytes[header + 5]]);
    (end <= bytes.len()).then_some(Span { kind, header, payload, end })
}

/// The sections, up to the first that is no section.
pub fn spans(bytes: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut at = 64;
    while let Some(span) = span(bytes, at) {
        at = span.end;
        spans.push(span);
    }
    spans
}

/// Makes the checksum of one section header right.
pub fn fix_section_header(bytes: &mut [u8], at: usize) {
    if bytes.len() >= at + 48 {
        let checksum = xxh3_64(&bytes[at..at + 40]);
        bytes[at + 40..at + 48].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Makes all checksums, the sections' numbers and the trailer right, as far as there are sections.
pub fn fix(bytes: &mut [u8]) {
    if bytes.len() < 64 {
        return;
    }
    let checksum = xxh3_64(&bytes[..56]);
    bytes[56..64].copy_from_slice(&checksum.to_le_bytes());
    let mut hash = blake3::Hasher::new();
    hash.update(&bytes[..64]);
    let mut at = 64;
    let (mut sections, mut blocks) = (0u64, 0u64);
    while let Some(Span { kind, header, payload, end }) = span(bytes, at) {
        bytes[header + 24..header + 28].copy_from_slice(&(sections as u32).to_le_bytes());
        if kind == 4 && end - payload == 56 {
            let trailer = &mut bytes[payload..end];
            trailer[..8].copy_from_slice(&sections.to_le_bytes());
            trailer[8..16].copy_from_slice(&(header as u64).to_le_bytes());
            trailer[16..24].copy_from_slice(&blocks.to_le_bytes());
            trailer[24..].copy_from_slice(hash.finalize().as_bytes());
        }
        let checksum = xxh3_64(&bytes[payload..end]);
        bytes[header + 32..header + 40].copy_from_slice(&checksum.to_le_bytes());
        fix_section_header(bytes, header);
        if kind != 4 {
            hash.update(&bytes[header..header + 48]);
        }
        blocks += u64::from(kind == 3);
        sections += 1;
        at = end;
    }
    fix_section_header(bytes, at);
}

/// Makes the checksums of the runs of all blocks right, as they are in an image with a parent. [`fix`] comes after it.
pub fn fix_fronts(bytes: &mut [u8]) {
    for Span { payload, end, .. } in spans(bytes).into_iter().filter(|span| span.kind == 3) {
        let block = &mut bytes[payload..end];
        let runs = if block.len() < 24 { usize::MAX } else { 24 + 24 * u32_at(block, 12) as usize };
        if let Some(front) = block.get_mut(..runs) {
            front[20..24].fill(0);
            let checksum = xxh3_64(front) as u32;
            front[20..24].copy_from_slice(&checksum.to_le_bytes());
        }
    }
}

/// An image with a section of this kind, flags and payload put in front of section `before`.
pub fn insert(image: &[u8], before: usize, kind: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let at = spans(image)[before].header;
    let mut section = vec![0; 48];
    section[..4].copy_from_slice(b"sect");
    section[4..6].copy_from_slice(&kind.to_le_bytes());
    section[6..8].copy_from_slice(&1u16.to_le_bytes());
    section[8..12].copy_from_slice(&flags.to_le_bytes());
    section[16..24].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    section.extend(payload);
    let mut out = [&image[..at], &section, &image[at..]].concat();
    fix(&mut out);
    out
}

/// An image whose block `n` has this payload in place of its own.
pub fn replace(image: &[u8], section: usize, payload: &[u8]) -> Vec<u8> {
    let span = spans(image)[section];
    let mut out = [&image[..span.payload], payload, &image[span.end..]].concat();
    out[span.header + 16..span.header + 24].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    fix(&mut out);
    out
}
