//! The descriptors of every process.

use super::section;
use crate::cli::console::Console;
use crate::cli::table::{Side, Table, printable};
use crate::resource::Tree;
use crate::resource::descriptor::{Descriptor, FileKind, OpenFile};
use std::collections::HashMap;

/// The whole page.
pub fn page(console: &Console, tree: &Tree) -> String {
    let files: HashMap<u32, &OpenFile> = tree.files.iter().map(|f| (f.id, f)).collect();
    let mut holders: HashMap<u32, Vec<(i32, i32)>> = HashMap::new();
    for p in &tree.processes {
        for d in &p.descriptors {
            holders.entry(d.file).or_default().push((p.pid, d.fd));
        }
    }
    let mut lines = Vec::new();
    for p in &tree.processes {
        use Side::{Left, Right};
        let mut table =
            Table::new([("FD", Right), ("MODE", Left), ("OFFSET", Right), ("KIND", Left), ("LEADS TO", Left), ("SHARED WITH", Left)]);
        for d in &p.descriptors {
            let Some(file) = files.get(&d.file) else {
                table.row([d.fd.to_string(), String::new(), String::new(), "unknown".into(), String::new(), String::new()]);
                continue;
            };
            table.row([
                d.fd.to_string(),
                mode(d, file),
                file.pos.to_string(),
                kind(&file.kind).into(),
                printable(&file.link),
                shared(&holders[&d.file], (p.pid, d.fd)),
            ]);
        }
        section(console, p, &table, &mut lines);
    }
    lines.join("\n")
}

/// Access mode and the flags that a reader asks about.
fn mode(d: &Descriptor, file: &OpenFile) -> String {
    let flag = |bit: i32| file.flags & bit as u32 != 0;
    let access = match file.flags as i32 & libc::O_ACCMODE {
        _ if flag(libc::O_PATH) => "path",
        libc::O_RDONLY => "r",
        libc::O_WRONLY => "w",
        _ => "rw",
    };
    let mut words = vec![access];
    words.extend([(libc::O_APPEND, "append"), (libc::O_NONBLOCK, "nonblock")].iter().filter(|f| flag(f.0)).map(|f| f.1));
    if d.cloexec {
        words.push("cloexec");
    }
    words.join(",")
}

fn kind(kind: &FileKind) -> &'static str {
    match kind {
        FileKind::Regular(r) if r.deleted.is_some() => "deleted file",
        FileKind::Regular(r) if r.mode & libc::S_IFMT == libc::S_IFDIR => "folder",
        FileKind::Regular(_) => "file",
        FileKind::Pipe(_) => "pipe",
        FileKind::Device(_) => "device",
        FileKind::Terminal(_) => "terminal",
        FileKind::Epoll(_) => "epoll",
        FileKind::Memory(_) => "memory",
        FileKind::EventFd(_) => "eventfd",
        FileKind::TimerFd(_) => "timerfd",
        FileKind::SignalFd(_) => "signalfd",
    }
}

/// Other holders of the same open file: `7:3` is descriptor 3 of process 7. A long list is cut.
fn shared(holders: &[(i32, i32)], own: (i32, i32)) -> String {
    const SHOWN: usize = 4;
    let others: Vec<String> = holders.iter().filter(|h| **h != own).map(|(pid, fd)| format!("{pid}:{fd}")).collect();
    match others.len() {
        0..=SHOWN => others.join(" "),
        n => format!("{} and {} more", others[..SHOWN].join(" "), n - SHOWN),
    }
}
