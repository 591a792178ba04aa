//! Copies of a tree that runs: each of what has changed since the one before, until the last one is expected to be small.

use super::super::REMARK;
use super::super::message::{Frame, Message};
use super::super::plan::unpack;
use super::super::rounds::{Bulk, Pace, Round};
use super::{End, Policy};
use crate::dump::moving::Moving;
use crate::error::{Error, Result};
use crate::progress::Report;
use crate::sys::signal;
use crate::transport;
use std::time::{Duration, Instant};

impl End<'_> {
    /// Copies while the tree runs, until what is left is expected to fit.
    pub(super) fn rounds(&mut self, report: &mut dyn Report) -> Result<()> {
        self.phase("streams", report, |end, _| {
            end.peer.open_bulk()?;
            end.bulk = Some(Bulk::new(end.peer.sender()?));
            Ok(())
        })?;
        self.files(report, |carry, peer, bulk, report| carry.begin(peer, bulk, report))?;
        let mut moving = Moving::begin(&self.options.dump, self.leave, report)?;
        let begun = Instant::now();
        let mut pace = Pace::default();
        while !self.leave {
            let round = self.round(&mut moving, report)?;
            self.outcome.stops = self.outcome.stops.max(round.stop);
            self.files(report, |carry, peer, bulk, _| carry.round(peer, bulk, false))?;
            pace.note(&Round { stop: round.stop + self.carry.took, ..round });
            report.note(&format!(
                "round {}: {} KiB sent in {:.1} ms; if it were the last, nobody would run for about {:.0} ms",
                moving.count(),
                round.bytes >> 10,
                round.took.as_secs_f64() * 1e3,
                pace.downtime().as_secs_f64() * 1e3
            ));
            if moving.count() > 1 && pace.downtime() <= self.options.max_downtime {
                break;
            }
            let late = begun.elapsed() >= self.options.timeout;
            if late || pace.restless() {
                self.out_of_hope(&pace, late, report)?;
                break;
            }
            // Whoever gives up is heard between two rounds.
            while let Some(frame) = self.peer.link.try_receive()? {
                self.between(&frame, report)?;
            }
            signal::check_interrupted()?;
        }
        self.moving = Some(moving);
        Ok(())
    }

    fn round(&mut self, moving: &mut Moving<'_>, report: &mut dyn Report) -> Result<Round> {
        let bulk = self.bulk.as_mut().ok_or_else(|| Error::other("there are no streams"))?;
        let begun = Instant::now();
        let name = if moving.count() == 0 { "first copy" } else { "rounds" };
        report.started(name);
        let made = bulk.item(|pipe| moving.round(pipe, report));
        report.ended(name, begun.elapsed());
        let (made, sending) = made.map_err(|e| self.explain(e))?;
        self.outcome.bytes += made.image_bytes;
        let sent = Instant::now();
        self.caught_up(moving.count(), report)?;
        let stop = made.pause.max(made.stops.unwrap_or_default());
        Ok(Round { bytes: made.image_bytes, took: begun.elapsed(), sending: sending + sent.elapsed(), stop })
    }

    /// Waits until the target has so many images: much is under way when a link holds much, and who stands still would wait for all
    /// of it; nor would the rounds show how fast the target is.
    fn caught_up(&mut self, images: u64, report: &mut dyn Report) -> Result<()> {
        const STEP: Duration = Duration::from_millis(50);
        while self.have < images {
            signal::check_interrupted()?;
            match self.peer.link.receive(Some(STEP)) {
                Ok(frame) => self.between(&frame, report)?,
                Err(_) if self.peer.link.failure().is_none() => {} // nothing came
                Err(e) => return Err(self.explain(e)),
            }
        }
        Ok(())
    }

    /// What the target says while the tree is copied.
    fn between(&mut self, frame: &transport::Frame, report: &mut dyn Report) -> Result<()> {
        if frame.kind == REMARK {
            self.remark(unpack(&frame.payload)?, report);
        } else if let Message::Abort { why } = unpack::<Frame>(&frame.payload)?.message {
            return Err(Error::other(format!("the target gave up: {why}")));
        }
        Ok(())
    }

    fn out_of_hope(&mut self, pace: &Pace, late: bool, report: &mut dyn Report) -> Result<()> {
        let foreseen = format!("nobody would run for about {:.0} ms", pace.downtime().as_secs_f64() * 1e3);
        let why = match late {
            true => format!("the time for copying is over, and {foreseen}"),
            false => format!("the tree writes its memory about as fast as it can be sent: {foreseen}"),
        };
        match self.options.policy {
            Policy::Force => {
                report.warning(&why);
                Ok(())
            }
            Policy::Lazy => {
                report.note(&format!("{why}: what is left follows when it runs there"));
                self.leave = true;
                Ok(())
            }
            Policy::Cancel => {
                Err(Error::other(why).help("allow more with --max-downtime, or move it all the same with --on-timeout force or lazy"))
            }
        }
    }
}
