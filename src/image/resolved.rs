//! Where every page of an image stands, in itself or in one that it builds upon: found out from the oldest image to the
//! youngest, each from what is known of its parent. So all but the last of a series can be done with before that is there, and
//! what is left then follows what the last one holds and in how many pieces all is, not how much it is.
//!
//! [`super::Chain`] goes the other way, from the youngest on, and reads no more than is needed; here images stay open, so that
//! their pages can be read whenever they are wanted.

use super::chain::{MOST, Piece, changed, look_for};
use super::elsewhere::{Absent, Elsewhere, overlay};
use super::encoded::EncodedBlock;
use super::entries::{Entry, What, differs, entries, missing};
use super::flat::{GiveBack, TOGETHER};
use super::format::PAGE;
use super::link::ParentLink;
use super::pages::{Content, Owner};
use super::reader::Reader;
use super::spread::spread;
use super::{Hash, folder_of};
use crate::error::{Context, Error, Result};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Consecutive pages of one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Address of the first.
    pub address: u64,
    /// How many.
    pub pages: u32,
    /// Where their content stands; `None`: they are named, and are zero.
    pub at: Option<At>,
}

/// A data page of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Which image: the oldest is 0.
    pub image: u32,
    /// Which of its blocks.
    pub block: u32,
    /// Which of the block's data pages.
    pub page: u32,
    /// It says how the page differs from that of the image before: see [`super::Content::Delta`].
    pub delta: bool,
}

impl Place {
    /// Address behind the last page.
    pub fn end(&self) -> u64 {
        self.address + u64::from(self.pages) * PAGE as u64
    }

    /// The part of it between two addresses, of which at least one page is in it.
    pub fn part(&self, start: u64, end: u64) -> Place {
        let (start, end) = (start.max(self.address), end.min(self.end()));
        let skipped = ((start - self.address) / PAGE as u64) as u32;
        let at = self.at.map(|at| At { page: at.page + skipped, ..at });
        Place { address: start, pages: ((end - start) / PAGE as u64) as u32, at }
    }
}

/// An image that is open, or what several have come to.
pub(super) enum Image {
    /// As it was written.
    Written { path: PathBuf, blocks: Vec<EncodedBlock> },
    /// Pages in a file, in blocks of [`TOGETHER`].
    Flat { file: Arc<File>, blocks: u32, give_back: GiveBack },
}

impl Image {
    fn len(&self) -> usize {
        match self {
            Image::Written { blocks, .. } => blocks.len(),
            Image::Flat { blocks, .. } => *blocks as usize,
        }
    }

    /// The number of the descriptor of its file.
    fn file(&self, block: u32) -> Option<i32> {
        match self {
            Image::Written { blocks, .. } => blocks.get(block as usize).and_then(EncodedBlock::file),
            Image::Flat { file, .. } => Some(file.as_raw_fd()),
        }
    }

    /// The data of a block of which nothing is said by how it differs; `buffer` is memory for it.
    pub fn decode(&self, block: u32, buffer: Vec<u8>) -> Result<Vec<u8>> {
        self.decode_any(block, buffer, false)
    }

    /// The data of a block, or how its pages differ.
    pub fn decode_any(&self, block: u32, mut buffer: Vec<u8>, delta: bool) -> Result<Vec<u8>> {
        let lost = || Error::image("image damaged: a block is missing");
        match self {
            Image::Written { path, blocks } => {
                let encoded = blocks.get(block as usize).ok_or_else(lost)?;
                let block = encoded.clone().decode_into(buffer).context(|| path.display().to_string())?;
                if !delta && block.runs.iter().any(|run| run.content == Content::Delta) {
                    return Err(differs());
                }
                Ok(block.data)
            }
            Image::Flat { file, .. } => {
                const BYTES: usize = TOGETHER as usize * PAGE;
                buffer.resize(BYTES, 0);
                file.read_exact_at(&mut buffer, u64::from(block) * BYTES as u64).context(|| "reading pages that were kept")?;
                Ok(buffer)
            }
        }
    }
}

/// Where every page of an image stands. It keeps all images open that hold some of them.
#[derive(Clone)]
pub struct Resolved {
    /// From the oldest on; `None` for one of which nothing is needed any more.
    pub(super) images: Vec<Option<Arc<Image>>>,
    /// By address.
    pub(super) owners: HashMap<Owner, Vec<Place>>,
    /// Pages that are in none of them: how many blocks, and who has them. They count as one image more.
    pub(super) elsewhere: Option<(usize, Arc<dyn Elsewhere>)>,
    pub(super) id: [u8; 16],
    pub(super) hash: Hash,
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolved").field("images", &self.images.len()).finish_non_exhaustive()
    }
}

