//! The first look: where and when, how much, and a line for each process.

use super::{Seen, comm};
use crate::cli::console::{Console, Paint};
use crate::cli::figures::{bytes, count, date};
use crate::cli::table::{Side, Table, printable};
use crate::resource::process::{Process, State};
use crate::resource::socket::choice::Choice;

/// The whole page.
pub fn page(console: &Console, name: &str, seen: &Seen) -> String {
    let (m, t) = (&seen.manifest, &seen.tree);
    let rest = seen.rest.as_ref().map(|r| {
        let hash = r.hash.as_ref().map_or("NOT WHOLE".into(), |hash| format!("hash {hash}"));
        format!(": {}, {}, {hash}", bytes(r.bytes), count(r.blocks.into(), "page block", "page blocks"))
    });
    let threads = t.processes.iter().map(|p| p.threads.len() as u64).sum();
    let spaces = t.processes.iter().filter_map(|p| p.memory.as_ref());
    let mappings = spaces.clone().map(|m| m.mappings.len() as u64).sum();
    let length: u64 = spaces.flat_map(|m| &m.mappings).map(|m| m.len()).sum();
    let facts = [
        ("image", format!("{name}{}", rest.unwrap_or_default())),
        ("made", format!("{} by meio {} on {}, Linux {}", date(m.created), printable(&m.meio), printable(&m.host), printable(&m.kernel))),
        ("tree", format!("{}, {}", count(t.processes.len() as u64, "process", "processes"), count(threads, "thread", "threads"))),
        ("memory", format!("{} over {}", count(mappings, "mapping", "mappings"), bytes(length))),
        (
            "files",
            format!(
                "{}, {}, {}, {}, {}",
                count(t.files.len() as u64, "open file", "open files"),
                count(t.pipes.len() as u64, "pipe", "pipes"),
                count(t.terminals.len() as u64, "terminal", "terminals"),
                count(t.mapped.len() as u64, "mapped file", "mapped files"),
                count(t.objects.len() as u64, "memory object", "memory objects"),
            ),
        ),
    ];
    let mut lines: Vec<String> =
        facts.iter().map(|(label, fact)| format!("{} {fact}", console.out(&format!("{label:<8}"), Paint::Faint))).collect();
    lines.extend(seen.parent.as_ref().map(|link| {
        let file = String::from_utf8_lossy(&link.file);
        format!("{} {}: needed with it; hash {}", console.out(&format!("{:<8}", "parent"), Paint::Faint), printable(&file), link.hash)
    }));
    let decided = [("external", &t.decisions.external), ("ignored", &t.decisions.ignore)];
    for (label, ids) in decided.iter().filter(|(_, ids)| !ids.is_empty()) {
        lines.push(format!("{} {}", console.out(&format!("{label:<8}"), Paint::Faint), printable(&ids.join(", "))));
    }
    let tcp = match t.decisions.tcp {
        Choice::Keep => None,
        Choice::Close => Some("close: connections that led out of the tree come back broken off"),
        Choice::Refuse => Some("refuse: no connection led out of the tree"),
    };
    lines.extend(tcp.map(|said| format!("{} {said}", console.out(&format!("{:<8}", "tcp"), Paint::Faint))));
    lines.push(String::new());
    lines.extend(processes(&t.processes).lines(|head| console.out(head, Paint::Faint)));
    lines.join("\n")
}

fn processes(all: &[Process]) -> Table {
    use Side::{Left, Right};
    let mut table = Table::new([
        ("PID", Right),
        ("PPID", Right),
        ("PGID", Right),
        ("SID", Right),
        ("STATE", Left),
        ("THREADS", Right),
        ("MAPPED", Right),
        ("FDS", Right),
        ("NAME", Left),
    ]);
    for p in all {
        table.row([
            p.pid.to_string(),
            p.ppid.to_string(),
            p.pgid.to_string(),
            p.sid.to_string(),
            state(&p.state),
            p.threads.len().to_string(),
            p.memory.as_ref().map_or("-".into(), |m| bytes(m.mappings.iter().map(|m| m.len()).sum())),
            p.descriptors.len().to_string(),
            comm(&p.comm),
        ]);
    }
    table
}

/// `running`, `stopped by 19`, `ended (1)`.
pub fn state(state: &State) -> String {
    match state {
        State::Running => "running".into(),
        State::Stopped(signal) => format!("stopped by {signal}"),
        State::Zombie(status) if status & 0x7f == 0 => format!("ended ({})", status >> 8 & 0xff),
        State::Zombie(status) => format!("ended by {}", status & 0x7f),
    }
}
