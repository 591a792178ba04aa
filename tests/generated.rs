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
