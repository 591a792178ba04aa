//! File locks: flock(2), record locks and open file description locks (fcntl(2)).

use serde::{Deserialize, Serialize};

/// Which of the three kinds of lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// flock(2).
    Flock,
    /// `F_SETLK`, owned by the process.
    Posix,
    /// `F_OFD_SETLK`, owned by the open file description.
    Ofd,
}

/// One lock that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Which kind.
    pub family: Family,
    /// Exclusive instead of shared.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Number of bytes, 0 up to the end of the file.
    pub len: u64,
}

impl Lock {
    /// Parses the value of a `lock:` line of proc_pid_fdinfo(5):
    /// `1: POSIX  ADVISORY  WRITE 717 08:02:12345 0 EOF`. `None` for leases and what else is no lock.
    pub fn parse(value: &[u8]) -> Option<Lock> {
        let text = std::str::from_utf8(value).ok()?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let [_, family, _, access, _, _, start, end] = words[..] else { return None };
        let family = match family {
            "FLOCK" => Family::Flock,
            "POSIX" => Family::Posix,
            "OFDLCK" => Family::Ofd,
            _ => return None,
        };
        let start = start.parse().ok()?;
        let len = match end {
            "EOF" => 0,
            end => end.parse::<u64>().ok()?.checked_sub(start)?.checked_add(1)?,
        };
        Some(Lock { family, write: access == "WRITE", start, len })
    }

    /// `struct flock` of fcntl(2) for this lock, as the kernel reads it on a 64-bit machine.
    pub fn to_flock(self) -> [u8; 32] {
        let kind: i16 = if self.write { libc::F_WRLCK as i16 } else { libc::F_RDLCK as i16 };
        let mut out = [0u8; 32];
        out[0..2].copy_from_slice(&kind.to_le_bytes());
        // l_whence at 2 is SEEK_SET; l_pid at 24 must be 0.
        out[8..16].copy_from_slice(&self.start.to_le_bytes());
        out[16..24].copy_from_slice(&self.len.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo() {
        let posix = Lock::parse(b"1: POSIX  ADVISORY  WRITE 717 08:02:12345 100 109").expect("a lock");
        assert_eq!(posix, Lock { family: Family::Posix, write: true, start: 100, len: 10 });
        let flock = Lock::parse(b"2: FLOCK  ADVISORY  READ 717 fe:00:9 0 EOF").expect("a lock");
        assert_eq!(flock, Lock { family: Family::Flock, write: false, start: 0, len: 0 });
        assert_eq!(Lock::parse(b"1: LEASE  ACTIVE  READ 717 fe:00:9 0 EOF"), None);
        assert_eq!(Lock::parse(b"garbage"), None);
    }
}
