//! Images on their way to several standbys at once: each is made and packed once, and goes to each of them as fast as its link takes
//! it. Who is slower than the others falls behind, and holds nobody up as long as enough of them keep up; who falls too far behind, or
//! comes back and misses what is not kept any more, gets nothing more until everything is copied anew: to all, or to it alone ([`fill`]).

mod fill;

use super::PIPE;
use crate::error::{Context, Error, Result};
use crate::transport::Sender;
use crate::watch::state::{Mark, Part};
pub use fill::Filler;
use fill::Own;
use nix::fcntl::{FcntlArg, fcntl};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are kept for who comes back soon.
const KEPT: usize = 16 << 20;
/// Bytes that somebody may be behind who is not waited for.
const BEHIND: usize = 64 << 20;
/// The same while, or since, it gets a copy of everything.
const FILLING: usize = 256 << 20;
/// Bytes that somebody may be behind who is.
const NEAR: usize = 8 << 20;
/// Images whose numbers are known.
const REMEMBERED: usize = 256;
/// Who takes nothing for so long is not waited for any more.
const PATIENCE: Duration = Duration::from_secs(5);
/// A link that takes nothing of a copy of everything for so long carries nothing, although words may come over it.
const STILL: Duration = Duration::from_secs(15);
/// Nor does one over which all of it was sent that long ago, where it is not there.
const ARRIVES: Duration = Duration::from_secs(60);

/// A part of an image.
#[derive(Clone)]
enum Piece {
    Bytes(Arc<Vec<u8>>),
    /// The image ends here.
    End,
}

impl Piece {
    fn length(&self) -> usize {
        if let Piece::Bytes(bytes) = self { bytes.len() } else { 0 }
    }
}

/// The way to one of them.
#[derive(Default)]
struct Outlet {
    /// Number of the link, 0 for none.
    link: u64,
    /// It is to have the next series.
    joins: bool,
    /// It gets this series, and goes on at this piece.
    attached: bool,
    next: u64,
    /// When it went on last.
    moved: Option<Instant>,
    /// Since when the link has been taking what was handed to it.
    takes: Option<Instant>,
    /// Images that it has by this link.
    images: u64,
    /// What its numbers of images are behind those here, or before them: it may have had images of a meio that was killed,
    offset: u64,
    /// of which this is the first that it gets.
    from: u64,
    /// A copy of everything that it gets instead of the first.
    own: Option<Own>,
    broken: Option<(u64, Error)>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Piece>,
    /// Number of the first of them.
    first: u64,
    bytes: usize,
    /// Number of the last image that was made.
    images: u64,
    /// Where images begin: number, epoch, piece.
    begins: VecDeque<(u64, Mark, u64)>,
    outlets: Vec<Outlet>,
    over: bool,
}

impl State {
    fn end(&self) -> u64 {
        self.first + self.pieces.len() as u64
    }

    fn behind(&self, outlet: &Outlet) -> usize {
        let from = outlet.next.saturating_sub(self.first) as usize;
        self.pieces.iter().skip(from).map(Piece::length).sum()
    }

    /// Bytes that one who is not waited for may be behind.
    fn patience(&self) -> usize {
        let fills = |outlet: &Outlet| outlet.attached && outlet.own.as_ref().is_some_and(|own| !own.has_caught_up());
        if self.outlets.iter().any(fills) { FILLING } else { BEHIND }
    }

    fn break_off(&mut self, of: usize, why: &str) {
        let outlet = &mut self.outlets[of];
        outlet.attached = false;
        if outlet.link > 0 && outlet.broken.as_ref().is_none_or(|(link, _)| *link != outlet.link) {
            outlet.broken = Some((outlet.link, Error::link(why)));
        }
    }

    /// Whether the link to one of them takes nothing of a copy of everything.
    fn is_stuck(&self, of: usize) -> bool {
        let outlet = &self.outlets[of];
        let fills = outlet.attached && outlet.own.as_ref().is_some_and(|own| !own.has_caught_up());
        fills && outlet.takes.is_some_and(|since| since.elapsed() >= STILL)
    }

