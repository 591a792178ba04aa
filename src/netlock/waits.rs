//! When those who wait for what is held ask for an epoch.
//!
//! Each epoch has the tree stand still, and whoever comes a moment after its mark waits for the next one, too. Clients that were
//! answered together ask again together: they are waited for, as long as that costs those who wait already less than the others
//! would lose.

use crate::sys::nfqueue::is_after;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Who asks for an epoch as soon as the first one waits leaves out all who are a little later: nothing comes any more after this,
const QUIET: Duration = Duration::from_micros(500);
/// or after this part of what an epoch takes, where that is long.
const PART: u32 = 16;
/// Nobody waits longer for others than this, or than an epoch takes: whoever is left out waits for two of them.
const LONGEST: Duration = Duration::from_millis(3);
/// But for so long at most.
const MOST: Duration = Duration::from_millis(30);
/// A TCP that acknowledges what its program has not answered yet has somebody wait who goes on sending, not who asks: that one
/// sends again after 200 ms at the earliest (`TCP_RTO_MIN` of Linux), and where its window is full the window goes on so often,
const BARE: Duration = Duration::from_millis(20);
/// or where epochs take long after three times that, but for so long at most: the answer that the program is at work on asks for one.
const BAREST: Duration = Duration::from_millis(60);
/// Who asks after so many times that has not been answered just now.
const LATE: u32 = 4;
/// So few packets are somebody alone, who waits for nobody if they were as few the last time, however long ago that was.
const FEW: u64 = 4;

/// What has come to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    Nothing,
    /// Something, and more comes: ask again soon.
    Gathers,
    /// Nothing more comes, or somebody has waited for others for long.
    Waits,
}

/// Packets that came together.
#[derive(Debug, Clone, Copy)]
pub struct Coming {
    /// Number of the last.
    pub last: u32,
    /// How many.
    pub count: u64,
    /// When.
    pub at: Instant,
    /// How many of them say more than that something has arrived.
    pub asks: u64,
}

impl Coming {
    /// None yet.
    pub fn at(now: Instant) -> Coming {
        Coming { last: 0, count: 0, at: now, asks: 0 }
    }
}

/// How long packets have waited.
#[derive(Debug, Clone)]
pub struct Waits {
    /// Those that wait.
    coming: VecDeque<Coming>,
    /// When some were let out last, and how many waited then that say more than that something has arrived.
    gone: Option<Instant>,
    expected: u64,
    /// Marks that nothing was let out up to yet, and when they were put.
    marks: VecDeque<(u32, Instant)>,
    /// How long it took lately from a mark until it was let out up to that.
    takes: Duration,
    /// How many waited how long, in steps; the last one is for all that is longer.
    counts: Vec<u64>,
    longest: Duration,
}

/// A step of [`Waits`].
const STEP: Duration = Duration::from_micros(100);
/// How many there are.
const STEPS: usize = 20_000;

impl Default for Waits {
    fn default() -> Self {
        Waits {
            coming: VecDeque::new(),
            gone: None,
            expected: 0,
            marks: VecDeque::new(),
            takes: Duration::ZERO,
            counts: vec![0; STEPS],
            longest: Duration::ZERO,
        }
    }
}

impl Waits {
    /// Some have come.
    pub fn come(&mut self, coming: Coming) {
        self.coming.push_back(coming);
    }

    /// A mark was put behind all of them.
    pub fn mark(&mut self, mark: u32, now: Instant) {
        self.marks.push_back((mark, now));
    }

    /// All up to this one are let out.
    pub fn go(&mut self, last: u32, now: Instant) {
        self.gone = Some(now);
        let passed = self.marks.iter().take_while(|(mark, _)| !is_after(*mark, last)).count();
        if let Some((_, put)) = self.marks.drain(..passed).next_back() {
            self.takes = (self.takes * 3 + now.saturating_duration_since(put)) / 4;
        }
        let gone = self.coming.iter().take_while(|came| !is_after(came.last, last)).count();
        // Who is answered now asks again, and then all wait.
        self.expected = self.coming.iter().map(|came| came.asks).sum();
        for Coming { count, at, .. } in self.coming.drain(..gone) {
            let waited = now.saturating_duration_since(at);
            let step = (waited.as_micros() / STEP.as_micros()) as usize;
            self.counts[step.min(STEPS - 1)] += count;
            self.longest = self.longest.max(waited);
        }
    }

