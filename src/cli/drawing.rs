//! Draws what a screenplay reports: a bar on a terminal, else a line every few seconds, or JSON lines.

use super::console::{self, Console, Paint, line};
use super::figures;
use crate::error::Error;
use crate::progress::Report;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Without a terminal, how often a long phase says how far it is.
const LINE_EVERY: Duration = Duration::from_secs(3);
/// How often JSON tells of bytes.
const JSON_EVERY: Duration = Duration::from_millis(250);

/// Listens to a screenplay and shows its progress.
pub struct Drawing {
    console: Console,
    bar: Option<ProgressBar>,
    phase: &'static str,
    began: Instant,
    told: Instant,
    warned: Vec<String>,
}

impl Drawing {
    /// Ready to draw on `console`.
    pub fn new(console: Console) -> Self {
        let draws = !console.json && !console.quiet && std::io::stderr().is_terminal();
        let bar = draws.then(|| {
            // Nothing is drawn before the first phase has a name.
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            bar.set_style(spinner());
            bar
        });
        let now = Instant::now();
        Drawing { console, bar, phase: "", began: now, told: now, warned: Vec::new() }
    }

    /// Takes the drawing away and shows the warnings of an outcome that were not shown while it worked.
    pub fn finish(mut self, warnings: &[String]) {
        self.clear();
        for text in warnings {
            if !self.warned.contains(text) {
                self.warning(text);
            }
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| line(true, text)),
            None => line(true, text),
        }
    }

    fn event(&self, event: &str, more: serde_json::Value) {
        let mut value = json!({"event": event});
        if let (Some(value), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
            value.extend(more);
        }
        self.console.json("progress", value);
    }
}

impl Report for Drawing {
    fn started(&mut self, phase: &'static str) {
        self.phase = phase;
        self.began = Instant::now();
        self.told = self.began;
        if let Some(bar) = &self.bar {
            bar.unset_length();
            bar.set_position(0);
            bar.set_style(spinner());
            bar.set_message(phase);
            if bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            }
            bar.tick();
        }
        if self.console.json && !self.console.quiet {
            self.event("started", json!({"phase": phase}));
        }
    }

    fn ended(&mut self, phase: &'static str, took: Duration) {
        if self.console.json && !self.console.quiet {
            self.event("ended", json!({"phase": phase, "ms": figures::ms(took)}));
        } else if self.console.verbose {
            self.say(&self.console.err(&format!("  {phase:<24} {:>10}", figures::time(took)), Paint::Faint));
        }
    }

    fn bytes(&mut self, done: u64, total: Option<u64>) {
        if let Some(bar) = &self.bar {
            if let (None, Some(total)) = (bar.length(), total) {
                bar.set_length(total);
                bar.set_style(measured());
            }
            bar.set_position(done);
            return;
        }
        let every = if self.console.json { JSON_EVERY } else { LINE_EVERY };
        if self.console.quiet || self.told.elapsed() < every {
            return;
        }
        self.told = Instant::now();
        if self.console.json {
            return self.event("bytes", json!({"phase": self.phase, "done": done, "total": total}));
        }
        let of = total.map(|t| format!(" of {}", figures::bytes(t))).unwrap_or_default();
        let rate = done as f64 / self.began.elapsed().as_secs_f64();
        self.say(&format!("{}: {}{of}, {}/s", self.phase, figures::bytes(done), figures::bytes(rate as u64)));
    }

    fn standing(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        } else if self.console.json && !self.console.quiet {
            self.event("standing", json!({"text": text}));
        }
    }

    fn note(&mut self, text: &str) {
        if self.console.json && self.console.verbose {
            self.event("note", json!({"text": text}));
        } else if self.console.verbose {
            self.say(&self.console.err(&format!("  {text}"), Paint::Faint));
        }
    }

    fn warning(&mut self, text: &str) {
        self.warned.push(text.to_string());
        if self.console.json {
            return self.event("warning", json!({"text": text}));
        }
        self.say(&format!("{} {text}", self.console.err("warning:", Paint::Warn)));
    }

    fn last_words(&mut self, e: &Error) {
        if self.console.json { console::json_error(e, true) } else { self.console.error(e) }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        self.clear();
    }
}

/// While nobody knows how much there is to do. A template that does not parse falls back to the plain one.
fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn measured() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
