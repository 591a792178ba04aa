//! Images that are cut off, damaged, hostile, or made for something else.

use super::forge::{self, Span, fix, insert, replace, spans};
use super::sample::*;
use super::{verify_file, verify_stream};
use crate::error::Kind;
use crate::image::format::MAX_METADATA;

fn sample() -> Vec<u8> {
    image(&inputs()).0
}

/// The error that stream and file give alike.
fn error(bytes: &[u8]) -> String {
    let stream = verify_stream(bytes).err().unwrap_or_else(|| panic!("a damaged image was accepted"));
    let file = verify_file(bytes).expect_err("a damaged image was accepted from a file");
    assert_eq!((stream.kind, &stream.message), (file.kind, &file.message));
    assert_eq!(stream.kind, Kind::Image, "{}", stream.message);
    stream.message
}

fn says(bytes: &[u8], what: &str) {
    let message = error(bytes);
    assert!(message.contains(what), "{message:?} does not say {what:?}");
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

/// A changed and mended copy of the sample.
fn mended(change: impl FnOnce(&mut Vec<u8>, &[Span])) -> Vec<u8> {
    let mut bytes = sample();
    let spans = spans(&bytes);
    change(&mut bytes, &spans);
    fix(&mut bytes);
    bytes
}

#[test]
fn cut_off_anywhere() {
    let bytes = sample();
    let mut cuts: Vec<usize> = (0..bytes.len()).step_by(173).chain(0..130).chain(bytes.len() - 110..bytes.len()).collect();
    for Span { header, payload, end, .. } in spans(&bytes) {
        cuts.extend([header, header + 1, header + 24, header + 47, header + 48, payload, (payload + end) / 2, end - 1]);
    }
    for cut in cuts {
        says(&bytes[..cut], &format!("image cut off at byte {cut} (in "));
    }
    let third = spans(&bytes)[2];
    says(&bytes[..third.end - 1], "(in PAGES section 2)");
    says(&bytes[..third.end + 3], "(in header of section 3)");
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut bytes = sample();
    let mut places: Vec<usize> = (0..bytes.len()).step_by(149).chain(0..64).collect();
    for Span { header, payload, end, .. } in spans(&bytes) {
        places.extend(header..header + 48);
        places.extend([header + 48, payload, payload + 8, payload + 20, (payload + end) / 2, end - 1]);
    }
    places.extend(bytes.len() - 56..bytes.len());
    for place in places {
        for bit in [0, 7] {
            bytes[place] ^= 1 << bit;
            let result = verify_stream(&bytes);
            assert!(result.is_err_and(|e| e.kind == Kind::Image), "bit {bit} of byte {place}");
            bytes[place] ^= 1 << bit;
        }
    }
    assert!(verify_stream(&bytes).is_ok());
}

#[test]
fn made_for_something_else() {
    says(b"#!/bin/sh\necho this is a shell script and no image at all, long enough\n", "not a meio image");
    says(&mended(|b, _| put(b, 8, &2u16.to_le_bytes())), "format version 2, this meio reads 1");
    says(&mended(|b, _| put(b, 10, &183u16.to_le_bytes())), "architecture 183");
    says(&mended(|b, _| put(b, 12, &65536u32.to_le_bytes())), "pages of 65536 bytes");
    says(&mended(|b, _| b[32] = 1), "flags that this meio does not know");
    says(&mended(|b, _| b[55] = 1), "flags that this meio does not know");
}

#[test]
fn unknown_sections() {
    let image = sample();
    // With its header a multiple of a page: the raw pages behind it stay at a page border.
    let note = vec![5; 25 * PAGE - 48];
    for before in 0..8 {
        let optional = insert(&image, before, 77, 0, &note);
        assert_eq!(verify_stream(&optional).unwrap().sections[before].kind.number(), 77);
        assert_eq!(verify_file(&optional).unwrap().sections.len(), 9);
        says(&insert(&image, before, 77, 1, b"x"), &format!("unknown (kind 77) section {before}"));
        says(&insert(&image, before, 77, 2, b"x"), "unknown flags 0x2");
        // What is skipped is checked all the same.
        let mut flipped = optional.clone();
        flipped[spans(&optional)[before].end - 1] ^= 1;
        says(&flipped, "wrong checksum of its payload");
    }
    // A known kind in a version to come.
    says(&mended(|b, s| b[s[1].header + 6] = 2), "TREE section 1 at byte");
    says(&mended(|b, s| b[s[1].header + 6] = 2), "version 2, is mandatory");
}

#[test]
fn sections_out_of_order() {
    let image = sample();
    let spans = spans(&image);
    let part = |n: usize| &image[spans[n].header..spans[n].end];
    let build = |order: &[usize]| {
        let mut out = image[..64].to_vec();
        order.iter().for_each(|&n| out.extend(part(n)));
        fix(&mut out);
        out
    };
    assert!(verify_stream(&build(&[0, 1, 2, 3, 4, 5, 6, 7])).is_ok());
    says(&build(&[1, 0, 2, 7]), "the MANIFEST section belongs here");
    says(&build(&[0, 2, 1, 7]), "the TREE section belongs here");
    says(&build(&[0, 7]), "the TREE section belongs here");
    says(&build(&[0, 1, 0, 7]), "a second MANIFEST section");
    says(&build(&[0, 1, 1, 7]), "a second TREE section");
    says(&build(&[0, 1, 3, 7]), "block 1 stands where block 0 belongs");
    says(&build(&[0, 1, 2, 2, 7]), "block 0 stands where block 1 belongs");
    says(&build(&[0, 1, 2]), "cut off");
    says(&build(&[0, 1, 7, 7]), "followed by other bytes");
    // Without mending: the section's number, then the trailer, tell.
    let swapped = [&image[..64], part(0), part(2), part(1), &image[spans[3].header..]].concat();
    says(&swapped, "section 2 stands where 1 belongs");
}

#[test]
fn bytes_after_the_end() {
    let mut bytes = sample();
    let end = bytes.len();
    bytes.push(0);
    says(&bytes, &format!("followed by other bytes, from byte {end} on"));
}

#[test]
fn absurd_lengths() {
    for (section, limit) in [(0, MAX_METADATA), (1, MAX_METADATA), (2, 2 << 20), (7, 56)] {
        for length in [limit + 1, 1 << 40, u64::MAX] {
            let bytes = mended(|b, s| put(b, s[section].header + 16, &length.to_le_bytes()));
            says(&bytes, &format!("claims {length} bytes, at most {limit}"));
        }
    }
    // As much as is allowed, but not there.
    says(&mended(|b, s| put(b, s[1].header + 16, &MAX_METADATA.to_le_bytes())), "image cut off at byte");
    says(&mended(|b, s| put(b, s[2].header + 16, &(2u64 << 20).to_le_bytes())), "image cut off at byte");
    says(&mended(|b, s| put(b, s[2].header + 12, &4096u32.to_le_bytes())), "padding of 4096 bytes");
    let huge = |length: u64| {
        let mut bytes = insert(&sample(), 2, 77, 0, b"x");
        let at = spans(&bytes)[2].header;
        put(&mut bytes, at + 16, &length.to_le_bytes());
        forge::fix_section_header(&mut bytes, at);
        bytes
    };
    says(&huge(u64::MAX), "claims 18446744073709551615 bytes");
    says(&huge(1 << 60), "image cut off at byte");
}

#[test]
fn wrong_trailers() {
    let image = sample();
    let end = image.len() - 56;
    for at in [end, end + 8, end + 16, end + 24, end + 55] {
        let mut bytes = image.clone();
        bytes[at] ^= 1;
        let payload = bytes[end..].to_vec();
        let header = end - 48;
        put(&mut bytes, header + 32, &xxhash_rust::xxh3::xxh3_64(&payload).to_le_bytes());
        forge::fix_section_header(&mut bytes, header);
        says(&bytes, "END section 7): it does not belong to what stands before it");
    }
    says(&replace(&image, 7, &[0; 55]), "its length is wrong");
}

#[test]
fn metadata_that_is_no_tree() {
    let image = sample();
    let tree = &image[spans(&image)[1].payload..spans(&image)[1].end];
    says(&replace(&image, 1, &tree[..tree.len() - 1]), "its CBOR ends too early");
    says(&replace(&image, 1, &[tree, b"\0"].concat()), "1 bytes follow its CBOR");
    says(&replace(&image, 1, &[0x1c]), "its CBOR is wrong");
    says(&replace(&image, 1, &[]), "its CBOR ends too early");
    // {"x": 0}: a field that the types do not have.
    says(&replace(&image, 1, &[0xa1, 0x61, b'x', 0]), "unknown field `x`");
    // A list that claims 2^60 elements, and one within another, deeper than any tree.
    says(&replace(&image, 1, &[b"\xa1\x69processes\x9b\x10".as_slice(), &[0; 7]].concat()), "its CBOR ends too early");
    says(&replace(&image, 1, &vec![0x81; 1 << 20]), "TREE section 1");
}

/// A payload of a PAGES section, written by hand.
fn payload(block: u32, codec: u16, data_pages: u32, runs: &[(u64, u32, u32, u32, u32)], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0];
    out.extend(codec.to_le_bytes());
    for word in [400, block, runs.len() as u32, data_pages, 0] {
        out.extend(u32::to_le_bytes(word));
    }
    for &(address, pages, content, block, page) in runs {
        out.extend(address.to_le_bytes());
        for word in [pages, content, block, page] {
            out.extend(u32::to_le_bytes(word));
        }
    }
    out.extend(data);
    out
}

