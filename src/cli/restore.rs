//! `meio restore`.

use super::{Console, console, drawing::Drawing, figures, image};
use crate::dump;
use crate::error::{Error, Kind, Result};
use crate::progress::Report;
use crate::restore::{self, Options, Outcome};
use serde_json::json;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bring the tree of an image back
///
/// The processes go on where they were, with the same pids and thread ids. In the foreground, which is the default,
/// the tree gets this terminal, ^C reaches it, and meio ends as the tree's root ends: with its exit code, or 128 and
/// the number of the signal that ended it. Everything that the dump was told is in the image; no option has to be
/// repeated. When anything fails, nothing was started.
///
/// An image that was made with --parent needs those that it builds upon. They are looked for beside it, or in the current
/// folder where it comes as a stream, and then where they were.
///
/// With --lazy the tree runs at once, whatever the size of its memory. A process of meio's own brings its pages: those that
/// somebody touches first, all others one after the other; then it ends. With -d it works on when the command has ended,
/// and keeps standard error open so long. Shared memory, memory that is locked or made of huge pages, and small mappings
/// are there at the start. The image, and what it builds upon, is to stay as it is until then: damage that is found late,
/// or the death of that process, ends the tree with a message on standard error, since it must not find zeros. Until all
/// is there the tree cannot be saved again.
///
/// With --json the last line has "root_pid", "total_ms", "status" ("running", "exited" or "killed"), "exit_code",
/// "signal", "phases" and "warnings".
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio restore python3-1234.meio\n  meio restore -d --pidfile job.pid job.meio\n  meio restore --pid-namespace job.meio\n  meio restore --lazy large.meio"
)]
pub struct Restore {
    /// The image; - is standard input; of a folder that meio watch --dir has filled, the newest one that is whole
    #[arg(value_name = "IMAGE", value_hint = clap::ValueHint::FilePath)]
    image: PathBuf,
    /// Return as soon as the tree runs, and print the pid of its root
    #[arg(short, long)]
    detach: bool,
    /// Write the pid of the root to this file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pidfile: Option<PathBuf>,
    /// Restore into a fresh pid namespace: the same numbers inside, whatever runs outside
    #[arg(long)]
    pid_namespace: bool,
    /// Let the tree run at once; its memory comes from the image when it is touched, and in the background
    #[arg(long)]
    lazy: bool,
    /// What becomes of TCP connections with somebody outside of the tree, where the dump has kept them
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    tcp: Tcp,
}

/// What can be decided when the dump is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Tcp {
    /// They are as the image has them
    Keep,
    /// They come back broken off, and the program finds ECONNRESET; the other ends are told so
    Close,
}

impl Restore {
    /// Restores and tells how it went; in the foreground the tree's own exit code is passed on.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let options = Options {
            input: image::input(&self.image),
            detach: self.detach,
            pidfile: self.pidfile.clone(),
            pid_namespace: self.pid_namespace,
            close_connections: self.tcp == Tcp::Close,
            only_at: None,
            lazy: self.lazy,
            parent: None,
            settled: Default::default(),
            absent: None,
            lock: None,
        };
        let mut drawing = Drawing::new(*console);
        let outcome = if self.image.is_dir() { newest(&self.image, options, &mut drawing)? } else { restore::run(&options, &mut drawing)? };
        drawing.finish(&outcome.warnings);
        if console.json {
            console.json("result", result(&outcome));
        } else if self.detach {
            console.result(&outcome.root_pid.to_string());
        }
        if !console.json && !console.quiet {
            console.closing(&closing(&outcome));
        }
        Ok(match outcome.exit {
            None => super::done(&outcome.warnings),
            Some(status) => ExitCode::from(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u8),
        })
    }
}

/// The newest image of a series that is whole.
fn newest(folder: &Path, mut options: Options, drawing: &mut Drawing) -> Result<Outcome> {
    let mut left = dump::newest_in(folder)?.into_iter().peekable();
    let mut warnings = Vec::new();
    while let Some(image) = left.next() {
        options.input = image::input(&image);
        match restore::run(&options, drawing) {
            Err(e) if e.kind == Kind::Image && left.peek().is_some() => {
                warnings.push(format!("{} cannot be used, and the one before it is: {}", image.display(), e.message));
                warnings.last().into_iter().for_each(|text| drawing.warning(text));
            }
            done => return done.map(|outcome| Outcome { warnings: [warnings, outcome.warnings].concat(), ..outcome }),
        }
    }
    Err(Error::image(format!("no image in {} can be used", folder.display())))
}

fn result(o: &Outcome) -> serde_json::Value {
    let code = o.exit.and_then(|s| s.code());
    let signal = o.exit.and_then(|s| s.signal());
    json!({
        "command": "restore",
        "root_pid": o.root_pid,
        "total_ms": figures::ms(o.total),
        "status": if code.is_some() { "exited" } else if signal.is_some() { "killed" } else { "running" },
        "exit_code": code,
        "signal": signal,
        "phases": console::phases(&o.phases),
        "warnings": o.warnings,
    })
}

/// The one honest line.
fn closing(o: &Outcome) -> String {
    let state = match o.exit.map(|s| (s.code(), s.signal())) {
        Some((Some(code), _)) => format!("it has ended with exit code {code}"),
        Some((_, Some(signal))) => format!("it was ended by signal {signal}"),
        _ => "it goes on running".into(),
    };
    format!("process {} was restored in {}; {state}", o.root_pid, figures::time(o.total))
}
