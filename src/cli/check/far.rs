//! `meio check --host`: whether another machine can be reached, what is there, and how fast the streams to it are.

use super::super::console::{Console, Paint};
use super::super::drawing::Drawing;
use super::super::figures;
use super::super::target::Target;
use crate::error::{Error, Kind, Result};
use crate::migrate;
use crate::resource::capture::Decisions;
use crate::transport::{self, Destination, How};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// How long the probes there may take.
const PROBES: Duration = Duration::from_secs(60);

/// Logs in and says what is there.
pub fn run(console: &Console, to: &Destination, how: &How, speed: Option<u64>) -> Result<ExitCode> {
    let mut drawing = Drawing::new(*console);
    match speed {
        Some(bytes) => {
            let seen = transport::measure(to, how, bytes, &mut drawing);
            drawing.finish(&[]);
            measured(console, to, how, &seen?);
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let found = look(to, how, &mut drawing);
            drawing.finish(&[]);
            found.map(|(host, check)| told(console, to, &host, &check))
        }
    }
}

/// Says all that stands in the way of a tree that is to move there, as `meio migrate --dry-run` does.
pub fn tree(console: &Console, target: &Target, to: &Destination, how: How, decisions: Decisions) -> Result<ExitCode> {
    let pid = target.pid()?;
    let options = migrate::Options::new(pid, target.name_of(pid), to.clone(), how, decisions);
    let mut drawing = Drawing::new(*console);
    let outcome = migrate::dry_run(&options, &mut drawing)?;
    drawing.finish(&outcome.warnings);
    if console.json {
        let ok = outcome.warnings.is_empty();
        console.json(
            "result",
            json!({"command": "check", "ok": ok, "refusals": [], "warnings": outcome.warnings, "host": {"host": outcome.host}}),
        );
    } else {
        console.result(&format!("process {pid} could be moved to {}", outcome.host));
    }
    Ok(super::super::done(&outcome.warnings))
}

/// Who is there, and what `meio check` says there.
fn look(to: &Destination, how: &How, drawing: &mut Drawing) -> Result<(Value, Value)> {
    let peer = transport::connect(to, how, drawing)?;
    let h = &peer.hello;
    let host = json!({
        "meio": h.meio, "protocol": peer.protocol, "kernel": h.kernel, "machine": h.machine, "host": h.host, "uid": h.uid,
    });
    let said = peer.output("check --json", PROBES)?;
    let result =
        String::from_utf8_lossy(&said).lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).find(|v| v["type"] == "result");
    Ok((host, result.ok_or_else(|| Error::link(format!("meio check at {to} says nothing that makes sense")))?))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn told(console: &Console, to: &Destination, host: &Value, check: &Value) -> ExitCode {
    let gaps: Vec<&Value> = check["gaps"].as_array().into_iter().flatten().collect();
    let required = gaps.iter().any(|g| g["weight"] == "required");
    let kind = match () {
        () if required => Some(Kind::Kernel),
        () if !gaps.is_empty() => Some(Kind::Warnings),
        () => None,
    };
    if console.json {
        console.json("result", json!({"command": "check", "ok": kind.is_none(), "host": host, "check": check}));
    } else {
        let clean = |value: &Value, field| text(value, field).replace(|c: char| c.is_control(), " ");
        let mut lines = Vec::new();
        for gap in &gaps {
            let paint = if gap["weight"] == "required" { Paint::Bad } else { Paint::Warn };
            let name = clean(gap, "name");
            lines.push(format!("{}    {} ({})", console.out("gap", paint), console.out(&name, Paint::Strong), clean(gap, "detail")));
            lines.push(format!("costs  {}", clean(gap, "costs")));
            lines.push(format!("{}   {}\n", console.out("mend", Paint::Good), clean(gap, "mend")));
        }
        let verdict = match (kind, gaps.len() as u64) {
            (None, _) => "dump and restore have all they need there".into(),
            (Some(Kind::Kernel), _) => "nothing can be dumped or restored there until the required gap is mended".into(),
            (_, n) => format!("dump and restore work there, but for {}", figures::count(n, "gap", "gaps")),
        };
        lines.push(format!(
            "{to}: {} with meio {}, {} {}, as user {}; {verdict}",
            text(host, "host"),
            text(host, "meio"),
            text(host, "kernel"),
            text(host, "machine"),
            host["uid"]
        ));
        console.result(&lines.join("\n"));
    }
    kind.map_or(ExitCode::SUCCESS, |k| ExitCode::from(k.code() as u8))
}

fn measured(console: &Console, to: &Destination, how: &How, seen: &transport::Speed) {
    let rate = seen.bytes as f64 / seen.took.as_secs_f64();
    let speed = json!({
        "bytes": seen.bytes,
        "ms": figures::ms(seen.took),
        "bytes_per_second": rate as u64,
        "direct": seen.direct,
        "streams": how.streams,
        "opening_ms": figures::ms(seen.opening),
        "strangers": seen.strangers,
    });
    if console.json {
        return console.json("result", json!({"command": "check", "ok": true, "speed": speed}));
    }
    let way = if seen.direct { "encrypted connections of their own" } else { "SSH sessions" };
    let streams = figures::count(how.streams as u64, "stream", "streams");
    let (bytes, took, rate) = (figures::bytes(seen.bytes), figures::time(seen.took), figures::bytes(rate as u64));
    console.result(&format!("{to}: {bytes} in {took}, {rate}/s, over {streams} ({way}), opened in {}", figures::time(seen.opening)));
}
