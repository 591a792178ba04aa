//! /proc/PID/mountinfo: proc_pid_mountinfo(5).

use super::text::{decimal, int, lines, malformed, split_once, unescape};
use crate::error::Result;

/// One mount, as proc_pid_mountinfo(5) shows it. Blanks, newlines and
/// backslashes in names are undone from their octal form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Mount id.
    pub id: i32,
    /// Id of the mount it is mounted on.
    pub parent: i32,
    /// Major and minor number of files on it. Filesystems such as btrfs show other ones in stat(2).
    pub dev: (u32, u32),
    /// Directory of the filesystem that is the root of this mount; ends in `//deleted` when it is unlinked.
    pub root: Vec<u8>,
    /// Where it is mounted, seen from the process's root.
    pub mountpoint: Vec<u8>,
    /// Options of the mount: `rw,nosuid,relatime`.
    pub options: Vec<u8>,
    /// Propagation: `shared:N`, `master:N`, `propagate_from:N`, `unbindable`.
    pub optional: Vec<Vec<u8>>,
    /// Type of the filesystem, `type` or `type.subtype`.
    pub fstype: Vec<u8>,
    /// What is mounted; `none` or anything else for filesystems without a device.
    pub source: Vec<u8>,
    /// Options of the filesystem.
    pub super_options: Vec<u8>,
}

/// Parses /proc/PID/mountinfo.
pub fn parse(text: &[u8]) -> Result<Vec<Mount>> {
    lines(text).map(|line| mount(line).ok_or_else(|| malformed("mountinfo", line))).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    // One space exactly ends a field: an empty source shows as nothing between two spaces.
    let mut words = line.split(|&b| b == b' ');
    // Newer kernels also escape `#`, which begins a comment in fstab(5).
    let name = |word| unescape(word, b" \t\n\\#");
    let mut mount = Mount {
        id: int(words.next()?)?,
        parent: int(words.next()?)?,
        dev: device(words.next()?)?,
        root: name(words.next()?),
        mountpoint: name(words.next()?),
        options: name(words.next()?),
        ..Mount::default()
    };
    loop {
        match words.next()? {
            b"-" => break,
            optional => mount.optional.push(optional.to_vec()),
        }
    }
    mount.fstype = name(words.next()?);
    mount.source = name(words.next()?);
    mount.super_options = name(words.next().unwrap_or(b""));
    Some(mount)
}

/// Major and minor number, decimal here.
fn device(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = split_once(field, b':')?;
    let number = |f| u32::try_from(decimal(f)?).ok();
    Some((number(major)?, number(minor)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn names_with_blanks() {
        let mounts = parse(fixture!("6.18/mountinfo")).unwrap();
        assert_eq!(mounts.len(), 12);
        let [.., tmpfs, bind] = &mounts[..] else { panic!() };
        assert_eq!((&*tmpfs.mountpoint, &*tmpfs.source), (&b"/srv/a b"[..], &b""[..]));
        assert_eq!((&*tmpfs.fstype, &*tmpfs.super_options), (&b"tmpfs"[..], &b"rw,size=64k"[..]));
        assert_eq!((bind.id, bind.parent, bind.dev), (65, 63, (0, 39)));
        assert_eq!((&*bind.root, &*bind.mountpoint), (&b"/meio"[..], &br"/srv/c\d"[..]));
        assert_eq!((&*bind.options, &bind.optional[..]), (&b"ro,relatime"[..], &[b"shared:1".to_vec()][..]));
    }

    #[test]
    fn optional_fields_and_odd_names() {
        let mounts = parse(fixture!("5.10/mountinfo")).unwrap();
        assert_eq!(mounts[0].optional, [b"master:1".to_vec()]);
        assert_eq!(mounts[1].optional, Vec::<Vec<u8>>::new());
        assert_eq!(mounts[2].optional.len(), 3);
        assert_eq!(mounts[3].mountpoint, b"/mnt/caf\xe9 \\040\tx");
        assert_eq!((&*mounts[3].fstype, &*mounts[3].source), (&b"fuse.sshfs"[..], &b"u@h:/a b"[..]));
        assert_eq!((&*mounts[4].root, &*mounts[4].source), (&b"/gone//deleted"[..], &b"srv:/x#y"[..]));
        assert_eq!(mounts[4].mountpoint, b"/mnt/new\nline");
    }

    #[test]
    fn lines_without_the_separator_are_refused() {
        assert_eq!(parse(b"").unwrap(), []);
        assert!(parse(b"1 1 0:1 / / rw shared:1 tmpfs none rw\n").is_err());
        assert!(parse(b"1 1 0:1 / / rw - tmpfs\n").is_err());
        assert!(parse(b"1 1 0:x / / rw - tmpfs none rw\n").is_err());
    }
}
