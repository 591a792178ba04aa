//! Both ends, without a link between them.

use super::entry::Meta;
use super::wanted::Seen;
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Two folders that are to become the same.
struct Ends {
    folder: tempfile::TempDir,
    files: Files,
    applier: Applier,
    sets: u64,
}

impl Ends {
    fn new(prepare: impl FnOnce(&Path, &Path)) -> Ends {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (folder.path().join("here"), folder.path().join("there"));
        fs::create_dir(&here).unwrap();
        prepare(&here, &there);
        let of = |path: &Path| Folder { path: FilePath::from(path.to_str().unwrap()), storage: Storage::default(), bytes: 0 };
        let request = Request { folders: vec![of(&here)], ..Request::default() };
        let reply = Reply { states: Vec::new(), shared: vec![false] };
        let mut files = Files::new(&request, &reply, &Seen::default()).unwrap();
        files
            .learn(&mut |number, each| {
                assert_eq!(number, 0);
                list(&there, &|| true, &mut |some| some.into_iter().try_for_each(&mut *each))
            })
            .unwrap();
        Ends { applier: Applier::new(&[of(&there)], Arc::default()), folder, files, sets: 0 }
    }

    fn here(&self) -> PathBuf {
        self.folder.path().join("here")
    }

    fn there(&self) -> PathBuf {
        self.folder.path().join("there")
    }

    /// One round; how many changes and bytes it had.
    fn round(&mut self, last: bool) -> (u64, u64) {
        let mut pipe = tempfile::tempfile().unwrap();
        let round = self.files.round(pipe.try_clone().unwrap(), last).unwrap();
        pipe.seek(SeekFrom::Start(0)).unwrap();
        let mut head = [0; 8];
        pipe.read_exact(&mut head).unwrap();
        assert!(Applier::is_for(&head));
        self.applier.apply(&mut std::io::BufReader::new(pipe)).unwrap();
        self.sets += 1;
        (round.changes, round.bytes)
    }

    fn same(&self) {
        let (here, there) = (picture(&self.here()), picture(&self.there()));
        for (path, meta) in &here {
            assert_eq!(there.get(path), Some(meta), "{path:?}, set {}", self.sets);
        }
        assert_eq!(here.len(), there.len(), "{:?}", there.keys().filter(|k| !here.contains_key(*k)).collect::<Vec<_>>());
    }
}

/// Everything that can be seen of a folder: attributes, content, and which paths are one file.
fn picture(top: &Path) -> BTreeMap<String, (Meta, Vec<u8>, Vec<String>, u64)> {
    let mut walk = walk::Walk::new(top).unwrap();
    let (mut all, mut inodes) = (BTreeMap::new(), BTreeMap::<u64, Vec<String>>::new());
    while let Some(step) = walk.step().unwrap() {
        let walk::Step::Enter(path, meta) = step else { continue };
        let place = entry::join(top, &path);
        let content = match meta.file_type() {
            kind if kind.is_file() => fs::read(&place).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&place).unwrap().into_os_string().into_encoded_bytes(),
            _ => Vec::new(),
        };
        let mut own = Meta::of(&place, &meta).unwrap();
        own.atime = (0, 0); // looking changes it
        inodes.entry(meta.ino()).or_default().push(path.to_string());
        let holes = if meta.is_file() { meta.len().saturating_sub(meta.blocks() * 512) >> 16 } else { 0 };
        all.insert(path.to_string(), (own, content, vec![meta.ino().to_string()], holes));
    }
    for entry in all.values_mut() {
        let inode: u64 = entry.2[0].parse().unwrap();
        entry.2 = inodes[&inode].clone();
    }
    all
}

