//! Memory policies of NUMA: which nodes the memory of a mapping, or what a task allocates, shall come from.
//!
//! `/proc/PID/numa_maps` shows the task's policy where a mapping has none of its own, and it walks every page table:
//! it tells which mappings to ask about, get_mempolicy(2) with `MPOL_F_ADDR` tells the truth about each. Where the
//! walk would take longer than asking, all are asked about. A shared mapping's policy belongs to what is mapped; it is
//! asked for at the mapping's first page. The home node (set_mempolicy_home_node(2)) can be asked of nobody.

use crate::error::Result;
use crate::sys::proc::maps::Vma;
use crate::sys::proc::read;
use crate::tracee::inject::Injector;
use crate::tracee::stub::{Script, Stub};
use crate::tracee::volley::{Answer, Question};
use nix::errno::Errno;
use std::collections::HashSet;

/// Mode with its flags and the mask of nodes, as set_mempolicy(2) takes them.
pub type Policy = (u32, Vec<u64>);

/// Longest node mask, in words: `CONFIG_NODES_SHIFT` is 10 at most.
pub const NODES: usize = 16;
/// Pages that numa_maps counts in the time of one injected call (30 ns, 15 µs).
pub const PAGES_PER_CALL: u64 = 500;
const MPOL_F_ADDR: u64 = 1 << 1;

/// What get_mempolicy(2) has left: the mode, and the mask of [`NODES`] words.
pub fn policy(mode: [u8; 4], mask: &[u8]) -> Option<Policy> {
    let mode = u32::from_le_bytes(mode);
    let mut nodes: Vec<u64> = mask.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default())).collect();
    nodes.truncate(nodes.iter().rposition(|&w| w != 0).map_or(0, |at| at + 1));
    (mode != libc::MPOL_DEFAULT as u32).then_some((mode, nodes))
}

/// First addresses of those mappings that may have a policy of their own.
pub fn suspects(pid: i32, vmas: &[Vma]) -> HashSet<u64> {
    let pages: u64 = vmas.iter().map(|v| v.rss_kib / 4).sum();
    if pages > PAGES_PER_CALL * vmas.len() as u64 {
        return vmas.iter().map(|v| v.start).collect();
    }
    // A kernel without NUMA has no such file, and no policies.
    read::read(pid, "numa_maps").map(|text| not_default(&text)).unwrap_or_default()
}

/// Whether all tasks of a process that stands still surely have one policy: numa_maps of each begins the same, with a mapping
/// that has none of its own (`plain`). Flags stand for more nodes than the text shows.
pub fn are_alike(pid: i32, mut tids: impl Iterator<Item = i32>, plain: bool) -> bool {
    let begin = |tid: i32| read::begin(pid, tid, "numa_maps");
    match tids.next().map(begin) {
        None | Some(Err(_)) => true, // a kernel without NUMA
        Some(Ok(first)) => {
            plain
                && memchr::memmem::find(&first, b"=").is_none_or(|at| !flagged(&first[at..]))
                && tids.all(|tid| begin(tid).is_ok_and(|text| text == first))
        }
    }
}

/// Flags of a mode, as mpol_to_str() of the kernel writes them.
fn flagged(text: &[u8]) -> bool {
    [&b"=static"[..], b"=relative", b"=balancing"].iter().any(|flag| text.starts_with(flag))
}

/// Lines of numa(7) `numa_maps` are address, policy, counts.
fn not_default(text: &[u8]) -> HashSet<u64> {
    let address = |line: &[u8]| {
        let at = line.iter().position(|&b| b == b' ')?;
        let start = u64::from_str_radix(std::str::from_utf8(&line[..at]).ok()?, 16).ok()?;
        let policy = &line[at + 1..];
        (policy.split(|&b| b == b' ').next() != Some(b"default")).then_some(start)
    };
    text.split(|&b| b == b'\n').filter_map(address).collect()
}

/// Asks a task for its own policy: mode, and behind it the mask.
pub fn question() -> Question {
    let call = Question::new(libc::SYS_get_mempolicy, [0, 0, NODES as u64 * 64, 0, 0, 0]);
    call.leaving(0, 4).leaving_at(1, 8, NODES as u64 * 8)
}

/// The policy that it has told.
pub fn answer(answer: &Answer) -> Option<Policy> {
    let mask = answer.get::<{ NODES * 8 }>(8);
    if answer.returned == 0 { policy(answer.get(0), &mask) } else { None }
}

