//! Makes the mounts of a namespace again: in a staging place first, then as the root of everything.

use super::propagation::{self, HostGroups};
use super::{FileSystem, IN_MEMORY, Line, Mount, Saved, Shown, below, contents, uncover};
use crate::error::{Context, Error, Kind, Result};
use crate::resource::path::FilePath;
use crate::sys::mount::{self, Configuration};
use crate::sys::proc::{mountinfo, read};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What is taken along from the mount namespace of meio.
pub struct Prepared {
    /// For each mount that shows a place which meio sees: a copy of that mount, attached nowhere.
    hosts: Vec<Option<OwnedFd>>,
    groups: HostGroups,
}

impl Saved {
    /// Takes along what meio sees and the namespace shows. In meio, before anything is started.
    pub fn prepare(&self) -> Result<Prepared> {
        let table = read::parsed(std::process::id() as i32, "mountinfo", mountinfo::parse)?;
        let mut hosts = Vec::new();
        for wanted in &self.mounts {
            hosts.push(match &wanted.shows {
                Shown::Host { path, fstype, folder, layer } => {
                    let gone = |what: String| {
                        let place = format!("{path}, which is mounted at {} in the tree's mount namespace,", wanted.at);
                        Error::new(Kind::NotFound, format!("{place} {what}"))
                    };
                    let found = match layer {
                        Some(layer) => covered(path, *layer, &table)?,
                        None => mount::place(None, path).ok(),
                    };
                    let place = found.ok_or_else(|| gone("is not there".into()))?;
                    Some(host_copy(place, fstype, *folder, &table).context(|| format!("copying the mount {path}"))?.map_err(gone)?)
                }
                Shown::Own { .. } => None,
            });
        }
        Ok(Prepared { hosts, groups: propagation::open_groups(self)? })
    }

    /// Makes the mounts. In a process of its own that has entered the fresh mount namespace, its user namespace, and the
    /// pid, network, ipc and cgroup namespaces whose proc, sysfs, mqueue and cgroup file systems are to be shown; what was in
    /// the namespace goes. With `fresh_proc`, places of the proc that meio sees become places of a new one.
    pub fn rebuild(&self, prepared: Prepared, fresh_proc: bool) -> Result<()> {
        mount::make_private().context(|| "making all mounts private")?;
        let mut stage = Stage::new(self.own.len())?;
        let mut made: Vec<OwnedFd> = Vec::with_capacity(self.mounts.len());
        for (number, (wanted, host)) in self.mounts.iter().zip(prepared.hosts).enumerate() {
            let doing = || format!("mounting {}", wanted.at);
            let new = self.source(wanted, host, fresh_proc, &mut stage).context(doing)?;
            let target = match wanted.parent {
                None if number == 0 => stage.root()?,
                Some(parent) if (parent as usize) < number => {
                    let on = &self.mounts[parent as usize];
                    let rest = below(wanted.at.bytes(), on.at.bytes()).ok_or_else(|| Error::image("image damaged: mounts"))?;
                    let folder = made[parent as usize].as_fd();
                    if rest.as_os_str().is_empty() {
                        folder.try_clone_to_owned()?
                    } else {
                        mount::place(Some(folder), &rest).context(doing)?
                    }
                }
                _ => return Err(Error::image("image damaged: a mount before the one that it is mounted on")),
            };
            mount::attach(new.as_fd(), target.as_fd()).context(doing)?;
            let all = libc::MOUNT_ATTR_RDONLY
                | libc::MOUNT_ATTR_NOSUID
                | libc::MOUNT_ATTR_NODEV
                | libc::MOUNT_ATTR_NOEXEC
                | libc::MOUNT_ATTR_NODIRATIME
                | libc::MOUNT_ATTR_NOSYMFOLLOW;
            let clear = all & !wanted.attributes | libc::MOUNT_ATTR__ATIME;
            let set = wanted.attributes & (all | libc::MOUNT_ATTR__ATIME);
            mount::set_attributes(new.as_fd(), set, clear, 0).context(|| format!("setting the options of {}", wanted.at))?;
            if number == 0 {
                stage.top = Some(new.try_clone()?);
            }
            made.push(new);
        }
        for (own, fs) in self.own.iter().zip(&stage.own) {
            if let (true, Some(fs)) = (own.read_only, fs) {
                let doing = || format!("making {} read-only", own.fstype);
                let configuration = Configuration::of(fs.as_fd()).context(doing)?;
                configuration.set(b"ro", None).context(doing)?;
                configuration.reconfigure().context(doing)?;
            }
        }
        propagation::set(self, &made, &prepared.groups)?;
        let root = made.first().ok_or_else(|| Error::image("image damaged: a mount namespace without mounts"))?;
        mount::change_root(root.as_fd()).context(|| "changing the root of the mount namespace")
    }

    /// The mount that is to be attached.
    fn source(&self, wanted: &Mount, host: Option<OwnedFd>, fresh_proc: bool, stage: &mut Stage) -> Result<OwnedFd> {
        match (&wanted.shows, host) {
            (Shown::Host { path, fstype, .. }, Some(_)) if fresh_proc && fstype.bytes() == b"proc" => {
                // Where meio sees it need not be /proc, but what is below a mount of proc is the same everywhere.
                let rest = path.bytes().strip_prefix(b"/proc").map(FilePath::from);
                let rest = rest.ok_or_else(|| Error::other(format!("{path} does not lie in /proc")))?;
                let proc = match &stage.proc {
                    Some(proc) => proc.try_clone()?,
                    None => stage.make(&FileSystem { fstype: "proc".into(), source: "proc".into(), ..FileSystem::default() }, "proc")?,
                };
                stage.proc = Some(proc.try_clone()?);
                part(proc.as_fd(), &rest)
            }
            (Shown::Host { .. }, Some(host)) => Ok(host),
            (Shown::Own { number, root }, _) => {
                let own = self.own.get(*number as usize).ok_or_else(|| Error::image("image damaged: a file system is missing"))?;
                let fs = match &stage.own[*number as usize] {
                    Some(fs) => fs.try_clone()?,
                    None => stage.make(own, &number.to_string())?,
                };
                stage.own[*number as usize] = Some(fs.try_clone()?);
                part(fs.as_fd(), root)
            }
            (Shown::Host { .. }, None) => Err(Error::other("a mount was not taken along")),
        }
    }
}

