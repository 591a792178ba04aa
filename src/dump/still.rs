//! The stop: what must stand still does, nothing comes in, and all that is not memory is captured.

use super::lock::Locks;
use super::{Session, processes, tree};
use crate::error::{Error, Result};
use crate::progress::{Report, phase};
use crate::resource::socket::choice::{self, Choice};
use crate::resource::socket::listen;
use crate::sys::priority::Urgent;
use crate::sys::signal;
use crate::tracee::freeze::{Frozen, freeze};
use std::time::{Duration, Instant};

/// A tree that stands still and holds nothing that is refused.
pub(super) struct Still {
    pub(super) stopped: Instant,
    pub(super) frozen: Frozen,
    pub(super) captured: tree::Captured,
    pub(super) locks: Locks,
    /// Until it goes on.
    pub(super) urgent: Urgent,
}

impl Session<'_> {
    /// Freezes and captures. Where only such things stand in the way as pass by themselves, the tree is let go for a moment
    /// and looked at again, for as long as it may take to stop it.
    pub(super) fn hold_still(&mut self, report: &mut dyn Report, phases: &mut Vec<(&'static str, Duration)>) -> Result<Still> {
        let options = self.options;
        const TRIES: u32 = 50;
        const MOMENT: Duration = Duration::from_millis(5);
        let begin = Instant::now();
        let known = phases.len();
        let mut tried = 0;
        loop {
            tried += 1;
            // Only the try that counts is shown.
            phases.truncate(known);
            let mut locks = if self.network.is_empty() {
                Locks::default()
            } else {
                let before = self.lasting.as_mut().and_then(Option::take).unwrap_or_default();
                phase(report, phases, "network lock", |_| before.again(&processes(options.pid), &self.network, self.manner))?
            };
            let urgent = Urgent::begin();
            let stopped = Instant::now();
            let mut frozen = phase(report, phases, "freeze", |report| {
                let frozen = freeze(options.pid, options.freeze_timeout)?;
                let tasks: usize = frozen.processes.iter().map(|p| p.threads.len()).sum();
                report.note(&format!("tasks that stand still: {tasks}; processes: {}", frozen.processes.len()));
                Ok::<_, Error>(frozen)
            })?;
            let pids: Vec<i32> = frozen.processes.iter().map(|p| p.pid).collect();
            phase(report, phases, "lock", |_| locks.close(&pids))?;
            if let Some(answers) = self.stands.as_mut().map_or(Ok(None), |stands| stands())? {
                self.recall.begun.told(answers);
            }
            let mut captured = phase(report, phases, "capture", |_| {
                tree::capture(&mut frozen, &options.decisions, std::mem::take(&mut self.recall), self.tracking.as_mut())
            })?;
            part(phases, "sockets", captured.capture.sockets.get());
            let refusals = captured.capture.refusals.len();
            // What was made in the last moment is locked in the next.
            let covered = refusals > 0 || locks.covers(&captured.capture.network);
            if refusals == 0 && (covered || tried == TRIES) {
                if covered && listen::any(&captured.tree) {
                    let lost = phase(report, phases, "waiting connections", |_| {
                        let half_open = locks.half_open();
                        listen::complete(&mut captured.tree, &mut captured.capture, half_open, &mut |mute| locks.mute(mute))
                    })?;
                    captured.warnings.extend(lost);
                } else if !covered {
                    let lost = "sockets come and go: what waits at those that listen is not in the image";
                    captured.warnings.push(lost.to_owned());
                }
                if options.decisions.tcp == Choice::Close {
                    report.note(&format!("connections that are broken off in the image: {}", choice::close(&mut captured.tree)));
                }
                if locks.len() > 0 {
                    report.note(&format!("connections and ports that are locked: {}", locks.len()));
                    locks.remarks().for_each(|remark| report.note(remark));
                }
                return Ok(Still { stopped, frozen, captured, locks, urgent });
            }
            self.network.extend(&captured.capture.network);
            self.recall = std::mem::take(&mut captured.capture.recall);
            if let Some(tracking) = &mut self.tracking {
                tracking.given_up(&captured.jobs);
            }
            frozen.release();
            locks.open()?;
            if let Some(lasting) = &mut self.lasting {
                *lasting = Some(locks);
            }
            drop(urgent);
            if !covered {
                continue;
            }
            let passes = captured.capture.refusals.iter().all(|r| r.transient);
            let pause = MOMENT * tried.min(8);
            if !passes || tried == TRIES || begin.elapsed() + pause > options.freeze_timeout {
                return Err(Error::refused(&format!("cannot dump process {}", options.pid), captured.capture.refusals));
            }
            drop(captured);
            report.note(&format!("{refusals} things that pass by themselves are in the way: looking again"));
            std::thread::sleep(pause);
            signal::check_interrupted()?;
        }
    }
}

/// Takes a part of the last phase out of it, under a name of its own.
fn part(phases: &mut Vec<(&'static str, Duration)>, name: &'static str, took: Duration) {
    if let Some(whole) = phases.last_mut().filter(|_| !took.is_zero()) {
        whole.1 = whole.1.saturating_sub(took);
        phases.push((name, took));
    }
}
