//! /proc/PID/task/TID/children: proc_tid_children(5).

use super::text::{int, malformed};
use crate::error::Result;

/// Parses /proc/PID/task/TID/children: the pids of the children that this
/// thread made. The list is only reliable while the children cannot end.
pub fn parse(text: &[u8]) -> Result<Vec<i32>> {
    let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.map(|word| int(word).filter(|&pid| pid > 0).ok_or_else(|| malformed("children", word))).collect()
}
