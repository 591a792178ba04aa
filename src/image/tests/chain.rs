//! Images with a parent: what a chain of them holds is what was put in, and nothing else is believed.

mod flat;

use super::forge::{self, insert, replace, spans};
use super::sample::*;
use super::tree::{manifest, tree};
use super::verify_file;
use crate::error::{Error, Kind, Result};
use crate::image::encode::Counts;
use crate::image::resolved::{At, Place, Resolved, deliver};
use crate::image::{
    Block, Chain, Codec, Dedup, FromParent, Inherited, Known, Needed, Options, Owner, Pages, ParentLink, Piece, Reader, SectionKind,
    Summary, Writer, encode, encode_child, encode_kept, encode_known, encode_zero, folder_of, verify,
};
use crate::resource::{Manifest, Tree};
use ciborium::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const STEP: u64 = PAGE as u64;

/// One image as it goes in: pages to look at, and pages that are known to be as in the parent.
#[derive(Default)]
pub struct Layer {
    pub inputs: Vec<Input>,
    pub kept: Vec<(Owner, Vec<(u64, u32)>)>,
    pub objects: Vec<(u32, u32)>,
    pub index: bool,
    /// Blocks that hold nothing of their own are named together at the end.
    pub gather: bool,
}

fn id(n: u8) -> [u8; 16] {
    std::array::from_fn(|k| n.wrapping_mul(31) ^ k as u8)
}

/// A link to the image at `path`.
fn link_to(path: &Path, objects: &[(u32, u32)]) -> ParentLink {
    let mut reader = Reader::from_file(std::fs::File::open(path).unwrap(), MACHINE).unwrap();
    while reader.next_block().unwrap().is_some() {}
    let file = path.file_name().unwrap().as_encoded_bytes().to_vec();
    ParentLink { id: reader.id(), hash: reader.hash().unwrap(), file, objects: objects.to_vec() }
}

fn inherited(path: &Path) -> Inherited {
    Inherited::of_image(&Chain::whole(path, MACHINE, &[]).unwrap(), 1 << 20, &mut |_| Ok(())).unwrap()
}

/// The bytes of a layer upon the image at `parent`, or of one that stands alone.
pub fn bytes(number: u8, layer: &Layer, parent: Option<&Path>) -> (Vec<u8>, Summary) {
    let own = id(number);
    let link = parent.map(|path| link_to(path, &layer.objects));
    let mut before = parent.map(inherited);
    if let (Some(before), Some(link)) = (&mut before, &link) {
        before.adopt(link);
    }
    let dedup = Dedup::new(before.as_ref().map_or(&own, Inherited::id));
    let mut writer = Writer::new(Vec::new(), Options { machine: MACHINE, id: own }).unwrap();
    writer.section(SectionKind::Manifest, &manifest()).unwrap();
    if let Some(link) = &link {
        writer.parent(link).unwrap();
    }
    writer.section(SectionKind::Tree, &tree()).unwrap();
    let (mut numbers, mut kept) = (Vec::new(), Vec::new());
    for (n, input) in layer.inputs.iter().enumerate() {
        let pages = Pages { ranges: &input.ranges, data: input.pages.concat(), elide_zero: input.elide_zero };
        let (n, owner, codec) = (n as u32, input.owner, input.codec);
        let block = match &before {
            Some(before) => encode_child(n, owner, pages, codec, Some(&dedup), Some(before)),
            None => encode(n, owner, pages, codec, Some(&dedup)),
        };
        match block.kept().filter(|_| layer.gather) {
            Some(ranges) => {
                numbers.push(u32::MAX);
                kept.extend((!ranges.is_empty()).then_some((owner, ranges)));
            }
            None => {
                numbers.push(writer.blocks());
                writer.append(&block.renumber(writer.blocks(), |n| numbers[n as usize])).unwrap();
            }
        }
    }
    for (owner, ranges) in kept.iter().chain(&layer.kept) {
        writer.append(&encode_kept(writer.blocks(), *owner, ranges)).unwrap();
    }
    if layer.index {
        writer.index().unwrap();
    }
    writer.finish().unwrap()
}

