//! Shared memory: shmget(2), shmat(2).

use super::{Actors, Perm, Standing, Tree, Verdict, choose_next_id, table, vanished};
use crate::error::{Context, Error, Kind, Refusal, Result};
use crate::resource::capture::Capture;
use crate::resource::memory::ObjectId;
use crate::resource::process::Process;
use crate::resource::shared::Origin;
use crate::sys::ipc;
use crate::sys::proc::{maps, read};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::File;

/// Marks a device number as an ipc namespace: an inode number of a segment is its id there, and says nothing about other
/// files.
const IDS: u64 = 1 << 63;
/// Where the number of the ipc namespace is in it, above the 32 bits of a device.
const SPACE: u32 = 32;

fn device_of(device: u64, space: Option<u32>) -> u64 {
    device & u64::from(u32::MAX) | IDS | space.map_or(0, |n| u64::from(n) + 1) << SPACE
}
/// Mode bits of a segment that are no permissions: removed while attached, locked into memory.
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;

/// One segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Id, key, owners.
    pub perm: Perm,
    /// Size in bytes, as given to shmget(2).
    pub size: u64,
    /// Number of its content in [`crate::resource::Tree::objects`].
    pub object: ObjectId,
    /// It has been removed and goes with its last attachment.
    pub removed: bool,
    /// `SHM_LOCK`.
    pub locked: bool,
    /// Who made it.
    pub cpid: i32,
    /// Who attached or detached it last.
    pub lpid: i32,
    /// Nobody had it attached: the meio with this pid did to read it, and was the last one since.
    #[serde(default, skip_serializing_if = "zero")]
    pub reader: i32,
    /// Attachments, `shm_nattch`.
    pub attached: u64,
    /// Last attachment, seconds since 1970.
    pub atime: i64,
    /// Last detachment, seconds since 1970.
    pub dtime: i64,
}

fn zero(n: &i32) -> bool {
    *n == 0
}

/// All segments of the namespace, without content.
pub fn list() -> Result<Vec<Segment>> {
    let rows = table("shm")?;
    let segment = |row| {
        let get = |name| crate::sys::proc::sysvipc::Row::get(row, name);
        Segment {
            perm: Perm::from_row(row, "shmid"),
            size: get("size") as u64,
            object: ObjectId::MAX,
            removed: get("perms") as u32 & SHM_DEST != 0,
            locked: get("perms") as u32 & SHM_LOCKED != 0,
            cpid: get("cpid") as i32,
            lpid: get("lpid") as i32,
            reader: 0,
            attached: get("nattch") as u64,
            atime: get("atime"),
            dtime: get("dtime"),
        }
    };
    Ok(rows.iter().map(segment).collect())
}

/// The object that a mapping of segment `id` shows, by the device and the ipc namespace of the process; `open` gives its
/// content.
pub fn object(
    id: i32,
    (device, space): (u64, Option<u32>),
    capture: &mut Capture,
    open: impl FnOnce() -> Result<File>,
) -> Result<ObjectId> {
    capture.object((device_of(device, space), id as u64), || Ok((Origin::SystemV { id }, open()?)))
}

/// Keeps the segments of the tree. Those that nobody has attached just now are attached for a moment to be read, which
/// changes their `atime`, `dtime` and `lpid`.
pub fn capture(all: Vec<Segment>, tree: &Tree, capture: &mut Capture) -> Result<Vec<Segment>> {
    let here = device_of(0, tree.space) >> SPACE;
    let attached: HashMap<i32, ObjectId> =
        capture.object_index.iter().filter(|(k, _)| k.0 >> SPACE == here).map(|(k, &object)| (k.1 as i32, object)).collect();
    let mut kept = Vec::new();
    for mut segment in all {
        let id = segment.perm.id;
        if let Some(&object) = attached.get(&id) {
            segment.object = object;
        } else if tree.space.is_some() || segment.used_by(tree) {
            segment.reader = std::process::id() as i32;
            let file = match ipc::segment_file(id, false) {
                Ok(file) => file,
                Err(e) if e.raw_os_error().is_some_and(|e| vanished(nix::errno::Errno::from_raw(e))) => continue,
                Err(e) => return Err(e).context(|| format!("attaching shared memory segment {id}")),
            };
            if nix::sys::statfs::fstatfs(&file).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::HUGETLBFS_MAGIC) {
                let (reason, advice) = ("it has huge pages (SHM_HUGETLB), which is not supported", "use transparent huge pages");
                capture.refuse(segment.cpid, format!("shared memory segment {id}"), reason, advice);
                continue;
            }
            segment.object = object_of(id, file, tree.space, capture)?;
        } else {
            continue;
        }
        kept.push(segment);
    }
    Ok(kept)
}

fn object_of(id: i32, file: File, space: Option<u32>, capture: &mut Capture) -> Result<ObjectId> {
    let device = std::os::unix::fs::MetadataExt::dev(&file.metadata()?);
    object(id, (device, space), capture, || Ok(file))
}

