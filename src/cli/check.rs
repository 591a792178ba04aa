//! `meio check`.

mod far;

use super::console::{Console, Paint};
use super::drawing::Drawing;
use super::figures;
use super::table::{Side, Table};
use super::target::{self, Target};
use crate::check::{self, Finding, Outcome, Weight};
use crate::error::{Error, Kind, Result};
use crate::migrate::record::{self, Record, Standing};
use crate::netlock::kept::{Lock, Owner};
use crate::resource::kinds::{KINDS, Status};
use crate::transport::Destination;
use serde_json::json;
use std::process::ExitCode;

/// Say what this machine allows, what each gap costs, and how to mend it
///
/// Probes the kernel and the privileges of this process by doing, harmlessly, what dump and restore will do. With
/// --pid it also looks through that tree, without stopping it, and lists everything in it that cannot be saved.
///
/// With --json the line has "kernel", "findings" and "gaps" (lists of {name, works, weight, detail, costs, mend};
/// weight is "required", "feature" or "spare"), "refusals", "locks" (network locks: {table, owner, since, connections,
/// stale}), "moves" (that were left: {id, pid, target, since, state}) and "ok". With --host it has "host" ({meio, protocol, kernel, machine, host, uid}) and "check" (what meio check
/// --json says there), or with --speed "speed" ({bytes, ms, bytes_per_second, direct, streams, opening_ms, strangers}).
#[derive(clap::Args)]
#[command(after_long_help = "\
Exit codes:
    0  all is there
    3  something is missing that some trees or options need
   12  something is missing without which nothing works
   13  the tree of --pid holds something that is not supported")]
pub struct Check {
    /// Look through the tree below this process, or through this capsule, too
    #[arg(long, value_name = "PID|NAME", value_parser = target::parse)]
    pid: Option<Target>,
    #[command(flatten)]
    decide: super::decide::Decide,
    /// List the kinds of kernel object, and whether meio keeps them
    #[arg(long, conflicts_with_all = ["pid", "external", "ignore"])]
    kinds: bool,
    /// Open the network lock that a dump has kept for the image with this id, or all of them
    ///
    /// After `dump --kill` nothing answers for the connections of the tree until it is restored. Where it is not to
    /// come back here this ends that: peers are then told that nobody is there. `meio check` lists such locks.
    #[arg(long, value_name = "ID|all", conflicts_with_all = ["pid", "external", "ignore", "kinds"])]
    unlock: Option<String>,
    /// Log in to this machine, and say what is there and what it allows; with --pid, whether that tree could move there
    #[arg(long, value_name = "[USER@]HOST[:PORT]", value_parser = super::way::destination, conflicts_with_all = ["kinds", "unlock"])]
    host: Option<Destination>,
    /// With --host: send it so much, such as 1G, over the streams that a move uses, and say how fast they are
    #[arg(long, value_name = "BYTES", value_parser = figures::parse_bytes, requires = "host", conflicts_with = "pid")]
    speed: Option<u64>,
    #[command(flatten)]
    way: super::way::Way,
}

impl Check {
    /// Probes and reports.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        if self.kinds {
            kinds(console);
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(owner) = &self.unlock {
            let locks = check::unlock(owner)?;
            if console.json {
                console.json("result", json!({"command": "check", "ok": true, "unlocked": locks}));
            } else {
                console.result(&format!("{} opened", figures::count(locks.len() as u64, "network lock", "network locks")));
            }
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(host) = &self.host {
            return match (&self.pid, self.speed) {
                (Some(target), None) => far::tree(console, target, host, self.way.how(), self.decide.decisions()),
                _ => far::run(console, host, &self.way.how(), self.speed),
            };
        }
        let pid = self.pid.as_ref().map(Target::pid).transpose()?;
        let mut drawing = Drawing::new(*console);
        let outcome = check::run(pid, &self.decide.decisions(), &mut drawing)?;
        drawing.finish(&outcome.warnings);
        let code = code(&outcome);
        let moves = record::left();
        if console.json {
            let mut value = result(&outcome, code);
            value["moves"] = moves.iter().map(told).collect();
            console.json("result", value);
        } else {
            let lines = std::iter::once(page(console, pid, &outcome)).chain(moves.iter().map(|m| a_move(console, m)));
            console.result(&lines.collect::<Vec<_>>().join("\n"));
        }
        if !outcome.refusals.is_empty() && !console.json {
            console.error(&Error::refused(&format!("cannot dump process {}", pid.unwrap_or(0)), outcome.refusals));
        }
        Ok(ExitCode::from(code))
    }
}

/// The list of kinds.
fn kinds(console: &Console) {
    if console.json {
        return console.json("result", json!({"command": "check", "ok": true, "kinds": KINDS}));
    }
    let mut table = Table::new([("KIND", Side::Left), ("", Side::Left), ("WHAT COMES BACK, OR WHY NOT", Side::Left)]);
    for k in KINDS {
        let status = match k.status {
            Status::Supported => "supported",
            Status::Partly => "partly",
            Status::Refused => "refused",
        };
        table.row([k.name.into(), status.into(), k.says.into()]);
    }
    console.result(&table.lines(|head| console.out(head, Paint::Faint)).join("\n"));
}

