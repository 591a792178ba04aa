//! What is in a namespace, as it is read from the process that was found in it.

use super::Content;
use crate::error::{Error, Kind as Failure, Result};
use crate::sys::namespace::{self, Kind};
use crate::sys::proc::read;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

fn unsupported(reason: impl Into<String>) -> Error {
    Error::new(Failure::Unsupported, reason).help("run meio inside of that namespace, with nsenter")
}

pub fn content(pid: i32, kind: Kind, fd: &OwnedFd) -> Result<Content> {
    let inside = namespace::places([(fd, kind)]);
    match kind {
        Kind::Pid => Ok(Content::Nothing),
        Kind::Uts => namespace::within(&inside, || {
            let uname = nix::sys::utsname::uname()?;
            let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
            Ok(Content::Names { host: text(uname.nodename()), domain: text(uname.domainname()) })
        })?,
        Kind::Ipc => namespace::within(&inside, || Content::Ipc { sysctls: ipc_sysctls() }).map_err(Into::into),
        Kind::Time => clocks(&read::read(pid, "timens_offsets")?),
        Kind::User => Ok(Content::User {
            uids: id_map(&read::read(pid, "uid_map")?)?,
            gids: id_map(&read::read(pid, "gid_map")?)?,
            no_setgroups: read::read(pid, "setgroups")?.starts_with(b"deny"),
            maker: namespace::owner_uid(fd).unwrap_or(0),
        }),
        Kind::Cgroup => {
            let outside = read::read(pid, "cgroup")?;
            let seen = namespace::within(&inside, || read::read(pid, "cgroup"))??;
            roots(&outside, &seen).map(Content::Roots)
        }
        // These have their own way.
        Kind::Mnt | Kind::Net => Ok(Content::Nothing),
    }
}

/// Limits that each ipc namespace has for itself (ipc_namespaces(7)).
const IPC: [&str; 13] = [
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "fs/mqueue/queues_max",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/msg_default",
    "fs/mqueue/msgsize_default",
];

fn ipc_sysctls() -> Vec<(String, String)> {
    let read = |name: &&str| Some((name.to_string(), std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().to_owned()));
    IPC.iter().filter_map(read).collect()
}

/// `/proc/PID/timens_offsets`: `monotonic  1000  5`, `boottime  0  0`.
fn clocks(text: &[u8]) -> Result<Content> {
    let text = String::from_utf8_lossy(text);
    let of = |name: &str| -> Option<(i64, i64)> {
        let mut words = text.lines().find_map(|line| line.trim_start().strip_prefix(name))?.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    match (of("monotonic"), of("boottime")) {
        (Some(monotonic), Some(boottime)) => Ok(Content::Clocks { monotonic, boottime }),
        _ => Err(Error::other(format!("timens_offsets is not understood: {}", text.trim()))),
    }
}

/// user_namespaces(7) `uid_map`: three numbers a line.
pub fn id_map(text: &[u8]) -> Result<Vec<[u32; 3]>> {
    let text = String::from_utf8_lossy(text);
    let line = |line: &str| -> Option<[u32; 3]> {
        let numbers: Vec<u32> = line.split_whitespace().map(|w| w.parse().ok()).collect::<Option<_>>()?;
        numbers.try_into().ok()
    };
    let parsed: Option<Vec<_>> = text.lines().map(line).collect();
    parsed.ok_or_else(|| Error::other(format!("a map of ids is not understood: {}", text.trim())))
}

/// The roots of a cgroup namespace, out of one process's cgroups as they are seen from outside and from inside.
fn roots(outside: &[u8], inside: &[u8]) -> Result<Vec<(String, String)>> {
    let (outside, inside) = (String::from_utf8_lossy(outside), String::from_utf8_lossy(inside));
    let split = |line: &str| line.split_once(':').and_then(|(_, rest)| rest.split_once(':')).map(|(a, b)| (a.to_owned(), b.to_owned()));
    let seen: HashMap<String, String> = inside.lines().filter_map(split).collect();
    let mut roots = Vec::new();
    for (hierarchy, path) in outside.lines().filter_map(split) {
        let below = seen.get(&hierarchy).map_or("/", String::as_str);
        let root = if below == "/" { Some(path.as_str()) } else { path.strip_suffix(below) };
        match root {
            Some(root) => roots.push((hierarchy, if root.is_empty() { "/".into() } else { root.to_owned() })),
            None => {
                return Err(unsupported(format!(
                    "the root of its cgroup namespace cannot be told: it is at {below} there, at {path} here"
                )));
            }
        }
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_ids() {
        assert_eq!(id_map(b"         0       1000          1\n 1 100000 65536\n").unwrap(), [[0, 1000, 1], [1, 100_000, 65536]]);
        assert_eq!(id_map(b"").unwrap(), [[0u32; 3]; 0]);
        assert!(id_map(b"0 1\n").is_err());
        assert!(id_map(b"0 1 x\n").is_err());
    }

    #[test]
    fn offsets_of_clocks() {
        let text = b"monotonic         -86400       500000000\nboottime               7               0\n";
        assert_eq!(clocks(text).unwrap(), Content::Clocks { monotonic: (-86400, 500_000_000), boottime: (7, 0) });
        assert!(clocks(b"monotonic 1 2\n").is_err());
    }

    #[test]
    fn roots_of_cgroup_namespaces() {
        let outside = b"4:memory:/a/b\n1:name=systemd:/\n0::/x/y/z\n";
        let inside = b"4:memory:/\n1:name=systemd:/\n0::/y/z\n";
        let want = [("memory", "/a/b"), ("name=systemd", "/"), ("", "/x")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(roots(outside, inside).unwrap(), want);
        assert_eq!(roots(b"0::/x\n", b"0::/../q\n").unwrap_err().kind, Failure::Unsupported);
    }
}
