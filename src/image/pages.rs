//! The payload of a PAGES section: whose pages, where they belong, and their content.

use super::format::{BLOCK_PAGES, MAX_DESCRIBED, MAX_RUNS, PAGE, u16_at, u32_at, u64_at};
use xxhash_rust::xxh3::Xxh3;

/// Length of the block header in front of the runs.
pub const BLOCK_HEADER: usize = 24;
/// Length of one run.
pub const RUN: usize = 24;

/// Bytes of block header and runs, which stand in front of the page data.
pub const fn meta_length(runs: usize) -> usize {
    BLOCK_HEADER + runs * RUN
}

/// Whose pages a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The process with this pid; addresses are its virtual addresses.
    Process(i32),
    /// The memory object with this number; addresses are offsets in it.
    Object(u32),
}

/// Where the content of a run comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// From the data of this block: the next `pages` pages of it.
    Data,
    /// All zero.
    Zero,
    /// The same as data pages `page`, `page + 1`, … of block `block`, which is an earlier one, or of this
    /// block, where they stand before this run.
    Copy {
        /// Index of the block in the image.
        block: u32,
        /// Index of the first data page in that block.
        page: u32,
    },
    /// The same as in the parent image, at the same address of the same owner.
    Parent,
    /// From the data of this block, as [`Content::Data`], but by which bits it differs from that page: the one is the other, XOR
    /// what is here. Only who has that page at hand can read it, so it is in no image but those that go to a standby.
    Delta,
    /// From the data of this block, as [`Content::Data`], but no page of the saved tree: it was copied while the tree ran, and
    /// has changed since.
    Unused,
}

/// Consecutive pages of one kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page, a multiple of [`PAGE`].
    pub address: u64,
    /// How many pages, at least 1.
    pub pages: u32,
    /// What is in them.
    pub content: Content,
}

/// One block, decoded: every run has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its index in the image, from 0.
    pub number: u32,
    /// Whose pages.
    pub owner: Owner,
    /// Where they belong.
    pub runs: Vec<Run>,
    /// The pages of the [`Content::Data`], [`Content::Delta`] and [`Content::Unused`] runs, one after the other.
    pub data: Vec<u8>,
    /// Where `data` stands in the image file as it is, a multiple of [`PAGE`], so that it can be mapped or
    /// read from there again; `None` when it is compressed or came from a stream.
    pub offset: Option<u64>,
}

/// How the data of a block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Whether an image has a parent. In one that has, the front of each block has a checksum of its own: so that of a long
/// chain of images no more has to be read than what is still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lineage {
    /// It stands alone.
    Flat,
    /// It has a parent.
    Child,
}

/// Block header and runs, without the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub block: u32,
    pub owner: Owner,
    pub stored: Stored,
    /// Data pages, after decompression.
    pub data_pages: u32,
    pub runs: Vec<Run>,
}

impl Meta {
    pub fn to_bytes(&self, lineage: Lineage) -> Vec<u8> {
        let (kind, id) = match self.owner {
            Owner::Process(pid) => (0u16, pid as u32),
            Owner::Object(id) => (1, id),
        };
        let codec: u16 = match self.stored {
            Stored::Raw => 0,
            Stored::Zstd => 1,
        };
        let mut out = Vec::with_capacity(meta_length(self.runs.len()));
        out.extend(kind.to_le_bytes());
        out.extend(codec.to_le_bytes());
        for word in [id, self.block, self.runs.len() as u32, self.data_pages, 0] {
            out.extend(word.to_le_bytes());
        }
        for run in &self.runs {
            let (content, block, page) = match run.content {
                Content::Data => (0, 0, 0),
                Content::Zero => (1, 0, 0),
                Content::Copy { block, page } => (2, block, page),
                Content::Parent => (3, 0, 0),
                Content::Unused => (4, 0, 0),
                Content::Delta => (5, 0, 0),
            };
            out.extend(run.address.to_le_bytes());
            for word in [run.pages, content, block, page] {
                out.extend(word.to_le_bytes());
            }
        }
        if lineage == Lineage::Child {
            let checksum = front_checksum(&out);
            out[20..24].copy_from_slice(&checksum.to_le_bytes());
        }
        out
    }

    /// Bytes of block header and runs, from the block header alone.
    pub fn length_from(header: &[u8; BLOCK_HEADER]) -> Result<usize, String> {
        let runs = u32_at(header, 12) as usize;
        if runs > MAX_RUNS {
            return Err(format!("claims {runs} runs, at most {MAX_RUNS} are allowed"));
        }
        Ok(meta_length(runs))
    }

