//! `--why`: the chain from the root to a thing, who else holds it, and what it needs.

use crate::cli::table::printable;
use crate::error::{Error, Kind, Result};
use crate::resource::graph::{Edge, Graph, How, Key, Node};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that there is to say about one thing.
pub struct Why<'g> {
    graph: &'g Graph,
    node: &'g Node,
    chain: Vec<String>,
}

impl<'g> Why<'g> {
    /// The things that a user can mean by `object`.
    pub fn of(graph: &'g Graph, object: &str) -> Result<Vec<Why<'g>>> {
        let found = find(graph, object);
        if found.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("nothing in the tree is called {object}"))
                .help("write a pid, PID/FD, a path, or what /proc/PID/fd shows, for example pipe:[123]"));
        }
        Ok(found.into_iter().map(|node| Why { graph, node, chain: graph.words(&graph.chain(node.key)) }).collect())
    }

    fn edges(&self, keep: impl Fn(&Edge) -> bool) -> Vec<String> {
        let mut list: BTreeMap<(String, &'static str), Vec<i32>> = BTreeMap::new();
        for e in self.graph.edges.iter().filter(|e| keep(e)) {
            let other = if e.from == self.node.key { e.to } else { e.from };
            let fds = list.entry((name(self.graph, other), e.how.word())).or_default();
            if let How::Holds(fd) = e.how {
                fds.push(fd);
            }
        }
        let word = |((other, how), fds): ((String, &str), Vec<i32>)| match fds[..] {
            [] => format!("{how} {other}"),
            _ => format!("{how} {other} by fd {}", fds.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")),
        };
        list.into_iter().map(word).collect()
    }

    /// Also through the open files that lead to it: the ends of a pipe.
    fn held(&self) -> Vec<String> {
        let key = self.node.key;
        let through: BTreeSet<Key> = self
            .graph
            .edges
            .iter()
            .filter(|e| e.to == key && e.how == How::Needs && matches!(e.from, Key::File(_)))
            .map(|e| e.from)
            .collect();
        self.edges(|e| (e.to == key && !through.contains(&e.from)) || through.contains(&e.to))
    }

    fn needs(&self) -> Vec<String> {
        self.edges(|e| e.from == self.node.key && !matches!(e.how, How::Maps(false)))
    }

    /// For people.
    pub fn page(&self) -> String {
        let mut lines = vec![format!("{} ({})", name(self.graph, self.node.key), self.node.kind)];
        if !self.chain.is_empty() {
            lines.push(format!("  way      {}", self.chain.join(" > ")));
        }
        for (label, list, back) in [("held by", self.held(), true), ("hangs on", self.needs(), false)] {
            for (n, item) in list.into_iter().enumerate() {
                let item = if back { backwards(&item) } else { item };
                lines.push(format!("  {:<8} {item}", if n == 0 { label } else { "" }));
            }
        }
        match &self.node.refused {
            Some(r) => {
                lines.push(format!("  refused  {}", r.reason));
                lines.push(format!("  help     {}", r.advice));
                lines.extend(r.id.as_ref().map(|id| format!("           or leave it out: --ignore {id}")));
            }
            None => lines.push("  saved    nothing stands in the way".into()),
        }
        lines.iter().map(|l| printable(l)).collect::<Vec<_>>().join("\n")
    }

    /// For programs.
    pub fn value(&self) -> Value {
        json!({
            "id": super::id(self.node.key),
            "kind": self.node.kind,
            "name": self.node.name,
            "chain": self.chain,
            "held_by": self.held(),
            "hangs_on": self.needs(),
            "refused": self.node.refused,
        })
    }
}

/// `holds 12 cat by fd 0` is told of the thing that is held: `12 cat by fd 0`.
fn backwards(item: &str) -> String {
    item.strip_prefix("holds ").unwrap_or(item).to_owned()
}

fn name(graph: &Graph, key: Key) -> String {
    let name = graph.node(key).map_or("", |n| n.name.as_str());
    match key {
        Key::Process(pid) => format!("{pid} {name}"),
        _ => name.to_owned(),
    }
}

fn find<'g>(graph: &'g Graph, object: &str) -> Vec<&'g Node> {
    let number = |text: &str| text.parse::<i32>().ok();
    let text = object.strip_prefix("fd:").unwrap_or(object);
    if let Some((pid, fd)) = text.split_once('/').and_then(|(pid, fd)| Some((number(pid)?, number(fd)?))) {
        let held = |e: &&Edge| e.from == Key::Process(pid) && e.how == How::Holds(fd);
        return graph.edges.iter().filter(held).filter_map(|e| graph.node(e.to)).collect();
    }
    if let Some(pid) = number(object) {
        return graph.node(Key::Process(pid)).into_iter().collect();
    }
    let path = object.strip_prefix("file:").unwrap_or(object);
    let named = |n: &&Node| {
        n.name == object
            || n.name == path
            || super::id(n.key) == object
            || n.refused.as_ref().is_some_and(|r| r.id.as_deref() == Some(object))
    };
    let all: Vec<&Node> = graph.nodes.iter().filter(named).collect();
    // The ends of a pipe have its name, too: the pipe itself tells of all of them.
    let ends = |n: &&&Node| !(matches!(n.key, Key::File(_)) && n.kind == "pipe");
    let whole: Vec<&Node> = all.iter().filter(ends).copied().collect();
    if whole.is_empty() { all } else { whole }
}
