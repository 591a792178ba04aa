//! What a series comes to.

use super::*;
use crate::image::flat::Flat;
use std::sync::atomic::AtomicBool;

/// Sixty images come to one, whatever becomes of owners and pages, and whenever bringing one in is given up.
#[test]
fn a_series_comes_to_one() {
    let folder = Folder::new();
    let mut model = Model { random: Random(11), pages: BTreeMap::new(), objects: [0, 1, 2] };
    let mut flat = Flat::new(tempfile::tempfile_in(folder.0.path()).unwrap(), |_, _, _| {});
    let mut last: Option<PathBuf> = None;
    let mut most = 0;
    for n in 0..60 {
        // Now and then a new series begins.
        if n == 40 {
            last = None;
        }
        let before = model.pages.clone();
        let table = if last.is_some() { model.renumber() } else { vec![(0, 0), (1, 1), (2, 2)] };
        if last.is_none() {
            model.objects = [0, 1, 2];
        }
        model.change();
        let mut layer = model.layer(&if last.is_some() { before } else { BTreeMap::new() }, table);
        (layer.index, layer.gather) = (n % 3 > 0, n % 4 > 0);
        let path = folder.put(&format!("{n}.meio"), &bytes(n, &layer, last.as_deref()).0);
        let open = || Reader::from_file(std::fs::File::open(&path).unwrap(), MACHINE).unwrap();
        // Given up at once: with the image all is there still.
        let (goes_on, stops) = (AtomicBool::new(true), AtomicBool::new(false));
        assert!(!flat.bring_in(&mut open(), &path, &stops).unwrap());
        let upon = Resolved::read(&mut open(), &path, flat.now().map(|now| &**now).filter(|_| last.is_some())).unwrap();
        assert!(read(&upon).unwrap() == model.memory(), "image {n}, upon what is there");
        assert!(flat.bring_in(&mut open(), &path, &goes_on).unwrap());
        // What has been written over already is in the image.
        if last.is_some() {
            assert!(read(&upon).unwrap() == model.memory(), "image {n}, upon what it is in");
        }
        let now = flat.now().unwrap();
        assert!(read(now).unwrap() == model.memory(), "image {n}");
        assert_eq!(now.images(), 1);
        most = most.max(model.pages.len());
        last = Some(path);
    }
    // Room is used again.
    assert!(flat.bytes() <= (most as u64 + 4096) * STEP, "{} bytes for {most} pages", flat.bytes());
    assert!(flat.taken() <= model.pages.len() as u64 * STEP, "{} bytes for {} pages", flat.taken(), model.pages.len());
    // One that builds upon another is refused, and changes nothing.
    let path = folder.put("stranger.meio", &bytes(3, &second(), Some(&folder.put("v1-base.meio", &bytes(0, &first(), None).0))).0);
    let mut reader = Reader::from_file(std::fs::File::open(&path).unwrap(), MACHINE).unwrap();
    assert!(flat.bring_in(&mut reader, &path, &AtomicBool::new(true)).is_err());
    assert!(read(flat.now().unwrap()).unwrap() == model.memory());
}

