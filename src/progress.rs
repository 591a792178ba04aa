//! How a screenplay tells what it is doing. It knows phases, bytes and warnings; it knows no terminal, no colour
//! and no output format. The command line draws it (or does not), a test can record it.

use std::time::{Duration, Instant};

/// Told by a screenplay while it works. Every method is cheap enough to be called often; the listener thins out, and hears only
/// what it wants to.
pub trait Report {
    /// A phase begins. Phases do not nest.
    fn started(&mut self, _phase: &'static str) {}
    /// The phase that began last has ended, after so long.
    fn ended(&mut self, _phase: &'static str, _took: Duration) {}
    /// Bytes moved so far in this phase, and how many there will be where that is known.
    fn bytes(&mut self, _done: u64, _total: Option<u64>) {}
    /// How things stand with work that has no end; what was said before does not hold any more.
    fn standing(&mut self, _text: &str) {}
    /// Something that only a curious user wants to know (`-v`).
    fn note(&mut self, _text: &str) {}
    /// Whether all that is noted is in the log of the watch already: nobody else needs to put it there.
    fn is_log(&self) -> bool {
        false
    }
    /// Something that will be different than before, or was given up; the work goes on. It is shown at once;
    /// the screenplay also returns it in its outcome's `warnings`.
    fn warning(&mut self, _text: &str) {}
    /// A failure after the command has ended, told by a process that it has left behind.
    fn last_words(&mut self, _e: &crate::error::Error) {}
    /// The terminal is about to belong to somebody else (a restored tree): take away what is drawn on it.
    fn clear(&mut self) {}
}

/// Tells nobody.
pub struct Silent;

impl Report for Silent {}

/// Runs one named phase and times it; the time is reported also when the phase fails.
pub fn phase<T>(
    report: &mut dyn Report,
    phases: &mut Vec<(&'static str, Duration)>,
    name: &'static str,
    work: impl FnOnce(&mut dyn Report) -> T,
) -> T {
    report.started(name);
    let start = Instant::now();
    let result = work(report);
    let took = start.elapsed();
    report.ended(name, took);
    phases.push((name, took));
    result
}
