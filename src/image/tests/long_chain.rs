//! A chain of more images than are looked at in one go.

use super::chain::{Folder, Layer, bytes, refused, whole};
use super::sample::*;
use crate::image::{Chain, Codec, Owner};

const STEP: u64 = PAGE as u64;

/// Everything is found, and what is wrong is said of the youngest that it is true of.
#[test]
fn a_long_chain_is_followed_to_its_end() {
    const LENGTH: u64 = 70;
    let (folder, owner) = (Folder::new(), Owner::Process(400));
    let name = |n: u64| format!("{n}.meio");
    let put = |n: u64| {
        let pages = if n == 0 { (0..LENGTH).map(|n| text(1000 + n)).collect() } else { vec![text(n)] };
        let ranges = vec![(n * STEP, pages.len() as u32)];
        let inputs = vec![Input { owner, ranges, pages, elide_zero: false, codec: Codec::Zstd(1) }];
        let around = [(0, n), ((n + 1) * STEP, LENGTH - 1 - n)].into_iter().filter(|&(_, pages)| n > 0 && pages > 0);
        let kept = vec![(owner, around.map(|(at, pages)| (at, pages as u32)).collect())];
        let layer = Layer { inputs, kept: if n > 0 { kept } else { vec![] }, index: n % 5 > 0, ..Layer::default() };
        let parent = n.checked_sub(1).map(|n| folder.path(&name(n)));
        folder.put(&name(n), &bytes(n as u8, &layer, parent.as_deref()).0)
    };
    // Of the block that stands first no more than one page is needed, and no more is decompressed.
    let last = (0..LENGTH).map(put).last().unwrap();
    let memory: Memory = (0..LENGTH).map(|n| ((owner, n * STEP), if n == 0 { text(1000) } else { text(n) })).collect();
    assert!(whole(&last).unwrap() == memory);
    let damage = |n: u64, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(folder.path(&name(n))).unwrap();
        change(&mut bytes);
        folder.put(&name(n), &bytes);
    };
    std::fs::remove_file(folder.path(&name(0))).unwrap();
    refused(Chain::whole(&last, MACHINE, &[]), "0.meio is missing");
    // In what is looked at last, and then in what is looked at first.
    for n in [3, 66] {
        damage(n, &|bytes| *bytes.iter_mut().rev().nth(70).unwrap() ^= 1);
        refused(Chain::whole(&last, MACHINE, &[]), &format!("{n}.meio: image damaged"));
    }
}
