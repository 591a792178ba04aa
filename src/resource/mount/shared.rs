//! File systems that several mount namespaces of a tree have mounted: the one that is met first has it as its own, the
//! others show what is mounted there.

use super::rebuild::REVEALING;
use super::{FileSystem, IN_MEMORY, Line, Saved, Shown, View, below, join};
use crate::error::{Context, Error, Result};
use crate::resource::path::FilePath;
use crate::sys::mount;
use crate::sys::proc::mountinfo;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Where file systems of the tree's own were seen, by their devices.
#[derive(Debug, Default)]
pub struct Seen {
    places: HashMap<(u32, u32), Vec<Place>>,
    /// Which pid namespace is shown at which mount point of which mount namespace.
    pids: Vec<(u32, FilePath, (u64, u64))>,
}

#[derive(Debug)]
struct Place {
    /// Namespace and number there.
    of: (u32, u32),
    /// What the mount shows.
    root: FilePath,
}

impl Seen {
    /// Notes what the proc file systems of a mount namespace show: the pid namespace of the process that has number 1 there.
    pub fn look(&mut self, number: u32, view: &View) {
        for line in view.table.iter().filter(|l| &*l.fstype == b"proc" && &*l.root == b"/" && is_visible(view, l)) {
            let at = FilePath::from(&*line.mountpoint);
            if let Ok(meta) = std::fs::metadata(view.path(&at).join("1/ns/pid")) {
                self.pids.push((number, at, (meta.dev(), meta.ino())));
            }
        }
    }

    /// Marks those file systems that show a pid namespace for which there is a number.
    pub fn mark(&self, number: u32, saved: &mut Saved, known: impl Fn((u64, u64)) -> Option<u32>) {
        let Saved { mounts, own } = saved;
        for (_, at, identity) in self.pids.iter().filter(|seen| seen.0 == number) {
            // The last one at a place is on top.
            let shows = mounts.iter().rev().find(|m| m.at == *at).map(|m| &m.shows);
            if let Some(Shown::Own { number, .. }) = shows
                && let Some(own) = own.get_mut(*number as usize)
            {
                own.pids = known(*identity);
            }
        }
    }

    /// Marks what is known from another namespace; what cannot be found there is given back, as device and reason. Learns
    /// the rest.
    pub fn learn(&mut self, number: u32, view: &View, devices: &[(u32, u32)], saved: &mut Saved) -> Vec<(u32, &'static str)> {
        let mut lost = Vec::new();
        for (own, device) in devices.iter().enumerate() {
            let fstype = saved.own[own].fstype.bytes();
            if REVEALING.contains(&fstype) {
                continue;
            }
            let fatal = IN_MEMORY.contains(&fstype) || fstype == b"overlay";
            let shown = saved.mounts.iter().filter_map(|m| root_of(&m.shows, own as u32));
            let Some(places) = self.places.get(device) else {
                let visible = view.table.iter().zip(&saved.mounts).filter(|(line, _)| is_visible(view, line));
                let places =
                    visible.filter_map(|(_, m)| Some(Place { of: (number, own as u32), root: root_of(&m.shows, own as u32)?.clone() }));
                let places = places.collect();
                self.places.insert(*device, places);
                continue;
            };
            let found = |root: &FilePath| places.iter().any(|p| below(root.bytes(), p.root.bytes()).is_some());
            match (places.first(), shown.clone().all(found)) {
                (Some(first), true) => {
                    let FileSystem { fstype, source, .. } = std::mem::take(&mut saved.own[own]);
                    saved.own[own] = FileSystem { fstype, source, shared: Some(first.of), ..FileSystem::default() };
                }
                _ if fatal => lost.push((own as u32, "it is that of another mount namespace of the tree, where other mounts lie over it")),
                _ => {}
            }
        }
        lost
    }
}

fn root_of(shows: &Shown, own: u32) -> Option<&FilePath> {
    match shows {
        Shown::Own { number, root } if *number == own => Some(root),
        _ => None,
    }
}

fn is_visible(view: &View, line: &Line) -> bool {
    let place = mount::place(None, &view.path(&FilePath::from(&*line.mountpoint)));
    place.and_then(|place| mount::id(place.as_fd())).is_ok_and(|id| id == line.id)
}

/// A copy of a place of a file system that another namespace has, attached nowhere.
pub fn copy(number: u32, root: &FilePath, saved: &Saved, namespace: &File) -> Result<OwnedFd> {
    let candidates = saved.mounts.iter().filter_map(|m| {
        let rest = below(root.bytes(), root_of(&m.shows, number)?.bytes())?;
        Some((&m.at, rest))
    });
    let candidates: Vec<(&FilePath, _)> = candidates.collect();
    let open = |text: &[u8]| -> std::io::Result<Option<OwnedFd>> {
        let table = mountinfo::parse(text).map_err(std::io::Error::other)?;
        for (at, rest) in &candidates {
            let id = mount::place(None, at).and_then(|place| mount::id(place.as_fd()))?;
            // Nothing may be mounted over it.
            if table.iter().any(|l| l.id == id && *l.mountpoint == *at.bytes()) {
                let place = mount::place(None, &join(at, rest))?;
                return mount::copy(Some(place.as_fd()), Path::new("")).map(Some);
            }
        }
        Ok(None)
    };
    let copy = mount::within(namespace, false, open).context(|| "copying a mount of another mount namespace")?;
    copy.ok_or_else(|| Error::image("image damaged: a file system of another mount namespace is not there"))
}
