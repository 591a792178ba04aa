//! `meio graph`.

mod dot;
mod json;
mod layout;
mod svg;
mod view;
mod why;

use super::target::Target;
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
    /// A process, a capsule by its name, or an image; - is an image on standard input
    #[arg(value_name = "PID|NAME|IMAGE", value_hint = clap::ValueHint::FilePath)]
    subject: String,
    /// How it is written [default: by the name of FILE, else dot]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Write it to this file instead of standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Say how the root leads to this, who holds it, what it needs, and why it would be refused
    ///
    /// OBJECT is a pid, PID/FD, a path, or what /proc/PID/fd shows, for example pipe:[123].
    #[arg(long, value_name = "OBJECT", conflicts_with_all = ["format", "output"])]
    why: Option<String>,
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
        let (graph, title) = self.graph()?;
        if let Some(object) = &self.why {
            let why = why::Why::of(&graph, object)?;
            if console.json {
                console.json("result", serde_json::json!({"command": "graph", "why": why.iter().map(why::Why::value).collect::<Vec<_>>()}));
            } else {
                console.result(&why.iter().map(why::Why::page).collect::<Vec<_>>().join("\n\n"));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let format = self.format.unwrap_or_else(|| self.by_name());
        if console.json || format == Format::Json && self.output.is_none() {
            console.json("result", json::value(&graph)?);
            return Ok(ExitCode::SUCCESS);
        }
        let text = match format {
            Format::Dot => dot::text(&graph),
            Format::Json => json::value(&graph)?.to_string(),
            Format::Svg => svg::text(&layout::Picture::of(view::View::of(&graph)), &title),
        };
        match &self.output {
            Some(path) => std::fs::write(path, text + "\n").context(|| format!("writing {}", path.display()))?,
            None => console.result(&text),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The graph, and what the tree is called.
    fn graph(&self) -> Result<(Graph, String)> {
        match self.living()? {
            Some((pid, target)) => {
                let seen = crate::dump::preflight(pid, &Default::default())?;
                let name = target.name_of(pid).map_or_else(|| format!("process {pid}"), |name| format!("capsule {name}"));
                Ok((Graph::with_refusals(&seen.tree, &seen.refusals, &seen.lost)?, name))
            }
            None => {
                let path = PathBuf::from(&self.subject);
                let mut reader = image::open(&path)?;
                let mut read = || -> Result<(Graph, String)> {
                    let manifest: crate::resource::Manifest = reader.manifest()?;
                    let title =
                        manifest.capsule.as_ref().map_or_else(|| self.subject.clone(), |name| format!("capsule {name}, {}", self.subject));
                    Ok((Graph::new(&reader.tree()?)?, title))
                };
                image::about(&path, read())
            }
        }
    }

    /// The tree that runs and is meant: a pid, or the name of a capsule that lives, unless a file has that name.
    fn living(&self) -> Result<Option<(i32, Target)>> {
        match super::target::parse(&self.subject) {
            Ok(Target::Capsule(_)) if self.subject == "-" || std::path::Path::new(&self.subject).exists() => Ok(None),
            Ok(target) => match target.pid() {
                Ok(pid) => Ok(Some((pid, target))),
                // Then it is said that there is no such file.
                Err(_) if self.subject.contains('.') => Ok(None),
                Err(e) => Err(e),
            },
            Err(_) => Ok(None),
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
        Key::Namespace(n) => format!("namespace:{n}"),
        Key::Semaphores(n) => format!("semaphores:{n}"),
        Key::Messages(n) => format!("messages:{n}"),
        Key::Filter(n) => format!("filter:{n}"),
        Key::Descriptor(pid, fd) => format!("descriptor:{pid}/{fd}"),
    }
}
