//! Contexts of asynchronous I/O: io_setup(2).
//!
//! A context is known by the address of its ring, which is mapped into the process: completions that were not fetched yet
//! lie there, and a program may fetch them without the kernel (libaio's `io_getevents`). Whether requests are still under way is
//! told nowhere. Those of disks end by themselves within the latency of the disk, so a dump waits for a moment in which no
//! completion arrives and no block device is busy, and gives up when one arrives later on. What waits without limit
//! (`IOCB_CMD_POLL`) cannot be seen, and is lost: a restored program must submit it again.

use super::capture::Capture;
use super::memory::{Backing, Mapping};
use crate::error::Result;
use crate::sys::memory;
use crate::tracee::inject::Injector;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Size of one event, and of the header of the ring: `struct io_event` and `struct aio_ring` of fs/aio.c (Linux 3.1 to 6.18).
pub const EVENT: usize = 32;
/// `AIO_RING_MAGIC`.
const MAGIC: u32 = 0xa10a_10a1;
/// No completion for so long: nothing is under way on an idle machine.
const STEADY: Duration = Duration::from_millis(2);
/// The same while disks are busy, maybe for others.
const STEADY_BUSY: Duration = Duration::from_millis(25);
/// After this long a program that was stopped has something in flight that does not end.
const PATIENCE: Duration = Duration::from_millis(200);

/// The ring of one context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ring {
    /// Where it is mapped; the number of the context.
    pub start: u64,
    /// Events that it can hold.
    pub nr: u32,
    /// Place of the next event to be fetched.
    pub head: u32,
    /// Place of the next event to come.
    pub tail: u32,
    /// The events from `head` to `tail`, [`EVENT`] bytes each.
    #[serde(with = "crate::image::bytes")]
    pub events: Vec<u8>,
}

/// A ring as it was when it was saved.
#[derive(Debug)]
pub struct Seen {
    pid: i32,
    start: u64,
    tail: u32,
}

/// Whether a mapping is the ring of a context.
pub fn is_ring(mapping: &Mapping) -> bool {
    mapping.backing == Backing::Kernel && mapping.name.starts_with("/[aio]")
}

/// Saves all contexts of a stopped process.
pub fn capture(run: &mut Injector<'_>, pid: i32, mappings: &[Mapping], capture: &mut Capture) -> Result<Vec<Ring>> {
    let mut rings = Vec::new();
    for mapping in mappings.iter().filter(|m| is_ring(m)) {
        let object = format!("mapping {:x}-{:x} ({})", mapping.start, mapping.end, mapping.name);
        // Asked for no events it says only whether there is such a context.
        if run.call(libc::SYS_io_getevents, [mapping.start, 0, 0, 0, 0, 0])? != 0 {
            let reason = "it is the ring of another process's context (io_setup), inherited by fork";
            capture.refuse(pid, object, reason, "let the program unmap it, or start it differently: it is of no use to it");
            continue;
        }
        match read(pid, mapping)? {
            Some(ring) => {
                capture.rings.push(Seen { pid, start: ring.start, tail: ring.tail });
                rings.push(ring);
            }
            None => capture.refuse(pid, object, "the ring of a context (io_setup) is damaged, or of another kernel", "io_destroy it first"),
        }
    }
    if !rings.is_empty() {
        capture.warnings.push(format!(
            "process {pid} has contexts of asynchronous I/O: if it polls there (IOCB_CMD_POLL), which nobody can see, that is not kept"
        ));
    }
    Ok(rings)
}

/// Reads a ring when nothing has arrived in it for a moment.
fn read(pid: i32, mapping: &Mapping) -> Result<Option<Ring>> {
    let begin = Instant::now();
    let mut since = begin;
    let mut tail = word(pid, mapping.start, 3)?;
    loop {
        let busy = disks_are_busy();
        if since.elapsed() >= if busy { STEADY_BUSY } else { STEADY } || begin.elapsed() > PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_micros(500));
        let now = word(pid, mapping.start, 3)?;
        if now != tail {
            (tail, since) = (now, Instant::now());
        }
    }
    let mut bytes = vec![0; mapping.len() as usize];
    memory::read(pid, mapping.start, &mut bytes)?;
    Ok(Ring::parse(mapping.start, &bytes))
}

/// Whether a completion has arrived in one of these rings since it was saved.
pub fn moved(rings: &[Seen]) -> bool {
    rings.iter().any(|seen| word(seen.pid, seen.start, 3).is_ok_and(|tail| tail != seen.tail))
}

