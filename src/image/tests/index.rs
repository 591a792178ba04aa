//! The index says the same as the blocks, or nothing.

use super::file;
use super::forge::{fix, insert, spans};
use super::sample::*;
use super::tree::{manifest, tree};
use crate::error::Kind;
use crate::image::{Dedup, Owner, Pages, Reader, Run, encode, verify};
use crate::resource::{Manifest, Tree};

type Blocks = Vec<super::super::encoded::Indexed>;

/// The sample with an index.
fn indexed() -> Vec<u8> {
    let dedup = Dedup::new(&ID);
    let mut writer = start(Vec::new());
    for (n, input) in inputs().iter().enumerate() {
        let pages = Pages { ranges: &input.ranges, data: input.pages.concat(), elide_zero: input.elide_zero };
        writer.append(&encode(n as u32, input.owner, pages, input.codec, Some(&dedup))).unwrap();
    }
    writer.index().unwrap();
    writer.finish().unwrap().0
}

fn reader(bytes: &[u8]) -> Reader<'static> {
    let mut reader = Reader::from_file(file(bytes), MACHINE).unwrap();
    assert_eq!(reader.manifest::<Manifest>().unwrap(), manifest());
    assert_eq!(reader.tree::<Tree>().unwrap(), tree());
    reader
}

/// What is damaged may be noticed before its index is asked for.
fn index(bytes: &[u8]) -> Option<crate::error::Result<Option<Blocks>>> {
    let mut reader = Reader::from_file(file(bytes), MACHINE).ok()?;
    reader.manifest::<Manifest>().ok()?;
    reader.tree::<Tree>().ok()?;
    Some(reader.index())
}

fn described(blocks: &Blocks) -> Vec<(Owner, Vec<Run>)> {
    blocks.iter().map(|b| (b.1.owner, b.1.runs.clone())).collect()
}

#[test]
fn it_says_what_the_blocks_say() {
    let bytes = indexed();
    let mut walked = reader(&bytes);
    let mut found = Vec::new();
    while let Some(block) = walked.next_block().unwrap() {
        found.push(block);
    }
    let mut by_index = reader(&bytes);
    let blocks = by_index.index().unwrap().unwrap();
    assert_eq!(by_index.hash(), walked.hash());
    assert!(by_index.hash().is_some() && by_index.next_block().unwrap().is_none());
    let walked: Vec<_> = found.iter().map(|b| b.describe().unwrap()).collect();
    assert_eq!(described(&blocks), walked);
    for (block, (indexed, ..)) in found.into_iter().zip(blocks) {
        assert_eq!(block.decode().unwrap(), indexed.decode().unwrap());
    }
    let report = verify::<Manifest, Tree>(Reader::from_file(file(&bytes), MACHINE).unwrap()).unwrap();
    assert_eq!((report.blocks, report.sections.len()), (5, 9));
    verify::<Manifest, Tree>(Reader::open(&bytes[..], MACHINE).unwrap()).unwrap();
}

#[test]
fn without_one_the_blocks_are_read_as_ever() {
    let (bytes, _) = image(&inputs());
    let mut reader = reader(&bytes);
    assert!(reader.index().unwrap().is_none());
    assert_eq!(super::blocks(&mut reader).len(), 5);
    let with_one = indexed();
    let mut stream = Reader::open(&with_one[..], MACHINE).unwrap();
    stream.manifest::<Manifest>().unwrap();
    stream.tree::<Tree>().unwrap();
    assert!(stream.index().unwrap().is_none());
    assert_eq!(super::blocks(&mut stream).len(), 5);
}

#[test]
fn a_damaged_one_never_says_something_else() {
    let bytes = indexed();
    let right = described(&reader(&bytes).index().unwrap().unwrap());
    let section = spans(&bytes)[7];
    let (mut none, mut errors) = (0, 0);
    for at in section.header..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        match index(&bytes) {
            Some(Ok(Some(blocks))) => assert_eq!(described(&blocks), right, "byte {at}"),
            // Then the blocks are read, and that finds it.
            Some(Ok(None)) => none += 1,
            Some(Err(e)) => {
                assert_eq!(e.kind, Kind::Image);
                errors += 1;
            }
            None => panic!("byte {at} is read too early"),
        }
    }
    assert!(none > 100 && errors > 100, "{none} {errors}");
    // A section header of a block: the name of the image is another one then, and the index does not have it.
    let mut other = bytes.clone();
    let block = spans(&bytes)[3];
    other[block.header + 32] ^= 1;
    super::forge::fix_section_header(&mut other, block.header);
    let blocks = index(&other).unwrap().unwrap().unwrap();
    assert_eq!(described(&blocks), right);
    for cut in [1, 60, 104, 200, section.end - section.header] {
        assert!(!matches!(index(&bytes[..bytes.len() - cut]), Some(Ok(Some(_)))));
    }
}

/// With checksums that are right.
#[test]
fn a_lie_is_found_at_the_block() {
    let bytes = indexed();
    let section = spans(&bytes)[7];
    // The address of the first run of the first block: header, block header, run.
    let mut other = bytes.clone();
    other[section.payload + 48 + 24 + 1] ^= 0x10;
    fix(&mut other);
    let blocks = index(&other).unwrap().unwrap().unwrap();
    let e = blocks[0].0.clone().decode().unwrap_err();
    assert!(e.message.contains("its runs are not those of the index"), "{}", e.message);
    // A block less, or one that is twice there.
    let first = 48 + 24 + 24 * 5;
    for payload in [
        bytes[section.payload + first..section.end].to_vec(),
        [&bytes[section.payload..section.payload + first], &bytes[section.payload..section.end]].concat(),
    ] {
        let mut other = super::forge::replace(&bytes, 7, &payload);
        let end = spans(&other)[7].end;
        other[end - 8..end].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        fix(&mut other);
        assert_eq!(index(&other).unwrap().err().unwrap().kind, Kind::Image);
    }
    // It stands elsewhere, or is followed by something.
    let payload = bytes[section.payload..section.end].to_vec();
    assert!(!matches!(index(&insert(&image(&inputs()).0, 4, 6, 0, &payload)), Some(Ok(Some(_)))));
    assert!(!matches!(index(&insert(&bytes, 8, 99, 0, b"more")), Some(Ok(Some(_)))));
}
