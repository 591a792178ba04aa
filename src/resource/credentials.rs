//! Identity of a task: user and group ids, groups, capabilities, security bits.

use crate::sys::proc::status::Status;
use serde::{Deserialize, Serialize};

/// credentials(7) and capabilities(7) of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Real, effective, saved and file-system user id.
    pub uid: [u32; 4],
    /// Real, effective, saved and file-system group id.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capability sets.
    pub caps: [u64; 5],
    /// `PR_GET_SECUREBITS`.
    pub securebits: u32,
    /// `PR_GET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

impl Credentials {
    /// What `/proc/PID/status` tells. The security bits only the task itself knows.
    pub fn from_status(s: &Status) -> Self {
        Credentials {
            uid: s.uid,
            gid: s.gid,
            groups: s.groups.clone(),
            caps: [s.cap_inh, s.cap_prm, s.cap_eff, s.cap_bnd, s.cap_amb],
            securebits: 0,
            no_new_privs: s.no_new_privs,
        }
    }
}
