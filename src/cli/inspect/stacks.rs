//! The call stack of every thread.

use super::printable;
use crate::cli::console::{Console, Paint};
use crate::postmortem::{Frame, ThreadStack};

/// The whole page.
pub fn page(console: &Console, stacks: &[ThreadStack]) -> String {
    let mut lines = Vec::new();
    for s in stacks {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let of = if s.tid == s.pid { String::new() } else { format!(" (thread of {})", s.pid) };
        lines.push(format!("{} {}{of}", console.out(&s.tid.to_string(), Paint::Strong), printable(&s.comm)));
        lines.extend(s.frames.iter().enumerate().map(|(n, f)| frame(console, n, f)));
        lines.extend(s.note.iter().map(|note| console.out(&format!("  {}", printable(note)), Paint::Faint)));
    }
    lines.join("\n")
}

fn frame(console: &Console, n: usize, f: &Frame) -> String {
    let symbol = match &f.symbol {
        Some((name, offset)) => format!("{}+{offset:#x}", printable(name)),
        None => "?".into(),
    };
    let module = f.module.as_deref().map(|m| console.out(&format!(" ({})", printable(m)), Paint::Faint)).unwrap_or_default();
    format!("  #{n:<2} {:016x} {symbol}{module}", f.pc)
}
