//! What is told while a tree is rebuilt, and goes to the source when there is time for it.

use crate::error::Error;
use crate::migrate::plan::Remark;
use crate::progress::Report;
use std::time::Instant;

/// What is told while everything is rebuilt, for later: nothing is to wait for it.
#[derive(Default)]
pub struct Told(pub Vec<Remark>);

impl Told {
    /// How long something took that began then.
    pub fn phase(&mut self, name: &str, begun: Instant) {
        self.0.push(Remark::Phase(name.to_owned(), begun.elapsed().as_micros() as u64));
    }
}

impl Report for Told {
    fn note(&mut self, text: &str) {
        self.0.push(Remark::Note(text.to_owned()));
    }
    fn warning(&mut self, text: &str) {
        self.0.push(Remark::Warning(text.to_owned()));
    }
    fn last_words(&mut self, e: &Error) {
        self.0.push(Remark::Warning(e.message.clone()));
    }
}
