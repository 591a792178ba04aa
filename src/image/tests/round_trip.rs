//! What goes in comes out, from a stream and from a file.

use super::sample::*;
use super::tree::{manifest, tree};
use super::{blocks, file};
use crate::error::Kind;
use crate::image::{Codec, Content, Dedup, Options, Owner, Pages, Placement, Reader, SectionKind, Writer, encode, verify};
use crate::resource::{Manifest, Tree};
use std::fs::File;
use std::os::unix::fs::FileExt;

#[test]
fn everything_comes_back() {
    let (bytes, summary) = image(&inputs());
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert_eq!(bytes[16..32], ID);
    let readers = [Reader::open(&bytes[..], MACHINE).unwrap(), Reader::from_file(file(&bytes), MACHINE).unwrap()];
    for mut reader in readers {
        assert_eq!(reader.manifest::<Manifest>().unwrap(), manifest());
        assert_eq!(reader.tree::<Tree>().unwrap(), tree());
        let blocks = blocks(&mut reader);
        assert_eq!(memory(&blocks), expected(&inputs()));
        assert_eq!(reader.hash(), Some(summary.hash));
        assert!(reader.next_block().unwrap().is_none());
    }
}

#[test]
fn runs_are_what_the_pages_ask_for() {
    let (bytes, summary) = image(&inputs());
    let mut reader = Reader::open(&bytes[..], MACHINE).unwrap();
    let blocks = blocks(&mut reader);
    let contents: Vec<Vec<(u32, Content)>> = blocks.iter().map(|b| b.runs.iter().map(|r| (r.pages, r.content)).collect()).collect();
    let copy = |block, page| Content::Copy { block, page };
    assert_eq!(contents[0], [(1, Content::Data), (1, Content::Data), (1, copy(0, 0)), (1, Content::Data), (1, copy(0, 1))]);
    assert_eq!(contents[1], [(1, Content::Zero), (1, Content::Data)]);
    assert_eq!(contents[2], []);
    assert_eq!(contents[3], [(2, copy(0, 1)), (1, copy(1, 0)), (2, Content::Data)]);
    assert_eq!(contents[4], [(1, Content::Data), (1, Content::Zero), (1, copy(3, 0)), (1, Content::Zero)]);
    let counts = summary.pages;
    assert_eq!((counts.data, counts.copy, counts.zero, counts.elided), (7, 6, 3, 3));
    assert_eq!((summary.blocks, summary.sections), (5, 8));
}

#[test]
fn raw_pages_can_be_read_where_they_stand() {
    let (bytes, _) = image(&inputs());
    let image = file(&bytes);
    let mut reader = Reader::from_file(image.try_clone().unwrap(), MACHINE).unwrap();
    let blocks = blocks(&mut reader);
    let mut seen = 0;
    for block in blocks.iter().filter(|b| !b.data.is_empty()) {
        if let Some(offset) = block.offset {
            assert_eq!(offset % PAGE as u64, 0);
            let mut there = vec![0; block.data.len()];
            image.read_exact_at(&mut there, offset).unwrap();
            assert_eq!(there, block.data);
            seen += 1;
        }
    }
    assert_eq!(seen, 2, "blocks 0 and 4 are raw");
    assert_eq!(blocks[1].offset, None);
    assert_eq!(blocks[3].offset, None);
}

#[test]
fn verify_reports_what_was_written() {
    let (bytes, summary) = image(&inputs());
    for reader in [Reader::open(&bytes[..], MACHINE).unwrap(), Reader::from_file(file(&bytes), MACHINE).unwrap()] {
        let report = verify::<Manifest, Tree>(reader).unwrap();
        assert_eq!(report.tree, tree());
        assert_eq!((report.bytes, report.hash, report.blocks), (summary.bytes, summary.hash, summary.blocks));
        assert_eq!(report.pages.data + report.pages.zero + report.pages.copy, 16);
        let mut end = 64;
        for section in &report.sections {
            assert_eq!(section.offset, end);
            assert!(section.payload >= section.offset + 48);
            end = section.payload + section.length;
        }
        assert_eq!(end, summary.bytes);
        assert_eq!(report.sections.last().unwrap().kind, SectionKind::End);
    }
}

