//! `meio list`.

use super::figures;
use super::table::{Side, Table, printable};
use super::{Console, console::Paint};
use crate::capsule::roster::{Entry, Roster};
use crate::error::Result;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// List the capsules that live
///
/// With --json the line has "capsules", a list of {name, pid (of the init), processes, memory_bytes, since (seconds
/// since 1970), image (the last one, or null)}.
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio list\n  meio list --json")]
pub struct List {}

/// Widest path that leaves a line within 80 columns, with names of usual length.
const PATH: usize = 28;

impl List {
    /// Lists.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let capsules = Roster::open()?.all()?;
        if console.json {
            let list: Vec<_> = capsules.iter().map(row).collect();
            console.json("result", json!({ "command": "list", "capsules": list }));
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new([
            ("NAME", Side::Left),
            ("AGE", Side::Right),
            ("PID", Side::Right),
            ("PROCS", Side::Right),
            ("MEMORY", Side::Right),
            ("LAST IMAGE", Side::Left),
        ]);
        for c in &capsules {
            let (pids, memory) = crate::dump::extent(c.pid);
            let image = c.image.as_ref().map_or_else(|| "-".to_owned(), |path| shortened(&printable(&path.display().to_string())));
            table.row([c.name.clone(), age(c.since), c.pid.to_string(), pids.to_string(), figures::bytes(memory), image]);
        }
        table.lines(|head| console.out(head, Paint::Strong)).iter().for_each(|line| console.result(line));
        Ok(ExitCode::SUCCESS)
    }
}

fn row(c: &Entry) -> serde_json::Value {
    let (processes, memory) = crate::dump::extent(c.pid);
    json!({ "name": c.name, "pid": c.pid, "processes": processes, "memory_bytes": memory, "since": c.since, "image": c.image })
}

/// The end of a path, which says most.
fn shortened(path: &str) -> String {
    let count = path.chars().count();
    if count <= PATH { path.to_owned() } else { format!("…{}", path.chars().skip(count - PATH + 1).collect::<String>()) }
}

/// How long ago, in its largest unit.
fn age(since: u64) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs().saturating_sub(since);
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_stays() {
        assert_eq!(shortened("/a/b.meio"), "/a/b.meio");
        let long = shortened(&format!("/{}/job.meio", "x".repeat(60)));
        assert!(long.starts_with('…') && long.ends_with("x/job.meio") && long.chars().count() == PATH);
    }
}
