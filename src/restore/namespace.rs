//! `--pid-namespace`: a fresh pid namespace in which all numbers are free, with an init of its own that reaps
//! orphans, and with its own `/proc`.

use crate::error::{Context, Error, Result};
use crate::sys::namespace::spawn_init;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The namespace. Its init ends when nothing else lives in it; with meio's failure it ends at once.
pub struct Namespace {
    init: i32,
    /// Closed when the tree is there.
    _gate: OwnedFd,
    mounts: File,
}

impl Namespace {
    /// Children of meio are born where meio is again, and it may have threads again.
    pub fn leave(&self) -> Result<()> {
        let own = File::open("/proc/self/ns/pid").context(|| "opening the own pid namespace")?;
        nix::sched::setns(own, nix::sched::CloneFlags::CLONE_NEWPID).context(|| "leaving the new pid namespace")
    }

    /// From now on children of meio are born in the new namespace.
    pub fn new() -> Result<Self> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).context(|| "making a pid namespace")?;
        let (init, gate) = spawn_init().map_err(|e| Error::from(e).context("starting the init of the pid namespace"))?;
        let mounts = File::open(format!("/proc/{init}/ns/mnt")).context(|| "opening the mount namespace")?;
        Ok(Namespace { init, _gate: gate, mounts })
    }

    /// Its mount namespace.
    pub fn mounts(&self) -> BorrowedFd<'_> {
        self.mounts.as_fd()
    }

    /// The tree lives: the namespace stays as long as it does.
    pub fn keep(mut self) {
        self.init = 0;
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.init != 0 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.init), nix::sys::signal::SIGKILL);
        }
    }
}