impl Resolved {
    /// Finds out where the pages of an image are, a file that is called `path` here, of which no block has been read. What it has
    /// from its `parent` is not read again.
    ///
    /// # Errors
    /// When the image is damaged, or its parent is another one.
    pub fn read(reader: &mut Reader<'_>, path: &Path, parent: Option<&Resolved>) -> Result<Resolved> {
        let link = reader.link()?;
        let parent = match (&link, parent) {
            (Some(link), Some(parent)) if parent.is_what(link) => Some((link, parent)),
            (Some(link), _) => {
                let file = String::from_utf8_lossy(&link.file).into_owned();
                return Err(Error::image(format!("the image builds upon another one than is there for it: {file}")));
            }
            (None, _) => None,
        };
        Resolved::upon(reader, path, parent)
    }

    /// The same of the parent of an image, which is looked for with all that it builds upon itself; `None` when the image stands
    /// alone.
    ///
    /// # Errors
    /// When one of them is missing, damaged, or another one than it was.
    pub fn parent_of(reader: &mut Reader<'_>) -> Result<Option<Resolved>> {
        reader.link()?.map(|link| ancestors(&link, reader)).transpose()
    }

    /// From now on it is taken for the image with this id and hash.
    pub fn stand_for(&mut self, (id, hash): ([u8; 16], [u8; 32])) {
        (self.id, self.hash) = (id, hash.into());
    }

    fn is_what(&self, link: &ParentLink) -> bool {
        (self.id, self.hash) == (link.id, link.hash)
    }

    fn upon(reader: &mut Reader<'_>, path: &Path, parent: Option<(&ParentLink, &Resolved)>) -> Result<Resolved> {
        let (blocks, hash) = reader.fronts()?;
        if reader.parent().is_none() {
            // Their runs have no checksum of their own, except for those of an index.
            blocks.par_iter().filter(|(block, _)| !block.proven()).try_for_each(|(block, _)| block.describe().map(drop))?;
        }
        let images = parent.map_or(&[][..], |(_, parent)| &parent.images);
        if images.len() > MOST {
            return Err(Error::image(format!("the image has more than {MOST} ancestors")));
        }
        let own = images.len() as u32;
        let mut used = vec![false; images.len()];
        let mut owners = HashMap::new();
        for (owner, list) in entries(&blocks, |_| true)? {
            let before = parent.and_then(|(link, parent)| parent.owners.get(&link.there(owner)?));
            let places = merge(owner, &list, own, before.map_or(&[], |b| b))?;
            for at in places.iter().filter_map(|p| p.at) {
                used.get_mut(at.image as usize).into_iter().for_each(|used| *used = true);
            }
            owners.insert(owner, places);
        }
        let kept = images.iter().zip(used).map(|(image, used)| image.clone().filter(|_| used));
        let image = Image::Written { path: path.to_owned(), blocks: blocks.into_iter().map(|b| b.0).collect() };
        let images = kept.chain([Some(Arc::new(image))]).collect();
        Ok(Resolved { images, owners, elsewhere: None, id: reader.id(), hash })
    }

    /// Has all these pages from somebody who is asked for them, also those that are in the images.
    ///
    /// # Errors
    /// When that is said in a way that makes no sense.
    pub fn leave(&mut self, absent: &Absent) -> Result<()> {
        overlay(&mut self.owners, self.images.len() as u32, &absent.left)?;
        self.elsewhere = Some((absent.left.len(), absent.from.clone()));
        Ok(())
    }

    /// Whose pages it knows, and these by address.
    pub fn owners(&self) -> impl Iterator<Item = (Owner, &[Place])> {
        self.owners.iter().map(|(&owner, places)| (owner, places.as_slice()))
    }

    /// How many images there are, or have been; one more than the greatest [`At::image`].
    pub fn images(&self) -> usize {
        self.images.len() + usize::from(self.elsewhere.is_some())
    }

    /// The number of the youngest image.
    pub fn youngest(&self) -> Option<u32> {
        (self.images.len() as u32).checked_sub(1)
    }

    /// How many blocks one of them has.
    pub fn blocks(&self, image: u32) -> usize {
        match self.images.get(image as usize) {
            Some(image) => image.as_ref().map_or(0, |image| image.len()),
            None => self.elsewhere.as_ref().map_or(0, |e| e.0),
        }
    }

    /// A block of which pages are needed.
    pub fn block(&self, image: u32, block: u32) -> Result<Source> {
        let lost = || Error::image("image damaged: a block is missing");
        match (self.images.get(image as usize), &self.elsewhere) {
            (None, Some((count, from))) if (block as usize) < *count => Ok(Source(Where::Elsewhere { block, from: from.clone() })),
            (Some(Some(image)), _) if (block as usize) < image.len() => Ok(Source(Where::Image { block, image: image.clone() })),
            _ => Err(lost()),
        }
    }
}

/// A block, which is brought when it is needed.
#[derive(Clone)]
pub struct Source(Where);

#[derive(Clone)]
enum Where {
    /// In an image, which is open.
    Image { block: u32, image: Arc<Image> },
    /// With somebody who is asked.
    Elsewhere { block: u32, from: Arc<dyn Elsewhere> },
}

