//! System V objects of a tree: looked for, made before there is memory, finished when everybody has them.

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::resource::Tree;
use crate::resource::system_v::{self, Actors, SystemV};
use crate::sys::ipc;
use crate::sys::namespace::Kind;
use std::collections::HashSet;

/// What was made. It is removed again unless the tree comes to life.
#[derive(Debug, Default)]
pub struct Made {
    segments: Vec<i32>,
    sets: Vec<i32>,
    queues: Vec<i32>,
    pids: HashSet<i32>,
    /// They are in an ipc namespace of the tree's own, and go with it.
    apart: bool,
}

/// Whether the tree has an ipc namespace of its own.
fn apart(tree: &Tree) -> bool {
    tree.processes.first().is_some_and(|root| root.places.of(&tree.namespaces, Kind::Ipc).is_some())
}

/// Finds what is in the way, before anything is started.
pub fn check(tree: &Tree) -> Result<()> {
    if apart(tree) {
        return Ok(()); // nobody else is there
    }
    let refusals = tree.system_v.check(&pids(tree))?;
    if refusals.is_empty() { Ok(()) } else { Err(Error::refused("cannot restore: System V objects are in the way", refusals)) }
}

fn pids(tree: &Tree) -> HashSet<i32> {
    tree.processes.iter().map(|p| p.pid).collect()
}

impl Made {
    /// For the objects of this tree.
    pub fn new(tree: &Tree) -> Self {
        Made { pids: pids(tree), segments: vec![], sets: vec![], queues: vec![], apart: apart(tree) }
    }

    /// Makes everything, or takes over what is there still.
    pub fn make(&mut self, objects: &SystemV, actors: &Actors, pool: &mut Pool, warnings: &mut Vec<String>) -> Result<()> {
        if objects.is_empty() {
            return Ok(());
        }
        system_v::within(actors.root.pid, || self.make_here(objects, actors, pool, warnings)).map(drop)
    }

    fn make_here(&mut self, objects: &SystemV, actors: &Actors, pool: &mut Pool, warnings: &mut Vec<String>) -> Result<()> {
        for segment in &objects.segments {
            let (memory, new) = segment.make(actors, &self.pids)?;
            self.segments.extend(new.then_some(segment.perm.id));
            pool.put_segment(segment.object, memory)?;
        }
        for set in &objects.sets {
            let new = set.make(actors, &self.pids)?;
            self.sets.extend(new.then_some(set.perm.id));
        }
        for queue in &objects.queues {
            let new = queue.make(actors, &self.pids, warnings)?;
            self.queues.extend(new.then_some(queue.perm.id));
        }
        Ok(())
    }

    /// From here on they belong to the tree.
    pub fn keep(&mut self) {
        [&mut self.segments, &mut self.sets, &mut self.queues].into_iter().for_each(Vec::clear);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.apart {
            return;
        }
        for id in self.segments.drain(..) {
            let _ = ipc::shm_remove(id);
        }
        for id in self.sets.drain(..) {
            let _ = ipc::sem_remove(id);
        }
        for id in self.queues.drain(..) {
            let _ = ipc::msg_remove(id);
        }
    }
}

/// When all address spaces are complete.
pub fn finish(tree: &Tree, actors: &Actors) -> Result<()> {
    if tree.system_v.is_empty() {
        return Ok(());
    }
    system_v::within(actors.root.pid, || finish_here(tree, actors)).map(drop)
}

fn finish_here(tree: &Tree, actors: &Actors) -> Result<()> {
    let objects = &tree.system_v;
    let undo = |set: i32| tree.processes.iter().filter(move |p| p.undo.iter().any(|u| u.set == set));
    for set in &objects.sets {
        for process in undo(set.perm.id) {
            if let Some(stub) = actors.stubs.get(&process.pid) {
                set.adjust(stub, &process.undo)?;
            }
        }
        set.finish(actors, undo(set.perm.id).next().is_some())?;
    }
    objects.segments.iter().try_for_each(|segment| segment.finish(actors))
}
