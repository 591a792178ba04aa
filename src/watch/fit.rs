//! Whether a tree can be watched, and live at the standby: asked before anything is touched.

use super::protect::Options;
use crate::dump;
use crate::error::{Error, Kind, Refusal, Result};
use crate::migrate::address::Probe;
use crate::migrate::files;
use crate::migrate::local;
use crate::migrate::plan::{Details, Plan};
use crate::resource::Manifest;
use crate::restore::fits::{Needs, fits};
use crate::sys::room;
use std::net::IpAddr;

/// The tree as it is seen while it runs.
///
/// # Errors
/// With all that stands in the way here. `hidden`: its addresses are not here, since another meio has been killed.
pub fn plan(options: &Options, hidden: bool) -> Result<Plan> {
    let pid = options.dump.pid;
    let mut look = dump::preflight(pid, &options.dump.decisions)?;
    look.refusals.extend(local::stays_behind(&look.tree, &options.addresses));
    if look.refusals.iter().any(|r| !r.transient) {
        return Err(Error::refused(&format!("cannot watch process {pid}"), look.refusals));
    }
    let mut neighbours = Vec::new();
    for address in &options.addresses {
        if !hidden && !address.is_up()? {
            return Err(Error::new(Kind::NotFound, format!("the address {address} is not here")).help("ip address shows those that are"));
        }
        neighbours.extend(address.mac()?);
    }
    let manifest: Manifest = dump::manifest(pid, options.dump.capsule.clone())?;
    Ok(Plan {
        manifest,
        tree: look.tree,
        memory: dump::extent(pid).1,
        pid_namespace: options.pid_namespace,
        addresses: options.addresses.clone(),
        neighbours,
        spool: options.spool.clone(),
        dry_run: false,
        files: files::Request::default(),
    })
}

/// Everything that stands in the way of it at the standby, which this is.
pub fn check(plan: &Plan) -> Result<Details> {
    let arriving: Vec<(IpAddr, u8)> = plan.addresses.iter().map(|a| (a.ip, a.length)).collect();
    let settled = plan.files.settled(&plan.tree);
    let needs =
        Needs { pid_namespace: plan.pid_namespace, arriving: &arriving, memory: plan.memory, spool: &plan.spool, settled: &settled };
    let found = fits(&plan.manifest, &plan.tree, needs)?;
    let mut details = Details { refusals: found.refusals, warnings: found.warnings, ..Details::default() };
    details.refusals.extend(plan.addresses.iter().filter_map(|a| local::cannot_have(a, &plan.neighbours, Probe::QUICK)));
    details.refusals.extend(local::not_allowed(plan));
    details.refusals.extend(twice(plan, room::available()));
    Ok(details)
}

/// A copy in memory is there until all of the tree has been brought back from it. Who has no room for the tree alone was told so.
fn twice(plan: &Plan, free: u64) -> Option<Refusal> {
    let both = plan.memory.saturating_mul(2);
    let short = plan.spool.as_os_str().is_empty() && (plan.memory..both).contains(&free);
    let reason =
        format!("a copy and the tree brought back from it take {} MiB, and {} MiB are free here", both.div_ceil(1 << 20), free >> 20);
    short.then(|| Refusal {
        pid: plan.manifest.root_pid,
        object: "memory".into(),
        reason,
        advice: "end something on the standby, or keep the copy on a disk: --spool FOLDER".into(),
        ..Refusal::default()
    })
}
