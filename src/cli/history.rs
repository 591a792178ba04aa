//! `meio history`: what has become of a watch.

use super::status::{name, not_watched};
use super::table::printable;
use super::{Console, console::Paint, figures};
use crate::error::{Kind, Result};
use crate::watch::history::{self, Entry};
use crate::watch::record::Store;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

/// Tell what has become of a watch on this host
///
/// Each change of its role or of how it stands, the oldest first: when, why, with which generation and epoch, and how long it took.
/// It is there as long as nobody takes it away, also when the watch is over: in /var/lib/meio/history/NAME.jsonl, a line of JSON for
/// each, put at its end and on the disk as it happens, and readable by its owner alone. The older half of it goes when there are
/// more than 256 KiB.
///
/// With --json the line has "name" and "events", a list of {v, at (seconds since 1970), role, event, reason, other, generation, epoch
/// ({series, number}), frozen_ms, steps (a list of [name, milliseconds])}, as in that file. Events of a primary are "begun", "resumed", "unprotected",
/// "protected", "paused", "full", "cut", "at-risk", "yielding", "stayed", "unsure", "switched", "demoted", "replaced", "ended" and "over", and of one with several
/// standbys "standby-ready", "standby-out-of-step", "standby-copying" and "standby-lost"; of a standby "standing-by", "ready", "full", "taking-over", "unvoted", "refused", "outdated", "unruled", "address-taken", "taken-over", "failed", "ended" and "over"; of both "hook-failed". See meio-json(5).
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio history web\n  meio history web --json | jq '.events[].event'")]
pub struct History {
    /// Name of the watch
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

impl History {
    /// Shows it.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let mut entries = Vec::new();
        for store in Store::visible() {
            match history::read(&store, &self.name) {
                Err(e) if e.kind == Kind::Permission && !entries.is_empty() => {}
                found => entries.extend(found?),
            }
        }
        if entries.is_empty() {
            return Err(not_watched(&self.name));
        }
        entries.sort_by(|one, other| one.at.total_cmp(&other.at));
        if console.json {
            console.json("result", json!({ "command": "history", "name": self.name, "events": entries }));
        } else {
            entries.iter().for_each(|entry| console.result(&line(console, entry)));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Date and time of day, in UTC.
fn moment(at: f64) -> String {
    const DAY: i64 = 86_400;
    let ms = (at * 1e3).round() as i64;
    let (seconds, ms) = (ms.div_euclid(1000), ms.rem_euclid(1000));
    let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Years that begin in March, in cycles of 400 of them: the day that is added now and then is the last one.
    let day = days + 719_468;
    let (cycle, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + cycle * 400 + later;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{ms:03}Z", time / 3600, time / 60 % 60, time % 60)
}

fn line(console: &Console, entry: &Entry) -> String {
    let time = |ms: f64| figures::time(Duration::from_secs_f64(ms.max(0.0) / 1e3));
    let role = serde_json::to_value(entry.role).ok().and_then(|role| role.as_str().map(str::to_owned)).unwrap_or_default();
    let event = console.out(&format!("{:<12}", printable(&entry.event)), Paint::Strong);
    let epoch = entry.epoch.map_or(String::new(), |epoch| format!(", epoch {} of series {}", epoch.number, epoch.series));
    let frozen = entry.frozen_ms.map_or(String::new(), |ms| format!("; frozen {}", time(ms)));
    let steps: Vec<String> = entry.steps.iter().map(|(name, ms)| format!("{} {}", printable(name), time(*ms))).collect();
    let steps = if steps.is_empty() { String::new() } else { format!(" ({})", steps.join(", ")) };
    let about = format!("generation {}{epoch}: {}{frozen}{steps}", entry.generation, printable(&entry.reason));
    format!("{}  {role:<7}  {event}  {about}", moment(entry.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        assert_eq!(moment(0.0), "1970-01-01 00:00:00.000Z");
        assert_eq!(moment(951_782_400.25), "2000-02-29 00:00:00.250Z");
        assert_eq!(moment(1_709_251_199.999), "2024-02-29 23:59:59.999Z");
        assert_eq!(moment(4_107_542_400.0), "2100-03-01 00:00:00.000Z");
    }
}
