//! System V shared memory is attached by the stubs themselves, so that the kernel counts it.
//!
//! A segment is always attached as a whole. What was unmapped, moved or protected since is done again to the pieces: they stay
//! pieces of one attachment, which shmdt(2) takes away together.

use super::layout;
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::resource::memory::{AddressSpace, Backing, Mapping, PAGE};
use crate::tracee::stub::Stub;
use std::collections::BTreeMap;

/// Attaches all segments of an address space, in a stub that has nothing mapped but itself and the kernel's pages.
pub fn attach(stub: &Stub, space: &AddressSpace, pool: &Pool) -> Result<()> {
    let mut attachments: BTreeMap<(u32, u64), Vec<(&Mapping, u64)>> = BTreeMap::new();
    for mapping in &space.mappings {
        if let Backing::Object { object, offset } = mapping.backing
            && pool.segment(object).is_some()
        {
            attachments.entry((object, mapping.start.wrapping_sub(offset))).or_default().push((mapping, offset));
        }
    }
    for ((object, _), pieces) in attachments {
        let Some((id, size)) = pool.segment(object) else { continue };
        let size = size.next_multiple_of(PAGE);
        if pieces.iter().any(|(m, offset)| offset.checked_add(m.len()).is_none_or(|end| end > size)) {
            return Err(Error::image(format!("image damaged: a mapping reaches beyond shared memory segment {id}")));
        }
        let writable = pieces.iter().any(|(m, _)| m.flags.iter().any(|f| f == "mw") || m.prot & libc::PROT_WRITE as u32 != 0);
        let executable = pieces.iter().any(|(m, _)| m.prot & libc::PROT_EXEC as u32 != 0);
        let flags = if writable { 0 } else { libc::SHM_RDONLY } | if executable { libc::SHM_EXEC } else { 0 };
        let whole = pieces.len() == 1 && pieces[0].0.len() == size;
        let at = if whole { pieces[0].0.start } else { gap(stub, space, size)? };
        let mut script = stub.script();
        script.expect("shmat", at, libc::SYS_shmat, &[id as u64, at, flags as u64])?;
        for &(mapping, offset) in &pieces {
            if !whole {
                const FIXED: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                let args = [at + offset, mapping.len(), mapping.len(), FIXED, mapping.start];
                script.expect("mremap of shared memory", mapping.start, libc::SYS_mremap, &args)?;
            }
            let given = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 } | if executable { libc::PROT_EXEC } else { 0 };
            if mapping.prot != given as u32 {
                script.call("mprotect", libc::SYS_mprotect, &[mapping.start, mapping.len(), u64::from(mapping.prot)])?;
            }
            layout::advise(&mut script, mapping)?;
        }
        if !whole {
            script.call("munmap of shared memory", libc::SYS_munmap, &[at, size])?;
        }
        script.run()?;
    }
    Ok(())
}

/// A place of `size` bytes that no mapping of the address space, nor the stub, will ever need.
fn gap(stub: &Stub, space: &AddressSpace, size: u64) -> Result<u64> {
    let mut taken: Vec<(u64, u64)> = space.mappings.iter().map(|m| (m.start, m.end)).collect();
    taken.push((stub.gadget.base, stub.gadget.end()));
    taken.push((0x7fff_ffff_f000, u64::MAX));
    taken.sort_unstable();
    let mut at = 0x10_0000;
    for (start, end) in taken {
        if start >= at && start - at >= size {
            return Ok(at);
        }
        at = at.max(end);
    }
    Err(Error::other("no room in an address space to attach shared memory"))
}
