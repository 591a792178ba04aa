//! Resource limits, getrlimit(2).

use crate::error::Result;
use crate::sys::proc::{limits, read};
use crate::sys::task;
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
    /// Gives a process these limits; returns a warning for each that is not permitted.
    pub fn apply(&self, pid: i32, name: i32) -> Vec<String> {
        let now = task::limits(pid).unwrap_or_default();
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
