//! The graph for Graphviz: everything, nothing collapsed.

use super::id;
use crate::cli::table::printable;
use crate::resource::graph::{Graph, How, Key, Node};
use std::fmt::Write as _;

/// The whole text.
pub fn text(graph: &Graph) -> String {
    let mut text = String::from("digraph meio {\n  rankdir=LR;\n  node [fontname=\"sans-serif\", fontsize=10];\n");
    for node in &graph.nodes {
        let _ = writeln!(text, "  {} [label={}, {}];", quoted(&id(node.key)), quoted(&label(node)), shape(node));
    }
    for e in &graph.edges {
        let label = match e.how {
            How::Holds(fd) => fd.to_string(),
            How::Maps(true) => "maps shared".into(),
            how => how.word().into(),
        };
        let (from, to) = (quoted(&id(e.from)), quoted(&id(e.to)));
        let style = if e.how.orders() { "solid" } else { "dashed" };
        let _ = writeln!(text, "  {from} -> {to} [label={}, style={style}];", quoted(&label));
    }
    text + "}"
}

fn label(node: &Node) -> String {
    let first = match node.key {
        Key::Process(pid) => format!("{pid} {}", node.name),
        _ => node.name.clone(),
    };
    let lines = [first, node.kind.to_owned(), node.detail.clone()];
    lines.iter().filter(|l| !l.is_empty()).map(|l| printable(l)).collect::<Vec<_>>().join("\n")
}

fn shape(node: &Node) -> &'static str {
    match node.key {
        _ if node.refused.is_some() => "shape=octagon, color=\"#b3261e\"",
        Key::Process(_) => "shape=box, style=rounded",
        Key::Session(_) | Key::Group(_) => "shape=plaintext",
        Key::Pipe(_) => "shape=cds",
        Key::Mapped(_) | Key::Object(_) => "shape=note",
        _ => "shape=ellipse",
    }
}

/// A quoted string of the DOT language: only quotes and backslashes are special there.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
