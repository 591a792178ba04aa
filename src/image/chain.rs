//! An image and its ancestors: which block of which of them holds each page.
//!
//! From the youngest image to the oldest, each is asked for the pages that are still looked for: of an image with a parent
//! only headers and runs are read for that, which have checksums of their own. At the end there is a list of the blocks
//! that are needed, each with the places of its pages; no image is held open.

use super::Hash;
use super::encoded::{EncodedBlock, keep, memory};
use super::entries::{What, differs, entries, missing, twice};
use super::format::PAGE;
use super::link::ParentLink;
use super::pages::{Block, Content, Meta, Owner, Run};
use super::reader::Reader;
use super::spread::spread;
use super::wanted::Wanted;
use crate::error::{Context, Error, Result};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images that one may be built upon, one upon the other.
pub(super) const MOST: usize = 1 << 16;
/// Blocks of one image that a worker takes at a time.
const BATCH: usize = 32;
/// Bytes of blocks that are read at once, and of what may lie between two of them.
const SPAN: u64 = 256 << 10;
const GAP: u64 = 16 << 10;
/// Images whose fronts are read at the same time, each of which is an open file; and bytes of these images, more than what is
/// known of all of them takes.
const AHEAD: usize = 64;
const AHEAD_BYTES: u64 = 64 << 20;

/// Where some data pages of a block belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// Whose pages, by the numbers of the youngest image.
    pub owner: Owner,
    /// Address of the first.
    pub address: u64,
    /// How many.
    pub pages: u32,
    /// Index of the first in the block's data.
    pub page: u32,
}

/// A block of which some pages are needed.
#[derive(Clone)]
pub struct Needed {
    block: EncodedBlock,
    /// Where they belong.
    pub pieces: Vec<Piece>,
}

/// One image of a chain.
pub struct Member {
    /// Where it is.
    pub path: PathBuf,
    /// Its name.
    pub hash: Hash,
    /// Its random id.
    pub id: [u8; 16],
    /// It has no parent itself.
    flat: bool,
    /// Blocks of which pages are needed.
    pub needed: Vec<Needed>,
    /// Blocks that are not needed, but whose runs have not been compared with a checksum yet.
    unchecked: Vec<EncodedBlock>,
}

/// Where the pages of an image are, or those that it has from its ancestors.
#[derive(Default)]
pub struct Chain {
    /// The images that they come from, youngest first.
    pub members: Vec<Member>,
    /// Pages of zeros: owner, address, number.
    pub zero: Vec<(Owner, u64, u32)>,
}

/// Pages of one owner that are looked for.
struct Sought {
    /// How the image at hand calls the owner.
    here: Owner,
    /// How the youngest calls it.
    owner: Owner,
    pages: Wanted,
}

/// Pages that an image has from its parent.
#[derive(Default)]
pub struct FromParent {
    owners: HashMap<Owner, Wanted>,
}

impl FromParent {
    /// Notes what a block has from the parent.
    pub fn note(&mut self, owner: Owner, runs: &[Run]) -> Result<()> {
        if runs.iter().any(|run| run.content == Content::Delta) {
            return Err(differs());
        }
        self.add(owner, runs, |run| run.content == Content::Parent)
    }

    fn add(&mut self, owner: Owner, runs: &[Run], which: impl Fn(&Run) -> bool) -> Result<()> {
        for run in runs.iter().filter(|run| which(run)) {
            if !self.owners.entry(owner).or_default().add(run.address, run.pages) {
                return Err(twice(owner, run.address));
            }
        }
        Ok(())
    }

    fn sought(self) -> Vec<Sought> {
        self.owners.into_iter().map(|(owner, pages)| Sought { here: owner, owner, pages }).collect()
    }
}

impl Chain {
    /// All pages of the image in this file. `known`: ids and paths of images that may be its ancestors.
    pub fn whole(path: &Path, machine: u16, known: &[([u8; 16], PathBuf)]) -> Result<Chain> {
        let doing = || path.display().to_string();
        let file = File::open(path).context(doing)?;
        let reader = Reader::from_file(file, machine).context(doing)?;
        let fronts = Fronts::read(reader).context(doing)?;
        let mut wanted = FromParent::default();
        for (_, meta) in &fronts.blocks {
            wanted.add(meta.owner, &meta.runs, |run| run.content != Content::Unused).context(doing)?;
        }
        let (mut chain, mut sought) = (Chain::default(), wanted.sought());
        let link = fronts.link.clone();
        let member = chain.resolve(path, fronts, &mut sought).context(doing)?;
        chain.members.push(member);
        chain.descend(link, folder_of(path), sought, known, machine)?;
        Ok(chain)
    }

