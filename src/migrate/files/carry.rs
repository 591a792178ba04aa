//! The files of a move on their way: rounds, and what the target says to them.

use super::super::MOVE;
use super::super::REMARK;
use super::super::message::{Frame, Message};
use super::super::plan::{Remark, pack, unpack};
use super::super::rounds::Bulk;
use super::send::Round;
use super::wanted::Seen;
use super::{FILES, Files, Reply, Request, Word};
use crate::error::{Error, Kind, Result};
use crate::progress::Report;
use crate::sys::signal;
use crate::transport::{self, Peer};
use std::time::{Duration, Instant};

/// Rounds before memory is copied end with one that takes no longer.
const CALM: Duration = Duration::from_millis(100);
/// Or when so many in a row did not get smaller.
const RESTLESS: u32 = 3;

/// All of them.
#[derive(Default)]
pub struct Carry {
    root: i32,
    boot: [u8; 16],
    request: Request,
    seen: Seen,
    files: Option<Files>,
    /// Sets of changes that were sent.
    sets: u64,
    /// What was said beside that.
    pub remarks: Vec<Remark>,
    /// How long the last round took.
    pub took: Duration,
    /// Everything together.
    pub sent: Round,
}

impl Carry {
    /// What is asked for, for the tree below `root`. `boot`: this run of the machine.
    pub fn new(root: i32, boot: [u8; 16], request: Request, seen: Seen) -> Self {
        Carry { root, boot, request, seen, ..Carry::default() }
    }

    /// What the target answers.
    pub fn agreed(&mut self, reply: &Reply) -> Result<()> {
        self.files = Some(Files::new(&self.request, reply, &self.seen)?);
        Ok(())
    }

    /// Sends everything, until little is left to be sent.
    pub fn begin(&mut self, peer: &mut Peer, bulk: &mut Bulk, report: &mut dyn Report) -> Result<()> {
        let Some(files) = self.files.as_mut().filter(|f| !f.is_empty()) else { return Ok(()) };
        let remarks = &mut self.remarks;
        files.learn(&mut |number, each| {
            say(peer, &Word::List(number))?;
            loop {
                match hear(peer, remarks)? {
                    Word::Entries(some) => some.into_iter().try_for_each(&mut *each)?,
                    Word::Listed => return Ok(()),
                    _ => return Err(Error::link("the target's answer about files makes no sense")),
                }
            }
        })?;
        let (mut before, mut restless) = (u64::MAX, 0);
        loop {
            let round = self.round(peer, bulk, false)?;
            report.note(&format!(
                "files: {} changes, {} KiB sent in {:.1} ms",
                round.changes,
                round.bytes >> 10,
                self.took.as_secs_f64() * 1e3
            ));
            restless = if round.bytes > before / 10 * 9 { restless + 1 } else { 0 };
            before = round.bytes;
            // The first one is whole.
            if self.sets > 1 && (self.took <= CALM || round.changes == 0 || restless >= RESTLESS) {
                return Ok(());
            }
            signal::check_interrupted()?;
        }
    }

    /// Sends what has changed, and waits until the target has it.
    pub fn round(&mut self, peer: &mut Peer, bulk: &mut Bulk, last: bool) -> Result<Round> {
        self.ask_about_new(peer)?;
        let Some(files) = &mut self.files else { return Ok(Round::default()) };
        if last {
            files.unchanged()?;
        }
        if files.is_empty() {
            return Ok(Round::default());
        }
        let begun = Instant::now();
        let mut own = None;
        let made = bulk.item(|pipe| files.round(pipe, last).inspect_err(|e| own = Some(e.clone())));
        // What cannot be read here comes to the other end as changes that have no end.
        let (round, _) = made.map_err(|e| own.filter(|own| !is_carried(own)).unwrap_or_else(|| why(peer, e)))?;
        self.sets += 1;
        say(peer, &Word::Applied(self.sets))?;
        while !matches!(hear(peer, &mut self.remarks)?, Word::Done(n) if n == self.sets) {}
        self.took = begun.elapsed();
        self.sent = self.sent.and(round);
        Ok(round)
    }

    /// What the tree has opened since is asked for, too.
    fn ask_about_new(&mut self, peer: &mut Peer) -> Result<()> {
        let mut opened = super::wanted::opened(self.root, &self.request, &mut self.seen.paths, self.boot)?;
        let states = loop {
            if opened.is_empty() {
                return Ok(());
            }
            say(peer, &Word::Look(opened.iter().map(|(wanted, _)| wanted.clone()).collect()))?;
            let Word::Looked(states, refusals) = hear(peer, &mut self.remarks)? else {
                return Err(Error::link("the target's answer about files makes no sense"));
            };
            if refusals.is_empty() {
                break states;
            }
            // What a tree that runs has closed since is in nobody's way.
            let before = opened.len();
            opened.retain(|(wanted, _)| super::wanted::is_open(self.root, &wanted.path) || !self.seen.paths.remove(&wanted.path));
            if opened.len() == before {
                return Err(Error::refused("files that were opened meanwhile cannot be had there", refusals));
            }
        };
        if let Some(files) = &mut self.files {
            let agreed = opened.iter().zip(states);
            agreed.for_each(|((wanted, identity), state)| files.add(wanted, state, self.request.copying, *identity));
        }
        Ok(())
    }

    /// What is to be said of the target's folders when the tree stays.
    pub fn left(&self, host: &str) -> Option<String> {
        let folders: Vec<String> = self.files.iter().flat_map(Files::folders).map(|f| f.display().to_string()).collect();
        let touched = self.sets > 0 && !folders.is_empty();
        touched.then(|| format!("{} on {host} holds what was sent until then, and is whole only after another move", folders.join(", ")))
    }
}

fn say(peer: &Peer, word: &Word) -> Result<()> {
    peer.link.send(&transport::Frame { kind: FILES, generation: 1, payload: pack(word)? })
}

/// The next word; who gives up meanwhile is heard.
fn hear(peer: &mut Peer, remarks: &mut Vec<Remark>) -> Result<Word> {
    loop {
        signal::check_interrupted()?;
        match peer.link.receive(Some(Duration::from_millis(100))) {
            Ok(frame) if frame.kind == FILES => return unpack(&frame.payload),
            Ok(frame) if frame.kind == REMARK => remarks.extend(unpack(&frame.payload).ok()),
            Ok(frame) if frame.kind == MOVE => given_up(&frame)?,
            Ok(_) => {}
            Err(e) if peer.link.failure().is_some() => return Err(e),
            Err(_) => {}
        }
    }
}

fn given_up(frame: &transport::Frame) -> Result<()> {
    match unpack::<Frame>(&frame.payload)?.message {
        Message::Abort { why } => Err(Error::other(format!("the target gave up: {why}"))),
        _ => Ok(()),
    }
}

/// Whether it failed on its way, and not where it was made.
fn is_carried(e: &Error) -> bool {
    e.kind == Kind::LinkFailed || e.errno == Some(libc::EPIPE)
}

/// That a stream has failed says only that nobody takes from it; the target may say why.
pub fn why(peer: &mut Peer, e: Error) -> Error {
    const MOMENT: Duration = Duration::from_secs(3);
    let until = Instant::now() + MOMENT;
    while is_carried(&e) && Instant::now() < until {
        match peer.link.receive(Some(Duration::from_millis(100))) {
            Ok(frame) if frame.kind == MOVE => {
                if let Err(said) = given_up(&frame) {
                    return said;
                }
            }
            Ok(_) => {}
            Err(_) if peer.link.failure().is_some() => break,
            Err(_) => {}
        }
    }
    peer.link.failure().unwrap_or(e)
}
