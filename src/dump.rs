//! The dump screenplay: freeze, capture, write, let go.

use crate::error::{Error, Refusal, Result};
use std::{path::PathBuf, time::Duration};

/// Where the image goes.
#[derive(Debug, Clone)]
pub enum Output {
    /// Into this file; it gets the name only when it is complete.
    Path(PathBuf),
    /// To standard output.
    Stdout,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Root of the tree.
    pub pid: i32,
    /// Where the image goes.
    pub output: Output,
    /// End the tree once the image is safe.
    pub kill: bool,
    /// zstd level of the pages; `None` stores them raw.
    pub level: Option<i32>,
    /// How long to wait for every task to stop.
    pub freeze_timeout: Duration,
}

/// What became of the tree that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It goes on.
    Running,
    /// It was ended.
    Gone,
    /// It stands still (it was stopped before, or could not be let go).
    Frozen,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How long the tree stood still.
    pub pause: Duration,
    /// The whole run.
    pub total: Duration,
    /// Bytes of memory that were saved.
    pub memory_bytes: u64,
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// Threads of all processes.
    pub tasks: u32,
    /// Processes.
    pub processes: u32,
    /// State of the source now.
    pub source: Source,
    /// Path of the image, `-` for standard output.
    pub image: String,
    /// Each phase and its time.
    pub phases: Vec<(&'static str, Duration)>,
    /// What will be different after a restore.
    pub warnings: Vec<String>,
}

/// Saves the tree below `options.pid`.
pub fn run(_options: &Options, _report: &mut dyn crate::progress::Report) -> Result<Outcome> {
    Err(Error::other("this build cannot dump"))
}

/// Everything in the tree below `pid` that stands in the way of a dump, found without stopping it.
pub fn preflight(_pid: i32) -> Result<Vec<Refusal>> {
    Err(Error::other("this build cannot look at a tree"))
}
