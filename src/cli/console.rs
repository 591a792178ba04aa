//! Where words go: results to standard output, everything else to standard error; or JSON lines.

use super::{Face, figures};
use crate::error::{Error, Kind, Refusal};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

/// Colours by what they mean.
#[derive(Debug, Clone, Copy)]
pub enum Paint {
    /// Failure.
    Bad,
    /// Something to look at.
    Warn,
    /// Advice, success.
    Good,
    /// Headings and names.
    Strong,
    /// Side notes.
    Faint,
}

/// How this run talks.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    /// JSON lines instead of words.
    pub json: bool,
    /// `-v`.
    pub verbose: bool,
    /// `-q`.
    pub quiet: bool,
    /// Standard output carries the image; results go to standard error.
    streams: bool,
    paint_out: bool,
    paint_err: bool,
}

impl Console {
    /// Reads the options and looks at the terminal; `streams` when standard output will carry an image.
    pub fn new(face: &Face, streams: bool) -> Self {
        let wanted = |terminal: bool| match face.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_some_and(|t| t != "dumb"),
        };
        let (out, err) = (wanted(io::stdout().is_terminal()), wanted(io::stderr().is_terminal()));
        Console {
            json: face.json,
            verbose: face.verbose,
            quiet: face.quiet,
            streams,
            paint_out: if streams { err } else { out },
            paint_err: err,
        }
    }

    /// Writes the result for people: as given, with a line end.
    pub fn result(&self, text: &str) {
        line(self.streams, text);
    }

    /// Writes the result for programs: the fields of `value`, with `v` and `type`.
    pub fn json(&self, kind: &str, value: Value) {
        json_line(kind, value, self.streams);
    }

    /// Writes the last line of a run where the result proper stands elsewhere.
    pub fn closing(&self, text: &str) {
        line(true, text);
    }

    /// Writes a failure: what happened, every refusal, what to do.
    pub fn error(&self, e: &Error) {
        if self.json {
            return json_error(e, self.streams);
        }
        let mut text = format!("{} {}\n", self.err("error:", Paint::Bad), e.message);
        for r in &e.refusals {
            let pid = format!("pid {}", r.pid);
            let indent = " ".repeat(pid.len() + 4);
            let _ = writeln!(text, "  {}  {}", self.err(&pid, Paint::Strong), r.object);
            let _ = writeln!(text, "{indent}{}", r.reason);
            let _ = writeln!(text, "{indent}{} {}", self.err("help:", Paint::Good), r.advice);
            if let Some(id) = &r.id {
                let _ = writeln!(text, "{indent}      or leave it out: --ignore {id}");
            }
            if !r.chain.is_empty() {
                let _ = writeln!(text, "{indent}{}  {}", self.err("way:", Paint::Faint), r.chain.join(" > "));
            }
        }
        let _ = write!(text, "{} {}", self.err("help:", Paint::Good), help(e));
        line(true, &text);
    }

    /// Colours a word of the result.
    pub fn out(&self, text: &str, paint: Paint) -> String {
        colored(text, paint, self.paint_out)
    }

    /// Colours a word on standard error.
    pub fn err(&self, text: &str, paint: Paint) -> String {
        colored(text, paint, self.paint_err)
    }
}

fn set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|v| !v.is_empty())
}

