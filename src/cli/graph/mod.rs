//! `meio graph`.

mod dot;
mod json;

use super::{Console, image};
use crate::error::{Context, Result};
use crate::resource::graph::Graph;
use std::{path::PathBuf, process::ExitCode};

/// Show processes and what they hold, and who needs whom
///
/// Draws an image, or a tree that runs, which is only looked at, not stopped. What cannot be saved is drawn, too, with
/// the reason. A restore makes things in the order of this graph.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  meio graph 1234 -o tree.svg
  meio graph job.meio --format dot | dot -Tpdf -o job.pdf
  meio graph 1234 --why 1240/5
  meio graph 1234 --why pipe:[81234]")]
pub struct GraphCommand {
    /// A process, or an image; - is an image on standard input
    #[arg(value_name = "PID|IMAGE", value_hint = clap::ValueHint::FilePath)]
    subject: String,
    /// How it is written [default: by the name of FILE, else dot]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Write it to this file instead of standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,
}

/// How a graph is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For Graphviz.
    Dot,
    /// One JSON object.
    Json,
    /// A picture.
    Svg,
}

impl GraphCommand {
    /// Builds the graph and writes it.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let graph = self.graph()?;
        let format = self.format.unwrap_or_else(|| self.by_name());
        if console.json || format == Format::Json && self.output.is_none() {
            console.json("result", json::value(&graph)?);
            return Ok(ExitCode::SUCCESS);
        }
        let text = match format {
            Format::Dot => dot::text(&graph),
            Format::Json => json::value(&graph)?.to_string(),
            Format::Svg => dot::text(&graph),
        };
        match &self.output {
            Some(path) => std::fs::write(path, text + "\n").context(|| format!("writing {}", path.display()))?,
            None => console.result(&text),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn graph(&self) -> Result<Graph> {
        match self.subject.parse::<i32>() {
            Ok(pid) if pid > 0 => {
                let seen = crate::dump::look(pid)?;
                Graph::with_refusals(&seen.tree, &seen.refusals, &seen.lost)
            }
            _ => {
                let path = PathBuf::from(&self.subject);
                let mut reader = image::open(&path)?;
                image::about(
                    &path,
                    reader.manifest::<crate::resource::Manifest>().and_then(|_| reader.tree()).and_then(|tree| Graph::new(&tree)),
                )
            }
        }
    }

    fn by_name(&self) -> Format {
        let extension = self.output.as_ref().and_then(|o| o.extension()).and_then(|e| e.to_str());
        match extension {
            Some("svg") => Format::Svg,
            Some("json") => Format::Json,
            _ => Format::Dot,
        }
    }
}

/// A key as text, stable within one graph: `process:1234`, `file:3`.
fn id(key: crate::resource::graph::Key) -> String {
    use crate::resource::graph::Key;
    match key {
        Key::Object(n) => format!("object:{n}"),
        Key::Mapped(n) => format!("mapped:{n}"),
        Key::Pipe(n) => format!("pipe:{n}"),
        Key::Terminal(n) => format!("terminal:{n}"),
        Key::File(n) => format!("file:{n}"),
        Key::Refused(n) => format!("refused:{n}"),
        Key::Session(n) => format!("session:{n}"),
        Key::Group(n) => format!("group:{n}"),
        Key::Process(n) => format!("process:{n}"),
        Key::Descriptor(pid, fd) => format!("descriptor:{pid}/{fd}"),
    }
}
