//! What the source does: looks what differs from what the target has, and sends that.

use super::catalogue::{Known, Links, Reader, Writer};
use super::entry::{self, Identity, Meta};
use super::ops::{Op, Out, SINGLE};
use super::single::{Compared, Untold};
use super::walk::{Step, Walk, is_below, order};
use super::wanted::Seen;
use super::{Copying, Reply, Request, State, Wanted};
use crate::error::{Context, Error, Result};
use crate::resource::path::FilePath;
use crate::resource::thread::serde_bytes_vec::Bytes;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::BufWriter;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

type Pipe = Out<BufWriter<File>>;
/// Takes what the target has, one after the other.
type Each<'e> = &'e mut dyn FnMut(Known) -> Result<()>;

/// The files of a move, at the source.
pub struct Files {
    singles: Vec<Single>,
    folders: Vec<Folder>,
    /// Those that must not change, since they are not sent.
    watched: Vec<(Wanted, Option<Identity>)>,
    untold: Untold,
}

/// A file on its way.
struct Single {
    wanted: Wanted,
    /// What is in it at the target.
    known: Option<Known>,
    /// The same was there, and is to stay so.
    followed: bool,
}

/// A folder on its way.
struct Folder {
    number: u32,
    path: PathBuf,
    known: Option<Reader>,
}

/// What was done in one round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Round {
    /// Changes.
    pub changes: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Files {
    /// As it was agreed.
    pub fn new(request: &Request, reply: &Reply, seen: &Seen) -> Result<Self> {
        if (reply.states.len(), reply.shared.len()) != (request.wanted.len(), request.folders.len()) {
            return Err(Error::link("the target's answer about files makes no sense"));
        }
        let mut files = Files { singles: Vec::new(), folders: Vec::new(), watched: Vec::new(), untold: seen.untold.clone() };
        for (n, (wanted, state)) in request.wanted.iter().zip(&reply.states).enumerate() {
            files.add(wanted, *state, request.copying, seen.identities.get(n).copied().flatten());
        }
        let folders = request.folders.iter().zip(&reply.shared).enumerate().filter(|(_, (_, shared))| !**shared);
        files.folders.extend(folders.map(|(n, (f, _))| Folder { number: n as u32, path: f.path.to_path_buf(), known: None }));
        Ok(files)
    }

    /// One more that was agreed.
    pub fn add(&mut self, wanted: &Wanted, state: State, copying: Copying, identity: Option<Identity>) {
        let single = |followed| Single { wanted: wanted.clone(), known: None, followed };
        match (state, copying) {
            (State::Shared, _) => {}
            (State::Same, Copying::Nothing) if wanted.written => self.watched.push((wanted.clone(), identity)),
            (State::Same, _) if wanted.written => self.singles.push(single(true)),
            (State::Same, _) => {}
            (State::Missing | State::Different, _) => self.singles.push(single(false)),
        }
    }

    /// Whether there is nothing to send, ever.
    pub fn is_empty(&self) -> bool {
        self.singles.is_empty() && self.folders.is_empty()
    }

    /// Whether what is at the target is changed as it goes.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(|f| f.path.as_path())
    }

    /// Learns what the target has in its folders: `ask` gives what it says of one, some at a time.
    pub fn learn(&mut self, ask: &mut dyn FnMut(u32, Each<'_>) -> Result<()>) -> Result<()> {
        for folder in &mut self.folders {
            let mut writer = Writer::new()?;
            ask(folder.number, &mut |known| writer.add(&known))?;
            folder.known = Some(writer.read()?);
        }
        Ok(())
    }

    /// Sends all that has changed.
    pub fn round(&mut self, pipe: File, last: bool) -> Result<Round> {
        let mut out = Out::new(BufWriter::with_capacity(1 << 20, pipe))?;
        out.op(&Op::Root { number: SINGLE, last })?;
        for single in &mut self.singles {
            single.send(&mut out, &self.untold)?;
        }
        for folder in &mut self.folders {
            out.op(&Op::Root { number: folder.number, last })?;
            let before = folder.known.take().ok_or_else(|| Error::other("it is not known what the target has"))?;
            let mut pass = Pass {
                top: &folder.path,
                untold: &self.untold,
                before,
                after: Writer::new()?,
                links: Links::default(),
                anew: HashSet::new(),
                open: Vec::new(),
                gone: None,
                out: &mut out,
            };
            pass.run()?;
            folder.known = Some(pass.after.read()?);
        }
        let (changes, bytes) = out.end()?;
        Ok(Round { changes, bytes })
    }

    /// The tree stands still: what is not sent must be as it was when it was compared.
    ///
    /// # Errors
    /// When it is not.
    pub fn unchanged(&self) -> Result<()> {
        for (wanted, identity) in &self.watched {
            let now = std::fs::metadata(&*wanted.path).ok().map(|meta| Identity::of(&meta));
            if now.is_some() && now == *identity {
                continue;
            }
            let content = now.and_then(|now| super::wanted::content(&wanted.path, now.size, &|| true).ok());
            if content.is_none() || content != wanted.content {
                let what = format!("{} was written while the tree was being moved, and is not sent", wanted.path);
                return Err(Error::other(what).help(
                    "send it with --copy-files or --with-data; where both machines have the same file after all, say so with --shared-files",
                ));
            }
        }
        Ok(())
    }
}