/// What the image at `path` holds with all that it builds upon: the same whichever way it is found out.
pub fn whole(path: &Path) -> Result<Memory> {
    let down = Chain::whole(path, MACHINE, &[]).and_then(|chain| gather(&chain));
    match (down, resolve(path, None).and_then(|resolved| read(&resolved))) {
        (Ok(down), Ok(up)) => {
            assert!(down == up, "the two ways find something else");
            Ok(down)
        }
        (Err(down), Err(up)) => {
            assert_eq!(down.kind, up.kind, "{} {}", down.message, up.message);
            Err(down)
        }
        (Err(down), Ok(_)) => panic!("only from the youngest on there is: {}", down.message),
        (Ok(_), Err(up)) => panic!("only from the oldest on there is: {}", up.message),
    }
}

fn resolve(path: &Path, parent: Option<&Resolved>) -> Result<Resolved> {
    let mut reader = Reader::from_file(std::fs::File::open(path)?, MACHINE)?.beside(folder_of(path));
    let found = if parent.is_none() { Resolved::parent_of(&mut reader)? } else { None };
    Resolved::read(&mut reader, path, parent.or(found.as_ref()))
}

/// All pages that have a place.
fn read(resolved: &Resolved) -> Result<Memory> {
    let memory = Mutex::new(Memory::new());
    let put = |owner, address, page: &[u8]| {
        let before = memory.lock().unwrap().insert((owner, address), page.to_vec());
        assert!(before.is_none(), "a page came twice");
    };
    let mut wanted = BTreeMap::new();
    for (owner, places) in resolved.owners() {
        assert!(places.windows(2).all(|pair| pair[0].end() <= pair[1].address));
        for &Place { address, pages, at } in places {
            match at {
                Some(At { image, block, page, .. }) => {
                    let new = || (resolved.block(image, block).unwrap(), Vec::new());
                    wanted.entry((image, block)).or_insert_with(new).1.push(Piece { owner, address, pages, page });
                }
                None => (0..u64::from(pages)).for_each(|n| put(owner, address + n * STEP, &zero())),
            }
        }
    }
    let place = |piece: &Piece, bytes: &[u8]| {
        bytes.chunks_exact(PAGE).enumerate().for_each(|(n, page)| put(piece.owner, piece.address + n as u64 * STEP, page));
        Ok(())
    };
    let wanted: Vec<_> = wanted.into_values().collect();
    assert!(wanted.iter().all(|(source, _)| source.file().is_some()));
    deliver(&wanted, &place, &mut |_| Ok(()))?;
    Ok(memory.into_inner().unwrap())
}

fn gather(chain: &Chain) -> Result<Memory> {
    let memory = Mutex::new(Memory::new());
    let put = |owner, address, page: &[u8]| {
        let before = memory.lock().unwrap().insert((owner, address), page.to_vec());
        assert!(before.is_none(), "a page came twice");
    };
    let place = |needed: &Needed, block: &Block| {
        for piece in &needed.pieces {
            let bytes = needed.bytes(block, piece)?;
            bytes.chunks_exact(PAGE).enumerate().for_each(|(n, page)| put(piece.owner, piece.address + n as u64 * STEP, page));
        }
        Ok(())
    };
    chain.deliver(&place, &mut |_| Ok(()))?;
    for &(owner, address, pages) in &chain.zero {
        (0..u64::from(pages)).for_each(|n| put(owner, address + n * STEP, &zero()));
    }
    Ok(memory.into_inner().unwrap())
}

/// A folder with images.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }
}

/// A tree that changes: pages by owner and address, each a number that says what is in it; 0 for zeros.
struct Model {
    random: Random,
    pages: BTreeMap<(Owner, u64), u64>,
    /// How the next image calls the objects.
    objects: [u32; 3],
}

