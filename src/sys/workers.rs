//! The threads that share the work on pages.

use crate::error::{Context, Result};

/// Starts them. Done before a tree is touched, since they would otherwise start at their first use, where their failure
/// is a panic and their start is part of the pause.
///
/// # Errors
/// When the kernel gives no thread.
pub fn start() -> Result<()> {
    static STARTED: std::sync::OnceLock<std::result::Result<(), String>> = std::sync::OnceLock::new();
    let started = STARTED.get_or_init(|| rayon::ThreadPoolBuilder::new().build_global().map_err(|e| e.to_string()));
    started.clone().map_err(crate::error::Error::other).context(|| "starting threads")
}
