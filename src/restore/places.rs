//! The namespaces of a tree, all but the pid namespaces, made and furnished before anything is opened in them.
//!
//! A child of meio makes each, owned by the user namespace that shall own it; meio holds it by a descriptor, which the
//! stubs inherit and enter it by. When meio ends early the descriptors close, and with them it has gone.

use super::lock;
use crate::error::{Context, Error, Kind as Failure, Result};
use crate::netlock::NetLock;
use crate::resource::Tree;
use crate::resource::mount::Saved;
use crate::resource::namespace::{Content, Namespace, below};
use crate::resource::path::FilePath;
use crate::resource::process::Process;
use crate::sys::file;
use crate::sys::namespace::{self, Holder, Kind, Making, places, within};
use crate::tracee::stub::Stub;
use nix::fcntl::{FcntlArg, fcntl};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Descriptors of namespaces, inherited by the stubs.
pub struct Places<'t> {
    tree: &'t Tree,
    /// Lowest descriptor number.
    base: i32,
    made: Vec<Option<OwnedFd>>,
    own: Vec<(Kind, OwnedFd)>,
    /// Root directories of the mount namespaces.
    roots: HashMap<u32, OwnedFd>,
    /// Network namespaces that were there already.
    pub adopted: Vec<u32>,
    /// Over the connections in network namespaces: nobody who can reach one of them is to hear that they are not there.
    pub locks: Vec<NetLock>,
    /// What will be different.
    pub warnings: Vec<String>,
}

fn damaged() -> Error {
    Error::image("image damaged: a namespace is missing")
}

/// Whether some process is to make this time namespace itself, for its children.
fn made_by_parent(tree: &Tree, id: usize) -> bool {
    tree.processes.iter().any(|p| p.places.for_children.contains(&(id as u32)))
}

impl<'t> Places<'t> {
    /// Nothing yet. `base`: the tree's own descriptors are below.
    pub fn new(tree: &'t Tree, base: i32) -> Self {
        let made = tree.namespaces.iter().map(|_| None).collect();
        Places { tree, base, made, own: Vec::new(), roots: HashMap::new(), adopted: Vec::new(), locks: Vec::new(), warnings: Vec::new() }
    }

    /// Makes the user namespaces, those above others first.
    pub fn make_users(&mut self) -> Result<()> {
        let users = self.tree.namespaces.iter().enumerate().filter(|(_, n)| n.kind == Kind::User);
        let mut left: Vec<usize> = users.map(|(id, _)| id).collect();
        while !left.is_empty() {
            let before = left.len();
            for id in std::mem::take(&mut left) {
                match self.tree.namespaces[id].owner {
                    Some(owner) if self.made.get(owner as usize).is_none_or(Option::is_none) => left.push(id),
                    _ => self.make(id, None)?,
                }
            }
            if left.len() == before {
                return Err(Error::image("image damaged: user namespaces own each other"));
            }
        }
        Ok(())
    }

    /// Makes all others. `init`: a process in the tree's own pid namespace, when that is new.
    pub fn make_others(&mut self, init: Option<i32>) -> Result<()> {
        let others = |n: &Namespace| !matches!(n.kind, Kind::User | Kind::Pid);
        // Mounts last: some show what is in others.
        let mut list: Vec<usize> = (0..self.made.len()).filter(|&id| others(&self.tree.namespaces[id])).collect();
        list.sort_by_key(|&id| self.tree.namespaces[id].kind == Kind::Mnt);
        for id in list {
            if self.tree.namespaces[id].kind != Kind::Time || !made_by_parent(self.tree, id) {
                self.make(id, init)?;
            }
        }
        self.open_own()
    }

    /// Those of meio that some process has gone back to although its parent lives elsewhere.
    fn open_own(&mut self) -> Result<()> {
        let kinds: Vec<Kind> = self.tree.namespaces.iter().map(|n| n.kind).collect();
        for kind in Kind::ALL.into_iter().filter(|k| kinds.contains(k) && !matches!(k, Kind::User | Kind::Pid)) {
            let fd =
                namespace::open(std::process::id() as i32, kind.name()).context(|| format!("opening the own {} namespace", kind.name()))?;
            let fd = self.keep(fd)?;
            self.own.push((kind, fd));
        }
        Ok(())
    }

    fn keep(&self, fd: OwnedFd) -> Result<OwnedFd> {
        let new = fcntl(fd.as_fd(), FcntlArg::F_DUPFD(self.base)).context(|| "duplicating a descriptor")?;
        Ok(file::own(new))
    }

    /// The descriptor of a namespace; of meio's own for `None`.
    pub fn fd(&self, id: Option<u32>, kind: Kind) -> Result<&OwnedFd> {
        match id {
            Some(id) => self.made.get(id as usize).and_then(Option::as_ref).ok_or_else(damaged),
            None => self.own.iter().find(|o| o.0 == kind).map(|o| &o.1).ok_or_else(damaged),
        }
    }

