//! `meio demo`.

mod migrate;
mod pi;
mod picture;
mod program;
mod watch;

use super::console::{Console, Paint};
use super::{drawing::Drawing, figures};
use crate::error::{Error, Result};
use crate::{dump, restore, sys::signal};
use nix::sys::wait::WaitStatus;
use picture::Stretch;
use program::Program;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How many digits the program computes.
const DIGITS: usize = 3000;
/// It is saved when it has written so many.
const SAVED_AT: usize = DIGITS * 2 / 5;
/// How long it is gone.
const GONE: Duration = Duration::from_secs(2);
/// How long either half of the computation may take.
const LIMIT: Duration = Duration::from_secs(25);

/// See it work: a program is saved, killed and brought back, moved between machines, or outlives its machine
///
/// Starts a program that computes digits of pi and writes them to a file, saves it in the middle, kills it, brings it
/// back, and compares what it has written in the end with pi computed afresh. It takes about ten seconds; nothing is
/// left behind.
///
/// meio demo migrate makes two machines of namespaces, with a network between them (root only, with unshare, nsenter, ip and
/// python3), and moves a service from one to the other and back, with meio migrate, while a client asks it over one connection.
/// In place of SSH something simpler leads from one to the other. Nothing of this machine is touched, and nothing is left.
///
/// meio demo watch makes the same two machines, has the second one stand by for a service on the first (redis, if it is installed),
/// with meio watch, and kills the first while a client counts over one connection: its own log shows a stall, and no count that is
/// lost.
///
/// With --json the last line has "program", "pid", "digits", "digits_saved", "correct", "running_ms", "pause_ms",
/// "gone_ms", "restore_ms", "running_again_ms", "memory_bytes" and "image_bytes"; that of meio demo migrate "program", "pid",
/// "answers", "correct" and "moves", each with "from", "to", "downtime_ms", "bytes", "total_ms" and "longest_wait_ms"; that of
/// meio demo watch "program", "pid", "answers", "correct", "stall_ms" and "log", a list of {answer, ms, after}.
#[derive(clap::Args)]
pub struct Demo {
    /// What to see
    #[arg(value_name = "WHAT", default_value = "restore")]
    what: What,
    #[arg(long, hide = true, requires = "with")]
    role: Option<migrate::Role>,
    #[arg(hide = true, requires = "role")]
    with: Vec<std::ffi::OsString>,
}

/// What can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// A program is saved, killed and brought back
    Restore,
    /// A service is moved between two machines, and its client notices nothing
    Migrate,
    /// A machine is killed, another one goes on with its service, and the client keeps its connection
    Watch,
}

/// What was seen and measured.
struct Seen {
    program: &'static str,
    pid: i32,
    digits: usize,
    digits_saved: usize,
    running: Duration,
    dumped: dump::Outcome,
    gone: Duration,
    restored: restore::Outcome,
    running_again: Duration,
}

impl Demo {
    /// Shows it and tells how it went.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        match (self.what, self.role) {
            (What::Migrate, Some(role)) => return migrate::play(role, &self.with, console, migrate::stage),
            (What::Watch, Some(role)) => return migrate::play(role, &self.with, console, watch::stage),
            (What::Migrate | What::Watch, None) => return migrate::run(self.what == What::Watch),
            (What::Restore, _) => {}
        }
        signal::catch();
        let seen = show(&Teller { console, begin: Instant::now() })?;
        if console.json {
            console.json("result", result(&seen));
            return Ok(ExitCode::SUCCESS);
        }
        console.result("");
        picture::draw(console, seen.pid, &line(&seen)).iter().for_each(|l| console.result(l));
        console.result(&format!(
            "\n  {} all {} digits are those of pi computed afresh, none is missing, none is there twice.\n  \
             The program has noticed nothing. Try your own: meio dump PID --kill, then meio restore IMAGE.",
            console.out("It went on where it was:", Paint::Good),
            seen.digits
        ));
        Ok(ExitCode::SUCCESS)
    }
}

/// Tells step by step, with the time.
struct Teller<'a> {
    console: &'a Console,
    begin: Instant,
}

impl Teller<'_> {
    fn say(&self, word: &str, paint: Paint, text: &str) {
        if self.console.json || self.console.quiet {
            return;
        }
        let time = format!("{:>6.1} s", self.begin.elapsed().as_secs_f64());
        self.console.result(&format!(
            "{}  {}  {text}",
            self.console.out(&time, Paint::Faint),
            self.console.out(&format!("{word:<8}"), paint)
        ));
    }
}

