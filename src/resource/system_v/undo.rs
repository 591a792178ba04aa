//! Adjustments of semaphores at a process's end (`SEM_UNDO`, semop(2)), which the kernel shows to nobody.
//!
//! They can be felt. An adjustment must stay between -32768 and 32767, and semop(2) does all of a list of operations or
//! nothing, under one lock. So the process itself is made to try a list that must fail at its last operation, which would have
//! to wait (`EAGAIN`): when it fails earlier, with `ERANGE`, the adjustment has left its range on the way. Nothing changes,
//! nobody sleeps, nobody else sees anything in between. Two tries tell whether there is an adjustment, 16 more how large it is.

use super::semaphore::{LARGEST, Operation, SemaphoreSet};
use super::{vanished, within};
use crate::error::{Context, Error, Kind, Result};
use crate::resource::capture::Capture;
use crate::sys::ipc;
use crate::sys::proc::{read, stat};
use crate::sys::task::{self, Shared};
use crate::tracee::inject::Injector;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// One adjustment, `semadj`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Undo {
    /// Id of the set.
    pub set: i32,
    /// Number of the semaphore in the set.
    pub number: u16,
    /// What the kernel adds to its value when the process ends.
    pub adjustment: i16,
}

/// Refuses what cannot be rebuilt: adjustments that belong to a single thread, or to several processes together.
pub fn survey(pid: i32, capture: &mut Capture) -> Result<()> {
    if capture.system_v.sets(pid).is_empty() {
        return Ok(()); // nothing that could be adjusted
    }
    let parent = read::parsed(pid, "stat", stat::parse)?.ppid;
    if has_any(pid) && task::share(pid, parent, Shared::SemUndo).unwrap_or(false) {
        let reason = format!("it shares its semaphore adjustments with its parent {parent} (CLONE_SYSVSEM)");
        capture.refuse(pid, "process", reason, "not supported; start the program differently");
    }
    for tid in read::tasks(pid)?.into_iter().filter(|t| *t != pid) {
        if has_any(tid) && !task::share(pid, tid, Shared::SemUndo).unwrap_or(true) {
            let reason = "it has semaphore adjustments of its own, apart from its process (no CLONE_SYSVSEM)";
            capture.refuse(pid, format!("task {tid}"), reason, "not supported; start the program differently");
        }
    }
    Ok(())
}

/// Whether a task can have any adjustments: one that has never had shares that with meio, which never has.
fn has_any(tid: i32) -> bool {
    // A thread that starts others gets a list of its own, which is empty, but a list.
    let _ = nix::sched::unshare(nix::sched::CloneFlags::CLONE_SYSVSEM);
    let own = nix::unistd::gettid().as_raw();
    !task::share(tid, own, Shared::SemUndo).unwrap_or(false)
}

/// Asks a stopped task, the first of process `pid`, for all adjustments that it has in these sets.
pub fn probe(run: &mut Injector<'_>, pid: i32, sets: &[SemaphoreSet]) -> Result<Vec<Undo>> {
    if sets.is_empty() || !has_any(pid) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    // Without any semop(2) there is no adjustment either; and one that is asked for makes the kernel note a `sem_otime`
    // when the process ends.
    'sets: for set in sets.iter().filter(|s| s.otime != 0) {
        for _ in 0..5 {
            let mut here = Vec::new();
            let Some(before) = current(pid, set)? else { continue 'sets };
            for (number, &(value, _)) in before.iter().enumerate() {
                match adjustment(run, set.perm.id, number as u16, value)? {
                    Some(0) => {}
                    Some(a) => here.push(Undo { set: set.perm.id, number: number as u16, adjustment: a }),
                    None => continue 'sets, // it may not change them, or they are gone
                }
            }
            // Somebody outside of the tree may have changed a value in between, and with it what a failure means.
            if current(pid, set)?.is_none_or(|now| now == before) {
                found.extend(here);
                continue 'sets;
            }
        }
        let reason = format!("semaphore set {} is changed by others all the time", set.perm.id);
        return Err(Error::new(Kind::Unsupported, reason).help("try again, or stop the processes outside of the tree that use it"));
    }
    Ok(found)
}

