//! `meio status`, `meio checkpoint`, `meio unwatch`: watches, seen and commanded from the outside.

use super::drawing::Drawing;
use super::figures;
use super::table::{Side, Table, printable, shortened};
use super::{Console, console::Paint};
use crate::error::{Error, Kind, Result};
use crate::sys::signal;
use crate::watch::clean::{self, Left};
use crate::watch::control::Ask;
use crate::watch::handover::ask;
use crate::watch::nodes::Node;
use crate::watch::record::is_name;
use crate::watch::status::{Role, State, Status as Stand};
use serde_json::json;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Show how the watches of this host stand
///
/// Each watch of which this host is the primary or a standby, each series of images, and what a meio has left behind that was killed:
/// who answers and since which generation, the last epoch that is whole and how old it is, how long packets wait, and what would be
/// lost if the host died on which the tree runs. Those of other users are seen by root, and by the group that may command them.
///
/// Any host of a watch shows all of them, as it has heard of them last, and those that are not heard any more with how long ago that was:
/// a line for each, with its role and state, generation, last epoch and how old what it has is, what its copy takes, and how far the
/// heartbeats are off that it hears. Nobody else is asked for that, so it is said at once.
///
/// With --json the line has "watches", a list of {name, role ("primary", "standby", "series"), state ("starting", "unprotected",
/// "paused", "protected", "cut", "at-risk", "stopped", "ready", "taking-over", "running", "failed", "saved", "left-behind", "silent"), pid,
/// other (the other host), at, guarantee, generation, epoch ({series, number}), age_ms, lag_ms, interval_ms, pause_ms,
/// longest_pause_ms, held ({now, packets, median_ms, p99_ms, longest_ms, lost}), jitter_ms, bytes, epochs, unheeded, silent,
/// copy_bytes, witness ({at, trouble}), nodes, loses}. "nodes" has all hosts of the watch: {host, role, state (as above, or
/// "out-of-step"), place (of several standbys), generation, epoch, age_ms, lag_ms, jitter_ms, copy_bytes, heard_ms (how long ago it was
/// heard; null for this host), lost}. Of a watch with several standbys also "standbys", a list of {host, state ("starting", "ready",
/// "out-of-step", "copying", "lost"), epoch}, and "needed", how many of them must be ready for one to take over.
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio status\n  meio status web --watch\n  meio status --json | jq '.watches[].state'")]
pub struct Status {
    /// One watch, with all that is known of it
    #[arg(value_name = "NAME", value_parser = name)]
    name: Option<String>,
    /// Show it again each second, until ^C
    #[arg(long)]
    watch: bool,
}

/// Have an epoch begin now, and wait until the standby has it as a whole
///
/// What the tree did before this was called survives the loss of its host when it has ended. Of a series it is the next image.
///
/// With --json the line has "name" and "epoch", {series, number}.
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio checkpoint web")]
pub struct Checkpoint {
    /// Name of the watch
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

/// Have a watched tree unprotected for a while
///
/// Nothing of it is copied, and nothing that it says waits, as when it is not watched: for work that writes much memory, say. Returns when
/// that is so; if its host is lost then, it ends. The standby stays, with nothing, and meio status and meio history say so.
///
/// With --json the line has "name".
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio pause web\n  meio resume web")]
pub struct Pause {
    /// Name of the watch
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

/// Have a watched tree protected again that was paused
///
/// Everything is copied anew while it runs. Returns at once: meio status says when the standby can take over.
///
/// With --json the line has "name".
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio resume web")]
pub struct Resume {
    /// Name of the watch
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

/// End a watch
///
/// The tree goes on here, and nobody stands by. Nothing is left on either host: rules, queues, records, images of it at the standby;
/// its address is as it was before. Asked for at the standby, it is the primary that ends it.
///
/// What a meio has left behind that was killed is cleaned up likewise. If somebody else on the network has the service address by
/// then, that one has taken over: the tree stands still here.
///
/// With --json the line has "name", "tree" ("running", "stopped", or "gone" when it is not here), and "warnings".
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio unwatch web")]
pub struct Unwatch {
    /// Name of the watch
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

pub fn name(text: &str) -> std::result::Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err("letters, digits, and . _ - within it; 64 at most".into()) }
}

pub fn not_watched(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("nothing is watched under the name {name}")).help("meio status shows what is")
}

/// What is to be said when nobody serves it.
pub fn nobody(name: &str) -> Result<Error> {
    Ok(match clean::all(Some(name))?.is_empty() {
        true => not_watched(name),
        false => Error::new(Kind::NotFound, format!("nobody watches {name} any more")).help("meio status says what is left"),
    })
}

impl Status {
    /// Shows it.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        const EACH: Duration = Duration::from_secs(1);
        signal::catch();
        let in_place = self.watch && !console.json && std::io::stdout().is_terminal();
        loop {
            let due = Instant::now() + EACH;
            let found = clean::all(self.name.as_deref())?;
            if let Some(name) = self.name.as_deref().filter(|_| found.is_empty()) {
                return Err(not_watched(name));
            }
            if console.json {
                console.json("result", json!({ "command": "status", "watches": found }));
            } else {
                let lines =
                    if self.name.is_some() { found.iter().flat_map(|one| whole(console, one)).collect() } else { table(console, &found) };
                // The cursor goes home, and what is behind the text goes.
                let text = lines.join(if in_place { "\x1b[K\n" } else { "\n" });
                console.result(&if in_place { format!("\x1b[H{text}\x1b[K\x1b[J") } else { text });
            }
            if !self.watch {
                return Ok(ExitCode::SUCCESS);
            }
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                if signal::is_pending() {
                    return Ok(ExitCode::SUCCESS);
                }
                std::thread::sleep(left.min(Duration::from_millis(20)));
            }
            if !in_place && !console.json {
                console.result("");
            }
        }
    }
}

