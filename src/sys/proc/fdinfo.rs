//! /proc/PID/fdinfo/N: proc_pid_fdinfo(5).

use super::text::{decimal, fields, hex, lines, malformed, missing, octal, signed, split_once};
use crate::error::Result;

/// One descriptor, as proc_pid_fdinfo(5) shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// File offset in bytes.
    pub pos: i64,
    /// Access mode and `O_*` flags of open(2), with `O_CLOEXEC` of this descriptor.
    pub flags: u32,
    /// Id of the mount in proc_pid_mountinfo(5).
    pub mnt_id: Option<i32>,
    /// Inode number, Linux 5.14.
    pub ino: Option<u64>,
    /// All further lines in their order, which depend on the kind of file:
    /// `eventfd-count`, `tfd`, `inotify`, `lock`, `Pid`, `sigmask`. Spaces
    /// around the value are gone.
    pub extra: Vec<(Vec<u8>, Vec<u8>)>,
}

impl FdInfo {
    /// The values of all further lines with this key: the targets of an epoll, the locks of a file.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &[u8]> {
        self.extra.iter().filter(move |(k, _)| k == key.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// The value of the first further line with this key.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        self.all(key).next()
    }

    /// Such a value that is a decimal number.
    pub fn decimal(&self, key: &str) -> Option<u64> {
        self.value(key).and_then(decimal)
    }

    /// Such a value that is a hexadecimal number.
    pub fn hex(&self, key: &str) -> Option<u64> {
        self.value(key).and_then(hex)
    }

    /// Such a value that is an octal number.
    pub fn octal(&self, key: &str) -> Option<u64> {
        self.value(key).and_then(octal)
    }

    /// The targets of an epoll, in their order. `None` when a line is not understood.
    pub fn epoll_targets(&self) -> Option<Vec<EpollTarget>> {
        self.all("tfd").map(epoll_target).collect()
    }
}

/// One `tfd` line of an epoll.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpollTarget {
    /// Descriptor number under which it was added; it may since be closed or another file.
    pub tfd: i32,
    /// `EPOLL*` event mask.
    pub events: u32,
    /// The caller's `epoll_data`.
    pub data: u64,
    /// File offset of the target, Linux 5.2.
    pub pos: Option<i64>,
    /// Inode of the target, Linux 5.2.
    pub ino: Option<u64>,
    /// Device of the target in the kernel's own coding (`major << 20 | minor`), Linux 5.2.
    pub sdev: Option<u64>,
}

/// Parses /proc/PID/fdinfo/N.
pub fn parse(text: &[u8]) -> Result<FdInfo> {
    let (mut pos, mut flags) = (None, None);
    let mut info = FdInfo::default();
    for line in lines(text) {
        let (key, value) = key_value(line);
        let bad = || malformed("fdinfo", line);
        // Drivers add lines of their own, which may use these names again: the first is the kernel's.
        match key {
            b"pos" if pos.is_none() => pos = Some(signed(value).ok_or_else(bad)?),
            b"flags" if flags.is_none() => {
                flags = Some(octal(value).and_then(|f| u32::try_from(f).ok()).ok_or_else(bad)?);
            }
            b"mnt_id" if info.mnt_id.is_none() => {
                info.mnt_id = Some(signed(value).and_then(|id| i32::try_from(id).ok()).ok_or_else(bad)?);
            }
            b"ino" if info.ino.is_none() => info.ino = Some(decimal(value).ok_or_else(bad)?),
            _ => info.extra.push((key.to_vec(), value.to_vec())),
        }
    }
    info.pos = pos.ok_or_else(|| missing("fdinfo", "pos"))?;
    info.flags = flags.ok_or_else(|| missing("fdinfo", "flags"))?;
    Ok(info)
}

/// `key: value`, but the lines of inotify and fanotify have a word in front of several `key:value`.
fn key_value(line: &[u8]) -> (&[u8], &[u8]) {
    for word in [&b"inotify"[..], b"fanotify"] {
        if let Some(value) = line.strip_prefix(word).filter(|v| v.starts_with(b" ")) {
            return (word, value.trim_ascii());
        }
    }
    let (key, value) = split_once(line, b':').unwrap_or((line, b""));
    (key.trim_ascii(), value.trim_ascii())
}

