//! `meio drain`.

mod far;

use super::console::{Console, Paint, error_of, error_value};
use super::drawing::Drawing;
use super::migrate::Which;
use super::table::{Side, Table, printable};
use super::{figures, way};
use crate::drain::{self, Moved, Options, Plan, Stay, What};
use crate::error::{Error, Kind, Result};
use crate::migrate::files::{Choice, Copying};
use crate::sys::signal;
use crate::transport::Destination;
use crate::watch::{handover, nodes};
use serde_json::{Value, json};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Have everything that is protected on a host, or runs there in capsules, go to other hosts
///
/// For work on a host, or before it is taken away: this one, or HOST, where the meio that is there does it; that is logged in to by SSH,
/// what it says is shown here, and its exit code is this one's.
///
/// What is watched there goes to its standby, as with meio switchover; where several stand by, to one that is ready and up to date,
/// rather to one that --to names, and of these to the one that has the most memory left and the least to do. Each capsule (meio
/// list) goes to one of the hosts that --to names, as with meio migrate, or without --to to one of those that stand by for what is
/// watched there: to the one that has the most memory left and the least to do, if nothing stands in the way there, or else to the next.
/// All of it is looked at before anything is touched, at all ends, and everything that cannot go is named with all that stands in its
/// way. What can go does then, one after the other: while one goes, all others answer.
///
/// What cannot go, or does not get there, stays and goes on as before (exit code 3); exit code 16 says that one of them stands still
/// there, and that nobody knows whether it runs elsewhere. Connections of a capsule with others must be at addresses of its own. What
/// meio watch --dir keeps images of stays: end that before. What the host stands by for is named: nobody does when it is gone.
///
/// Nobody stands by for what has gone to its only standby: end those watches there with meio unwatch, and begin others from there. Of
/// several standbys the others do, and so does the host itself until meio remove-standby says otherwise.
///
/// The way there is also the way on from HOST: hosts that --to names are logged in to from there, with key files of the same paths if there
/// are any. When HOST is not heard of any more, or this command is interrupted, what has not begun to go stays there.
///
/// With --json the line has "from" (the host that is emptied), "dry_run", "moved" (a list of {name, kind ("watch" or "capsule"), host,
/// downtime_ms (null with --dry-run), warnings}), "stayed" (a list of {name, kind, code, message, help, refusals}), "hosts" (a list of {to,
/// host, named (by --to), memory_bytes, load, processors}, as they were asked), and "standby_for", a list of names.
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio drain --dry-run\n  meio drain --to root@other --to root@third\n  meio drain root@first --dry-run\n  meio drain --to other --copy-files"
)]
pub struct Drain {
    /// The host that is to be emptied [default: this one]
    #[arg(value_name = "[USER@]HOST[:PORT]", value_parser = way::destination)]
    host: Option<Destination>,
    /// Where capsules may go; may be given more than once [default: hosts that stand by for what is watched there]
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
    /// Another meio has started this one from elsewhere: what comes to standard input, or its end, has it begin nothing more
    #[arg(long, hide = true)]
    attended: bool,
    #[command(flatten)]
    way: way::Way,
    #[command(flatten)]
    decide: super::decide::Decide,
}

/// Whether this host is meant.
fn is_own(host: &Destination) -> bool {
    let own = ["localhost", "127.0.0.1", "::1"].contains(&host.host.as_str()) || host.host == nodes::hostname();
    own && host.user.is_none() && host.port.is_none()
}

/// Who has started this one is gone, or wants it to end.
fn attend() -> Result<()> {
    let wait = || {
        let _ = std::io::stdin().read(&mut [0]);
        signal::interrupt();
    };
    std::thread::Builder::new().name("attend".into()).spawn(wait)?;
    Ok(())
}

