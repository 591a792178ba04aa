//! The check screenplay: what this kernel, these privileges and, when asked, one very tree allow. Every gap says which
//! feature of meio it costs and how to mend it exactly.

mod privileges;
mod probes;

use crate::error::{Kind, Refusal, Result};
use crate::netlock::kept::{self, Lock};
use crate::progress::Report;
use crate::resource::capture::Decisions;
use serde::Serialize;

/// How much a gap matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Without it nothing can be dumped or restored.
    Required,
    /// Without it some trees, or some options, do not work.
    Feature,
    /// Nothing in this version needs it, or something else does its work.
    Spare,
}

/// One thing that was probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Short name, stable.
    pub name: &'static str,
    /// Whether it works.
    pub works: bool,
    /// How much it matters.
    pub weight: Weight,
    /// What was seen.
    pub detail: String,
    /// The feature of meio that is lost without it.
    pub costs: &'static str,
    /// How to get it.
    pub mend: String,
}

/// Everything that was found.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Kernel release and machine, uname(2).
    pub kernel: String,
    /// All probes, in a fixed order.
    pub findings: Vec<Finding>,
    /// What stands in the way in the tree that was asked about.
    pub refusals: Vec<Refusal>,
    /// Decisions that concerned nothing in it, each a sentence.
    pub warnings: Vec<String>,
    /// Network locks: of meios at work, and those that are kept for trees that are gone into an image.
    pub locks: Vec<Lock>,
}

impl Outcome {
    /// What does not work and matters now.
    pub fn gaps(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| !f.works && f.weight != Weight::Spare)
    }

    /// Whether something is missing without which nothing works.
    pub fn hopeless(&self) -> bool {
        self.gaps().any(|f| f.weight == Weight::Required)
    }
}

/// The network locks that there are; those whose owner has died are taken away before. None where they cannot be seen.
fn locks() -> Result<Vec<Lock>> {
    match kept::sweep(None).and_then(|_| kept::list(None)) {
        Err(e) if matches!(e.kind, Kind::Permission | Kind::Kernel) => Ok(Vec::new()),
        locks => locks,
    }
}

/// Takes away network locks that are kept: the one whose owner is, or begins with, `name`, or `all`.
///
/// # Errors
/// When there is none, or without `CAP_NET_ADMIN`.
pub fn unlock(name: &str) -> Result<Vec<Lock>> {
    kept::release_named(name)
}

/// Which of these capabilities (capabilities(7)) are not in force, and how each is given.
pub fn lacking(names: &[&'static str]) -> Vec<(&'static str, String)> {
    let own = privileges::Capabilities::own();
    names.iter().filter(|name| !own.has(name)).map(|&name| (name, privileges::give(name))).collect()
}

/// Probes the machine, and looks through the tree below `pid`.
pub fn run(pid: Option<i32>, decisions: &Decisions, report: &mut dyn Report) -> Result<Outcome> {
    let mut phases = Vec::new();
    // The tree first: a wrong pid is known at once.
    let (refusals, warnings) = match pid {
        Some(pid) => {
            let look = || crate::dump::preflight(pid, decisions);
            let seen = crate::progress::phase(report, &mut phases, "look through the tree", |_| look())?;
            (seen.refusals, seen.unused)
        }
        None => Default::default(),
    };
    let findings = crate::progress::phase(report, &mut phases, "probe the machine", |_| {
        let capabilities = privileges::Capabilities::own();
        let mut findings = probes::all(&capabilities);
        findings.extend(privileges::all(&capabilities));
        findings
    });
    let kernel =
        nix::sys::utsname::uname().map(|u| format!("Linux {} {}", u.release().to_string_lossy(), u.machine().to_string_lossy()))?;
    Ok(Outcome { kernel, findings, refusals, warnings, locks: locks()? })
}