    /// What a worker enters to be among the owners of a namespace.
    fn owner(&self, namespace: &Namespace) -> Result<Vec<(BorrowedFd<'_>, Kind)>> {
        match namespace.owner {
            Some(owner) => Ok(places([(self.fd(Some(owner), Kind::User)?, Kind::User)])),
            None => Ok(Vec::new()),
        }
    }

    fn make(&mut self, id: usize, init: Option<i32>) -> Result<()> {
        let namespace = &self.tree.namespaces[id];
        let kind = namespace.kind;
        if let (Content::Net(saved), None) = (&namespace.content, namespace.owner)
            && let Some(there) = saved.there()?
        {
            self.made[id] = Some(self.keep(there)?);
            self.adopted.push(id as u32);
            return Ok(());
        }
        let (mut join, mut maker) = (Vec::new(), None);
        match &namespace.content {
            Content::Roots(roots) => join = self.cgroups(roots),
            // Who makes one must have numbers in its parent.
            Content::User { maker: uid, .. } => maker = Some((*uid, self.first_user(namespace.owner).map_or(0, |first| first.1[1]))),
            _ => {}
        }
        let enter = self.owner(namespace)?;
        let holder = Holder::make(&Making { enter: &enter, maker, join }, &[kind])?;
        let doing = || format!("furnishing a {} namespace", kind.name());
        match &namespace.content {
            Content::Clocks { monotonic, boottime } => {
                let text = offsets(*monotonic, *boottime);
                std::fs::write(format!("/proc/{}/timens_offsets", holder.pid), text).context(doing)?;
            }
            Content::User { uids, gids, no_setgroups, .. } => {
                let uids = self.numbered_in(namespace.owner, uids, false)?;
                let gids = self.numbered_in(namespace.owner, gids, true)?;
                let maps = (uids.as_slice(), gids.as_slice(), *no_setgroups);
                let pid = holder.pid;
                match namespace.owner {
                    // Only who is in the parent may write them.
                    Some(_) => namespace::worker(&enter, || write_maps(pid, maps)).context(doing)?,
                    None => write_maps(pid, maps).context(doing)?,
                }
            }
            _ => {}
        }
        let fd = self.keep(holder.open(kind)?)?;
        drop(holder);
        let inside = places([(&fd, kind)]);
        match &namespace.content {
            Content::Names { host, domain } => within(&inside, || {
                nix::unistd::sethostname(host)?;
                namespace::set_domain_name(domain.as_bytes())
            })?
            .context(doing)?,
            Content::Net(saved) => {
                self.locks.extend(lock::new_network(self.tree, id as u32, fd.as_fd())?);
                let prepared = saved.prepare()?;
                let mut enter = inside.clone();
                enter.extend(self.owner(namespace)?);
                namespace::worker(&enter, || saved.rebuild(&prepared)).context(doing)?;
            }
            Content::Mounts(saved) => {
                self.mount(id, saved, &fd, init).context(doing)?;
                let root = within(&inside, || File::open("/"))??;
                self.roots.insert(id as u32, root.into());
            }
            Content::Ipc { sysctls } => within(&inside, || write_sysctls(sysctls))?.context(doing)?,
            _ => {}
        }
        self.made[id] = Some(fd);
        Ok(())
    }

    /// The maps of a user namespace.
    fn maps(&self, user: u32) -> Result<[&'t [[u32; 3]]; 2]> {
        match self.tree.namespaces.get(user as usize).map(|n| &n.content) {
            Some(Content::User { uids, gids, .. }) => Ok([uids, gids]),
            _ => Err(damaged()),
        }
    }

    /// The first user and group of a user namespace of the tree, each as it is numbered inside and outside.
    fn first_user(&self, user: Option<u32>) -> Option<([u32; 2], [u32; 2])> {
        let [uids, gids] = self.maps(user?).ok()?;
        let first = |map: &[[u32; 3]]| map.iter().min().map(|m| [m[0], m[1]]);
        Some((first(uids)?, first(gids)?))
    }

    /// A map as it is to be written: by the numbers of the parent, while meio knows those that it sees itself.
    fn numbered_in(&self, parent: Option<u32>, map: &[[u32; 3]], groups: bool) -> Result<Vec<[u32; 3]>> {
        let Some(parent) = parent else { return Ok(map.to_vec()) };
        let above = self.maps(parent)?[usize::from(groups)];
        let line = |&[inside, outside, count]: &[u32; 3]| super::users::number(above, outside).map(|n| [inside, n, count]);
        map.iter()
            .map(line)
            .collect::<Option<_>>()
            .ok_or_else(|| Error::image("image damaged: a user namespace maps ids that its parent has not"))
    }