/// The whole demonstration. Whatever fails, the program is ended and its files are removed.
fn show(teller: &Teller<'_>) -> Result<Seen> {
    let mut program = Program::start(DIGITS)?;
    let (name, pid) = (program.name, program.pid);
    teller.say("running", Paint::Good, &format!("{name} computes {DIGITS} digits of pi and writes them to a file; its pid is {pid}"));
    let started = Instant::now();
    reach(&mut program, SAVED_AT)?;
    let running = started.elapsed();

    let options = dump::Options {
        pid,
        capsule: None,
        output: dump::Output::Path(program.path("image.meio")),
        kill: true,
        level: Some(1),
        freeze_timeout: Duration::from_secs(5),
        decisions: Default::default(),
        live: None,
        track: dump::Track::default(),
        parent: None,
    };
    let mut drawing = Drawing::new(*teller.console);
    let dumped = dump::run(&options, &mut drawing)?;
    drawing.finish(&dumped.warnings);
    let ended = Instant::now();
    program.gone();
    let before = program.written();
    teller.say(
        "frozen",
        Paint::Warn,
        &format!(
            "saved at digit {}: it stood still for {}; {} of memory in a file of {}",
            before.len(),
            figures::time(dumped.pause),
            figures::bytes(dumped.memory_bytes),
            figures::bytes(dumped.image_bytes)
        ),
    );
    if program.exists() {
        return Err(Error::other(format!("process {pid} is still there after it was killed")));
    }
    teller.say("gone", Paint::Bad, &format!("killed: there is no process {pid} any more, and the file does not grow"));
    program.wait_until(GONE, |_| Ok(false))?;
    if program.exists() || program.written() != before {
        return Err(Error::other(format!("something goes on with pid {pid}, although the program was killed")));
    }

    let options = restore::Options {
        input: restore::Input::Path(program.path("image.meio")),
        detach: true,
        pidfile: None,
        pid_namespace: false,
        close_connections: false,
        only_at: None,
        lazy: false,
        parent: None,
        settled: Default::default(),
        absent: None,
        lock: None,
    };
    let mut drawing = Drawing::new(*teller.console);
    let restored = restore::run(&options, &mut drawing)?;
    drawing.finish(&restored.warnings);
    program.back();
    let gone = ended.elapsed();
    let again = Instant::now();
    if restored.root_pid != pid {
        return Err(Error::other(format!("it came back with pid {}, not {pid}", restored.root_pid)));
    }
    reach(&mut program, before.len() + 1)?;
    let now = program.written();
    teller.say(
        "running",
        Paint::Good,
        &format!(
            "restored in {}: {name} is pid {pid} again, and digit {} follows digit {}: …{} {}",
            figures::time(restored.total),
            before.len() + 1,
            before.len(),
            tail(&before),
            teller.console.out(&now[before.len()..now.len().min(before.len() + 8)], Paint::Good)
        ),
    );
    let status = end(&mut program)?;
    let running_again = again.elapsed();
    let digits = check(&program, &before, status)?;
    teller.say("ended", Paint::Strong, &format!("by itself, with exit code 0; it counted {digits} digits"));
    Ok(Seen { program: name, pid, digits, digits_saved: before.len(), running, dumped, gone, restored, running_again })
}

/// Waits until the file has `digits` digits.
fn reach(program: &mut Program, digits: usize) -> Result<()> {
    let there = program.wait_until(LIMIT, |program| match program.written().len() {
        n if n >= digits => Ok(true),
        _ => match program.ended()? {
            Some(status) => Err(Error::other(format!("{} ended too early: {status:?}", program.name))),
            None => Ok(false),
        },
    })?;
    if there { Ok(()) } else { Err(slow()) }
}

fn end(program: &mut Program) -> Result<WaitStatus> {
    let mut status = None;
    program.wait_until(LIMIT, |program| {
        status = program.ended()?;
        Ok(status.is_some())
    })?;
    status.ok_or_else(slow)
}

fn slow() -> Error {
    Error::other("the computation takes too long here").help("try again when the machine has less to do")
}

/// Compares what the program has left behind; how many digits.
fn check(program: &Program, before: &str, status: WaitStatus) -> Result<usize> {
    let pi = pi::digits(DIGITS);
    let written = program.written();
    if !matches!(status, WaitStatus::Exited(_, 0)) {
        return Err(Error::other(format!("the restored program ended with {status:?}")));
    }
    if !written.starts_with(before) {
        return Err(Error::other("what was written before the dump has changed"));
    }
    if let Some(wrong) = (0..DIGITS.max(written.len())).find(|&n| written.as_bytes().get(n) != pi.as_bytes().get(n)) {
        return Err(Error::other(format!("digit {} is not that of pi", wrong + 1)));
    }
    match program.counted() {
        Some(n) if n == DIGITS => Ok(n),
        n => Err(Error::other(format!("the program has counted {n:?} digits, not {DIGITS}"))),
    }
}

/// The last digits.
fn tail(digits: &str) -> &str {
    &digits[digits.len().saturating_sub(8)..]
}

fn line(seen: &Seen) -> [Stretch; 4] {
    let stretch = |word, took, mark, paint, digits| Stretch { word, took, mark, paint, digits };
    [
        stretch("running", seen.running, '━', Paint::Good, seen.digits_saved),
        stretch("frozen", seen.dumped.pause, '▓', Paint::Warn, seen.digits_saved),
        stretch("gone", seen.gone, '·', Paint::Bad, seen.digits_saved),
        stretch("running again", seen.running_again, '━', Paint::Good, seen.digits),
    ]
}

fn result(seen: &Seen) -> serde_json::Value {
    let warnings: Vec<&String> = seen.dumped.warnings.iter().chain(&seen.restored.warnings).collect();
    json!({
        "command": "demo",
        "program": seen.program,
        "pid": seen.pid,
        "digits": seen.digits,
        "digits_saved": seen.digits_saved,
        "correct": true,
        "running_ms": figures::ms(seen.running),
        "pause_ms": figures::ms(seen.dumped.pause),
        "gone_ms": figures::ms(seen.gone),
        "restore_ms": figures::ms(seen.restored.total),
        "running_again_ms": figures::ms(seen.running_again),
        "memory_bytes": seen.dumped.memory_bytes,
        "image_bytes": seen.dumped.image_bytes,
        "warnings": warnings,
    })
}
