//! How long each step of a take-over took, from the last word of the primary on.

use super::state::Action;
use super::switch::ms;
use std::fmt;
use std::time::{Duration, Instant};

/// The steps, in their order.
#[derive(Debug)]
pub struct Steps {
    /// The primary had been silent for so long when it was taken for lost.
    silence: Duration,
    begun: Instant,
    took: Vec<(&'static str, Duration)>,
    /// What rebuilding was made of.
    parts: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// It begins now.
    pub fn begin(silence: Duration) -> Steps {
        Steps { silence, begun: Instant::now(), took: Vec::new(), parts: Vec::new() }
    }

    /// One is done. One that is done again counts with what it took before.
    pub fn done(&mut self, name: &'static str, took: Duration) {
        match self.took.iter_mut().find(|(of, _)| *of == name) {
            Some((_, before)) => *before += took,
            None => self.took.push((name, took)),
        }
    }

    /// What rebuilding was made of.
    pub fn parts(&mut self, parts: &[(&'static str, Duration)]) {
        self.parts.extend_from_slice(parts);
    }

    /// All of them, in milliseconds.
    pub fn all(&self) -> Vec<(String, f64)> {
        let first = std::iter::once(("detect".to_owned(), ms(self.silence)));
        first.chain(self.took.iter().map(|(name, took)| ((*name).to_owned(), ms(*took)))).collect()
    }

    /// One is done that has taken all the time since those before.
    pub fn since(&mut self, name: &'static str) {
        let before = self.took.iter().map(|(_, took)| *took).sum();
        self.done(name, self.total().saturating_sub(before));
    }

    /// Since it began.
    pub fn total(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// What a step of a take-over is called.
pub fn step(action: Action) -> Option<&'static str> {
    Some(match action {
        Action::Block => "block",
        Action::Record(_) => "record",
        Action::Place(_) => "place",
        Action::Probe => "probe",
        Action::Raise => "address",
        Action::Tell => "neighbours",
        Action::Open => "open",
        _ => return None,
    })
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "detect {:.1} ms", ms(self.silence))?;
        for (name, took) in &self.took {
            write!(f, ", {name} {:.1} ms", ms(*took))?;
            if *name == "restore" && !self.parts.is_empty() {
                let parts: Vec<String> = self.parts.iter().map(|(name, took)| format!("{name} {:.1}", ms(*took))).collect();
                write!(f, " ({})", parts.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_steps_are_told() {
        let ms = Duration::from_millis;
        let mut steps = Steps::begin(ms(1004));
        for (name, took) in [("block", 2), ("restore", 40), ("restore", 2), ("run", 1)] {
            steps.done(name, ms(took));
        }
        steps.parts(&[("files", ms(3)), ("state", ms(9))]);
        let told = "detect 1004.0 ms, block 2.0 ms, restore 42.0 ms (files 3.0, state 9.0), run 1.0 ms";
        assert_eq!(steps.to_string(), told);
    }
}
