//! The memory of a saved tree, read where one asks for it: what stands in the image, what stands in
//! files that are still the same, zero where nothing was ever written. Blocks of the image are
//! decoded when a page of theirs is wanted and a bounded number of them is kept, so an image that
//! is a file may be larger than the memory of this machine.

use super::elf::{self, ReadMemory};
use crate::error::{Context, Error, Result};
use crate::image::{Block, Chain, Content, EncodedBlock, FromParent, Needed, Owner, ParentLink, Reader, Run};
use crate::resource::memory::{Backing, MappedFile, Mapping, ObjectId, PAGE};
use crate::resource::process::Process;
use crate::resource::{Manifest, Tree};
use rayon::prelude::*;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// Decoded blocks that are kept, 1 MiB each.
const KEPT_BLOCKS: usize = 64;

/// Consecutive pages of one owner that the image has.
#[derive(Debug, Clone, Copy)]
struct Extent {
    address: u64,
    pages: u32,
    /// Block and first page in its data; `None` for zero.
    data: Option<(u32, u32)>,
}

impl Extent {
    fn end(&self) -> u64 {
        self.address + u64::from(self.pages) * PAGE
    }
}

/// The last blocks that were decoded.
#[derive(Default)]
struct Decoded {
    blocks: HashMap<u32, (u64, Rc<Block>)>,
    clock: u64,
}

/// All that an image holds, and the files around it.
pub struct Contents {
    manifest: Manifest,
    tree: Tree,
    parent: Option<ParentLink>,
    blocks: Vec<EncodedBlock>,
    /// Blocks of ancestors, which are counted behind those of the image itself, and the file that each is in.
    older: Vec<(Rc<Path>, Needed)>,
    extents: HashMap<Owner, Vec<Extent>>,
    decoded: RefCell<Decoded>,
    files: Vec<OnceCell<Option<Rc<File>>>>,
}

impl Contents {
    /// Reads the metadata of an image and finds its pages; checks everything that it reads.
    pub fn read(mut reader: Reader<'_>) -> Result<Contents> {
        let manifest = reader.manifest()?;
        let tree: Tree = reader.tree()?;
        let mut blocks = Vec::new();
        while let Some(block) = reader.next_block()? {
            blocks.push(block);
        }
        let described = blocks.par_iter().map(EncodedBlock::describe).collect::<Result<Vec<_>>>()?;
        let mut extents: HashMap<Owner, Vec<Extent>> = HashMap::new();
        let mut from_parent = FromParent::default();
        let first = blocks.len();
        for (number, (owner, runs)) in described.into_iter().enumerate() {
            let number = u32::try_from(number).map_err(|_| too_many())?;
            from_parent.note(owner, &runs)?;
            extents.entry(owner).or_default().extend(place(number, &runs));
        }
        let chain = Chain::find(&reader, from_parent)?;
        chain.check()?;
        let older: Vec<_> = chain
            .members
            .iter()
            .flat_map(|m| {
                let path: Rc<Path> = m.path.as_path().into();
                m.needed.iter().map(move |needed| (path.clone(), needed.clone()))
            })
            .collect();
        for (n, (_, needed)) in older.iter().enumerate() {
            let number = u32::try_from(first + n).map_err(|_| too_many())?;
            for p in &needed.pieces {
                extents.entry(p.owner).or_default().push(Extent { address: p.address, pages: p.pages, data: Some((number, p.page)) });
            }
        }
        for &(owner, address, pages) in &chain.zero {
            extents.entry(owner).or_default().push(Extent { address, pages, data: None });
        }
        for list in extents.values_mut() {
            list.sort_by_key(|e| e.address);
        }
        let files = tree.mapped.iter().map(|_| OnceCell::new()).collect();
        Ok(Contents { manifest, tree, parent: reader.parent().cloned(), blocks, older, extents, decoded: RefCell::default(), files })
    }

    /// Where and when the image was made.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The image that it builds upon.
    pub fn parent(&self) -> Option<&ParentLink> {
        self.parent.as_ref()
    }

