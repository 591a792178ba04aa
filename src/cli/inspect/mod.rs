//! `meio inspect`.

mod descriptors;
mod maps;
mod readable;
mod stacks;
mod summary;
mod tree;

use super::console::{Console, Paint};
use super::image;
use super::table::{Table, printable};
use crate::error::{Error, Result};
use crate::image::{ParentLink, Reader};
use crate::postmortem::{self, Contents, ThreadStack};
use crate::resource::process::Process;
use crate::resource::{Manifest, Tree};
use std::{path::PathBuf, process::ExitCode};

/// Show what is in an image, without running it
///
/// Without an option: where and when it was made, and its processes. What the image's programs have called
/// themselves is shown with control characters escaped. A cut-off image is shown as far as it goes (exit code 14).
///
/// With --json the line has everything: "manifest", "tree" (processes, threads, registers, mappings, descriptors, …;
/// byte strings as hexadecimal digits), "parent" (id, hash and file of the image that it builds upon, or null), and "image_bytes", "blocks", "hash", or with --stacks "stacks" in their place.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what"))]
pub struct Inspect {
    /// The image; - is standard input
    #[arg(value_name = "IMAGE", value_hint = clap::ValueHint::FilePath)]
    image: PathBuf,
    /// Parents, children and threads
    #[arg(long, group = "what")]
    tree: bool,
    /// The mappings of every process
    #[arg(long, group = "what")]
    maps: bool,
    /// The descriptors of every process
    #[arg(long, group = "what")]
    fds: bool,
    /// The call stack of every thread, with symbols where the mapped files are still the same
    #[arg(long, group = "what")]
    stacks: bool,
}

/// What a first reading of an image says.
struct Seen {
    manifest: Manifest,
    tree: Tree,
    /// The image that it builds upon.
    parent: Option<ParentLink>,
    /// What was found behind the metadata, where that was looked at.
    rest: Option<Rest>,
}

/// What stands behind the metadata.
struct Rest {
    /// Length of the image in bytes.
    bytes: u64,
    /// Page sections.
    blocks: u32,
    /// The image's name, or why it is not whole.
    hash: Result<String>,
}

impl Inspect {
    /// Reads and shows.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        if self.stacks {
            let contents = image::about(&self.image, Contents::read(image::open(&self.image)?))?;
            let stacks = postmortem::stacks(&contents)?;
            if !console.json {
                console.result(&stacks::page(console, &stacks));
                return Ok(ExitCode::SUCCESS);
            }
            let (manifest, tree, parent) = (contents.manifest().clone(), contents.tree().clone(), contents.parent().cloned());
            let seen = Seen { manifest, tree, parent, rest: None };
            return self.show(console, seen, Some(stacks));
        }
        let seen = image::about(&self.image, look(image::open(&self.image)?))?;
        self.show(console, seen, None)
    }

    fn show(&self, console: &Console, seen: Seen, stacks: Option<Vec<ThreadStack>>) -> Result<ExitCode> {
        if console.json {
            console.json("result", readable::value(&seen, stacks.as_deref())?);
        } else {
            console.result(&match () {
                () if self.tree => tree::page(console, &seen.tree),
                () if self.maps => maps::page(console, &seen.tree),
                () if self.fds => descriptors::page(console, &seen.tree),
                () => summary::page(console, &image::name(&self.image), &seen),
            });
        }
        image::about(&self.image, seen.rest.map_or(Ok(String::new()), |r| r.hash)).map(|_| ExitCode::SUCCESS)
    }
}

/// Reads the metadata and steps over the pages.
fn look(mut reader: Reader<'_>) -> Result<Seen> {
    let manifest = reader.manifest()?;
    let tree = reader.tree()?;
    let mut blocks = 0;
    let end = loop {
        match reader.next_block() {
            Ok(Some(_)) => blocks += 1,
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    let hash = end.and_then(|()| reader.hash().map(|h| h.to_string()).ok_or_else(|| Error::image("image has no end")));
    let parent = reader.parent().cloned();
    Ok(Seen { manifest, tree, parent, rest: Some(Rest { bytes: reader.position(), blocks, hash }) })
}

/// The name of a process, harmless to a terminal.
fn comm(name: &[u8]) -> String {
    printable(&String::from_utf8_lossy(name))
}

/// A heading, then the table; for the pages that have one table a process.
fn section(console: &Console, process: &Process, table: &Table, lines: &mut Vec<String>) {
    if !lines.is_empty() {
        lines.push(String::new());
    }
    lines.push(console.out(&format!("{} {}", process.pid, comm(&process.comm)), Paint::Strong));
    lines.extend(table.lines(|head| console.out(head, Paint::Faint)));
}
