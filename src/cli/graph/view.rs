//! What of a graph is drawn: a row for each process, a wire for each thing that several processes share. What only one
//! process has is a line in its row.

use crate::resource::graph::{Graph, How, Key, Node};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Lines that a row or a wire has room for; the others are counted.
const SHOWN: usize = 5;

/// One line of a row, with the whole story for those who point at it.
pub struct Line {
    pub text: String,
    pub tip: String,
    pub refused: bool,
}

/// Where a process is tied to a wire.
pub struct Port {
    pub wire: usize,
    pub text: String,
}

/// One process.
pub struct Row {
    pub pid: i32,
    pub depth: usize,
    /// Row of the parent.
    pub parent: Option<usize>,
    pub title: String,
    pub tip: String,
    pub ended: bool,
    pub lines: Vec<Line>,
    pub ports: Vec<Port>,
}

/// Colours have meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Pipe,
    Terminal,
    Memory,
    File,
    Socket,
    Space,
    Other,
    Refused,
}

/// Something that several processes share.
pub struct Wire {
    pub family: Family,
    pub lines: Vec<String>,
    pub tip: String,
}

/// All of it.
pub struct View {
    pub rows: Vec<Row>,
    pub wires: Vec<Wire>,
}

/// Who holds a thing, and how: `0 r`, `maps`.
type Holders = BTreeMap<i32, BTreeSet<(i32, String)>>;

/// A thing with those that hold it.
type Held = (Key, Holders);

impl View {
    /// Sorts a graph into rows, wires and lines.
    pub fn of(graph: &Graph) -> View {
        let mut rows = rows(graph);
        let place: HashMap<i32, usize> = rows.iter().enumerate().map(|(n, r)| (r.pid, n)).collect();
        let mut wires: Vec<Wire> = Vec::new();
        // Things that the very same processes share become one wire; a pipe between a few keeps its own.
        let mut bundles: BTreeMap<(Vec<i32>, Option<Key>), Vec<Held>> = BTreeMap::new();
        let mut private: BTreeMap<i32, Vec<Held>> = BTreeMap::new();
        for (key, holders) in holders(graph) {
            let pids: Vec<i32> = holders.keys().copied().collect();
            let alone = match family(graph, key) {
                Family::Pipe => pids.len() <= 3,
                family => family == Family::Refused,
            };
            let alone = alone.then_some(key);
            match pids[..] {
                [pid] => private.entry(pid).or_default().push((key, holders)),
                _ => bundles.entry((pids, alone)).or_default().push((key, holders)),
            }
        }
        for (pid, things) in private {
            let Some(&row) = place.get(&pid) else { continue };
            rows[row].lines = lines(graph, pid, &things);
        }
        for ((pids, _), things) in bundles {
            for pid in pids {
                let Some(&row) = place.get(&pid) else { continue };
                let ties: BTreeSet<&(i32, String)> = things.iter().flat_map(|(_, holders)| &holders[&pid]).collect();
                rows[row].ports.push(Port { wire: wires.len(), text: ties.iter().map(|t| t.1.as_str()).collect::<Vec<_>>().join(", ") });
            }
            wires.push(wire(graph, &things));
        }
        View { rows, wires }
    }
}

/// The processes, each above its children.
fn rows(graph: &Graph) -> Vec<Row> {
    let parent: HashMap<Key, Key> = graph.edges.iter().filter(|e| e.how == How::ChildOf).map(|e| (e.from, e.to)).collect();
    let mut children: HashMap<Option<Key>, Vec<&Node>> = HashMap::new();
    for node in graph.nodes.iter().filter(|n| matches!(n.key, Key::Process(_))) {
        children.entry(parent.get(&node.key).copied()).or_default().push(node);
    }
    let member = |of: Key| graph.edges.iter().find(|e| e.from == of && e.how == How::MemberOf).map(|e| e.to);
    let mut rows: Vec<Row> = Vec::new();
    let mut next: Vec<(&Node, usize, Option<usize>)> = children.get(&None).into_iter().flatten().rev().map(|n| (*n, 0, None)).collect();
    while let Some((node, depth, above)) = next.pop() {
        let Key::Process(pid) = node.key else { continue };
        let group = member(node.key);
        let session = group.and_then(member);
        let mut words = vec![format!("{pid} {}", node.name)];
        words.extend((!node.detail.is_empty()).then(|| node.detail.clone()));
        words.extend((session == Some(Key::Session(pid))).then(|| "session".into()));
        words.extend((session != Some(Key::Session(pid)) && group == Some(Key::Group(pid))).then(|| "group".into()));
        let maps = graph.edges.iter().filter(|e| e.from == node.key && matches!(e.how, How::Maps(_)));
        let mut tip = vec![words.join(", ")];
        tip.extend([group, session].into_iter().flatten().filter_map(|k| Some(graph.node(k)?.name.clone())));
        tip.extend(maps.filter_map(|e| Some(format!("maps {}", graph.node(e.to)?.name))).collect::<BTreeSet<_>>());
        next.extend(children.get(&Some(node.key)).into_iter().flatten().rev().map(|n| (*n, depth + 1, Some(rows.len()))));
        rows.push(Row {
            pid,
            depth,
            parent: above,
            title: words.join(" · "),
            tip: tip.join("\n"),
            ended: node.detail == "ended",
            lines: vec![],
            ports: vec![],
        });
    }
    rows
}

