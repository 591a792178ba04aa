//! Memory that follows when the tree runs at its target: see [`super::super::feed`].

use super::super::REMARK;
use super::super::feed::Feed;
use super::super::plan::{Remark, pack};
use super::End;
use crate::dump::moving::Standing;
use crate::error::{Error, Result};
use crate::image::{Left, Owner};
use crate::progress::Report;
use crate::transport;
use std::time::Instant;

impl End<'_> {
    /// Says what is not in the last image, and answers for it from now on.
    pub(super) fn leave_rest(&mut self) -> Result<()> {
        let Some(rest) = self.standing.as_ref().map(Standing::rest).filter(|rest| !rest.blocks.is_empty()) else { return Ok(()) };
        const AT_ONCE: usize = 4096;
        for some in rest.blocks.chunks(AT_ONCE) {
            let of = |left: &Left| match left.owner {
                Owner::Process(pid) => (pid, left.ranges.clone()),
                Owner::Object(_) => (0, Vec::new()),
            };
            let payload = pack(&Remark::Left(some.iter().map(of).collect()))?;
            self.peer.link.send(&transport::Frame { kind: REMARK, generation: 1, payload })?;
        }
        self.feed = Some((Feed::begin(rest, self.options.dump.level, self.peer.link.beside())?, Instant::now()));
        Ok(())
    }

    /// It runs there: everything that was left out is sent.
    pub(super) fn feed(&mut self, report: &mut dyn Report) -> Result<()> {
        self.outcome.downtime = self.standing.as_ref().map(Standing::for_long).unwrap_or_default();
        report.note(&format!("it runs there after {:.1} ms; its pages follow", self.outcome.downtime.as_secs_f64() * 1e3));
        report.started("pages");
        let bulk = self.bulk.take().ok_or_else(|| Error::other("there are no streams"))?;
        let (feed, since) = self.feed.as_mut().ok_or_else(|| Error::other("nothing was left out"))?;
        *since = Instant::now();
        feed.send(bulk)
    }

    /// Nobody needs them any more.
    pub(super) fn fed(&mut self, report: &mut dyn Report) {
        let Some((feed, since)) = self.feed.take() else { return };
        let (bytes, asked) = feed.sent();
        self.outcome.bytes += bytes;
        self.outcome.phases.push(("pages".to_owned(), since.elapsed()));
        report.ended("pages", since.elapsed());
        report.note(&format!("blocks of pages that were waited for there: {asked}"));
    }
}
