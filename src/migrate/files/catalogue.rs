//! What is known of a folder at the target: one entry after the other, in the order of a walk, in a file without a name. So a folder may
//! hold any number of files, and only one entry is in memory.

use super::blocks::{self, block_for};
use super::entry::{self, Identity, Meta};
use super::walk::{Step, Walk};
use crate::error::{Context, Error, Result};
use crate::resource::path::FilePath;
use crate::resource::thread::serde_bytes_vec::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// No entry is longer: the hashes of a file, its attributes, and paths.
const LONGEST: u32 = 64 << 20;
/// Bytes of entries that are told at once.
const AT_ONCE: usize = 256 << 10;

/// One file, as the target has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Below the folder.
    pub path: FilePath,
    /// All but the content.
    pub meta: Meta,
    /// Bytes of a regular file.
    pub size: u64,
    /// Bytes of its blocks.
    pub block: u64,
    /// Of its blocks, one after the other.
    pub hashes: Bytes,
    /// Where a symbolic link leads.
    pub to: FilePath,
    /// Number of a device.
    pub device: u64,
    /// The first path of the same file, where it has several.
    pub linked: Option<FilePath>,
    /// How many paths it has.
    pub links: u64,
    /// The source's file when it was sent; none where that is not known, or is no sure sign.
    pub identity: Option<Identity>,
}

impl Known {
    /// Without content.
    pub fn new(path: FilePath, place: &Path, meta: &Metadata) -> std::io::Result<Self> {
        let of = Meta::of(place, meta)?;
        let to = match of.kind() {
            libc::S_IFLNK => FilePath::from(std::os::unix::ffi::OsStrExt::as_bytes(std::fs::read_link(place)?.as_os_str())),
            _ => FilePath::default(),
        };
        let device = if matches!(of.kind(), libc::S_IFBLK | libc::S_IFCHR) { meta.rdev() } else { 0 };
        let size = if meta.is_file() { meta.size() } else { 0 };
        let (block, hashes) = (block_for(size), Bytes(Vec::new()));
        Ok(Known { path, meta: of, size, block, hashes, to, device, linked: None, links: meta.nlink(), identity: None })
    }

    /// Whether one can be made of the other by changing its content and attributes.
    pub fn is_like(&self, other: &Known) -> bool {
        let of = |k: &Known| (k.meta.kind(), k.device);
        of(self) == of(other) && self.to == other.to
    }
}

/// The first path of each file that has several.
#[derive(Default)]
pub struct Links(HashMap<u64, FilePath>);

impl Links {
    /// The path under which the same file was met before, if it was.
    pub fn met(&mut self, path: &FilePath, meta: &Metadata) -> Option<FilePath> {
        if meta.is_dir() || meta.nlink() < 2 {
            return None;
        }
        match self.0.get(&meta.ino()) {
            Some(first) => Some(first.clone()),
            None => {
                self.0.insert(meta.ino(), path.clone());
                None
            }
        }
    }

    /// This path has gone: the next one is the first.
    pub fn forget(&mut self, path: &FilePath, meta: &Metadata) {
        if self.0.get(&meta.ino()) == Some(path) {
            self.0.remove(&meta.ino());
        }
    }
}

/// Tells what is in a folder, some entries at a time.
///
/// # Errors
/// When it cannot be read, or `tell` fails, or `go_on` says that nobody wants to know any more.
pub fn list(top: &Path, go_on: &dyn Fn() -> bool, tell: &mut dyn FnMut(Vec<Known>) -> Result<()>) -> Result<()> {
    if !top.exists() {
        return Ok(());
    }
    let (mut walk, mut links) = (Walk::new(top)?, Links::default());
    let (mut some, mut bytes) = (Vec::new(), 0);
    while let Some(step) = walk.step()? {
        let Step::Enter(path, meta) = step else { continue };
        let place = entry::join(top, &path);
        let doing = || format!("reading {}", place.display());
        let mut known = Known::new(path, &place, &meta).context(doing)?;
        known.linked = links.met(&known.path, &meta);
        if meta.is_file() && known.linked.is_none() {
            known.hashes = Bytes(blocks::hashes(&place, known.size, known.block, go_on).context(doing)?);
        }
        bytes += 256 + known.hashes.0.len() + known.path.bytes().len();
        some.push(known);
        if bytes >= AT_ONCE {
            tell(std::mem::take(&mut some))?;
            bytes = 0;
        }
        if !go_on() {
            return Err(Error::link("nobody wants to know any more what is there"));
        }
    }
    tell(some)
}

