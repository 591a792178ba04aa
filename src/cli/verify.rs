//! `meio verify`.

use super::console::Console;
use super::table::printable;
use super::{figures, image};
use crate::error::Result;
use crate::image::{Report, verify};
use crate::resource::{Manifest, Tree};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

/// Read an image to its end and check everything in it
///
/// Every checksum, every reference and the hash of the whole are compared; an image that was cut off or changed is
/// refused with exit code 14 and the place where it went wrong.
///
/// With --json the line has "root_pid", "processes" (how many), "hash", "bytes", "blocks", "pages" ({data, zero, copy, parent}), "parents" (paths of the images
/// that it builds upon) and "sections" (a list of {kind,
/// version, offset, length}).
#[derive(clap::Args)]
pub struct Verify {
    /// The image; - is standard input
    #[arg(value_name = "IMAGE", value_hint = clap::ValueHint::FilePath)]
    image: PathBuf,
}

impl Verify {
    /// Checks and tells.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let begin = std::time::Instant::now();
        let report = image::about(&self.image, verify::<Manifest, Tree>(image::open_watched(&self.image, "verify", *console)?))?;
        if console.json {
            console.json("result", result(&report));
            return Ok(ExitCode::SUCCESS);
        }
        let parents = match report.parents.len() {
            0 => String::new(),
            n => format!(", with {}", figures::count(n as u64, "image that it builds upon", "images that it builds upon")),
        };
        console.result(&format!(
            "{}: whole{parents}; process {} ({}) of {}; {} in {}, checked in {}; hash {}",
            image::name(&self.image),
            report.manifest.root_pid,
            figures::count(report.tree.processes.len() as u64, "process", "processes"),
            printable(&report.manifest.host),
            figures::bytes(report.bytes),
            figures::count(report.sections.len() as u64, "section", "sections"),
            figures::time(begin.elapsed()),
            report.hash,
        ));
        Ok(ExitCode::SUCCESS)
    }
}

fn result(r: &Report<Manifest, Tree>) -> serde_json::Value {
    let sections: Vec<_> = r
        .sections
        .iter()
        .map(|s| json!({"kind": s.kind.to_string(), "version": s.version, "offset": s.offset, "length": s.length}))
        .collect();
    json!({
        "command": "verify",
        "root_pid": r.manifest.root_pid,
        "processes": r.tree.processes.len(),
        "hash": r.hash.to_string(),
        "bytes": r.bytes,
        "blocks": r.blocks,
        "pages": {"data": r.pages.data, "zero": r.pages.zero, "copy": r.pages.copy, "parent": r.pages.parent},
        "parents": r.parents.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        "sections": sections,
    })
}