#[test]
fn a_folder_becomes_the_same() {
    let mut ends = Ends::new(|here, there| {
        fs::create_dir_all(there.join("old/deep")).unwrap();
        fs::write(there.join("old/deep/file"), "goes").unwrap();
        fs::write(there.join("same"), "same").unwrap();
        fs::write(there.join("differs"), "that").unwrap();
        symlink("elsewhere", there.join("folder")).unwrap();
        fs::create_dir(there.join("file")).unwrap();
        fs::write(there.join("file/inside"), "").unwrap();
        // What has another name outside keeps its content.
        fs::write(there.with_extension("outside"), "mine").unwrap();
        fs::hard_link(there.with_extension("outside"), there.join("linked")).unwrap();
        fs::write(here.join("same"), "same").unwrap();
        fs::write(here.join("differs"), "this").unwrap();
        fs::write(here.join("linked"), "yours").unwrap();
        fs::write(here.join("file"), "now a file").unwrap();
        fs::create_dir_all(here.join("folder/below")).unwrap();
        fs::write(here.join("folder/below/x"), vec![7; 300_000]).unwrap();
        fs::hard_link(here.join("folder/below/x"), here.join("a")).unwrap();
        symlink("differs", here.join("link")).unwrap();
        nix::unistd::mkfifo(&here.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
        let sparse = fs::File::create(here.join("sparse")).unwrap();
        sparse.set_len(10 << 20).unwrap();
        sparse.write_all_at(b"in the middle", 5 << 20).unwrap();
        fs::set_permissions(here.join("differs"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(here.join("folder"), fs::Permissions::from_mode(0o2710)).unwrap();
        crate::sys::xattr::set(&here.join("same"), b"user.note", b"value").unwrap();
    });
    ends.round(false);
    ends.same();
    assert_eq!(fs::read_to_string(ends.folder.path().join("there.outside")).unwrap(), "mine");
    std::thread::sleep(std::time::Duration::from_millis(60)); // times of files go in steps
    ends.round(false);
    assert_eq!(ends.round(false).0, 0, "nothing has changed");
    // Little changes are sent as little.
    let big = vec![1; 8 << 20];
    fs::write(ends.here().join("big"), &big).unwrap();
    ends.round(false);
    let file = fs::File::options().write(true).open(ends.here().join("big")).unwrap();
    file.write_all_at(b"here", 4 << 20).unwrap();
    let (_, bytes) = ends.round(false);
    assert!(bytes < 100 << 10, "{bytes} bytes were sent for four");
    ends.same();
    // Holes that come later, and what is longer or shorter.
    file.set_len(3 << 20).unwrap();
    file.set_len(6 << 20).unwrap();
    fs::File::options().append(true).open(ends.here().join("a")).unwrap().write_all(b"more").unwrap();
    fs::remove_file(ends.here().join("differs")).unwrap();
    fs::rename(ends.here().join("folder"), ends.here().join("renamed")).unwrap();
    ends.round(true);
    ends.same();
}

/// Whatever is done, in whatever order: after the last round both are the same.
#[test]
fn anything_that_is_done_is_done_there() {
    let mut random = 88172645463325252u64;
    let mut next = |most: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % most
    };
    let mut seed = vec![0u8; 1 << 20];
    seed.iter_mut().for_each(|b| *b = next(256) as u8);
    for _ in 0..6 {
        let mut mutate = |top: &Path| {
            let name = |n: u64| top.join(["a", "b", "c", "d/a", "d/b", "d/e/a", "d/e/c", "f"][n as usize]);
            let (one, other, kind) = (name(next(8)), name(next(8)), next(12));
            let _ = fs::create_dir_all(one.parent().unwrap());
            let (at, length) = (next(1 << 19) as usize, next(1 << 18) as usize);
            let _ = match kind {
                0 => walk::remove(&one),
                1 => fs::hard_link(&one, &other),
                2 => symlink("a", &one),
                3 => fs::create_dir(&one),
                4 => fs::rename(&one, &other),
                5 => fs::set_permissions(&one, fs::Permissions::from_mode(0o700 | next(64) as u32)),
                6 => fs::File::options().write(true).open(&one).and_then(|f| f.set_len(at as u64)),
                7 => walk::remove(&top.join("d")),
                8 => fs::File::options().write(true).open(&one).and_then(|f| f.write_all_at(&seed[at..at + length], 3 * at as u64)),
                _ => fs::write(&one, &seed[at..at + length]),
            };
        };
        let mut ends = Ends::new(|here, there| {
            fs::create_dir(there).unwrap();
            (0..40).for_each(|_| mutate(there));
            (0..40).for_each(|_| mutate(here));
        });
        for round in 0..4 {
            ends.round(round == 3);
            ends.same();
            let here = ends.here();
            (0..12).for_each(|_| mutate(&here));
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    use super::ops::{Op, Out};
    let folder = tempfile::tempdir().unwrap();
    let path = FilePath::from(folder.path().join("in").to_str().unwrap());
    fs::create_dir(&*path).unwrap();
    fs::write(folder.path().join("outside"), "mine").unwrap();
    let mut applier = Applier::new(&[Folder { path, storage: Storage::default(), bytes: 0 }], Arc::default());
    let (root, single) = (Op::Root { number: 0, last: false }, Op::Root { number: ops::SINGLE, last: false });
    let wrong: Vec<Vec<Op>> = vec![
        vec![Op::Delete("a".into())],
        vec![Op::Root { number: 1, last: false }],
        vec![root.clone(), Op::Delete("".into())],
        vec![root.clone(), Op::Delete("../outside".into())],
        vec![root.clone(), Op::Folder("/outside".into())],
        vec![root.clone(), Op::Write { path: "x/../../outside".into(), fresh: true, apart: false }],
        vec![root.clone(), Op::Data { at: 0, length: 1 }],
        vec![root.clone(), Op::Write { path: "x".into(), fresh: true, apart: false }, Op::Data { at: 0, length: u32::MAX }],
        vec![root, Op::Write { path: "x".into(), fresh: true, apart: false }, Op::End],
        vec![single, Op::Write { path: "tmp/x".into(), fresh: true, apart: false }],
    ];
    for ops in wrong {
        let mut bytes = Vec::new();
        let mut out = Out::new(&mut bytes).unwrap();
        ops.iter().for_each(|op| out.op(op).unwrap());
        out.end().unwrap();
        assert!(applier.apply(&mut &bytes[8..]).is_err(), "{ops:?}");
    }
    assert!(applier.apply(&mut &b"\x04\0\0\0junk"[..]).is_err());
    assert_eq!(fs::read_to_string(folder.path().join("outside")).unwrap(), "mine");
}
