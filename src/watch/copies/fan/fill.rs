//! A copy of everything for one of several standbys, beside what goes to all of them: it comes first, and stands for the last image
//! that was made before it.

use super::{Fan, NEAR, Piece, Shared};
use crate::watch::state::{Mark, Part};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are handed on at a time.
const PIECE: usize = 1 << 20;

/// What one of them gets before it gets what all do.
pub struct Own {
    /// The epoch that it stands for.
    mark: Mark,
    /// What is yet to be sent of it.
    pieces: VecDeque<Piece>,
    /// All of it was read.
    ended: bool,
    /// The first epoch that was begun after that.
    whole: Option<Mark>,
    /// It had all that there was after that.
    caught_up: bool,
}

impl Own {
    /// All of it is on its way.
    pub fn is_sent(&self) -> bool {
        self.ended && self.pieces.is_empty()
    }

    /// Nobody has to be more patient with this one than with others.
    pub fn has_caught_up(&self) -> bool {
        self.caught_up
    }

    /// What is to be sent next, if it is there.
    pub fn next(&self) -> Option<Piece> {
        self.pieces.front().cloned()
    }

    /// That was.
    pub fn sent(&mut self) {
        self.pieces.pop_front();
    }

    /// It has been given all that there is for all.
    pub fn is_near(&mut self) {
        self.caught_up |= self.whole.is_some();
    }

    /// What has been written since it was begun is yet to come, as whole pages: the next image has the rest of it at the earliest.
    pub fn is_open(&self) -> bool {
        self.whole.is_none()
    }

    /// An image begins.
    pub fn begins(&mut self, mark: Mark) {
        if self.ended {
            self.whole.get_or_insert(mark);
        }
    }

    /// What an epoch is to who gets this.
    pub fn part(&self, mark: Mark) -> Part {
        match self.whole {
            _ if mark == self.mark => Part::Base,
            Some(whole) if mark >= whole => Part::All,
            _ => Part::Upon,
        }
    }
}

/// Where the copy is written to.
pub struct Filler {
    shared: Arc<Shared>,
    of: usize,
    link: u64,
    buffer: Vec<u8>,
    ended: bool,
}

impl Fan {
    /// Whether somebody gets a copy of everything, and needs whole pages of what is written meanwhile.
    pub fn is_open(&self) -> bool {
        self.shared.state().outlets.iter().any(|outlet| outlet.attached && outlet.own.as_ref().is_some_and(Own::is_open))
    }

    /// One that gets nothing gets a copy of everything, which stands for the image of this epoch, the last one, and then all that
    /// comes. `None`: it has no link.
    pub fn fill(&self, of: usize, mark: Mark) -> Option<Filler> {
        let mut state = self.shared.state();
        let (number, end) = (state.images, state.end());
        let outlet = &mut state.outlets[of];
        let offset = number.wrapping_sub(outlet.images + 1);
        if outlet.link == 0 || outlet.attached || outlet.broken.as_ref().is_some_and(|(link, _)| *link == outlet.link) {
            return None;
        }
        let link = outlet.link;
        (outlet.attached, outlet.next, outlet.offset, outlet.from, outlet.moved) = (true, end, offset, number, Some(Instant::now()));
        outlet.own = Some(Own { mark, pieces: VecDeque::new(), ended: false, whole: None, caught_up: false });
        Some(Filler { shared: self.shared.clone(), of, link, buffer: Vec::with_capacity(PIECE), ended: false })
    }
}

impl Filler {
    /// Waits until there is room for it.
    fn push(&self, piece: Piece) -> io::Result<()> {
        const LOOK: Duration = Duration::from_millis(100);
        let mut state = self.shared.state();
        loop {
            let (over, outlet) = (state.over, &mut state.outlets[self.of]);
            let broken = outlet.broken.as_ref().is_some_and(|(link, _)| *link == outlet.link);
            let own = outlet.own.as_mut().filter(|_| !over && !broken && outlet.attached && outlet.link == self.link);
            let own = own.ok_or_else(|| io::Error::from(ErrorKind::BrokenPipe))?;
            if own.pieces.iter().map(Piece::length).sum::<usize>() <= NEAR {
                own.ended = matches!(piece, Piece::End);
                own.pieces.push_back(piece);
                drop(state);
                self.shared.changed.notify_all();
                return Ok(());
            }
            state = self.shared.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn hand_on(&mut self) -> io::Result<()> {
        let bytes = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        if bytes.is_empty() { Ok(()) } else { self.push(Piece::Bytes(Arc::new(bytes))) }
    }

    /// Everything has been read and written.
    ///
    /// # Errors
    /// When it is not wanted any more.
    pub fn finish(mut self) -> io::Result<()> {
        self.hand_on()?;
        self.push(Piece::End)?;
        self.ended = true;
        Ok(())
    }
}

impl Write for Filler {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.hand_on()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if !self.ended && state.outlets[self.of].link == self.link {
            // Nobody can use a part of it.
            state.break_off(self.of, "a copy of everything could not be made");
            drop(state);
            self.shared.changed.notify_all();
        }
    }
}
