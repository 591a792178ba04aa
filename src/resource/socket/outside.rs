//! Who outside of the tree has a hand on its sockets.

use crate::resource::capture::Capture;
use crate::resource::descriptor::FileKind;
use crate::sys::proc::read;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Processes outside of the tree by the inode of a socket that they hold. `tree` are the pids inside; meio itself and
/// what the tree has born since it was listed do not count.
pub fn holders(tree: &HashSet<i32>) -> HashMap<u64, Vec<i32>> {
    let own = std::process::id() as i32;
    let mut found: HashMap<u64, Vec<i32>> = HashMap::new();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter(|p| !tree.contains(p) && *p != own) {
        if read::is_below(pid, tree) {
            continue;
        }
        for fd in read::fds(pid).unwrap_or_default() {
            if let Some(inode) = read::fd_link(pid, fd).ok().as_deref().and_then(inode) {
                found.entry(inode).or_default().push(pid);
            }
        }
    }
    found
}

/// Refuses the sockets of the internet and packet families that somebody outside of the tree holds as well. Looked for
/// before the tree stands still: it takes its time.
pub fn refuse_shared(tree: &HashSet<i32>, capture: &mut Capture) {
    let shared = |kind: &FileKind| matches!(kind, FileKind::Tcp(_) | FileKind::Udp(_) | FileKind::Raw(_) | FileKind::Packet(_));
    let ids: Vec<usize> = (0..capture.files.len()).filter(|&id| shared(&capture.files[id].kind)).collect();
    if capture.standing || ids.is_empty() {
        return;
    }
    let holders = holders(tree);
    for id in ids {
        let link = capture.files[id].link.clone();
        let Some(who) = inode(link.as_bytes()).and_then(|inode| holders.get(&inode)) else { continue };
        let (pid, fd) = capture.holders[id];
        let reason = format!("the socket is also held by {}, outside of the tree", describe(Some(who)));
        capture.refuse(pid, format!("fd {fd} ({link})"), reason, "dump a process above both");
    }
}

/// `process 12 (sshd)`, or what can be said when nobody was found.
pub fn describe(pids: Option<&Vec<i32>>) -> String {
    let Some(&pid) = pids.and_then(|p| p.first()) else { return "a process that meio does not see".into() };
    let comm = read::read(pid, "comm").unwrap_or_default();
    format!("process {pid} ({})", String::from_utf8_lossy(&comm).trim())
}

/// The name of a socket as meio reaches it: a path that is relative was so for whoever bound it.
pub fn from_root(name: Vec<u8>, pids: Option<&Vec<i32>>) -> Vec<u8> {
    let cwd = pids.and_then(|p| std::fs::read_link(format!("/proc/{}/cwd", p.first()?)).ok());
    match cwd.map(|cwd| cwd.join(OsStr::from_bytes(&name))) {
        Some(path) if !matches!(name.first(), None | Some(0 | b'/')) && path.exists() => path.into_os_string().into_encoded_bytes(),
        _ => name,
    }
}

/// `socket:[123]`
fn inode(link: &[u8]) -> Option<u64> {
    std::str::from_utf8(link.strip_prefix(b"socket:[")?).ok()?.trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn links() {
        assert_eq!(inode(b"socket:[77]"), Some(77));
        assert_eq!(inode(b"pipe:[77]"), None);
        assert_eq!(describe(None), "a process that meio does not see");
    }
}
