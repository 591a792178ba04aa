//! The threads that share the work on pages.

use crate::error::{Context, Result};
use std::error::Error as _;

/// Starts them. Done before a tree is touched, since they would otherwise start at their first use, where their failure
/// is a panic and their start is part of the pause.
///
/// # Errors
/// When the kernel gives no thread.
pub fn start() -> Result<()> {
    static STARTED: std::sync::OnceLock<std::result::Result<(), String>> = std::sync::OnceLock::new();
    let start = || match rayon::ThreadPoolBuilder::new().build_global() {
        // Without a cause it is that they were there already.
        Err(e) if e.source().is_some() => Err(e.to_string()),
        _ => Ok(()),
    };
    let started = STARTED.get_or_init(start);
    started.clone().map_err(crate::error::Error::other).context(|| "starting threads")
}
