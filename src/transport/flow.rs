//! The two ends of the streams of bulk: chunks in order, over whichever stream is free.
//!
//! A chunk is a header of 16 bytes (number: 8, bytes: 4, flags: 4, little-endian) and at most [`CHUNK`] bytes. Both
//! ends hold a bounded number of chunks: who sends waits for the streams, and these wait for who receives.

use super::direct::Stream;
use super::limit::Limit;
use super::link::locked;
use crate::error::{Context, Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// No chunk has more bytes.
pub const CHUNK: usize = 1 << 20;
const HEADER: usize = 16;
/// The item ends with this chunk.
const ITEM_ENDS: u32 = 1;
/// Nothing comes after this chunk.
const ALL_ENDS: u32 = 2;

/// A piece of an item, with room for its header before it.
struct Chunk {
    number: u64,
    flags: u32,
    /// [`HEADER`] bytes, then the payload.
    bytes: Vec<u8>,
}

/// What waits, and what has become of it.
struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    chunks: T,
    /// Number of the next chunk that is taken out.
    next: u64,
    /// Chunks that threads have in their hands.
    busy: usize,
    ended: bool,
    failed: Option<Error>,
    /// Used up, for the next one.
    spare: Vec<Vec<u8>>,
}

impl<T: Default> Queue<T> {
    fn new() -> Arc<Queue<T>> {
        let state = State { chunks: T::default(), next: 0, busy: 0, ended: false, failed: None, spare: Vec::new() };
        Arc::new(Queue { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Waits until `ready` gives something, or it has failed.
    fn until<R>(&self, mut ready: impl FnMut(&mut State<T>) -> Option<R>) -> Result<R> {
        let mut state = locked(&self.state);
        loop {
            if let Some(e) = &state.failed {
                return Err(e.clone());
            }
            if let Some(found) = ready(&mut state) {
                self.changed.notify_all();
                return Ok(found);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn fail(&self, e: Error) {
        locked(&self.state).failed.get_or_insert(e);
        self.changed.notify_all();
    }

    fn spare(&self) -> Vec<u8> {
        locked(&self.state).spare.pop().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        locked(&self.state)
    }
}

fn broken(e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::ConnectionAborted => Error::link("the streams were closed"),
        io::ErrorKind::UnexpectedEof => Error::link("a stream has ended in the middle"),
        _ => Error::link(format!("a stream has failed: {e}")),
    }
}

/// The source's end: what is written belongs to the item that is ended next.
pub struct Sender {
    queue: Arc<Queue<VecDeque<Chunk>>>,
    streams: usize,
    limit: Option<Limit>,
    /// The chunk that is being filled.
    filling: Vec<u8>,
    piece: usize,
    number: u64,
    sent: u64,
}

impl Sender {
    /// Starts a thread for each stream.
    pub(super) fn new(streams: Vec<Stream>, bandwidth: Option<u64>) -> Result<Sender> {
        let queue = Queue::<VecDeque<Chunk>>::new();
        let count = streams.len();
        for stream in streams {
            let own = queue.clone();
            let work = move || {
                if let Err(e) = push(stream, &own) {
                    own.fail(e);
                }
            };
            std::thread::Builder::new().name("stream".into()).spawn(work).context(|| "cannot start a thread")?;
        }
        let limit = bandwidth.map(Limit::new);
        let piece = limit.as_ref().map_or(CHUNK, |l| l.piece().clamp(4 << 10, CHUNK));
        Ok(Sender { queue, streams: count, limit, filling: vec![0; HEADER], piece, number: 0, sent: 0 })
    }

    /// Ends the item; how many bytes it had.
    ///
    /// # Errors
    /// When a stream has failed.
    pub fn end_item(&mut self) -> Result<u64> {
        self.hand_over(ITEM_ENDS)?;
        Ok(std::mem::take(&mut self.sent))
    }

    /// Ends all, and waits until everything has been handed to the system. What is in the middle of an item is lost.
    ///
    /// # Errors
    /// When a stream has failed.
    pub fn finish(mut self) -> Result<()> {
        self.filling.truncate(HEADER);
        self.hand_over(ALL_ENDS)?;
        self.drain()
    }

    /// Waits until all that was written before has been handed to the system.
    fn drain(&mut self) -> Result<()> {
        self.queue.until(|s| (s.chunks.is_empty() && s.busy == 0).then_some(()))
    }

    fn hand_over(&mut self, flags: u32) -> Result<()> {
        if let Some(limit) = &mut self.limit {
            std::thread::sleep(limit.count(self.filling.len(), Instant::now()));
        }
        let mut fresh = self.queue.spare();
        fresh.clear();
        fresh.reserve(HEADER + self.piece);
        fresh.resize(HEADER, 0);
        let mut bytes = std::mem::replace(&mut self.filling, fresh);
        let length = (bytes.len() - HEADER) as u32;
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        let mut chunk = Some(Chunk { number: self.number, flags, bytes });
        self.number += 1;
        // One in the hands of each stream, and one that waits for it.
        let most = self.streams;
        self.queue.until(|s| {
            if s.chunks.len() < most {
                s.ended |= flags & ALL_ENDS != 0;
                s.chunks.extend(chunk.take());
                return Some(());
            }
            None
        })
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEADER + self.piece - self.filling.len();
        let n = room.min(bytes.len());
        self.filling.extend_from_slice(&bytes[..n]);
        self.sent += n as u64;
        if n == room {
            self.hand_over(0)?;
        }
        Ok(n)
    }

    /// Sends what there is, and waits until it has been handed to the system.
    fn flush(&mut self) -> io::Result<()> {
        if self.filling.len() > HEADER {
            self.hand_over(0)?;
        }
        Ok(self.drain()?)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // The threads end with what they have; the other end sees that it is not all.
        self.queue.lock().ended = true;
        self.queue.changed.notify_all();
    }
}

/// A thread that sends.
fn push(mut stream: Stream, queue: &Queue<VecDeque<Chunk>>) -> Result<()> {
    loop {
        let next = queue.until(|s| match s.chunks.pop_front() {
            Some(chunk) => {
                s.busy += 1;
                Some(Some(chunk))
            }
            None => s.ended.then_some(None),
        })?;
        let Some(chunk) = next else { return Ok(()) };
        let done = stream.write_all(&chunk.bytes).and_then(|()| stream.flush());
        let mut state = queue.lock();
        state.busy -= 1;
        state.spare.push(chunk.bytes);
        drop(state);
        queue.changed.notify_all();
        done.map_err(|e| broken(&e))?;
    }
}

/// The target's end: items in the order in which they were sent.
pub struct Receiver {
    queue: Arc<Queue<BTreeMap<u64, Chunk>>>,
    current: Option<Chunk>,
    read: usize,
    ended: bool,
}

/// One item.
pub struct Item<'a> {
    from: &'a mut Receiver,
    done: bool,
}

impl Receiver {
    /// Starts a thread for each stream.
    pub(super) fn new(streams: Vec<Stream>) -> Result<Receiver> {
        let queue = Queue::<BTreeMap<u64, Chunk>>::new();
        // No stream is more than this ahead of who receives.
        let window = 2 * streams.len() as u64;
        for stream in streams {
            let own = queue.clone();
            let work = move || {
                if let Err(e) = pull(stream, &own, window) {
                    own.fail(e);
                }
            };
            std::thread::Builder::new().name("stream".into()).spawn(work).context(|| "cannot start a thread")?;
        }
        Ok(Receiver { queue, current: None, read: 0, ended: false })
    }

    /// The next item, once something of it has come; what was not read of the one before is passed over. `None` when
    /// the source has finished.
    ///
    /// # Errors
    /// When a stream has failed, or ended before the source had finished.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>> {
        if self.ended {
            return Ok(None);
        }
        let chunk = self.chunk()?;
        if chunk.flags & ALL_ENDS != 0 {
            self.ended = true;
            return Ok(None);
        }
        (self.current, self.read) = (Some(chunk), HEADER);
        Ok(Some(Item { from: self, done: false }))
    }

    fn chunk(&self) -> Result<Chunk> {
        self.queue.until(|s| {
            let chunk = s.chunks.remove(&s.next)?;
            s.next += 1;
            Some(chunk)
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.queue.fail(Error::link("nobody receives any more"));
    }
}

impl Read for Item<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.done || into.is_empty() {
                return Ok(0);
            }
            let Some(chunk) = &self.from.current else {
                let chunk = self.from.chunk()?;
                if chunk.flags & ALL_ENDS != 0 {
                    self.from.ended = true;
                    return Err(Error::link("the source has ended in the middle of an item").into());
                }
                (self.from.current, self.from.read) = (Some(chunk), HEADER);
                continue;
            };
            let left = &chunk.bytes[self.from.read..];
            if !left.is_empty() {
                let n = left.len().min(into.len());
                into[..n].copy_from_slice(&left[..n]);
                self.from.read += n;
                return Ok(n);
            }
            self.done = chunk.flags & ITEM_ENDS != 0;
            let used = self.from.current.take();
            self.from.queue.lock().spare.extend(used.map(|c| c.bytes));
        }
    }
}

impl Drop for Item<'_> {
    fn drop(&mut self) {
        // What fails here fails at the next item, too.
        let mut rest = [0; 4096];
        while self.read(&mut rest).is_ok_and(|n| n > 0) {}
    }
}

/// A thread that receives.
fn pull(mut stream: Stream, queue: &Queue<BTreeMap<u64, Chunk>>, window: u64) -> Result<()> {
    loop {
        let mut header = [0; HEADER];
        match stream.read(&mut header[..1]).map_err(|e| broken(&e))? {
            // Between two chunks it may end once all has ended.
            0 => return queue.until(|s| s.ended.then_some(())),
            _ => stream.read_exact(&mut header[1..]).map_err(|e| broken(&e))?,
        }
        let number = u64::from_le_bytes(std::array::from_fn(|i| header[i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let (length, flags) = (word(8) as usize, word(12));
        if length > CHUNK || flags > ALL_ENDS {
            return Err(Error::link("a stream carries something else than chunks"));
        }
        let mut bytes = queue.until(|s| (number < s.next + window).then(|| s.spare.pop().unwrap_or_default()))?;
        bytes.resize(HEADER + length, 0);
        stream.read_exact(&mut bytes[HEADER..]).map_err(|e| broken(&e))?;
        let mut state = queue.lock();
        if number < state.next || state.chunks.contains_key(&number) {
            return Err(Error::link("a stream carries a chunk for the second time"));
        }
        state.ended |= flags & ALL_ENDS != 0;
        state.chunks.insert(number, Chunk { number, flags, bytes });
        drop(state);
        queue.changed.notify_all();
    }
}