    /// Takes a worker into a mount namespace and the user namespace that owns it, as somebody who may make files there.
    fn go(&self, mounts: &OwnedFd, namespace: &Namespace) -> Result<()> {
        for (fd, kind) in places([(mounts, Kind::Mnt)]).into_iter().chain(self.owner(namespace)?) {
            namespace::enter(fd, kind).context(|| format!("entering a {} namespace", kind.name()))?;
        }
        match self.first_user(namespace.owner) {
            Some((uid, gid)) => namespace::become_one(uid[0], gid[0]).context(|| "becoming a user of a user namespace"),
            None => Ok(()),
        }
    }

    /// Makes the mounts of a namespace, as one of those who live in it would see them.
    fn mount(&self, id: usize, saved: &Saved, fd: &OwnedFd, init: Option<i32>) -> Result<()> {
        let table = &self.tree.namespaces;
        let Some(member) = self.tree.processes.iter().find(|p| p.places.namespaces.contains(&(id as u32))) else { return Err(damaged()) };
        let pids = match init.filter(|_| member.level() == 0) {
            Some(init) => Some(namespace::open(init, "pid").context(|| "opening the new pid namespace")?),
            None => None,
        };
        let prepared = saved.prepare(|other| match &self.tree.namespaces.get(other as usize)?.content {
            Content::Mounts(saved) => Some((&**saved, File::from(self.fd(Some(other), Kind::Mnt).ok()?.try_clone().ok()?))),
            _ => None,
        })?;
        let mut enter: Vec<(BorrowedFd<'_>, Kind)> = pids.iter().map(|fd| (fd.as_fd(), Kind::Pid)).collect();
        for kind in [Kind::Net, Kind::Ipc, Kind::Cgroup] {
            if let Some(other) = member.places.of(table, kind) {
                enter.push((self.fd(Some(other), kind)?.as_fd(), kind));
            }
        }
        // The user namespace last: before, meio may enter the others.
        namespace::worker(&enter, || {
            let revealed = saved.reveal(pids.is_some())?;
            self.go(fd, &table[id])?;
            saved.rebuild(prepared, revealed)
        })
    }

    /// A proc file system shows the pid namespace of who mounts it. Those of nested ones, whose processes are there only
    /// now, take the place of what stood for them.
    pub fn show_nested(&self, stubs: &HashMap<i32, Stub>) -> Result<()> {
        for (id, namespace) in self.tree.namespaces.iter().enumerate() {
            let Content::Mounts(saved) = &namespace.content else { continue };
            let shown: BTreeSet<u32> = saved.own.iter().filter_map(|own| own.pids).collect();
            for pids in shown {
                let lives = |p: &&Process| p.places.of(&self.tree.namespaces, Kind::Pid) == Some(pids) && p.memory.is_some();
                let Some(stub) = self.tree.processes.iter().find(lives).and_then(|p| stubs.get(&p.pid)) else { continue };
                let fd = namespace::open(stub.pid, "pid").context(|| "opening a nested pid namespace")?;
                let mounts = self.fd(Some(id as u32), Kind::Mnt)?;
                namespace::worker(&[(fd.as_fd(), Kind::Pid)], || saved.renew_proc(pids, || self.go(mounts, namespace)))?;
            }
        }
        Ok(())
    }

    /// The way to a path in a mount namespace, for meio.
    pub fn path(&self, namespace: Option<u32>, path: &FilePath) -> PathBuf {
        match namespace.and_then(|id| self.roots.get(&id)) {
            Some(root) => below(root, path),
            None => path.to_path_buf(),
        }
    }

    /// The mount namespace that an open file was found in: that of the first process that holds it.
    pub fn mounts_of_file(&self, file: u32) -> Option<u32> {
        let holder = self.tree.processes.iter().find(|p| p.descriptors.iter().any(|d| d.file == file))?;
        holder.places.of(&self.tree.namespaces, Kind::Mnt)
    }

    /// The files by which a process joins the roots of a cgroup namespace; a warning for those that are not there.
    fn cgroups(&mut self, roots: &[(String, String)]) -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut files = Vec::new();
        for (hierarchy, path) in roots {
            if own.lines().any(|line| line.split_once(':').is_some_and(|(_, rest)| rest == format!("{hierarchy}:{path}"))) {
                continue;
            }
            let file = mount_point(&mounts, hierarchy).map(|at| Path::new(&at).join(path.trim_start_matches('/')).join("cgroup.procs"));
            match file {
                Some(file) if file.exists() => files.push(file),
                _ => self.warnings.push(format!("the cgroup {path} ({hierarchy}) is not there: a cgroup namespace begins elsewhere")),
            }
        }
        files
    }
}