impl Model {
    fn owners(&self) -> [Owner; 5] {
        let [a, b, c] = self.objects.map(Owner::Object);
        [Owner::Process(400), Owner::Process(402), a, b, c]
    }

    fn content(number: u64) -> Vec<u8> {
        match number % 3 {
            _ if number == 0 => zero(),
            0 => noise(number),
            _ => text(number),
        }
    }

    /// Changes, maps, unmaps.
    fn change(&mut self) {
        for _ in 0..1 + self.random.below(6) {
            let owner = self.owners()[self.random.below(5)];
            let (start, pages) = (self.random.below(300) as u64, 1 + self.random.below(40) as u64);
            let how = self.random.below(5);
            for page in start..start + pages {
                let at = (owner, (page + 512 * (page % 3)) * STEP);
                match how {
                    0 => drop(self.pages.remove(&at)),
                    1 => drop(self.pages.insert(at, self.random.below(50) as u64)),
                    2 => drop(self.pages.insert(at, 0)),
                    _ => drop(self.pages.insert(at, self.random.next() >> 1)),
                }
            }
        }
    }

    /// The objects get other numbers: returns how they were called before.
    fn renumber(&mut self) -> Vec<(u32, u32)> {
        let before = self.objects;
        self.objects.rotate_left(self.random.below(3));
        let mut table: Vec<(u32, u32)> = self.objects.into_iter().zip(before).collect();
        table.sort_unstable();
        let new = |owner| match owner {
            Owner::Object(n) => Owner::Object(table.iter().find(|t| t.1 == n).unwrap().0),
            owner => owner,
        };
        self.pages = std::mem::take(&mut self.pages).into_iter().map(|((owner, at), page)| ((new(owner), at), page)).collect();
        table
    }

    /// The layer of now; `before` is what the parent holds: unchanged pages are partly only named.
    fn layer(&mut self, before: &BTreeMap<(Owner, u64), u64>, objects: Vec<(u32, u32)>) -> Layer {
        let mut layer = Layer { objects, ..Layer::default() };
        let there = |owner| match owner {
            Owner::Object(n) => Owner::Object(layer.objects.iter().find(|t| t.0 == n).unwrap().1),
            owner => owner,
        };
        for owner in self.owners() {
            let mut kept = Vec::new();
            let mut looked = Vec::new();
            for (&(_, at), &page) in self.pages.range((owner, 0)..=(owner, u64::MAX)) {
                let known = before.get(&(there(owner), at)) == Some(&page);
                if known && self.random.below(2) == 0 { kept.push((at, 1)) } else { looked.push((at, page)) }
            }
            for chunk in looked.chunks(64) {
                layer.inputs.push(Input {
                    owner,
                    ranges: chunk.iter().map(|&(at, _)| (at, 1)).collect(),
                    pages: chunk.iter().map(|&(_, page)| Model::content(page)).collect(),
                    elide_zero: false,
                    codec: if self.random.below(2) == 0 { Codec::Raw } else { Codec::Zstd(1) },
                });
            }
            if !kept.is_empty() {
                layer.kept.push((owner, kept));
            }
        }
        layer
    }

    fn memory(&self) -> Memory {
        self.pages.iter().map(|(&at, &page)| (at, Model::content(page))).collect()
    }
}

