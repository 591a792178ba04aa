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
/// Not a chunk: nothing more comes on this stream, and that is as it should be.
const STREAM_ENDS: u32 = 4;

/// A piece of an item, with room for its header before it.
struct Chunk {
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
    /// Streams that have not ended.
    open: usize,
    /// The last chunk is known.
    ended: bool,
    failed: Option<Error>,
    /// Used up, for the next one.
    spare: Vec<Vec<u8>>,
}

impl<T: Default> Queue<T> {
    fn new(streams: usize) -> Arc<Queue<T>> {
        let state = State { chunks: T::default(), next: 0, busy: 0, open: streams, ended: false, failed: None, spare: Vec::new() };
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

fn broken(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::ConnectionAborted => Error::link("the streams were closed"),
        io::ErrorKind::UnexpectedEof => Error::link("a stream has ended in the middle"),
        // The link has failed before, and told the streams so.
        _ if e.get_ref().is_some_and(|inner| inner.is::<Error>()) => e.into(),
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
}

impl Sender {
    /// Starts a thread for each stream.
    pub(super) fn new(streams: Vec<Stream>, bandwidth: Option<u64>) -> Result<Sender> {
        let count = streams.len();
        let queue = Queue::<VecDeque<Chunk>>::new(count);
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
        Ok(Sender { queue, streams: count, limit, filling: vec![0; HEADER], piece, number: 0 })
    }

    /// Ends the item.
    ///
    /// # Errors
    /// When a stream has failed.
    pub fn end_item(&mut self) -> Result<()> {
        self.hand_over(ITEM_ENDS)
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
        let mut chunk = Some(Chunk { flags, bytes });
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
        let Some(chunk) = next else {
            let mut last = [0; HEADER];
            last[12..].copy_from_slice(&STREAM_ENDS.to_le_bytes());
            return stream.write_all(&last).and_then(|()| stream.flush()).map_err(broken);
        };
        let done = stream.write_all(&chunk.bytes).and_then(|()| stream.flush());
        let mut state = queue.lock();
        state.busy -= 1;
        state.spare.push(chunk.bytes);
        drop(state);
        queue.changed.notify_all();
        done.map_err(broken)?;
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
        let queue = Queue::<BTreeMap<u64, Chunk>>::new(streams.len());
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
        stream.read_exact(&mut header).map_err(broken)?;
        let number = u64::from_le_bytes(std::array::from_fn(|i| header[i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let (length, flags) = (word(8) as usize, word(12));
        if flags == STREAM_ENDS && length == 0 {
            let mut state = queue.lock();
            state.open -= 1;
            if state.open == 0 && !state.ended {
                return Err(Error::link("the source has ended before all was sent"));
            }
            return Ok(());
        }
        if length > CHUNK || flags > ALL_ENDS {
            return Err(Error::link("a stream carries something else than chunks"));
        }
        let mut bytes = queue.until(|s| (number < s.next + window).then(|| s.spare.pop().unwrap_or_default()))?;
        bytes.resize(HEADER + length, 0);
        stream.read_exact(&mut bytes[HEADER..]).map_err(broken)?;
        let mut state = queue.lock();
        if number < state.next || state.chunks.contains_key(&number) {
            return Err(Error::link("a stream carries a chunk for the second time"));
        }
        state.ended |= flags & ALL_ENDS != 0;
        state.chunks.insert(number, Chunk { flags, bytes });
        drop(state);
        queue.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::port::{Port, Stop};
    use super::*;
    use std::os::unix::net::UnixStream;

    fn streams(count: usize) -> (Vec<Stream>, Vec<Stream>, Vec<UnixStream>) {
        let (mut here, mut there, mut spare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (a, b) = UnixStream::pair().expect("a pair");
            spare.push(a.try_clone().expect("a descriptor"));
            let port = |s: UnixStream| Stream::Lent(Port::socket(s, Stop::new().expect("a stop"), None).expect("a port"));
            here.push(port(a));
            there.push(port(b));
        }
        (here, there, spare)
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        (0..length as u64).map(|n| ((n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    #[test]
    fn items_come_whole_and_in_order_over_many_streams() {
        let (here, there, _spare) = streams(3);
        let items: Vec<Vec<u8>> =
            [0, 1, CHUNK, CHUNK + 1, 7 * CHUNK + 12345, 0, 3].iter().zip(1..).map(|(&n, seed)| noise(n, seed)).collect();
        let sent = items.clone();
        let source = std::thread::spawn(move || {
            let mut sender = Sender::new(here, None).expect("a sender");
            for item in &sent {
                sender.write_all(item).expect("written");
                sender.end_item().expect("ended");
            }
            sender.finish().expect("finished");
        });
        let mut receiver = Receiver::new(there).expect("a receiver");
        for (n, item) in items.iter().enumerate() {
            let mut found = Vec::new();
            let mut from = receiver.next_item().expect("no failure").expect("an item");
            // One that nobody reads to its end is passed over.
            if n == 4 {
                from.read_exact(&mut [0; 10]).expect("a few bytes");
                continue;
            }
            from.read_to_end(&mut found).expect("read");
            assert!(found == *item, "item {n} of {} bytes came as {} others", item.len(), found.len());
        }
        assert!(receiver.next_item().expect("no failure").is_none());
        assert!(receiver.next_item().expect("no failure").is_none());
        source.join().expect("the source");
    }

    #[test]
    fn a_stream_that_is_cut_fails_both_ends() {
        let (here, there, cut) = streams(2);
        let mut sender = Sender::new(here, None).expect("a sender");
        let mut receiver = Receiver::new(there).expect("a receiver");
        sender.write_all(&noise(CHUNK, 1)).expect("written");
        cut[0].shutdown(std::net::Shutdown::Both).expect("cut");
        let mut item = receiver.next_item().err().expect("it was cut").kind;
        assert_eq!(item, crate::error::Kind::LinkFailed);
        item = loop {
            if let Err(e) = sender.write_all(&noise(CHUNK, 2)) {
                break Error::from(e).kind;
            }
        };
        assert_eq!(item, crate::error::Kind::LinkFailed);
    }

    #[test]
    fn a_source_that_goes_away_has_not_finished() {
        let (here, there, _spare) = streams(2);
        let mut sender = Sender::new(here, None).expect("a sender");
        sender.write_all(b"half an item").expect("written");
        sender.flush().expect("flushed");
        drop(sender);
        let mut receiver = Receiver::new(there).expect("a receiver");
        let begun = receiver.next_item().map(|item| item.map(|mut i| i.read_to_end(&mut Vec::new()).is_err()));
        assert!(matches!(begun, Err(_) | Ok(Some(true))));
    }

    #[test]
    fn foreign_bytes_are_no_chunks() {
        let (here, there, _spare) = streams(1);
        let mut receiver = Receiver::new(there).expect("a receiver");
        let mut stream = here.into_iter().next().expect("a stream");
        stream.write_all(&[0xff; HEADER]).expect("written");
        assert!(receiver.next_item().is_err());
    }

    #[test]
    fn who_sends_waits_for_who_receives() {
        let (here, there, spare) = streams(2);
        let mut sender = Sender::new(here, None).expect("a sender");
        let receiver = Receiver::new(there).expect("a receiver");
        let written = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = written.clone();
        let source = std::thread::spawn(move || {
            let piece = noise(CHUNK, 3);
            while sender.write_all(&piece).is_ok() {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        });
        // Until it writes no more: then all is full, and that is not much.
        let mut last = (usize::MAX, Instant::now());
        while last.1.elapsed() < std::time::Duration::from_millis(500) {
            let now = written.load(std::sync::atomic::Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(last.0 <= 16, "{} MiB are on their way", last.0);
        drop(receiver);
        drop(spare.iter().map(|s| s.shutdown(std::net::Shutdown::Both)).collect::<Vec<_>>());
        source.join().expect("the source");
    }
}
