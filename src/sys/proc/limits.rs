//! /proc/PID/limits: proc_pid_limits(5).

use super::text::{decimal, fields, lines, malformed, missing};
use crate::error::Result;

/// The kernel's names in this text, by `RLIMIT_*` number (include/uapi/asm-generic/resource.h).
const NAMES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Soft and hard limit by `RLIMIT_*` number; `RLIM_INFINITY` (`u64::MAX`) is unlimited.
pub type Limits = [(u64, u64); NAMES.len()];

/// Parses /proc/PID/limits. Limits that are not known are skipped.
pub fn parse(text: &[u8]) -> Result<Limits> {
    let mut found = [None; NAMES.len()];
    for line in lines(text) {
        let known = NAMES.iter().enumerate().find_map(|(number, name)| {
            // The space tells `Max file size` from a longer name that begins the same.
            let values = line.strip_prefix(name.as_bytes()).filter(|v| v.starts_with(b" "))?;
            Some((number, values))
        });
        if let Some((number, values)) = known {
            found[number] = Some(both(values).ok_or_else(|| malformed("limits", line))?);
        }
    }
    let mut limits = [(0, 0); NAMES.len()];
    for (number, found) in found.into_iter().enumerate() {
        limits[number] = found.ok_or_else(|| missing("limits", NAMES[number]))?;
    }
    Ok(limits)
}

fn both(values: &[u8]) -> Option<(u64, u64)> {
    let mut values = fields(values).map(|field| match field {
        b"unlimited" => Some(u64::MAX),
        number => decimal(number),
    });
    Some((values.next()??, values.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn by_number() {
        let limits = parse(fixture!("6.18/limits")).unwrap();
        assert_eq!(limits[libc::RLIMIT_NOFILE as usize], (1000, 1000));
        assert_eq!(limits[libc::RLIMIT_CORE as usize], (0, 0));
        assert_eq!(limits[libc::RLIMIT_CPU as usize], (libc::RLIM_INFINITY, libc::RLIM_INFINITY));
        assert_eq!(limits[libc::RLIMIT_STACK as usize], (8 << 20, u64::MAX));
        assert_eq!(limits[libc::RLIMIT_MSGQUEUE as usize], (819_200, 819_200));
        assert_eq!(limits[libc::RLIMIT_NICE as usize], (0, 0));
        assert_eq!(limits[libc::RLIMIT_RTTIME as usize], (u64::MAX, u64::MAX));
    }

    #[test]
    fn an_unknown_limit_is_skipped_and_a_missing_one_named() {
        let text = fixture!("5.10/limits");
        assert_eq!(parse(text).unwrap()[libc::RLIMIT_NOFILE as usize], (256, u64::MAX));
        let cut = text.windows(8).position(|w| w == b"Max nice").unwrap();
        assert_eq!(parse(&text[..cut]).unwrap_err().message, "limits: no Max nice priority");
        assert!(parse(b"Max cpu time              unlimited\n").is_err());
    }

    #[test]
    fn the_same_as_getrlimit() {
        let limits = super::super::read::parsed(std::process::id() as i32, "limits", parse).unwrap();
        let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NPROC).unwrap();
        assert_eq!(limits[libc::RLIMIT_NPROC as usize], (soft, hard));
    }
}
