//! The restore screenplay: read, plant, rebuild, release.

use crate::error::{Error, Result};
use std::{path::PathBuf, process::ExitStatus, time::Duration};

/// Where the image comes from.
#[derive(Debug, Clone)]
pub enum Input {
    /// From this file.
    Path(PathBuf),
    /// From standard input.
    Stdin,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the image comes from.
    pub input: Input,
    /// Return as soon as the tree runs.
    pub detach: bool,
    /// Write the root's pid here.
    pub pidfile: Option<PathBuf>,
    /// Restore into a fresh pid namespace.
    pub pid_namespace: bool,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Pid of the tree's root as the caller sees it.
    pub root_pid: i32,
    /// Time until the tree ran.
    pub total: Duration,
    /// How the root ended (foreground only).
    pub exit: Option<ExitStatus>,
    /// What is different than before.
    pub warnings: Vec<String>,
    /// Each phase and its time.
    pub phases: Vec<(&'static str, Duration)>,
}

/// Brings the tree of an image back.
pub fn run(_options: &Options, _report: &mut dyn crate::progress::Report) -> Result<Outcome> {
    Err(Error::other("this build cannot restore"))
}