/// Columns of a terminal.
const WIDTH: usize = 80;

/// A text in lines of at most so many columns.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().filter(|line| line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => line.extend([" ", word]),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Standby => "standby",
        Role::Series => "series",
    }
}

fn state(state: State) -> (&'static str, Paint) {
    match state {
        State::Starting => ("starting", Paint::Warn),
        State::Unprotected => ("unprotected", Paint::Bad),
        State::Paused => ("paused", Paint::Warn),
        State::Protected => ("protected", Paint::Good),
        State::Cut => ("cut", Paint::Bad),
        State::AtRisk => ("at risk", Paint::Bad),
        State::Stopped => ("stopped", Paint::Warn),
        State::Ready => ("ready", Paint::Good),
        State::TakingOver => ("taking over", Paint::Warn),
        State::Running => ("running", Paint::Warn),
        State::Failed => ("failed", Paint::Bad),
        State::Saved => ("saved", Paint::Good),
        State::LeftBehind => ("left behind", Paint::Warn),
        State::Silent => ("silent", Paint::Bad),
    }
}

fn time(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| figures::time(Duration::from_secs_f64(ms.max(0.0) / 1e3)))
}

/// A row of the table, but for the name.
fn row(node: &Node) -> [String; 8] {
    let dash = || "-".to_owned();
    [
        node.host.clone(),
        role(node.role).to_owned(),
        if node.lost { "lost".to_owned() } else { shortened(&node.state.replace('-', " "), 11) },
        shortened(&node.generation.to_string(), 5),
        node.epoch.map_or_else(dash, |epoch| shortened(&epoch.number.to_string(), 9)),
        age(node.age_ms),
        node.copy_bytes.map_or_else(dash, figures::bytes),
        age(node.jitter_ms),
    ]
}

/// A time in few columns.
fn age(ms: Option<f64>) -> String {
    const MINUTE: f64 = 60e3;
    match ms {
        Some(ms) if ms >= 9999.0 * 1440.0 * MINUTE => "long".to_owned(),
        Some(ms) if ms >= 6000.0 * MINUTE => format!("{:.0} d", ms / (1440.0 * MINUTE)),
        Some(ms) if ms >= 100.0 * MINUTE => format!("{:.0} h", ms / (60.0 * MINUTE)),
        Some(ms) if ms >= 0.99 * MINUTE => format!("{:.0} min", ms / MINUTE),
        ms => time(ms),
    }
}

