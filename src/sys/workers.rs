//! The threads that share the work on pages.

use crate::error::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// They are there already: one run of meio may dump and restore.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts them. Done before a tree is touched, since they would otherwise start at their first use, where their failure
/// is a panic and their start is part of the pause.
///
/// # Errors
/// When the kernel gives no thread.
pub fn start() -> Result<()> {
    if STARTED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let started = rayon::ThreadPoolBuilder::new().build_global();
    started.map_err(std::io::Error::other).context(|| "starting threads")?;
    STARTED.store(true, Ordering::Relaxed);
    Ok(())
}
