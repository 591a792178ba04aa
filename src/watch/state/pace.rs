//! When an epoch begins.

use super::Limits;
use std::time::Duration;

/// One part of the time in so many is what the tree stands still at most, where nobody waits for an epoch.
const SHARE: u32 = 20;

/// The interval, as it adapts: longer when the link does not carry more, or the tree would stand still too often; shorter when
/// somebody waits.
#[derive(Debug, Clone)]
pub struct Pace {
    usual: Duration,
    least: Duration,
    most: Duration,
    now: Duration,
    /// Longer while the tree does nothing; zero where it does something.
    rest: Duration,
    /// What the stops of the tree allow.
    stops: Duration,
    /// When the last one began.
    begun: Option<Duration>,
}

impl Pace {
    pub fn new(limits: &Limits) -> Self {
        Pace {
            usual: limits.interval,
            least: limits.interval_min,
            most: limits.interval_max,
            now: limits.interval,
            rest: Duration::ZERO,
            stops: Duration::ZERO,
            begun: None,
        }
    }

    /// An epoch begins.
    pub fn begin(&mut self, now: Duration) {
        self.begun = Some(now);
    }

    /// How long one took from its beginning until it was known to be whole at the other end.
    pub fn note(&mut self, took: Duration) {
        // What takes longer than the interval would pile up: a quarter more leaves the link air.
        let carried = (took * 5 / 4).clamp(self.usual, self.most);
        self.now = if carried > self.now { carried } else { self.now - (self.now - carried) / 4 };
    }

    /// How long the tree stood still for one.
    pub fn stood(&mut self, stop: Duration) {
        let apart = (stop * SHARE).min(self.most);
        self.stops = (self.stops * 3 + apart) / 4;
    }

    /// Whether the tree did hardly anything since the last one: there is no use in looking often then.
    pub fn idle(&mut self, idle: bool) {
        self.rest = if idle { (self.rest.max(self.usual) * 2).min(self.most) } else { Duration::ZERO };
    }

    /// When the next one is due. `hurry`: somebody waits, and no other one is on its way.
    pub fn due(&self, hurry: bool) -> Duration {
        let Some(begun) = self.begun else { return Duration::ZERO };
        begun + if hurry { self.least } else { self.interval() }
    }

    /// The interval.
    pub fn interval(&self) -> Duration {
        self.now.max(self.rest).max(self.stops)
    }

    /// What the link carries.
    pub fn carried(&self) -> Duration {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_follows_the_link_within_its_limits() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new(&Limits::default());
        assert_eq!(pace.due(false), Duration::ZERO);
        pace.begin(ms(100));
        assert_eq!((pace.due(false), pace.due(true)), (ms(150), ms(105)));
        pace.note(ms(400));
        assert_eq!(pace.interval(), ms(500));
        pace.note(ms(90_000));
        assert_eq!(pace.interval(), ms(1000));
        assert_eq!(pace.due(true), ms(105));
        (0..40).for_each(|_| pace.note(ms(3)));
        assert!(pace.interval() < ms(51), "{:?}", pace.interval());
    }

    #[test]
    fn stops_that_take_long_are_further_apart() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new(&Limits::default());
        pace.begin(ms(100));
        (0..30).for_each(|_| pace.stood(ms(2)));
        assert_eq!(pace.interval(), ms(50));
        (0..30).for_each(|_| pace.stood(ms(10)));
        assert!((ms(199)..=ms(200)).contains(&pace.interval()), "{:?}", pace.interval());
        assert_eq!((pace.due(true), pace.carried()), (ms(105), ms(50)));
        (0..30).for_each(|_| pace.stood(ms(900)));
        assert!(pace.interval() <= ms(1000));
    }

    #[test]
    fn who_does_nothing_is_looked_at_less_often() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new(&Limits::default());
        pace.begin(ms(100));
        pace.idle(true);
        assert_eq!((pace.due(false), pace.due(true)), (ms(200), ms(105)));
        (0..9).for_each(|_| pace.idle(true));
        assert_eq!((pace.interval(), pace.carried()), (ms(1000), ms(50)));
        pace.idle(false);
        assert_eq!(pace.due(false), ms(150));
    }
}