    /// The pages that an image has from its ancestors; of one that comes as a stream so far only whether these are there.
    pub fn upon(reader: &Reader<'_>) -> Result<Chain> {
        let mut wanted = FromParent::default();
        if reader.parent().is_some()
            && let Some(again) = reader.again()?
        {
            let fronts = Fronts::read(again)?;
            fronts.blocks.iter().try_for_each(|(_, meta)| wanted.note(meta.owner, &meta.runs))?;
        }
        Chain::find(reader, wanted)
    }

    /// The pages that an image has from its ancestors, where it is known which these are.
    pub fn find(reader: &Reader<'_>, wanted: FromParent) -> Result<Chain> {
        let mut chain = Chain::default();
        chain.descend(reader.parent().cloned(), reader.folder().to_owned(), wanted.sought(), &[], reader.machine())?;
        Ok(chain)
    }

    /// Follows the links down to the image that has no parent.
    fn descend(
        &mut self,
        mut link: Option<ParentLink>,
        mut folder: PathBuf,
        mut sought: Vec<Sought>,
        known: &[([u8; 16], PathBuf)],
        machine: u16,
    ) -> Result<()> {
        while link.is_some() {
            // Only who the parent is must be known of one image before the next can be looked at.
            let (mut found, mut bytes, mut failure) = (Vec::new(), 0, None);
            while found.len() < AHEAD
                && bytes < AHEAD_BYTES
                && let Some(to) = link.take()
            {
                if self.members.len() + found.len() >= MOST {
                    failure = Some(Error::image(format!("the image has more than {MOST} ancestors")));
                    break;
                }
                match Found::look_for(to, &mut folder, known, machine) {
                    Ok(ancestor) => {
                        link = ancestor.reader.parent().cloned();
                        bytes += ancestor.reader.length().unwrap_or(AHEAD_BYTES);
                        found.push(ancestor);
                    }
                    Err(e) => failure = Some(e),
                }
            }
            for (to, path, fronts) in fronts_of(found) {
                sought.retain(|s| !s.pages.is_empty());
                for s in &mut sought {
                    s.here = to.there(s.here).ok_or_else(|| missing(s.owner))?;
                }
                let doing = || format!("parent image {}", path.display());
                let fronts = fronts.context(doing)?;
                if fronts.hash != to.hash {
                    return Err(changed(&path));
                }
                let member = self.resolve(&path, fronts, &mut sought).context(doing)?;
                self.members.push(member);
            }
            failure.map_or(Ok(()), Err)?;
        }
        sought.iter().find(|s| !s.pages.is_empty()).map_or(Ok(()), |s| Err(missing(s.owner)))
    }

    /// Takes what is sought out of one image, and leaves what that has from its own parent.
    fn resolve(&mut self, path: &Path, fronts: Fronts, sought: &mut [Sought]) -> Result<Member> {
        let Fronts { blocks, hash, id, link } = fronts;
        let mut pieces: Vec<Vec<Piece>> = vec![Vec::new(); blocks.len()];
        let here: HashSet<Owner> = sought.iter().map(|s| s.here).collect();
        let mut lists = entries(&blocks, |owner| here.contains(&owner))?;
        for s in sought.iter_mut() {
            let entries = lists.remove(&s.here).unwrap_or_default();
            let mut end = 0;
            for entry in &entries {
                if s.pages.any(end, entry.address) {
                    return Err(missing(s.owner));
                }
                end = entry.end();
                match entry.what {
                    What::Parent => {}
                    What::Delta { .. } => return Err(differs()),
                    What::Zero => s.pages.take(entry.address, end, &mut |address, pages| self.zero.push((s.owner, address, pages))),
                    What::Data { block, page } => s.pages.take(entry.address, end, &mut |address, pages| {
                        let page = page + ((address - entry.address) / PAGE as u64) as u32;
                        pieces[block as usize].push(Piece { owner: s.owner, address, pages, page });
                    }),
                }
            }
            if s.pages.any(end, u64::MAX) {
                return Err(missing(s.owner));
            }
        }
        let (mut needed, mut unchecked) = (Vec::new(), Vec::new());
        for ((block, _), pieces) in blocks.into_iter().zip(pieces) {
            match pieces.is_empty() {
                false => needed.push(Needed { block: block.away(), pieces }),
                true if link.is_none() => unchecked.push(block.away()),
                true => {}
            }
        }
        Ok(Member { path: path.to_owned(), hash, id, flat: link.is_none(), needed, unchecked })
    }

    /// How many pages have content.
    pub fn pages(&self) -> u64 {
        self.needed().flat_map(|(_, needed)| &needed.pieces).map(|p| u64::from(p.pages)).sum()
    }

