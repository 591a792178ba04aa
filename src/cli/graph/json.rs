//! The graph for programs.

use super::id;
use crate::error::Result;
use crate::resource::graph::{Graph, How};
use serde_json::{Value, json};

/// The fields of the result.
pub fn value(graph: &Graph) -> Result<Value> {
    let nodes = graph.nodes.iter().map(|n| {
        let mut node = json!({"id": id(n.key), "kind": n.kind, "name": n.name, "detail": n.detail});
        if let Some(refusal) = &n.refused {
            node["refused"] = json!(refusal);
        }
        node
    });
    let edges = graph.edges.iter().map(|e| {
        let mut edge = json!({"from": id(e.from), "to": id(e.to), "how": e.how.word()});
        match e.how {
            How::Holds(fd) => edge["fd"] = fd.into(),
            How::Maps(shared) => edge["shared"] = shared.into(),
            _ => {}
        }
        edge
    });
    let order: Vec<String> = graph.order()?.into_iter().map(id).collect();
    Ok(json!({"command": "graph", "nodes": nodes.collect::<Vec<_>>(), "edges": edges.collect::<Vec<_>>(), "order": order}))
}
