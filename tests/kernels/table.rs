//! What the machines said, as a table and as a verdict.

use std::collections::BTreeMap;

/// Tests that cannot pass under a kernel, with the reason that the README gives for it: the first word of the kernel's release, the
/// test's name or the beginning of it.
const KNOWN: &[(&str, &str, &str)] =
    &[("6.1", "fixtures::epoll::dumped", TRIED), ("6.1", "fixtures::epoll::in_a_series", TRIED), ("6.1", "fixtures::backlog", NOT_TAKEN)];
const TRIED: &str =
    "before Linux 6.5 counters of eventfd must be tried; a dumped program is told of them once more by an edge-triggered epoll";
const NOT_TAKEN: &str = "before Linux 6.12 connections that wait to be accepted are refused";
/// What meio says to trees that cannot go on because of the processor, which is this machine's or the one that qemu plays.
const REFUSED: [&str; 2] = ["vector features that are missing here and in use", "a smaller vector state than this one has"];

/// How a test or a journey ended.
#[derive(Default)]
struct Count {
    ok: usize,
    skipped: usize,
    refused: usize,
    failed: Vec<String>,
}

/// One machine's part of what was said, between `== begin RELEASE` and `== end`; this one's own has no such lines.
fn parts(said: &str, own: &str) -> Vec<(String, Vec<String>)> {
    let mut parts = vec![(own.to_owned(), Vec::new())];
    for line in said.lines() {
        if let Some(release) = line.strip_prefix("== begin ") {
            parts.push((super::journey::short(release), Vec::new()));
        } else if line.starts_with("== end") {
            parts.push((own.to_owned(), Vec::new()));
        } else if let Some(last) = parts.last_mut() {
            last.1.push(line.to_owned());
        }
    }
    parts
}

/// Prints the table; returns what went wrong.
pub fn table(said: &str, own: &str) -> Vec<String> {
    let mut tests: BTreeMap<String, Count> = BTreeMap::new();
    let mut journeys: BTreeMap<(String, String), Count> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (kernel, lines) in parts(said, own) {
        for (n, line) in lines.iter().enumerate() {
            let line = line.strip_prefix("test kernels::journeys ... ").unwrap_or(line);
            if let Some((step, result)) = line.strip_prefix("journey: arrive ").and_then(|l| l.split_once(": ")) {
                let (name, result) = result.split_once(": ").unwrap_or((result, ""));
                let from = step.split(' ').next().unwrap_or_default().to_owned();
                let count = journeys.entry((kernel.clone(), from.clone())).or_default();
                let refused = REFUSED.iter().any(|why| result.contains(why)) || result == "did not set out";
                match result {
                    "ok" => count.ok += 1,
                    _ if refused => count.refused += 1,
                    why => count.failed.push(format!("{name}, {from} to {kernel}: {why}")),
                }
            } else if let Some((step, result)) = line.strip_prefix("journey: depart ").and_then(|l| l.split_once(": ")) {
                if !result.ends_with(": ok") {
                    wrong.push(format!("setting out under {step}: {result}"));
                }
            } else if let Some((name, result)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) {
                let count = tests.entry(kernel.clone()).or_default();
                let known = KNOWN.iter().any(|k| k.0 == kernel && name.starts_with(k.1));
                match result.split(' ').next().unwrap_or_default() {
                    "ok" if name.contains("::") && name != "kernels::journeys" => count.ok += 1,
                    "skipped" => count.skipped += 1,
                    "FAILED" if known => count.refused += 1,
                    "FAILED" => count.failed.push(format!("{name} under {kernel}: {}", why(&lines[n + 1..]))),
                    _ => {}
                }
            }
        }
    }
    println!("\n| under | tests that pass | cannot be shown | known not to |");
    println!("|---|---|---|---|");
    for (kernel, count) in &tests {
        println!("| Linux {kernel} | {} | {} | {} |", count.ok, count.skipped, count.refused + count.failed.len());
    }
    println!("\n| dumped under | restored under | trees that go on | refused |");
    println!("|---|---|---|---|");
    for ((kernel, from), count) in &journeys {
        println!("| Linux {} | {kernel} | {} | {} |", from.replace('-', ", then "), count.ok, count.refused + count.failed.len());
    }
    wrong.extend(tests.into_values().chain(journeys.into_values()).flat_map(|c| c.failed));
    wrong
}

/// The first sentence of a test that failed.
fn why(lines: &[String]) -> String {
    let own = lines.iter().take_while(|l| !l.starts_with("test ") && !l.starts_with("== "));
    let said =
        own.filter(|l| !l.starts_with("failures:") && !l.starts_with("----") && !l.contains("panicked") && !l.contains("exit status"));
    said.take(2).map(|l| l.chars().take(300).collect::<String>()).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_was_said_is_counted() {
    let said = "journey: depart 6.18: clocks: ok\n== begin 6.1.0-56-cloud-amd64\ntest fixtures::a::restored ... ok (3 s)\n\
        test fixtures::b::restored ... FAILED (4 s)\nfailures:\nit is broken\ntest kernels::journeys ... journey: arrive 6.18 6.18-6.1: clocks: ok\n\
        journey: arrive 6.18 6.18-6.1: vdso: says nothing\n== end\n";
    let wrong = table(said, "6.18");
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong[0].starts_with("fixtures::b::restored under 6.1: it is broken"), "{wrong:?}");
    assert!(wrong[1].contains("vdso, 6.18 to 6.1: says nothing"), "{wrong:?}");
}
