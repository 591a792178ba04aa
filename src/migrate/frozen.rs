//! The tree at its source once it needs no meio to stand still: let it go on, or end it, from the record alone.

use super::address::Address;
use super::message::Id;
use super::record::{Member, Record, Standing, Store};
use super::state::Mark;
use crate::dump::lock::Networks;
use crate::error::{Context, Error, Kind, Result};
use crate::netlock::kept::Owner;
use crate::sys::apart;
use crate::sys::guardian::Guardian;
use crate::sys::proc::read;
use crate::sys::ptrace::{self, Status};
use crate::sys::spawn::with_nothing;
use crate::sys::tcp::{self, Repair};
use crate::sys::{socket, task};
use crate::tracee::freeze::{Frozen, freeze};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// How long a task may take to be held.
const PATIENCE: Duration = Duration::from_secs(10);

/// To whom the network lock belongs that is kept while the tree stands still.
pub fn owner(id: &Id) -> Owner {
    Owner::image(id)
}

/// Holds what is left of a tree on record, whose parts may have lost their parents.
fn hold(record: &Record) -> Result<Vec<Frozen>> {
    if record.standing() == Standing::Elsewhere {
        return Err(Error::other("the tree belongs to another pid namespace").help("run meio where it was run before"));
    }
    let (mut all, mut held) = (Vec::new(), HashSet::new());
    for process in &record.processes {
        if held.contains(&process.pid) || !process.lives() {
            continue;
        }
        match freeze(process.pid, PATIENCE) {
            Ok(frozen) => {
                held.extend(frozen.processes.iter().map(|p| p.pid));
                all.push(frozen);
            }
            Err(e) if e.kind == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Lets a tree on record go on, and packets in to it. What runs already is left alone.
///
/// # Errors
/// When a part of it could not be woken; it may be tried again.
pub fn thaw(record: &Record) -> Result<()> {
    let held = hold(record)?;
    let opened = unlock(record);
    // All that can be woken are.
    let woken: Vec<Result<()>> = held.into_iter().map(|frozen| frozen.wake(&record.processes)).collect();
    woken.into_iter().collect::<Result<()>>().and(opened)
}

/// Ends what is left of a tree on record. Nothing of it runs again, and where its connections have gone along nobody is told.
/// The lock that is kept for it stays: see [`unlock`].
pub fn reap(record: &Record) -> Result<()> {
    hold(record)?.into_iter().try_for_each(|frozen| end(frozen, record.silent))
}

/// Takes the network lock away that is kept for a tree. Once it has moved nothing may come for its connections here any more, lest
/// the kernel answer that it knows none: its address is to be gone before.
pub fn unlock(record: &Record) -> Result<()> {
    let pids: Vec<i32> = record.processes.iter().filter(|p| p.lives()).map(|p| p.pid).collect();
    Networks::of(&pids).release(&owner(&record.id))
}

/// Ends a tree that is held; the network lock over its connections is kept.
///
/// # Errors
/// When nothing was ended, or some of it.
pub fn end(mut frozen: Frozen, silent: bool) -> Result<()> {
    let pids: Vec<i32> = frozen.processes.iter().filter(|p| !p.threads.is_empty()).map(|p| p.pid).collect();
    let networks = Networks::of(&pids);
    let kill = |&pid: &i32| {
        let killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
        killed.or_else(|e| if e == Errno::ESRCH { Ok(()) } else { Err(e) }).context(|| format!("ending process {pid}"))
    };
    let end = || {
        if silent {
            pids.iter().try_for_each(|&pid| silence(pid))?;
        }
        pids.iter().try_for_each(kill)
    };
    // A connection that is silent is no use to a tree that lives: one follows the other also when meio is killed.
    apart::run(0, end).context(|| "ending the tree").and_then(|done| done)?;
    if silent {
        networks.cut_off(&pids);
    }
    // Children first: the init of a pid namespace ends only when all others in it have been waited for.
    for process in frozen.processes.drain(..).rev() {
        for thread in process.threads.iter().rev() {
            while !matches!(ptrace::wait(thread.tid), Ok(Status::Ended(_)) | Err(_)) {}
        }
    }
    Ok(())
}

/// Takes the connections of a process into repair for good: they end with it without a word.
pub fn silence(pid: i32) -> Result<()> {
    let files = task::Files::of(pid);
    for fd in read::fds(pid)? {
        if !read::fd_link(pid, fd).is_ok_and(|link| link.starts_with(b"socket:")) {
            continue;
        }
        let doing = || format!("silencing fd {fd} of process {pid}");
        let file = files.get(fd).context(doing)?;
        if is_connected(file.as_fd()) {
            tcp::repair(file.as_fd(), Repair::On).context(doing)?;
        }
    }
    Ok(())
}

/// Whether a socket is a TCP connection that somebody might be told the end of.
fn is_connected(socket: BorrowedFd<'_>) -> bool {
    let is = |name, value| socket::number(socket, name).is_ok_and(|n| n == value);
    let tcp = is(libc::SO_PROTOCOL, libc::IPPROTO_TCP) && (is(libc::SO_DOMAIN, libc::AF_INET) || is(libc::SO_DOMAIN, libc::AF_INET6));
    tcp && tcp::info(socket).is_ok_and(|info| !matches!(info.state, tcp::CLOSE | tcp::LISTEN))
}

/// Posts a child of meio that lets a tree go on which stands still when meio dies before the commit. It is to be
/// [dismissed](Guardian::dismiss) when meio has answered for the tree. Without it the tree stands until somebody looks at the records.
/// It is a copy of meio: post it before the freeze, and before [`Store::claim`], which it would hold on to.
pub fn watch_over(store: &Store, id: Id, root: Member, addresses: &[Address]) -> Result<Guardian> {
    let (store, addresses) = (store.clone(), addresses.to_vec());
    let left = move || {
        // Somebody has taken it up already.
        let Ok(_claim) = store.claim(&id) else { return };
        match store.get(&id) {
            // Before the first record nobody was told anything; after the last one it does not live here.
            Ok(None) if root.lives() => take_back(&addresses),
            Ok(Some(record)) if matches!(record.mark, Mark::Stopping | Mark::Stays) => {
                take_back(&record.addresses);
                if thaw(&record).is_err() {
                    return;
                }
            }
            // It is the target's to say.
            _ => return,
        }
        let _ = store.forget(&id);
    };
    let guardian = Guardian::post(&[], left)?;
    guardian.entrust()?;
    Ok(guardian)
}

/// Brings addresses up again where the tree goes on.
pub fn take_back(addresses: &[Address]) {
    for address in addresses {
        if address.bring_up().is_ok() {
            announce(address);
        }
    }
}

/// Tells the neighbours where an address is: once when this returns, and again for some seconds by a process of its own, since
/// nobody is to wait for that.
pub fn announce(address: &Address) {
    if address.announce_once().is_ok() {
        announce_again(address);
    }
}

/// The latter alone.
pub fn announce_again(address: &Address) {
    let mut command = std::process::Command::new("/proc/self/exe");
    let again = with_nothing(&mut command)
        .args(["agent", "--announce", &address.to_string()])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    if let Ok(child) = again {
        task::reap(child.id() as i32);
    }
}

#[cfg(test)]
mod tests;
