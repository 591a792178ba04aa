//! Semaphore sets: semget(2), semop(2).

use super::{Actors, Perm, Standing, Tree, Undo, Verdict, choose_next_id, table, vanished};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::ipc;
use crate::tracee::stub::Stub;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};

/// Largest value of a semaphore and of an adjustment, `SEMVMX` and `SEMAEM`.
pub const LARGEST: i32 = 32767;
/// Semaphores of one set, at most, that an image may claim.
const SEMMSL: usize = 65536;

/// One set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SemaphoreSet {
    /// Id, key, owners.
    pub perm: Perm,
    /// Of each semaphore its value and the process that changed it last, `sempid`.
    pub semaphores: Vec<(i32, i32)>,
    /// Last semop(2), seconds since 1970; 0 when there was none.
    pub otime: i64,
}

/// All sets of the namespace.
pub fn list() -> Result<Vec<SemaphoreSet>> {
    let mut sets = Vec::new();
    for row in table("sem")? {
        let perm = Perm::from_row(&row, "semid");
        let values: std::result::Result<Vec<_>, _> = (0..row.get("nsems") as i32).map(|n| ipc::semaphore(perm.id, n)).collect();
        match values {
            Ok(semaphores) => sets.push(SemaphoreSet { perm, semaphores, otime: row.get("otime") }),
            Err(e) if vanished(e) => {}
            // Somebody else's, which we may not even read.
            Err(nix::errno::Errno::EACCES) => {}
            Err(e) => return Err(e).context(|| format!("reading semaphore set {}", perm.id)),
        }
    }
    Ok(sets)
}

/// `struct sembuf` of semop(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub number: u16,
    pub change: i16,
    pub flags: i16,
}

impl Operation {
    /// As the kernel reads it.
    pub fn bytes(list: &[Operation]) -> Vec<u8> {
        list.iter().flat_map(|o| [o.number.to_le_bytes(), o.change.to_le_bytes(), o.flags.to_le_bytes()]).flatten().collect()
    }
}

/// Operations that change nothing but who was the last to operate on a semaphore of this value, and its adjustment:
/// by `adjustment`, which is what the kernel adds at the process's end.
pub fn neutral(number: u16, value: i32, adjustment: i32) -> Vec<Operation> {
    let op = |change: i32, flags: i32| Operation { number, change: change as i16, flags: (flags | libc::IPC_NOWAIT) as i16 };
    if adjustment == 0 {
        let first = if value < LARGEST { 1 } else { -1 };
        return vec![op(first, 0), op(-first, 0)];
    }
    let mut list = Vec::new();
    let mut left = adjustment;
    while left != 0 {
        // Above or below the value, whichever has more room.
        let up = LARGEST - value >= value;
        let room = if up { LARGEST - value } else { value };
        let size = left.abs().min(room);
        // The adjustment is the negative of what was done with SEM_UNDO.
        let undone = -left.signum() * size;
        let (undo, plain) = (op(undone, libc::SEM_UNDO), op(-undone, 0));
        list.extend(if (undone > 0) == up { [undo, plain] } else { [plain, undo] });
        left += undone;
    }
    list
}

impl SemaphoreSet {
    /// Whether a process of the tree was the last at any of its semaphores.
    pub fn used_by(&self, tree: &Tree) -> bool {
        self.semaphores.iter().any(|&(_, pid)| tree.did(pid, self.otime.max(self.perm.ctime)))
    }

    /// What of it is there, in the caller's namespace.
    pub fn standing(&self, pids: &HashSet<i32>) -> Result<Verdict> {
        let standing = self.perm.standing(&table("sem")?, "semid", "semaphore set", "s");
        if standing != Ok(Standing::Same) {
            return Ok(standing);
        }
        let Some(now) = list()?.into_iter().find(|s| s.perm.id == self.perm.id) else { return Ok(Ok(Standing::Absent)) };
        let strange = now.semaphores.iter().zip(&self.semaphores).find(|(n, old)| n.1 != old.1 && !pids.contains(&n.1));
        match strange {
            Some((n, _)) => Ok(Err(self.perm.used_since("semaphore set", "s", n.1))),
            None => Ok(standing),
        }
    }

    /// Makes the set, or takes over the one that is there, with its values. True when it is new.
    pub fn make(&self, actors: &Actors, pids: &HashSet<i32>) -> Result<bool> {
        let id = self.perm.id;
        let doing = || format!("making semaphore set {id} again");
        if self.semaphores.len() > SEMMSL || self.semaphores.iter().any(|s| !(0..=LARGEST).contains(&s.0)) {
            return Err(Error::image(format!("image damaged: semaphore set {id} has impossible values")));
        }
        let there = self.standing(pids)?.map_err(|r| Error::refused("cannot restore", vec![*r]))?;
        let new = there == Standing::Absent;
        if new {
            choose_next_id("sem", id)?;
            let flags = libc::IPC_CREAT | libc::IPC_EXCL | self.perm.mode as i32;
            let made = actors.as_creator(&actors.root, self.perm.creator, |script| {
                let args = [self.perm.key as u32 as u64, self.semaphores.len() as u64, flags as u64];
                script.call("semget", libc::SYS_semget, &args)
            });
            let made = made.context(doing)? as i32;
            if made != id {
                let _ = ipc::sem_remove(made);
                return Err(Error::new(Kind::Unsupported, format!("semaphore set {id} cannot have its id: its place is taken")));
            }
        }
        let finish = || -> Result<()> {
            if self.perm.owner != self.perm.creator || !new {
                ipc::sem_set(id, self.perm.owner, self.perm.mode)?;
            }
            self.set_values(actors, new)
        };
        finish()
            .inspect_err(|_| {
                if new {
                    let _ = ipc::sem_remove(id);
                }
            })
            .context(doing)?;
        Ok(new)
    }

