//! Resource limits, getrlimit(2).

use crate::error::Result;
use crate::sys::proc::{limits, read};
use crate::sys::task;
use crate::tracee::stub::Script;
use serde::{Deserialize, Serialize};

/// Soft and hard limit of each `RLIMIT_*`, by its number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Limits(pub Vec<(u64, u64)>);

impl Limits {
    /// Reads the limits of a process.
    pub fn capture(pid: i32) -> Result<Self> {
        // prlimit(2) refuses a process of another user without CAP_SYS_RESOURCE; its text is readable all the same.
        match task::limits(pid) {
            Ok(limits) => Ok(Limits(limits)),
            Err(_) => read::parsed(pid, "limits", limits::parse).map(|l| Limits(l.to_vec())),
        }
    }
}

impl Limits {
    /// Makes a stub of another user, whom meio may have no right over, give itself these limits as far as it may.
    pub fn tell(&self, pid: i32, script: &mut Script<'_>) -> Result<()> {
        if task::may_set_limits(pid) {
            return Ok(());
        }
        let now = Limits::capture(pid)?;
        for (which, limit) in self.0.iter().enumerate().filter(|(which, limit)| now.0.get(*which) != Some(limit)) {
            let at = script.data(&[limit.0.to_le_bytes(), limit.1.to_le_bytes()].concat());
            script.attempt("prlimit64", libc::SYS_prlimit64, &[0, which as u64, at, 0])?;
        }
        Ok(())
    }

    /// Gives a process these limits; returns a warning for each that is not permitted.
    pub fn apply(&self, pid: i32, name: i32) -> Vec<String> {
        let now = Limits::capture(pid).unwrap_or_default().0;
        let mut warnings = Vec::new();
        for (which, &limit) in self.0.iter().enumerate() {
            if now.get(which) != Some(&limit)
                && let Err(e) = task::set_limit(pid, which as u32, limit)
            {
                warnings.push(format!("process {name}: limit {which} stays at {:?} instead of {limit:?}: {e}", now.get(which)));
            }
        }
        warnings
    }
}
