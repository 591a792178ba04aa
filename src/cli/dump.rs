//! `meio dump`.

use super::target::{self, Target};
use super::{Console, console, drawing::Drawing, figures};
use crate::capsule::roster::Roster;
use crate::dump::{self, Options, Outcome, Output, Source};
use crate::error::{Context, Error, Kind, Result};
use serde_json::json;
use std::io::IsTerminal;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Save a running tree of processes to an image
///
/// Freezes the process PID, or the capsule NAME, and everything below it, copies their state, lets them go on, and writes one file. The tree keeps
/// running unless --kill is given; with --kill it ends only when the image is complete, on disk and in place. When
/// anything fails, the tree goes on as before and no half-written image stays. Whatever cannot be saved is listed,
/// all of it, before anything is touched (exit code 13).
///
/// With --json the last line has "pause_ms", "stop_ms" and "rounds" (--live), "total_ms", "memory_bytes", "inherited_bytes",
/// "image_bytes", "tasks", "processes", "source" ("running", "gone", or "frozen" when it was stopped before), "image", "phases" and
/// "warnings"; with --every there is such a line for each image, with "epoch", its number.
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio dump 1234\n  meio dump 1234 -o job.meio --kill\n  meio dump 1234 -o - | ssh host meio restore -d -"
)]
pub struct Dump {
    /// Root of the tree, or the name of a capsule
    #[arg(value_name = "PID|NAME", value_parser = target::parse)]
    target: Target,
    /// Where the image goes; - is standard output [default: <comm>-<pid>.meio in the current folder]
    #[arg(short, long, value_name = "IMAGE", value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// End the tree once the image is safely in place
    #[arg(long)]
    kill: bool,
    /// How memory is packed: none (fastest), or a zstd level from 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value = "1", value_parser = level)]
    compress: Level,
    /// How long to wait for every task to stand still, such as 5s or 500ms
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = figures::parse_time)]
    freeze_timeout: Duration,
    /// Build upon this image of the same tree: what is as there is named, not stored
    ///
    /// The parent may itself have one. It is needed, unchanged, whenever the new image is used, and looked for beside that,
    /// then where it was; meio merge makes an image that stands alone.
    #[arg(long, value_name = "IMAGE", value_hint = clap::ValueHint::FilePath, conflicts_with_all = ["live", "every"])]
    parent: Option<PathBuf>,
    #[command(flatten)]
    live: super::live::Live,
    #[command(flatten)]
    decide: super::decide::Decide,
}

/// zstd level, `None` for raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(pub Option<i32>);

/// Reads one.
pub fn level(text: &str) -> std::result::Result<Level, String> {
    match text.parse() {
        _ if text == "none" => Ok(Level(None)),
        Ok(n @ 1..=19) => Ok(Level(Some(n))),
        _ => Err("write none, or a level from 1 to 19".into()),
    }
}

impl Dump {
    /// Whether standard output carries the image.
    pub fn streams(&self) -> bool {
        self.output.as_ref().is_some_and(|o| o.as_os_str() == "-")
    }

    /// Dumps and tells how it went.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let pid = self.target.pid()?;
        let output = match &self.output {
            Some(_) if self.streams() && std::io::stdout().is_terminal() => {
                return Err(Error::new(Kind::Usage, "an image is not for a terminal (standard output)")
                    .help("pipe it: meio dump PID -o - | ssh host meio restore -; or name a file with -o FILE"));
            }
            Some(_) if self.streams() => Output::Stdout,
            Some(path) => Output::Path(path.clone()),
            None => Output::Path(match self.target.capsule() {
                Some(name) => format!("{name}.meio").into(),
                None => default_name(pid)?,
            }),
        };
        let options = Options {
            pid,
            capsule: self.target.name_of(pid),
            output,
            kill: self.kill,
            level: self.compress.0,
            freeze_timeout: self.freeze_timeout,
            decisions: self.decide.decisions(),
            live: self.live.pause()?,
            track: self.live.track(),
            parent: self.parent.clone(),
        };
        if let Some(series) = self.live.series(self.output.as_deref())? {
            return super::live::run(&options, &series, console);
        }
        let mut drawing = Drawing::new(*console);
        let outcome = dump::run(&options, &mut drawing)?;
        if let (Output::Path(path), Some(name)) = (&options.output, &options.capsule) {
            Roster::open()?.saved(name, path)?;
        }
        drawing.finish(&outcome.warnings);
        if console.json {
            console.json("result", result(&outcome));
        } else {
            console.result(&closing(pid, &outcome));
        }
        Ok(super::done(&outcome.warnings))
    }
}

