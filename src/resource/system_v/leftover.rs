//! What is left of System V objects where a tree was that has moved away with them.

use super::{Perm, SystemV};
use crate::sys::ipc;
use crate::sys::proc::{read, stat};
use serde::{Deserialize, Serialize};

/// Objects of a tree, as far as they must be known to be found again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Leftover {
    /// Shared memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    segments: Vec<Perm>,
    /// Semaphores.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sets: Vec<Perm>,
    /// Message queues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    queues: Vec<Perm>,
}

/// Whether a process lives that is not meio, which has perhaps looked at an object last.
fn lives(pid: i32) -> bool {
    let alive = || read::parsed(pid, "stat", stat::parse).is_ok_and(|s| !matches!(s.state, b'Z' | b'X'));
    pid > 0 && pid != std::process::id() as i32 && alive()
}

impl Leftover {
    /// These of the ipc namespace of meio.
    pub fn of(objects: &SystemV) -> Self {
        Leftover {
            segments: objects.segments.iter().map(|s| s.perm.clone()).collect(),
            sets: objects.sets.iter().map(|s| s.perm.clone()).collect(),
            queues: objects.queues.iter().map(|q| q.perm.clone()).collect(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Leftover::default()
    }

    /// Removes these from the ipc namespace of meio: the tree has ended here, and has its own elsewhere. What others have
    /// attached, have made or have used last stays, and so does what is another one by now.
    pub fn remove(&self) {
        if self.is_empty() {
            return;
        }
        let Ok(there) = SystemV::list() else { return };
        for segment in there.segments.iter().filter(|there| self.segments.contains(&there.perm)) {
            if segment.attached == 0 && ![segment.cpid, segment.lpid].into_iter().any(lives) {
                let _ = ipc::shm_remove(segment.perm.id);
            }
        }
        for set in there.sets.iter().filter(|there| self.sets.contains(&there.perm)) {
            if !set.semaphores.iter().any(|s| lives(s.1)) {
                let _ = ipc::sem_remove(set.perm.id);
            }
        }
        for queue in there.queues.iter().filter(|there| self.queues.contains(&there.perm)) {
            if ![queue.lspid, queue.lrpid].into_iter().any(lives) {
                let _ = ipc::msg_remove(queue.perm.id);
            }
        }
    }
}
