//! What has changed since the last look: three trackers behind one trait.
//!
//! | tracker | needs | how |
//! |---|---|---|
//! | [`uffd`] | Linux 6.7 | pages are write-protected; the kernel lifts that at the first write and notes it |
//! | [`soft_dirty`] | `CONFIG_MEM_SOFT_DIRTY` | the kernel marks written pages; asked and wiped while nothing runs |
//! | [`hash`] | nothing | meio remembers what it copied |
//!
//! A look tells of each page that exists whether it may have changed since the last look (*changed*) or surely has not
//! (*kept*). What a tracker cannot see counts as changed: a process that is met for the first time, a mapping that is new
//! or was moved, memory of which the kernel notes nothing. Memory that several processes may write to (shared memory,
//! memfd, deleted files, System V segments) is told by hashes under every tracker, at the object itself: who else has it
//! mapped, or had it mapped for a moment, nobody tells.

mod guest;
pub mod hash;
mod ranges;
pub mod soft_dirty;
pub mod uffd;

use crate::error::Result;
use crate::sys::feature::{self, Probe};
use crate::sys::pagemap::Want;
use crate::sys::proc::maps::Vma;
use crate::tracee::foothold::Known;
use crate::tracee::freeze;
use hash::Hashes;
use std::collections::HashSet;
use std::fs::File;

/// What the user wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best one that works here: the first in the order of [`Choice::ALL`].
    #[default]
    Auto,
    /// [`uffd`].
    Uffd,
    /// [`soft_dirty`].
    SoftDirty,
    /// [`hash`].
    Hash,
}

impl Choice {
    /// The trackers, the best first.
    pub const ALL: [Choice; 3] = [Choice::Uffd, Choice::SoftDirty, Choice::Hash];

    /// As the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Choice::Auto => "auto",
            Choice::Uffd => "uffd",
            Choice::SoftDirty => "soft-dirty",
            Choice::Hash => "hash",
        }
    }

    /// Tries the tracker out, on memory of meio's own.
    pub fn probe(self) -> Probe {
        match self {
            Choice::Auto => Choice::ALL.iter().map(|c| c.probe()).find(|p| p.is_ok()).unwrap_or_else(|| Choice::Hash.probe()),
            Choice::Uffd => feature::userfaultfd(),
            Choice::SoftDirty => feature::soft_dirty(),
            Choice::Hash => Ok("pages are compared by hash".into()),
        }
    }
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let all = [Choice::Auto].into_iter().chain(Choice::ALL);
        all.into_iter().find(|c| c.name() == name).ok_or_else(|| "one of auto, uffd, soft-dirty, hash".into())
    }
}

/// Ranges (start, end) of pages; offsets where they belong to an object.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pages {
    /// Pages that exist and may be other ones than at the last look; in order, apart.
    pub changed: Vec<(u64, u64)>,
    /// Pages that exist and are surely the same as at the last look; likewise.
    pub kept: Vec<(u64, u64)>,
}

/// A private mapping, whole, whose own pages are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Which list of the answer its pages go to.
    pub class: Class,
    /// What it is made of.
    pub kind: Kind,
    /// Its pages may be merged with equal ones: `mg` among its `VmFlags` (madvise(2) `MADV_MERGEABLE`).
    pub mergeable: bool,
}

impl Area {
    /// Its own pages.
    fn want(&self) -> Want {
        if self.kind == Kind::Anonymous { Want::Anonymous } else { Want::Own }
    }
}

/// The same mappings without what overlaps: while a process runs its list may hold some twice, as they were and as they are.
fn apart(areas: &[Area]) -> impl Iterator<Item = Area> + '_ {
    let mut end = 0;
    areas.iter().filter_map(move |area| {
        let start = area.start.max(end);
        end = end.max(area.end);
        (start < area.end).then_some(Area { start, ..*area })
    })
}

/// What a private mapping is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: pages that are not the process's own are zero.
    Anonymous,
    /// A file: pages that are not the process's own are the file's.
    File,
    /// Huge pages of hugetlbfs, whatever is behind them.
    Hugetlb,
}

/// Kinds of memory that are read or stored in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Anonymous memory that the process may read.
    Plain,
    /// Memory over a file, likewise.
    OverFile,
    /// Memory that the process itself may not read.
    Protected,
}

/// The answer for one process.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen([Pages; 3]);

impl std::ops::Index<Class> for Seen {
    type Output = Pages;
    fn index(&self, class: Class) -> &Pages {
        &self.0[class as usize]
    }
}

