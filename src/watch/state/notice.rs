//! Noticing that the other end is lost: two paths, each with its measured jitter.

use super::Path;
use std::time::Duration;

/// How far arrivals are from when they were due, in classes that each reach 2^(1/4) times as far as the one before.
#[derive(Debug, Clone)]
pub struct Jitter {
    classes: [u64; Jitter::CLASSES],
    count: u64,
}

impl Jitter {
    const CLASSES: usize = 96;
    /// Where the first class ends.
    const LEAST: f64 = 1e-6;

    fn end(class: usize) -> Duration {
        Duration::from_secs_f64(Self::LEAST * (class as f64 / 4.0).exp2())
    }

    /// Notes one.
    pub fn note(&mut self, off: Duration) {
        let class = ((off.as_secs_f64() / Self::LEAST).max(1.0).log2() * 4.0).ceil() as usize;
        self.classes[class.min(Self::CLASSES - 1)] += 1;
        self.count += 1;
    }

    /// What all but one in a thousand stay below; `None` before there are enough to say so.
    pub fn most(&self) -> Option<Duration> {
        const ENOUGH: u64 = 20;
        let beyond = self.count / 1000;
        let mut above = 0;
        let class = (0..Self::CLASSES).rev().find(|&class| {
            above += self.classes[class];
            above > beyond
        });
        class.filter(|_| self.count >= ENOUGH).map(Self::end)
    }
}

impl Default for Jitter {
    fn default() -> Self {
        Jitter { classes: [0; Self::CLASSES], count: 0 }
    }
}

/// One path.
#[derive(Debug, Clone, Default)]
struct Ear {
    heard: bool,
    at: Duration,
    /// The arrival itself and the number of what came, to measure the next one by.
    before: Option<(Duration, u64)>,
    jitter: Jitter,
}

/// What is heard of the other end.
#[derive(Debug, Clone)]
pub struct Notice {
    beat: Duration,
    timeout: Duration,
    ears: [Ear; 2],
    /// Instance and sequence of the newest frame.
    newest: (u64, u64),
    /// When this end last looked: it may have been stopped since.
    looked: Duration,
    said: Option<Path>,
}

impl Notice {
    pub fn new(beat: Duration, timeout: Duration) -> Self {
        let ears = [Ear::default(), Ear::default()];
        Notice { beat, timeout, ears, newest: (0, 0), looked: Duration::ZERO, said: None }
    }

    fn ear(&mut self, path: Path) -> &mut Ear {
        &mut self.ears[path as usize]
    }

    /// To be called before anything is concluded. That this end did not listen is not the other one's silence: it is given the
    /// time again that this one was away. Says whether it was.
    pub fn look(&mut self, now: Duration) -> bool {
        let away = now.saturating_sub(self.looked);
        let long = away > self.timeout / 2;
        if long {
            self.ears.iter_mut().for_each(|ear| ear.at += away);
        }
        self.looked = now;
        long
    }

    /// Whether nothing newer has come before.
    pub fn is_newest(&mut self, instance: u64, sequence: u64) -> bool {
        let newest = (instance, sequence) > self.newest;
        self.newest = self.newest.max((instance, sequence));
        newest
    }

    /// A sign of life.
    pub fn hear(&mut self, path: Path, sequence: u64, now: Duration) {
        // Frames go out on both paths in turn, and one after each beat: every second number is a beat later.
        let beat = self.beat;
        let ear = self.ear(path);
        if let Some((at, before)) = ear.before {
            match sequence.checked_sub(before) {
                None | Some(0) => return, // late, or heard before
                Some(2) => ear.jitter.note(now.saturating_sub(at).abs_diff(beat)),
                _ => {}
            }
        }
        ear.before = Some((now, sequence));
        self.touch(path, now);
    }

    /// A sign of life that says nothing about jitter.
    pub fn touch(&mut self, path: Path, now: Duration) {
        // Who is heard for the first time on one path has not been silent on the other.
        if !self.met() {
            self.ears.iter_mut().for_each(|ear| ear.at = ear.at.max(now));
        }
        let ear = self.ear(path);
        (ear.heard, ear.at) = (true, now.max(ear.at));
    }

    /// It was heard at all.
    pub fn met(&self) -> bool {
        self.ears.iter().any(|ear| ear.heard)
    }

    pub fn silent(&self, path: Path, now: Duration) -> bool {
        let ear = &self.ears[path as usize];
        !ear.heard || now.saturating_sub(ear.at) >= self.timeout
    }