    /// Whether one of them was sent all of such a copy, and what makes it whole, but has had the time for it.
    fn is_overdue(&self, of: usize) -> bool {
        let outlet = &self.outlets[of];
        let sent = outlet.attached && outlet.own.as_ref().is_some_and(Own::has_caught_up);
        let last = outlet.takes.or(outlet.moved);
        sent && last.is_some_and(|last| last.elapsed() >= ARRIVES)
    }

    /// Lets go of what nobody needs, or is to need any more.
    fn trim(&mut self) {
        let needed = |state: &State| state.outlets.iter().filter(|o| o.attached).map(|o| o.next).min().unwrap_or(u64::MAX);
        while self.bytes > KEPT && self.first < needed(self) && self.first < self.end() {
            self.drop_first();
        }
        while self.bytes > KEPT + self.patience() && !self.pieces.is_empty() {
            self.drop_first();
            let first = self.first;
            for of in 0..self.outlets.len() {
                if self.outlets[of].attached && self.outlets[of].next < first {
                    self.break_off(of, "it does not take what comes");
                }
            }
        }
    }

    fn drop_first(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= piece.length();
            self.first += 1;
        }
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what there is to one of them, over this link.
    fn carry(&self, of: usize, link: u64, mut sender: Sender) {
        let mut state = self.state();
        loop {
            let outlet = &state.outlets[of];
            if state.over || outlet.link != link || outlet.broken.as_ref().is_some_and(|(broken, _)| *broken == link) {
                return;
            }
            let own = outlet.own.as_ref().filter(|own| outlet.attached && !own.is_sent());
            let next = Some(outlet.next).filter(|next| outlet.attached && own.is_none() && *next >= state.first && *next < state.end());
            let piece = match (own, next) {
                (Some(own), _) => own.next(),
                (None, Some(next)) => Some(state.pieces[(next - state.first) as usize].clone()),
                (None, None) => None,
            };
            let Some(piece) = piece else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.outlets[of].takes = Some(Instant::now());
            drop(state);
            let done = match &piece {
                Piece::Bytes(bytes) => sender.write_all(bytes).map_err(Error::from),
                Piece::End => sender.end_item(),
            };
            state = self.state();
            let end = state.end();
            let outlet = &mut state.outlets[of];
            if outlet.link != link {
                return;
            }
            outlet.takes = None;
            match done {
                Ok(()) => {
                    match (next, &mut outlet.own) {
                        (Some(next), own) => {
                            outlet.next = next + 1;
                            own.iter_mut().filter(|_| next + 1 == end).for_each(Own::is_near);
                        }
                        (None, Some(own)) => own.sent(),
                        // It was given up meanwhile.
                        (None, None) => return,
                    }
                    outlet.moved = Some(Instant::now());
                    outlet.images += u64::from(matches!(piece, Piece::End));
                }
                // What it had is sent again by the next link, if that comes soon.
                Err(e) => outlet.broken = Some((link, e)),
            }
            self.changed.notify_all();
        }
    }