#[test]
fn workers_may_encode_in_any_order() {
    let inputs: Vec<Input> = (0..12u64)
        .map(|n| Input {
            owner: Owner::Process(1),
            ranges: vec![(n << 20, 16)],
            pages: (0..16).map(|k| text((n * 5 + k) % 40)).collect(),
            elide_zero: true,
            codec: Codec::Raw,
        })
        .collect();
    let dedup = Dedup::new(&ID);
    let mut encoded: Vec<_> = [7usize, 3, 11, 0, 10, 2, 9, 1, 8, 5, 4, 6]
        .map(|n| {
            let pages = Pages { ranges: &inputs[n].ranges, data: inputs[n].pages.concat(), elide_zero: true };
            encode(n as u32, inputs[n].owner, pages, Codec::Raw, Some(&dedup))
        })
        .into();
    encoded.sort_by_key(|e| e.block);
    let mut writer = start(Vec::new());
    encoded.iter().for_each(|e| writer.append(e).unwrap());
    let (bytes, summary) = writer.finish().unwrap();
    assert!(summary.pages.copy > 0);
    verify::<Manifest, Tree>(Reader::open(&bytes[..], MACHINE).unwrap()).unwrap();
    let blocks = blocks(&mut Reader::open(&bytes[..], MACHINE).unwrap());
    assert_eq!(memory(&blocks), expected(&inputs));
}

#[test]
fn placement_finds_copies_across_runs() {
    let (bytes, _) = image(&inputs());
    let blocks = blocks(&mut Reader::open(&bytes[..], MACHINE).unwrap());
    let mut placement = Placement::default();
    blocks.iter().for_each(|b| placement.note(b));
    let heap = 0x7f00_0000_0000;
    // Data pages of block 0: heap page 0, 2, 4.
    let (owner, pieces) = placement.find(0, 0, 3).unwrap();
    assert_eq!(owner, Owner::Process(400));
    assert_eq!(pieces, [(heap, 1), (heap + 0x2000, 1), (heap + 0x4000, 1)]);
    assert_eq!(placement.find(0, 3, 1).unwrap_err().kind, Kind::Image);
    assert_eq!(placement.find(0, 2, 2).unwrap_err().kind, Kind::Image);
    assert_eq!(placement.find(2, 0, 1).unwrap_err().kind, Kind::Image);
    assert_eq!(placement.find(5, 0, 1).unwrap_err().kind, Kind::Image);
    assert_eq!(placement.find(0, u32::MAX, 2).unwrap_err().kind, Kind::Image);
}

#[test]
fn pages_that_do_not_compress_are_stored_raw() {
    let pages: Vec<Vec<u8>> = (0..256).map(noise).collect();
    let ranges = [(0x1000, 256)];
    let one = |data: Vec<u8>| {
        let pages = Pages { ranges: &ranges, data, elide_zero: true };
        encode(0, Owner::Process(1), pages, Codec::Zstd(1), None)
    };
    let mut writer = start(Vec::new());
    writer.append(&one(pages.concat())).unwrap();
    let (raw, _) = writer.finish().unwrap();
    assert!(raw.len() > 256 * PAGE);
    let mut writer = start(Vec::new());
    writer.append(&one((0..256).flat_map(text).collect())).unwrap();
    let (small, _) = writer.finish().unwrap();
    assert!(small.len() < 256 * PAGE / 8, "{}", small.len());
    for (bytes, first) in [(raw, noise(0)), (small, text(0))] {
        let blocks = blocks(&mut Reader::open(&bytes[..], MACHINE).unwrap());
        assert_eq!(blocks[0].data.len(), 256 * PAGE);
        assert_eq!(blocks[0].data[..PAGE], first);
    }
}

