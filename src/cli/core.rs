//! `meio core`.

use super::console::Console;
use super::image;
use crate::error::Result;
use crate::postmortem::{self, Contents};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

/// Write an ELF core file for each process of an image
///
/// gdb opens them like the core of a crash: `gdb PROGRAM CORE`, then `bt` and `info threads`. Nothing is run.
///
/// With --json the line has "files", the paths of the cores.
#[derive(clap::Args)]
pub struct Core {
    /// The image; - is standard input
    #[arg(value_name = "IMAGE", value_hint = clap::ValueHint::FilePath)]
    image: PathBuf,
    /// The folder that gets the core files; made when it is missing
    #[arg(short, long, value_name = "DIR", default_value = ".", value_hint = clap::ValueHint::DirPath)]
    output: PathBuf,
}

impl Core {
    /// Writes the cores and names them.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let contents = image::about(&self.image, Contents::read(image::open(&self.image)?))?;
        let files = postmortem::core(&contents, &self.output)?;
        let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
        if console.json {
            console.json("result", json!({"command": "core", "files": names}));
        } else {
            console.result(&names.join("\n"));
        }
        Ok(ExitCode::SUCCESS)
    }
}
