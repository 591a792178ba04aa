//! The ipc namespaces that the processes of a tree live in, each with objects of its own.

use super::segment::refuse_outsiders;
use super::{SemaphoreSet, SystemV, Tree, within};
use crate::error::Result;
use crate::resource::capture::Capture;
use crate::resource::process::Process;
use crate::sys::proc::read;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Objects of an ipc namespace other than the root's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elsewhere {
    /// An index into [`crate::resource::Tree::namespaces`]; `None` for the one that meio was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u32>,
    /// What is there.
    pub objects: SystemV,
}

/// What may belong to the tree, and then what does.
#[derive(Debug, Default)]
pub struct Listed {
    /// By inode of the namespace, which each process lives in.
    by_space: HashMap<u64, SystemV>,
    lives: HashMap<i32, u64>,
    /// What the tree has in the namespace of its root.
    pub of_root: SystemV,
    /// What it has in others.
    pub elsewhere: Vec<Elsewhere>,
}

impl Listed {
    /// Everything in the ipc namespaces of these processes, before they are asked.
    pub fn of(pids: impl Iterator<Item = i32>) -> Result<Self> {
        let mut listed = Listed::default();
        for pid in pids {
            // Who has ended lives in none.
            let space = read::namespace(pid, "ipc").map_or(0, |identity| identity.1);
            listed.lives.insert(pid, space);
            if space != 0 && !listed.by_space.contains_key(&space) {
                listed.by_space.insert(space, within(pid, SystemV::list)?.0);
            }
        }
        if listed.by_space.is_empty() {
            listed.by_space.insert(0, SystemV::list()?); // a kernel without ipc namespaces
        }
        Ok(listed)
    }

    /// The semaphores that a process could have to do with.
    pub fn sets(&self, pid: i32) -> &[SemaphoreSet] {
        let space = self.lives.get(&pid).and_then(|space| self.by_space.get(space));
        space.map_or(&[], |objects| objects.sets.as_slice())
    }
}

/// Keeps what belongs to the tree, with its content.
pub fn capture(processes: &[Process], tree: &HashSet<i32>, capture: &mut Capture) -> Result<()> {
    let mut listed = std::mem::take(&mut capture.system_v);
    // The root's first; it may have ended, and then its namespace is not known any more.
    for (n, process) in processes.iter().enumerate() {
        let Some(&space) = listed.lives.get(&process.pid) else { continue };
        let Some(found) = listed.by_space.remove(&space) else { continue };
        let here: Vec<&Process> = processes.iter().filter(|p| listed.lives.get(&p.pid) == Some(&space)).collect();
        let owner = Tree::new(tree.iter().copied(), capture.ipc_of(process.pid));
        let (kept, _) = within(process.pid, || found.capture(&owner, &here, capture))?;
        refuse_outsiders(&kept.segments, processes, tree, capture);
        match n {
            0 => listed.of_root = kept,
            _ if kept.is_empty() => {}
            _ => listed.elsewhere.push(Elsewhere { namespace: owner.space, objects: kept }),
        }
    }
    capture.system_v = listed;
    Ok(())
}