fn colored(text: &str, paint: Paint, on: bool) -> String {
    let code = match paint {
        Paint::Bad => "1;31",
        Paint::Warn => "1;33",
        Paint::Good => "32",
        Paint::Strong => "1",
        Paint::Faint => "2",
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// Set when a result could not be written.
static LOST: AtomicBool = AtomicBool::new(false);

/// Whether a result could not be written, for example to a full disk.
pub fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Writes one piece of text at once. A reader that has gone away is its own affair: the work itself is done.
pub fn line(to_stderr: bool, text: &str) {
    let text = format!("{text}\n");
    let written = if to_stderr { io::stderr().lock().write_all(text.as_bytes()) } else { io::stdout().lock().write_all(text.as_bytes()) };
    if written.is_err_and(|e| e.kind() != io::ErrorKind::BrokenPipe) && !to_stderr {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// Writes one JSON object on one line; `v` and `type` come first, for people who read it.
pub fn json_line(kind: &str, value: Value, to_stderr: bool) {
    let fields = value.to_string();
    let fields = fields.strip_prefix('{').unwrap_or("}");
    let comma = if fields == "}" { "" } else { "," };
    line(to_stderr, &format!(r#"{{"v":1,"type":"{kind}"{comma}{fields}"#));
}

/// Writes a failure as JSON.
pub fn json_error(e: &Error, to_stderr: bool) {
    json_line("error", error_value(e), to_stderr);
}

/// A failure as an object: code, message, help, refusals.
pub fn error_value(e: &Error) -> Value {
    let refusals: Vec<&Refusal> = e.refusals.iter().collect();
    json!({"code": e.kind.code(), "message": e.message, "help": help(e), "refusals": refusals})
}

/// The failure that such an object tells of.
pub fn error_of(value: &Value) -> Error {
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let kind = value["code"].as_i64().and_then(|code| Kind::of(code as i32)).unwrap_or(Kind::Other);
    let refusals = serde_json::from_value(value["refusals"].clone()).unwrap_or_default();
    Error { refusals, ..Error::new(kind, text("message")) }.help(text("help"))
}

/// The error's own advice, or what helps with its kind.
fn help(e: &Error) -> &str {
    e.help.as_deref().unwrap_or(match e.kind {
        Kind::Usage => "see meio --help",
        Kind::NotFound => "look at the number or path again",
        Kind::Permission => "run meio as root; `meio check` says which capability is missing and how to give it",
        Kind::Kernel => "`meio check` says what this kernel lacks and how to mend it",
        Kind::Unsupported => "see the list above; nothing was changed",
        Kind::Image => "copy it again, or make a new one with `meio dump`; `meio inspect` shows what is left of it",
        Kind::LinkFailed => "the tree runs on here; look whether the other host can be reached, then run it again",
        Kind::Frozen => "the tree stands frozen here; find out whether it runs at the other host before it is woken",
        Kind::Interrupted => "run it again; nothing was left behind",
        Kind::Other | Kind::Warnings => "run it again with -v to see each step",
    })
}

/// The phases of a run as JSON: name and milliseconds, in order.
pub fn phases(phases: &[(&'static str, std::time::Duration)]) -> Value {
    phases.iter().map(|(name, took)| json!({"phase": name, "ms": figures::ms(*took)})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_always_says_what_to_do() {
        let all = [Kind::Other, Kind::NotFound, Kind::Permission, Kind::Kernel, Kind::Unsupported, Kind::Image, Kind::LinkFailed];
        for kind in all.into_iter().chain([Kind::Frozen, Kind::Interrupted]) {
            let value = error_value(&Error::new(kind, "no"));
            assert_eq!(value["code"], kind.code());
            assert!(!value["help"].as_str().unwrap_or_default().is_empty(), "{kind:?}");
        }
        assert_eq!(error_value(&Error::other("no").help("do this"))["help"], "do this");
    }

    #[test]
    fn refusals_are_all_there() {
        let r =
            |pid, object: &str| Refusal { pid, object: object.into(), reason: "why".into(), advice: "what".into(), ..Refusal::default() };
        let value = error_value(&Error::refused("dump", vec![r(1, "fd 5"), r(2, "task")]));
        assert_eq!(value["refusals"][1], json!({"pid": 2, "object": "task", "reason": "why", "advice": "what"}));
        assert_eq!(value["code"], 13);
    }

    #[test]
    fn what_another_one_tells_is_the_same() {
        let refusal = Refusal { pid: 7, object: "fd 5".into(), reason: "why".into(), advice: "what".into(), ..Refusal::default() };
        let error = Error::refused("dump", vec![refusal]);
        let told = error_of(&error_value(&error));
        assert_eq!((told.kind, told.message, told.help), (error.kind, error.message, error.help));
        assert_eq!(told.refusals, error.refusals);
        assert_eq!(error_of(&Value::Null).kind, Kind::Other);
    }

    #[test]
    fn colour_only_when_on() {
        assert_eq!(colored("x", Paint::Bad, false), "x");
        assert_eq!(colored("x", Paint::Bad, true), "\x1b[1;31mx\x1b[0m");
    }
}
