//! /proc/PID/task/TID/children: proc_tid_children(5).

use super::text::{int, malformed};
use crate::error::Result;

/// Parses /proc/PID/task/TID/children: the pids of the children that this
/// thread made. The list is only reliable while the children cannot end.
pub fn parse(text: &[u8]) -> Result<Vec<i32>> {
    let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.map(|word| int(word).filter(|&pid| pid > 0).ok_or_else(|| malformed("children", word))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn pids() {
        assert_eq!(parse(fixture!("6.18/children")).unwrap(), [11681, 11682]);
        assert!(parse(b"").unwrap().is_empty());
        assert!(parse(b"\n").unwrap().is_empty());
        assert!(parse(b"12 -1 ").is_err());
        assert!(parse(b"0 ").is_err());
        assert!(parse(b"99999999999 ").is_err());
    }
}
