//! `meio check`.

use super::Console;
use crate::error::Result;
use std::process::ExitCode;

/// Say what this machine allows
#[derive(clap::Args)]
pub struct Check {}

impl Check {
    /// Probes and reports.
    pub fn run(&self, _console: &Console) -> Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}
