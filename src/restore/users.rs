//! User namespaces: stubs enter theirs when all processes have been born, since who is inside may not choose numbers
//! outside; and identities as they are numbered inside.

use super::confined;
use super::places::Places;
use crate::error::{Context, Result};
use crate::resource::Tree;
use crate::resource::credentials::Credentials;
use crate::resource::namespace::Content;
use crate::resource::process::Process;
use crate::sys::namespace::Kind;
use crate::sys::proc::{read, status};
use crate::tracee::stub::Stub;
use std::os::fd::AsRawFd;

/// Takes a stub without threads into the user namespace of its process.
pub fn enter(tree: &Tree, places: &Places<'_>, process: &Process, stub: &Stub) -> Result<()> {
    let Some(user) = process.places.of(&tree.namespaces, Kind::User) else { return Ok(()) };
    let from = confined::birthplace(tree, process);
    if from == Some(user) || confined::lives_in(stub, places, user)? {
        return Ok(());
    }
    enter_from(tree, places, process, (from, user), stub).context(|| format!("process {}", process.pid))
}

/// The same, from one into another.
pub fn enter_from(tree: &Tree, places: &Places<'_>, process: &Process, (from, user): (Option<u32>, u32), stub: &Stub) -> Result<()> {
    let fd = places.fd(Some(user), Kind::User)?.as_raw_fd() as u64;
    let mut script = stub.script();
    // With the numbers of where it is now: those of users who have none inside can be had only here.
    let ids = process.threads.first().map(|leader| &leader.credentials);
    if let Some(ids) = ids
        && !has(stub.tid, ids)?
        && let Some(ids) = numbered(tree, from, ids)
    {
        ids.tell_ids(&mut script)?;
    }
    process.fs.go_ahead(&mut script)?;
    script.call("setns of user", libc::SYS_setns, &[fd, Kind::User.flag() as u64])?;
    script.run().map(drop)
}

/// Whether a task has these ids already. Where setgroups(2) is forbidden they are never set again.
fn has(tid: i32, wanted: &Credentials) -> Result<bool> {
    let now = Credentials::from_status(&read::parsed(tid, "status", status::parse)?);
    Ok((now.uid, now.gid, &now.groups) == (wanted.uid, wanted.gid, &wanted.groups))
}

/// An identity as it is numbered in a user namespace, `None` when some of it has no number there.
fn numbered(tree: &Tree, user: Option<u32>, wanted: &Credentials) -> Option<Credentials> {
    let Some(user) = user else { return Some(wanted.clone()) };
    let Content::User { uids, gids, .. } = &tree.namespaces.get(user as usize)?.content else { return None };
    let all = |map: &[[u32; 3]], ids: [u32; 4]| -> Option<[u32; 4]> {
        let [a, b, c, d] = ids.map(|id| number(map, id));
        Some([a?, b?, c?, d?])
    };
    let groups = wanted.groups.iter().map(|&id| number(gids, id)).collect::<Option<_>>()?;
    Some(Credentials { uid: all(uids, wanted.uid)?, gid: all(gids, wanted.gid)?, groups, ..wanted.clone() })
}

/// The identity of a task as the task itself is to set it: in a user namespace with the numbers there, as far as it
/// does not have it already.
pub fn inside(tree: &Tree, process: &Process, wanted: &Credentials, tid: i32) -> Result<Option<Option<Credentials>>> {
    let Some(user) = process.places.of(&tree.namespaces, Kind::User) else { return Ok(None) };
    if has(tid, wanted)? {
        return Ok(Some(None));
    }
    let Some(Content::User { uids, gids, .. }) = tree.namespaces.get(user as usize).map(|n| &n.content) else { return Ok(Some(None)) };
    Ok(Some(Some(Credentials {
        uid: wanted.uid.map(|id| mapped(uids, id)),
        gid: wanted.gid.map(|id| mapped(gids, id)),
        groups: wanted.groups.iter().map(|&id| mapped(gids, id)).collect(),
        ..wanted.clone()
    })))
}

/// The number inside of an id outside; who has none is the overflow user.
fn mapped(map: &[[u32; 3]], id: u32) -> u32 {
    number(map, id).unwrap_or(65534)
}

/// The number inside of an id outside, by a map as meio sees it.
pub fn number(map: &[[u32; 3]], id: u32) -> Option<u32> {
    let inside = |&[first, outside, count]: &[u32; 3]| id.checked_sub(outside).filter(|n| *n < count).and_then(|n| first.checked_add(n));
    map.iter().find_map(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_inside() {
        let map = [[0, 1000, 1], [1, 100_000, 65_535]];
        assert_eq!([1000, 100_000, 165_534, 165_535, 0].map(|id| mapped(&map, id)), [0, 1, 65_535, 65_534, 65_534]);
    }
}