    /// Whether something has come after this mark, and nothing else is to be expected soon.
    pub fn news(&self, mark: u32, now: Instant) -> News {
        let for_long = |since: Instant, long: Duration| now.saturating_duration_since(since) >= long;
        let after = || self.coming.iter().skip_while(|came| !is_after(came.last, mark));
        let (Some(oldest), Some(last)) = (after().next(), self.coming.back()) else { return News::Nothing };
        let Some(first) = after().find(|came| came.asks > 0) else {
            let bare = BARE.max((self.takes * 3).min(BAREST));
            return if for_long(oldest.at, bare) { News::Waits } else { News::Nothing };
        };
        // Who was answered just now asks again.
        let since = |at: Instant| self.gone.map_or(at, |gone| gone.max(at));
        let (asks, waited) = after().fold((0, Duration::ZERO), |(asks, waited), came| {
            (asks + came.asks, waited + now.saturating_duration_since(since(came.at)) * came.asks as u32)
        });
        let (quiet, longest) = (QUIET.max((self.takes / PART).min(MOST / PART)), LONGEST.max(self.takes.min(MOST)));
        // Those who were answered long ago may never ask again.
        let late = self.expected > FEW && self.gone.is_some_and(|gone| since(first.at) > gone + longest * LATE);
        let expected = if late { 0 } else { self.expected };
        let all = expected > 0 && asks >= expected;
        let most = asks >= expected - expected / 4 && for_long(since(last.at), quiet);
        // Those who wait have lost by now what the others would lose.
        let enough = expected > 0 && waited >= self.takes * expected.saturating_sub(asks) as u32;
        if all || most || enough || for_long(since(first.at), longest) { News::Waits } else { News::Gathers }
    }

    /// How many packets have waited.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long the one waited at this place among all, from 0 for the shortest to 1 for the longest.
    pub fn quantile(&self, place: f64) -> Duration {
        let wanted = (self.count() as f64 * place) as u64;
        let mut seen = 0;
        let step = self.counts.iter().position(|count| {
            seen += count;
            seen > wanted
        });
        step.map_or(self.longest, |step| (STEP * (step as u32 + 1)).min(self.longest))
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service whose epochs take 20 ms; times are in ms from its beginning.
    struct Service {
        begun: Instant,
        waits: Waits,
        last: u32,
        mark: u32,
    }

    impl Service {
        /// 200 clients have asked together some times: each time it took 12 ms to answer them.
        fn of_many() -> Service {
            let mut service = Service { begun: Instant::now(), waits: Waits::default(), last: 0, mark: 0 };
            for round in 0..20 {
                service.come(round * 40 + 12, 200);
                service.mark(round * 40 + 15);
                service.go(round * 40 + 35);
            }
            service.begun += ms(20 * 40 - 5);
            service
        }

        fn at(&self, at: u64) -> Instant {
            self.begun + ms(at)
        }

        fn come(&mut self, at: u64, asks: u64) {
            self.last += asks.max(1) as u32;
            self.waits.come(Coming { last: self.last, count: asks.max(1), at: self.at(at), asks });
        }

        fn mark(&mut self, at: u64) {
            self.mark = self.last;
            self.waits.mark(self.mark, self.at(at));
        }

        fn go(&mut self, at: u64) {
            self.waits.go(self.mark, self.at(at));
        }

        fn news(&self, at: u64) -> News {
            self.waits.news(self.mark, self.at(at))
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn somebody_alone_waits_for_nobody() {
        let mut service = Service { begun: Instant::now(), waits: Waits::default(), last: 0, mark: 0 };
        assert_eq!(service.news(0), News::Nothing);
        service.come(0, 1);
        assert_eq!((service.news(0), service.news(1)), (News::Gathers, News::Waits));
        service.mark(1);
        service.go(6);
        service.come(1000, 1);
        assert_eq!(service.news(1000), News::Waits);
    }

    #[test]
    fn who_is_answered_together_asks_together() {
        let mut service = Service::of_many();
        service.come(12, 20);
        assert_eq!(service.news(14), News::Gathers);
        service.come(14, 180);
        assert_eq!(service.news(14), News::Waits);
        // Some of them never ask again.
        let mut service = Service::of_many();
        service.come(12, 160);
        assert_eq!((service.news(12), service.news(14)), (News::Gathers, News::Waits));
        let mut service = Service::of_many();
        service.come(12, 20);
        assert_eq!((service.news(31), service.news(32)), (News::Gathers, News::Waits));
    }

    #[test]
    fn who_was_left_out_waits_for_those_who_were_answered() {
        let left_out = |rest: u64| {
            let mut service = Service::of_many();
            service.come(12, rest);
            service.mark(13);
            service.come(14, 200 - rest);
            service.go(33);
            service
        };
        let mut service = left_out(80);
        assert_eq!(service.news(45), News::Gathers);
        service.come(46, 80);
        assert_eq!(service.news(46), News::Waits);
        // The fewer of them there are the less it costs to let them wait.
        assert_eq!((left_out(80).news(46), left_out(80).news(47)), (News::Gathers, News::Waits));
        assert_eq!((left_out(100).news(52), left_out(180).news(52), left_out(100).news(53)), (News::Gathers, News::Gathers, News::Waits));
    }

    #[test]
    fn what_only_says_that_something_has_arrived_asks_late() {
        let mut service = Service::of_many();
        service.come(1, 0);
        assert_eq!((service.news(60), service.news(61)), (News::Nothing, News::Waits));
        let mut service = Service { begun: Instant::now(), waits: Waits::default(), last: 0, mark: 0 };
        service.come(0, 0);
        assert_eq!((service.news(19), service.news(20)), (News::Nothing, News::Waits));
    }
}
