//! The files below `/proc/sys/net` of the network namespace that the calling thread is in.

use crate::error::{Context, Result};
use crate::sys::namespace;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Text of each file, by its path below `/proc/sys/net`.
pub type Values = BTreeMap<String, String>;

const ROOT: &str = "/proc/sys/net";

/// What is no setting, or the same as another one with another unit.
const NOT_SETTINGS: [&str; 5] = ["base_reachable_time", "retrans_time", "flush", "stable_secret", "mtu"];

/// All settings that can be read and written.
pub fn read() -> Values {
    let mut values = Values::new();
    let mut left = vec![PathBuf::from(ROOT)];
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = entry.metadata() else { continue };
            let name = entry.file_name();
            if meta.is_dir() {
                left.push(path);
            } else if std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o600 == 0o600
                && !NOT_SETTINGS.iter().any(|n| name == *n)
                && let (Ok(text), Some(key)) = (std::fs::read_to_string(&path), path.strip_prefix(ROOT).ok().and_then(Path::to_str))
            {
                values.insert(key.to_owned(), text.trim_end().to_owned());
            }
        }
    }
    values
}

/// Where each interface has a folder with settings.
const FOLDERS: [&str; 4] = ["ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"];

/// Whether a setting is one of this interface.
pub fn is_of_interface(key: &str, name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !part.contains('/') && part != "." && part != "..";
    let rest = FOLDERS.iter().find_map(|folder| key.strip_prefix(folder)?.strip_prefix('/')?.strip_prefix(name)?.strip_prefix('/'));
    plain(name) && rest.is_some_and(plain)
}

/// Settings of one interface that are not those that interfaces are born with.
pub fn of_interface(name: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        let root = Path::new(ROOT).join(folder);
        for entry in std::fs::read_dir(root.join(name)).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let writable = entry.metadata().is_ok_and(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o600 == 0o600);
            let read = |of: &str| std::fs::read_to_string(root.join(of).join(&file)).ok().map(|text| text.trim_end().to_owned());
            if let (true, Some(own), Some(file)) = (writable, read(name), file.to_str())
                && !NOT_SETTINGS.contains(&file)
                && read("default").is_some_and(|usual| usual != own)
            {
                found.push((format!("{folder}/{name}/{file}"), own));
            }
        }
    }
    found.sort();
    found
}

/// The settings of a fresh namespace.
pub fn fresh() -> Result<Values> {
    namespace::fresh_network(read).context(|| "making a network namespace to compare with")
}

/// What an interface is born with has the name `default`.
fn origin(key: &str) -> String {
    let mut parts: Vec<&str> = key.split('/').collect();
    if parts.len() == 4 && matches!(parts[1], "conf" | "neigh") && parts[2] != "all" {
        parts[2] = "default";
    }
    parts.join("/")
}

/// The value that a setting has in a fresh namespace.
fn usual<'v>(fresh: &'v Values, key: &str) -> Option<&'v String> {
    fresh.get(key).or_else(|| fresh.get(&origin(key)))
}

/// Settings that are not those of a fresh namespace.
pub fn differing(values: &Values, fresh: &Values) -> Vec<(String, String)> {
    values.iter().filter(|(key, value)| usual(fresh, key) != Some(value)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Sets all settings of the own namespace; `fresh` is what they were before anything was made in it.
pub fn write(saved: &[(String, String)], fresh: &Values) -> Result<()> {
    let wanted: BTreeMap<&str, &str> = saved.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    // Some set others, too, those of `all` before all others; twice puts them right.
    for _ in 0..2 {
        let now = read();
        let mut order: Vec<(&String, &String)> = now.iter().collect();
        order.sort_by_key(|(key, _)| (!key.contains("/all/"), !key.contains("/default/")));
        for (key, value) in order {
            let expected = wanted.get(key.as_str()).copied().or_else(|| usual(fresh, key).map(String::as_str));
            let Some(expected) = expected.filter(|e| e != value) else { continue };
            let written = std::fs::write(Path::new(ROOT).join(key), expected);
            if wanted.contains_key(key.as_str()) {
                written.context(|| format!("setting net/{key} to {expected}"))?;
            }
        }
    }
    Ok(())
}

/// Sets one that need not be there.
pub fn set(key: &str, value: &str) {
    let _ = std::fs::write(Path::new(ROOT).join(key), value);
}