/// What the semaphores are now; `None` when the set has been removed.
fn current(pid: i32, set: &SemaphoreSet) -> Result<Option<Vec<(i32, i32)>>> {
    let (values, _) = within(pid, || {
        let all = (0..set.semaphores.len() as i32).map(|n| ipc::semaphore(set.perm.id, n));
        Ok(all.collect::<std::result::Result<Vec<_>, _>>())
    })?;
    match values {
        Err(e) if vanished(e) => Ok(None),
        values => values.map(Some).context(|| format!("reading semaphore set {}", set.perm.id)),
    }
}

/// The task's adjustment of one semaphore; `None` when it may not operate on it.
fn adjustment(run: &mut Injector<'_>, set: i32, number: u16, value: i32) -> Result<Option<i16>> {
    // Whether the adjustment would leave its range when the sum of what is done with SEM_UNDO is `total`.
    let mut leaves = |total: i32| -> Result<Option<bool>> {
        let list = attempt(number, value, total);
        run.put(0, &Operation::bytes(&list))?;
        match Errno::from_raw(-run.call(libc::SYS_semop, [set as u64, run.out(), list.len() as u64, 0, 0, 0])? as i32) {
            Errno::ERANGE => Ok(Some(true)),
            Errno::EAGAIN => Ok(Some(false)),
            Errno::EACCES | Errno::EPERM | Errno::EIDRM | Errno::EINVAL => Ok(None),
            e => Err(e).context(|| format!("asking for adjustments of semaphore set {set}")),
        }
    };
    let (Some(negative), Some(positive)) = (leaves(LARGEST + 1)?, leaves(-LARGEST)?) else { return Ok(None) };
    if !negative && !positive {
        return Ok(Some(0));
    }
    // The largest total that stays in range takes the adjustment to -32768.
    let (mut stays, mut out) = (0, 2 * LARGEST + 2);
    if positive {
        stays = LARGEST + 1;
    }
    while out - stays > 1 {
        let middle = (stays + out) / 2;
        if leaves(middle)? == Some(true) { out = middle } else { stays = middle }
    }
    Ok(Some((stays - LARGEST - 1) as i16))
}

/// Operations on a semaphore with this value: `total` of them with `SEM_UNDO` in all, then one that has to wait.
fn attempt(number: u16, value: i32, total: i32) -> Vec<Operation> {
    let mut list = Vec::new();
    let mut op = |change: i32, flags: i32| {
        // Zero would wait for zero.
        if change != 0 {
            list.push(Operation { number, change: change as i16, flags: (flags | libc::IPC_NOWAIT) as i16 });
        }
    };
    let start = if total > 0 { 0 } else { LARGEST };
    // In two steps: a change has 16 bits.
    op(start - value, 0);
    let mut left = total;
    while left != 0 {
        let piece = left.clamp(-LARGEST, LARGEST);
        op(piece, libc::SEM_UNDO);
        op(-piece, 0);
        left -= piece;
    }
    list.push(Operation { number, change: i16::MIN, flags: libc::IPC_NOWAIT as i16 });
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's answer: whether the adjustment leaves its range. Nothing else may fail before the last operation.
    fn leaves(list: &[Operation], mut value: i32, mut adjustment: i32) -> bool {
        let (last, others) = list.split_last().expect("a last one");
        for o in others {
            value += i32::from(o.change);
            assert!(o.change != 0 && (0..=LARGEST).contains(&value), "{list:?}");
            if i32::from(o.flags) & libc::SEM_UNDO != 0 {
                adjustment -= i32::from(o.change);
                if !(-LARGEST - 1..=LARGEST).contains(&adjustment) {
                    return true;
                }
            }
        }
        assert!(value + i32::from(last.change) < 0);
        false
    }

    #[test]
    fn lists_fail_early_exactly_when_the_adjustment_leaves_its_range() {
        for value in [0, 1, 32766, 32767] {
            for adjustment in [-32768, -32767, -2, -1, 0, 1, 2, 32766, 32767] {
                assert_eq!(leaves(&attempt(0, value, LARGEST + 1), value, adjustment), adjustment < 0);
                assert_eq!(leaves(&attempt(0, value, -LARGEST), value, adjustment), adjustment > 0);
                for total in [1, 2, 32767, 32768, 32769, 65534, 65535] {
                    assert_eq!(leaves(&attempt(0, value, total), value, adjustment), adjustment < total - 32768, "{total}");
                }
            }
        }
    }
}
