//! The pages of the sample images, the same in every run. The golden files were made of these: they do not change.

use super::tree::{manifest, tree};
use crate::image::{Block, Codec, Content, Dedup, Options, Owner, Pages, SectionKind, Summary, Writer, encode};
use std::collections::BTreeMap;
use std::io::Write;

pub const MACHINE: u16 = 62;
pub const PAGE: usize = 4096;

/// xorshift64*: small, seeded, the same everywhere.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A page that compresses.
pub fn text(n: u64) -> Vec<u8> {
    format!("page {n:>10}\n").into_bytes().into_iter().cycle().take(PAGE).collect()
}

/// A page that does not.
pub fn noise(n: u64) -> Vec<u8> {
    let mut random = Random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..PAGE / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

pub fn zero() -> Vec<u8> {
    vec![0; PAGE]
}

/// One block as it goes in.
pub struct Input {
    pub owner: Owner,
    pub ranges: Vec<(u64, u32)>,
    pub pages: Vec<Vec<u8>>,
    pub elide_zero: bool,
    pub codec: Codec,
}

/// The same blocks, all with one codec.
pub fn inputs_with(codec: Codec) -> Vec<Input> {
    inputs().into_iter().map(|input| Input { codec, ..input }).collect()
}

/// Blocks with every kind of run: data raw and compressed, zeros named and left out, copies from other blocks and
/// from the same, an empty block, and one of an object.
pub fn inputs() -> Vec<Input> {
    let process = Owner::Process(400);
    let heap = 0x7f00_0000_0000;
    let page = PAGE as u64;
    vec![
        Input {
            owner: process,
            ranges: vec![(heap, 5), (heap + 8 * page, 1)],
            pages: vec![text(1), zero(), noise(2), text(1), text(3), noise(2)],
            elide_zero: true,
            codec: Codec::Raw,
        },
        Input { owner: process, ranges: vec![(0x40_2000, 2)], pages: vec![zero(), text(9)], elide_zero: false, codec: Codec::Zstd(3) },
        Input { owner: process, ranges: vec![(heap + 16 * page, 1)], pages: vec![zero()], elide_zero: true, codec: Codec::Raw },
        Input {
            owner: Owner::Process(402),
            ranges: vec![(heap, 6)],
            pages: vec![noise(2), text(3), text(9), text(12), noise(11), zero()],
            elide_zero: true,
            codec: Codec::Zstd(3),
        },
        Input {
            owner: Owner::Object(0),
            ranges: vec![(0, 3), (4 * page, 1)],
            pages: vec![noise(20), zero(), text(12), zero()],
            elide_zero: false,
            codec: Codec::Raw,
        },
    ]
}

/// The content of every page that a restore must make, by owner and address.
pub type Memory = BTreeMap<(Owner, u64), Vec<u8>>;

/// What [`inputs`] put in; pages that may be left out are not there.
pub fn expected(inputs: &[Input]) -> Memory {
    let mut memory = Memory::new();
    for input in inputs {
        let addresses = input.ranges.iter().flat_map(|&(start, n)| (0..u64::from(n)).map(move |k| start + k * PAGE as u64));
        for (address, page) in addresses.zip(&input.pages) {
            if !input.elide_zero || *page != zero() {
                memory.insert((input.owner, address), page.clone());
            }
        }
    }
    memory
}

/// What came out.
pub fn memory(blocks: &[Block]) -> Memory {
    memory_upon(blocks, &|owner, address| panic!("{owner:?} {address:#x} is as in a parent"))
}

/// What came out of an image whose parent has these pages.
pub fn memory_upon(blocks: &[Block], parent: &dyn Fn(Owner, u64) -> Vec<u8>) -> Memory {
    let mut memory = Memory::new();
    for block in blocks {
        let mut data = block.data.chunks_exact(PAGE);
        for run in &block.runs {
            for n in 0..run.pages {
                let page = match run.content {
                    Content::Zero => zero(),
                    Content::Parent => parent(block.owner, run.address + u64::from(n) * PAGE as u64),
                    Content::Data => data.next().unwrap().to_vec(),
                    Content::Delta => {
                        let before = parent(block.owner, run.address + u64::from(n) * PAGE as u64);
                        data.next().unwrap().iter().zip(before).map(|(new, old)| new ^ old).collect()
                    }
                    Content::Unused => {
                        data.next().unwrap();
                        continue;
                    }
                    Content::Copy { block, page } => {
                        let at = (page + n) as usize * PAGE;
                        blocks[block as usize].data[at..at + PAGE].to_vec()
                    }
                };
                let before = memory.insert((block.owner, run.address + u64::from(n) * PAGE as u64), page);
                assert!(before.is_none(), "a page came twice");
            }
        }
        assert!(data.next().is_none());
    }
    memory
}

/// The id of every sample image.
pub const ID: [u8; 16] = *b"sixteen bytes id";

/// Starts a sample image, up to its pages.
pub fn start<W: Write>(out: W) -> Writer<W> {
    let mut writer = Writer::new(out, Options { machine: MACHINE, id: ID }).unwrap();
    writer.section(SectionKind::Manifest, &manifest()).unwrap();
    writer.section(SectionKind::Tree, &tree()).unwrap();
    writer
}

/// Writes an image of the sample tree with these blocks.
pub fn image(inputs: &[Input]) -> (Vec<u8>, Summary) {
    let dedup = Dedup::new(&ID);
    let mut writer = start(Vec::new());
    for (n, input) in inputs.iter().enumerate() {
        let pages = Pages { ranges: &input.ranges, data: input.pages.concat(), elide_zero: input.elide_zero };
        writer.append(&encode(n as u32, input.owner, pages, input.codec, Some(&dedup))).unwrap();
    }
    writer.finish().unwrap()
}
