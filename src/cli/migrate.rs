//! `meio migrate`.

use super::target::{self, Target};
use super::{Console, drawing::Drawing, dump::Level, figures, way};
use crate::dump;
use crate::error::{Error, Kind, Result};
use crate::migrate::files::{Choice, Copying};
use crate::migrate::{self, Ended, Options, Outcome, Policy, address::Address};
use crate::transport::Destination;
use serde_json::json;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// For the man page: from two machines with nothing set up to a move that was left.
pub const TUTORIAL: &str = include_str!("migrate/tutorial.txt");

/// Move a running tree of processes to another machine
///
/// Logs in to HOST by SSH, where a meio is started; looks at everything that could stand in the way, at both ends; copies memory
/// while the tree runs, round after round, and stops it for what is left. It goes on there with the same pids, files and
/// connections. Whatever fails before the target has everything in place, the tree goes on here, as before. From then on it is
/// on record who may run: never two, and when nobody does, this says where it stands still, and how it is woken.
///
/// More than 32 MiB of memory is put in place while the tree runs there already, as restore --lazy does: until then, for about a
/// second a GiB, it dies with the meio there that brings it.
///
/// With --lazy, or --on-timeout lazy when rounds do not end, it runs there before its memory is sent at all: nobody runs for as
/// long as everything but the memory takes. What is left here stands still, complete, until the target says that it has every
/// page. When the link is lost or the target dies before that, the tree is ended there, lest it find anything else in place of a
/// page; what it has said to others and written until then is not taken back, so that what stands here goes on only when you say
/// so: exit code 16, and the command is named. Shared memory and files of the tree are sent before.
///
/// Connections move with their address: --vip. Files that the tree has open or mapped must be at the same paths, with the same
/// content (ELF files: the same build id), or on storage that both machines share; all that are not are listed before anything is
/// touched. --copy-files sends those, and --with-data folders of data. A file that is sent is built beside its place under another
/// name, and takes it in the last stop; when the move is given up what was there before is put back. A folder of data is changed
/// in place, and holds what was sent until then.
///
/// With --json the last line has "downtime_ms" (until the word was here that it runs there), "stop_ms" (the longest stop before),
/// "rounds", "bytes", "memory_bytes", "file_bytes", "total_ms", "processes", "tasks", "source" ("gone", or "running" with --dry-run), "host",
/// "root_pid", "phases" and "warnings".
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio migrate 1234 root@other\n  meio migrate web other --vip 10.0.0.10/24@eth0\n  meio migrate 1234 other --dry-run\n  meio migrate 1234 other --lazy"
)]
pub struct Migrate {
    /// Root of the tree, or the name of a capsule
    #[arg(value_name = "PID|NAME", value_parser = target::parse, required_unless_present_any = ["resume", "abort"])]
    target: Option<Target>,
    /// Where to
    #[arg(value_name = "[USER@]HOST[:PORT]", value_parser = way::destination, required_unless_present_any = ["resume", "abort"])]
    to: Option<Destination>,
    /// Only look whether it could be moved, at both ends
    #[arg(long)]
    dry_run: bool,
    /// How long nobody may run, as far as that can be foreseen
    ///
    /// When the other machine is not heard of while the tree stands still for the switch, and was not told yet that it may run there,
    /// it goes on here after ten times as long, but 2 s at least and 10 s at most.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = figures::parse_time)]
    max_downtime: Duration,
    /// How long memory may be copied while the tree runs
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = figures::parse_time)]
    timeout: Duration,
    /// What to do when the tree writes faster than that can be sent, or the time is over
    #[arg(long, value_name = "WHAT", default_value = "cancel")]
    on_timeout: OnTimeout,
    /// Let it run there first; its memory follows, what it touches first of all. Should the link be lost meanwhile, it is ended
    /// there, and stands still here as it was when it was moved
    #[arg(long)]
    lazy: bool,
    /// An address that moves with the tree: taken from the interface here, and brought up there
    #[arg(long, value_name = "ADDRESS/LENGTH@INTERFACE", value_parser = way::address)]
    vip: Vec<Address>,
    /// Let it have its pids in a fresh pid namespace there
    #[arg(long)]
    pid_namespace: bool,
    /// How memory is packed: none, or a zstd level from 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value = "1", value_parser = super::dump::level)]
    compress: Level,
    /// Where images are kept at the target until they are not needed any more
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    spool: PathBuf,
    /// Send files that the tree has open or mapped, and its current directories, where they are not there
    ///
    /// `written` also replaces files that the tree has open for writing where something else is there. What it only reads is never
    /// replaced. What was there comes back when the move is given up.
    #[arg(long, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "missing")]
    copy_files: Option<Which>,
    /// Keep this folder in step until the switch: what is in it there becomes what is in it here, and all else there is deleted
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    with_data: Vec<PathBuf>,
    /// Files in this folder are the same ones there, although that cannot be seen: neither compared nor sent
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    shared_files: Vec<PathBuf>,
    /// How long to wait for every task to stand still
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = figures::parse_time)]
    freeze_timeout: Duration,
    /// Take up a move that ended without knowing where the tree runs: its name is in what was said then
    #[arg(long, value_name = "ID", conflicts_with_all = ["abort", "target", "dry_run"])]
    resume: Option<String>,
    /// Have the tree of such a move here, unless it runs there
    #[arg(long, value_name = "ID", conflicts_with_all = ["target", "dry_run"])]
    abort: Option<String>,
    /// With --abort: the target is gone for good, and need not be asked
    #[arg(long, requires = "abort")]
    force: bool,
    #[command(flatten)]
    way: way::Way,
    #[command(flatten)]
    decide: super::decide::Decide,
}