/// What follows `name:` in a line of several, with or without a blank after the colon.
fn within<'a>(value: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut words = fields(value);
    while let Some(word) = words.next() {
        if let Some(rest) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix(b":")) {
            return if rest.is_empty() { words.next() } else { Some(rest) };
        }
    }
    None
}

/// `5 events: 19 data: 5  pos:0 ino:61af sdev:7`
fn epoll_target(value: &[u8]) -> Option<EpollTarget> {
    Some(EpollTarget {
        tfd: i32::try_from(signed(fields(value).next()?)?).ok()?,
        events: u32::try_from(hex(within(value, b"events")?)?).ok()?,
        data: hex(within(value, b"data")?)?,
        pos: within(value, b"pos").and_then(signed),
        ino: within(value, b"ino").and_then(hex),
        sdev: within(value, b"sdev").and_then(hex),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn common_fields() {
        let append = parse(fixture!("6.18/fdinfo/append")).unwrap();
        assert_eq!(append.flags as i32 & libc::O_APPEND, libc::O_APPEND);
        assert_eq!(append.flags as i32 & libc::O_CLOEXEC, libc::O_CLOEXEC);
        assert_eq!((append.mnt_id, append.ino, append.extra.len()), (Some(63), Some(6), 0));
        let old = parse(fixture!("5.10/fdinfo/regular")).unwrap();
        assert_eq!((old.pos, old.flags, old.mnt_id, old.ino), (i64::MAX, 0o2100002, Some(29), None));
    }

    #[test]
    fn lines_by_kind() {
        let locks = parse(fixture!("6.18/fdinfo/locks")).unwrap();
        let locks: Vec<_> = locks.all("lock").collect();
        assert_eq!(locks, [&b"1: FLOCK  ADVISORY  WRITE 11678 00:27:9 0 EOF"[..], b"2: POSIX  ADVISORY  WRITE 11678 00:27:9 5 14",]);
        let timer = parse(fixture!("6.18/fdinfo/timerfd")).unwrap();
        assert_eq!(timer.all("it_value").collect::<Vec<_>>(), [b"(99999, 440206590)"]);
        assert_eq!(timer.all("settime flags").collect::<Vec<_>>(), [b"00"]);
        let ring = parse(fixture!("6.1/fdinfo/io_uring")).unwrap();
        assert_eq!(ring.all("PollList").collect::<Vec<_>>(), [b""]);
        assert_eq!(parse(fixture!("6.18/fdinfo/inotify")).unwrap().all("inotify").count(), 2);
    }

    #[test]
    fn a_driver_cannot_replace_the_kernels_lines() {
        let buffer = parse(fixture!("6.1/fdinfo/dmabuf")).unwrap();
        assert_eq!((buffer.flags, buffer.ino, buffer.all("flags").next()), (0o2, Some(63), Some(&b"none"[..])));
        let fanotify = parse(fixture!("6.1/fdinfo/fanotify")).unwrap();
        assert_eq!((fanotify.mnt_id, fanotify.all("fanotify").count()), (Some(9), 2));
    }

    #[test]
    fn epoll() {
        let new = parse(fixture!("6.18/fdinfo/epoll")).unwrap().epoll_targets().unwrap();
        assert_eq!(new.len(), 2);
        assert_eq!(
            new[0],
            EpollTarget { tfd: 5, events: 0x8000_0019, data: 0x1122_3344_5566_7788, pos: Some(0), ino: Some(18), sdev: Some(16) }
        );
        let old = parse(fixture!("5.10/fdinfo/epoll")).unwrap().epoll_targets().unwrap();
        assert_eq!((old[0].tfd, old[0].events, old[0].data, old[0].ino), (12, 0x4000_201d, u64::MAX, None));
        let damaged = FdInfo { extra: vec![(b"tfd".to_vec(), b"5 events: x".to_vec())], ..FdInfo::default() };
        assert_eq!(damaged.epoll_targets(), None);
    }

    #[test]
    fn incomplete_texts_are_refused() {
        assert_eq!(parse(b"flags:\t02\n").unwrap_err().message, "fdinfo: no pos");
        assert_eq!(parse(b"pos:\t0\n").unwrap_err().message, "fdinfo: no flags");
        assert!(parse(b"pos:\t0\nflags:\t09\n").is_err());
    }
}
