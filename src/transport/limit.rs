//! No more than so many bytes a second, shared by all streams.

use std::time::{Duration, Instant};

/// What may be sent at once after a pause: so much time's worth. Who sends may be kept waiting for a processor for a while.
const BURST: Duration = Duration::from_millis(200);

/// A clock of sent bytes: each has its time, and nothing goes before it.
#[derive(Debug)]
pub struct Limit {
    rate: f64,
    /// When all that was counted has had its time.
    due: Instant,
}

impl Limit {
    /// `rate` bytes a second.
    pub fn new(rate: u64) -> Limit {
        Limit { rate: rate.max(1) as f64, due: Instant::now() }
    }

    /// Counts `bytes` at `now`; how long to wait before they go.
    pub fn count(&mut self, bytes: usize, now: Instant) -> Duration {
        // What was not used is lost, but for a moment's worth.
        self.due = self.due.max(now.checked_sub(BURST).unwrap_or(now));
        self.due += Duration::from_secs_f64(bytes as f64 / self.rate);
        self.due.saturating_duration_since(now)
    }

    /// The largest piece that keeps the stream smooth: a twentieth of a second.
    pub fn piece(&self) -> usize {
        (self.rate / 20.0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_pauses_are_not_made_good() {
        let begin = Instant::now();
        let mut limit = Limit::new(1_000_000);
        let mut now = begin;
        for _ in 0..100 {
            now += limit.count(100_000, now);
        }
        let took = (now - begin).as_secs_f64();
        assert!((9.97..=10.01).contains(&took), "{took}");
        // After a pause of a minute only a moment's worth goes at once.
        now += Duration::from_secs(60);
        let wait = limit.count(1_000_000, now).as_secs_f64();
        assert!((0.799..=0.801).contains(&wait), "{wait}");
        assert_eq!(limit.piece(), 50_000);
    }
}
