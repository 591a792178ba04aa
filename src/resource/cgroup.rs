//! cgroups(7), both versions: which group of each hierarchy a task is in. The groups themselves are the machine's and
//! are not made again: a restored task joins them where they are there.

use super::capture::Capture;
use super::path::FilePath;
use crate::sys::proc::read;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A group of one hierarchy, a line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Controllers or `name=…` of a hierarchy of version 1, with commas between; empty for version 2.
    pub controllers: String,
    /// Path below the hierarchy's root, as meio saw it.
    pub path: FilePath,
    /// meio was in the same one. A tree like any other then goes where meio is when the group has gone.
    pub with_meio: bool,
}

/// The table of sets of groups while it is filled: tasks that are in the same ones share an entry.
#[derive(Debug, Default)]
pub struct Sets {
    own: Option<Vec<Group>>,
    index: HashMap<Vec<u8>, u32>,
    sets: Vec<Vec<Group>>,
}

impl Sets {
    /// All sets in the order of their numbers.
    pub fn take(&mut self) -> Vec<Vec<Group>> {
        self.index.clear();
        std::mem::take(&mut self.sets)
    }

    fn number(&mut self, text: Vec<u8>) -> u32 {
        let Sets { own, index, sets } = self;
        *index.entry(text).or_insert_with_key(|text| {
            let own = own.get_or_insert_with(|| groups_of(std::process::id() as i32));
            let mut set = parse(text);
            for group in &mut set {
                group.with_meio = own.iter().any(|o| o.controllers == group.controllers && o.path == group.path);
            }
            sets.push(set);
            sets.len() as u32 - 1
        })
    }
}

/// Number of the set of groups that a task is in; `None` on a kernel without cgroups.
pub fn capture(pid: i32, tid: i32, capture: &mut Capture) -> Option<u32> {
    let text = read::read_task(pid, tid, "cgroup").ok().filter(|t| !t.is_empty())?;
    Some(capture.cgroups.number(text))
}

fn groups_of(pid: i32) -> Vec<Group> {
    read::read(pid, "cgroup").map(|text| parse(&text)).unwrap_or_default()
}

/// Parses `/proc/PID/cgroup`: number, controllers, path.
fn parse(text: &[u8]) -> Vec<Group> {
    let line = |line: &[u8]| {
        let mut fields = line.splitn(3, |&b| b == b':').skip(1);
        let controllers = String::from_utf8(fields.next()?.to_vec()).ok()?;
        let path = fields.next()?;
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        Some(Group { controllers, path: FilePath::from(path), with_meio: false })
    };
    text.split(|&b| b == b'\n').filter_map(line).collect()
}

/// A hierarchy that is mounted, a line of `/proc/PID/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    unified: bool,
    options: Vec<String>,
    root: PathBuf,
    point: PathBuf,
}

/// Parses those lines of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)) that are about cgroups.
fn mounts(text: &[u8]) -> Vec<Mount> {
    let path = |field: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(&plain(field)));
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let dash = fields.iter().position(|f| *f == b"-")?;
        let unified = match *fields.get(dash + 1)? {
            b"cgroup" => false,
            b"cgroup2" => true,
            _ => return None,
        };
        let options = String::from_utf8_lossy(fields.get(dash + 3)?).split(',').map(str::to_owned).collect();
        Some(Mount { unified, options, root: path(fields.get(3)?), point: path(fields.get(4)?) })
    };
    text.split(|&b| b == b'\n').filter_map(line).collect()
}

/// Undoes the octal escapes of spaces and the like.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| byte == b'\\').and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        out.push(code.unwrap_or(byte));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    out
}

impl Mount {
    fn has(&self, controllers: &str) -> bool {
        if controllers.is_empty() {
            self.unified
        } else {
            !self.unified && controllers.split(',').all(|c| self.options.iter().any(|o| o == c))
        }
    }

    /// The folder of a group, when this mount shows it.
    fn folder(&self, path: &Path) -> Option<PathBuf> {
        let inside = path.components().all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_)));
        let below = path.strip_prefix(&self.root).ok().filter(|_| inside)?;
        Some(self.point.join(below))
    }
}

