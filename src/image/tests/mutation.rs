//! 100,000 changed images: each is read or refused in words, none panics, none takes much memory.

use super::forge::{self, Span, spans};
use super::sample::Random;
use super::{chain, golden, verify_file, verify_stream};
use crate::error::{Kind, Result};
use crate::sys::counting_alloc::peak_of;
use std::collections::BTreeSet;

const CASES: u64 = 100_000;
/// Every so many cases the image also goes through a file.
const FILE_EVERY: u64 = 101;
/// What reading may hold at one time, beyond [`TIMES`] the bytes of the image. A block may claim its 2 MiB and
/// the 1 MiB that it decompresses to, a list in the metadata 1 MiB for each level of lists.
const BOUND: usize = 4 << 20;
/// Decoded values against their CBOR.
const TIMES: usize = 32;

/// One golden image and where its parts are.
struct Base {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// It has a parent.
    child: bool,
}

impl Base {
    fn of(bytes: Vec<u8>) -> Base {
        let spans = spans(&bytes);
        Base { child: spans.iter().any(|span| span.kind == 5), spans, bytes }
    }
}

/// A place in the image, more often where structure is than where pages are.
fn place(base: &Base, bytes: &[u8], random: &mut Random) -> usize {
    let Span { header, payload, end, kind } = base.spans[random.below(base.spans.len())];
    let at = match random.below(8) {
        0 => random.below(64),
        1..=3 => header + random.below(48),
        4 if kind == 3 => payload + random.below((end - payload).min(256)),
        4..=6 => payload + random.below(end - payload),
        _ => random.below(bytes.len()),
    };
    at.min(bytes.len() - 1)
}

/// Numbers that sit at the borders of something.
fn number(random: &mut Random) -> u64 {
    let borders: [u64; 13] = [0, 2, 23, 48, 56, 256, 4096, 16384, 65536, 1 << 20, 2 << 20, 256 << 20, 1 << 63];
    match random.below(4) {
        0 => random.next() >> random.below(64),
        1 => u64::MAX >> random.below(64),
        _ => borders[random.below(borders.len())].wrapping_add(random.below(3) as u64).wrapping_sub(1),
    }
}

/// One change.
fn mutate(base: &Base, bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let at = place(base, bytes, random);
    let rest = bytes.len() - at;
    match random.below(10) {
        0..=3 => bytes[at] ^= 1 << random.below(8),
        4 => bytes[at] = random.next() as u8,
        5 => {
            // A number in a section header or a block header, at its own place.
            let span = base.spans[random.below(base.spans.len())];
            let fields = [4, 6, 8, 12, 16, 24, 28].map(|n| span.header + n);
            let block = [0, 2, 4, 8, 12, 16, 20, 24, 32, 36, 40, 44].map(|n| span.payload + n);
            let at = if random.below(2) == 0 { fields[random.below(7)] } else { block[random.below(12)] };
            let width = [2, 4, 8][random.below(3)];
            if let Some(field) = bytes.get_mut(at..at + width) {
                field.copy_from_slice(&number(random).to_le_bytes()[..width]);
            }
        }
        6 => bytes.truncate(at),
        7 => {
            let n = rest.min(1 + random.below(64));
            bytes.drain(at..at + n);
        }
        8 => {
            // A part twice: a few bytes, or a whole section.
            let span = base.spans[random.below(base.spans.len())];
            let (from, to) = if random.below(2) == 0 { (span.header, span.end) } else { (at, at + rest.min(64)) };
            if let Some(part) = bytes.get(from..to).map(<[u8]>::to_vec) {
                let insert = if from == span.header { span.end.min(bytes.len()) } else { at };
                bytes.splice(insert..insert, part);
            }
        }
        _ => {
            let n = rest.min(1 + random.below(16));
            (0..n).for_each(|k| bytes[at + k] = random.next() as u8);
        }
    }
}

/// Makes the payload length of the section around a change fit again, now and then.
fn stretch(base: &Base, bytes: &mut [u8], random: &mut Random) {
    let change = bytes.len() as i64 - base.bytes.len() as i64;
    let span = base.spans[random.below(base.spans.len())];
    if change != 0 && bytes.len() >= span.header + 48 {
        let length = ((span.end - span.payload) as i64 + change) as u64;
        bytes[span.header + 16..span.header + 24].copy_from_slice(&length.to_le_bytes());
    }
}

/// Names the case that was being tried when a test fails.
struct Trying(u64);

impl Drop for Trying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("mutation case {}", self.0);
        }
    }
}

