//! What has changed since the last look: three trackers behind one trait.
//!
//! | tracker | needs | how |
//! |---|---|---|
//! | [`uffd`] | Linux 6.7 | pages are write-protected; the kernel lifts it at the first write and notes that |
//!
//! A look tells of each page that exists whether it may have changed since the last look (*changed*) or surely has not
//! (*kept*). What a tracker cannot see counts as changed: a process that is met for the first time, a mapping that is new
//! or was moved, memory of which the kernel notes nothing.

mod uffd;

pub use crate::sys::pagemap::Pages;

use crate::error::Result;
use crate::sys::proc::maps::Vma;
use crate::tracee::foothold::Known;
use crate::tracee::freeze;
use std::collections::HashSet;

/// What the user wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best one that works here.
    #[default]
    Auto,
    /// [`uffd`].
    Uffd,
    /// Soft-dirty bits.
    SoftDirty,
    /// Hashes.
    Hash,
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
    /// There is a file behind it: a page that is not the process's own is the file's.
    pub file: bool,
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

impl Seen {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(Pages::clear);
    }
}

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

/// Tells what has changed in a tree since it was last asked.
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
    /// not among them is forgotten. Of a process that runs nothing is missed that changes meanwhile: it is told the next time, and
    /// so must be copied after this look.
    ///
    /// # Errors
    /// When the process has gone, or may not be looked at.
    fn look(&mut self, pid: i32, areas: &[Area], seen: &mut Seen) -> Result<()>;

    /// Whether meio itself is why mappings of this process show `uw` among their `VmFlags`.
    fn protects(&self, pid: i32) -> bool;

    /// Forgets all other processes.
    fn retain(&mut self, pids: &HashSet<i32>);
}

/// The tracker for a choice.
pub fn tracker(_choice: Choice) -> Result<Box<dyn Tracker>> {
    Ok(Box::new(uffd::Uffd::default()))
}
