//! Which tree an image is of: its root, so that another process with the same pid is told apart, and the memory objects,
//! so that they are found again in the next image.

use crate::error::Result;
use crate::sys::memory;
use crate::sys::proc::{read, stat};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use xxhash_rust::xxh3::xxh3_64;

/// Where and when the root began, and the memory objects as the kernel knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Birth {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// When the root began: clock ticks after the boot, proc_pid_stat(5).
    pub started: u64,
    /// Hash (XXH3-64) of the random bytes that the root got with its program (getauxval(3) `AT_RANDOM`), which it still has
    /// when it has been restored; 0 when it has none.
    pub random: u64,
    /// Device and inode of each memory object, by its number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<(u64, u64)>,
}

impl Birth {
    /// Of the tree below this process, which may be running; the objects come later.
    pub fn of(pid: i32) -> Result<Birth> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let started = read::parsed(pid, "stat", stat::parse)?.start_time;
        Ok(Birth { boot, started, random: random(pid, &read::auxv(pid).unwrap_or_default()).unwrap_or(0), objects: Vec::new() })
    }

    /// Notes the memory objects, by their number.
    pub fn note<'f>(&mut self, objects: impl Iterator<Item = &'f std::fs::File>) -> Result<()> {
        self.objects = objects.map(|file| file.metadata().map(|m| (m.dev(), m.ino()))).collect::<std::io::Result<_>>()?;
        Ok(())
    }

    /// Whether that is the same process: it has run on, or it was restored.
    pub fn is_of(&self, other: &Birth) -> bool {
        self.ran_on_from(other) || self.random != 0 && self.random == other.random
    }

    /// Whether it has been the same for the kernel, too.
    pub fn ran_on_from(&self, other: &Birth) -> bool {
        !self.boot.is_empty() && (&self.boot, self.started) == (&other.boot, other.started)
    }
}

/// What 16 random bytes of a process say; they lie where its auxiliary vector says.
fn random(pid: i32, auxv: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).ok();
    let entry = auxv.chunks_exact(16).find(|entry| word(&entry[..8]) == Some(libc::AT_RANDOM))?;
    let mut bytes = [0; 16];
    memory::read(pid, word(&entry[8..])?, &mut bytes).ok()?;
    Some(xxh3_64(&bytes)).filter(|_| bytes != [0; 16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_again() {
        let own = Birth::of(std::process::id() as i32).unwrap();
        assert!(own.random != 0 && own.started > 0 && own.boot.len() == 36, "{own:?}");
        assert!(own.is_of(&Birth::of(std::process::id() as i32).unwrap()));
        // Restored: another start, the same bytes. Started again: other bytes.
        let later = Birth { started: own.started + 1, ..own.clone() };
        assert!(later.is_of(&own) && !later.ran_on_from(&own));
        assert!(!Birth { random: own.random ^ 1, ..later.clone() }.is_of(&own));
        assert!(Birth { random: 0, ..own.clone() }.is_of(&own), "it has run another program since");
        assert!(!Birth { random: 0, ..later.clone() }.is_of(&Birth { random: 0, ..own.clone() }));
        assert!(!Birth::default().is_of(&Birth::default()));
    }
}