/// What a reader said, without the numbers in it.
fn shape<T>(result: &Result<T>) -> String {
    match result {
        Ok(_) => "read".into(),
        Err(e) => e.message.chars().filter(|c| !c.is_ascii_digit()).collect(),
    }
}

fn try_case(bases: &[Base], case: u64) -> String {
    let _trying = Trying(case);
    let mut random = Random(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    random.next();
    let base = &bases[random.below(bases.len())];
    let mut bytes = base.bytes.clone();
    for _ in 0..1 + random.below(3) {
        mutate(base, &mut bytes, &mut random);
    }
    if random.below(2) == 0 {
        if random.below(2) == 0 {
            stretch(base, &mut bytes, &mut random);
        }
        if base.child && random.below(2) == 0 {
            forge::fix_fronts(&mut bytes);
        }
        forge::fix(&mut bytes);
    }
    let (result, peak) = peak_of(|| verify_stream(&bytes));
    assert!(peak <= BOUND + TIMES * bytes.len(), "{peak} bytes were allocated");
    if let Err(e) = &result {
        assert_eq!(e.kind, Kind::Image, "{}", e.message);
    }
    if case.is_multiple_of(FILE_EVERY) {
        let (file, peak) = peak_of(|| verify_file(&bytes));
        assert!(peak <= BOUND + TIMES * bytes.len(), "{peak} bytes were allocated");
        assert_eq!(file.is_ok(), result.is_ok(), "{} / {}", shape(&file), shape(&result));
        assert!(file.is_ok_and(|r| r.bytes == bytes.len() as u64) || result.is_err());
    }
    shape(&result)
}

#[test]
fn changed_images_are_read_or_refused() {
    let bases: Vec<Base> = golden::all()
        .into_iter()
        .map(|(name, inputs)| golden::read(name, &inputs))
        .chain(golden::children().iter().map(|(name, ..)| golden::read_child(name)))
        .map(Base::of)
        .collect();
    let half = |odd| (0..CASES / 2).map(|n| try_case(&bases, 2 * n + odd)).collect::<BTreeSet<_>>();
    let half = &half;
    let halves: Vec<BTreeSet<String>> = std::thread::scope(|scope| {
        let threads = [0, 1].map(|odd| scope.spawn(move || half(odd)));
        threads.into_iter().map(|half| half.join().expect("a case failed, see above")).collect()
    });
    // The changes reach deep: into many different refusals, and some images stay readable.
    let shapes: BTreeSet<&String> = halves.iter().flatten().collect();
    assert!(shapes.contains(&"read".to_string()));
    for deep in [
        "zstd: ",
        "run :",
        "copies of block",
        "unknown field",
        "its CBOR",
        "is mandatory",
        "belongs here",
        "cut off",
        "as in a parent",
        "checksum of its runs",
    ] {
        assert!(shapes.iter().any(|s| s.contains(deep)), "no case reached {deep:?}");
    }
}

/// An image whose parents have been changed holds what it did, or is refused.
#[test]
fn changed_parents_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let mixed = golden::all().into_iter().nth(2).unwrap();
    let images = [(mixed.0, golden::read(mixed.0, &mixed.1)), ("v1-child", golden::read_child("v1-child"))];
    let path = |name: &str| folder.path().join(format!("{name}.meio"));
    let youngest = path("v1-grandchild");
    std::fs::write(&youngest, golden::read_child("v1-grandchild")).unwrap();
    images.iter().for_each(|(name, bytes)| std::fs::write(path(name), bytes).unwrap());
    let held = chain::whole(&youngest).unwrap();
    let mut shapes = BTreeSet::new();
    for case in 0..4000 {
        let _trying = Trying(case);
        let mut random = Random(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        let (name, good) = &images[random.below(2)];
        let base = Base::of(good.clone());
        let mut bytes = good.clone();
        mutate(&base, &mut bytes, &mut random);
        if random.below(3) == 0 {
            forge::fix(&mut bytes);
        }
        std::fs::write(path(name), &bytes).unwrap();
        let (result, peak) = peak_of(|| chain::whole(&youngest));
        assert!(peak <= 2 * BOUND, "{peak} bytes were allocated");
        match &result {
            Ok(memory) => assert!(*memory == held, "other pages"),
            Err(e) => assert_eq!(e.kind, Kind::Image, "{}", e.message),
        }
        shapes.insert(shape(&result));
        std::fs::write(path(name), good).unwrap();
    }
    for deep in ["read", "has changed since", "is another image", "checksum of its runs", "checksum of its payload", "cut off"] {
        assert!(shapes.iter().any(|s| s.contains(deep)), "no case reached {deep:?}");
    }
}