/// Puts stubs into the groups of an image.
pub struct Joining {
    mounts: Vec<Mount>,
    own: Vec<Group>,
    /// What became of groups that could not be joined, each once.
    pub warnings: BTreeSet<String>,
}

impl Joining {
    /// Looks at what is there.
    pub fn new() -> Self {
        let own = std::process::id() as i32;
        Joining { mounts: mounts(&read::read(own, "mountinfo").unwrap_or_default()), own: groups_of(own), warnings: BTreeSet::new() }
    }

    /// Puts a whole process, or with `alone` one thread whose groups are not those of its process, into its groups.
    pub fn join(&mut self, set: &[Group], tid: i32, alone: bool) {
        for group in set {
            let here = self.own.iter().any(|o| o.controllers == group.controllers && o.path == group.path);
            if here && !alone {
                continue; // a stub is where meio is
            }
            if let Err(why) = self.enter(group, tid, alone)
                && !group.with_meio
            {
                let what = if group.controllers.is_empty() { "cgroup" } else { &group.controllers };
                self.warnings.insert(format!("{what} group {} is not joined: {why}", group.path));
            }
        }
    }

    fn enter(&self, group: &Group, tid: i32, alone: bool) -> Result<(), String> {
        let mut folders = self.mounts.iter().filter(|m| m.has(&group.controllers)).filter_map(|m| m.folder(group.path.as_ref()));
        let folder = folders.find(|f| f.is_dir()).ok_or("it is not there")?;
        let says = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        // A stub that is frozen would never do what it is told.
        if says("cgroup.freeze").trim() == "1" || !matches!(says("freezer.state").trim(), "" | "THAWED") {
            return Err("it is frozen".into());
        }
        let file = match (alone, group.controllers.is_empty()) {
            (false, _) => "cgroup.procs",
            (true, true) => "cgroup.threads",
            (true, false) => "tasks",
        };
        std::fs::write(folder.join(file), tid.to_string()).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cgroup() {
        let seen = parse(b"9:name=systemd:/a\n1:cpu,cpuacct:/x:y\n0::/user.slice/s (deleted)\n");
        let names: Vec<_> = seen.iter().map(|g| (g.controllers.as_str(), g.path.to_string())).collect();
        assert_eq!(names, [("name=systemd", "/a".into()), ("cpu,cpuacct", "/x:y".into()), ("", "/user.slice/s".to_owned())]);
    }

    #[test]
    fn folders_of_groups() {
        let text = b"31 23 0:28 / /sys rw - sysfs sysfs rw\n\
            32 31 0:29 / /sys/c\\040d rw,relatime shared:1 - cgroup cgroup rw,cpuacct,cpu\n\
            41 31 0:38 /box /sys/unified rw - cgroup2 cgroup2 rw\n";
        let mounts = mounts(text);
        let find = |controllers: &str, path: &str| mounts.iter().filter(|m| m.has(controllers)).find_map(|m| m.folder(Path::new(path)));
        assert_eq!(mounts.len(), 2);
        assert_eq!(find("cpu,cpuacct", "/a/b"), Some("/sys/c d/a/b".into()));
        assert_eq!(find("", "/box/in"), Some("/sys/unified/in".into()));
        assert_eq!(find("", "/elsewhere"), None);
        assert_eq!(find("cpu", "/../a"), None);
        assert_eq!(find("memory", "/a"), None);
    }

    #[test]
    fn sets_are_shared() {
        let mut sets = Sets::default();
        let own = read::read(std::process::id() as i32, "cgroup").unwrap_or_default();
        let other = b"0::/nowhere\n".to_vec();
        assert_eq!([sets.number(other.clone()), sets.number(own.clone()), sets.number(other), sets.number(own)], [0, 1, 0, 1]);
        let all = sets.take();
        assert!(!all[0][0].with_meio && all[1].iter().all(|g| g.with_meio));
    }
}