/// The hosts of a watch, as far as they are known: at least this one.
fn hosts(one: &Stand) -> Vec<Node> {
    if !one.nodes.is_empty() {
        // As far as this host is the primary it knows more of them than they do themselves.
        let known = |node: &Node| one.standbys.iter().find(|standby| standby.host == node.host && standby.state == "out-of-step");
        let state = |node: &Node| known(node).map_or(node.state.clone(), |standby| standby.state.clone());
        return one.nodes.iter().map(|node| Node { state: state(node), ..node.clone() }).collect();
    }
    let Stand { role, generation, epoch, age_ms, jitter_ms, .. } = *one;
    vec![Node { host: "-".into(), role, state: one.state.name().into(), generation, epoch, age_ms, jitter_ms, ..Node::default() }]
}

/// All of them, a line for each host, and what would be lost.
fn table(console: &Console, found: &[Stand]) -> Vec<String> {
    if found.is_empty() {
        return vec!["nothing is watched on this host".to_owned()];
    }
    let mut table = Table::new([
        ("NAME", Side::Left),
        ("HOST", Side::Left),
        ("ROLE", Side::Left),
        ("STATE", Side::Left),
        ("GEN", Side::Right),
        ("EPOCH", Side::Right),
        ("AGE", Side::Right),
        ("COPY", Side::Right),
        ("JITTER", Side::Right),
    ]);
    for one in found {
        for (n, node) in hosts(one).iter().enumerate() {
            let [host, role, state, generation, epoch, age, copy, jitter] = row(node);
            let name = if n == 0 { printable(&one.name) } else { String::new() };
            table.row([name, printable(&host), role, state, generation, epoch, age, copy, jitter]);
        }
    }
    table.fit(&[0, 1], 4, WIDTH);
    let mut lines = table.lines(|head| console.out(head, Paint::Strong));
    lines.push(String::new());
    for one in found {
        let front = format!("{}: ", shortened(&one.name, 16));
        lines.extend(advice(one, &front));
        for node in one.nodes.iter().filter(|node| node.lost) {
            let text = format!("{front}nothing was heard of {} for {}", shortened(&node.host, 64), time(node.heard_ms));
            lines.extend(wrapped(&text, WIDTH));
        }
    }
    lines
}

/// One host of several, in words.
fn host(node: &Node) -> String {
    let heard = match (node.heard_ms, node.lost) {
        (None, _) => "this host".to_owned(),
        (heard, true) => format!("lost: nothing was heard of it for {}; before", time(heard)),
        (heard, false) => format!("heard {} ago", time(heard)),
    };
    let epoch = node
        .epoch
        .map_or_else(String::new, |epoch| format!(", epoch {} of series {}, {} old", epoch.number, epoch.series, time(node.age_ms)));
    let copy = node.copy_bytes.map_or_else(String::new, |bytes| format!(", copy {}", figures::bytes(bytes)));
    let jitter = node.jitter_ms.map_or_else(String::new, |_| format!(", heartbeats up to {} off", time(node.jitter_ms)));
    let (host, state) = (shortened(&node.host, 40), printable(&node.state).replace('-', " "));
    format!("{host}: {heard}; {}, {state}, generation {}{epoch}{copy}{jitter}", role(node.role), node.generation)
}

/// What would be lost, or what is to be done.
fn advice(one: &Stand, front: &str) -> Vec<String> {
    let text = match one.state {
        State::LeftBehind => format!("{front}left behind; `meio unwatch {}` cleans up", one.name),
        State::Silent => format!("{front}{}", one.loses),
        _ => format!("{front}if the host of the tree died now, it would lose {}", one.loses),
    };
    wrapped(&text, WIDTH)
}

