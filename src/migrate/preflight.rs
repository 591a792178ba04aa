//! What is found out before anything is touched.

use super::message::{Frame, Id, Message};
use super::outcome::Outcome;
use super::plan::{Details, Plan, pack, unpack};
use super::source::Options;
use super::state::Limits;
use super::{MOVE, files};
use crate::dump::{self, preflight};
use crate::error::{Error, Kind, Result};
use crate::progress::{Report, phase};
use crate::resource::Manifest;
use crate::sys::signal;
use crate::transport;
use std::time::{Duration, Instant};

/// Looks at everything at both ends, and says all that stands in the way.
pub fn dry_run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    let begun = Instant::now();
    signal::catch();
    let mut phases = Vec::new();
    let (plan, counts, _) = phase(report, &mut phases, "check", |_| plan(options, true))?;
    let mut peer = phase(report, &mut phases, "connect", |report| transport::connect(&options.to, &options.how, report))?;
    let details = phase(report, &mut phases, "target", |_| -> Result<Details> {
        let prepare = Frame { id: fresh_id()?, generation: 1, message: Message::Prepare { plan: pack(&plan)? } };
        peer.link.send(&transport::Frame { kind: MOVE, generation: 1, payload: pack(&prepare)? })?;
        loop {
            let frame = peer.link.receive(Some(limits(&plan).prepared))?;
            if frame.kind != MOVE {
                continue;
            }
            match unpack::<Frame>(&frame.payload)?.message {
                Message::Prepared { details } => return unpack(&details),
                Message::Abort { why } => return Err(Error::other(why)),
                _ => {}
            }
        }
    })?;
    refuse(options, &details)?;
    let outcome = Outcome::begin(&plan, counts, &peer.hello.host, phases);
    Ok(Outcome { total: begun.elapsed(), warnings: details.warnings, ..outcome })
}

/// The tree as it is seen while it runs; how many processes and threads it has.
pub(super) fn plan(options: &Options, dry_run: bool) -> Result<(Plan, (u32, u32), files::wanted::Seen)> {
    let pid = options.dump.pid;
    let mut look = preflight(pid, &options.dump.decisions)?;
    look.refusals.extend(super::local::stays_behind(&look.tree, &options.addresses));
    let (files, seen, refusals) = files::wanted::look(&look.tree, &options.files, super::record::boot()?, &|| !signal::is_pending())?;
    look.refusals.extend(refusals);
    if look.refusals.iter().any(|r| !r.transient) {
        return Err(Error::refused(&format!("cannot move process {pid}"), look.refusals));
    }
    let mut neighbours = Vec::new();
    for address in &options.addresses {
        if !address.is_up()? {
            return Err(Error::new(Kind::NotFound, format!("the address {address} is not here")).help("ip address shows those that are"));
        }
        neighbours.extend(address.mac()?);
    }
    let counts = (look.tree.processes.len() as u32, look.tree.processes.iter().map(|p| p.threads.len().max(1) as u32).sum());
    let manifest: Manifest = dump::manifest(pid, options.dump.capsule.clone())?;
    let memory = dump::extent(pid).1;
    let (addresses, spool) = (options.addresses.clone(), options.spool.clone());
    let pid_namespace = options.pid_namespace;
    Ok((Plan { manifest, tree: look.tree, memory, pid_namespace, addresses, neighbours, spool, dry_run, files }, counts, seen))
}

/// The target reads the files that it compares.
pub(super) fn limits(plan: &Plan) -> Limits {
    const SLOW: u64 = 32 << 20; // bytes a second
    let limits = Limits::default();
    Limits { prepared: limits.prepared + Duration::from_secs(plan.files.bytes() / SLOW), ..limits }
}

pub(super) fn fresh_id() -> Result<Id> {
    let mut id = Id::default();
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut id)?;
    Ok(id)
}

pub(super) fn refuse(options: &Options, details: &Details) -> Result<()> {
    if details.refusals.is_empty() {
        return Ok(());
    }
    let what = format!("process {} cannot live on {}", options.dump.pid, options.to.host);
    Err(Error::refused(&what, details.refusals.clone()))
}