    /// It was there, and is silent on both paths.
    pub fn lost(&self, now: Duration) -> bool {
        self.met() && self.silent(Path::Link, now) && self.silent(Path::Beat, now)
    }

    /// How long a path has been silent.
    pub fn since(&self, path: Path, now: Duration) -> Duration {
        now.saturating_sub(self.ears[path as usize].at)
    }

    /// The other end is another one: it counts from the beginning.
    pub fn meet(&mut self) {
        self.ears.iter_mut().for_each(|ear| ear.before = None);
    }

    /// A path whose silence is new (`Some(Some)`), or that both are there again.
    pub fn change(&mut self, now: Duration) -> Option<Option<Path>> {
        // One that was not heard yet is given the same time.
        let quiet = |path| self.since(path, now) >= self.timeout;
        let silent = match (quiet(Path::Link), quiet(Path::Beat)) {
            (true, false) => Some(Path::Link),
            (false, true) => Some(Path::Beat),
            (true, true) => return None,
            (false, false) => None,
        };
        (silent != self.said).then(|| {
            self.said = silent;
            silent
        })
    }

    /// See [`Jitter::most`]; the worse of the two paths.
    pub fn jitter(&self) -> Option<Duration> {
        self.ears.iter().filter_map(|ear| ear.jitter.most()).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn both_paths_must_be_silent() {
        let mut notice = Notice::new(100 * MS, 1000 * MS);
        assert!(!notice.lost(9000 * MS), "nobody was ever heard");
        notice.hear(Path::Link, 1, Duration::ZERO);
        notice.hear(Path::Beat, 2, 500 * MS);
        assert!(!notice.lost(1400 * MS) && notice.silent(Path::Link, 1400 * MS));
        assert!(notice.lost(1500 * MS));
        assert_eq!(notice.change(1400 * MS), Some(Some(Path::Link)));
        assert_eq!(notice.change(1450 * MS), None);
        notice.hear(Path::Link, 3, 1450 * MS);
        assert_eq!(notice.change(1451 * MS), Some(None));
    }

    #[test]
    fn a_path_that_was_not_heard_yet_is_not_called_silent_at_once() {
        let mut notice = Notice::new(100 * MS, 1000 * MS);
        notice.hear(Path::Link, 1, 5000 * MS);
        assert_eq!(notice.change(5001 * MS), None);
        notice.hear(Path::Link, 3, 5900 * MS);
        assert_eq!(notice.change(6000 * MS), Some(Some(Path::Beat)));
        notice.hear(Path::Beat, 4, 6001 * MS);
        assert_eq!(notice.change(6002 * MS), Some(None));
    }

    #[test]
    fn who_was_away_itself_waits_again() {
        let mut notice = Notice::new(100 * MS, 1000 * MS);
        notice.look(Duration::ZERO);
        notice.hear(Path::Link, 1, Duration::ZERO);
        for at in (100..=900).step_by(100) {
            notice.look(at * MS);
        }
        // Stopped for five seconds: 900 of the 1000 ms were over.
        notice.look(5900 * MS);
        assert!(!notice.lost(5900 * MS) && notice.lost(6000 * MS));
    }

    #[test]
    fn what_is_old_is_not_the_newest() {
        let mut notice = Notice::new(100 * MS, 1000 * MS);
        assert!(notice.is_newest(1, 7) && !notice.is_newest(1, 7) && !notice.is_newest(1, 6));
        assert!(notice.is_newest(2, 1) && !notice.is_newest(1, 8));
    }

    #[test]
    fn jitter_is_what_nearly_all_stay_below() {
        let mut jitter = Jitter::default();
        assert_eq!(jitter.most(), None);
        for _ in 0..1998 {
            jitter.note(100 * MS / 100);
        }
        jitter.note(50 * MS);
        let most = jitter.most().expect("enough");
        assert!(most >= MS && most < 2 * MS, "{most:?}");
        (0..10).for_each(|_| jitter.note(50 * MS));
        let most = jitter.most().expect("enough");
        assert!(most >= 50 * MS && most < 60 * MS, "{most:?}");
        jitter.note(Duration::MAX);
    }

    #[test]
    fn jitter_of_beats() {
        let mut notice = Notice::new(100 * MS, 1000 * MS);
        for n in 0..50 {
            let late = if n % 2 == 0 { 8 * MS } else { Duration::ZERO };
            notice.hear(Path::Beat, 2 * n as u64 + 1, n * 100 * MS + late);
        }
        let most = notice.jitter().expect("enough");
        assert!(most >= 8 * MS && most < 10 * MS, "{most:?}");
    }
}
