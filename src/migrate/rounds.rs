//! Images on their way, and how fast they go.

use crate::error::{Context, Error, Result};
use crate::transport::Sender;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

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

    /// Sends what `make` writes into a pipe as one item, and tells what it has made and how long the streams took.
    pub fn item<T>(&mut self, make: impl FnOnce(File) -> Result<T>) -> Result<(T, Duration)> {
        let (from, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(|| "making a pipe")?;
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE));
        let mut from = File::from(from);
        let sender = &mut self.sender;
        std::thread::scope(|scope| {
            let carrier = scope.spawn(move || -> Result<Duration> {
                let mut buffer = vec![0; PIPE as usize];
                let mut taken = Duration::ZERO;
                loop {
                    let n = from.read(&mut buffer)?;
                    let begun = Instant::now();
                    match n {
                        0 => return sender.end_item().map(|_| taken + begun.elapsed()),
                        n => sender.write_all(&buffer[..n]).map_err(Error::from)?,
                    }
                    taken += begun.elapsed();
                }
            });
            let made = make(File::from(into));
            let carried = carrier.join().unwrap_or_else(|_| Err(Error::other("sending an image has failed")));
            // What was not carried was not made either, but says less about why.
            carried.and_then(|taken| Ok((made?, taken)))
        })
    }
}

/// One round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Bytes that were sent.
    pub bytes: u64,
    /// How long it took, until the target had it.
    pub took: Duration,
    /// As much of that as went to the streams and the target.
    pub sending: Duration,
    /// The longest stop in it.
    pub stop: Duration,
}

/// How the rounds go.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes a second.
    speed: f64,
    rounds: Vec<u64>,
    stop: Duration,
}

impl Pace {
    /// Notes a round.
    pub fn note(&mut self, round: &Round) {
        let speed = |time: Duration| round.bytes as f64 / time.as_secs_f64().max(1e-6);
        // A small one tells little about the link: what else there is to do in a round takes longer than its bytes.
        if round.bytes > 1 << 20 {
            self.speed = speed(round.took);
        } else if self.speed == 0.0 {
            self.speed = speed(round.sending);
        }
        self.stop = round.stop;
        self.rounds.push(round.bytes);
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
        let (sending, stop) = (Duration::ZERO, Duration::from_millis(3));
        rounds.iter().for_each(|&mib| pace.note(&Round { bytes: mib << 20, took: Duration::from_millis(mib), sending, stop }));
        pace
    }

    #[test]
    fn what_is_left_is_foreseen() {
        let downtime = pace(&[1000, 100]).downtime();
        assert!((143..=144).contains(&downtime.as_millis()), "{downtime:?}");
    }

    /// A tree that is small and slow to look through is no slow link.
    #[test]
    fn small_rounds_take_long_for_other_reasons() {
        let [took, sending, stop] = [200, 4, 10].map(Duration::from_millis);
        let mut pace = Pace::default();
        pace.note(&Round { bytes: 150 << 10, took, sending, stop });
        pace.note(&Round { bytes: 20 << 10, took, sending, stop });
        assert!(pace.downtime() < Duration::from_millis(52), "{:?}", pace.downtime());
        // Unless the link is.
        let mut pace = Pace::default();
        pace.note(&Round { bytes: 150 << 10, took, sending: took, stop });
        assert!(pace.downtime() > Duration::from_millis(240), "{:?}", pace.downtime());
    }

    #[test]
    fn rounds_that_get_no_smaller_are_seen() {
        assert!(!pace(&[1000, 100, 50, 40, 30]).restless());
        assert!(!pace(&[1000, 900]).restless());
        assert!(pace(&[1000, 100, 99, 101, 100]).restless());
        assert!(pace(&[1000, 100, 150, 95, 140]).restless());
    }
}
