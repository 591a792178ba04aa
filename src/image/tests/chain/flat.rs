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
