//! Clients that count, and look at each answer before they ask again.

use crate::lab::hosts::SERVICE;
use crate::lab::until;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// How a request gets there, and its answer back.
trait Way: Send {
    fn ask(&mut self, request: &str) -> io::Result<String>;
}

/// Over one connection, which must live.
struct Connection(BufReader<TcpStream>);

impl Way for Connection {
    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.0.get_mut().write_all(format!("{request}\r\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line)
    }
}

/// The same in the words of memcached, which has a number only after somebody has set it.
struct Memcached(Connection);

impl Way for Memcached {
    fn ask(&mut self, request: &str) -> io::Result<String> {
        let name = request.strip_prefix("INCR ").ok_or(io::ErrorKind::InvalidInput)?;
        Ok(format!(":{}", self.0.ask(&format!("incr {name} 1"))?))
    }
}

/// In datagrams, which may be lost: they are said again until there is an answer to this one.
struct Datagrams {
    socket: UdpSocket,
    sequence: u64,
}

impl Way for Datagrams {
    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.sequence += 1;
        let (request, begun) = (format!("{:?} {} {request}", self.socket.local_addr()?, self.sequence), Instant::now());
        let mut room = [0; 256];
        while begun.elapsed() < PATIENCE {
            // While its host is lost a neighbour may be told so.
            if self.socket.send(request.as_bytes()).is_err() {
                std::thread::sleep(Duration::from_millis(20));
            }
            while let Ok(length) = self.socket.recv(&mut room) {
                let said = String::from_utf8_lossy(&room[..length]);
                if let Some((sequence, answer)) = said.split_once(' ')
                    && sequence == self.sequence.to_string()
                {
                    return Ok(answer.to_owned());
                }
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

fn connect(address: &str, port: u16) -> io::Result<Connection> {
    let stream = TcpStream::connect((address, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(Connection(BufReader::new(stream)))
}

fn memcached(port: u16) -> io::Result<Memcached> {
    let mut connection = connect(SERVICE, port)?;
    let said = connection.ask("set one 0 0 1\r\n0")?;
    if said.trim() == "STORED" { Ok(Memcached(connection)) } else { Err(io::Error::other(said)) }
}

fn datagrams(port: u16) -> io::Result<Datagrams> {
    const AGAIN: Duration = Duration::from_millis(200);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((SERVICE, port))?;
    socket.set_read_timeout(Some(AGAIN))?;
    Ok(Datagrams { socket, sequence: 0 })
}

/// One that does.
pub struct Counter {
    stop: Arc<AtomicBool>,
    pub answers: Arc<AtomicU64>,
    thread: JoinHandle<Result<Vec<(Instant, u64)>, String>>,
}

impl Counter {
    /// Over one connection to redis.
    pub fn begin() -> Counter {
        Counter::to(SERVICE, 6379, "one")
    }

    /// Over one connection to a server that knows `INCR`, of which nobody else counts this.
    pub fn to(address: &'static str, port: u16, what: &'static str) -> Counter {
        Counter::over(move || connect(address, port), what)
    }

    /// By datagrams.
    pub fn by_datagrams(port: u16) -> Counter {
        Counter::over(move || datagrams(port), "one")
    }

    /// Over one connection to memcached.
    pub fn to_memcached(port: u16) -> Counter {
        Counter::over(move || memcached(port), "one")
    }

    fn over<W: Way>(connect: impl FnOnce() -> io::Result<W> + Send + 'static, what: &'static str) -> Counter {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, told) = (stop.clone(), answers.clone());
        let count = move || {
            let wrong = |e: io::Error| format!("there is no answer any more: {e}");
            let mut way = connect().map_err(wrong)?;
            let mut seen: Vec<(Instant, u64)> = Vec::new();
            while !until.load(Ordering::Relaxed) {
                let line = way.ask(&format!("INCR {what}")).map_err(wrong)?;
                let number = line.trim().strip_prefix(':').and_then(|n| n.parse().ok()).ok_or_else(|| format!("it answers {line:?}"))?;
                // One that is lost or done twice is seen at once.
                if seen.last().is_some_and(|(_, before)| before + 1 != number) {
                    return Err(format!("{number} comes after {:?}", seen.last()));
                }
                seen.push((Instant::now(), number));
                told.fetch_add(1, Ordering::Relaxed);
            }
            Ok(seen)
        };
        Counter { stop, answers, thread: std::thread::spawn(count) }
    }

    /// Waits until so many more answers have come.
    pub fn go_on(&self, more: u64) -> bool {
        let wanted = self.answers.load(Ordering::Relaxed) + more;
        until(Duration::from_secs(60), || self.thread.is_finished() || self.answers.load(Ordering::Relaxed) >= wanted)
    }

    /// In the end: what it saw, all of which must be well.
    pub fn end(self) {
        let gaps = self.finish().unwrap_or_else(|e| panic!("{e}"));
        let at = |part: usize| gaps.get(gaps.len() * part / 100).copied().unwrap_or_default();
        let longest = gaps.last().copied().unwrap_or_default();
        println!(
            "\nhold: {} answers, one after {:.1?} (median), {:.1?} (90 of 100), {longest:.0?} at most",
            gaps.len() + 1,
            at(50),
            at(90)
        );
    }

    /// The same: all times between two answers, the shortest first.
    pub fn finish(self) -> Result<Vec<Duration>, String> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("it ends")?;
        let mut gaps: Vec<Duration> = seen.windows(2).map(|two| two[1].0 - two[0].0).collect();
        gaps.sort();
        Ok(gaps)
    }
}
