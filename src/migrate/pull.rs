//! The target's side of pages that come after the tree runs: the process that brings them to where they are missing
//! ([`crate::restore`]) asks the agent, which asks the source.
//!
//! Blocks that somebody waits for go over the control link, one after the other; all come, in order and unasked, over the streams
//! of bulk. To the process that brings them each is a socket. When one of them ends too early that process ends the tree: so a
//! link that is lost, and an agent that dies, never let it find anything else in place of a page.
//!
//! Each block is a number, a length (4 bytes each, little-endian) and so many bytes: one that says how it is packed, and the data.

use super::PAGES;
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Elsewhere, Left};
use crate::transport::{Beside, Frame};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Before the blocks on a stream of bulk, where an image has another word.
pub const BEGIN: [u8; 8] = *b"MEIOREST";
/// Bytes before a block.
pub const HEADER: usize = 8;
/// As it is.
const PLAIN: u8 = 0;
/// A zstd frame.
const PACKED: u8 = 1;
/// No block is asked for any more: all are there.
const WHOLE: u32 = u32::MAX;
/// They cannot be brought: why follows, to the end.
const FAILED: u32 = u32::MAX - 1;

fn lost(e: impl std::fmt::Display) -> Error {
    Error::new(Kind::LinkFailed, format!("the source cannot be asked for pages any more ({e})"))
}

/// A block as it travels; `level` of zstd.
pub fn pack(block: u32, data: &[u8], level: Option<i32>) -> Result<Vec<u8>> {
    let packed = match level {
        Some(level) => Some(zstd::bulk::compress(data, level)?).filter(|packed| packed.len() < data.len()),
        None => None,
    };
    let (how, bytes) = packed.as_deref().map_or((PLAIN, data), |packed| (PACKED, packed));
    let mut all = Vec::with_capacity(HEADER + 1 + bytes.len());
    all.extend(block.to_le_bytes());
    all.extend((1 + bytes.len() as u32).to_le_bytes());
    all.push(how);
    all.extend(bytes);
    Ok(all)
}

/// Where such pages are, for the process that brings them.
#[derive(Debug)]
pub struct Far {
    asks: Mutex<UnixStream>,
    stream: Mutex<Stream>,
    left: Arc<Vec<Left>>,
    /// As long as somebody has it, the tree is being brought its pages.
    at_work: File,
}

#[derive(Debug)]
struct Stream {
    socket: UnixStream,
    /// The block that comes next.
    next: u32,
}