/// Forty images, each upon the one before.
#[test]
fn a_chain_holds_what_was_put_in() {
    {
        let seed = 3;
        let folder = Folder::new();
        let mut model = Model { random: Random(seed), pages: BTreeMap::new(), objects: [0, 1, 2] };
        let mut last: Option<PathBuf> = None;
        let mut resolved: Option<Resolved> = None;
        let mut stored = 0;
        for n in 0..40 {
            let before = model.pages.clone();
            let table = if last.is_some() { model.renumber() } else { vec![(0, 0), (1, 1), (2, 2)] };
            model.change();
            let mut layer = model.layer(&if last.is_some() { before } else { BTreeMap::new() }, table);
            (layer.index, layer.gather) = (n % 3 > 0, n % 4 > 0);
            let (bytes, summary) = bytes(n, &layer, last.as_deref());
            stored += summary.pages.data;
            let path = folder.put(&format!("{n}.meio"), &bytes);
            // One after the other, as they come.
            resolved = Some(resolve(&path, resolved.as_ref()).unwrap());
            assert!(read(resolved.as_ref().unwrap()).unwrap() == model.memory(), "image {n} of seed {seed}, upon what is known");
            if n % 7 == 0 || n == 39 {
                assert!(whole(&path).unwrap() == model.memory(), "image {n} of seed {seed}");
                let reader = Reader::from_file(std::fs::File::open(&path).unwrap(), MACHINE).unwrap();
                let report = verify::<Manifest, Tree>(reader.beside(folder_of(&path))).unwrap();
                assert_eq!(report.parents.len(), usize::from(n));
                assert_eq!(report.pages, summary_of(&summary));
            }
            last = Some(path);
        }
        assert!(stored < 40 * 300, "{stored} pages were stored");
    }
}

fn summary_of(summary: &Summary) -> Counts {
    Counts { elided: 0, ..summary.pages }
}

/// From a stream only the youngest image can be read; the others are found beside it.
#[test]
fn the_youngest_may_be_a_stream() {
    let folder = Folder::new();
    let base = folder.put("v1-base.meio", &bytes(0, &first(), None).0);
    let (child, _) = bytes(1, &second(), Some(&base));
    let path = folder.put("child.meio", &child);
    let mut reader = Reader::open(&child[..], MACHINE).unwrap().beside(folder.0.path().into());
    reader.tree::<Value>().unwrap();
    assert!(Chain::upon(&reader).unwrap().pages() == 0);
    let mut from_parent = FromParent::default();
    let mut own = Vec::new();
    while let Some(block) = reader.next_block().unwrap() {
        let block = block.decode().unwrap();
        from_parent.note(block.owner, &block.runs).unwrap();
        own.push(block);
    }
    let upon = gather(&Chain::find(&reader, from_parent).unwrap()).unwrap();
    let mut memory = memory_upon(&own, &|owner, at| upon[&(owner, at)].clone());
    assert_eq!(memory, whole(&path).unwrap());
    // A file says the same at once.
    let mut reader = Reader::from_file(std::fs::File::open(&path).unwrap(), MACHINE).unwrap().beside(folder.0.path().into());
    reader.tree::<Value>().unwrap();
    assert_eq!(gather(&Chain::upon(&reader).unwrap()).unwrap(), upon);
    memory.retain(|at, _| !upon.contains_key(at));
    assert!(!memory.is_empty() && !upon.is_empty());
}

/// The sample tree, and what it is a little later: a page changed, one gone, one new, one zero, the rest as before.
pub fn first() -> Layer {
    Layer { inputs: inputs(), ..Layer::default() }
}

pub fn second() -> Layer {
    let mut inputs = inputs();
    inputs[0].pages[2] = noise(77);
    inputs[0].pages[3] = zero();
    inputs[1].pages.swap(0, 1);
    inputs[3].ranges = vec![(0x7f00_0000_0000 - STEP, 6)];
    inputs[3].pages.rotate_right(1);
    inputs[4].pages[0] = noise(21);
    inputs.remove(2);
    Layer { inputs, objects: vec![(0, 0)], ..Layer::default() }
}

/// Again later: most is only named, by who knows that it has not changed.
pub fn third() -> Layer {
    let (process, object, heap) = (Owner::Process(400), Owner::Object(0), 0x7f00_0000_0000);
    let inputs = vec![
        Input { owner: process, ranges: vec![(heap, 2)], pages: vec![text(5), noise(2)], elide_zero: true, codec: Codec::Zstd(3) },
        Input {
            owner: object,
            ranges: vec![(STEP, 1), (3 * STEP, 1)],
            pages: vec![zero(), noise(2)],
            elide_zero: false,
            codec: Codec::Raw,
        },
    ];
    let kept =
        vec![(process, vec![(heap + 2 * STEP, 1), (heap + 8 * STEP, 1)]), (Owner::Process(402), vec![(heap, 5)]), (object, vec![(0, 1)])];
    Layer { inputs, kept, objects: vec![(0, 0)], ..Layer::default() }
}