impl std::ops::IndexMut<Class> for Seen {
    fn index_mut(&mut self, class: Class) -> &mut Pages {
        &mut self.0[class as usize]
    }
}

/// Whose bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Of {
    /// A process, by pid: bytes at addresses.
    Process(i32),
    /// An object, by device and inode: bytes at offsets.
    Object(u64, u64),
}

/// Tells what has changed in a tree since it was last asked.
///
/// What it tells holds with regard to the look before: who does not save what was told must say so
/// ([`Tracker::doubt`]).
pub trait Tracker: Send + Sync {
    /// As the user writes it.
    fn name(&self) -> &'static str;

    /// Whether a process must stand still to be looked at.
    fn still(&self) -> bool;

    /// Whether [`Tracker::enter`] would have something to do: the process is new, or has called execve(2).
    fn stranger(&self, pid: i32) -> bool;

    /// Prepares a process that stands still; the one occasion at which calls are made in it. Nothing to do for one that is
    /// known. Where it cannot be prepared all of it counts as changed at every look; why, is returned. What calls disturb must
    /// have been asked before, the time that sleeps have left above all; `call` is the call that its leader waits in, when
    /// that is known ([`Injector::begin`](crate::tracee::inject::Injector::begin)).
    ///
    /// # Errors
    /// When it could not be given back as it was.
    fn enter(&mut self, process: &mut freeze::Process, vmas: &[Vma], call: Option<u64>, known: &mut Known) -> Result<Option<String>>;

    /// Adds the pages of these mappings to `seen`. They are all private mappings of the process, by address: what is
    /// not among them is forgotten. Nothing is missed that a process which runs changes meanwhile: it is told the next time,
    /// and so pages must be copied after the look that told them.
    ///
    /// But for what the kernel is just about to write past the page tables: it has noted that (process_vm_writev(2), reads
    /// with `O_DIRECT`) before this look, and writes after it. All tasks that may do so must have stood still once between
    /// this look and the copying; asynchronous I/O must have come to its end.
    ///
    /// # Errors
    /// When the process has gone, or may not be looked at. All of it counts as changed at the next look then.
    fn look(&mut self, pid: i32, areas: &[Area], seen: &mut Seen) -> Result<()>;

    /// The same for an object of `size` bytes, read through `file`. `id` is an [`Of::Object`].
    ///
    /// # Errors
    /// When it cannot be read.
    fn object(&mut self, id: Of, file: &File, size: u64, pages: &mut Pages) -> Result<()> {
        self.hashes().object(id, file, size, pages)
    }

    /// Must be told all bytes that were copied after a look: pages at `ranges` (address or offset, pages). Called by any
    /// thread.
    fn copied(&self, of: Of, ranges: &[(u64, u32)], bytes: &[u8]) {
        if let Of::Object(..) = of {
            self.hashes().note(of, ranges, bytes);
        }
    }

    /// These pages were told to have changed, but could not be copied: should they still exist at the next look, they count
    /// as changed.
    fn missed(&mut self, of: Of, range: (u64, u64));

    /// What was told is not saved: everything counts as changed at the next look.
    fn doubt(&mut self);

    /// Whether meio itself is why mappings of this process show `uw` among their `VmFlags`.
    fn protects(&self, pid: i32) -> bool;

    /// Forgets all other processes and objects.
    fn retain(&mut self, of: &HashSet<Of>);

    /// What is known by hash.
    fn hashes(&self) -> &Hashes;
}

/// The tracker that was chosen.
///
/// # Errors
/// `Kernel` with what is missing, when it does not work here.
pub fn tracker(choice: Choice) -> Result<Box<dyn Tracker>> {
    let works = |c: Choice| c.probe().map(|_| c);
    let chosen = match choice {
        Choice::Auto => Choice::ALL.into_iter().find_map(|c| works(c).ok()).unwrap_or(Choice::Hash),
        choice => works(choice).map_err(|lack| {
            crate::error::Error::new(crate::error::Kind::Kernel, format!("changes cannot be tracked by {}: {lack}", choice.name()))
                .help("--track auto takes the best way that works here; meio check shows them all")
        })?,
    };
    Ok(match chosen {
        Choice::Uffd => Box::new(uffd::Uffd::new()?),
        Choice::SoftDirty => Box::new(soft_dirty::SoftDirty::default()),
        Choice::Auto | Choice::Hash => Box::new(hash::Hash::default()),
    })
}

#[cfg(test)]
mod tests;