#[test]
fn the_writer_keeps_its_order() {
    let encoded = |n| encode(n, Owner::Process(1), Pages { ranges: &[], data: vec![], elide_zero: true }, Codec::Raw, None);
    let new = || Writer::new(Vec::new(), Options { machine: MACHINE, id: ID }).unwrap();
    assert!(new().section(SectionKind::Tree, &tree()).is_err());
    assert!(new().append(&encoded(0)).is_err());
    assert!(new().finish().is_err());
    let mut writer = start(Vec::new());
    assert!(writer.section(SectionKind::Manifest, &manifest()).is_err());
    assert!(writer.section(SectionKind::Pages, &manifest()).is_err());
    assert!(writer.append(&encoded(1)).is_err());
    writer.append(&encoded(0)).unwrap();
    assert!(writer.append(&encoded(0)).is_err());
    writer.finish().unwrap();
}

#[test]
fn a_full_disk_keeps_its_kind() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = Writer::new(full, Options { machine: MACHINE, id: ID }).err().unwrap();
    assert_eq!(error.kind, Kind::Other);
    assert!(error.message.contains("writing the image"), "{}", error.message);
}

#[test]
fn memory_of_one_block_serves_the_next() {
    let (bytes, _) = image(&inputs());
    for mut reader in [Reader::open(&bytes[..], MACHINE).unwrap(), Reader::from_file(file(&bytes), MACHINE).unwrap()] {
        let fresh = blocks(&mut Reader::from_file(file(&bytes), MACHINE).unwrap());
        let mut buffer = vec![0xaa; 1 << 20];
        let mut n = 0;
        while let Some(block) = reader.next_block().unwrap() {
            let block = block.decode_into(buffer).unwrap();
            assert_eq!((block.data.as_slice(), &block.runs), (fresh[n].data.as_slice(), &fresh[n].runs));
            buffer = block.data;
            buffer.resize(1 << 20, 0xaa);
            n += 1;
        }
        assert_eq!(n, 5);
    }
}

#[test]
fn blocks_are_decoded_by_other_threads() {
    let (bytes, _) = image(&inputs());
    let mut reader = Reader::from_file(file(&bytes), MACHINE).unwrap();
    let mut encoded = Vec::new();
    while let Some(block) = reader.next_block().unwrap() {
        encoded.push(block);
    }
    encoded.reverse();
    let mut blocks: Vec<_> = encoded.into_iter().map(|b| std::thread::spawn(move || b.decode().unwrap()).join().unwrap()).collect();
    blocks.sort_by_key(|b| b.number);
    assert_eq!(memory(&blocks), expected(&inputs()));
}

#[test]
fn pages_laid_by_come_out_where_they_are_wanted() {
    use crate::image::{Owner, encode_apart};
    let (heap, step) = (0x7f00_0000_0000, PAGE as u64);
    let ranges = [(heap, 3), (heap + 8 * step, 2)];
    for codec in [Codec::Raw, Codec::Zstd(3)] {
        let pages = [text(1), zero(), noise(2), text(3), text(4)].concat();
        let (laid, data) = encode_apart(Owner::Process(7), &ranges, pages, codec);
        assert_eq!(laid.ranges().map(|r| u64::from(r.1)).sum::<u64>(), 5);
        let mut writer = start(Vec::new());
        let wanted = |address: u64| address != heap + 2 * step && address != heap + 9 * step;
        let block = laid.block((0, Owner::Process(400), false), || Ok(data.clone()), wanted).unwrap().unwrap();
        writer.append(&block).unwrap();
        assert!(laid.block((1, Owner::Process(400), false), || panic!("read"), |_| false).unwrap().is_none());
        let only_zero = laid.block((1, Owner::Process(402), false), || panic!("read"), |a| a == heap + step).unwrap().unwrap();
        writer.append(&only_zero).unwrap();
        let (bytes, summary) = writer.finish().unwrap();
        assert_eq!((summary.pages.data, summary.pages.zero, summary.pages.unused), (2, 2, 2));
        let there = memory(&blocks(&mut Reader::open(&bytes[..], MACHINE).unwrap()));
        let expected = [(400, 0, text(1)), (400, 1, zero()), (400, 8, text(3)), (402, 1, zero())];
        assert_eq!(there, expected.into_iter().map(|(pid, n, page)| ((Owner::Process(pid), heap + n * step), page)).collect());
    }
}
