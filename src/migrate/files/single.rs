//! One file against what the target has of it.

use super::blocks::{Blocks, block_for};
use super::catalogue::Known;
use super::entry::{self, Identity, Meta};
use super::ops::{Op, Out};
use crate::error::{Context, Result};
use crate::resource::path::FilePath;
use crate::resource::thread::serde_bytes_vec::Bytes;
use std::collections::HashSet;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Files whose times tell nothing, by device and inode: what is written through a mapping may leave no trace.
pub type Untold = HashSet<(u64, u64)>;

/// A file that is compared with what the target has.
pub struct Compared<'a> {
    /// Its name for the target.
    pub path: &'a FilePath,
    /// Where it is here.
    pub place: &'a Path,
    /// What the target has; nothing of use when none.
    pub before: Option<&'a Known>,
    /// Whose times tell nothing.
    pub untold: &'a Untold,
}

/// What came of it.
pub struct Sent {
    /// What the target has now.
    pub known: Known,
    /// It is another file there than before.
    pub anew: bool,
}

impl Compared<'_> {
    /// Sends what differs; none when the file has gone.
    pub fn send<W: Write>(&self, out: &mut Out<W>) -> Result<Option<Sent>> {
        let doing = || format!("reading {}", self.place.display());
        let file = match entry::open(self.place) {
            // Something else has taken its place: the next round finds that.
            Err(e) if e.kind() == ErrorKind::NotFound || matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => return Ok(None),
            file => file.context(doing)?,
        };
        let meta = file.metadata().context(doing)?;
        let identity = Identity::of(&meta);
        // Before the content is read: what is changed meanwhile is seen the next time.
        let sure = identity.will_tell() && !self.untold.contains(&(meta.dev(), meta.ino()));
        let now = match Meta::of(self.place, &meta) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            now => now.context(doing)?,
        };
        let size = meta.size();
        let (fresh, apart) = (self.before.is_none(), self.before.is_some_and(|b| b.links > 1));
        let block = self.before.map_or(block_for(size), |b| b.block.max(block_for(size) / 16));
        let old: &[u8] = self.before.filter(|b| b.block == block).map_or(&[], |b| &b.hashes.0);
        let mut blocks = Blocks::new(&file, size, block).context(doing)?;
        let data = blocks.data();
        let write = Op::Write { path: self.path.clone(), fresh, apart };
        let (mut hashes, mut open) = (Vec::new(), false);
        while let Some(one) = blocks.step().context(doing)? {
            let same = old.get(hashes.len()..hashes.len() + one.hash.len()).is_some_and(|h| h == one.hash);
            hashes.extend_from_slice(&one.hash);
            if same {
                continue;
            }
            if !std::mem::replace(&mut open, true) {
                out.op(&write)?;
            }
            let mut end = one.at;
            let parts = one.bytes.map_or_else(Vec::new, |_| Blocks::data_in(&data, one.at, one.length));
            for (from, to) in parts {
                hole(out, end, from, fresh)?;
                if let Some(bytes) = one.bytes {
                    out.data(from, &bytes[(from - one.at) as usize..(to - one.at) as usize])?;
                }
                end = to;
            }
            hole(out, end, one.at + one.length, fresh)?;
        }
        let differs = self.before.is_none_or(|b| !b.meta.same(&now));
        if open || self.before.is_none_or(|b| b.size != size) || differs && apart {
            if !open {
                out.op(&write)?;
            }
            out.op(&Op::Close { size, meta: now.clone() })?;
            open = true;
        } else if differs {
            out.op(&Op::Set { path: self.path.clone(), meta: now.clone() })?;
        }
        let anew = open && (fresh || apart);
        let links = self.before.filter(|_| !anew).map_or(1, |b| b.links);
        let known = Known {
            path: self.path.clone(),
            meta: now,
            size,
            block,
            hashes: Bytes(hashes),
            to: FilePath::default(),
            device: 0,
            linked: None,
            links,
            identity: sure.then_some(identity),
        };
        Ok(Some(Sent { known, anew }))
    }
}

/// What is no data; a file that is made has nothing anywhere.
fn hole<W: Write>(out: &mut Out<W>, from: u64, to: u64, fresh: bool) -> Result<()> {
    if fresh || from >= to { Ok(()) } else { out.op(&Op::Hole { at: from, length: to - from }) }
}
