//! Who makes and uses the objects of a restored tree, so that the kernel notes the right pids.

use crate::error::{Context, Result};
use crate::tracee::stub::{self, Script, Stub};
use std::collections::HashMap;

/// The stubs of a tree.
pub struct Actors {
    /// Stub of each living process, by its pid in the image.
    pub stubs: HashMap<i32, Stub>,
    /// The root's, or of another one that lives where the objects are; bears helpers.
    pub root: Stub,
    /// It can, since it sees the numbers that the image has.
    pub helpers: bool,
    /// Effective uid and gid of all stubs at this time.
    pub own: (u32, u32),
}

impl Actors {
    /// Lets the process with this pid do something and hands the results to `then`, which may make it do more: one of
    /// the tree, or one that is born for that with the number. When the number is in use it is the root.
    pub fn act<R>(&self, pid: i32, work: impl FnOnce(&Stub) -> Result<R>) -> Result<R> {
        if let Some(stub) = self.stubs.get(&pid) {
            return work(stub);
        }
        let Some(helper) = self.helper(pid)? else { return work(&self.root) };
        let result = work(&helper);
        stub::end(&helper);
        let mut script = self.root.script();
        script.expect("wait4", pid as u64, libc::SYS_wait4, &[pid as u64, 0, libc::__WALL as u64, 0])?;
        script.run()?;
        result
    }

    /// A child of the root with this number, in the root's memory, where its scripts lie.
    fn helper(&self, pid: i32) -> Result<Option<Stub>> {
        if pid <= 0 || !self.helpers {
            return Ok(None);
        }
        let flags = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES;
        let mut script = self.root.script();
        script.attempt_clone(flags as u64, libc::SIGCHLD, pid)?;
        match script.run()?.births.first() {
            Some(&born) => {
                let helper = self.root.born(born, false)?;
                Ok(Some(Stub { pid: born, ..helper }))
            }
            None => Ok(None),
        }
    }

    /// Runs calls with other effective ids: those of an object's creator. The result of the calls' first one.
    pub fn as_creator(&self, stub: &Stub, ids: (u32, u32), call: impl FnOnce(&mut Script<'_>) -> Result<()>) -> Result<i64> {
        let keep = u64::from(u32::MAX);
        let change = ids != self.own;
        let mut script = stub.script();
        if change {
            script.call("setresgid", libc::SYS_setresgid, &[keep, u64::from(ids.1), keep])?;
            script.call("setresuid", libc::SYS_setresuid, &[keep, u64::from(ids.0), keep])?;
        }
        call(&mut script)?;
        if change {
            script.call("setresuid", libc::SYS_setresuid, &[keep, u64::from(self.own.0), keep])?;
            script.call("setresgid", libc::SYS_setresgid, &[keep, u64::from(self.own.1), keep])?;
            // A process that changes its identity becomes undumpable.
            script.call("prctl PR_SET_DUMPABLE", libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0])?;
        }
        let results = script.run().context(|| "acting as a creator")?.results;
        Ok(results.get(if change { 2 } else { 0 }).copied().unwrap_or(-1))
    }
}