/// One of them, with all that is known.
fn whole(console: &Console, one: &Stand) -> Vec<String> {
    let (word, paint) = state(one.state);
    let name = console.out(&shortened(&one.name, 48), Paint::Strong);
    let mut lines = vec![format!("{name}  {}: {}", role(one.role), console.out(word, paint))];
    let mut line = |name: &str, text: String| {
        let rest = wrapped(&text, WIDTH - 15);
        lines.extend(rest.into_iter().enumerate().map(|(n, text)| format!("  {:<11}  {text}", if n == 0 { name } else { "" })));
    };
    let at = if one.at.is_empty() { String::new() } else { format!(", at {}", printable(&one.at.join(", "))) };
    match one.pid {
        Some(pid) => line("tree", format!("process {pid}{at}")),
        None if at.is_empty() => {}
        None => line("tree", format!("not here{at}")),
    }
    if let Some(other) = &one.other {
        line("other host", shortened(other, 64));
    }
    let promise = one.guarantee.as_deref().map_or_else(String::new, |word| format!(", guarantee {word}"));
    if one.role != Role::Series {
        line("generation", format!("{}{promise}", one.generation));
    }
    if let Some(epoch) = one.epoch {
        let lag = one.lag_ms.map_or_else(String::new, |_| format!("; whole {} after it was copied", time(one.lag_ms)));
        let series = if one.role == Role::Series { String::new() } else { format!(" of series {}", epoch.series) };
        line("last epoch", format!("{}{series}, {} old{lag}", epoch.number, time(one.age_ms)));
    }
    if one.interval_ms.is_some() {
        line("interval", time(one.interval_ms));
    }
    if one.pause_ms.is_some() {
        line("pause", format!("{}; the longest {}", time(one.pause_ms), time(one.longest_pause_ms)));
    }
    if let Some(held) = &one.held {
        let waited = format!(
            "{} waited for {} (median), {} (99 of 100), {} at most",
            figures::count(held.packets, "packet", "packets"),
            time(Some(held.median_ms)),
            time(Some(held.p99_ms)),
            time(Some(held.longest_ms))
        );
        line("held", format!("{} now; {waited}; lost for want of room: {}", held.now, held.lost));
    }
    if one.jitter_ms.is_some() {
        line("heartbeats", format!("up to {} off; {} frames were not heeded", time(one.jitter_ms), one.unheeded));
    }
    if let Some(path) = &one.silent {
        line("silent", format!("nothing comes by the {}", printable(path)));
    }
    for (n, standby) in one.standbys.iter().enumerate() {
        let epoch = standby.epoch.map_or_else(String::new, |epoch| format!(", epoch {} of series {}", epoch.number, epoch.series));
        line(if n == 0 { "standbys" } else { "" }, format!("{}: {}{epoch}", printable(&standby.host), printable(&standby.state)));
    }
    for (n, node) in one.nodes.iter().enumerate() {
        line(if n == 0 { "hosts" } else { "" }, host(node));
    }
    if let Some(witness) = &one.witness {
        line("witness", format!("{}, which {}", printable(&witness.at), witness.trouble.as_deref().unwrap_or("answers")));
    }
    if one.epochs > 0 {
        let sent = if one.bytes > 0 { format!(", {}", figures::bytes(one.bytes)) } else { String::new() };
        line("in all", format!("{}{sent}", figures::count(one.epochs, "epoch", "epochs")));
    }
    lines.extend(advice(one, ""));
    lines
}

impl Checkpoint {
    /// Waits for it.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        const PATIENCE: Duration = Duration::from_secs(600);
        signal::catch();
        let Some(answer) = ask(&self.name, (Ask::Checkpoint, None), PATIENCE)? else { return Err(nobody(&self.name)?) };
        let epoch = &answer["epoch"];
        if console.json {
            console.json("result", json!({ "command": "checkpoint", "name": self.name, "epoch": epoch }));
        } else {
            console.result(&format!("epoch {} of {} is whole", epoch["number"], self.name));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Unwatch {
    /// Ends it, or cleans up.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        const PATIENCE: Duration = Duration::from_secs(120);
        signal::catch();
        let before = clean::all(Some(&self.name))?;
        let mut drawing = Drawing::new(*console);
        let mut warnings = Vec::new();
        let left = match ask(&self.name, (Ask::Unwatch, None), PATIENCE)? {
            Some(answer) => {
                let told = answer["ended"]["warnings"].as_array().cloned().unwrap_or_default();
                warnings.extend(told.iter().filter_map(|text| text.as_str().map(str::to_owned)));
                let here = before.first().and_then(|one| one.pid);
                let stopped = before.first().is_some_and(|one| one.state == State::Stopped);
                match here {
                    Some(_) if stopped => Left::Stands,
                    Some(_) => Left::Runs,
                    None => Left::Gone,
                }
            }
            None => clean::clean(&self.name, &mut warnings, &mut drawing)?,
        };
        drawing.finish(&warnings);
        let (word, text) = match left {
            Left::Runs => ("running", "the tree goes on here, and nobody stands by"),
            Left::Stands => ("stopped", "another host answers, and the tree stands still here"),
            Left::Gone => ("gone", "nothing of it is left here"),
        };
        if console.json {
            console.json("result", json!({ "command": "unwatch", "name": self.name, "tree": word, "warnings": warnings }));
        } else {
            console.result(&format!("the watch {} is over: {text}", self.name));
        }
        Ok(super::done(&warnings))
    }
}

impl Pause {
    /// Waits until nobody can take over, and nothing waits.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let name = &self.name;
        let text = format!("{name} is paused: if its host is lost, it ends; meio resume {name} protects it again");
        order(console, name, ("pause", Ask::Pause), &text)
    }
}