    /// Ranges of zeros, owner, start and end, in order and put together.
    pub fn zero_ranges(&self) -> Vec<(Owner, u64, u64)> {
        let mut ranges: Vec<_> = self.zero.iter().map(|&(owner, at, pages)| (owner, at, at + u64::from(pages) * PAGE as u64)).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, last| {
            let joined = (last.0, last.2) == (next.0, next.1);
            if joined {
                last.2 = next.2;
            }
            joined
        });
        ranges
    }

    /// The blocks that are needed, and the member that each is in.
    pub fn needed(&self) -> impl Iterator<Item = (&Member, &Needed)> {
        self.members.iter().flat_map(|member| member.needed.iter().map(move |needed| (member, needed)))
    }

    /// Reads all blocks that are needed and compares their checksums, as far as that is not done when they are decoded.
    pub fn check(&self) -> Result<()> {
        self.members.par_iter().try_for_each(|member| {
            if !member.flat {
                return Ok(()); // the runs have a checksum
            }
            let file = member.open()?;
            let blocks = member.needed.iter().map(|needed| &needed.block).chain(&member.unchecked);
            blocks.par_bridge().try_for_each(|block| block.back(&file).describe().map(drop)).context(|| member.path.display().to_string())
        })
    }

    /// Decodes all blocks that are needed, as far as they are, in parallel and in no order, for `place`; compares the checksums of those that are
    /// not but have none for their runs alone. `progress` is told the bytes that have been placed. Returns them.
    pub fn deliver(
        &self,
        place: &(dyn Fn(&Needed, &Block) -> Result<()> + Sync),
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let mut tasks = Vec::new();
        for member in &self.members {
            let all = member.needed.len() + member.unchecked.len();
            tasks.extend((0..all).step_by(BATCH).map(|from| (member, from..all.min(from + BATCH))));
        }
        spread(&tasks, &|(member, range), buffer| member.deliver(range.clone(), buffer, place), progress)
    }
}

impl Member {
    /// Its file, opened again.
    pub fn open(&self) -> Result<Arc<File>> {
        File::open(&self.path).map(Arc::new).context(|| format!("opening image {}", self.path.display()))
    }

    fn deliver(
        &self,
        range: std::ops::Range<usize>,
        buffer: &mut Vec<u8>,
        place: &(dyn Fn(&Needed, &Block) -> Result<()> + Sync),
    ) -> Result<u64> {
        let file = self.open()?;
        let doing = || self.path.display().to_string();
        let needed = &self.needed[range.start.min(self.needed.len())..range.end.min(self.needed.len())];
        let mut window = Window { from: u64::MAX, bytes: memory() };
        let mut bytes = 0;
        for (n, wanted) in needed.iter().enumerate() {
            let (from, to) = wanted.block.extent();
            if window.part(from, to).is_none() {
                window.read(&file, from, reach(&needed[n..]));
            }
            let block = match window.part(from, to) {
                Some(payload) => wanted.block.decode_from(payload, wanted.reach(), std::mem::take(buffer)),
                None => wanted.decode(&file, std::mem::take(buffer)),
            };
            let block = block.context(doing)?;
            place(wanted, &block)?;
            bytes += wanted.pieces.iter().map(|p| u64::from(p.pages) * PAGE as u64).sum::<u64>();
            *buffer = block.data;
        }
        keep(window.bytes);
        for n in range.skip_while(|&n| n < self.needed.len()) {
            self.unchecked[n - self.needed.len()].back(&file).describe().context(doing)?;
        }
        Ok(bytes)
    }
}

/// A part of a file that has been read.
struct Window {
    from: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Nothing is in it when that cannot be read: who reads one block alone says what is wrong.
    fn read(&mut self, file: &File, from: u64, to: u64) {
        self.from = from;
        self.bytes.resize((to - from) as usize, 0);
        if file.read_exact_at(&mut self.bytes, from).is_err() {
            self.bytes.clear();
        }
    }

    fn part(&self, from: u64, to: u64) -> Option<&[u8]> {
        let (from, to) = (from.checked_sub(self.from)?, to - self.from);
        self.bytes.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
    }
}

/// Where a read that begins with the first of these ends: behind the last of those that lie close together. Nothing of one that
/// is large is read: it comes alone, to where it is needed.
fn reach(blocks: &[Needed]) -> u64 {
    let mut extents = blocks.iter().map(|needed| needed.block.extent());
    let Some((from, first)) = extents.next() else { return 0 };
    if first - from > SPAN {
        return from;
    }
    extents
        .try_fold(first, |end, (start, next)| if start > end + GAP || next > from + SPAN { Err(end) } else { Ok(next) })
        .unwrap_or_else(|end| end)
}