fn code(o: &Outcome) -> u8 {
    let kind = match () {
        () if !o.refusals.is_empty() => Kind::Unsupported,
        () if o.hopeless() => Kind::Kernel,
        () if o.gaps().next().is_some() || !o.warnings.is_empty() => Kind::Warnings,
        () => return 0,
    };
    kind.code() as u8
}

fn result(o: &Outcome, code: u8) -> serde_json::Value {
    json!({
        "command": "check",
        "ok": code == 0,
        "kernel": o.kernel,
        "findings": o.findings,
        "gaps": o.gaps().collect::<Vec<_>>(),
        "refusals": o.refusals,
        "warnings": o.warnings,
        "locks": o.locks,
    })
}

fn page(console: &Console, pid: Option<i32>, o: &Outcome) -> String {
    let mut lines = Vec::new();
    let wide = o.findings.iter().map(|f| f.name.len()).max().unwrap_or(0);
    if console.verbose {
        for f in &o.findings {
            let mark = match (f.works, f.weight) {
                (true, _) => console.out("ok ", Paint::Good),
                (_, Weight::Spare) => console.out("-- ", Paint::Faint),
                (_, Weight::Feature) => console.out("gap", Paint::Warn),
                (_, Weight::Required) => console.out("GAP", Paint::Bad),
            };
            lines.push(format!("{mark}  {:wide$}  {}", f.name, f.detail));
        }
        lines.push(String::new());
    }
    for f in o.gaps() {
        lines.extend(gap(console, f));
    }
    let works = o.findings.iter().filter(|f| f.works).count();
    let lacks = |name| o.gaps().any(|f| f.name == name);
    let verdict = match o.gaps().next() {
        None => "dump and restore have all they need",
        _ if o.hopeless() => "nothing can be dumped or restored here until the required gap is mended",
        _ if lacks("clone3 set_tid") && lacks("pid namespace") => "dump works; restore does not, until it may choose pids",
        _ => "dump and restore work, except where a gap says so",
    };
    lines.push(format!("{}: {works} of {} probes work; {verdict}", o.kernel, o.findings.len()));
    lines.extend(o.locks.iter().map(|l| lock(console, l)));
    if let (Some(pid), true) = (pid, o.refusals.is_empty()) {
        lines.push(format!("process {pid}: nothing in its tree stands in the way of a dump"));
    }
    lines.join("\n")
}

/// Whose it is, since when, and how it ends.
fn lock(console: &Console, lock: &Lock) -> String {
    let since = figures::date(lock.since);
    let text = match &lock.owner {
        Owner::Process { pid, .. } => format!("of meio {pid} since {since}: it ends with it"),
        Owner::Image(id) => format!(
            "kept for image {id} since {since}: nothing answers for its {}; meio restore opens it, or meio check --unlock {}",
            figures::count(lock.connections, "connection or port", "connections and ports"),
            id.get(..8).unwrap_or(id),
        ),
        Owner::Watch(name) => format!(
            "of the watch {name} since {since}: if no meio watches, nothing leaves its addresses; once it is known that its standby has not taken over: meio check --unlock {name}"
        ),
    };
    format!("{}    {text}", console.out("network lock", Paint::Strong))
}

/// How the tree of a move that was left fares here.
fn state(m: &Record) -> &'static str {
    match m.standing() {
        Standing::Stands => "frozen",
        Standing::Runs => "running",
        Standing::Gone => "gone",
        Standing::Elsewhere => "unknown",
    }
}

fn told(m: &Record) -> serde_json::Value {
    let pid = m.processes.first().map(|p| p.pid);
    json!({"id": record::name(&m.id), "pid": pid, "target": m.target, "since": m.since, "state": state(m)})
}

/// What was left, and how it is taken up again.
fn a_move(console: &Console, m: &Record) -> String {
    let id = record::name(&m.id);
    let pid = m.processes.first().map_or(0, |p| p.pid);
    let (since, state, target) = (figures::date(m.since), state(m), &m.target);
    format!(
        "{}    of process {pid} to {target} since {since}, {state} here: meio migrate --resume {id} finds out where it is to run",
        console.out("move", Paint::Strong)
    )
}

/// Three lines: the gap, what it costs, how it is mended.
fn gap(console: &Console, f: &Finding) -> [String; 4] {
    let paint = if f.weight == Weight::Required { Paint::Bad } else { Paint::Warn };
    [
        format!("{}    {} ({})", console.out("gap", paint), console.out(f.name, Paint::Strong), f.detail),
        format!("costs  {}", f.costs),
        format!("{}   {}", console.out("mend", Paint::Good), f.mend),
        String::new(),
    ]
}