impl Source {
    /// The number of the descriptor of the image's file.
    pub fn file(&self) -> Option<i32> {
        match &self.0 {
            Where::Image { block, image } => image.file(*block),
            Where::Elsewhere { .. } => None,
        }
    }

    /// Its data for somebody who waits, checked and decompressed; `buffer` is memory for it.
    pub fn data(&self, buffer: Vec<u8>) -> Result<Vec<u8>> {
        match &self.0 {
            Where::Image { block, image } => image.decode(*block, buffer),
            Where::Elsewhere { block, from } => from.urgent(*block, buffer),
        }
    }

    /// It will not be asked for again: memory that it takes for nobody else is given back.
    pub fn done(&self) {
        if let Where::Image { block, image } = &self.0
            && let Image::Flat { file, give_back, .. } = &**image
        {
            let bytes = u64::from(TOGETHER) * PAGE as u64;
            give_back(file, u64::from(*block) * bytes, bytes);
        }
    }

    /// The same for somebody who needs them all, one after the other.
    pub fn in_order(&self, buffer: Vec<u8>) -> Result<Vec<u8>> {
        match &self.0 {
            Where::Image { .. } => self.data(buffer),
            Where::Elsewhere { block, from } => from.in_order(*block, buffer),
        }
    }
}

/// Blocks with the pages of them that are wanted, decoded in parallel and in no order for `place`. `progress` is told the bytes
/// that have been placed. Returns them.
pub fn deliver(
    wanted: &[(Source, Vec<Piece>)],
    place: &(dyn Fn(&Piece, &[u8]) -> Result<()> + Sync),
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let work = |(source, pieces): &(Source, Vec<Piece>), buffer: &mut Vec<u8>| {
        let data = source.data(std::mem::take(buffer))?;
        pieces.iter().try_for_each(|piece| place(piece, piece.bytes(&data)?))?;
        *buffer = data;
        Ok(pieces.iter().map(|p| u64::from(p.pages) * PAGE as u64).sum())
    };
    spread(wanted, &work, progress)
}

/// What an image has of one owner, where what its parent had is known.
fn merge(owner: Owner, list: &[Entry], own: u32, mut before: &[Place]) -> Result<Vec<Place>> {
    let mut places = Vec::with_capacity(list.len() + before.len());
    for entry in list {
        let at = match entry.what {
            What::Data { block, page } => Some(At { image: own, block, page, delta: false }),
            What::Delta { block, page } => Some(At { image: own, block, page, delta: true }),
            What::Zero => None,
            What::Parent => {
                let mut next = entry.address;
                while next < entry.end() {
                    let place = before.first().ok_or_else(|| missing(owner))?;
                    if place.end() > next {
                        if place.address > next {
                            return Err(missing(owner));
                        }
                        push(&mut places, place.part(next, entry.end()));
                        next = place.end().min(entry.end());
                    }
                    if place.end() <= entry.end() {
                        before = &before[1..];
                    }
                }
                continue;
            }
        };
        push(&mut places, Place { address: entry.address, pages: entry.pages, at });
    }
    Ok(places)
}

/// Adds pages, to the last ones where they continue these.
pub(super) fn push(places: &mut Vec<Place>, next: Place) {
    if let Some(last) = places.last_mut().filter(|last| last.end() == next.address)
        && let Some(pages) = last.pages.checked_add(next.pages)
    {
        let continued = last.at.map(|at| At { page: at.page + last.pages, ..at });
        if continued == next.at {
            last.pages = pages;
            return;
        }
    }
    places.push(next);
}

/// What an image builds upon, down to the one that has no parent.
fn ancestors(link: &ParentLink, child: &Reader<'_>) -> Result<Resolved> {
    let mut folder = child.folder().to_owned();
    let (mut found, mut seen) = (Vec::new(), HashSet::from([child.id()]));
    let mut next = Some(link.clone());
    while let Some(link) = next {
        if found.len() >= MOST {
            return Err(Error::image(format!("the image has more than {MOST} ancestors")));
        }
        let (path, mut reader) = look_for(&link, &folder, &[], child.machine())?;
        if !seen.insert(link.id) {
            return Err(changed(&path));
        }
        next = reader.link().context(|| format!("parent image {}", path.display()))?;
        if path.parent() != Some(&folder) || std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) {
            folder = folder_of(&path);
        }
        found.push((link, path, reader));
    }
    let mut last: Option<Resolved> = None;
    for (named, path, mut reader) in found.into_iter().rev() {
        let link = reader.parent().cloned();
        let parent = link.as_ref().zip(last.as_ref());
        let resolved = Resolved::upon(&mut reader, &path, parent).context(|| format!("parent image {}", path.display()))?;
        if resolved.hash != named.hash {
            return Err(changed(&path));
        }
        last = Some(resolved);
    }
    last.ok_or_else(|| Error::other("an image without ancestors was asked for them"))
}