    /// Reads and checks block header and runs; `bytes` has the length that [`Meta::length_from`] gave.
    pub fn parse(bytes: &[u8], lineage: Lineage) -> Result<Meta, String> {
        let owner = match (u16_at(bytes, 0), u32_at(bytes, 4)) {
            (0, pid) => Owner::Process(pid as i32),
            (1, id) => Owner::Object(id),
            (kind, _) => return Err(format!("unknown kind of owner {kind}")),
        };
        let stored = match u16_at(bytes, 2) {
            0 => Stored::Raw,
            1 => Stored::Zstd,
            codec => return Err(format!("unknown codec {codec}")),
        };
        let block = u32_at(bytes, 8);
        let data_pages = u32_at(bytes, 16);
        if data_pages as usize > BLOCK_PAGES {
            return Err(format!("claims {data_pages} data pages, at most {BLOCK_PAGES} are allowed"));
        }
        let front = u32_at(bytes, 20);
        match lineage {
            Lineage::Flat if front != 0 => return Err("reserved bytes of the block header are not zero".into()),
            Lineage::Child if front != front_checksum(bytes) => return Err("wrong checksum of its runs".into()),
            _ => {}
        }
        let mut check = Check { block, lineage, data: 0, described: 0 };
        let mut runs = Vec::with_capacity(bytes.len() / RUN);
        for (n, record) in bytes[BLOCK_HEADER..].chunks_exact(RUN).enumerate() {
            let run = check.run(record).map_err(|what| format!("run {n}: {what}"))?;
            runs.push(run);
        }
        if check.data != u64::from(data_pages) {
            return Err(format!("its data runs have {} pages, its data {data_pages}", check.data));
        }
        Ok(Meta { block, owner, stored, data_pages, runs })
    }
}

/// Gives the block of these bytes, [`Meta::to_bytes`], another number, and those that it copies the ones that they have now.
pub fn renumber(meta: &mut [u8], number: u32, there: impl Fn(u32) -> u32, lineage: Lineage) {
    meta[8..12].copy_from_slice(&number.to_le_bytes());
    for run in meta[BLOCK_HEADER..].chunks_exact_mut(RUN).filter(|run| u32_at(run, 12) == 2) {
        let block = there(u32_at(run, 16));
        run[16..20].copy_from_slice(&block.to_le_bytes());
    }
    if lineage == Lineage::Child {
        let checksum = front_checksum(meta);
        meta[20..24].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Checksum of block header and runs: the lower half of their XXH3, with zero where it stands itself.
fn front_checksum(meta: &[u8]) -> u32 {
    let mut hash = Xxh3::new();
    hash.update(&meta[..20]);
    hash.update(&[0; 4]);
    hash.update(&meta[BLOCK_HEADER..]);
    hash.digest() as u32
}

/// What the runs read so far add up to.
struct Check {
    block: u32,
    lineage: Lineage,
    data: u64,
    described: u64,
}

impl Check {
    fn run(&mut self, record: &[u8]) -> Result<Run, String> {
        let address = u64_at(record, 0);
        let pages = u32_at(record, 8);
        let (block, page) = (u32_at(record, 16), u32_at(record, 20));
        if !address.is_multiple_of(PAGE as u64) {
            return Err(format!("address {address:#x} is not at a page border"));
        }
        if pages == 0 || address.checked_add(u64::from(pages) * PAGE as u64).is_none() {
            return Err(format!("{pages} pages at {address:#x}"));
        }
        let content = match u32_at(record, 12) {
            0 => Content::Data,
            1 => Content::Zero,
            2 => Content::Copy { block, page },
            3 | 5 if self.lineage == Lineage::Flat => return Err("is as in the parent, of which the image has none".into()),
            3 => Content::Parent,
            4 => Content::Unused,
            5 => Content::Delta,
            other => return Err(format!("unknown content {other}")),
        };
        match content {
            Content::Data | Content::Delta | Content::Unused => self.data += u64::from(pages),
            Content::Zero | Content::Copy { .. } | Content::Parent => self.described += u64::from(pages),
        }
        if self.data > BLOCK_PAGES as u64 || self.described > MAX_DESCRIBED {
            return Err(format!("{pages} pages are too many for one block"));
        }
        match content {
            Content::Copy { .. } => {
                // How many data pages an earlier block has is known to who has read it: `Placement`.
                let there = if block < self.block { BLOCK_PAGES as u64 } else { self.data };
                if block > self.block || u64::from(page) + u64::from(pages) > there {
                    return Err(format!("copies block {block}, page {page}, which does not stand before it"));
                }
            }
            _ if (block, page) != (0, 0) => return Err("names a block without being a copy".into()),
            _ => {}
        }
        Ok(Run { address, pages, content })
    }
}
