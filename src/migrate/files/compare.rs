//! What the target says to the files that a tree needs.

use super::entry::Identity;
use super::wanted::{Mounts, content, extent};
use super::{Copying, Reply, Request, State, Storage, Wanted};
use crate::error::{Refusal, Result};
use crate::resource::memory;
use crate::resource::path::FilePath;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What was found.
#[derive(Default)]
pub struct Found {
    /// What the source is told.
    pub reply: Reply,
    /// What stands in the way.
    pub refusals: Vec<Refusal>,
    /// What is in places that others are to take.
    pub there: Vec<Option<Identity>>,
}

/// Looks at this machine for the files of a tree.
///
/// # Errors
/// When it cannot be looked, or `go_on` says that nobody wants to know any more.
pub fn look(request: &Request, boot: [u8; 16], go_on: &dyn Fn() -> bool) -> Result<Found> {
    let mounts = Mounts::read(boot)?;
    let mut found = Found::default();
    let mut room = Room::default();
    for wanted in &request.wanted {
        let (state, reason) = state(wanted, &mounts, go_on)?;
        let sent = match (state, request.copying) {
            (State::Shared | State::Same, _) => Ok(false),
            (State::Missing, Copying::Missing | Copying::Written) => Ok(true),
            (State::Different, Copying::Written) if wanted.written && wanted.kind == libc::S_IFREG => Ok(true),
            (State::Missing, Copying::Nothing) => Err("bring it there, or send it: --copy-files"),
            (State::Different, _) if wanted.written && wanted.kind == libc::S_IFREG => {
                Err("replace it by the source's: --copy-files=written; if it is the same file after all: --shared-files DIR")
            }
            (State::Different, _) => Err("bring there what the source has; what the tree only reads is never replaced"),
        };
        match sent {
            Ok(true) => room.add(&wanted.path, wanted.size as i64),
            Ok(false) => {}
            Err(advice) => {
                let (pid, object, advice) = (wanted.pid, wanted.object.clone(), advice.to_owned());
                found.refusals.push(Refusal { pid, object, reason, advice, ..Refusal::default() });
            }
        }
        found.reply.states.push(state);
        found.there.push(std::fs::symlink_metadata(&*wanted.path).ok().map(|m| Identity::of(&m)));
    }
    for folder in &request.folders {
        let object = format!("folder {}", folder.path);
        let refuse = |reason: String, advice: &str| Refusal { object: object.clone(), reason, advice: advice.into(), ..Refusal::default() };
        let mut shared = false;
        match std::fs::symlink_metadata(&*folder.path) {
            Err(e) if is_missing(&e) => room.add(&folder.path, folder.bytes as i64),
            Err(e) => found.refusals.push(refuse(e.to_string(), "make it readable")),
            Ok(meta) if !meta.is_dir() => found.refusals.push(refuse("it is no folder there".into(), "move what is there out of the way")),
            Ok(meta) => {
                shared = Storage::of(&folder.path, &meta, &mounts).is_same(&folder.storage);
                if !shared {
                    let (there, foreign) = extent(&folder.path)?;
                    let inside = foreign.iter().map(|f| f.below(&folder.path));
                    let unnamed = inside.filter(|p| !request.folders.iter().any(|f| f.path.to_path_buf() == *p));
                    found.refusals.extend(unnamed.map(|p| {
                        refuse(
                            format!("{} in it is a file system of its own there", p.display()),
                            "unmount it, or mount one at the source, too",
                        )
                    }));
                    room.add(&folder.path, folder.bytes as i64 - there as i64);
                }
            }
        }
        found.reply.shared.push(shared);
    }
    found.refusals.extend(room.refusals());
    Ok(found)
}

fn is_missing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// How it stands, and why that will not do.
fn state(wanted: &Wanted, mounts: &(Mounts, [u8; 16]), go_on: &dyn Fn() -> bool) -> Result<(State, String)> {
    let meta = match std::fs::symlink_metadata(&*wanted.path) {
        Err(e) if is_missing(&e) => return Ok((State::Missing, "it is not there".into())),
        Err(e) => return Ok((State::Different, format!("it cannot be looked at there: {e}"))),
        Ok(_) => match std::fs::metadata(&*wanted.path) {
            Err(e) => return Ok((State::Different, format!("what is there cannot be followed: {e}"))),
            Ok(meta) => meta,
        },
    };
    if meta.mode() & libc::S_IFMT != wanted.kind {
        return Ok((State::Different, "it is of another type there".into()));
    }
    if wanted.kind == libc::S_IFDIR {
        return Ok((State::Same, String::new()));
    }
    let storage = Storage::of(&wanted.path, &meta, mounts);
    if storage.is_same(&wanted.storage) {
        return Ok((State::Shared, String::new()));
    }
    regular(wanted, &meta, go_on)
}

fn regular(wanted: &Wanted, meta: &Metadata, go_on: &dyn Fn() -> bool) -> Result<(State, String)> {
    let differs = |reason: String| Ok((State::Different, reason));
    let same = Ok((State::Same, String::new()));
    if let Some(id) = &wanted.build_id {
        return match memory::build_id(&wanted.path) {
            Some(there) if there == id.0 && meta.size() == wanted.size => same,
            Some(there) if there == id.0 => differs(format!("it has {} bytes there, and {} here", meta.size(), wanted.size)),
            Some(there) => differs(format!("another build is there: {}, and {} here", hex(&there), hex(&id.0))),
            None => differs("what is there is another file: it has no build id".into()),
        };
    }
    let Some(own) = &wanted.content else {
        return differs(format!("it is on {} here ({}), and on something else there", wanted.storage.kind, wanted.storage.source));
    };
    if meta.size() != wanted.size {
        return differs(format!("it has {} bytes there, and {} here", meta.size(), wanted.size));
    }
    match content(&wanted.path, meta.size(), go_on) {
        Ok(there) if there == *own => same,
        Ok(_) => differs(format!("its {} bytes are others there", meta.size())),
        Err(e) => differs(format!("it cannot be read there: {e}")),
    }
}

/// A build id, as far as people look.
fn hex(id: &[u8]) -> String {
    id.iter().take(6).map(|b| format!("{b:02x}")).collect()
}

/// Bytes that each file system will need.
#[derive(Default)]
struct Room(BTreeMap<u64, (PathBuf, i64)>);

impl Room {
    fn add(&mut self, path: &FilePath, bytes: i64) {
        let there = path.ancestors().find_map(|p| Some((p, std::fs::metadata(p).ok()?)));
        if let Some((place, meta)) = there {
            self.0.entry(meta.dev()).or_insert_with(|| (place.to_owned(), 0)).1 += bytes;
        }
    }

    fn refusals(&self) -> Vec<Refusal> {
        let lacks = |(place, bytes): &(PathBuf, i64)| {
            let free = nix::sys::statvfs::statvfs(place.as_path()).ok()?;
            let free = free.blocks_available() * free.fragment_size();
            let needed = u64::try_from(*bytes).ok().filter(|&needed| needed > free)?;
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            let reason = format!("the files that are sent need {} MiB, and {} MiB are free there", mib(needed), free >> 20);
            let object = format!("disk at {}", place.display());
            Some(Refusal { object, reason, advice: "make room there".into(), ..Refusal::default() })
        };
        self.0.values().filter_map(lacks).collect()
    }
}

/// What stands for a place that others are to take, again.
pub fn now(path: &Path) -> Option<Identity> {
    std::fs::symlink_metadata(path).ok().map(|m| Identity::of(&m))
}
