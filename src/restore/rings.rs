//! Contexts of asynchronous I/O are made by the stubs themselves. The kernel chooses where a ring lies, lets it be moved,
//! and counts on its own at which place the next event goes: so the stub completes as many requests for nothing as bring it
//! there, and the events are put over theirs.

use super::layout;
use crate::error::{Context, Error, Kind, Result};
use crate::resource::aio::{EVENT, Ring, is_ring};
use crate::resource::memory::{AddressSpace, Mapping};
use crate::sys::{memory, task};
use crate::tracee::stub::Stub;

/// Requests that are submitted by one call.
const BATCH: u32 = 512;

/// What may be missing in them.
pub fn warning(pid: i32, rings: &[Ring]) -> Option<String> {
    let words = "what it may have polled for by asynchronous I/O (IOCB_CMD_POLL) must be submitted again";
    (!rings.is_empty()).then(|| format!("process {pid}: {words}"))
}

/// Makes the contexts of a process whose other memory is mapped.
pub fn make(stub: &Stub, space: &AddressSpace, rings: &[Ring]) -> Result<()> {
    let mappings: Vec<&Mapping> = space.mappings.iter().filter(|m| is_ring(m)).collect();
    let pairs = mappings.iter().copied().zip(rings).filter(|(m, ring)| m.start == ring.start && ring.fits(m.len()));
    if mappings.len() != rings.len() || pairs.clone().count() != rings.len() {
        return Err(Error::image("image damaged: a context of asynchronous I/O does not fit its memory"));
    }
    if rings.is_empty() {
        return Ok(());
    }
    // None of them may come to lie where another belongs.
    let mut script = stub.script();
    for mapping in &mappings {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let args = [mapping.start, mapping.len(), libc::PROT_NONE as u64, flags as u64, u64::MAX, 0];
        script.expect("mmap", mapping.start, libc::SYS_mmap, &args)?;
    }
    let name = script.text(b"aio");
    script.call("memfd_create", libc::SYS_memfd_create, &[name, 0])?;
    let fd = *script.run()?.results.last().unwrap_or(&-1);
    // Free places are handed out to processors in lots.
    let processors = task::affinity(stub.tid)?;
    let first = processors.iter().position(|b| *b != 0).map_or(0, |n| n * 8 + processors[n].trailing_zeros() as usize);
    let mut one = vec![0; processors.len()];
    one[first / 8] = 1 << (first % 8);
    task::set_affinity(stub.tid, &one)?;
    for (mapping, ring) in pairs {
        context(stub, mapping, ring, fd).context(|| "making a context of asynchronous I/O")?;
    }
    task::set_affinity(stub.tid, &processors)?;
    let mut script = stub.script();
    script.call("close", libc::SYS_close, &[fd as u64])?;
    script.run().map(drop)
}

fn context(stub: &Stub, mapping: &Mapping, ring: &Ring, fd: i64) -> Result<()> {
    let mut script = stub.script();
    let id = script.data(&[0; 8]);
    script.attempt("io_setup", libc::SYS_io_setup, &[u64::from(ring.asked()), id])?;
    match script.run()?.results.last() {
        Some(0) => {}
        Some(&e) if e == -i64::from(libc::EAGAIN) => {
            return Err(Error::new(Kind::Permission, "io_setup: too many contexts").help("raise /proc/sys/fs/aio-max-nr"));
        }
        Some(&e) => return Err(nix::errno::Errno::from_raw(-e as i32).into()),
        None => return Err(Error::other("io_setup was not made")),
    }
    let mut at = [0; 8];
    memory::read(stub.pid, id, &mut at)?;
    let at = u64::from_le_bytes(at);
    let mut header = [0; 8];
    memory::read(stub.pid, at, &mut header)?;
    if header[4..] != ring.nr.to_le_bytes() {
        let nr = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let reason = format!("a ring of {} events cannot be had here, only one of {nr}: it depends on the number of processors", ring.nr);
        return Err(Error::new(Kind::Unsupported, reason));
    }
    const FIXED: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let mut script = stub.script();
    let args = [at, mapping.len(), mapping.len(), FIXED, mapping.start];
    script.expect("mremap of a ring", mapping.start, libc::SYS_mremap, &args)?;
    script.run()?;
    turn(stub, ring, fd)?;
    for (offset, event) in ring.placed() {
        memory::write(stub.pid, ring.start + offset, event)?;
    }
    let mut script = stub.script();
    if mapping.prot != (libc::PROT_READ | libc::PROT_WRITE) as u32 {
        script.call("mprotect", libc::SYS_mprotect, &[mapping.start, mapping.len(), u64::from(mapping.prot)])?;
    }
    layout::advise(&mut script, mapping)?;
    script.run().map(drop)
}

/// Brings a new ring to where its events begin and end: up to `head` events are made and fetched, from there on left.
fn turn(stub: &Stub, ring: &Ring, fd: i64) -> Result<()> {
    for (count, fetch) in [(ring.head, true), (ring.unread(), false)] {
        let mut left = count;
        while left > 0 {
            // Half of them at most may be under way: the rest may be in other lots.
            let n = left.min(BATCH).min(if fetch { (ring.nr / 2).max(1) } else { BATCH });
            let mut script = stub.script();
            // struct iocb: a read of nothing (IOCB_CMD_PREAD, which is 0) from an empty file.
            let mut request = [0u8; 64];
            request[20..24].copy_from_slice(&(fd as u32).to_le_bytes());
            let request = script.data(&request);
            let list = script.data(&request.to_le_bytes().repeat(n as usize));
            script.expect("io_submit", u64::from(n), libc::SYS_io_submit, &[ring.start, u64::from(n), list])?;
            if fetch {
                let buffer = script.data(&vec![0; n as usize * EVENT]);
                let args = [ring.start, u64::from(n), u64::from(n), buffer, 0];
                script.expect("io_getevents", u64::from(n), libc::SYS_io_getevents, &args)?;
            }
            script.run()?;
            left -= n;
        }
    }
    Ok(())
}