    /// One piece more, as soon as enough of them have room for it: so many for an epoch, all that take anything for a first copy.
    fn push(&self, piece: Piece, first: bool, quorum: usize) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(100);
        let mut state = self.state();
        loop {
            let works = |o: &&Outlet| o.attached && o.broken.as_ref().is_none_or(|(link, _)| *link != o.link);
            let all = state.outlets.iter().filter(works).count();
            if all == 0 {
                return Err(Error::link("there is no link to any standby"));
            }
            let near = state.outlets.iter().filter(works).filter(|o| state.behind(o) <= NEAR).count();
            if near >= if first { all } else { quorum.min(all) } {
                break;
            }
            for of in 0..state.outlets.len() {
                let outlet = &state.outlets[of];
                let stuck = outlet.attached && outlet.moved.is_some_and(|moved| moved.elapsed() >= PATIENCE) && state.behind(outlet) > NEAR;
                if stuck {
                    state.break_off(of, "it does not take what comes");
                }
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.bytes += piece.length();
        state.pieces.push_back(piece);
        state.trim();
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

/// All of them.
pub struct Fan {
    shared: Arc<Shared>,
    quorum: usize,
    /// The last image could not be brought to anybody.
    lost: bool,
}

impl Fan {
    /// To so many, of whom so many are waited for.
    pub fn new(count: usize, quorum: usize) -> Fan {
        let outlets = (0..count).map(|_| Outlet::default()).collect();
        let shared = Shared { state: Mutex::new(State { outlets, ..State::default() }), changed: Condvar::new() };
        Fan { shared: Arc::new(shared), quorum, lost: false }
    }

    /// What the other thread is to know.
    pub fn known(&self) -> Known {
        Known(self.shared.clone())
    }

    /// Whether there is anybody whom it gets to.
    pub fn has_streams(&self) -> bool {
        !self.lost
    }

    /// As [`super::Copies::item`].
    pub fn item<T>(&mut self, mark: Mark, make: impl FnOnce(File) -> Result<T>) -> Result<T> {
        let (from, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(|| "making a pipe")?;
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE));
        self.begin(mark);
        let first = mark.number == 1;
        let (shared, quorum) = (&self.shared, self.quorum);
        let (made, carried) = std::thread::scope(|scope| {
            let carrier = scope.spawn(move || -> Result<()> {
                let mut from = File::from(from);
                let mut buffer = vec![0; PIPE as usize];
                loop {
                    let n = from.read(&mut buffer)?;
                    if n == 0 {
                        return Ok(());
                    }
                    shared.push(Piece::Bytes(Arc::new(buffer[..n].to_vec())), first, quorum)?;
                }
            });
            let made = make(File::from(into));
            (made, carrier.join().unwrap_or_else(|_| Err(Error::other("sending an image has failed"))))
        });
        self.lost = carried.is_err();
        let done = match carried {
            Ok(()) => made.and_then(|made| self.shared.push(Piece::End, first, 0).map(|()| made)),
            // What was not carried was not made either, but says less about why.
            Err(e) => Err(e),
        };
        if done.is_err() {
            // Nobody can use a part of it.
            let mut state = self.shared.state();
            state.begins.pop_back();
            (0..state.outlets.len()).filter(|of| state.outlets[*of].attached).collect::<Vec<_>>().into_iter().for_each(|of| {
                state.break_off(of, "an image could not be made");
            });
            drop(state);
            self.shared.changed.notify_all();
        }
        done
    }

    /// As [`super::Ways::join`].
    pub fn join(&mut self, joined: &[bool]) {
        self.shared.state().outlets.iter_mut().zip(joined).for_each(|(outlet, joined)| outlet.joins = *joined);
    }

    /// An image begins. A first copy goes to all who have a link, and are to have the series.
    fn begin(&self, mark: Mark) {
        let mut state = self.shared.state();
        state.images += 1;
        for of in 0..if mark.number == 1 { state.outlets.len() } else { 0 } {
            // The middle of an image is no place to stop at.
            let half = state.outlets[of].own.as_ref().is_some_and(|own| !own.is_sent());
            if state.outlets[of].attached && (half || !state.outlets[of].joins) {
                state.break_off(of, "it has no part in what comes next");
            }
        }
        let (number, end, first) = (state.images, state.end(), state.first);
        state.outlets.iter_mut().filter_map(|outlet| outlet.own.as_mut()).for_each(|own| own.begins(mark));
        let State { begins, outlets, pieces, .. } = &mut *state;
        if begins.len() >= REMEMBERED {
            begins.pop_front();
        }
        begins.push_back((number, mark, end));
        if mark.number > 1 {
            return;
        }
        for outlet in outlets.iter_mut().filter(|o| o.joins && o.link > 0 && o.broken.as_ref().is_none_or(|(link, _)| *link != o.link)) {
            // What it still has to get of the one before comes first.
            let left = pieces.iter().skip(outlet.next.saturating_sub(first) as usize).filter(|piece| matches!(piece, Piece::End));
            let waits = if outlet.attached { left.count() as u64 } else { 0 };
            if !outlet.attached {
                outlet.next = end;
            }
            outlet.offset = (number - 1).wrapping_sub(outlet.images + waits);
            (outlet.attached, outlet.moved, outlet.from, outlet.own) = (true, Some(Instant::now()), number, None);
        }
    }

    /// As [`super::Copies::link`], of one of them.
    pub fn link(&mut self, of: usize, link: u64, sender: Sender, images: Option<u64>) -> bool {
        let mut state = self.shared.state();
        let there = images.unwrap_or(0);
        let outlet = &state.outlets[of];
        let wanted = (there + 1).wrapping_add(outlet.offset);
        let next = match state.begins.iter().find(|(number, ..)| *number == wanted) {
            Some((_, _, piece)) if *piece >= state.first => Some(*piece),
            None if wanted == state.images + 1 => Some(state.end()),
            _ => None,
        };
        // A copy of everything that has not come is made again.
        let own = outlet.own.as_ref().is_none_or(|own| own.is_sent() && wanted > outlet.from);
        let next = next.filter(|_| outlet.attached && images.is_some() && own);
        let end = state.end();
        let outlet = &mut state.outlets[of];
        (outlet.link, outlet.images, outlet.broken, outlet.takes) = (link, there, None, None);
        (outlet.attached, outlet.next, outlet.moved) = (next.is_some(), next.unwrap_or(end), Some(Instant::now()));
        drop(state);
        let shared = self.shared.clone();
        let started = std::thread::Builder::new().name("fan".into()).spawn(move || shared.carry(of, link, sender));
        if let Err(e) = started {
            self.shared.state().outlets[of].broken = Some((link, e.into()));
        }
        self.shared.changed.notify_all();
        next.is_some()
    }
}

impl Drop for Fan {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_all();
    }
}

/// What is known of them on both threads.
#[derive(Clone)]
pub struct Known(Arc<Shared>);

impl Known {
    /// Which image an epoch is to one of them; `None`: it does not get it.
    pub fn image(&self, of: usize, mark: Mark) -> Option<u64> {
        let state = self.0.state();
        let outlet = &state.outlets[of];
        let found = state.begins.iter().find(|(_, of, _)| *of == mark).filter(|(number, ..)| outlet.attached && *number >= outlet.from)?;
        Some(found.0.wrapping_sub(outlet.offset))
    }

