//! The source's side of pages that come after the tree runs: they are read from the tree, which stands still.

use super::PAGES;
use super::pull::{BEGIN, HEADER, pack};
use super::rounds::Bulk;
use crate::dump::Rest;
use crate::error::{Context, Error, Result};
use crate::transport::{Beside, Frame};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// What feeds the target.
pub struct Feed {
    rest: Arc<Rest>,
    level: Option<i32>,
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
    /// What has stood in the way.
    failure: Arc<OnceLock<Error>>,
    answers: Option<JoinHandle<()>>,
}

impl Feed {
    /// From now on who asks for a block gets it.
    pub fn begin(rest: Arc<Rest>, level: Option<i32>, beside: Beside) -> Result<Feed> {
        let mut feed = Feed {
            rest: rest.clone(),
            level,
            over: Arc::default(),
            sent: Arc::default(),
            asked: Arc::default(),
            failure: Arc::default(),
            answers: None,
        };
        let (over, sent, asked) = (feed.over.clone(), feed.sent.clone(), feed.asked.clone());
        let failure = feed.failure.clone();
        let work = move || {
            // What cannot be answered is waited for until the link ends.
            let done = answer(&rest, level, &beside, (&over, &sent, &asked));
            done.unwrap_or_else(|e| drop(failure.set(e)));
        };
        feed.answers = Some(std::thread::Builder::new().name("pages".into()).spawn(work).context(|| "cannot start a thread")?);
        Ok(feed)
    }

    /// Sends everything over the streams.
    pub fn send(&self, bulk: Bulk) -> Result<()> {
        let failure = self.failure.clone();
        let (rest, level, over, sent) = (self.rest.clone(), self.level, self.over.clone(), self.sent.clone());
        let work = move || {
            // When the streams fail the link has failed, or the target has all that it needs.
            let done = bulk.last_item(|to| {
                to.write_all(&BEGIN)?;
                let mut data = Vec::new();
                for block in 0..rest.blocks.len() as u32 {
                    if over.load(Ordering::Acquire) {
                        break;
                    }
                    rest.read(block, &mut data)?;
                    let packed = pack(block, &data, level)?;
                    to.write_all(&packed)?;
                    sent.fetch_add(packed.len() as u64, Ordering::Relaxed);
                }
                Ok(())
            });
            done.unwrap_or_else(|e| drop(failure.set(e)));
        };
        std::thread::Builder::new().name("feed".into()).spawn(work).map(drop).context(|| "cannot start a thread")
    }

    /// Why not everything was sent.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.get()
    }

    /// Bytes that were sent, and how many blocks were asked for.
    pub fn sent(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.asked.load(Ordering::Relaxed))
    }
}

fn answer(rest: &Rest, level: Option<i32>, beside: &Beside, (over, sent, asked): (&AtomicBool, &AtomicU64, &AtomicU64)) -> Result<()> {
    const STEP: Duration = Duration::from_millis(100);
    let mut data = Vec::new();
    while !over.load(Ordering::Acquire) {
        let Some(frame) = beside.receive(STEP)? else { continue };
        let Some(number) = frame.payload.first_chunk::<4>().filter(|_| frame.kind == PAGES) else { continue };
        let block = u32::from_le_bytes(*number);
        rest.read(block, &mut data)?;
        let payload = pack(block, &data, level)?;
        sent.fetch_add((payload.len() - HEADER) as u64, Ordering::Relaxed);
        asked.fetch_add(1, Ordering::Relaxed);
        beside.send(&Frame { kind: PAGES, generation: 1, payload })?;
    }
    Ok(())
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.answers.take().map(JoinHandle::join);
    }
}
