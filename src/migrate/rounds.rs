//! Images on their way, and how fast they go.

use crate::error::{Context, Error, Result};
use crate::transport::Sender;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

/// Bytes that a pipe holds at most.
const PIPE: i32 = 1 << 20;
/// What a target needs for everything but memory, by experience.
const REBUILD: Duration = Duration::from_millis(40);

/// Carries images.
pub struct Bulk {
    sender: Sender,
}

impl Bulk {
    /// Over these streams.
    pub fn new(sender: Sender) -> Bulk {
        Bulk { sender }
    }

    /// Sends what `write` writes as the last item.
    pub fn last_item(mut self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        write(&mut self.sender)?;
        self.sender.end_item()?;
        self.sender.finish()
    }

    /// Sends what `make` writes into a pipe as one item.
    pub fn item<T>(&mut self, make: impl FnOnce(File) -> Result<T>) -> Result<T> {
        let (from, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(|| "making a pipe")?;
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE));
        let mut from = File::from(from);
        let sender = &mut self.sender;
        std::thread::scope(|scope| {
            let carrier = scope.spawn(move || -> Result<()> {
                let mut buffer = vec![0; PIPE as usize];
                loop {
                    match from.read(&mut buffer)? {
                        0 => return sender.end_item().map(drop),
                        n => sender.write_all(&buffer[..n]).map_err(Error::from)?,
                    }
                }
            });
            let made = make(File::from(into));
            let carried = carrier.join().unwrap_or_else(|_| Err(Error::other("sending an image has failed")));
            // What was not carried was not made either, but says less about why.
            carried.and(made)
        })
    }
}

/// One round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Bytes that were sent.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// The longest stop in it.
    pub stop: Duration,
}

/// How the rounds go.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes a second.
    speed: f64,
    rounds: Vec<u64>,
    last: Duration,
    stop: Duration,
}

impl Pace {
    /// Notes a round.
    pub fn note(&mut self, bytes: u64, took: Duration, stop: Duration) {
        // A small one tells little about the link.
        if bytes > 1 << 20 || self.speed == 0.0 {
            self.speed = bytes as f64 / took.as_secs_f64().max(1e-6);
        }
        (self.last, self.stop) = (took, stop);
        self.rounds.push(bytes);
    }

    /// How long nobody would run if the next round were the last one: as much is written in its time as in that of the last.
    pub fn downtime(&self) -> Duration {
        let bytes = self.rounds.last().copied().unwrap_or(0) as f64;
        self.stop + Duration::from_secs_f64(bytes / self.speed.max(1.0)) + REBUILD
    }

    /// Whether rounds do not get smaller any more: the last ones are no better than the best before. One may be smaller than the
    /// one before it by chance, as where there is much else to do.
    pub fn restless(&self) -> bool {
        const ROUNDS: usize = 3;
        let Some((before, last)) = self.rounds.len().checked_sub(ROUNDS).map(|from| self.rounds.split_at(from)) else { return false };
        let best = |rounds: &[u64]| rounds.iter().copied().min();
        before.len() > 1 && best(before).zip(best(last)).is_some_and(|(b, l)| l.saturating_mul(10) > b.saturating_mul(9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rounds: &[u64]) -> Pace {
        let mut pace = Pace::default();
        rounds.iter().for_each(|&mib| pace.note(mib << 20, Duration::from_millis(mib), Duration::from_millis(3)));
        pace
    }

    #[test]
    fn what_is_left_is_foreseen() {
        let downtime = pace(&[1000, 100]).downtime();
        assert!((143..=144).contains(&downtime.as_millis()), "{downtime:?}");
    }

    #[test]
    fn rounds_that_get_no_smaller_are_seen() {
        assert!(!pace(&[1000, 100, 50, 40, 30]).restless());
        assert!(!pace(&[1000, 900]).restless());
        assert!(pace(&[1000, 100, 99, 101, 100]).restless());
        assert!(pace(&[1000, 100, 150, 95, 140]).restless());
    }
}
