//! Makes the mounts of a namespace again: in a staging place first, then as the root of everything.

use super::propagation::{self, HostGroups};
use super::{FileSystem, IN_MEMORY, Line, Mount, Saved, Shown, below, contents, shared, uncover};
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

/// File systems that show what the kernel knows of a namespace.
pub(super) const REVEALING: [&[u8]; 2] = [b"proc", b"sysfs"];

/// File systems that were made where meio is: those of [`Saved::own`], and one instead of the proc that meio sees.
pub struct Revealed {
    own: Vec<Option<OwnedFd>>,
    proc: Option<OwnedFd>,
}

impl Saved {
    /// Takes along what meio sees and the namespace shows, and what it shares with `others` that are there already. In meio.
    pub fn prepare<'o>(&self, others: impl Fn(u32) -> Option<(&'o Saved, File)>) -> Result<Prepared> {
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
                Shown::Own { number, root } => match self.own.get(*number as usize).and_then(|own| own.shared) {
                    Some((namespace, number)) => {
                        let (saved, namespace) = others(namespace)
                            .ok_or_else(|| Error::image("image damaged: a mount namespace that is shared with is missing"))?;
                        Some(shared::copy(number, root, saved, &namespace).context(|| format!("mounting {}", wanted.at))?)
                    }
                    None => None,
                },
            });
        }
        Ok(Prepared { hosts, groups: propagation::open_groups(self)? })
    }

    /// Makes the proc and sysfs file systems. In a process of its own that has entered the pid and network namespaces that
    /// they are to show, and is in the mount namespace of meio still: in one that a user namespace owns they may be mounted
    /// only where others are seen whole already (`mount_too_revealing` of the kernel). With `fresh_proc`, places of the proc
    /// that meio sees become places of a new one.
    pub fn reveal(&self, fresh_proc: bool) -> Result<Revealed> {
        let mount = |own: &FileSystem| {
            own.configure(Configuration::new(own.fstype.bytes())?, own.read_only)
                .context(|| format!("making a file system of type {}", own.fstype))
        };
        let reveals = |own: &FileSystem| REVEALING.contains(&own.fstype.bytes());
        let own = self.own.iter().map(|own| reveals(own).then(|| mount(own)).transpose()).collect::<Result<_>>()?;
        let of_meio = |m: &Mount| matches!(&m.shows, Shown::Host { fstype, .. } if fstype.bytes() == b"proc");
        let proc = FileSystem { fstype: "proc".into(), source: "proc".into(), ..FileSystem::default() };
        let proc = if fresh_proc && self.mounts.iter().any(of_meio) { Some(mount(&proc)?) } else { None };
        Ok(Revealed { own, proc })
    }

    /// Makes the mounts. In a process of its own that has entered the fresh mount namespace, its user namespace, and the
    /// ipc and cgroup namespaces whose mqueue and cgroup file systems are to be shown; what was in the namespace goes.
    pub fn rebuild(&self, prepared: Prepared, revealed: Revealed) -> Result<()> {
        mount::make_private().context(|| "making all mounts private")?;
        let mut stage = Stage::new(revealed)?;
        let mut made: Vec<OwnedFd> = Vec::with_capacity(self.mounts.len());
        for (number, (wanted, host)) in self.mounts.iter().zip(prepared.hosts).enumerate() {
            let doing = || format!("mounting {}", wanted.at);
            let new = self.source(wanted, host, &mut stage).context(doing)?;
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
            if let (true, Some(fs)) = (own.read_only && !REVEALING.contains(&own.fstype.bytes()), fs) {
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

    /// Mounts proc file systems of the namespace's own anew that show the pid namespace `pids`, over whose place nothing else
    /// is mounted. In a process that has entered that, and by `enter` then enters the mount namespace.
    pub fn renew_proc(&self, pids: u32, enter: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut renewed = Vec::new();
        for (number, wanted) in self.mounts.iter().enumerate() {
            let Shown::Own { number: own, root } = &wanted.shows else { continue };
            let Some(fs) = self.own.get(*own as usize).filter(|fs| fs.fstype.bytes() == b"proc" && fs.pids == Some(pids)) else { continue };
            if root.bytes() != b"/" || self.mounts.iter().any(|m| m.parent == Some(number as u32)) {
                continue;
            }
            let doing = || format!("mounting {}", wanted.at);
            let new = Configuration::new(b"proc").and_then(|new| fs.configure(new, fs.read_only)).context(doing)?;
            mount::set_attributes(new.as_fd(), wanted.attributes, libc::MOUNT_ATTR__ATIME, 0).context(doing)?;
            renewed.push((wanted, new));
        }
        enter()?;
        for (wanted, new) in renewed {
            let doing = || format!("mounting {}", wanted.at);
            mount::detach(&wanted.at).context(doing)?;
            let place = mount::place(None, &wanted.at).context(doing)?;
            mount::attach(new.as_fd(), place.as_fd()).context(doing)?;
        }
        Ok(())
    }

    /// The mount that is to be attached.
    fn source(&self, wanted: &Mount, host: Option<OwnedFd>, stage: &mut Stage) -> Result<OwnedFd> {
        match (&wanted.shows, host, &stage.proc) {
            (Shown::Host { path, fstype, .. }, Some(_), Some(proc)) if fstype.bytes() == b"proc" => {
                // Where meio sees it need not be /proc, but what is below a mount of proc is the same everywhere.
                let rest = path.bytes().strip_prefix(b"/proc").map(FilePath::from);
                let rest = rest.ok_or_else(|| Error::other(format!("{path} does not lie in /proc")))?;
                part(proc.as_fd(), &rest)
            }
            (_, Some(host), _) => Ok(host),
            (Shown::Own { number, root }, ..) => {
                let own = self.own.get(*number as usize).ok_or_else(|| Error::image("image damaged: a file system is missing"))?;
                let fs = match &stage.own[*number as usize] {
                    Some(fs) => fs.try_clone()?,
                    None => stage.make(own, &number.to_string())?,
                };
                stage.own[*number as usize] = Some(fs.try_clone()?);
                part(fs.as_fd(), root)
            }
            (Shown::Host { .. }, None, _) => Err(Error::other("a mount was not taken along")),
        }
    }
}

impl FileSystem {
    /// Makes it, and a mount of it that is attached nowhere.
    fn configure(&self, configuration: Configuration, read_only: bool) -> std::io::Result<OwnedFd> {
        if !self.source.bytes().is_empty() {
            configuration.set(b"source", Some(self.source.bytes()))?;
        }
        for option in &self.options {
            let mut parts = option.bytes().splitn(2, |b| *b == b'=');
            let (key, value) = (parts.next().unwrap_or_default(), parts.next());
            configuration.set(key, value).map_err(|e| std::io::Error::new(e.kind(), format!("option {option}: {e}")))?;
        }
        if read_only {
            configuration.set(b"ro", None)?;
        }
        configuration.mount()
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
    fn new(revealed: Revealed) -> Result<Stage> {
        let doing = || "making a staging place";
        let place = Configuration::new(b"tmpfs").and_then(Configuration::mount).context(doing)?;
        let folders = ["/tmp", "/mnt", "/run", "/var", "/dev", "/proc"];
        let at = folders.iter().find_map(|f| mount::place(None, Path::new(f)).ok()).ok_or_else(|| Error::other("no folder to stage in"))?;
        mount::attach(place.as_fd(), at.as_fd()).context(doing)?;
        let stage = Stage { place, own: revealed.own, proc: revealed.proc, top: None };
        for (number, fs) in stage.own.iter().enumerate().filter_map(|(number, fs)| Some((number, fs.as_ref()?))) {
            mount::attach(fs.as_fd(), stage.folder(&number.to_string())?.as_fd()).context(doing)?;
        }
        if let Some(proc) = &stage.proc {
            mount::attach(proc.as_fd(), stage.folder("proc")?.as_fd()).context(doing)?;
        }
        Ok(stage)
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
        let inside = own.inner_paths.then_some(self.top.as_ref()).flatten();
        let outside = mount::place(None, Path::new("/"))?;
        if let Some(top) = inside {
            nix::unistd::fchdir(top.as_fd())?;
            nix::unistd::chroot(".")?;
        }
        let fs = own.configure(configuration, false);
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