impl Single {
    fn send(&mut self, out: &mut Pipe, untold: &Untold) -> Result<()> {
        let place = self.wanted.path.to_path_buf();
        let path = FilePath::from(self.wanted.path.bytes().strip_prefix(b"/").unwrap_or_default());
        let doing = || place.display().to_string();
        if self.known.is_some() && self.wanted.kind == libc::S_IFDIR {
            return Ok(());
        }
        if self.known.is_none() && self.followed {
            // Where nothing has changed since it was compared, the target has these very blocks.
            let meta = std::fs::symlink_metadata(&place).context(doing)?;
            let mut known = Known::new(path.clone(), &place, &meta).context(doing)?;
            known.hashes = Bytes(super::blocks::hashes(&place, known.size, known.block, &|| true).context(doing)?);
            if Some(super::blocks::content(known.size, &known.hashes.0)) == self.wanted.content.as_ref().map(|c| c.0.clone()) {
                known.links = 1;
                self.known = Some(known);
                return Ok(());
            }
        } else if self.known.is_none() {
            parents(&self.wanted, out)?;
        }
        if self.wanted.kind == libc::S_IFDIR {
            let meta = std::fs::metadata(&place).context(doing)?;
            self.known = Some(Known::new(path, &place, &meta).context(doing)?);
            return Ok(());
        }
        let sure = |k: &Known| std::fs::symlink_metadata(&place).is_ok_and(|m| k.identity == Some(Identity::of(&m)));
        if self.known.as_ref().is_some_and(sure) {
            return Ok(());
        }
        let compared = Compared { path: &path, place: &place, before: self.known.as_ref(), untold };
        let sent = compared.send(out)?.ok_or_else(|| Error::other(format!("{} has gone", place.display())))?;
        self.known = Some(sent.known);
        Ok(())
    }
}

/// The folders above a file, and the folder that it is itself.
fn parents(wanted: &Wanted, out: &mut Pipe) -> Result<()> {
    let mut above: Vec<&Path> = wanted.path.ancestors().skip(usize::from(wanted.kind != libc::S_IFDIR)).collect();
    above.pop(); // the root directory
    for folder in above.into_iter().rev() {
        let doing = || folder.display().to_string();
        let meta = std::fs::metadata(folder).context(doing)?;
        let meta = Meta::of(folder, &meta).context(doing)?;
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(folder.as_os_str());
        let path = FilePath::from(&bytes[1..]);
        out.op(&Op::Folder(path.clone()))?;
        out.op(&Op::Set { path, meta })?;
    }
    Ok(())
}

/// One pass over a folder.
struct Pass<'p> {
    top: &'p Path,
    untold: &'p Untold,
    before: Reader,
    after: Writer,
    links: Links,
    /// First paths of files that are others at the target than before.
    anew: HashSet<FilePath>,
    /// Folders that are open: their attributes, and whether these are to be set.
    open: Vec<(Meta, bool)>,
    /// The last that was deleted, with everything below it.
    gone: Option<FilePath>,
    out: &'p mut Pipe,
}

