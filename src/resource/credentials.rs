//! Identity of a task: user and group ids, groups, capabilities, security bits.

use crate::error::Result;
use crate::sys::proc::status::Status;
use crate::tracee::stub::Script;
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

/// Number of capabilities that this kernel knows, from `/proc/sys/kernel/cap_last_cap`.
fn known_capabilities() -> u64 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|t| t.trim().parse::<u64>().ok()).map_or(41, |n| n + 1)
}

impl Credentials {
    /// Makes a stub's task take this identity on. Comes late: afterwards it may have lost its privileges.
    /// `inside`: it is in a user namespace, with these ids, or has them already.
    pub fn tell(&self, script: &mut Script<'_>, own: &Credentials, inside: Option<Option<Credentials>>) -> Result<()> {
        let same = Credentials { no_new_privs: own.no_new_privs, ..self.clone() } == *own;
        match inside {
            Some(ids) => self.change(script, ids.as_ref())?,
            None if !same => self.change(script, Some(self))?,
            None => {}
        }
        if self.no_new_privs {
            script.call("prctl PR_SET_NO_NEW_PRIVS", libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0])?;
        }
        Ok(())
    }

    /// Takes the ids on and keeps all capabilities.
    pub fn tell_ids(&self, script: &mut Script<'_>) -> Result<()> {
        const SECBIT_KEEP_CAPS: u64 = 1 << 4;
        const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
        // While ids change, capabilities stay as they are.
        let keep = SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP;
        script.attempt("prctl PR_SET_SECUREBITS", libc::SYS_prctl, &[libc::PR_SET_SECUREBITS as u64, keep, 0, 0, 0])?;
        let groups: Vec<u8> = self.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
        let at = script.data(&groups);
        script.call("setgroups", libc::SYS_setgroups, &[self.groups.len() as u64, at])?;
        let [ruid, euid, suid, fsuid] = self.uid.map(u64::from);
        let [rgid, egid, sgid, fsgid] = self.gid.map(u64::from);
        script.call("setresgid", libc::SYS_setresgid, &[rgid, egid, sgid])?;
        script.attempt("setfsgid", libc::SYS_setfsgid, &[fsgid])?;
        script.call("setresuid", libc::SYS_setresuid, &[ruid, euid, suid])?;
        script.attempt("setfsuid", libc::SYS_setfsuid, &[fsuid])?;
        Ok(())
    }

    fn change(&self, script: &mut Script<'_>, ids: Option<&Credentials>) -> Result<()> {
        let [inheritable, permitted, effective, bounding, ambient] = self.caps;
        if let Some(ids) = ids {
            ids.tell_ids(script)?;
        }
        for number in (0..known_capabilities()).filter(|n| bounding >> n & 1 == 0) {
            script.attempt("prctl PR_CAPBSET_DROP", libc::SYS_prctl, &[libc::PR_CAPBSET_DROP as u64, number, 0, 0, 0])?;
        }
        script.attempt(
            "prctl PR_SET_SECUREBITS",
            libc::SYS_prctl,
            &[libc::PR_SET_SECUREBITS as u64, u64::from(self.securebits), 0, 0, 0],
        )?;
        // struct __user_cap_header_struct and two __user_cap_data_struct, capset(2).
        let header = script.data(&[0x2008_0522u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
        let half = |shift: u32| [effective, permitted, inheritable].map(|set| ((set >> shift) as u32).to_le_bytes()).concat();
        let sets = script.data(&[half(0), half(32)].concat());
        script.call("capset", libc::SYS_capset, &[header, sets])?;
        for number in (0..64).filter(|n| ambient >> n & 1 != 0) {
            let raise = libc::PR_CAP_AMBIENT_RAISE as u64;
            script.call("prctl PR_CAP_AMBIENT", libc::SYS_prctl, &[libc::PR_CAP_AMBIENT as u64, raise, number, 0, 0])?;
        }
        Ok(())
    }
}
