//! `meio drain`.

use super::console::{Console, Paint, error_value};
use super::drawing::Drawing;
use super::migrate::Which;
use super::table::{Side, Table, printable};
use super::{figures, way};
use crate::drain::{self, Moved, Options, Plan, Stay, What};
use crate::error::{Error, Kind, Result};
use crate::migrate::files::{Choice, Copying};
use crate::transport::Destination;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Have everything that is protected here, or runs here in capsules, go to other machines
///
/// For work on this host, or before it is taken away. What is watched here goes to its standby, as with meio switchover; each capsule
/// (meio list) goes to one of the hosts that --to names, as with meio migrate: to the one that has the most memory left and the least
/// to do, if nothing stands in the way there, or else to the next. All of it is looked at before anything is touched, at all
/// ends, and everything that cannot go is named with all that stands in its way. What can go does then, one after the other: while
/// one goes, all others answer.
///
/// What cannot go, or does not get there, stays here and goes on as before (exit code 3); exit code 16 says that one of them stands still
/// here, and that nobody knows whether it runs there. Connections of a capsule with others must be at addresses of its own. What this
/// host stands by for is named: nobody does when it is gone.
///
/// Nobody stands by for what was switched over: end those watches there with meio unwatch, and begin others from there.
///
/// With --json the line has "dry_run", "moved" (a list of {name, kind ("watch" or "capsule"), host, downtime_ms (null with --dry-run),
/// warnings}), "stayed" (a list of {name, kind, code, message, help, refusals}), "hosts" (a list of {to, host, memory_bytes, load,
/// processors}, as they were asked), and "standby_for", a list of names.
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio drain --to root@other --dry-run\n  meio drain --to root@other --to root@third\n  meio drain --to other --copy-files"
)]
pub struct Drain {
    /// Where capsules may go; may be given more than once
    #[arg(long, value_name = "[USER@]HOST[:PORT]", value_parser = way::destination)]
    to: Vec<Destination>,
    /// Only say what would go where, and what would stay
    #[arg(long)]
    dry_run: bool,
    /// Send files that capsules have open or mapped, and their current directories, where they are not there
    ///
    /// See meio-migrate(1).
    #[arg(long, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "missing")]
    copy_files: Option<Which>,
    /// Files in this folder are the same ones there, although that cannot be seen: neither compared nor sent
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    shared_files: Vec<PathBuf>,
    #[command(flatten)]
    way: way::Way,
    #[command(flatten)]
    decide: super::decide::Decide,
}

impl Drain {
    /// Looks, moves, and tells how it went.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let options = Options {
            to: self.to.clone(),
            how: self.way.how(),
            decisions: self.decide.decisions(),
            files: Choice {
                copying: self.copy_files.map_or(Copying::Nothing, Which::copying),
                folders: Vec::new(),
                shared: self.shared_files.clone(),
            },
        };
        let mut drawing = Drawing::new(*console);
        let plan = drain::plan(&options, &mut drawing)?;
        if !console.json {
            plan.stays.iter().for_each(|stay| said(console, stay));
        }
        let (moved, late) = if self.dry_run { (Vec::new(), Vec::new()) } else { drain::run(&options, &plan.moves, &mut drawing) };
        let warnings: Vec<String> = moved.iter().flat_map(|one| one.warnings.iter().cloned()).collect();
        drawing.finish(&warnings);
        if !console.json {
            late.iter().for_each(|stay| said(console, stay));
        }
        let stays: Vec<&Stay> = plan.stays.iter().chain(&late).collect();
        if console.json {
            console.json("result", result(self.dry_run, &plan, &moved, &stays));
        } else {
            told(console, self.dry_run, &plan, &moved, &stays);
        }
        let code = match () {
            () if stays.iter().any(|stay| stay.why.kind == Kind::Frozen) => Kind::Frozen.code() as u8,
            () if late.iter().any(|stay| stay.why.kind == Kind::Interrupted) => Kind::Interrupted.code() as u8,
            () if !stays.is_empty() || !warnings.is_empty() => Kind::Warnings.code() as u8,
            () => 0,
        };
        Ok(ExitCode::from(code))
    }
}

/// Why one stays, in full.
fn said(console: &Console, stay: &Stay) {
    let why = Error { message: format!("{} stays here: {}", stay.name, stay.why.message), ..stay.why.clone() };
    console.error(&why);
}

fn result(dry_run: bool, plan: &Plan, moved: &[Moved], stays: &[&Stay]) -> Value {
    let row = |name: &str, what: What, host: &str, downtime: Option<f64>, warnings: &[String]| json!({"name": name, "kind": what.name(), "host": host, "downtime_ms": downtime, "warnings": warnings});
    let gone: Vec<Value> = match dry_run {
        true => plan.moves.iter().map(|one| row(&one.name, one.what, &one.host, None, &one.warnings)).collect(),
        false => moved.iter().map(|one| row(&one.name, one.what, &one.host, Some(figures::ms(one.downtime)), &one.warnings)).collect(),
    };
    let stayed = stays.iter().map(|stay| {
        let mut value = error_value(&stay.why);
        (value["name"], value["kind"]) = (json!(stay.name), json!(stay.what.name()));
        value
    });
    let hosts = plan.hosts.iter().map(|host| {
        let room = host.asked;
        json!({"to": host.to.to_string(), "host": host.name, "memory_bytes": room.memory, "load": room.load, "processors": room.processors})
    });
    json!({
        "command": "drain", "dry_run": dry_run, "moved": gone, "stayed": stayed.collect::<Vec<_>>(), "hosts": hosts.collect::<Vec<_>>(),
        "standby_for": plan.standby_for,
    })
}

fn told(console: &Console, dry_run: bool, plan: &Plan, moved: &[Moved], stays: &[&Stay]) {
    let last = if dry_run { "" } else { "NOBODY RAN" };
    let mut table = Table::new([("NAME", Side::Left), ("KIND", Side::Left), ("HOST", Side::Left), (last, Side::Left)]);
    let mut row =
        |name: &str, what: What, host: &str, last: String| table.row([name.to_owned(), what.name().to_owned(), printable(host), last]);
    if dry_run {
        plan.moves.iter().for_each(|one| row(&one.name, one.what, &one.host, String::new()));
    }
    moved.iter().for_each(|one| row(&one.name, one.what, &one.host, figures::time(one.downtime)));
    for stay in stays {
        let state = if stay.why.kind == Kind::Frozen { "stands still here" } else { "stays" };
        row(&stay.name, stay.what, "-", state.to_owned());
    }
    let gone = if dry_run { plan.moves.len() } else { moved.len() };
    if gone + stays.len() == 0 {
        console.result("nothing is protected here or runs in a capsule");
    } else {
        table.lines(|head| console.out(head, Paint::Strong)).iter().for_each(|line| console.result(line));
        let (verb, stayed) = if dry_run { ("would go", "would stay") } else { ("went", "stayed") };
        console.result(&format!("{gone} {verb}, {} {stayed}", stays.len()));
    }
    if !plan.standby_for.is_empty() {
        console.result(&format!("this host stands by for {}: nobody does when it is gone", plan.standby_for.join(", ")));
    }
}