/// The sample with another payload in its section 4, which is the empty block 2; the blocks behind it go.
/// The data behind `runs` runs is put at a page border.
fn with_block(payload: &[u8], runs: usize) -> Vec<u8> {
    let image = sample();
    let (span, end) = (spans(&image)[4], spans(&image)[7]);
    let start = span.header + 48 + 24 + 24 * runs;
    let padding = start.next_multiple_of(PAGE) - start;
    let mut header = image[span.header..span.header + 48].to_vec();
    put(&mut header, 12, &(padding as u32).to_le_bytes());
    put(&mut header, 16, &(payload.len() as u64).to_le_bytes());
    let mut bytes = [&image[..span.header], &header, &vec![0; padding], payload, &image[end.header..]].concat();
    fix(&mut bytes);
    bytes
}

#[test]
fn runs_that_lie() {
    let one = |run| with_block(&payload(2, 0, 0, &[run], &[]), 1);
    let top = u64::MAX - 4095;
    assert!(verify_stream(&one((0x1000, 65536, 1, 0, 0))).is_ok());
    assert!(verify_stream(&one((0x1000, 3, 2, 0, 0))).is_ok());
    says(&one((0x1001, 1, 1, 0, 0)), "run 0: address 0x1001 is not at a page border");
    says(&one((0x1000, 0, 1, 0, 0)), "run 0: 0 pages");
    says(&one((top, 1, 1, 0, 0)), "run 0: 1 pages at 0xfffffffffffff000");
    says(&one((0x1000, u32::MAX, 1, 0, 0)), "too many for one block");
    says(&one((0x1000, 65537, 1, 0, 0)), "too many for one block");
    says(&one((0x1000, 1, 3, 0, 0)), "run 0: is as in the parent, of which the image has none");
    says(&one((0x1000, 1, 6, 0, 0)), "unknown content 6");
    says(&one((0x1000, 1, 5, 0, 0)), "is as in the parent");
    says(&one((0x1000, 1, 1, 1, 0)), "names a block without being a copy");
    says(&one((0x1000, 1, 2, 2, 0)), "copies block 2, page 0");
    says(&one((0x1000, 1, 2, 3, 0)), "copies block 3, page 0");
    says(&one((0x1000, 1, 2, u32::MAX, 0)), "copies block 4294967295");
    says(&one((0x1000, 1, 2, 0, 256)), "copies block 0, page 256");
    says(&one((0x1000, 2, 2, 0, u32::MAX)), "copies block 0, page 4294967295");
    // Within the limits, but block 0 has three data pages only.
    says(&one((0x1000, 4, 2, 0, 0)), "4 pages are copies of block 0, page 0, which is not there");
    says(&one((0x1000, 1, 0, 0, 0)), "its data runs have 1 pages, its data 0");
}