/// What a layer upon [`second`] holds.
pub fn held(layer: &Layer) -> Memory {
    let mut memory = expected(&layer.inputs);
    let before = expected(&second().inputs);
    for (owner, ranges) in &layer.kept {
        for address in ranges.iter().flat_map(|&(start, n)| (0..u64::from(n)).map(move |k| start + k * STEP)) {
            memory.insert((*owner, address), before[&(*owner, address)].clone());
        }
    }
    memory
}

#[test]
fn what_is_not_named_is_not_inherited() {
    let folder = Folder::new();
    let base = folder.put("a", &bytes(0, &first(), None).0);
    let (bytes, summary) = bytes(1, &second(), Some(&base));
    assert!(summary.pages.parent > 0 && summary.pages.data > 0, "{summary:?}");
    let child = folder.put("b", &bytes);
    assert_eq!(whole(&child).unwrap(), expected(&second().inputs));
    assert_eq!(whole(&base).unwrap(), expected(&first().inputs));
}

/// What is known of another image than the parent is not taken for it; of one that stands alone nothing is asked.
#[test]
fn what_is_known_of_parents() {
    let folder = Folder::new();
    let base = folder.put("a", &bytes(0, &first(), None).0);
    let child = folder.put("b", &bytes(1, &second(), Some(&base)).0);
    let last = folder.put("c", &bytes(2, &Layer { index: true, ..third() }, Some(&child)).0);
    let known = resolve(&base, None).unwrap();
    let upon = resolve(&child, Some(&known)).unwrap();
    refused(resolve(&last, Some(&known)), "builds upon another one than is there for it: b");
    refused(resolve(&child, Some(&upon)), "builds upon another one");
    assert_eq!(read(&resolve(&base, Some(&upon)).unwrap()).unwrap(), expected(&first().inputs));
    // Where they were does not matter any more.
    for path in [&base, &child] {
        std::fs::remove_file(path).unwrap();
    }
    let resolved = resolve(&last, Some(&upon)).unwrap();
    drop((known, upon));
    assert_eq!(read(&resolved).unwrap(), held(&third()));
    refused(whole(&last), "is missing");
}

pub fn refused(result: Result<impl Sized>, what: &str) {
    let e: Error = result.err().unwrap_or_else(|| panic!("accepted; should say {what:?}"));
    assert_eq!(e.kind, Kind::Image, "{}", e.message);
    assert!(e.message.contains(what), "{:?} does not say {what:?}", e.message);
}

