//! Propagation of mounts: peer groups, masters, unbindable (mount_namespaces(7), "Shared subtrees").

use super::Saved;
use crate::error::{Context, Result};
use crate::resource::path::FilePath;
use crate::sys::mount;
use crate::sys::proc::mountinfo::Mount as Line;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// One peer group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Group {
    /// One of the namespace's own, with a number.
    Own(u32),
    /// That of the mount which meio sees here.
    Host(FilePath),
}

/// Where the propagation of a mount comes from and goes to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Groups {
    /// The group of which it is a peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<Group>,
    /// The group that it is a slave of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<Group>,
    /// It cannot be bound elsewhere.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unbindable: bool,
}

/// The number behind `shared:` or `master:` of a line.
fn number(line: &Line, key: &str) -> Option<u32> {
    let value = line.optional.iter().find_map(|o| o.strip_prefix(key.as_bytes()))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl Groups {
    /// Nothing comes, nothing goes.
    pub fn private(&self) -> bool {
        *self == Groups::default()
    }

    /// The groups of a mount, out of the tables that meio and the namespace itself see.
    pub fn of(line: &Line, host: &[Line], own: &[Line]) -> Groups {
        let group = |id: u32| -> Group {
            match host.iter().find(|l| number(l, "shared:") == Some(id)) {
                Some(outside) => Group::Host(FilePath::from(&*outside.mountpoint)),
                None => Group::Own(renumber(own, id)),
            }
        };
        // A master whose peers are all elsewhere sends nothing that anybody could ask for again.
        let known = |id: &u32| host.iter().chain(own).any(|l| number(l, "shared:") == Some(*id));
        Groups {
            shared: number(line, "shared:").map(group),
            master: number(line, "master:").filter(known).map(group),
            unbindable: line.optional.iter().any(|o| o == b"unbindable"),
        }
    }
}

/// Groups count by their first member, so that the same mounts have the same numbers after a restore.
fn renumber(own: &[Line], id: u32) -> u32 {
    let mut seen: Vec<u32> = Vec::new();
    for found in own.iter().filter_map(|l| number(l, "shared:")) {
        if !seen.contains(&found) {
            seen.push(found);
        }
    }
    seen.iter().position(|s| *s == id).unwrap_or(seen.len()) as u32
}

/// The mounts of meio whose groups are wanted.
pub type HostGroups = HashMap<FilePath, OwnedFd>;

/// Opens the mounts of meio that mounts of the namespace share propagation with.
pub fn open_groups(saved: &Saved) -> Result<HostGroups> {
    let mut found = HashMap::new();
    for groups in saved.mounts.iter().map(|m| &m.groups) {
        for group in [&groups.shared, &groups.master].into_iter().flatten() {
            if let Group::Host(path) = group {
                let place = mount::place(None, Path::new(&**path)).context(|| format!("opening the mount {path}"))?;
                found.insert(path.clone(), place);
            }
        }
    }
    Ok(found)
}

/// Sets the propagation of all mounts, which are private until then.
pub fn set(saved: &Saved, mounts: &[OwnedFd], hosts: &HostGroups) -> Result<()> {
    let mut first: HashMap<u32, usize> = HashMap::new();
    let mut left: Vec<usize> = (0..mounts.len()).filter(|&i| !saved.mounts[i].groups.private()).collect();
    let attributes = |i: usize, how: u64| mount::set_attributes(mounts[i].as_fd(), 0, 0, how);
    // A group that is the slave of another one comes after it.
    for _ in 0..=mounts.len() {
        let mut later = Vec::new();
        for i in left {
            let groups = &saved.mounts[i].groups;
            let doing = || format!("setting the propagation of {}", saved.mounts[i].at);
            let join = |from: &OwnedFd| mount::join_group(from.as_fd(), mounts[i].as_fd()).context(doing);
            let from = |group: &Group| match group {
                Group::Own(number) => first.get(number).map(|&m| &mounts[m]),
                Group::Host(path) => hosts.get(path),
            };
            if let Some(peer) = groups.shared.as_ref().and_then(from) {
                join(peer)?; // the master of its peers is its own, too
                continue;
            }
            if let Some(group) = &groups.master {
                let Some(peer) = from(group) else {
                    later.push(i);
                    continue;
                };
                join(peer)?;
                attributes(i, libc::MS_SLAVE).context(doing)?;
            }
            if let Some(group) = &groups.shared {
                attributes(i, libc::MS_SHARED).context(doing)?;
                if let Group::Own(number) = group {
                    first.insert(*number, i);
                }
            }
            if groups.unbindable {
                attributes(i, libc::MS_UNBINDABLE).context(doing)?;
            }
        }
        left = later;
    }
    Ok(())
}
