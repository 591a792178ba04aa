//! Whoever streams through a move, and whoever only holds a connection: nothing is reset, lost or doubled, in either direction.

use super::MOVE;
use crate::invisible::{PART, part};
use crate::lab::hosts::{Hosts, SERVICE, VIP};
use crate::lab::{Lab, SOON, now, until};
use crate::programs::net::listens;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SERVER: &str = include_str!("streams.py");
/// How many hold a connection.
const IDLE: usize = 500;

fn connect(kind: u8) -> TcpStream {
    let mut stream = TcpStream::connect((SERVICE, 2500)).expect("a connection");
    stream.set_read_timeout(Some(MOVE)).expect("option");
    stream.set_write_timeout(Some(MOVE)).expect("option");
    stream.write_all(&[kind]).expect("it is there");
    stream
}

/// One direction: how far it is, when that changed for the last time, and its longest pause, both in nanoseconds.
#[derive(Default)]
struct Flow {
    bytes: AtomicU64,
    last: AtomicU64,
    pause: AtomicU64,
    stop: AtomicBool,
}

impl Flow {
    fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let now = now();
        let last = self.last.swap(now, Ordering::Relaxed);
        if last != 0 {
            self.pause.fetch_max(now - last, Ordering::Relaxed);
        }
    }
}

/// Sends until it is told to stop; then everything must have come.
fn send(mut stream: TcpStream, flow: &Flow) {
    let part = part();
    while !flow.stop.load(Ordering::Relaxed) {
        for some in part.chunks(1 << 16) {
            stream.write_all(some).expect("the connection is there");
            flow.moved(some.len());
        }
    }
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("a verdict");
    assert_eq!(said.trim(), flow.bytes.load(Ordering::Relaxed).to_string());
}

/// Takes what comes until it is told to stop: every byte must be the next one.
fn receive(mut stream: TcpStream, flow: &Flow) {
    let (part, mut room, mut at) = (part(), vec![0; 1 << 20], 0);
    while !flow.stop.load(Ordering::Relaxed) {
        let n = stream.read(&mut room).expect("the connection is there");
        assert!(n > 0, "the connection was ended");
        let mut got = &room[..n];
        while !got.is_empty() {
            let from = (at % PART as u64) as usize;
            let length = got.len().min(PART - from);
            assert!(got[..length] == part[from..from + length], "the stream is another one near byte {at}");
            (at, got) = (at + length as u64, &got[length..]);
        }
        flow.moved(n);
    }
}

/// Gets the same many times, beginning to take it late: what the server has closed waits in the kernel until then. How many were
/// broken off, of which that was said.
fn take_late(flow: &Flow) -> u64 {
    const LATE: Duration = Duration::from_millis(60);
    const BETWEEN: Duration = Duration::from_millis(150);
    let (part, mut lost) = (part(), 0);
    while !flow.stop.load(Ordering::Relaxed) {
        let mut stream = connect(b'c');
        std::thread::sleep(LATE);
        let mut got = Vec::new();
        let whole = stream.read_to_end(&mut got).is_ok() && got == part;
        if whole {
            flow.bytes.fetch_add(1, Ordering::Relaxed);
        } else {
            // It is said as soon as the move is done.
            assert!(until(SOON, || flow.last.swap(0, Ordering::Relaxed) == 1), "{} bytes came, and nothing was said", got.len());
            lost += 1;
        }
        std::thread::sleep(BETWEEN);
    }
    lost
}