#[test]
fn parents_that_are_not_what_they_were() {
    let folder = Folder::new();
    let base = folder.put("base.meio", &bytes(0, &first(), None).0);
    let good = std::fs::read(&base).unwrap();
    let child = folder.put("child.meio", &bytes(1, &second(), Some(&base)).0);
    let last = folder.put("last.meio", &bytes(2, &second(), Some(&child)).0);
    for path in [&child, &last] {
        assert!(whole(path).is_ok());
        std::fs::remove_file(&base).unwrap();
        refused(whole(path), &format!("parent image {} is missing", base.display()));
        // Whatever is not an image: nothing waits for a pipe.
        nix::unistd::mkfifo(&base, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused(whole(path), "is missing");
        std::fs::remove_file(&base).unwrap();
        std::fs::write(&base, b"#!/bin/sh\n").unwrap();
        refused(whole(path), "base.meio: image cut off");
        std::fs::write(&base, bytes(9, &first(), None).0).unwrap();
        refused(whole(path), "base.meio is another image");
        std::fs::write(&base, &good[..good.len() - 1]).unwrap();
        refused(whole(path), "base.meio: image cut off");
        // Another content, with all checksums right.
        std::fs::write(&base, bytes(0, &second(), None).0).unwrap();
        refused(whole(path), "base.meio has changed since");
        // A byte of its pages.
        let at = spans(&good)[2].end - 100;
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        std::fs::write(&base, &flipped).unwrap();
        refused(whole(path), "wrong checksum");
        std::fs::write(&base, &good).unwrap();
    }
    // The one in the middle.
    std::fs::rename(&child, folder.path("elsewhere")).unwrap();
    refused(whole(&last), "child.meio is missing");
    assert!(Chain::whole(&last, MACHINE, &[(id(1), folder.path("elsewhere"))]).is_ok());
    // Where it was, when it is not beside its child.
    std::fs::create_dir(folder.path("sub")).unwrap();
    let moved = folder.put("sub/last.meio", &std::fs::read(&last).unwrap());
    std::fs::rename(folder.path("elsewhere"), &child).unwrap();
    refused(whole(&moved), "child.meio is missing");
    let mut link = link_to(&child, &[]);
    link.file = child.as_os_str().as_encoded_bytes().to_vec();
    let mut payload = Vec::new();
    ciborium::into_writer(&link, &mut payload).unwrap();
    folder.put("sub/last.meio", &replace(&std::fs::read(&last).unwrap(), 1, &payload));
    refused(whole(&moved), "pages of Object(0) are as in a parent that does not have them");
    link.objects = vec![(0, 0)];
    payload.clear();
    ciborium::into_writer(&link, &mut payload).unwrap();
    folder.put("sub/last.meio", &replace(&std::fs::read(&last).unwrap(), 1, &payload));
    assert_eq!(whole(&moved).unwrap(), expected(&second().inputs));
}

/// An image that is its own ancestor cannot be: its name would have to be in it.
#[test]
fn circles_end() {
    let folder = Folder::new();
    let base = folder.put("a", &bytes(0, &first(), None).0);
    let child = bytes(1, &second(), Some(&base)).0;
    let mut link = link_to(&base, &[(0, 0)]);
    link.id = id(1);
    link.file = b"a".to_vec();
    let mut payload = Vec::new();
    ciborium::into_writer(&link, &mut payload).unwrap();
    let own = folder.put("a", &replace(&child, 1, &payload));
    refused(whole(&own), "a has changed since");
}

/// A child, mended after a change to its first block's payload.
fn with_runs(folder: &Folder, child: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let span = spans(child)[3];
    let mut payload = child[span.payload..span.end].to_vec();
    change(&mut payload);
    let runs = 24 + 24 * u32::from_le_bytes(payload[12..16].try_into().unwrap()) as usize;
    payload[20..24].fill(0);
    let sum = xxhash_rust::xxh3::xxh3_64(&payload[..runs]) as u32;
    payload[20..24].copy_from_slice(&sum.to_le_bytes());
    folder.put("bad", &replace(child, 3, &payload))
}

#[test]
fn runs_that_lie_about_a_parent() {
    let folder = Folder::new();
    let base = folder.put("base", &bytes(0, &first(), None).0);
    let kept = Layer { kept: vec![(Owner::Process(400), vec![(0x7f00_0000_0000, 1), (0x7f00_0000_2000, 1)])], ..Layer::default() };
    let child = bytes(1, &kept, Some(&base)).0;
    assert_eq!(spans(&child).iter().map(|s| s.kind).collect::<Vec<_>>(), [1, 5, 2, 3, 4]);
    let put = |payload: &mut Vec<u8>, at: usize, word: u32| payload[at..at + 4].copy_from_slice(&word.to_le_bytes());
    assert_eq!(whole(&with_runs(&folder, &child, |_| {})).unwrap().len(), 2);
    // The page between them was zero, and not named.
    refused(whole(&with_runs(&folder, &child, |p| put(p, 24 + 8, 2))), "as in a parent that does not have them");
    refused(whole(&with_runs(&folder, &child, |p| put(p, 24 + 8, 3))), "is named twice");
    refused(whole(&with_runs(&folder, &child, |p| put(p, 48 + 8, 65536))), "too many for one block");
    refused(whole(&with_runs(&folder, &child, |p| put(p, 48 + 8, 65535))), "as in a parent that does not have them");
    refused(whole(&with_runs(&folder, &child, |p| put(p, 24 + 16, 1))), "names a block without being a copy");
    refused(whole(&with_runs(&folder, &child, |p| put(p, 4, 401))), "pages of Process(401) are as in a parent");
    refused(whole(&with_runs(&folder, &child, |p| (put(p, 0, 1), put(p, 4, 0)).0)), "pages of Object(0) are as in a parent");
    // The checksum of the runs alone, which is all that is read of a block that is not needed.
    let mut flipped = child.clone();
    let span = spans(&child)[3];
    flipped[span.payload + 24 + 8] ^= 2;
    let mut checksum = flipped.clone();
    forge::fix(&mut checksum);
    refused(whole(&folder.put("bad", &checksum)), "wrong checksum of its runs");
    refused(whole(&folder.put("bad", &flipped)), "wrong checksum of its runs");
}

#[test]
fn sections_about_a_parent() {
    let folder = Folder::new();
    let base = folder.put("base", &bytes(0, &first(), None).0);
    let child = bytes(1, &second(), Some(&base)).0;
    let link = child[spans(&child)[1].payload..spans(&child)[1].end].to_vec();
    let says = |bytes: &[u8], what: &str| refused(verify_file(bytes), what);
    // A flat image that says it has a parent: its blocks have no checksum of their own.
    let flat = std::fs::read(&base).unwrap();
    says(&insert(&flat, 1, 5, 1, &link), "wrong checksum of its runs");
    says(&insert(&flat, 0, 5, 1, &link), "the MANIFEST section belongs here");
    says(&insert(&flat, 2, 5, 1, &link), "a second PARENT section");
    says(&insert(&child, 2, 5, 1, &link), "the TREE section belongs here");
    says(&replace(&child, 1, &link[1..]), "PARENT section 1");
    says(&replace(&child, 1, &[link, vec![0]].concat()), "1 bytes follow its CBOR");
    let mut absurd = child.clone();
    let at = spans(&child)[1].header;
    absurd[at + 16..at + 24].copy_from_slice(&((4u64 << 20) + 1).to_le_bytes());
    forge::fix(&mut absurd);
    says(&absurd, "at most 4194304 are allowed");
}

#[test]
fn the_writer_keeps_families_apart() {
    let link = ParentLink { id: id(1), hash: [0; 32].into(), file: b"x".to_vec(), objects: vec![] };
    let flat = || encode_zero(0, Owner::Process(1), &[(0, 1)]);
    let kept = || encode_kept(0, Owner::Process(1), &[(0, 1)]);
    let mut writer = start(Vec::new());
    assert!(writer.parent(&link).is_err(), "behind the tree");
    assert!(writer.append(&kept()).is_err());
    writer.append(&flat()).unwrap();
    let mut writer = Writer::new(Vec::new(), Options { machine: MACHINE, id: ID }).unwrap();
    assert!(writer.parent(&link).is_err(), "before the manifest");
    writer.section(SectionKind::Manifest, &manifest()).unwrap();
    writer.parent(&link).unwrap();
    assert!(writer.parent(&link).is_err(), "twice");
    writer.section(SectionKind::Tree, &tree()).unwrap();
    assert!(writer.append(&flat()).is_err());
    writer.append(&kept()).unwrap();
    let (bytes, summary) = writer.finish().unwrap();
    assert_eq!(summary.pages.parent, 1);
    let mut reader = Reader::open(&bytes[..], MACHINE).unwrap();
    reader.tree::<Tree>().unwrap();
    assert_eq!(reader.parent(), Some(&link));
}
