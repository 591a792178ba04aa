//! Images that were written once, by the first version of the format, and are read for ever.

use super::chain::{self, Layer};
use super::forge;
use super::sample::*;
use super::tree::{manifest, tree};
use super::{blocks, file, verify_stream};
use crate::image::format::{MANDATORY, SECTION_VERSION};
use crate::image::{Codec, Dedup, Options, Pages, Reader, SectionKind, Summary, Writer, encode, verify};
use ciborium::Value;
use std::path::PathBuf;

/// The golden images and what their pages were made of.
pub fn all() -> [(&'static str, Vec<Input>); 3] {
    [("v1-raw", inputs_with(Codec::Raw)), ("v1-zstd", inputs_with(Codec::Zstd(3))), ("v1-mixed", inputs())]
}

/// Golden images with a parent, each upon the one before, the first upon `v1-mixed`.
pub fn children() -> [(&'static str, &'static str, Layer); 2] {
    [("v1-child", "v1-mixed", chain::second()), ("v1-grandchild", "v1-child", chain::third())]
}

pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/images"))
}

/// The bytes of a golden image. With `UPDATE=1` one that is missing is written; none is ever written again.
pub fn read(name: &str, inputs: &[Input]) -> Vec<u8> {
    read_or_make(name, || image(inputs))
}

/// The same of one with a parent.
pub fn read_child(name: &str) -> Vec<u8> {
    let (n, (_, parent, layer)) = children().into_iter().enumerate().find(|(_, c)| c.0 == name).unwrap();
    if n > 0 {
        read_child(parent);
    }
    read_or_make(name, || chain::bytes(n as u8 + 1, &layer, Some(&folder().join(format!("{parent}.meio")))))
}

fn read_or_make(name: &str, make: impl FnOnce() -> (Vec<u8>, Summary)) -> Vec<u8> {
    let path = folder().join(format!("{name}.meio"));
    if !path.exists() && std::env::var_os("UPDATE").is_some_and(|v| v == "1") {
        let (bytes, summary) = make();
        std::fs::write(folder().join(format!("{name}.hash")), format!("{}\n", summary.hash)).unwrap();
        // Under a name of its own first: the tests of this binary run side by side.
        let fresh = folder().join(format!(".{name}.{:?}", std::thread::current().id()));
        std::fs::write(&fresh, bytes).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; UPDATE=1 writes it", path.display()))
}

#[test]
fn golden_images_are_read() {
    for (name, inputs) in all() {
        let bytes = read(name, &inputs);
        assert_eq!(&bytes[..16], b"\x89meio\r\n\x1a\x01\0\x3e\0\0\x10\0\0", "{name}: header");
        let hash = std::fs::read_to_string(folder().join(format!("{name}.hash"))).unwrap();
        let readers = [Reader::open(&bytes[..], MACHINE), Reader::from_file(file(&bytes), MACHINE)];
        for reader in readers {
            // The format alone: any CBOR will do for the metadata.
            let report = verify::<Value, Value>(reader.unwrap()).unwrap();
            assert_eq!(report.hash.to_string(), hash.trim(), "{name}");
            assert_eq!(report.bytes, bytes.len() as u64, "{name}");
            let kinds: Vec<u16> = report.sections.iter().map(|s| s.kind.number()).collect();
            assert_eq!(kinds, [1, 2, 3, 3, 3, 3, 3, 4], "{name}");
        }
        let mut reader = Reader::open(&bytes[..], MACHINE).unwrap();
        assert_eq!(bytes[16..32], ID);
        assert_eq!(memory(&blocks(&mut reader)), expected(&inputs), "{name}");
    }
}

/// What stands in the golden images with a parent, and what they hold with those that they build upon.
#[test]
fn golden_children_are_read() {
    for (name, _, layer) in children() {
        let bytes = read_child(name);
        let hash = std::fs::read_to_string(folder().join(format!("{name}.hash"))).unwrap();
        for reader in [Reader::open(&bytes[..], MACHINE), Reader::from_file(file(&bytes), MACHINE)] {
            let report = verify::<Value, Value>(reader.unwrap().beside(folder())).unwrap();
            assert_eq!(report.hash.to_string(), hash.trim(), "{name}");
            let kinds: Vec<u16> = report.sections.iter().map(|s| s.kind.number()).collect();
            assert!(kinds.starts_with(&[1, 5, 2, 3]) && kinds.ends_with(&[3, 4]), "{name}: {kinds:?}");
            assert!(report.pages.parent > 0 && report.pages.data > 0 && report.pages.zero > 0, "{name}: {:?}", report.pages);
        }
        assert_eq!(chain::whole(&folder().join(format!("{name}.meio"))).unwrap(), chain::held(&layer), "{name}");
        // Their checksums, computed by other means than the reader's.
        let mut again = bytes.clone();
        for span in forge::spans(&bytes) {
            again[span.header + 24..span.header + 48].fill(0);
            if span.kind == 3 {
                let runs = 24 + 24 * u32::from_le_bytes(bytes[span.payload + 12..span.payload + 16].try_into().unwrap()) as usize;
                let front = &mut again[span.payload..span.payload + runs];
                front[20..24].fill(0);
                let sum = xxhash_rust::xxh3::xxh3_64(front) as u32;
                front[20..24].copy_from_slice(&sum.to_le_bytes());
            }
        }
        again[56..64].fill(0);
        again[bytes.len() - 56..].fill(0);
        forge::fix(&mut again);
        assert!(again == bytes, "{name}");
    }
}

/// The saved types of today understand the metadata of then.
#[test]
fn golden_metadata_is_understood() {
    for (name, inputs) in all() {
        let report = verify_stream(&read(name, &inputs)).unwrap_or_else(|e| {
            panic!("{name}: {e}\nThe saved types have changed. Before the first release: remove fixtures/images/v1-*, run with UPDATE=1.")
        });
        assert_eq!(report.manifest, manifest(), "{name}");
        assert_eq!(report.tree, tree(), "{name}");
    }
}

/// The writer of today makes the same bytes, given the same metadata. Not for zstd, whose output may change.
#[test]
fn the_raw_golden_image_would_be_written_again() {
    let (name, inputs) = &all()[0];
    let golden = read(name, inputs);
    let spans = forge::spans(&golden);
    let mut writer = Writer::new(Vec::new(), Options { machine: MACHINE, id: ID }).unwrap();
    for (kind, span) in [SectionKind::Manifest, SectionKind::Tree].into_iter().zip(&spans) {
        writer.raw_section(kind, SECTION_VERSION, MANDATORY, &golden[span.payload..span.end]).unwrap();
    }
    let mut writer = writer.after_metadata();
    let dedup = Dedup::new(&ID);
    for (n, input) in inputs.iter().enumerate() {
        let pages = Pages { ranges: &input.ranges, data: input.pages.concat(), elide_zero: input.elide_zero };
        writer.append(&encode(n as u32, input.owner, pages, input.codec, Some(&dedup))).unwrap();
    }
    let (bytes, _) = writer.finish().unwrap();
    assert!(bytes == golden, "the writer's bytes have changed");
}

/// The checksums of the golden images, computed by other means than the reader's, are those that stand in them.
#[test]
fn golden_images_follow_the_byte_tables() {
    for (name, inputs) in all() {
        let bytes = read(name, &inputs);
        let mut again = bytes.clone();
        for span in forge::spans(&bytes) {
            again[span.header + 24..span.header + 48].fill(0);
        }
        again[56..64].fill(0);
        let end = bytes.len();
        again[end - 56..].fill(0);
        forge::fix(&mut again);
        assert!(again == bytes, "{name}");
    }
}