/// What `/proc/PID/timens_offsets` takes.
pub fn offsets(monotonic: (i64, i64), boottime: (i64, i64)) -> String {
    format!("monotonic {} {}\nboottime {} {}\n", monotonic.0, monotonic.1, boottime.0, boottime.1)
}

/// Where a cgroup hierarchy is mounted whole, by proc_pid_mountinfo(5).
fn mount_point(mounts: &str, hierarchy: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut back = back.split(' ');
        let (kind, options) = (back.next()?, back.nth(1)?);
        let fits = match hierarchy {
            "" => kind == "cgroup2",
            names => kind == "cgroup" && names.split(',').all(|name| options.split(',').any(|o| o == name)),
        };
        let mut front = front.split(' ').skip(3);
        (fits && front.next() == Some("/")).then(|| front.next().map(str::to_owned)).flatten()
    })
}

/// user_namespaces(7): setgroups first, then the maps, each in a single write.
fn write_maps(pid: i32, (uids, gids, no_setgroups): (&[[u32; 3]], &[[u32; 3]], bool)) -> Result<()> {
    let text = |map: &[[u32; 3]]| map.iter().map(|[a, b, n]| format!("{a} {b} {n}\n")).collect::<String>();
    let write = |name: &str, text: String| {
        let path = format!("/proc/{pid}/{name}");
        if text.is_empty() { Ok(()) } else { std::fs::write(&path, text).context(|| format!("writing {path}")) }
    };
    write("setgroups", if no_setgroups { "deny".into() } else { String::new() })?;
    write("uid_map", text(uids))?;
    write("gid_map", text(gids))
}

fn write_sysctls(sysctls: &[(String, String)]) -> Result<()> {
    for (name, text) in sysctls {
        if name.contains("..") || !(name.starts_with("kernel/") || name.starts_with("fs/mqueue/")) {
            return Err(Error::image(format!("image damaged: {name} is not of an ipc namespace")));
        }
        let path = format!("/proc/sys/{name}");
        match std::fs::read_to_string(&path) {
            Ok(now) if now.trim() == text => {}
            Ok(_) => std::fs::write(&path, text).context(|| format!("writing {path}"))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::from(e).context(path)),
        }
    }
    Ok(())
}

/// What a restore takes for granted about namespaces.
pub fn check(tree: &Tree) -> Result<()> {
    let count = tree.namespaces.len();
    let bad = |what: &str| Err(Error::image(format!("image damaged: {what}")));
    for namespace in &tree.namespaces {
        let fits = match &namespace.content {
            Content::Nothing => Kind::Pid,
            Content::Names { .. } => Kind::Uts,
            Content::Clocks { .. } => Kind::Time,
            Content::Ipc { .. } => Kind::Ipc,
            Content::User { .. } => Kind::User,
            Content::Mounts(_) => Kind::Mnt,
            Content::Net(_) => Kind::Net,
            Content::Roots(_) => Kind::Cgroup,
        };
        if namespace.kind != fits {
            return bad("a namespace holds what it cannot");
        }
        if namespace.owner.is_some_and(|o| tree.namespaces.get(o as usize).is_none_or(|o| o.kind != Kind::User)) {
            return bad("a namespace has no owner");
        }
        let mut chain = std::iter::successors(Some(namespace), |n| tree.namespaces.get(n.owner? as usize));
        if chain.nth(count).is_some() {
            return bad("a namespace owns itself");
        }
    }
    for p in &tree.processes {
        let lists = [&p.places.namespaces, &p.places.for_children];
        if lists.iter().any(|l| l.len() > Kind::ALL.len() || l.iter().any(|&n| n as usize >= count)) {
            return bad(&format!("process {} lives nowhere", p.pid));
        }
        let odd = |inner: &[i32]| inner.len() > 32 || inner.iter().any(|&n| n <= 0);
        if odd(&p.places.inner) || p.threads.iter().any(|t| odd(&t.inner) || t.inner.len() != p.places.inner.len()) {
            return bad(&format!("process {} has impossible numbers", p.pid));
        }
    }
    let base = tree.base();
    if let Some(base) = base
        && tree.processes[0].pid != 1
        && tree.namespaces[base as usize].owner.is_some()
    {
        return Err(Error::new(Failure::Unsupported, "the tree lives in a pid namespace of a user namespace, without its first process"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_cgroups_are_mounted() {
        let mounts = "30 20 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 20 0:26 /sub /mnt rw - cgroup2 none rw\n\
                      32 20 0:26 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n\
                      33 20 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        assert_eq!(mount_point(mounts, "memory").as_deref(), Some("/sys/fs/cgroup/memory"));
        assert_eq!(mount_point(mounts, "").as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point(mounts, "name=systemd").as_deref(), Some("/sys/fs/cgroup/systemd"));
        assert_eq!(mount_point(mounts, "cpu"), None);
    }
}