/// Being written.
pub struct Writer(BufWriter<File>);

/// Being read, once, from the start.
pub struct Reader {
    file: BufReader<File>,
    next: Option<Known>,
}

impl Writer {
    /// A new one, which ends with meio.
    pub fn new() -> Result<Self> {
        let open = |folder: &str| OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder);
        let file = open("/var/tmp")
            .or_else(|_| open("/tmp"))
            .or_else(|_| crate::sys::file::memfd(b"catalogue", libc::MFD_CLOEXEC).map(File::from));
        Ok(Writer(BufWriter::new(file.context(|| "making a file for what is known of a folder")?)))
    }

    /// One more; they come in order.
    pub fn add(&mut self, known: &Known) -> Result<()> {
        let bytes = super::super::plan::pack(known)?;
        let write = |to: &mut BufWriter<File>| {
            to.write_all(&(bytes.len() as u32).to_le_bytes())?;
            to.write_all(&bytes)
        };
        write(&mut self.0).context(|| "writing what is known of a folder")
    }

    /// From the start.
    pub fn read(self) -> Result<Reader> {
        let mut file = self.0.into_inner().map_err(|e| Error::from(e.into_error()))?;
        file.rewind()?;
        let mut reader = Reader { file: BufReader::new(file), next: None };
        reader.advance()?;
        Ok(reader)
    }
}

impl Reader {
    /// The next one.
    pub fn peek(&self) -> Option<&Known> {
        self.next.as_ref()
    }

    /// Takes the next one.
    pub fn take(&mut self) -> Result<Option<Known>> {
        let taken = self.next.take();
        self.advance()?;
        Ok(taken)
    }

    fn advance(&mut self) -> Result<()> {
        self.next = read_one(&mut self.file)?;
        Ok(())
    }
}

/// One of the values that are written with their length before them; none at the end.
pub fn read_one<T: for<'d> Deserialize<'d>>(from: &mut impl Read) -> Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(Error::link("what came about files makes no sense"));
    }
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes)?;
    super::super::plan::unpack(&bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_known_comes_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "some").unwrap();
        fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("l")).unwrap();
        let mut all = Vec::new();
        list(folder.path(), &|| true, &mut |some| {
            all.extend(some);
            Ok(())
        })
        .unwrap();
        let paths: Vec<String> = all.iter().map(|k| k.path.to_string()).collect();
        assert_eq!(paths, ["", "a", "b", "l"]);
        assert_eq!(all[2].linked, Some("a".into()));
        assert!(all[1].linked.is_none() && all[1].hashes.0.len() == blocks::HASH && all[2].hashes.0.is_empty());
        assert_eq!(all[3].to, "a".into());
        assert!(!all[3].is_like(&all[1]) && all[1].is_like(&all[2]));
        let mut writer = Writer::new().unwrap();
        all.iter().for_each(|known| writer.add(known).unwrap());
        let mut reader = writer.read().unwrap();
        for known in &all {
            assert_eq!(reader.peek(), Some(known));
            assert_eq!(reader.take().unwrap().as_ref(), Some(known));
        }
        assert_eq!(reader.take().unwrap(), None);
        list(&folder.path().join("not there"), &|| true, &mut |some| panic!("{some:?}")).unwrap();
        assert!(list(folder.path(), &|| false, &mut |_| Ok(())).is_err());
        assert!(read_one::<Known>(&mut &[255u8, 255, 255, 255, 0][..]).is_err());
    }
}
