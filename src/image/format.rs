//! The byte tables: image header, section header, trailer. All numbers are little-endian.

use crate::error::{Error, Result};
use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

/// Version of the format that this meio writes and the only one that it reads.
pub const VERSION: u16 = 1;
/// Bytes of a page; the format knows no other size.
pub const PAGE: usize = 4096;
/// Data pages that one block holds at most: 1 MiB.
pub const BLOCK_PAGES: usize = 256;
/// Payload bytes of a metadata section (MANIFEST, TREE) at most.
pub const MAX_METADATA: u64 = 256 << 20;
/// Payload bytes of a PARENT section at most.
pub const MAX_LINK: u64 = 4 << 20;
/// Payload bytes of a PAGES section at most.
pub const MAX_BLOCK: u64 = 2 << 20;
/// Runs that one block describes at most.
pub const MAX_RUNS: usize = 16384;
/// Pages that one block's zero, copy and parent runs describe at most, together.
pub const MAX_DESCRIBED: u64 = 65536;

/// First bytes of every image: no text, and broken by a transfer that changes line ends.
pub const MAGIC: [u8; 8] = *b"\x89meio\r\n\x1a";
/// Length of the image header.
pub const HEADER: usize = 64;
/// First bytes of every section.
pub const TAG: [u8; 4] = *b"sect";
/// Length of a section header.
pub const SECTION: usize = 48;
/// Payload length of END.
pub const TRAILER: usize = 56;
/// Section flag: a reader that does not know this section must refuse the image.
pub const MANDATORY: u32 = 1;
/// The version of every section that format version 1 defines.
pub const SECTION_VERSION: u16 = 1;

// The largest block that the other limits allow fits into a section.
const _: () = assert!(crate::image::pages::meta_length(MAX_RUNS) + BLOCK_PAGES * PAGE <= MAX_BLOCK as usize);

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Facts about the image, CBOR.
    Manifest,
    /// All that is not page content, CBOR.
    Tree,
    /// One block of pages.
    Pages,
    /// The trailer.
    End,
    /// The image that this one builds upon, CBOR.
    Parent,
    /// The fronts of all blocks once more.
    Index,
    /// A kind that this meio does not know.
    Unknown(u16),
}

impl SectionKind {
    /// The number in the section header.
    pub fn number(self) -> u16 {
        match self {
            SectionKind::Manifest => 1,
            SectionKind::Tree => 2,
            SectionKind::Pages => 3,
            SectionKind::End => 4,
            SectionKind::Parent => 5,
            SectionKind::Index => 6,
            SectionKind::Unknown(n) => n,
        }
    }

    /// The kind with this number.
    pub fn from_number(n: u16) -> Self {
        match n {
            1 => SectionKind::Manifest,
            2 => SectionKind::Tree,
            3 => SectionKind::Pages,
            4 => SectionKind::End,
            5 => SectionKind::Parent,
            6 => SectionKind::Index,
            n => SectionKind::Unknown(n),
        }
    }

    /// Payload bytes that a section of this kind may have; `None` when the payload is never held in memory.
    pub fn limit(self) -> Option<u64> {
        match self {
            SectionKind::Manifest | SectionKind::Tree | SectionKind::Index => Some(MAX_METADATA),
            SectionKind::Parent => Some(MAX_LINK),
            SectionKind::Pages => Some(MAX_BLOCK),
            SectionKind::End => Some(TRAILER as u64),
            SectionKind::Unknown(_) => None,
        }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SectionKind::Manifest => f.write_str("MANIFEST"),
            SectionKind::Tree => f.write_str("TREE"),
            SectionKind::Pages => f.write_str("PAGES"),
            SectionKind::End => f.write_str("END"),
            SectionKind::Parent => f.write_str("PARENT"),
            SectionKind::Index => f.write_str("INDEX"),
            SectionKind::Unknown(n) => write!(f, "unknown (kind {n})"),
        }
    }
}

/// Where in an image something is, for error sentences.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// The image header.
    Header,
    /// The header of the section with this number, at this offset.
    SectionHeader(u32, u64),
    /// Inside the section of this kind and number, whose header is at this offset.
    Section(SectionKind, u32, u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("image header"),
            Place::SectionHeader(number, _) => write!(f, "header of section {number}"),
            Place::Section(kind, number, _) => write!(f, "{kind} section {number}"),
        }
    }
}

impl Place {
    /// Offset of the thing in the image, in bytes.
    fn offset(self) -> u64 {
        match self {
            Place::Header => 0,
            Place::SectionHeader(_, offset) | Place::Section(_, _, offset) => offset,
        }
    }

    /// The image ends at byte `position`, inside of this.
    pub fn cut_off(self, position: u64) -> Error {
        Error::image(format!("image cut off at byte {position} (in {self})"))
    }

    /// This does not hold what it must: `what` says why.
    pub fn damaged(self, what: impl fmt::Display) -> Error {
        Error::image(format!("image damaged at byte {} ({self}): {what}", self.offset()))
    }
}

/// `N` bytes at `at`. The callers' tables are of fixed size, so this cannot leave them.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

/// The fixed header at the start of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Architecture, ELF `e_machine`.
    pub machine: u16,
    /// Random bytes of this image; they also key its page hashes.
    pub id: [u8; 16],
}

