//! What people are told at the primary.

use super::protect::Outcome;
use super::state::{Path, Said};
use crate::progress::Report;

/// Tells it; what is different than before, or dangerous, is one of the outcome's warnings, too.
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
        Said::Slow => report.warning("the link does not carry an epoch in the time that was wished: they follow each other more slowly"),
        Said::Full => warn("the standby has no room for it: it is copied again later"),
        Said::Cut => warn("nothing is heard of the standby: nobody answers here until it is known what has become of it"),
        Said::AtRisk => warn("it goes on alone, since that was wanted: if the standby lives, two answer"),
        Said::Demoted => warn("the standby has taken over: the tree stands still here"),
        _ => {}
    }
}