/// `<comm>-<pid>.meio`, the name made fit for a file.
fn default_name(pid: i32) -> Result<PathBuf> {
    let comm = match std::fs::read(format!("/proc/{pid}/comm")) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(Kind::NotFound, format!("no such process ({pid})")).help("ps -e lists the processes that run"));
        }
        read => read.context(|| format!("cannot read the name of process {pid}"))?,
    };
    Ok(file_name(&comm, pid).into())
}

fn file_name(comm: &[u8], pid: i32) -> String {
    let comm = String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(comm)).into_owned();
    let fit = |c: char| if c.is_alphanumeric() || "._+-".contains(c) { c } else { '_' };
    let name: String = comm.chars().map(fit).collect();
    let name = name.trim_start_matches(['.', '-']);
    format!("{}-{pid}.meio", if name.is_empty() { "process" } else { name })
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Running => "running",
        Source::Gone => "gone",
        Source::Frozen => "frozen",
    }
}

pub fn result(o: &Outcome) -> serde_json::Value {
    json!({
        "command": "dump",
        "pause_ms": figures::ms(o.pause),
        "stop_ms": o.stops.map(figures::ms),
        "rounds": o.rounds,
        "total_ms": figures::ms(o.total),
        "memory_bytes": o.memory_bytes,
        "inherited_bytes": o.inherited_bytes,
        "image_bytes": o.image_bytes,
        "tasks": o.tasks,
        "processes": o.processes,
        "source": source(o.source),
        "image": o.image,
        "phases": console::phases(&o.phases),
        "warnings": o.warnings,
    })
}

/// The one honest line.
pub fn closing(pid: i32, o: &Outcome) -> String {
    let state = match o.source {
        Source::Running => "it goes on running",
        Source::Gone => "it was ended",
        Source::Frozen => "it stands still as before, until kill -CONT",
    };
    let inherited = match o.inherited_bytes {
        0 => String::new(),
        bytes => format!(", {} of it as in the parent,", figures::bytes(bytes)),
    };
    format!(
        "{}: process {pid} ({}, {}) stood still for {}{}; {} of memory{inherited} in a {} image after {}; {state}",
        if o.image == "-" { "standard output" } else { &o.image },
        figures::count(o.processes.into(), "process", "processes"),
        figures::count(o.tasks.into(), "task", "tasks"),
        figures::time(o.pause),
        o.stops.map_or_else(String::new, |stop| format!(" (and {} before)", figures::time(stop))),
        figures::bytes(o.memory_bytes),
        figures::bytes(o.image_bytes),
        figures::time(o.total),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_for_a_file() {
        for (comm, name) in [
            (&b"python3\n"[..], "python3-7.meio"),
            (b"kworker/0:1\n", "kworker_0_1-7.meio"),
            (b"-bash\n", "bash-7.meio"),
            (b"..\n", "process-7.meio"),
            (b"a\x1b[31m", "a__31m-7.meio"),
        ] {
            assert_eq!(file_name(comm, 7), name);
        }
    }

    #[test]
    fn levels() {
        assert_eq!(level("none"), Ok(Level(None)));
        assert_eq!(level("19"), Ok(Level(Some(19))));
        assert!(["0", "20", "-1", "fast", ""].iter().all(|l| level(l).is_err()));
    }
}