    /// Gives every semaphore its value, by the process that was there last. Ends all adjustments.
    fn set_values(&self, actors: &Actors, new: bool) -> Result<()> {
        // What is there already need not be set: nothing sets it back to "never touched".
        let now: Vec<(i32, i32)> = match new {
            true => vec![(0, 0); self.semaphores.len()],
            false => (0..self.semaphores.len() as i32).map(|n| ipc::semaphore(self.perm.id, n)).collect::<std::result::Result<_, _>>()?,
        };
        let wanted = |n: usize| self.semaphores[n].1 != 0 || now.get(n) != self.semaphores.get(n);
        self.by_pid(actors, wanted, |stub, numbers| {
            let mut script = stub.script();
            for &n in numbers {
                let value = self.semaphores[n as usize].0;
                script.call("semctl SETVAL", libc::SYS_semctl, &[self.perm.id as u64, u64::from(n), libc::SETVAL as u64, value as u64])?;
            }
            script.run().map(drop)
        })
    }

    /// After the adjustments were made again, which left their traces: notes once more who was there last.
    pub fn finish(&self, actors: &Actors, adjusted: bool) -> Result<()> {
        if self.otime == 0 && !adjusted {
            return Ok(());
        }
        self.by_pid(
            actors,
            |n| self.semaphores[n].1 != 0,
            |stub, numbers| {
                let mut script = stub.script();
                for &number in numbers {
                    let list = neutral(number, self.semaphores[number as usize].0, 0);
                    let at = script.data(&Operation::bytes(&list));
                    script.call("semop", libc::SYS_semop, &[self.perm.id as u64, at, list.len() as u64])?;
                }
                script.run().map(drop)
            },
        )
    }

    /// Lets each process act on the semaphores where it was last.
    fn by_pid(&self, actors: &Actors, wanted: impl Fn(usize) -> bool, work: impl Fn(&Stub, &[u16]) -> Result<()>) -> Result<()> {
        let pids: BTreeSet<i32> = self.semaphores.iter().enumerate().filter(|(n, _)| wanted(*n)).map(|(_, s)| s.1).collect();
        for pid in pids {
            let mine = self.semaphores.iter().enumerate().filter(|(n, s)| s.1 == pid && wanted(*n));
            let numbers: Vec<u16> = mine.map(|(n, _)| n as u16).collect();
            actors.act(pid, |stub| work(stub, &numbers))?;
        }
        Ok(())
    }

    /// Makes the adjustments of one process again, in its stub.
    pub fn adjust(&self, stub: &Stub, undo: &[Undo]) -> Result<()> {
        let mut script = stub.script();
        for u in undo.iter().filter(|u| u.set == self.perm.id) {
            let Some(&(value, _)) = self.semaphores.get(usize::from(u.number)) else {
                return Err(Error::image(format!("image damaged: an adjustment for a semaphore that set {} has not", u.set)));
            };
            let list = neutral(u.number, value, i32::from(u.adjustment));
            let at = script.data(&Operation::bytes(&list));
            script.call("semop with SEM_UNDO", libc::SYS_semop, &[u.set as u64, at, list.len() as u64])?;
        }
        script.run().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of it: value and adjustment afterwards.
    fn run(list: &[Operation], mut value: i32) -> (i32, i32) {
        let mut adjustment = 0;
        for o in list {
            assert_ne!(o.change, 0, "zero waits");
            value += i32::from(o.change);
            assert!((0..=LARGEST).contains(&value), "{list:?}");
            if i32::from(o.flags) & libc::SEM_UNDO != 0 {
                adjustment -= i32::from(o.change);
                assert!((-LARGEST - 1..=LARGEST).contains(&adjustment), "{list:?}");
            }
        }
        (value, adjustment)
    }

    #[test]
    fn neutral_operations_change_the_adjustment_only() {
        for value in [0, 1, 5, 16383, 16384, 32766, 32767] {
            for adjustment in [0, 1, -1, 7, -7, 20000, -20000, 32767, -32768] {
                let list = neutral(3, value, adjustment);
                assert_eq!(run(&list, value), (value, adjustment), "value {value}, adjustment {adjustment}");
                assert!(list.len() <= 6 && list.iter().all(|o| o.number == 3));
            }
        }
    }

    #[test]
    fn layout_of_sembuf() {
        let one = Operation { number: 0x0102, change: -2, flags: 0x1800 };
        assert_eq!(Operation::bytes(&[one]), [2, 1, 0xfe, 0xff, 0, 0x18]);
    }
}