impl Resume {
    /// Does not wait until it is protected.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let text = format!("{} is copied again; meio status says when it is protected", self.name);
        order(console, &self.name, ("resume", Ask::Resume), &text)
    }
}

/// Has something done of which there is nothing to tell but that it is.
fn order(console: &Console, name: &str, (command, what): (&str, Ask), text: &str) -> Result<ExitCode> {
    const PATIENCE: Duration = Duration::from_secs(60);
    signal::catch();
    let Some(_) = ask(name, (what, None), PATIENCE)? else { return Err(nobody(name)?) };
    if console.json {
        console.json("result", json!({ "command": command, "name": name }));
    } else {
        console.result(text);
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::state::Mark;
    use crate::watch::status::Witness;

    /// Names and numbers of usual length.
    #[test]
    fn it_fits_a_terminal() {
        let color = super::super::Face { verbose: false, quiet: false, json: false, color: super::super::Color::Never };
        let console = Console::new(&color, false);
        let one = Stand {
            name: "a-name-that-is-much-too-long".into(),
            role: Role::Primary,
            state: State::Unprotected,
            other: Some("host.with-a.long.name.example".into()),
            at: vec!["2001:db8:1234:5678:9abc:def0:1234:5678/64@enp0s31f6".into(), "10.0.0.10/24@enp0s31f6".into()],
            pid: Some(4_000_000),
            generation: 123,
            epoch: Some(Mark { series: 4, number: 123_456_789 }),
            age_ms: Some(59_000.0),
            lag_ms: Some(59_000.0),
            interval_ms: Some(1000.0),
            pause_ms: Some(12.5),
            longest_pause_ms: Some(12.5),
            held: Some(crate::watch::status::Held { now: 65536, packets: 123_456_789, ..Default::default() }),
            jitter_ms: Some(12.5),
            silent: Some("heartbeats".into()),
            witness: Some(Witness { at: "[2001:db8:1234:5678:9abc:def0:1234:5678]:26346".into(), trouble: Some("does not answer".into()) }),
            epochs: 123_456_789,
            bytes: 1 << 50,
            loses: "what happened of the last 59.0 s, though clients were told; connections are broken off".into(),
            ..Stand::default()
        };
        let left = Stand { state: State::LeftBehind, ..one.clone() };
        let node = |host: &str, lost| Node {
            host: host.into(),
            role: Role::Standby,
            state: "taking-over".into(),
            place: Some(2),
            generation: u64::MAX,
            epoch: Some(Mark { series: u64::MAX, number: u64::MAX }),
            age_ms: Some(59_000.0),
            lag_ms: Some(59_000.0),
            jitter_ms: Some(999.0),
            copy_bytes: Some(1023 << 40),
            heard_ms: Some(86_400e3),
            lost,
        };
        let nodes = vec![node("a-host.with-a.very.long.name.that-goes-on-and-on-and-on.example.org", false), node("host2", true)];
        let all = Stand { nodes, ..one.clone() };
        let lines = [table(&console, &[one.clone(), left.clone()]), whole(&console, &one), whole(&console, &left)].concat();
        let lines = [lines, table(&console, &[all.clone(), one.clone()]), whole(&console, &all)].concat();
        let long: Vec<&String> = lines.iter().filter(|line| line.chars().count() > WIDTH).collect();
        assert!(long.is_empty(), "{long:#?}");
        assert!(lines.iter().any(|line| line.contains("meio unwatch a-name")));
        assert!(lines.iter().any(|line| line.contains("nothing was heard of host2 for")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("lost") && line.contains("standby")), "{lines:#?}");
        assert_eq!(table(&console, &[]), ["nothing is watched on this host"]);
    }

    #[test]
    fn words_are_not_broken() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("much-too-long a", 4), ["much-too-long", "a"]);
    }
}