/// The agent's ends.
pub struct Near {
    asks: UnixStream,
    /// Where blocks from the streams of bulk are put.
    pub stream: Option<UnixStream>,
    /// The other ends.
    far: Option<(UnixStream, UnixStream)>,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// All pages are there.
    Whole,
    /// They cannot be brought any more, for this reason, and nothing runs.
    Ended(String),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Near {
    /// Both pairs.
    pub fn new() -> Result<Near> {
        let pair = || UnixStream::pair().context(|| "making a socket pair");
        let ((asks, far_asks), (stream, far_stream)) = (pair()?, pair()?);
        Ok(Near { asks, stream: Some(stream), far: Some((far_asks, far_stream)) })
    }

    /// Begins to hand on what is asked for; what becomes of it is told once.
    pub fn begin(&mut self, left: Arc<Vec<Left>>, at_work: File, beside: Beside) -> Result<(Far, mpsc::Receiver<Told>)> {
        let (asks, socket) = self.far.take().ok_or_else(|| Error::other("pages are asked for twice"))?;
        let (mut own, (tell, told)) = (self.asks.try_clone()?, mpsc::channel());
        let work = move || hand_on(&mut own, &beside, &tell);
        std::thread::Builder::new().name("pages".into()).spawn(work).context(|| "cannot start a thread")?;
        Ok((Far { asks: asks.into(), stream: Stream { socket, next: 0 }.into(), left, at_work }, told))
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        // The thread has it, too.
        let _ = self.asks.shutdown(std::net::Shutdown::Write);
    }
}

/// Asks the source for what is asked of the agent.
fn hand_on(asks: &mut UnixStream, beside: &Beside, tell: &Sender<Told>) {
    let mut number = [0; 4];
    let mut why = String::new();
    while asks.read_exact(&mut number).is_ok() {
        match u32::from_le_bytes(number) {
            WHOLE => {
                let _ = tell.send(Told::Whole);
                return;
            }
            FAILED => {
                let _ = asks.read_to_string(&mut why);
                break;
            }
            _ => {}
        }
        let answer = ask(beside, number).and_then(|block| Ok(asks.write_all(&block)?));
        if answer.is_err() {
            // It is told so, and ends the tree; that it has done that is heard next.
            let _ = asks.shutdown(std::net::Shutdown::Write);
        }
    }
    let _ = tell.send(Told::Ended(why));
}

fn ask(beside: &Beside, number: [u8; 4]) -> Result<Vec<u8>> {
    beside.send(&Frame { kind: PAGES, generation: 1, payload: number.to_vec() })?;
    loop {
        let Some(frame) = beside.receive(Duration::from_secs(1))? else { continue };
        if frame.kind == PAGES && frame.payload.starts_with(&number) {
            return Ok(frame.payload);
        }
    }
}

/// Reads one: its number and how it is packed, then the data.
fn receive(from: &mut UnixStream, most: usize) -> Result<(u32, Vec<u8>)> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).map_err(lost)?;
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let (block, length) = (word(0), word(4) as usize);
    if length == 0 || length > 1 + most {
        return Err(lost("a block is longer than it can be"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).map_err(lost)?;
    Ok((block, bytes))
}

impl Far {
    fn most(&self) -> usize {
        self.left.iter().map(Left::bytes).max().unwrap_or(0)
    }

    fn unpack(&self, block: u32, packed: &[u8], mut buffer: Vec<u8>) -> Result<Vec<u8>> {
        let wrong = || Error::other(format!("block {block} came as something else"));
        let bytes = self.left.get(block as usize).ok_or_else(wrong)?.bytes();
        buffer.clear();
        match packed.split_first() {
            Some((&PLAIN, data)) => buffer.extend_from_slice(data),
            Some((&PACKED, data)) => {
                buffer.resize(bytes, 0);
                let came = zstd::bulk::decompress_to_buffer(data, &mut buffer[..]).map_err(|_| wrong())?;
                buffer.truncate(came);
            }
            _ => {}
        }
        if buffer.len() == bytes { Ok(buffer) } else { Err(wrong()) }
    }
}

impl Elsewhere for Far {
    fn urgent(&self, block: u32, buffer: Vec<u8>) -> Result<Vec<u8>> {
        let mut asks = locked(&self.asks);
        asks.write_all(&block.to_le_bytes()).map_err(lost)?;
        let (number, packed) = receive(&mut asks, self.most())?;
        drop(asks);
        if number != block {
            return Err(lost("another block has come than was asked for"));
        }
        self.unpack(block, &packed, buffer)
    }

    fn in_order(&self, block: u32, buffer: Vec<u8>) -> Result<Vec<u8>> {
        let mut stream = locked(&self.stream);
        while stream.next <= block {
            let (number, packed) = receive(&mut stream.socket, self.most())?;
            if number != stream.next {
                return Err(lost("blocks do not come in order"));
            }
            stream.next += 1;
            if number == block {
                return self.unpack(block, &packed, buffer);
            }
        }
        drop(stream);
        self.urgent(block, buffer)
    }

    fn files(&self) -> Vec<i32> {
        let stream = locked(&self.stream).socket.as_raw_fd();
        vec![locked(&self.asks).as_raw_fd(), stream, self.at_work.as_raw_fd()]
    }

    fn over(&self, failure: Option<&Error>) {
        let mut asks = locked(&self.asks);
        // Whoever does not hear it looks whether everything lives.
        let _ = match failure {
            None => asks.write_all(&WHOLE.to_le_bytes()),
            Some(e) => asks.write_all(&[&FAILED.to_le_bytes(), e.message.as_bytes()].concat()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Owner, PAGE};

    fn far(blocks: u32) -> (Far, UnixStream, UnixStream) {
        let ((asks, near_asks), (socket, near)) = (UnixStream::pair().expect("a pair"), UnixStream::pair().expect("a pair"));
        let one = |n: u32| Left {
            owner: Owner::Process(1),
            ranges: vec![(u64::from(n) * 3 * PAGE as u64, 1), (u64::from(n) * 3 * PAGE as u64 + 2 * PAGE as u64, 1)],
        };
        let left = Arc::new((0..blocks).map(one).collect());
        let at_work = File::open("/dev/null").expect("a file");
        (Far { asks: asks.into(), stream: Stream { socket, next: 0 }.into(), left, at_work }, near_asks, near)
    }

    fn content(block: u32) -> Vec<u8> {
        (0..2 * PAGE).map(|i| (i as u32 / 700 * (block + 3)) as u8).collect()
    }

    #[test]
    fn blocks_come_in_order_and_when_they_are_asked_for() {
        let (far, mut asks, mut stream) = far(6);
        for (block, level) in (0..6).zip([None, Some(1)].into_iter().cycle()) {
            stream.write_all(&pack(block, &content(block), level).expect("packed")).expect("written");
        }
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut number = [0; 4];
                for expected in [5, 1] {
                    asks.read_exact(&mut number).expect("a number");
                    assert_eq!(u32::from_le_bytes(number), expected);
                    asks.write_all(&pack(expected, &content(expected), Some(3)).expect("packed")).expect("written");
                }
                asks.read_exact(&mut number).expect("a number");
                assert_eq!(u32::from_le_bytes(number), WHOLE);
            });
            assert_eq!(far.in_order(0, Vec::new()).expect("a block"), content(0));
            assert_eq!(far.urgent(5, vec![1; 9]).expect("a block"), content(5));
            // What is passed over comes when it is asked for.
            assert_eq!(far.in_order(2, Vec::new()).expect("a block"), content(2));
            assert_eq!(far.in_order(1, Vec::new()).expect("a block"), content(1));
            assert_eq!(far.in_order(5, Vec::new()).expect("a block"), content(5));
            far.over(None);
        });
        assert_eq!(far.urgent(3, Vec::new()).expect_err("nobody answers").kind, Kind::LinkFailed);
    }

    #[test]
    fn what_is_no_such_block_is_not_taken() {
        let wrong = |bytes: &[u8]| {
            let (far, _asks, mut stream) = far(1);
            stream.write_all(bytes).expect("written");
            drop(stream);
            far.in_order(0, Vec::new()).expect_err("no block")
        };
        let good = pack(0, &content(0), None).expect("packed");
        for length in [0, 4, HEADER, good.len() - 1] {
            wrong(&good[..length]);
        }
        wrong(&pack(1, &content(1), None).expect("packed"));
        wrong(&pack(0, &content(0)[1..], None).expect("packed"));
        wrong(&pack(0, &[content(0), content(0)].concat(), Some(1)).expect("packed"));
        wrong(&[0, 0, 0, 0, 255, 255, 255, 255, 0]);
        let mut other = good;
        other[HEADER] = 7;
        wrong(&other);
    }
}