fn word(pid: i32, start: u64, n: u64) -> Result<u32> {
    let mut bytes = [0; 4];
    memory::read(pid, start + n * 4, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// `/sys/block/DISK/inflight`: reads and writes that the disk has not answered.
fn disks_are_busy() -> bool {
    let disks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut inflight = disks.filter_map(|disk| std::fs::read_to_string(disk.path().join("inflight")).ok());
    inflight.any(|text| text.split_whitespace().any(|n| n != "0"))
}

impl Ring {
    /// Reads `struct aio_ring`; `None` when it cannot be one.
    fn parse(start: u64, bytes: &[u8]) -> Option<Ring> {
        let word = |n: usize| bytes.get(n * 4..n * 4 + 4).map(|b| u32::from_le_bytes(b.try_into().unwrap_or_default()));
        let (nr, magic, header) = (word(1)?, word(4)?, word(7)?);
        let fits = (magic, header as usize) == (MAGIC, EVENT) && nr as usize == bytes.len() / EVENT - 1;
        // The kernel itself takes them modulo the size: they can be written to.
        let (head, tail) = fits.then(|| Some((word(2)? % nr, word(3)? % nr)))??;
        let mut ring = Ring { start, nr, head, tail, events: Vec::new() };
        for place in ring.places() {
            ring.events.extend_from_slice(bytes.get(offset(place)..offset(place) + EVENT)?);
        }
        Some(ring)
    }

    /// Places of the events that were not fetched, in their order.
    fn places(&self) -> impl Iterator<Item = u32> + use<> {
        let (head, nr) = (self.head, self.nr.max(1));
        (0..self.unread()).map(move |n| (head + n) % nr)
    }

    /// How many events were not fetched.
    pub fn unread(&self) -> u32 {
        let nr = self.nr.max(1);
        (self.tail + nr - self.head % nr) % nr
    }

    /// What io_setup(2) must be asked for to get a ring of this size: the least, since `/proc/sys/fs/aio-nr` counts it. The kernel
    /// doubles it and adds two, and makes whole pages of that and the header.
    pub fn asked(&self) -> u32 {
        let pages = (self.nr + 1) / (super::memory::PAGE as u32 / EVENT as u32);
        (pages.saturating_sub(1) * 64).saturating_sub(1).max(1)
    }

    /// Each event with its offset in the ring.
    pub fn placed(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.places().map(|place| offset(place) as u64).zip(self.events.chunks(EVENT))
    }

    /// Whether its numbers are possible in a mapping of this size.
    pub fn fits(&self, len: u64) -> bool {
        u64::from(self.nr) + 1 == len / EVENT as u64
            && self.nr < 1 << 23
            && self.head < self.nr
            && self.tail < self.nr
            && self.events.len() == self.unread() as usize * EVENT
    }
}

fn offset(place: u32) -> usize {
    (place as usize + 1) * EVENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(head: u32, tail: u32) -> Vec<u8> {
        let mut bytes: Vec<u8> = [7, 127, head, tail, MAGIC, 1, 0, 32].iter().flat_map(|w: &u32| w.to_le_bytes()).collect();
        for place in 0..127u8 {
            bytes.extend([place; EVENT]);
        }
        bytes
    }

    #[test]
    fn a_ring_that_has_wrapped() {
        let ring = Ring::parse(0x1000, &page(125, 2)).unwrap();
        assert_eq!((ring.unread(), ring.asked()), (4, 1));
        let placed: Vec<(u64, u8)> = ring.placed().map(|(at, event)| (at, event[0])).collect();
        assert_eq!(placed, [(126 * 32, 125), (127 * 32, 126), (32, 0), (64, 1)]);
        assert!(ring.fits(4096) && !ring.fits(8192));
        assert!(!Ring { head: 127, ..ring.clone() }.fits(4096) && !Ring { tail: 3, ..ring }.fits(4096));
    }

    #[test]
    fn what_is_no_ring() {
        let mut other = page(0, 1);
        other[16] = 0;
        assert_eq!(Ring::parse(0, &other), None);
        assert_eq!(Ring::parse(0, &page(0, 1)[..2048]), None);
        assert_eq!(Ring::parse(0, &[]), None);
    }

    #[test]
    fn the_least_that_gives_so_many_pages() {
        for pages in 1..2000u32 {
            let ring = Ring { nr: pages * 128 - 1, ..Ring::default() };
            let made = |asked: u32| (EVENT as u32 * (1 + 2 * asked + 2)).div_ceil(4096);
            assert_eq!(made(ring.asked()), pages, "{}", ring.asked());
            assert!(pages == 1 || made(ring.asked() - 1) < pages);
        }
    }
}