/// Everything that processes hold, with the ends of a pipe and the descriptors of an object drawn together.
fn holders(graph: &Graph) -> BTreeMap<Key, Holders> {
    // Both ends of a connection are one thing.
    let ends = graph.edges.iter().filter(|e| e.how == How::Connected && e.to < e.from).map(|e| (e.from, e.to));
    let inner: HashMap<Key, Key> = graph
        .edges
        .iter()
        .filter(|e| e.how == How::Needs && matches!(e.from, Key::File(_)) && !matches!(e.to, Key::File(_)))
        .map(|e| (e.from, e.to))
        .chain(ends)
        .collect();
    let mut all: BTreeMap<Key, Holders> = BTreeMap::new();
    for e in &graph.edges {
        let (pid, tie) = match (e.from, e.how) {
            (Key::Process(pid), How::Holds(fd)) => {
                let access = graph.node(e.to).map_or("", |n| n.access);
                (pid, (fd, format!("{fd} {access}").trim_end().to_owned()))
            }
            (Key::Process(pid), How::Maps(true)) => (pid, (i32::MAX, "maps".into())),
            (Key::Process(pid), How::LivesIn) => (pid, (i32::MAX, "in".into())),
            (Key::Process(pid), How::Uses | How::Obeys) => (pid, (i32::MAX, e.how.word().into())),
            (Key::Process(pid), How::Needs) => (pid, (i32::MAX, String::new())),
            (Key::Session(pid), How::Controls) if graph.node(Key::Process(pid)).is_some() => (pid, (i32::MAX, "controls".into())),
            _ => continue,
        };
        all.entry(inner.get(&e.to).copied().unwrap_or(e.to)).or_default().entry(pid).or_default().insert(tie);
    }
    all
}

fn family(graph: &Graph, key: Key) -> Family {
    let Some(node) = graph.node(key) else { return Family::Other };
    match (key, node.kind) {
        _ if node.refused.is_some() => Family::Refused,
        (Key::Pipe(_), _) | (_, "pipe to outside") => Family::Pipe,
        (Key::Terminal(_), _) => Family::Terminal,
        (Key::Namespace(_), _) => Family::Space,
        (Key::File(_), "unix socket" | "socket") => Family::Socket,
        (Key::Object(_), _) => Family::Memory,
        (Key::Mapped(_), _) | (_, "file" | "directory" | "path" | "device") => Family::File,
        _ => Family::Other,
    }
}

/// Name and details in one line for people.
fn told(graph: &Graph, key: Key) -> String {
    let Some(node) = graph.node(key) else { return String::new() };
    let watched = graph.edges.iter().filter(|e| e.from == key && e.how == How::Watches).filter_map(|e| graph.node(e.to));
    let watched: Vec<&str> = watched.map(|n| n.name.as_str()).collect();
    let watches = if watched.is_empty() { String::new() } else { format!("watches {}", watched.join(", ")) };
    let reason = node.refused.as_ref().map_or_else(String::new, |r| format!("refused: {}; {}", r.reason, r.advice));
    let detail = if node.refused.is_some() { "" } else { &node.detail };
    let parts = [node.name.as_str(), node.kind, detail, &watches, &reason];
    parts.iter().filter(|p| !p.is_empty() && **p != "refused").copied().collect::<Vec<_>>().join(" · ")
}

/// What only this process has: refusals each, everything else as a list that is cut.
fn lines(graph: &Graph, pid: i32, things: &[Held]) -> Vec<Line> {
    let ties = |h: &Holders| h[&pid].iter().map(|t| t.1.as_str()).filter(|t| !t.is_empty()).collect::<Vec<_>>().join(", ");
    let mut kept: Vec<(i32, Line)> = Vec::new();
    for (key, holders) in things {
        let Some(node) = graph.node(*key) else { continue };
        let refused = node.refused.is_some();
        let reason = node.refused.as_ref().map_or_else(String::new, |r| format!(": {}", r.reason));
        let text = format!("{} {}{reason}", ties(holders), node.name).trim().to_owned();
        let first = holders[&pid].first().map_or(0, |t| t.0);
        kept.push((if refused { -1 } else { first }, Line { text, tip: format!("{} {}", ties(holders), told(graph, *key)), refused }));
    }
    kept.sort_by(|a, b| (a.0, &a.1.text).cmp(&(b.0, &b.1.text)));
    let mut lines: Vec<Line> = kept.into_iter().map(|k| k.1).collect();
    let refused = lines.iter().filter(|l| l.refused).count();
    let room = refused.max(SHOWN - 1);
    if lines.len() > room + 1 {
        let rest = lines.split_off(room);
        let tip = rest.iter().map(|l| l.tip.as_str()).collect::<Vec<_>>().join("\n");
        lines.push(Line { text: format!("and {} more of its own", rest.len()), tip, refused: false });
    }
    lines
}

fn wire(graph: &Graph, things: &[Held]) -> Wire {
    let families: BTreeSet<Family> = things.iter().map(|(key, _)| family(graph, *key)).collect();
    let mut lines: Vec<String> = things.iter().filter_map(|(key, _)| Some(graph.node(*key)?.name.clone())).collect();
    lines.dedup();
    if lines.len() > SHOWN {
        let more = lines.len() - (SHOWN - 1);
        lines.truncate(SHOWN - 1);
        lines.push(format!("and {more} more"));
    }
    if let [(key, _)] = things
        && let Some(node) = graph.node(*key)
    {
        let second = node.refused.as_ref().map_or_else(|| node.detail.clone(), |r| r.reason.clone());
        lines.extend((!second.is_empty()).then_some(second));
    }
    let tip = things.iter().map(|(key, _)| told(graph, *key)).collect::<Vec<_>>().join("\n");
    let family = if families.len() == 1 { families.first().copied() } else { None };
    Wire { family: family.unwrap_or(Family::Other), lines, tip }
}