impl Header {
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&self.machine.to_le_bytes());
        out[12..16].copy_from_slice(&(PAGE as u32).to_le_bytes());
        out[16..32].copy_from_slice(&self.id);
        // 32..56: flags and reserved bytes, all zero.
        let checksum = xxh3_64(&out[..56]);
        out[56..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Compares a header with what this meio can use.
    pub fn check(bytes: &[u8; HEADER], machine: u16) -> Result<()> {
        if bytes[..8] != MAGIC {
            return Err(Error::image("not a meio image (wrong first bytes)"));
        }
        // The version comes before the checksum: a later version may place its checksum elsewhere.
        let version = u16_at(bytes, 8);
        if version != VERSION {
            return Err(Error::image(format!("image has format version {version}, this meio reads {VERSION}"))
                .help("use the version of meio that made it"));
        }
        if xxh3_64(&bytes[..56]) != u64_at(bytes, 56) {
            return Err(Place::Header.damaged("wrong checksum"));
        }
        let theirs = u16_at(bytes, 10);
        if theirs != machine {
            return Err(Error::image(format!("image is of architecture {theirs} (ELF e_machine), this meio is for {machine}")));
        }
        let page = u32_at(bytes, 12);
        if page as usize != PAGE {
            return Err(Error::image(format!("image has pages of {page} bytes, this meio uses {PAGE}")));
        }
        if bytes[32..56].iter().any(|&b| b != 0) {
            return Err(Error::image("image header has flags that this meio does not know"));
        }
        Ok(())
    }
}

/// The fixed header in front of every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionHeader {
    pub kind: SectionKind,
    pub version: u16,
    pub flags: u32,
    /// Zero bytes between this header and the payload.
    pub padding: u32,
    /// Bytes of the payload.
    pub length: u64,
    /// Counts the sections of the image from 0.
    pub number: u32,
    /// XXH3-64 of the payload.
    pub checksum: u64,
}

impl SectionHeader {
    pub fn to_bytes(self) -> [u8; SECTION] {
        let mut out = [0; SECTION];
        out[..4].copy_from_slice(&TAG);
        out[4..6].copy_from_slice(&self.kind.number().to_le_bytes());
        out[6..8].copy_from_slice(&self.version.to_le_bytes());
        out[8..12].copy_from_slice(&self.flags.to_le_bytes());
        out[12..16].copy_from_slice(&self.padding.to_le_bytes());
        out[16..24].copy_from_slice(&self.length.to_le_bytes());
        out[24..28].copy_from_slice(&self.number.to_le_bytes());
        // 28..32 is reserved.
        out[32..40].copy_from_slice(&self.checksum.to_le_bytes());
        let checksum = xxh3_64(&out[..40]);
        out[40..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the header of section `number` at `offset` and checks all that can be checked without its payload.
    pub fn parse(bytes: &[u8; SECTION], number: u32, offset: u64) -> Result<SectionHeader> {
        let place = Place::SectionHeader(number, offset);
        if bytes[..4] != TAG {
            return Err(place.damaged("no section starts here"));
        }
        if xxh3_64(&bytes[..40]) != u64_at(bytes, 40) {
            return Err(place.damaged("wrong checksum"));
        }
        let header = SectionHeader {
            kind: SectionKind::from_number(u16_at(bytes, 4)),
            version: u16_at(bytes, 6),
            flags: u32_at(bytes, 8),
            padding: u32_at(bytes, 12),
            length: u64_at(bytes, 16),
            number: u32_at(bytes, 24),
            checksum: u64_at(bytes, 32),
        };
        if header.number != number {
            return Err(place.damaged(format!("section {} stands where {number} belongs", header.number)));
        }
        if header.padding as usize >= PAGE {
            return Err(place.damaged(format!("padding of {} bytes", header.padding)));
        }
        if header.flags & !MANDATORY != 0 || u32_at(bytes, 28) != 0 {
            return Err(place.damaged(format!("unknown flags {:#x}", header.flags)));
        }
        let place = Place::Section(header.kind, number, offset);
        if !header.known() && header.flags & MANDATORY != 0 {
            return Err(Error::image(format!(
                "image needs a newer meio: {place} at byte {offset}, version {}, is mandatory and not known",
                header.version
            )));
        }
        if let Some(limit) = header.kind.limit().filter(|&limit| header.known() && header.length > limit) {
            return Err(place.damaged(format!("claims {} bytes, at most {limit} are allowed", header.length)));
        }
        // Offsets after it must stay numbers.
        let before = offset.checked_add((SECTION + PAGE) as u64);
        if before.and_then(|b| b.checked_add(header.length)).is_none() {
            return Err(place.damaged(format!("claims {} bytes", header.length)));
        }
        Ok(header)
    }

    /// Whether this meio knows the kind in this version.
    pub fn known(&self) -> bool {
        !matches!(self.kind, SectionKind::Unknown(_)) && self.version == SECTION_VERSION
    }
}

/// The payload of END: what all that stands before it amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Sections before END.
    pub sections: u64,
    /// Bytes before END's section header.
    pub bytes: u64,
    /// PAGES sections.
    pub blocks: u64,
    /// BLAKE3 over the image header and all section headers before END.
    pub hash: [u8; 32],
}

impl Trailer {
    pub fn to_bytes(self) -> [u8; TRAILER] {
        let mut out = [0; TRAILER];
        out[..8].copy_from_slice(&self.sections.to_le_bytes());
        out[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.blocks.to_le_bytes());
        out[24..].copy_from_slice(&self.hash);
        out
    }

    /// Reads a payload of END; `None` when its length is wrong.
    pub fn parse(bytes: &[u8]) -> Option<Trailer> {
        (bytes.len() == TRAILER).then(|| Trailer {
            sections: u64_at(bytes, 0),
            bytes: u64_at(bytes, 8),
            blocks: u64_at(bytes, 16),
            hash: field(bytes, 24),
        })
    }
}