#[test]
fn data_that_lies() {
    let page = vec![1; PAGE];
    let runs = [(0x1000, 1, 0, 0, 0), (0x3000, 1, 2, 2, 0)];
    let two = |codec, claimed, data: &[u8]| with_block(&payload(2, codec, claimed, &runs, data), 2);
    assert!(verify_stream(&two(0, 1, &page)).is_ok());
    assert!(verify_stream(&two(1, 1, &zstd::bulk::compress(&page, 1).unwrap())).is_ok());
    says(&two(0, 1, &page[1..]), "its data has 4095 bytes, its runs 4096");
    says(&two(0, 2, &[page.clone(), page.clone()].concat()), "its data runs have 1 pages, its data 2");
    says(&two(0, 257, &page), "claims 257 data pages");
    says(&two(2, 1, &page), "unknown codec 2");
    says(&two(1, 1, &page), "zstd: ");
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    says(&two(1, 1, &bomb), "zstd: ");
    let short = zstd::bulk::compress(&page[..100], 1).unwrap();
    says(&two(1, 1, &short), "its data has 100 bytes, its runs 4096");
}

#[test]
fn block_headers_that_lie() {
    let changed = |at: usize, what: &[u8]| {
        let mut payload = payload(2, 0, 0, &[], &[]);
        put(&mut payload, at, what);
        with_block(&payload, 0)
    };
    assert!(verify_stream(&changed(0, &[0])).is_ok());
    says(&changed(0, &[2]), "unknown kind of owner 2");
    says(&changed(8, &[1]), "block 1 stands where block 2 belongs");
    says(&changed(20, &[1]), "reserved bytes");
    says(&changed(12, &16384u32.to_le_bytes()), "too few for its runs");
    says(&changed(12, &16385u32.to_le_bytes()), "claims 16385 runs");
    says(&with_block(&[0; 23], 0), "23 bytes are too few for its runs");
}

/// Raw pages that do not stand at a page border could not be mapped.
#[test]
fn raw_pages_off_the_border() {
    let bytes = mended(|b, s| {
        b.insert(s[2].header + 48, 0);
        let padding = (s[2].payload - s[2].header - 48 + 1) as u32;
        put(b, s[2].header + 12, &padding.to_le_bytes());
    });
    says(&bytes, "its raw pages are not at a page border");
}