/// A copy of the mount that meio sees at a place, or why it is not the one that is meant.
fn host_copy(place: OwnedFd, fstype: &FilePath, folder: bool, table: &[Line]) -> Result<std::result::Result<OwnedFd, String>> {
    let id = mount::id(place.as_fd())?;
    // A copy of what was below other mounts is in no table.
    let is_copy = !table.iter().any(|l| l.id == id);
    let here = table.iter().find(|l| l.id == id).map_or(fstype.bytes(), |l| &l.fstype);
    if here != fstype.bytes() {
        return Ok(Err(format!("lies on another file system ({}, was {fstype})", String::from_utf8_lossy(here))));
    }
    if File::from(place.try_clone()?).metadata()?.is_dir() != folder {
        return Ok(Err("is not what it was (directory or file)".into()));
    }
    let copy = if is_copy { place } else { mount::copy(Some(place.as_fd()), Path::new(""))? };
    // What is mounted on it must not appear where meio is.
    mount::set_attributes(copy.as_fd(), 0, 0, libc::MS_PRIVATE)?;
    Ok(Ok(copy))
}

/// A copy of a mount that meio does not see, since others lie over it.
fn covered(path: &FilePath, layer: u32, table: &[Line]) -> Result<Option<OwnedFd>> {
    let Some(line) = table.iter().filter(|l| *l.mountpoint == *path.bytes()).nth(layer as usize) else { return Ok(None) };
    let own = File::open("/proc/self/ns/mnt")?;
    let open = |text: &[u8]| Ok(uncover(line, &mountinfo::parse(text).map_err(std::io::Error::other)?));
    mount::within(&own, true, open).context(|| format!("lifting the mounts over {path}"))
}

/// A mount of a place of a file system.
fn part(fs: BorrowedFd<'_>, root: &FilePath) -> Result<OwnedFd> {
    let rest = below(root.bytes(), b"/").unwrap_or_default();
    mount::copy(Some(fs), &rest).context(|| format!("finding {root}"))
}

/// A place where file systems are mounted until the new root is complete. It goes with the old root.
struct Stage {
    place: OwnedFd,
    /// The namespace's own file systems that were made.
    own: Vec<Option<OwnedFd>>,
    proc: Option<OwnedFd>,
    /// The root as far as it is made.
    top: Option<OwnedFd>,
}

impl Stage {
    fn new(own: usize) -> Result<Stage> {
        let doing = || "making a staging place";
        let place = Configuration::new(b"tmpfs").and_then(Configuration::mount).context(doing)?;
        let folders = ["/tmp", "/mnt", "/run", "/var", "/dev", "/proc"];
        let at = folders.iter().find_map(|f| mount::place(None, Path::new(f)).ok()).ok_or_else(|| Error::other("no folder to stage in"))?;
        mount::attach(place.as_fd(), at.as_fd()).context(doing)?;
        Ok(Stage { place, own: (0..own).map(|_| None).collect(), proc: None, top: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.place.as_raw_fd()))
    }

    fn folder(&self, name: &str) -> Result<OwnedFd> {
        nix::sys::stat::mkdirat(self.place.as_fd(), name, nix::sys::stat::Mode::S_IRWXU).context(|| "staging")?;
        mount::place(Some(self.place.as_fd()), Path::new(name)).context(|| "staging")
    }

    /// Where the root of the namespace is put together.
    fn root(&self) -> Result<OwnedFd> {
        self.folder("root")
    }

    /// Makes a file system, with what is in it.
    fn make(&self, own: &FileSystem, name: &str) -> Result<OwnedFd> {
        let doing = || format!("making a file system of type {}", own.fstype);
        let configuration = Configuration::new(own.fstype.bytes()).context(doing)?;
        if !own.source.bytes().is_empty() {
            configuration.set(b"source", Some(own.source.bytes())).context(doing)?;
        }
        let inside = own.inner_paths.then_some(self.top.as_ref()).flatten();
        let outside = mount::place(None, Path::new("/"))?;
        if let Some(top) = inside {
            nix::unistd::fchdir(top.as_fd())?;
            nix::unistd::chroot(".")?;
        }
        let run = || -> Result<OwnedFd> {
            for option in &own.options {
                let mut parts = option.bytes().splitn(2, |b| *b == b'=');
                let (key, value) = (parts.next().unwrap_or_default(), parts.next());
                configuration.set(key, value).context(|| format!("option {option}"))?;
            }
            configuration.mount().context(doing)
        };
        let fs = run();
        if inside.is_some() {
            nix::unistd::fchdir(outside.as_fd())?;
            nix::unistd::chroot(".")?;
        }
        let fs = fs.context(doing)?;
        let target = self.folder(name)?;
        mount::attach(fs.as_fd(), target.as_fd()).context(doing)?;
        if IN_MEMORY.contains(&own.fstype.bytes()) {
            contents::write(&self.path(name), &own.inodes).context(|| format!("filling a file system of type {}", own.fstype))?;
        }
        Ok(fs)
    }
}
