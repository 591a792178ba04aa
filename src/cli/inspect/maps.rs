//! The mappings of every process.

use super::section;
use crate::cli::console::Console;
use crate::cli::figures::bytes;
use crate::cli::table::{Side, Table, printable};
use crate::resource::Tree;
use crate::resource::memory::{Backing, Mapping};

/// The whole page.
pub fn page(console: &Console, tree: &Tree) -> String {
    let mut lines = Vec::new();
    for p in &tree.processes {
        use Side::{Left, Right};
        let mut table = Table::new([("START", Right), ("END", Right), ("SIZE", Right), ("PROT", Left), ("FLAGS", Left), ("BACKING", Left)]);
        for m in p.memory.iter().flat_map(|m| &m.mappings) {
            table.row([
                format!("{:x}", m.start),
                format!("{:x}", m.end),
                bytes(m.len()),
                protection(m),
                printable(&m.flags.join(" ")),
                backing(tree, m),
            ]);
        }
        section(console, p, &table, &mut lines);
    }
    lines.join("\n")
}

/// `rw-p`, as proc_pid_maps(5) writes it.
fn protection(m: &Mapping) -> String {
    let bit = |bit: u32, letter| if m.prot & bit != 0 { letter } else { '-' };
    [bit(1, 'r'), bit(2, 'w'), bit(4, 'x'), if m.shared { 's' } else { 'p' }].iter().collect()
}

fn backing(tree: &Tree, m: &Mapping) -> String {
    let named = if m.name.is_empty() { String::new() } else { format!(" {}", printable(&m.name)) };
    match m.backing {
        Backing::Anonymous => format!("anonymous{named}"),
        Backing::Kernel => format!("kernel{named}"),
        Backing::Object { object, offset } => format!("object {object} at {offset:#x}{named}"),
        Backing::File { file, offset } => {
            let path = tree.mapped.get(file as usize).map_or_else(|| "(unknown file)".to_owned(), |f| f.path.to_string());
            format!("{} at {offset:#x}", printable(&path))
        }
    }
}
