//! Whether a tree that still runs elsewhere could be brought back here: everything that stands in the way, all at once.
//! Nothing is made for that, and nothing is promised: what the tree does meanwhile is found when it comes.

use super::check::{self, lesser_processor};
use super::places::Places;
use crate::error::{Error, Refusal, Result};
use crate::resource::path::FilePath;
use crate::resource::{Manifest, Tree};
use crate::sys::arch;
use crate::sys::room::available;
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

/// What the tree will need.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// It is to live in a pid namespace of its own.
    pub pid_namespace: bool,
    /// Addresses that will be here when it comes.
    pub arriving: &'a [(IpAddr, u8)],
    /// Bytes of its memory.
    pub memory: u64,
    /// Where its images are put until they are not needed any more.
    pub spool: &'a Path,
    /// Files about which somebody else answers.
    pub settled: &'a HashSet<FilePath>,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// What stands in the way.
    pub refusals: Vec<Refusal>,
    /// What will be different.
    pub warnings: Vec<String>,
}

/// Looks at this machine for a tree.
///
/// # Errors
/// When the tree makes no sense; what stands in its way is no error.
pub fn fits(manifest: &Manifest, tree: &Tree, needs: Needs<'_>) -> Result<Found> {
    let mut found = Found::default();
    let mut gather = |done: Result<()>| match done {
        Err(e) if e.refusals.is_empty() => found.refusals.push(whole(tree, &e)),
        Err(e) => found.refusals.extend(e.refusals),
        Ok(()) => {}
    };
    gather(check::check(manifest, tree, needs.pid_namespace, needs.arriving));
    // What is in mount namespaces of the tree's own comes with it.
    if tree.processes.iter().all(|p| p.places.of(&tree.namespaces, crate::sys::namespace::Kind::Mnt).is_none()) {
        gather(check::files(tree, &Places::new(tree, 0), needs.settled));
    }
    found.refusals.extend(room(tree, needs));
    found.warnings.extend(lesser_processor(manifest));
    let lacking = manifest.xfeatures & !arch::xfeatures();
    if lacking != 0 {
        found
            .warnings
            .push(format!("vector registers of the source are missing here (XCR0 bits {lacking:#x}): a thread that uses them cannot come"));
    }
    Ok(found)
}

fn whole(tree: &Tree, e: &Error) -> Refusal {
    let pid = tree.processes.first().map_or(0, |p| p.pid);
    Refusal { pid, object: "tree".into(), reason: e.message.clone(), advice: e.help.clone().unwrap_or_default(), ..Refusal::default() }
}

/// Memory for the tree, and disk for its images.
fn room(tree: &Tree, needs: Needs<'_>) -> Vec<Refusal> {
    let pid = tree.processes.first().map_or(0, |p| p.pid);
    let refuse =
        |object: String, reason: String, advice: &str| Refusal { pid, object, reason, advice: advice.to_owned(), ..Refusal::default() };
    let mut refusals = Vec::new();
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let free = available();
    if free < needs.memory {
        let reason = format!("it has {} MiB of memory, and {} MiB are free here", mib(needs.memory), mib(free));
        refusals.push(refuse("memory".into(), reason, "end something on the target, or choose another one"));
    }
    // Images are packed as a rule; this is what they are at worst.
    let free = nix::sys::statvfs::statvfs(needs.spool).map(|s| s.blocks_available() * s.fragment_size());
    if let Ok(free) = free
        && free < needs.memory
    {
        let reason = format!("its images may need {} MiB, and {} MiB are free there", mib(needs.memory), mib(free));
        refusals.push(refuse(format!("folder {}", needs.spool.display()), reason, "make room there, or name another folder with --spool"));
    }
    refusals
}
