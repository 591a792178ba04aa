//! The threads that share the work on pages.

use crate::error::{Context, Result};

/// Starts them. Done before a tree is touched, since they would otherwise start at their first use, where their failure
/// is a panic and their start is part of the pause.
///
/// # Errors
/// When the kernel gives no thread.
pub fn start() -> Result<()> {
    let started = rayon::ThreadPoolBuilder::new().build_global();
    started.map_err(std::io::Error::other).context(|| "starting threads")
}