    /// Everything but the pages.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The mapping at an address of a process.
    pub fn mapping_at<'a>(&self, process: &'a Process, address: u64) -> Option<&'a Mapping> {
        let mappings = &process.memory.as_ref()?.mappings;
        let end = mappings.partition_point(|m| m.start <= address);
        mappings[..end].last().filter(|m| m.contains(address))
    }

    /// Fills `buf` with the memory of a process from `address` on; returns how many leading bytes are known.
    pub fn read_process(&self, process: &Process, address: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Some(mapping) = self.mapping_at(process, at) else { break };
            // Both ends lie in the same page.
            let room = (PAGE - at % PAGE).min(mapping.end - at) as usize;
            let end = buf.len().min(done + room);
            if !self.read_in_page(process, mapping, at, &mut buf[done..end])? {
                break;
            }
            done = end;
        }
        Ok(done)
    }

    /// Bytes of one page of one mapping; false when nobody knows them.
    fn read_in_page(&self, process: &Process, mapping: &Mapping, at: u64, buf: &mut [u8]) -> Result<bool> {
        if self.read_saved(Owner::Process(process.pid), at, buf)? {
            return Ok(true);
        }
        let into = at - mapping.start;
        match mapping.backing {
            Backing::Anonymous => buf.fill(0),
            Backing::Object { object, offset } => {
                return self.read_object(object, offset.saturating_add(into), buf);
            }
            Backing::File { file, offset } => {
                let Some(file) = self.file(file) else { return Ok(false) };
                let got = file.read(offset.saturating_add(into), buf);
                // The rest of a file's last page is zero, behind that page is nothing.
                if got == 0 && (offset.saturating_add(into)) % PAGE == 0 {
                    return Ok(false);
                }
                buf[got..].fill(0);
            }
            Backing::Kernel => return Ok(false),
        }
        Ok(true)
    }

    /// Bytes of one page of an object; false behind its end.
    fn read_object(&self, object: ObjectId, offset: u64, buf: &mut [u8]) -> Result<bool> {
        if self.read_saved(Owner::Object(object), offset, buf)? {
            return Ok(true);
        }
        let known = self.tree.objects.iter().find(|o| o.id == object);
        buf.fill(0);
        Ok(known.is_some_and(|o| offset < o.size.next_multiple_of(PAGE)))
    }

    /// Bytes of one page out of the image itself; false when the image does not have that page.
    fn read_saved(&self, owner: Owner, at: u64, buf: &mut [u8]) -> Result<bool> {
        let extents = self.extents.get(&owner).map_or(&[][..], |e| e);
        let before = &extents[..extents.partition_point(|e| e.address <= at)];
        let Some(extent) = before.last().filter(|e| at < e.end()) else { return Ok(false) };
        let Some((block, page)) = extent.data else {
            buf.fill(0);
            return Ok(true);
        };
        let block = self.block(block)?;
        let from = (u64::from(page) * PAGE + (at - extent.address)) as usize;
        let bytes = block.data.get(from..from + buf.len());
        buf.copy_from_slice(bytes.ok_or_else(|| {
            let number = block.number;
            Error::image(format!("image damaged: page {at:#x} is a copy of one that block {number} does not have"))
        })?);
        Ok(true)
    }

    /// A block, decoded now or kept from before.
    fn block(&self, number: u32) -> Result<Rc<Block>> {
        let mut decoded = self.decoded.borrow_mut();
        decoded.clock += 1;
        let now = decoded.clock;
        if let Some((used, block)) = decoded.blocks.get_mut(&number) {
            *used = now;
            return Ok(block.clone());
        }
        let missing = || Error::image(format!("image damaged: block {number} is named but not there"));
        let block = match self.blocks.get(number as usize) {
            Some(block) => block.clone().decode()?,
            None => {
                let (path, needed) = self.older.get(number as usize - self.blocks.len()).ok_or_else(missing)?;
                let file = File::open(path).context(|| format!("opening image {}", path.display()))?;
                needed.decode(&Arc::new(file), Vec::new()).context(|| path.display().to_string())?
            }
        };
        let block = Rc::new(block);
        if decoded.blocks.len() >= KEPT_BLOCKS {
            let oldest = decoded.blocks.iter().min_by_key(|(_, (used, _))| *used).map(|(&n, _)| n);
            oldest.map(|n| decoded.blocks.remove(&n));
        }
        decoded.blocks.insert(number, (now, block.clone()));
        Ok(block)
    }

    /// The ranges of a mapping of which the image itself has pages, by address and without gaps inside.
    pub fn saved(&self, process: &Process, mapping: &Mapping) -> Vec<Range<u64>> {
        let mut ranges = self.extents_in(Owner::Process(process.pid), mapping.start..mapping.end);
        if let Backing::Object { object, offset } = mapping.backing {
            let end = offset.saturating_add(mapping.end - mapping.start);
            let shift = |at: u64| at - offset + mapping.start;
            let behind = self.extents_in(Owner::Object(object), offset..end);
            ranges.extend(behind.into_iter().map(|r| shift(r.start)..shift(r.end)));
        }
        ranges.sort_by_key(|r| r.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for r in ranges {
            match joined.last_mut() {
                Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
                _ => joined.push(r),
            }
        }
        joined
    }

    fn extents_in(&self, owner: Owner, within: Range<u64>) -> Vec<Range<u64>> {
        let extents = self.extents.get(&owner).map_or(&[][..], |e| e);
        // One extent may begin in front of the range and reach into it.
        let first = extents.partition_point(|e| e.address < within.start).saturating_sub(1);
        let reached = extents[first..].iter().take_while(|e| e.address < within.end);
        let cut = reached.map(|e| e.address.max(within.start)..e.end().min(within.end));
        cut.filter(|r| r.start < r.end).collect()
    }

    /// A mapped file, opened, when it still is the file that was mapped.
    pub fn file(&self, index: u32) -> Option<Rc<File>> {
        let mapped = self.tree.mapped.get(index as usize)?;
        self.files.get(index as usize)?.get_or_init(|| open_same(mapped).map(Rc::new)).clone()
    }

    /// The memory of one process, for what cannot fail in the middle of its work.
    pub fn process<'a>(&'a self, process: &'a Process) -> ProcessMemory<'a> {
        ProcessMemory { contents: self, process, failed: RefCell::default() }
    }
}

