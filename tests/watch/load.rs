//! Clients of a redis that keep it busy, each with a record of all that it was told.

use super::{Counter, ask};
use crate::lab::hosts::SERVICE;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Values that are written over and over.
const KEYS: u64 = 64;
/// Bytes of each.
const LENGTH: usize = 16 << 10;

/// Counters over one connection each; one that writes and reads what it has written; one that connects anew for each question.
pub struct Load {
    stop: Arc<AtomicBool>,
    counters: Vec<Counter>,
    others: Vec<JoinHandle<Result<u64, String>>>,
}

/// Writes values over one connection, and finds each as it was told last that it is.
fn write(stop: &AtomicBool) -> Result<u64, String> {
    let wrong = |e: std::io::Error| format!("who writes has no answer any more: {e}");
    let mut stream = TcpStream::connect((SERVICE, 6379)).map_err(wrong)?;
    stream.set_read_timeout(Some(Duration::from_secs(90))).map_err(wrong)?;
    stream.set_nodelay(true).map_err(wrong)?;
    let mut lines = BufReader::new(stream.try_clone().map_err(wrong)?);
    let mut line = || {
        let mut line = String::new();
        lines.read_line(&mut line).map_err(wrong).map(|_| line.trim().to_owned())
    };
    // Bytes that do not pack well.
    let value = |n: u64| format!("{:016x}", (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(LENGTH / 16);
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(format!("SET value-{} {}\r\n", n % KEYS, value(n)).as_bytes()).map_err(wrong)?;
        let said = line()?;
        if said != "+OK" {
            return Err(format!("a value is answered with {said:?}"));
        }
        // The one that was written longest ago, or this one.
        let old = n.saturating_sub(KEYS - 1);
        stream.write_all(format!("GET value-{}\r\n", old % KEYS).as_bytes()).map_err(wrong)?;
        let (length, found) = (line()?, line()?);
        if length != format!("${LENGTH}") || found != value(old) {
            return Err(format!("value {old} was acknowledged, and is {length} {found:.40}"));
        }
        n += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(n)
}

/// Counts by a connection for each answer: two who answer would not agree on the number.
fn knock(stop: &AtomicBool) -> Result<u64, String> {
    let (mut asked, mut last, mut answers) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        // One that is not answered may have been counted.
        asked += 1;
        if let Some(said) = ask("INCR new") {
            let number: u64 = said.strip_prefix(':').and_then(|n| n.parse().ok()).ok_or_else(|| format!("it answers {said:?}"))?;
            if number <= last || number > asked {
                return Err(format!("{number} comes after {last}, of {asked} that were asked for"));
            }
            (last, answers) = (number, answers + 1);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(answers)
}

impl Load {
    /// They begin.
    pub fn begin() -> Load {
        let stop = Arc::<AtomicBool>::default();
        let start = |work: fn(&AtomicBool) -> Result<u64, String>| {
            let stop = stop.clone();
            std::thread::spawn(move || work(&stop))
        };
        let counters = ["two", "three", "four"].into_iter().map(|what| Counter::to(SERVICE, 6379, what)).collect();
        Load { counters, others: vec![start(write), start(knock)], stop }
    }

    /// In the end: how many answers there were, all of which must be well.
    pub fn finish(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = 0;
        for counter in self.counters {
            all += counter.finish()?.len() as u64 + 1;
        }
        for other in self.others {
            all += other.join().expect("it ends")?;
        }
        Ok(all)
    }
}
