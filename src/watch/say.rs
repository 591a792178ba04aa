//! What people are told while a tree is watched.

use super::protect::Outcome;
use super::state::{Path, Said};
use crate::error::Error;
use crate::progress::Report;
use std::time::Duration;

/// What was measured until something was said.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub jitter: Option<Duration>,
    pub interval: Duration,
    pub stale: u64,
}

impl Seen {
    pub fn tell(self, report: &mut dyn Report) {
        let jitter = self.jitter.map_or(String::new(), |most| format!("heartbeats are up to {most:.1?} off; "));
        report.note(&format!("{jitter}an epoch every {:.0?}; {} frames were not heeded", self.interval, self.stale));
    }
}

/// Tells of one epoch among many: of how it was made nobody wants to know.
pub struct Steady<'r>(pub &'r mut dyn Report);

impl Report for Steady<'_> {
    fn warning(&mut self, text: &str) {
        self.0.warning(text);
    }
    fn last_words(&mut self, e: &Error) {
        self.0.last_words(e);
    }
}

/// What people are told.
pub fn tell(said: Said, outcome: &mut Outcome, report: &mut dyn Report) {
    let mut warn = |text: &str| {
        report.warning(text);
        if !outcome.warnings.iter().any(|warning| warning == text) {
            outcome.warnings.push(text.to_owned());
        }
    };
    match said {
        Said::Protected => report.note("protected: if this host is lost, it goes on at the standby"),
        Said::BothPaths => report.note("both paths to the standby are there"),
        Said::OnePath(Path::Link) => warn("the link to the standby is silent; its heartbeats come"),
        Said::OnePath(Path::Beat) => warn("no heartbeats of the standby come; its link is there (is a firewall in the way of UDP?)"),
        Said::Unprotected => report.note("unprotected: if this host is lost, it ends"),
        // Not one of the outcome: it may have been for a moment.
        Said::Slow => report.warning("the link does not carry an epoch in the time that was wished: they follow each other more slowly"),
        Said::Full => warn("the standby has no room for it: it is copied again later"),
        Said::Cut => warn("nothing is heard of the standby: nobody answers here until it is known what has become of it"),
        Said::AtRisk => warn("it goes on alone, since that was wanted: if the standby lives, two answer"),
        Said::Demoted => warn("the standby has taken over: the tree stands still here"),
        Said::Replaced => report.note("it runs there: what stood still here was ended"),
        Said::Paused => report.note("paused: if this host is lost, it ends"),
        Said::Yielding => report.note("it stands still: the standby takes over, as was wanted"),
        Said::Stayed => report.warning("the standby has not taken over as was wanted: it goes on here"),
        Said::Unsure => warn("the standby was told to let it run, and is not heard any more: it stands still here"),
        _ => {}
    }
}