/// See [`Policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnTimeout {
    /// It stays
    Cancel,
    /// It is moved, however long that takes
    Force,
    /// It runs there first, and what is left follows: as with --lazy
    Lazy,
}

/// See [`Copying`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Those that are not there
    Missing,
    /// Those, and in place of what is there those that the tree has open for writing
    Written,
}

impl Which {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Which::Missing => "missing",
            Which::Written => "written",
        }
    }

    /// For the screenplay.
    pub fn copying(self) -> Copying {
        match self {
            Which::Missing => Copying::Missing,
            Which::Written => Copying::Written,
        }
    }
}

impl Migrate {
    /// Moves, and tells how it went.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let mut drawing = Drawing::new(*console);
        if let Some(id) = self.resume.as_ref().or(self.abort.as_ref()) {
            let wish = match (&self.resume, self.force) {
                (Some(_), _) => migrate::Wish::Resume,
                (None, false) => migrate::Wish::Abort,
                (None, true) => migrate::Wish::Force,
            };
            let said = migrate::take_up(id, wish, &self.way.how(), &mut drawing)?;
            drawing.finish(&[]);
            console.result(&said);
            return Ok(ExitCode::SUCCESS);
        }
        let (Some(target), Some(to)) = (&self.target, &self.to) else {
            return Err(Error::new(Kind::Usage, "a tree and a host are needed").help("see meio migrate --help"));
        };
        let pid = target.pid()?;
        let usual = Options::new(pid, target.name_of(pid), to.clone(), self.way.how(), self.decide.decisions());
        let options = Options {
            dump: dump::Options { level: self.compress.0, freeze_timeout: self.freeze_timeout, ..usual.dump },
            max_downtime: self.max_downtime,
            timeout: self.timeout,
            policy: match self.on_timeout {
                OnTimeout::Cancel => Policy::Cancel,
                OnTimeout::Force => Policy::Force,
                OnTimeout::Lazy => Policy::Lazy,
            },
            lazy: self.lazy,
            pid_namespace: self.pid_namespace,
            addresses: self.vip.clone(),
            spool: self.spool.clone(),
            files: Choice {
                copying: self.copy_files.map_or(Copying::Nothing, Which::copying),
                folders: self.with_data.clone(),
                shared: self.shared_files.clone(),
            },
            ..usual
        };
        let outcome = if self.dry_run { migrate::dry_run(&options, &mut drawing)? } else { migrate::run(&options, &mut drawing)? };
        drawing.finish(&outcome.warnings);
        if console.json {
            console.json("result", result(&outcome));
        } else {
            console.result(&closing(pid, &outcome));
        }
        Ok(super::done(&outcome.warnings))
    }
}

fn result(o: &Outcome) -> serde_json::Value {
    let phases: Vec<_> = o.phases.iter().map(|(name, took)| json!({"name": name, "ms": figures::ms(*took)})).collect();
    json!({
        "command": "migrate",
        "downtime_ms": figures::ms(o.downtime),
        "stop_ms": figures::ms(o.stops),
        "rounds": o.rounds,
        "bytes": o.bytes,
        "memory_bytes": o.memory_bytes,
        "file_bytes": o.file_bytes,
        "total_ms": figures::ms(o.total),
        "processes": o.processes,
        "tasks": o.tasks,
        "source": match o.ended { Ended::Moved => "gone", Ended::WouldFit => "running" },
        "host": o.host,
        "root_pid": o.root_pid,
        "phases": phases,
        "warnings": o.warnings,
    })
}

/// The one honest line.
fn closing(pid: i32, o: &Outcome) -> String {
    let what = format!(
        "process {pid} ({}, {})",
        figures::count(o.processes.into(), "process", "processes"),
        figures::count(o.tasks.into(), "task", "tasks"),
    );
    match o.ended {
        Ended::WouldFit => format!("{what} could be moved to {}: nothing was changed, it goes on running here", o.host),
        Ended::Moved => format!(
            "{what} runs on {}{} now: nobody ran for {} (and {} before); {} were sent in {} for {} of memory after {}; nothing is left here",
            o.host,
            o.root_pid.map_or_else(String::new, |pid| format!(" as {pid}")),
            figures::time(o.downtime),
            figures::time(o.stops),
            figures::bytes(o.bytes),
            figures::count(o.rounds, "image", "images"),
            figures::bytes(o.memory_bytes),
            figures::time(o.total),
        ),
    }
}