    /// What an epoch is to one of them.
    pub fn part(&self, of: usize, mark: Mark) -> Part {
        self.0.state().outlets[of].own.as_ref().map_or(Part::All, |own| own.part(mark))
    }

    /// One of them is to get nothing more of what it gets. Says whether it got something: its link is over then.
    pub fn detach(&self, of: usize) -> bool {
        let mut state = self.0.state();
        let attached = state.outlets[of].attached;
        if attached {
            state.break_off(of, "it is to have everything anew");
        }
        drop(state);
        self.0.changed.notify_all();
        attached
    }

    /// Whether one of them was sent a copy of everything long ago, whatever it says of it.
    pub fn is_overdue(&self, of: usize) -> bool {
        self.0.state().is_overdue(of)
    }

    /// As [`super::Known::uses`].
    pub fn uses(&self, of: usize, link: u64) -> bool {
        self.0.state().outlets[of].link == link
    }

    /// As [`super::Known::failure`]; so is a link over which a copy of everything does not get through.
    pub fn failure(&self, of: usize, link: u64) -> Option<Error> {
        let mut state = self.0.state();
        if state.is_stuck(of) {
            state.break_off(of, "a copy of everything does not get through");
            self.0.changed.notify_all();
        }
        state.outlets[of].broken.as_ref().filter(|(broken, _)| *broken == link).map(|(_, e)| e.clone())
    }
}