impl Drain {
    /// Looks, moves, and tells how it went.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        signal::catch();
        if let Some(host) = self.host.as_ref().filter(|host| !is_own(host)) {
            return self.there(console, host);
        }
        let mut how = self.way.how();
        if self.attended {
            how = handover::way(&how);
            attend()?;
        }
        let options = Options {
            to: self.to.clone(),
            how,
            decisions: self.decide.decisions(),
            files: Choice {
                copying: self.copy_files.map_or(Copying::Nothing, Which::copying),
                folders: Vec::new(),
                shared: self.shared_files.clone(),
            },
        };
        let mut drawing = Drawing::new(*console);
        let plan = drain::plan(&options, &mut drawing)?;
        let say = |stay: &Stay| said(console, "here", &stay.name, stay.why.clone());
        if !console.json {
            plan.stays.iter().for_each(say);
        }
        let (moved, late) = if self.dry_run { (Vec::new(), Vec::new()) } else { drain::run(&options, &plan.moves, &mut drawing) };
        let warnings: Vec<String> = moved.iter().flat_map(|one| one.warnings.iter().cloned()).collect();
        drawing.finish(&warnings);
        if !console.json {
            late.iter().for_each(say);
        }
        let stays: Vec<&Stay> = plan.stays.iter().chain(&late).collect();
        let result = result(self.dry_run, &plan, &moved, &stays);
        if console.json {
            console.json("result", result);
        } else {
            told(console, "here", &result);
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
fn said(console: &Console, place: &str, name: &str, why: Error) {
    console.error(&Error { message: format!("{name} stays {place}: {}", why.message), ..why });
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
        let (to, room) = (host.to.to_string(), host.asked);
        json!({
            "to": to, "host": host.name, "named": host.named, "memory_bytes": room.memory, "load": room.load,
            "processors": room.processors,
        })
    });
    let follows = moved.iter().filter(|one| one.follows).map(|one| &one.name);
    let standby_for: Vec<&String> = plan.standby_for.iter().chain(follows).collect();
    json!({
        "command": "drain", "from": nodes::hostname(), "dry_run": dry_run, "moved": gone, "stayed": stayed.collect::<Vec<_>>(),
        "hosts": hosts.collect::<Vec<_>>(), "standby_for": standby_for,
    })
}

/// What such a line says, for people.
fn told(console: &Console, place: &str, result: &Value) {
    let dry_run = result["dry_run"] == true;
    let all = |field: &str| result[field].as_array().cloned().unwrap_or_default();
    let text = |one: &Value, field: &str| printable(one[field].as_str().unwrap_or_default());
    let last = if dry_run { "" } else { "NOBODY RAN" };
    let mut table = Table::new([("NAME", Side::Left), ("KIND", Side::Left), ("HOST", Side::Left), (last, Side::Left)]);
    let (moved, stayed) = (all("moved"), all("stayed"));
    for one in &moved {
        let downtime = one["downtime_ms"].as_f64().map(|ms| figures::time(Duration::from_secs_f64(ms.max(0.0) / 1e3)));
        table.row([text(one, "name"), text(one, "kind"), text(one, "host"), downtime.unwrap_or_default()]);
    }
    for stay in &stayed {
        let frozen = stay["code"] == Kind::Frozen.code();
        let state = if frozen { format!("stands still {place}") } else { "stays".to_owned() };
        table.row([text(stay, "name"), text(stay, "kind"), "-".to_owned(), state]);
    }
    if moved.len() + stayed.len() == 0 {
        console.result(&format!("nothing is protected {place} or runs in a capsule"));
    } else {
        table.lines(|head| console.out(head, Paint::Strong)).iter().for_each(|line| console.result(line));
        let (verb, rest) = if dry_run { ("would go", "would stay") } else { ("went", "stayed") };
        console.result(&format!("{} {verb}, {} {rest}", moved.len(), stayed.len()));
    }
    let standby_for: Vec<String> = all("standby_for").iter().filter_map(|name| name.as_str().map(printable)).collect();
    if !standby_for.is_empty() {
        let host = if place == "here" { "this host".to_owned() } else { text(result, "from") };
        console.result(&format!("{host} stands by for {}: it does not when it is gone", standby_for.join(", ")));
    }
}