/// Refuses segments that processes outside of the tree have attached: two copies of what is shared would drift apart.
pub fn refuse_outsiders(segments: &[Segment], processes: &[Process], tree: &HashSet<i32>, capture: &mut Capture) {
    let mut own: HashMap<ObjectId, u64> = HashMap::new();
    for mapping in processes.iter().filter_map(|p| p.memory.as_ref()).flat_map(|m| &m.mappings) {
        if let crate::resource::memory::Backing::Object { object, .. } = mapping.backing {
            *own.entry(object).or_default() += 1;
        }
    }
    for segment in segments.iter().filter(|s| s.attached > own.get(&s.object).copied().unwrap_or(0)) {
        let id = segment.perm.id;
        let who = outsider(id, tree).map_or_else(|| "by another process".to_owned(), |(pid, name)| format!("by process {pid} ({name})"));
        let holder = processes.iter().find(|p| holds(p, segment.object)).map_or(segment.cpid, |p| p.pid);
        let reason = format!("it is attached {who}, outside of the tree");
        capture.refuse(holder, format!("shared memory segment {id}"), reason, "dump a process above both, or end the other one first");
    }
}

fn holds(process: &Process, object: ObjectId) -> bool {
    let is = |b: &crate::resource::memory::Backing| matches!(b, crate::resource::memory::Backing::Object { object: o, .. } if *o == object);
    process.memory.iter().flat_map(|m| &m.mappings).any(|m| is(&m.backing))
}

/// A process outside of the tree that has the segment attached, and its name.
fn outsider(id: i32, tree: &HashSet<i32>) -> Option<(i32, String)> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).filter(|p| !tree.contains(p));
    let attached = |pid: &i32| {
        let vmas = read::parsed(*pid, "maps", maps::parse).unwrap_or_default();
        vmas.iter().any(|v| v.name.starts_with(b"/SYSV") && v.inode == id as u64)
    };
    let pid = pids.find(attached)?;
    let name = read::read(pid, "comm").unwrap_or_default();
    Some((pid, String::from_utf8_lossy(&name).trim().to_owned()))
}

impl Segment {
    fn used_by(&self, tree: &Tree) -> bool {
        tree.did(self.cpid, self.perm.ctime) || tree.did(self.lpid, self.atime.max(self.dtime))
    }

    /// What of it is there, in the caller's namespace.
    pub fn standing(&self, pids: &HashSet<i32>) -> Result<Verdict> {
        let rows = table("shm")?;
        let standing = self.perm.standing(&rows, "shmid", "shared memory segment", "m");
        if standing != Ok(Standing::Same) {
            return Ok(standing);
        }
        let Some(now) = list()?.into_iter().find(|s| s.perm.id == self.perm.id) else { return Ok(Ok(Standing::Absent)) };
        if now.attached > 0 {
            let (pid, name) = outsider(self.perm.id, &HashSet::new()).unwrap_or_default();
            return Ok(Err(Box::new(Refusal {
                pid,
                object: format!("shared memory segment {} (key {:#x})", self.perm.id, self.perm.key),
                reason: format!("it exists, and process {pid} ({name}) has it attached"),
                advice: "end that process, or restore in an ipc namespace of its own".into(),
                ..Refusal::default()
            })));
        }
        if ![self.lpid, self.reader].contains(&now.lpid) && !pids.contains(&now.lpid) {
            return Ok(Err(self.perm.used_since("shared memory segment", "m", now.lpid)));
        }
        Ok(standing)
    }

    /// Makes the segment, or takes over the one that is there: its memory, empty, and whether it is new.
    pub fn make(&self, actors: &Actors, pids: &HashSet<i32>) -> Result<(File, bool)> {
        let id = self.perm.id;
        let doing = || format!("making shared memory segment {id} again");
        let there = self.standing(pids)?.map_err(|r| Error::refused("cannot restore", vec![*r]))?;
        if there == Standing::Absent {
            let made = actors.act(self.cpid, |stub| {
                choose_next_id("shm", id)?;
                let flags = libc::IPC_CREAT | libc::IPC_EXCL | self.perm.mode as i32;
                actors.as_creator(stub, self.perm.creator, |script| {
                    script.call("shmget", libc::SYS_shmget, &[self.perm.key as u32 as u64, self.size, flags as u64])
                })
            });
            let made = made.context(doing)? as i32;
            if made != id {
                let _ = ipc::shm_remove(made);
                return Err(Error::new(Kind::Unsupported, format!("shared memory segment {id} cannot have its id: its place is taken")));
            }
        }
        let finish = || -> Result<File> {
            if self.perm.owner != self.perm.creator || there == Standing::Same {
                ipc::shm_set(id, self.perm.owner, self.perm.mode)?;
            }
            let file = ipc::segment_file(id, true)?;
            if there == Standing::Same {
                let hole = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
                nix::fcntl::fallocate(&file, hole, 0, self.size.next_multiple_of(4096) as i64)?;
            }
            Ok(file)
        };
        let new = there == Standing::Absent;
        let file = finish()
            .inspect_err(|_| {
                if new {
                    let _ = ipc::shm_remove(id);
                }
            })
            .context(doing)?;
        Ok((file, new))
    }

    /// After everybody has attached it.
    pub fn finish(&self, actors: &Actors) -> Result<()> {
        let id = self.perm.id;
        if self.locked {
            ipc::shm_lock(id).context(|| format!("locking shared memory segment {id}"))?;
        }
        if self.lpid != 0 {
            actors.act(self.lpid, |stub| {
                let mut script = stub.script();
                script.call("shmat", libc::SYS_shmat, &[id as u64, 0, libc::SHM_RDONLY as u64])?;
                let at = script.run()?.results.first().copied().unwrap_or(0);
                let mut script = stub.script();
                script.call("shmdt", libc::SYS_shmdt, &[at as u64])?;
                script.run().map(drop)
            })?;
        }
        if self.removed {
            ipc::shm_remove(id).context(|| format!("removing shared memory segment {id}"))?;
        }
        Ok(())
    }
}
