//! Clients of a redis that never have enough.

use crate::lab::hosts::SERVICE;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a value: with what redis needs for it, a page.
const VALUE: usize = 3900;
/// How long figures of what goes on all the time are taken.
pub const WHILE: Duration = Duration::from_secs(8);

/// A connection to the service.
pub fn connect() -> TcpStream {
    let stream = TcpStream::connect(format!("{SERVICE}:6379")).expect("redis answers");
    stream.set_nodelay(true).expect("an option");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("an option");
    stream
}

/// Numbers without any order.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, value: &mut [u8]) {
        value.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]));
    }
}

/// Adds a command that sets a key to a value of a page.
pub fn set(random: &mut Random, key: u64, out: &mut Vec<u8>) {
    put(random, &format!("key:{key:08}"), VALUE, out);
}

fn put(random: &mut Random, key: &str, size: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${size}\r\n", key.len()).as_bytes());
    let at = out.len();
    out.resize(at + size, 0);
    random.fill(&mut out[at..]);
    out.extend_from_slice(b"\r\n");
}

/// What they ask.
#[derive(Clone, Copy)]
pub struct Manner {
    /// How many of them.
    pub clients: u64,
    /// Requests of each that are under way at a time; the next ones follow when all were answered.
    pub depth: usize,
    /// Bytes of a value that is small; those of [`set`] else.
    pub small: Option<usize>,
    /// How many keys there are.
    pub keys: u64,
}

/// Clients of which nine of ten requests read.
pub struct Load {
    over: Arc<AtomicBool>,
    counts: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<f64>>>,
}

impl Load {
    /// Clients that each wait for one answer before they ask again.
    pub fn begin(clients: u64, keys: u64) -> Load {
        Load::like(Manner { clients, depth: 1, small: None, keys })
    }

    pub fn like(manner: Manner) -> Load {
        let (over, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let answers = Arc::new(AtomicU64::new(0));
        let client = |n: u64| {
            let (over, counts, answers) = (over.clone(), counts.clone(), answers.clone());
            std::thread::spawn(move || {
                let mut client = Client::new(n, manner);
                let mut waits = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let took = client.turn();
                    answers.fetch_add(manner.depth as u64, Ordering::Relaxed);
                    if counts.load(Ordering::Relaxed) {
                        waits.extend(std::iter::repeat_n(took, manner.depth));
                    }
                }
                waits
            })
        };
        let threads = (0..manner.clients).map(client).collect();
        Load { over, counts, answers, threads }
    }

    /// How often they have been answered so far.
    pub fn count(&self) -> Arc<AtomicU64> {
        self.answers.clone()
    }

    /// What all had to wait, shortest first, within a while.
    pub fn end(self) -> Vec<f64> {
        self.counts.store(true, Ordering::Relaxed);
        std::thread::sleep(WHILE);
        self.over.store(true, Ordering::Relaxed);
        let mut all: Vec<f64> = self.threads.into_iter().flat_map(|t| t.join().expect("a client")).collect();
        all.sort_by(f64::total_cmp);
        all
    }
}

struct Client {
    manner: Manner,
    random: Random,
    stream: TcpStream,
    lines: BufReader<TcpStream>,
    out: Vec<u8>,
    line: Vec<u8>,
}

impl Client {
    fn new(n: u64, manner: Manner) -> Client {
        let stream = connect();
        let lines = BufReader::with_capacity(64 << 10, stream.try_clone().expect("a descriptor"));
        Client { manner, random: Random(n + 7), stream, lines, out: Vec::new(), line: Vec::new() }
    }

    /// Asks, and waits for all answers: for how many milliseconds.
    fn turn(&mut self) -> f64 {
        self.out.clear();
        for _ in 0..self.manner.depth {
            let (key, writes) = (self.random.next() % self.manner.keys, self.random.next().is_multiple_of(10));
            match self.manner.small {
                None if writes => set(&mut self.random, key, &mut self.out),
                Some(size) if writes => put(&mut self.random, &format!("small:{key:08}"), size, &mut self.out),
                small => {
                    let name = if small.is_some() { "small" } else { "key" };
                    self.out.extend_from_slice(format!("GET {name}:{key:08}\r\n").as_bytes());
                }
            }
        }
        let begun = Instant::now();
        self.stream.write_all(&self.out).expect("sent");
        (0..self.manner.depth).for_each(|_| self.answer());
        begun.elapsed().as_secs_f64() * 1e3
    }

    fn answer(&mut self) {
        self.line.clear();
        self.lines.read_until(b'\n', &mut self.line).expect("an answer");
        let value = self.line.strip_prefix(b"$").and_then(|rest| std::str::from_utf8(rest).ok()?.trim().parse::<i64>().ok());
        let bytes = value.filter(|bytes| *bytes >= 0).map_or(0, |bytes| bytes as usize + 2);
        self.line.resize(bytes, 0);
        self.lines.read_exact(&mut self.line).expect("a value");
    }
}

/// The value that so large a part of them is below.
pub fn at(sorted: &[f64], part: f64) -> f64 {
    sorted.get((sorted.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN)
}