impl Pass<'_> {
    fn run(&mut self) -> Result<()> {
        let mut walk = Walk::new(self.top)?;
        while let Some(step) = walk.step()? {
            let changes = self.out.changes;
            match step {
                Step::Enter(path, meta) => {
                    while self.before.peek().is_some_and(|k| order(&k.path, &path) == Ordering::Less) {
                        self.delete()?;
                    }
                    let before = if self.before.peek().is_some_and(|k| k.path == path) { self.before.take()? } else { None };
                    let depth = self.open.len();
                    self.meet(path, &meta, before)?;
                    self.touch(depth, changes);
                }
                Step::Leave(path) => {
                    while self.before.peek().is_some_and(|k| is_below(&k.path, &path)) {
                        self.delete()?;
                    }
                    self.touch(self.open.len(), changes);
                    if let Some((meta, true)) = self.open.pop() {
                        self.out.op(&Op::Set { path, meta })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What is done in a folder changes its times.
    fn touch(&mut self, depth: usize, changes: u64) {
        if self.out.changes > changes
            && let Some(folder) = depth.checked_sub(1).and_then(|n| self.open.get_mut(n))
        {
            folder.1 = true;
        }
    }

    fn delete(&mut self) -> Result<()> {
        let Some(known) = self.before.take()? else { return Ok(()) };
        if self.gone.as_ref().is_none_or(|gone| !is_below(&known.path, gone)) {
            self.out.op(&Op::Delete(known.path.clone()))?;
            self.gone = Some(known.path);
        }
        Ok(())
    }

    fn meet(&mut self, path: FilePath, meta: &Metadata, before: Option<Known>) -> Result<()> {
        let place = entry::join(self.top, &path);
        let doing = || format!("reading {}", place.display());
        let linked = self.links.met(&path, meta);
        if let Some(before) = &before
            && !meta.is_dir()
            && before.identity == Some(Identity::of(meta))
            && before.linked == linked
            && linked.as_ref().is_none_or(|first| !self.anew.contains(first))
        {
            return self.after.add(before);
        }
        let mut now = match Known::new(path.clone(), &place, meta) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return self.vanished(&path, before, meta),
            now => now.context(doing)?,
        };
        // What replaces something of another kind begins with nothing.
        let before = match before {
            Some(other) if !other.is_like(&now) => {
                self.out.op(&Op::Delete(now.path.clone()))?;
                self.gone = Some(now.path.clone());
                None
            }
            before => before,
        };
        if let Some(first) = linked {
            if before.as_ref().is_none_or(|b| b.linked.as_ref() != Some(&first)) || self.anew.contains(&first) {
                self.out.op(&Op::Link { path: now.path.clone(), there: first.clone() })?;
            }
            let identity = Identity::of(meta);
            (now.linked, now.links, now.identity) = (Some(first), 1, identity.will_tell().then_some(identity));
            return self.after.add(&now);
        }
        if meta.is_file() {
            // One of several paths that is to be a file of its own is made anew.
            let before = before.filter(|b| b.linked.is_none());
            let compared = Compared { path: &now.path, place: &place, before: before.as_ref(), untold: self.untold };
            let Some(sent) = compared.send(self.out)? else { return self.vanished(&path, before, meta) };
            if sent.anew {
                self.anew.insert(now.path);
            }
            return self.after.add(&sent.known);
        }
        let differs = before.as_ref().is_none_or(|b| !b.meta.same(&now.meta));
        let (path, own) = (now.path.clone(), now.meta.clone());
        match own.kind() {
            libc::S_IFDIR => {
                if before.is_none() {
                    self.out.op(&Op::Folder(path))?;
                }
                self.open.push((own, differs));
            }
            libc::S_IFLNK if before.is_none() => self.out.op(&Op::Symlink { path, to: now.to.clone(), meta: own })?,
            _ if before.is_none() => self.out.op(&Op::Node { path, device: now.device, meta: own })?,
            _ if differs => self.out.op(&Op::Set { path, meta: own })?,
            _ => {}
        }
        let identity = Identity::of(meta);
        (now.links, now.identity) = (1, identity.will_tell().then_some(identity));
        self.after.add(&now)
    }

    /// It was there a moment ago.
    fn vanished(&mut self, path: &FilePath, before: Option<Known>, meta: &Metadata) -> Result<()> {
        self.links.forget(path, meta);
        if let Some(before) = before {
            self.out.op(&Op::Delete(before.path.clone()))?;
            self.gone = Some(before.path);
        }
        if meta.is_dir() {
            // It is left, too, and nothing was met in it.
            let times = ((meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()));
            let owner = (meta.uid(), meta.gid());
            self.open.push((Meta { mode: meta.mode(), owner, atime: times.0, mtime: times.1, xattrs: Vec::new() }, false));
        }
        Ok(())
    }
}

impl Round {
    /// Both together.
    pub fn and(self, other: Round) -> Round {
        Round { changes: self.changes + other.changes, bytes: self.bytes + other.bytes }
    }
}
