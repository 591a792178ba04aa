//! How it stands at the standby, for people and for the primary.

use super::Agent;
use crate::transport::Frame;
use crate::watch::history::Entry;
use crate::watch::nodes::EACH;
use crate::watch::setup::NODES;
use crate::watch::state::Said;
use crate::watch::status::ms;
use crate::watch::steps::Steps;
use std::time::{Duration, Instant};

impl Agent<'_> {
    /// For the log, and for whoever looks at this process.
    pub(super) fn note(&self, text: &str) {
        let mut report = self.report.borrow_mut();
        if !report.is_log() {
            self.store.note(&self.record.name, text);
        }
        report.note(text);
    }

    /// The primary is told now and then how this end stands.
    pub(super) fn tell(&mut self) {
        if self.told.elapsed() < EACH {
            return;
        }
        self.told = Instant::now();
        let silence = self.machine.silence(self.begun.elapsed());
        self.board.hosts.hears(&self.primary, silence);
        let jitter = self.machine.jitter().map(ms);
        let (copied, unheeded) = (self.spool.bytes(), self.machine.stale() + self.beats.dropped().all());
        self.board.note(|status| (status.jitter_ms, status.copy_bytes, status.unheeded) = (jitter, Some(copied), unheeded));
        // Who takes nothing is not to keep this end waiting.
        if silence < self.timeout.max(Duration::from_secs(1))
            && let Some(peer) = &self.peer
            && let Ok(payload) = self.board.tells(false)
        {
            let _ = peer.link.send(&Frame { kind: NODES, generation: self.machine.generation(), payload });
        }
    }

    /// Something that has happened, with what is known of it.
    pub(super) fn about(&self, said: Said, entry: Entry) -> Entry {
        let planned = self.machine.is_planned();
        let reason = match said {
            Said::TakingOver if planned => "the primary's user wants it".to_owned(),
            Said::TakingOver => format!("nothing was heard of the primary for {:.0?}", self.machine.silence(self.begun.elapsed())),
            Said::Failed => self.failure.clone().unwrap_or(entry.reason),
            _ => entry.reason,
        };
        let steps = self.steps.as_ref().filter(|_| said == Said::TakenOver).map_or(Vec::new(), Steps::all);
        let (other, generation, epoch) = (Some(self.primary.clone()), self.machine.generation(), self.kept.map(|(mark, _)| mark));
        Entry { reason, other, generation, epoch: epoch.or(self.board.epoch()), steps, ..entry }
    }
}
