//! Every host of a watch shows all of them.

use super::control::{meio, status};
use super::{Counter, SLOW, Watched, machines, noted, redis_on};
use crate::lab::hosts::Host;
use crate::lab::{Lab, SOON, until};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The hosts that one of them shows: name, role, state, and whether it is lost.
fn shown(host: &Host) -> Vec<(String, String, String, bool)> {
    let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let one = status(host);
    let nodes = one["nodes"].as_array().expect("a list");
    nodes.iter().map(|node| (text(node, "host"), text(node, "role"), text(node, "state"), node["lost"] == true)).collect()
}

fn all(rows: &[(&str, &str, &str)]) -> Vec<(String, String, String, bool)> {
    rows.iter().map(|(host, role, state)| (host.to_string(), role.to_string(), state.to_string(), false)).collect()
}

/// What it says to people, which fits a terminal and comes soon.
fn said(host: &Host, arguments: &[&str]) -> String {
    let begun = Instant::now();
    let (code, text) = meio(host, arguments);
    assert!(code == 0 && begun.elapsed() < Duration::from_secs(2), "{:?}: {text}", begun.elapsed());
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    text
}

crate::alone! {
    /// Of a pair each end shows both; who is lost is told of with how long ago it was heard.
    fn both_of_a_pair() {
        let lab = Lab::new("nodes-pair");
        let (mut hosts, pid) = redis_on(&lab, machines(&lab, 2));
        hosts.hosts[1].plain("hostname", &["host2.with.a.long.name.example.org"]);
        let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "a-name-that-goes-on-and-on"]].concat());
        let name = "host2.with.a.long.name.example.org";
        let both = all(&[("host1", "primary", "protected"), (name, "standby", "ready")]);
        for host in &hosts.hosts {
            assert!(until(SOON, || shown(host) == both), "{:?}\n{}\n{}", shown(host), watched.said(), noted(&hosts));
        }
        let here = status(&hosts.hosts[0]);
        let (own, other) = (&here["nodes"][0], &here["nodes"][1]);
        assert!(own["heard_ms"].is_null() && other["heard_ms"].as_f64() < Some(5000.0) && own["generation"] == other["generation"], "{here}");
        assert!(other["copy_bytes"].as_u64() > Some(1 << 20) && other["epoch"]["number"].as_u64() > Some(0), "{here}");
        let there = status(&hosts.hosts[1]);
        assert!(there["nodes"][1]["heard_ms"].is_null() && there["nodes"][0]["lag_ms"].is_number(), "{there}");
        for host in &hosts.hosts {
            assert!(said(host, &["status"]).contains("host2.") && said(host, &["status", "a-name-that-goes-on-and-on"]).contains("hosts        host1: "));
        }
        // Whoever is left knows it of the other one.
        hosts.wire(0, false);
        hosts.hosts[0].fail();
        let _ = watched.meio.wait();
        let lost = || shown(&hosts.hosts[1]).iter().any(|(host, .., lost)| host == "host1" && *lost);
        assert!(until(SOON, lost), "{:?}\n{}", shown(&hosts.hosts[1]), noted(&hosts));
        let text = said(&hosts.hosts[1], &["status"]);
        assert!(text.contains("nothing was heard of host1 for") && text.contains("lost"), "{text}");
        let text = said(&hosts.hosts[1], &["status", "a-name-that-goes-on-and-on"]);
        assert!(text.contains("host1: lost: nothing was heard of it for"), "{text}");
    }

    /// Of three hosts each shows all. One that is cut off is told of by the others, and tells of them.
    fn all_of_three() {
        let lab = Lab::new("nodes-three");
        let (hosts, pid) = redis_on(&lab, machines(&lab, 3));
        let watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "web", "--standby", &hosts.hosts[2].address]].concat());
        let counter = Counter::begin();
        let three = all(&[("host1", "primary", "protected"), ("host2", "standby", "ready"), ("host3", "standby", "ready")]);
        for host in &hosts.hosts {
            assert!(until(SOON, || shown(host) == three), "{:?}\n{}\n{}", shown(host), watched.said(), noted(&hosts));
        }
        for (n, host) in hosts.hosts.iter().enumerate() {
            let text = said(host, &["status"]);
            assert!(text.lines().filter(|line| line.contains("standby") || line.contains("primary")).count() == 3, "{text}");
            let nodes = status(host)["nodes"].clone();
            assert!((0..3).all(|of| nodes[of]["heard_ms"].is_null() == (of == n) && nodes[of]["epoch"].is_object()), "{nodes}");
        }
        hosts.wire(2, false);
        let lost = |n: usize| shown(&hosts.hosts[n]).into_iter().filter(|node| node.3).map(|node| node.0).collect::<Vec<_>>();
        assert!(until(SOON, || lost(0) == ["host3"] && lost(1) == ["host3"]), "{:?} {:?}", shown(&hosts.hosts[0]), shown(&hosts.hosts[1]));
        assert!(until(SOON, || lost(2) == ["host1", "host2"]), "{:?}", shown(&hosts.hosts[2]));
        let text = said(&hosts.hosts[2], &["status", "web"]);
        assert!(text.matches("lost: nothing was heard of it for").count() == 2, "{text}");
        assert!(counter.go_on(20), "{}", watched.said());
        hosts.wire(2, true);
        assert!(until(SOON, || (0..3).all(|n| lost(n).is_empty())), "{:?} {:?}", shown(&hosts.hosts[0]), shown(&hosts.hosts[2]));
        counter.end();
    }
}
