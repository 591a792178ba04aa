//! The client: one connection, over which it asks without end.

use super::{PORT, SERVICE};
use crate::error::{Context, Error, Result};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What it has seen.
#[derive(Default)]
struct Seen {
    /// Answers, each one more than the one before.
    answers: u64,
    longest: Duration,
    /// How long each of the last ones took, the last at the end, and when it came.
    log: VecDeque<(Duration, Instant)>,
    /// What was wrong.
    wrong: Option<String>,
    stop: bool,
}

/// Answers whose time is remembered.
const REMEMBERED: usize = 100_000;

/// A thread that asks.
pub struct Client {
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Connects, for good. Each answer is a number, which may have a colon before it, and comes within `limit`.
    pub fn start(question: &'static [u8], limit: Duration) -> Result<Client> {
        let stream = TcpStream::connect((SERVICE, PORT)).context(|| "connecting with the service")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        let seen = Arc::<Mutex<Seen>>::default();
        let told = seen.clone();
        let ask = move || {
            if let Err(why) = ask(stream, question, &told) {
                locked(&told).wrong = Some(why);
            }
        };
        let thread = std::thread::Builder::new().name("client".into()).spawn(ask).context(|| "starting a thread")?;
        Ok(Client { seen, thread: Some(thread) })
    }

    /// How many answers there were.
    ///
    /// # Errors
    /// When one of them was wrong.
    pub fn answers(&self) -> Result<u64> {
        let seen = locked(&self.seen);
        match &seen.wrong {
            Some(why) => Err(Error::other(format!("the client has noticed: {why}"))),
            None => Ok(seen.answers),
        }
    }

    /// The longest wait since it was asked for last.
    pub fn longest(&self) -> Duration {
        std::mem::take(&mut locked(&self.seen).longest)
    }

    /// What it saw around this moment: the number of each answer, how long it took, and whether it came after that.
    pub fn log(&self, moment: Instant, before: usize, after: usize) -> Vec<(u64, Duration, bool)> {
        let seen = locked(&self.seen);
        let first = seen.answers - seen.log.len() as u64 + 1;
        let at = seen.log.partition_point(|(_, came)| *came <= moment);
        let lines = seen.log.iter().enumerate().skip(at.saturating_sub(before)).take(before.min(at) + after);
        lines.map(|(n, (took, _))| (first + n as u64, *took, n >= at)).collect()
    }

    /// No more questions: how many there were.
    pub fn end(mut self) -> Result<u64> {
        locked(&self.seen).stop = true;
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        if ended { self.answers() } else { Err(Error::other("the client has failed")) }
    }
}

/// The answer to the nth question must be n.
fn ask(mut stream: TcpStream, question: &[u8], seen: &Mutex<Seen>) -> std::result::Result<(), String> {
    let mut answers = BufReader::new(stream.try_clone().map_err(|e| e.to_string())?);
    for wanted in 1u64.. {
        let asked = Instant::now();
        stream.write_all(question).map_err(|e| format!("question {wanted}: {e}"))?;
        let mut line = String::new();
        answers.read_line(&mut line).map_err(|e| format!("answer {wanted}: {e}"))?;
        if line.trim().trim_start_matches(':').parse() != Ok(wanted) {
            return Err(format!("answer {wanted} is {line:?}"));
        }
        let mut seen = locked(seen);
        seen.answers = wanted;
        seen.longest = seen.longest.max(asked.elapsed());
        seen.log.push_back((asked.elapsed(), Instant::now()));
        if seen.log.len() > REMEMBERED {
            seen.log.pop_front();
        }
        if seen.stop {
            break;
        }
        drop(seen);
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}
