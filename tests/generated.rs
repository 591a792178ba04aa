//! Man pages and completions are what the command definitions say. `UPDATE=1 cargo test` rewrites them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of both folders by their paths; man pages of sections other than 1 are written by hand.
fn files(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    for folder in ["man", "completions"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("folder") {
            let path = entry.expect("entry").path();
            if folder == "man" && path.extension().is_none_or(|e| e != "1") {
                continue;
            }
            let name = path.strip_prefix(root).expect("below root").to_path_buf();
            all.insert(name, std::fs::read_to_string(&path).expect("text"));
        }
    }
    all
}

#[test]
fn committed_files_are_the_generated_ones() {
    let fresh = tempfile::tempdir().expect("folder");
    let status = Command::new(super::MEIO).arg("generate").arg(fresh.path()).status().expect("meio runs");
    assert!(status.success());
    let (fresh, root) = (files(fresh.path()), Path::new(super::ROOT));
    assert!(fresh.len() >= 10, "too few files are generated: {:?}", fresh.keys());
    if std::env::var_os("UPDATE").is_some() {
        for name in files(root).keys().filter(|name| !fresh.contains_key(*name)) {
            std::fs::remove_file(root.join(name)).expect("stale file goes");
        }
        for (name, text) in &fresh {
            std::fs::write(root.join(name), text).expect("file is written");
        }
    }
    let committed = files(root);
    let stale: Vec<_> = fresh.iter().filter(|(name, text)| committed.get(*name) != Some(text)).map(|(name, _)| name).collect();
    let extra: Vec<_> = committed.keys().filter(|name| !fresh.contains_key(*name)).collect();
    assert!(stale.is_empty() && extra.is_empty(), "run UPDATE=1 cargo test; stale: {stale:?}, not generated any more: {extra:?}");
}

#[test]
fn every_command_has_a_page_and_no_hidden_one_has() {
    let root = files(Path::new(super::ROOT));
    for command in ["dump", "restore", "check", "inspect", "graph", "verify", "core", "demo"] {
        let page = root.get(Path::new(&format!("man/meio-{command}.1"))).unwrap_or_else(|| panic!("page of {command}"));
        assert!(page.contains(".SH EXIT CODES"), "{command}");
        for shell in ["_meio", "meio.bash", "meio.fish"] {
            assert!(root[&Path::new("completions").join(shell)].contains(command), "{command} in {shell}");
        }
    }
    assert!(root.iter().all(|(name, text)| !name.to_string_lossy().contains("generate") && !text.contains("meio generate")));
}

/// Words that follow a mark in a source, up to a quotation mark.
fn words<'t>(text: &'t str, mark: &str) -> Vec<&'t str> {
    text.split(mark).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// What may stand in the log of a watch is what its manual pages tell of.
#[test]
fn every_event_is_documented() {
    let root = Path::new(super::ROOT);
    let text = |name: &str| std::fs::read_to_string(root.join(name)).expect("text");
    let mut events: Vec<String> = Vec::new();
    let said = text("src/watch/history.rs");
    let table = said.split("let (event, reason) = match said {").nth(1).and_then(|rest| rest.split("};").next()).expect("the table");
    events.extend(words(table, "=> (\"").into_iter().map(str::to_owned));
    assert!(events.len() > 15, "{events:?}");
    for file in ["src/watch/history.rs", "src/watch/protect.rs", "src/watch/agent.rs"] {
        let source = text(file);
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        for role in ["Role::Primary", "Role::Standby", "entry.role"] {
            events.extend(words(source, &format!("Entry::new({role}, \"")).into_iter().map(str::to_owned));
        }
    }
    let others = text("src/watch/protect/others.rs");
    events.extend(words(&others, "=> (\"standby-").into_iter().map(|word| format!("standby-{word}")));
    events.sort();
    events.dedup();
    assert!(["begun", "resumed", "standing-by", "hook-failed", "standby-lost"].iter().all(|event| events.iter().any(|is| is == event)));
    let (short, long) = (text("man/meio-history.1").replace('\\', ""), text("man/meio-json.5").replace('\\', ""));
    let long = long.split(".SS history").nth(1).and_then(|rest| rest.split("\n.SS ").next()).expect("the section");
    for event in &events {
        let is = |line: &str| line.starts_with(".BR ") && line.split([' ', ',']).any(|word| word.trim_matches('"') == event);
        assert!(short.contains(&format!("\"{event}\"")), "meio-history(1) does not tell of {event}");
        assert!(long.lines().any(is), "meio-json(5) does not tell of {event}");
    }
}