impl Needed {
    /// Decodes it out of its image, which has been opened again; `buffer` is memory for the data.
    pub fn decode(&self, file: &Arc<File>, buffer: Vec<u8>) -> Result<Block> {
        self.block.back(file).decode_into(buffer)
    }

    /// How many of the block's pages there are up to the last that is needed.
    fn reach(&self) -> u32 {
        self.pieces.iter().map(|piece| piece.page.saturating_add(piece.pages)).max().unwrap_or(0)
    }

    /// The content of one of its pieces.
    pub fn bytes<'b>(&self, block: &'b Block, piece: &Piece) -> Result<&'b [u8]> {
        piece.bytes(&block.data)
    }
}

impl Piece {
    /// Its content in the data of its block.
    pub(super) fn bytes<'b>(&self, data: &'b [u8]) -> Result<&'b [u8]> {
        let (from, length) = (self.page as usize * PAGE, self.pages as usize * PAGE);
        data.get(from..from + length).ok_or_else(|| Error::image("image damaged: a block has changed while it was read"))
    }
}

/// An ancestor of which nothing but its own parent is known yet.
struct Found {
    to: ParentLink,
    path: PathBuf,
    reader: Reader<'static>,
}

impl Found {
    /// Looks for what a link leads to; `folder` is then where its own parent is looked for.
    fn look_for(to: ParentLink, folder: &mut PathBuf, known: &[([u8; 16], PathBuf)], machine: u16) -> Result<Found> {
        let (path, mut reader) = look_for(&to, folder, known, machine)?;
        reader.skip_metadata().context(|| format!("parent image {}", path.display()))?;
        // Of a long chain in one folder no path is resolved again.
        if path.parent() != Some(folder) || std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) {
            *folder = folder_of(&path);
        }
        Ok(Found { to, path, reader })
    }
}

/// What these hold. A few are read here: another thread would begin later than that is done.
fn fronts_of(found: Vec<Found>) -> Vec<(ParentLink, PathBuf, Result<Fronts>)> {
    let read = |Found { to, path, reader }| (to, path, Fronts::read(reader));
    if found.len() < 8 { found.into_iter().map(read).collect() } else { found.into_par_iter().map(read).collect() }
}

/// Headers and runs of one image.
struct Fronts {
    blocks: Vec<(EncodedBlock, Meta)>,
    link: Option<ParentLink>,
    hash: Hash,
    id: [u8; 16],
}

impl Fronts {
    fn read(mut reader: Reader<'_>) -> Result<Fronts> {
        let (blocks, hash) = reader.fronts()?;
        Ok(Fronts { blocks, link: reader.parent().cloned(), hash, id: reader.id() })
    }
}

/// The folder in which the parent of an image is looked for.
pub fn folder_of(image: &Path) -> PathBuf {
    let image = std::fs::canonicalize(image).unwrap_or_else(|_| image.to_owned());
    match image.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

pub(super) fn changed(path: &Path) -> Error {
    Error::image(format!("parent image {} has changed since another was made upon it", path.display())).help("bring back what it was")
}

/// Finds a parent: beside its child, then where it was when the child was made.
pub(super) fn look_for(
    link: &ParentLink,
    folder: &Path,
    known: &[([u8; 16], PathBuf)],
    machine: u16,
) -> Result<(PathBuf, Reader<'static>)> {
    let hint = Path::new(OsStr::from_bytes(&link.file));
    let mut places: Vec<PathBuf> = hint.file_name().map(|name| folder.join(name)).into_iter().chain([folder.join(hint)]).collect();
    places.splice(0..0, known.iter().filter(|(id, _)| *id == link.id).map(|(_, path)| path.clone()));
    places.dedup();
    let mut others = Vec::new();
    for path in &places {
        // Whatever else may lie there is not opened: that could wait for ever.
        if !std::fs::metadata(path).is_ok_and(|m| m.is_file()) {
            continue;
        }
        let doing = || format!("parent image {}", path.display());
        match Reader::from_file(File::open(path).context(doing)?, machine) {
            Ok(reader) if reader.id() == link.id => return Ok((path.clone(), reader)),
            Ok(_) => others.push(Error::image(format!("{} is another image than the parent that is needed", doing()))),
            Err(e) => others.push(e.context(doing())),
        }
    }
    let shown: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
    let missing = || Error::image(format!("parent image {} is missing", shown.join(", also ")));
    Err(others.into_iter().next().unwrap_or_else(missing).help("a parent must be beside its child, under its old name, or where it was"))
}
