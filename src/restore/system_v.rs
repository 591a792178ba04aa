//! System V objects of a tree: looked for, made before there is memory, finished when everybody has them.

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::resource::Tree;
use crate::resource::process::Process;
use crate::resource::system_v::{self, Actors, SystemV};
use crate::sys::ipc;
use crate::sys::namespace::Kind;
use crate::tracee::stub::Stub;
use std::collections::{HashMap, HashSet};

/// What was made. It is removed again unless the tree comes to life; in an ipc namespace of the tree's own it goes with
/// that.
#[derive(Debug, Default)]
pub struct Made {
    segments: Vec<i32>,
    sets: Vec<i32>,
    queues: Vec<i32>,
    pids: HashSet<i32>,
}

/// The namespaces of a tree, `None` for meio's, and what is to be there.
fn spaces(tree: &Tree) -> impl Iterator<Item = (Option<u32>, &SystemV)> {
    let root = tree.processes.first().and_then(|root| root.places.of(&tree.namespaces, Kind::Ipc));
    std::iter::once((root, &tree.system_v)).chain(tree.system_v_elsewhere.iter().map(|e| (e.namespace, &e.objects)))
}

/// Finds what is in the way, before anything is started.
pub fn check(tree: &Tree) -> Result<()> {
    let mut refusals = Vec::new();
    for (space, objects) in spaces(tree) {
        if lives(tree, space).next().is_none() && !objects.is_empty() {
            return Err(Error::image("image damaged: System V objects where nobody lives"));
        }
        if space.is_none() {
            refusals.extend(objects.check(&pids(tree))?); // nobody else is in one of its own
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(Error::refused("cannot restore: System V objects are in the way", refusals)) }
}

fn pids(tree: &Tree) -> HashSet<i32> {
    tree.processes.iter().map(|p| p.pid).collect()
}

/// The living processes of an ipc namespace.
fn lives(tree: &Tree, space: Option<u32>) -> impl Iterator<Item = &Process> {
    tree.processes.iter().filter(move |p| p.memory.is_some() && p.places.of(&tree.namespaces, Kind::Ipc) == space)
}

/// Does something about the objects of each namespace, there.
fn in_each(tree: &Tree, all: &Actors, mut work: impl FnMut(Option<u32>, &SystemV, &Actors) -> Result<()>) -> Result<()> {
    for (space, objects) in spaces(tree).filter(|(_, objects)| !objects.is_empty()) {
        let stubs: HashMap<i32, Stub> = lives(tree, space).filter_map(|p| Some((p.pid, *all.stubs.get(&p.pid)?))).collect();
        let Some(first) = lives(tree, space).find(|p| stubs.contains_key(&p.pid)) else { continue };
        let actors = Actors { root: stubs[&first.pid], helpers: first.level() == 0, stubs, own: all.own };
        system_v::within(actors.root.pid, || work(space, objects, &actors))?;
    }
    Ok(())
}

impl Made {
    /// For the objects of this tree.
    pub fn new(tree: &Tree) -> Self {
        Made { pids: pids(tree), segments: vec![], sets: vec![], queues: vec![] }
    }

    /// Makes everything, or takes over what is there still.
    pub fn make(&mut self, tree: &Tree, actors: &Actors, pool: &mut Pool, warnings: &mut Vec<String>) -> Result<()> {
        in_each(tree, actors, |space, objects, actors| self.make_here(space, objects, actors, pool, warnings))
    }

    fn make_here(
        &mut self,
        space: Option<u32>,
        objects: &SystemV,
        actors: &Actors,
        pool: &mut Pool,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let outside = space.is_none();
        for segment in &objects.segments {
            let (memory, new) = segment.make(actors, &self.pids)?;
            self.segments.extend((new && outside).then_some(segment.perm.id));
            pool.put_segment(segment.object, memory)?;
        }
        for set in &objects.sets {
            let new = set.make(actors, &self.pids)?;
            self.sets.extend((new && outside).then_some(set.perm.id));
        }
        for queue in &objects.queues {
            let new = queue.make(actors, &self.pids, warnings)?;
            self.queues.extend((new && outside).then_some(queue.perm.id));
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
    in_each(tree, actors, |space, objects, actors| finish_here(tree, space, objects, actors))
}

fn finish_here(tree: &Tree, space: Option<u32>, objects: &SystemV, actors: &Actors) -> Result<()> {
    let undo = |set: i32| lives(tree, space).filter(move |p| p.undo.iter().any(|u| u.set == set));
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
