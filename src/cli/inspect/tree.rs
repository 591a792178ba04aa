//! Parents, children and threads, drawn as a tree.

use super::{comm, summary};
use crate::cli::console::{Console, Paint};
use crate::resource::Tree;
use crate::resource::process::{Process, State};
use std::collections::HashSet;

/// The whole page. Whatever an image says about parents, every process is shown once.
pub fn page(console: &Console, tree: &Tree) -> String {
    let mut lines = Vec::new();
    let mut seen = HashSet::new();
    let known: HashSet<i32> = tree.processes.iter().map(|p| p.pid).collect();
    let tops = tree.processes.iter().filter(|p| !known.contains(&p.ppid) || p.ppid == p.pid);
    // Processes in a circle have no top; they come last, each on its own.
    for p in tops.chain(&tree.processes) {
        draw(console, tree, p, &mut seen, &mut lines);
    }
    lines.join("\n")
}

/// One process and all below it, without recursion: an image may claim any depth.
fn draw(console: &Console, tree: &Tree, top: &Process, seen: &mut HashSet<i32>, lines: &mut Vec<String>) {
    let mut waiting = vec![(top, String::new(), "")];
    while let Some((p, indent, branch)) = waiting.pop() {
        if !seen.insert(p.pid) {
            continue;
        }
        lines.push(format!("{indent}{branch}{}", describe(console, p)));
        let below = match branch {
            "" => indent,
            "└─ " => indent + "   ",
            _ => indent + "│  ",
        };
        let children: Vec<&Process> = tree.processes.iter().filter(|c| c.ppid == p.pid && c.pid != p.pid).collect();
        let others = p.threads.iter().filter(|t| t.tid != p.pid);
        for t in others {
            let mark = if children.is_empty() { "   " } else { "│  " };
            lines.push(console.out(&format!("{below}{mark}· {} {}", t.tid, comm(&t.comm)), Paint::Faint));
        }
        for (n, child) in children.into_iter().rev().enumerate() {
            waiting.push((child, below.clone(), if n == 0 { "└─ " } else { "├─ " }));
        }
    }
}

fn describe(console: &Console, p: &Process) -> String {
    let mut text = format!("{} {}", console.out(&p.pid.to_string(), Paint::Strong), comm(&p.comm));
    if p.state != State::Running {
        text += &format!(" [{}]", summary::state(&p.state));
    }
    if p.sid == p.pid {
        text += " session leader";
    } else if p.pgid == p.pid {
        text += " group leader";
    }
    text
}