/// Where the pages of a block belong.
fn place(number: u32, runs: &[Run]) -> impl Iterator<Item = Extent> {
    let mut next = 0;
    runs.iter().filter_map(move |run| {
        let data = match run.content {
            Content::Zero => None,
            Content::Parent => return None,
            Content::Copy { block, page } => Some((block, page)),
            Content::Data => {
                let page = next;
                next += run.pages;
                Some((number, page))
            }
            Content::Unused | Content::Delta => {
                next += run.pages;
                return None;
            }
        };
        Some(Extent { address: run.address, pages: run.pages, data })
    })
}

fn too_many() -> Error {
    Error::image("image has too many blocks")
}

/// Opens a file if it is the one that was mapped: by its build id where it has one, else by size and
/// time of last change. The path comes out of an image that anybody may have written: nothing but a
/// regular file is opened in earnest.
fn open_same(mapped: &MappedFile) -> Option<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&mapped.path).ok()?;
    let now = file.metadata().ok().filter(|m| m.is_file())?;
    let same = match &mapped.build_id {
        Some(id) => elf::build_id(&file).as_ref() == Some(id),
        None => (now.size(), now.mtime(), now.mtime_nsec()) == (mapped.size, mapped.mtime.0, mapped.mtime.1.into()),
    };
    same.then_some(file)
}

/// The memory of one process. A damaged image reads as nothing; [`ProcessMemory::failed`] then has the reason.
pub struct ProcessMemory<'a> {
    contents: &'a Contents,
    process: &'a Process,
    failed: RefCell<Option<Error>>,
}

impl ProcessMemory<'_> {
    /// Why a read failed, if one did.
    pub fn failed(self) -> Result<()> {
        self.failed.into_inner().map_or(Ok(()), Err)
    }
}

impl ReadMemory for ProcessMemory<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> usize {
        self.contents.read_process(self.process, address, buf).unwrap_or_else(|e| {
            self.failed.borrow_mut().get_or_insert(e);
            0
        })
    }
}

/// The bytes of an object of the image, from its start.
pub struct ObjectMemory<'a> {
    /// Where it is.
    pub contents: &'a Contents,
    /// Which.
    pub object: ObjectId,
}

impl ReadMemory for ObjectMemory<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let end = buf.len().min(done + (PAGE - at % PAGE) as usize);
            match self.contents.read_object(self.object, at, &mut buf[done..end]) {
                Ok(true) => done = end,
                _ => break,
            }
        }
        done
    }
}
