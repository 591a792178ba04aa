//! Locks that are there, and whose they are. A table's comment says so; `nft list tables` and `nft list ruleset` show it.

use super::{inside, refused};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::netlink::Socket;
use crate::sys::nft::{self, Batch};
use crate::sys::proc::{read, stat};
use serde::Serialize;
use std::fmt::Write;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// To whom a lock belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// A meio at work: pid, start time (proc_pid_stat(5)), pid namespace (its inode).
    Process {
        /// As it sees itself.
        pid: i32,
        /// Clock ticks after boot.
        start: u64,
        /// Inode of the pid namespace in which this is its pid.
        namespace: u64,
    },
    /// The tree of an image, by the image's id.
    Image(String),
    /// A watch, by its name: what its tree says was held when its meio ended, and is lost.
    Watch(String),
}

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lock {
    /// Name of its table.
    pub table: String,
    /// To whom it belongs.
    pub owner: Owner,
    /// Since when, in seconds after 1970.
    pub since: u64,
    /// How many connections it keeps; 0 for one of a meio at work.
    pub connections: u64,
    /// Its meio has died. The kernel takes locks of a meio at work away by itself from Linux 5.12 on; that of a watch stays.
    pub stale: bool,
}

impl Owner {
    /// This meio.
    pub fn own() -> Self {
        let pid = std::process::id() as i32;
        let start = read::parsed(pid, "stat", stat::parse).map_or(0, |s| s.start_time);
        Owner::Process { pid, start, namespace: own_namespace() }
    }

    /// The tree in an image.
    pub fn image(id: &[u8; 16]) -> Self {
        let mut text = String::new();
        id.iter().for_each(|b| _ = write!(text, "{b:02x}"));
        Owner::Image(text)
    }

    /// The name under which it is kept, and by which it can be released.
    pub fn name(&self) -> String {
        match self {
            Owner::Process { pid, .. } => format!("pid-{pid}"),
            Owner::Image(name) | Owner::Watch(name) => name.clone(),
        }
    }

    /// The table of a lock that is kept for it.
    pub(super) fn table(&self) -> String {
        let kind = if matches!(self, Owner::Watch(_)) { "hold" } else { "kept" };
        format!("{}{kind}-{}", nft::OURS, self.name())
    }

    /// What the table says about itself.
    pub(super) fn comment(&self, connections: usize) -> String {
        let own = || Owner::own().comment(0).trim_start_matches("meio lock ").to_owned();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        match self {
            Owner::Process { pid, start, namespace } => format!("meio lock pid={pid} start={start} ns={namespace} since={since}"),
            Owner::Image(id) => format!("meio lock image={id} since={since} connections={connections}"),
            Owner::Watch(name) => format!("meio lock watch={name} {}", own()),
        }
    }

    /// Whether nobody is there any more who would open it. Of a meio in another pid namespace nobody here can know.
    fn is_dead(&self) -> bool {
        let Owner::Process { pid, start, namespace } = self else { return false };
        *namespace == own_namespace() && read::parsed(*pid, "stat", stat::parse).map_or(true, |s| s.start_time != *start)
    }
}

fn own_namespace() -> u64 {
    read::namespace(std::process::id() as i32, "pid").map_or(0, |n| n.1)
}

impl Lock {
    fn parse(table: &nft::Table) -> Option<Lock> {
        if !table.name.starts_with(nft::OURS) {
            return None;
        }
        let words = table.comment.as_deref()?.strip_prefix("meio lock ")?;
        let word = |key: &str| words.split(' ').find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        let number = |key: &str| word(key).and_then(|w| w.parse::<u64>().ok());
        let process = || Some(Owner::Process { pid: number("pid")? as i32, start: number("start")?, namespace: number("ns")? });
        let owner = match (word("image"), word("watch")) {
            (Some(id), _) => Owner::Image(id.to_owned()),
            (_, Some(name)) => Owner::Watch(name.to_owned()),
            _ => process()?,
        };
        let stale = if matches!(owner, Owner::Image(_)) { false } else { process()?.is_dead() };
        let connections = number("connections").unwrap_or(0);
        Some(Lock { table: table.name.clone(), owner, since: number("since")?, connections, stale })
    }
}

fn list_with(socket: &Socket) -> io::Result<Vec<Lock>> {
    Ok(nft::tables(socket)?.iter().filter_map(Lock::parse).collect())
}

/// All locks in a network namespace (`None`: meio's own), also those of other meios at work. Nobody needs a privilege
/// to see them but where the kernel asks for one: then there are none to be seen.
pub fn list(network: Option<BorrowedFd<'_>>) -> Result<Vec<Lock>> {
    inside(network, || Socket::netfilter().and_then(|s| list_with(&s)))?.map_err(refused).context(|| "listing network locks")
}

/// Takes away locks whose owner is dead; returns them.
pub fn sweep(network: Option<BorrowedFd<'_>>) -> Result<Vec<Lock>> {
    inside(network, || Socket::netfilter().and_then(|s| sweep_with(&s)))?.map_err(refused).context(|| "removing stale network locks")
}

pub(super) fn sweep_with(socket: &Socket) -> io::Result<Vec<Lock>> {
    let mut stale = list_with(socket)?;
    stale.retain(|lock| lock.stale && matches!(lock.owner, Owner::Process { .. }));
    for lock in &stale {
        remove(socket, &lock.table)?;
    }
    Ok(stale)
}

/// False when it has gone meanwhile.
fn remove(socket: &Socket, table: &str) -> io::Result<bool> {
    let mut batch = Batch::default();
    batch.delete_table(table);
    match batch.commit(socket) {
        Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => Ok(false),
        done => done.map(|()| true),
    }
}

/// Whether there is a lock that is kept for `owner`.
pub fn is_kept(network: Option<BorrowedFd<'_>>, owner: &Owner) -> Result<bool> {
    Ok(list(network)?.iter().any(|lock| lock.owner == *owner))
}

/// Takes the lock away that is kept for `owner`. False when there is none.
pub fn release(network: Option<BorrowedFd<'_>>, owner: &Owner) -> Result<bool> {
    let release = || {
        let socket = Socket::netfilter()?;
        let removed = remove(&socket, &owner.table());
        // It is closed only when the kernel has waited for all processors; nothing is locked any more before.
        super::let_go(socket);
        removed
    };
    inside(network, release)?.map_err(refused).context(|| "opening the network lock that was kept")
}

/// Takes the kept locks away whose owner's name is, or begins with, `name`; `all` for all of them.
pub fn release_named(name: &str) -> Result<Vec<Lock>> {
    let named = |lock: &Lock| match &lock.owner {
        Owner::Image(id) => name == "all" || id.starts_with(name) && name.len() >= 8,
        Owner::Watch(watch) => watch == name,
        Owner::Process { .. } => false,
    };
    let mut locks = list(None)?;
    locks.retain(named);
    if locks.is_empty() && name != "all" {
        return Err(Error::new(Kind::NotFound, format!("no network lock is kept for {name}")).help("meio check lists those that are"));
    }
    if let Some(lock) = locks.iter().find(|lock| matches!(lock.owner, Owner::Watch(_)) && !lock.stale) {
        return Err(
            Error::other(format!("the meio of the watch {} is at work", lock.owner.name())).help("end it: what it holds goes out then")
        );
    }
    for lock in &locks {
        release(None, &lock.owner)?;
    }
    Ok(locks)
}