crate::alone! {
    fn streams_and_500_idle_connections() {
        let lab = Lab::new("move-streams");
        let hosts = Hosts::new(&lab, 2);
        hosts.serve_at(0);
        fs::write(lab.path("streams.py"), SERVER).expect("script");
        fs::write(lab.path("part"), part()).expect("bytes");
        let pid = hosts.hosts[0].start(&lab, "/usr/bin/python3", &["streams.py", SERVICE, "2500", "part"]);
        listens(&lab, &format!("{SERVICE}:2500"));
        let mut idle: Vec<TcpStream> = (0..IDLE).map(|_| connect(b'i')).collect();
        let flows = [Arc::<Flow>::default(), Arc::<Flow>::default()];
        let (up, down) = (connect(b'u'), connect(b'd'));
        let threads = [
            std::thread::spawn({ let flow = flows[0].clone(); move || send(up, &flow) }),
            std::thread::spawn({ let flow = flows[1].clone(); move || receive(down, &flow) }),
        ];
        let bytes = || [0, 1].map(|n| flows[n].bytes.load(Ordering::Relaxed));
        let goes_on = || {
            let before = bytes();
            let more = || (0..2).all(|n| bytes()[n] > before[n] + 50_000_000) || threads.iter().any(|t| t.is_finished());
            assert!(until(SOON, more) && !threads.iter().any(|t| t.is_finished()), "a stream stands still: {before:?}, {:?}", bytes());
        };
        let begun = Instant::now();
        let rounds: usize = std::env::var("MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
        for n in 0..rounds {
            goes_on();
            flows.iter().for_each(|flow| flow.pause.store(0, Ordering::Relaxed));
            let (from, to) = (n % 2, (n + 1) % 2);
            let done = hosts.migrate(&lab, from, &[&pid.to_string(), &hosts.hosts[to].address, "--vip", VIP, "--json", "--on-timeout", "force"]);
            assert!(matches!(done.code, 0 | 3), "move {n}: {}{}\n{}", done.stdout, done.stderr, lab.log());
            goes_on();
            let pauses = [0, 1].map(|n| flows[n].pause.load(Ordering::Relaxed) / 1_000_000);
            println!("journey: move {n}: downtime {} ms, longest pause up {} ms, down {} ms", super::result(&done)["downtime_ms"], pauses[0], pauses[1]);
            for (n, stream) in idle.iter_mut().enumerate() {
                let (word, mut back) = (format!("{n:05}"), [0; 5]);
                stream.write_all(word.as_bytes()).expect("it is there");
                stream.read_exact(&mut back).expect("it answers");
                assert_eq!(back, word.as_bytes());
            }
        }
        let took = begun.elapsed().as_secs_f64();
        flows.iter().for_each(|flow| flow.stop.store(true, Ordering::Relaxed));
        for thread in threads {
            thread.join().expect("every byte once and in order");
        }
        println!("journey: {rounds} moves under {:.0} MB/s up and {:.0} MB/s down", bytes()[0] as f64 / 1e6 / took, bytes()[1] as f64 / 1e6 / took);
    }

    /// What a program has left to the kernel when it closed a connection is nowhere in its tree.
    fn closed_at_once() {
        let lab = Lab::new("move-closed");
        let hosts = Hosts::new(&lab, 2);
        hosts.serve_at(0);
        fs::write(lab.path("streams.py"), SERVER).expect("script");
        fs::write(lab.path("part"), part()).expect("bytes");
        let pid = hosts.hosts[0].start(&lab, "/usr/bin/python3", &["streams.py", SERVICE, "2500", "part"]);
        listens(&lab, &format!("{SERVICE}:2500"));
        let flow = Arc::<Flow>::default();
        let client = std::thread::spawn({ let flow = flow.clone(); move || take_late(&flow) });
        let whole = || flow.bytes.load(Ordering::Relaxed);
        for n in 0..4 {
            let before = whole();
            assert!(until(SOON, || whole() > before || client.is_finished()), "move {n}: nobody is served");
            let (from, to) = (n % 2, (n + 1) % 2);
            let done = hosts.migrate(&lab, from, &[&pid.to_string(), &hosts.hosts[to].address, "--vip", VIP]);
            // On a machine with much else to do there may be no moment that is long enough; but that is said.
            let said = done.stderr.contains("had not delivered everything yet");
            assert!(matches!((done.code, said), (0, false) | (3, true)), "move {n}: {}{}\n{}", done.stdout, done.stderr, lab.log());
            if said {
                println!("journey: move {n}: {}", done.stderr);
                flow.last.store(1, Ordering::Relaxed);
            }
        }
        flow.stop.store(true, Ordering::Relaxed);
        let lost = client.join().expect("whole, or lost with a word");
        println!("journey: {} whole, {lost} lost", whole());
    }
}
