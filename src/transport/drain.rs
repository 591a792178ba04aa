//! How fast the streams are: bytes that nobody needs go over them, and are counted at the other end.

use super::frame::{FIRST_KIND, Frame};
use super::{Destination, How, Peer, accept, connect_to};
use crate::error::{Error, Result};
use crate::progress::Report;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// The target says how many bytes have come, and their hash.
const COUNTED: u16 = FIRST_KIND;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// Bytes that went over.
    pub bytes: u64,
    /// From the first until the target had counted the last.
    pub took: Duration,
    /// From asking for the streams until they were open.
    pub opening: Duration,
    /// Whether they went beside ssh.
    pub direct: bool,
    /// How many came to the port of the streams who were somebody else.
    pub strangers: u64,
}

/// Sends `bytes` bytes to a target that throws them away.
///
/// # Errors
/// As `connect`; and when the target has counted something else.
pub fn measure(to: &Destination, how: &How, bytes: u64, report: &mut dyn Report) -> Result<Speed> {
    let mut peer = connect_to(to, how, "agent --drain", report)?;
    let begin = Instant::now();
    peer.open_bulk()?;
    let opening = begin.elapsed();
    let begin = Instant::now();
    let expected = send(&mut peer, bytes, report).map_err(|e| peer.link.explain(e))?;
    let frame = peer.link.receive(Some(Duration::from_secs(60)))?;
    let took = begin.elapsed();
    if frame.kind != COUNTED || frame.payload != expected {
        return Err(Error::link("the target has got something else than what was sent"));
    }
    Ok(Speed { bytes, took, opening, direct: peer.is_direct().unwrap_or_default(), strangers: peer.strangers() })
}

/// Sends so much; what the target is to say of it.
fn send(peer: &mut Peer, bytes: u64, report: &mut dyn Report) -> Result<Vec<u8>> {
    let mut sender = peer.sender()?;
    // Nothing that could be packed: every piece is another part of the same noise.
    let noise: Vec<u8> = (0..(1u64 << 20) + 4096).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let (mut done, mut told) = (0, Instant::now());
    while done < bytes {
        let n = (bytes - done).min(1 << 20) as usize;
        let from = (done >> 20) as usize % 4096;
        hash.update(&noise[from..from + n]);
        sender.write_all(&noise[from..from + n])?;
        done += n as u64;
        if told.elapsed() > Duration::from_millis(50) {
            told = Instant::now();
            report.bytes(done, Some(bytes));
        }
    }
    sender.end_item()?;
    sender.finish()?;
    Ok([bytes.to_le_bytes(), hash.digest().to_le_bytes()].concat())
}

/// `meio agent --drain`: the other end of [`measure`].
///
/// # Errors
/// When the link or a stream fails.
pub fn drain() -> Result<()> {
    let mut peer = accept()?;
    peer.open_bulk()?;
    let mut receiver = peer.receiver()?;
    let (mut count, mut hash) = (0u64, xxhash_rust::xxh3::Xxh3::new());
    let mut some = vec![0; 1 << 20];
    while let Some(mut item) = receiver.next_item()? {
        loop {
            match item.read(&mut some)? {
                0 => break,
                n => {
                    hash.update(&some[..n]);
                    count += n as u64;
                }
            }
        }
    }
    let payload = [count.to_le_bytes(), hash.digest().to_le_bytes()].concat();
    peer.link.send(&Frame { kind: COUNTED, generation: 0, payload })?;
    // The source ends the link; until then the streams stay.
    let _ = peer.link.receive(None);
    Ok(())
}