/// The policy of the mapping at this address.
pub fn ask(run: &mut Injector<'_>, address: u64) -> Result<Option<Policy>> {
    let (mode, mask) = (run.out(), run.out() + 8);
    if run.call(libc::SYS_get_mempolicy, [mode, mask, NODES as u64 * 64, address, MPOL_F_ADDR, 0])? != 0 {
        return Ok(None); // a kernel without NUMA; a mapping that has none
    }
    Ok(policy(run.get(0)?, &run.get::<{ NODES * 8 }>(8)?))
}

fn mask(script: &mut Script<'_>, nodes: &[u64]) -> (u64, u64) {
    let mut mask = nodes.to_vec();
    mask.resize(NODES, 0);
    (script.data(&mask.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>()), NODES as u64 * 64)
}

/// Gives mappings their policies before they have content. A warning for those that do not hold: the nodes may not be here.
pub fn bind(stub: &Stub, mappings: &[(u64, u64, &Policy)], name: i32) -> Result<Vec<String>> {
    if mappings.is_empty() {
        return Ok(Vec::new());
    }
    let mut script = stub.script();
    for (start, len, (mode, nodes)) in mappings {
        let (at, bits) = mask(&mut script, nodes);
        script.attempt("mbind", libc::SYS_mbind, &[*start, *len, u64::from(*mode), at, bits, 0])?;
    }
    let results = script.run()?.results;
    let failed = mappings.iter().zip(results).filter(|(_, result)| *result != 0);
    let words = |((start, _, policy), result): (&(u64, u64, &Policy), i64)| {
        format!("process {name}: the mapping at {start:x} has no NUMA policy now ({}): {}", mode(policy), Errno::from_raw(-result as i32))
    };
    Ok(failed.map(words).collect())
}

/// Gives a task its policy; a warning when it does not hold.
pub fn set(stub: &Stub, policy: &Policy, name: i32) -> Result<Option<String>> {
    let mut script = stub.script();
    let (at, bits) = mask(&mut script, &policy.1);
    script.attempt("set_mempolicy", libc::SYS_set_mempolicy, &[u64::from(policy.0), at, bits])?;
    let result = script.run()?.results.first().copied().unwrap_or(0);
    Ok((result != 0).then(|| format!("task {name}: it has no NUMA policy now ({}): {}", mode(policy), Errno::from_raw(-result as i32))))
}

/// In words that a warning can use.
fn mode((mode, nodes): &Policy) -> String {
    const NAMES: [&str; 7] = ["default", "preferred", "bind", "interleave", "local", "preferred many", "weighted interleave"];
    let nodes: Vec<String> = (0..nodes.len() * 64).filter(|n| nodes[n / 64] >> (n % 64) & 1 != 0).map(|n| n.to_string()).collect();
    format!("{} {}", NAMES.get((mode & 0xff) as usize).unwrap_or(&"mode unknown"), nodes.join(",")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_numa_maps() {
        let text = b"00400000 default file=/bin/x mapped=1 N0=1\n7f0000000000 bind=static:0 anon=3 N0=3\n\
            7f0000100000 prefer (many):0-1 anon=1\n7f0000200000 default\n7f0000300000 local anon=2\nodd\n";
        let mut found: Vec<u64> = not_default(text).into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, [0x7f00_0000_0000, 0x7f00_0010_0000, 0x7f00_0030_0000]);
    }

    #[test]
    fn own_tasks_are_alike() {
        let own = std::process::id() as i32;
        assert!(are_alike(own, [own, own].into_iter(), true));
        assert!(flagged(b"=static:0 anon=3") && !flagged(b"=/bin/x mapped=1"));
    }

    #[test]
    fn answers_of_get_mempolicy() {
        assert_eq!(policy(0u32.to_le_bytes(), &[0; 16]), None);
        let two = [5u64, 0].map(u64::to_le_bytes).concat();
        assert_eq!(policy(0x8002u32.to_le_bytes(), &two), Some((0x8002, vec![5])));
        assert_eq!(policy(4u32.to_le_bytes(), &[0; 128]), Some((4, vec![])));
    }

    #[test]
    fn policies_in_words() {
        assert_eq!(mode(&(0x8002, vec![5])), "bind 0,2");
        assert_eq!(mode(&(4, vec![])), "local");
        assert_eq!(mode(&(3, vec![0, 1])), "interleave 64");
    }
}