/// Images that say of pages only how they differ from those before them, whenever bringing one in is given up. Nobody else takes
/// them for pages.
#[test]
fn what_differs_is_made_whole() {
    const OWNER: Owner = Owner::Process(1);
    const PAGES: u64 = 400;
    let folder = Folder::new();
    let mut random = Random(5);
    let mut flat = Flat::new(tempfile::tempfile_in(folder.0.path()).unwrap(), |_, _, _| {});
    let mut model: Vec<Vec<u8>> = (0..PAGES).map(text).collect();
    let mut last: Option<PathBuf> = None;
    for n in 0..24u8 {
        let link = last.as_deref().map(|path| link_to(path, &[]));
        let dedup = Dedup::new(&id(n));
        let mut writer = Writer::new(Vec::new(), Options { machine: MACHINE, id: id(n) }).unwrap();
        writer.section(SectionKind::Manifest, &manifest()).unwrap();
        link.iter().for_each(|link| writer.parent(link).unwrap());
        writer.section(SectionKind::Tree, &tree()).unwrap();
        let (mut kept, mut deltas) = (Vec::new(), 0);
        for (block, first) in (0..PAGES).step_by(100).enumerate() {
            let (mut ranges, mut data, mut known) = (Vec::new(), Vec::new(), Vec::new());
            for page in first..first + 100 {
                let now = &mut model[page as usize];
                let told = match random.below(6) {
                    _ if link.is_none() => (Known::Nothing, now.clone()),
                    0 => {
                        let old = now.clone();
                        (0..1 + random.below(30)).for_each(|_| now[random.below(PAGE)] ^= 1 + random.below(255) as u8);
                        deltas += 1;
                        (Known::Delta, now.iter().zip(&old).map(|(new, old)| new ^ old).collect())
                    }
                    1 => {
                        *now = if random.below(2) == 0 { noise(random.next()) } else { text(random.next() % 50) };
                        (Known::Nothing, now.clone())
                    }
                    2 => (Known::Same, now.clone()),
                    _ => {
                        kept.push((page * STEP, 1));
                        continue;
                    }
                };
                ranges.push((page * STEP, 1));
                known.push(told.0);
                data.extend(told.1);
            }
            let pages = Pages { ranges: &ranges, data, elide_zero: false };
            let codec = if n % 2 == 0 { Codec::Raw } else { Codec::Zstd(1) };
            let encoded = match link {
                Some(_) => encode_known(block as u32, OWNER, pages, codec, Some(&dedup), &known),
                None => encode(block as u32, OWNER, pages, codec, Some(&dedup)),
            };
            writer.append(&encoded).unwrap();
        }
        if link.is_some() {
            writer.append(&encode_kept(writer.blocks(), OWNER, &kept)).unwrap();
        }
        if n % 3 > 0 {
            writer.index().unwrap();
        }
        let path = folder.put(&format!("{n}.meio"), &writer.finish().unwrap().0);
        let open = || Reader::from_file(std::fs::File::open(&path).unwrap(), MACHINE).unwrap();
        let mut known = open();
        let _: (Manifest, Tree) = (known.manifest().unwrap(), known.tree().unwrap());
        assert_eq!(known.has_deltas().unwrap(), deltas > 0, "image {n}");
        assert!(!flat.bring_in(&mut open(), &path, &AtomicBool::new(false)).unwrap());
        if deltas > 0 {
            let upon = Resolved::read(&mut open(), &path, flat.now().map(|now| &**now)).unwrap();
            assert!(read(&upon).unwrap_err().message.contains("how they differ"));
            assert!(Chain::whole(&path, MACHINE, &[]).err().unwrap().message.contains("how they differ"));
            let verified = verify::<Manifest, Tree>(open().beside(folder.0.path().to_owned()));
            assert!(verified.unwrap_err().message.contains("how they differ"));
        }
        assert!(flat.bring_in(&mut open(), &path, &AtomicBool::new(true)).unwrap());
        assert!(!flat.is_torn());
        let expected: Memory = model.iter().enumerate().map(|(at, page)| ((OWNER, at as u64 * STEP), page.clone())).collect();
        assert!(read(flat.now().unwrap()).unwrap() == expected, "image {n}");
        last = Some(path);
    }
    // A page that differs from one that is not there.
    let link = link_to(last.as_deref().unwrap(), &[]);
    let mut writer = Writer::new(Vec::new(), Options { machine: MACHINE, id: id(99) }).unwrap();
    writer.section(SectionKind::Manifest, &manifest()).unwrap();
    writer.parent(&link).unwrap();
    writer.section(SectionKind::Tree, &tree()).unwrap();
    let pages = Pages { ranges: &[(PAGES * STEP, 1)], data: text(1), elide_zero: false };
    writer.append(&encode_known(0, OWNER, pages, Codec::Raw, None, &[Known::Delta])).unwrap();
    let path = folder.put("stray.meio", &writer.finish().unwrap().0);
    let mut reader = Reader::from_file(std::fs::File::open(&path).unwrap(), MACHINE).unwrap();
    let refused = flat.bring_in(&mut reader, &path, &AtomicBool::new(true)).unwrap_err();
    assert!(refused.message.contains("does not have them"), "{refused}");
}
