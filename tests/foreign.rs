//! Programs whose vDSO is another kernel's. Here the image only says so: then meio must put this kernel's beside the old
//! one, and lead the functions of the old one to it. `make kernels` does it with other kernels indeed.

use crate::lab::{Lab, Running};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Lengths of the headers of an image and of a section (`src/image/format.rs`).
const HEADER: usize = 64;
const SECTION: usize = 48;
const TREE: u16 = 2;
const END: u16 = 4;

fn number(bytes: &[u8], at: usize, length: usize) -> usize {
    bytes[at..at + length].iter().rev().fold(0, |n, &b| n << 8 | usize::from(b))
}

/// Lets the processes of an image have a vDSO with another content than this kernel's.
fn as_of_another_kernel(image: &Path) {
    let mut bytes = std::fs::read(image).expect("image");
    let mut hash = blake3::Hasher::new();
    hash.update(&bytes[..HEADER]);
    let (mut at, mut changed) = (HEADER, 0);
    loop {
        let start = at + SECTION + number(&bytes, at + 12, 4);
        let end = start + number(&bytes, at + 16, 8);
        let kind = number(&bytes, at + 4, 2) as u16;
        if kind == TREE {
            // CBOR: the key, then an unsigned number of eight bytes.
            let key = b"\x69vdso_hash\x1b";
            let places: Vec<usize> = (start..end - key.len()).filter(|&i| bytes[i..].starts_with(key)).map(|i| i + key.len()).collect();
            changed = places.len();
            places.into_iter().for_each(|i| bytes[i] ^= 0x80);
        }
        if kind == END {
            bytes[start + 24..end].copy_from_slice(hash.finalize().as_bytes());
        }
        if kind == TREE || kind == END {
            let sum = xxh3_64(&bytes[start..end]).to_le_bytes();
            bytes[at + 32..at + 40].copy_from_slice(&sum);
            let sum = xxh3_64(&bytes[at..at + 40]).to_le_bytes();
            bytes[at + 40..at + 48].copy_from_slice(&sum);
        }
        if kind == END {
            break;
        }
        hash.update(&bytes[at..at + SECTION]);
        at = end;
    }
    assert!(changed > 0, "the image names no vDSO");
    std::fs::write(image, bytes).expect("image");
}

/// There, back, and there again: each time under another kernel.
fn travels(name: &str, arguments: &[&str], times: usize) {
    let mut lab = Lab::new(name);
    let mut running: Running = lab.fixture(name, arguments);
    for _ in 0..times {
        let image = lab.dump(&mut running, &["--kill"]);
        as_of_another_kernel(&image);
        lab.restore(&image, &mut running, &[]);
    }
    // What was redirected is dumped and restored like any other program.
    let image = lab.dump(&mut running, &["--kill"]);
    lab.restore(&image, &mut running, &[]);
    lab.go_and_verify(running, std::time::Duration::from_secs(60));
    lab.nothing_left();
}

crate::alone! {
    fn clocks_go_on() { travels("vdso", &["foreign"], 1) }
    fn clocks_go_on_after_many_kernels() { travels("vdso", &["foreign"], 4) }
    fn threads_in_the_old_code_go_on() { travels("clocks", &["8"], 2) }
    fn namespace_of_clocks() { travels("namespaces", &["T"], 1) }
    fn sleeps_go_on() { travels("sleeps", &[], 1) }
}
