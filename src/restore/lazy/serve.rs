//! The process that brings the pages: who waits for one is served first, all others come in the order of the image.
//!
//! A child shares with its parent what was there when it was born, and nothing that comes later. So children get what they ask for,
//! and everything only when all who were restored have it: most of them have ended by then.
//!
//! What a program does to its mappings it tells before it goes on (userfaultfd(2), "Userfaultfd events"), and brings
//! nothing into a mapping that is changing: `EAGAIN`. So every message is heard, and every page is put, under one lock: when a page
//! is put, all that was told until then has been noted, and what is told later comes later.

use super::catalog::{Catalog, Piece, bytes};
use super::space::Space;
use super::stop;
use crate::error::{Context, Error, Result};
use crate::image::PAGE;
use crate::sys::missing::{Message, Missing};
use crate::sys::priority::Urgent;
use crate::sys::server::{Handles, Link};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const PAGE_BYTES: u64 = PAGE as u64;
static ZERO: [u8; PAGE] = [0; PAGE];
/// Pages that are put without looking who waits.
const AT_ONCE: u64 = 32;
/// Pages around one that somebody waits for, that he gets with it.
const WITH_IT: u64 = 256;
/// Blocks that are kept decoded for those who wait.
const KEPT: usize = 8;
/// How long a message that is to come is waited for.
const MOMENT: Duration = Duration::from_micros(50);
/// How often the processes of the tree are looked for, after one of them had a child.
const LOOKS: u32 = 3;

/// An address space with missing pages.
pub struct Incomplete {
    /// Its userfaultfd.
    pub missing: Arc<Missing>,
    /// Whose pages in the image: a pid there.
    pub owner: i32,
    /// Where they belong.
    pub space: Space,
    /// It was born after the restore.
    child: bool,
    /// Blocks before this one are there.
    have: u32,
    /// Others that are there: a bit for each.
    there: Vec<u64>,
}

impl Incomplete {
    /// Nothing is there.
    pub fn new(missing: Missing, owner: i32, space: Space) -> Self {
        Incomplete { missing: missing.into(), owner, space, child: false, have: 0, there: Vec::new() }
    }

    fn born(&self, missing: Missing) -> Self {
        let Incomplete { owner, space, have, there, .. } = self;
        Incomplete { missing: missing.into(), owner: *owner, space: space.clone(), child: true, have: *have, there: there.clone() }
    }

    fn has(&self, block: u32) -> bool {
        block < self.have || self.there.get(block as usize / 64).is_some_and(|bits| bits >> (block % 64) & 1 != 0)
    }

    fn got(&mut self, block: u32) {
        let word = block as usize / 64;
        if self.there.len() <= word {
            self.there.resize(word + 1, 0);
        }
        self.there[word] |= 1 << (block % 64);
    }
}

struct Shared<'c> {
    catalog: &'c Catalog,
    spaces: Mutex<Vec<Option<Incomplete>>>,
    /// Somebody waits for a page.
    urgent: AtomicUsize,
    over: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// How a page was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// It is there, or nobody can have it any more.
    There,
    /// A message comes first.
    Changing,
    /// The program has ended, or executes another one.
    Gone,
}

/// A page that somebody waits for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    space: usize,
    address: u64,
    write: bool,
}

/// Brings all pages, and returns when they are there or there is nobody left who could need them.
///
/// # Errors
/// When a page cannot be brought; the tree must be ended then.
pub fn serve(catalog: &Catalog, spaces: Vec<Incomplete>, link: &Link, handles: Handles) -> Result<()> {
    let shared = Shared {
        catalog,
        spaces: Mutex::new(spaces.into_iter().map(Some).collect()),
        urgent: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let started = std::thread::scope(|scope| {
        // Whoever waits for a page does so behind nobody else.
        let _urgent = Urgent::begin();
        let mut begun = false;
        let begin = || {
            let fetch = || {
                let result = shared.fetch();
                shared.end(result.err());
            };
            std::thread::Builder::new().spawn_scoped(scope, fetch).map(drop).context(|| "starting a thread")
        };
        let mut front = Front { shared: &shared, cache: Vec::new(), wanted: Vec::new(), looks: 0, known: BTreeMap::new() };
        let result = loop {
            if shared.over.load(Ordering::Acquire) {
                break Ok(());
            }
            match front.turn((!begun).then_some(link), handles) {
                Ok(true) if !begun => {
                    begun = true;
                    if let Err(e) = begin() {
                        break Err(e);
                    }
                }
                Ok(_) => {}
                Err(e) => break Err(e),
            }
        };
        shared.over.store(true, Ordering::Release);
        result
    });
    let failure = shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    match started.err().or(failure) {
        Some(e) => {
            link.say(&e);
            // While the userfaultfds are open.
            stop::end(handles);
            Err(e)
        }
        None => Ok(()),
    }
}

impl Shared<'_> {
    fn spaces(&self) -> MutexGuard<'_, Vec<Option<Incomplete>>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, failure: Option<Error>) {
        if let Some(e) = failure {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
        self.over.store(true, Ordering::Release);
    }

    /// All blocks, one after the other.
    fn fetch(&self) -> Result<()> {
        let mut buffer = Vec::new();
        while let Some((block, children)) = self.next() {
            if self.over.load(Ordering::Acquire) {
                break;
            }
            let wants = |space: &Incomplete| space.child == children && space.have == block && !space.has(block);
            let wanted = |p: Piece| self.spaces().iter().flatten().any(|space| space.owner == p.owner && wants(space));
            if self.catalog.of_block(block).any(wanted) {
                self.give_way();
                let data = self.catalog.in_order(block, std::mem::take(&mut buffer))?;
                for piece in self.catalog.of_block(block) {
                    self.put(&piece, (piece.address, piece.end()), &data, true, |_, space| wants(space))?;
                }
                buffer = data;
            }
            // Also those who were born meanwhile: what was put before, they have from their parents.
            for space in self.spaces().iter_mut().flatten().filter(|s| s.child == children && s.have == block) {
                space.have += 1;
            }
            if self.spaces().iter().flatten().all(|space| space.have > block) {
                self.catalog.done(block);
            }
        }
        Ok(())
    }

    /// The next block, and whether it is for children. Who has all is not watched any more.
    fn next(&self) -> Option<(u32, bool)> {
        let mut spaces = self.spaces();
        for slot in &mut *spaces {
            if slot.as_ref().is_some_and(|space| space.have as usize >= self.catalog.len()) {
                *slot = None;
            }
        }
        let first = |children| spaces.iter().flatten().filter(|s| s.child == children).map(|s| s.have).min();
        first(false).map(|block| (block, false)).or_else(|| Some((first(true)?, true)))
    }

    /// Who waits comes first.
    fn give_way(&self) {
        while self.urgent.load(Ordering::Acquire) > 0 && !self.over.load(Ordering::Acquire) {
            std::thread::sleep(MOMENT);
        }
    }

    /// Puts the pages of a piece between two addresses to all places where they belong in those spaces that want them. One who is
    /// `patient` waits when a message has to be heard first; false when another one did not come to the end.
    fn put(
        &self,
        piece: &Piece,
        range: (u64, u64),
        data: &[u8],
        patient: bool,
        wants: impl Fn(usize, &Incomplete) -> bool,
    ) -> Result<bool> {
        let mut at = range.0;
        while at < range.1 && !self.over.load(Ordering::Acquire) {
            let end = range.1.min(at + AT_ONCE * PAGE_BYTES);
            let pages = bytes(piece, at, end, data)?;
            let mut changing = false;
            for (number, slot) in self.spaces().iter_mut().enumerate() {
                let space = slot.as_ref().filter(|s| s.owner == piece.owner && wants(number, s));
                match space.map(|space| put_places(space, at, end, pages)) {
                    Some(Ok(Put::Gone)) => *slot = None,
                    Some(result) => changing |= result? == Put::Changing,
                    None => {}
                }
            }
            if !changing {
                at = end;
            } else if !patient {
                return Ok(false);
            } else {
                std::thread::sleep(MOMENT);
            }
            if patient {
                self.give_way();
            }
        }
        Ok(true)
    }
}

/// Puts what was between two addresses to wherever that is now.
fn put_places(space: &Incomplete, start: u64, end: u64, pages: &[u8]) -> Result<Put> {
    for (to, to_end, from) in space.space.places(start, end) {
        let first = (from - start) as usize;
        let put = put_pages(&space.missing, to, &pages[first..first + (to_end - to) as usize])?;
        if put != Put::There {
            return Ok(put);
        }
    }
    Ok(Put::There)
}

/// Puts pages, but those that are there and those that are unmapped.
fn put_pages(missing: &Missing, to: u64, pages: &[u8]) -> Result<Put> {
    let mut at = 0;
    let mut step = pages.len();
    let mut again = false;
    while at < pages.len() {
        let end = pages.len().min(at + step);
        let came = missing.copy(to + at as u64, &pages[at..end]);
        at += came.bytes as usize;
        match came.stop {
            None => step = pages.len(),
            Some(Errno::EEXIST) => at += PAGE,
            // Pages are put into one mapping at a time.
            Some(Errno::ENOENT) if step > PAGE => step = ((end - at) / 2).next_multiple_of(PAGE),
            // Not there, or just on its way to somewhere else: then the kernel says so when asked again.
            Some(Errno::ENOENT) if !again => {
                again = true;
                continue;
            }
            Some(Errno::ENOENT) => at += PAGE,
            Some(Errno::EAGAIN) => return Ok(Put::Changing),
            Some(Errno::ESRCH) => return Ok(Put::Gone),
            Some(e) => return Err(failed(e)),
        }
        again = false;
    }
    Ok(Put::There)
}

fn failed(e: Errno) -> Error {
    Error::from(e).context("bringing a page of the restored program")
}

/// The one that hears, and serves who waits.
struct Front<'s, 'c> {
    shared: &'s Shared<'c>,
    /// Blocks that were needed last.
    cache: Vec<(u32, Vec<u8>)>,
    wanted: Vec<Wanted>,
    /// How often the tree is still looked over.
    looks: u32,
    known: BTreeMap<i32, std::os::fd::OwnedFd>,
}

impl Front<'_, '_> {
    /// Waits for messages and serves them. True when the tree runs, or meio has gone, which `link` tells.
    fn turn(&mut self, link: Option<&Link>, handles: Handles) -> Result<bool> {
        let (ready, go) = self.wait(link)?;
        let shared = self.shared;
        shared.urgent.store(ready.len() + self.wanted.len(), Ordering::Release);
        self.hear(&ready)?;
        shared.urgent.store(self.wanted.len(), Ordering::Release);
        let all = std::mem::take(&mut self.wanted);
        for (n, &wanted) in all.iter().enumerate() {
            if !self.serve(wanted, n + 1 == all.len())? {
                self.wanted.push(wanted);
            }
        }
        shared.urgent.store(self.wanted.len(), Ordering::Release);
        if self.looks > 0 && self.wanted.is_empty() {
            self.looks -= 1;
            stop::follow(handles, &mut self.known);
        }
        Ok(go)
    }

    /// The spaces that have something to say.
    fn wait(&self, link: Option<&Link>) -> Result<(Vec<usize>, bool)> {
        let spaces = self.shared.spaces();
        let numbers: Vec<usize> = spaces.iter().enumerate().filter(|s| s.1.is_some()).map(|s| s.0).collect();
        let held: Vec<_> = spaces.iter().flatten().map(|s| Arc::clone(&s.missing)).collect();
        drop(spaces);
        let mut fds: Vec<PollFd> = held.iter().map(|missing| PollFd::new(missing.as_fd(), PollFlags::POLLIN)).collect();
        fds.extend(link.map(|link| PollFd::new(link.go().as_fd(), PollFlags::POLLIN)));
        let patience: u16 = if self.wanted.is_empty() && self.looks == 0 { 20 } else { 1 };
        match poll(&mut fds, PollTimeout::from(patience)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context(|| "waiting for the restored program"),
        }
        let ready = |fd: &PollFd| fd.revents().is_some_and(|r| !r.is_empty());
        let go = link.is_some() && fds.last().is_some_and(ready);
        Ok((numbers.iter().zip(&fds).filter(|n| ready(n.1)).map(|n| *n.0).collect(), go))
    }

    /// Notes everything that is told, and who waits for a page. What is told of mappings holds before any page is put, also
    /// one that the kernel names first.
    fn hear(&mut self, ready: &[usize]) -> Result<()> {
        let mut spaces = self.shared.spaces();
        for &number in ready {
            let Some(space) = spaces.get_mut(number).and_then(Option::as_mut) else { continue };
            let mut born = Vec::new();
            for message in space.missing.hear().context(|| "listening to the restored program")? {
                match message {
                    Message::Fault { address, write } => self.wanted.push(Wanted { space: number, address, write }),
                    Message::Drop(start, end) => space.space.give_up(start, end),
                    Message::Remap(from, to, bytes) => space.space.remap(from, to, bytes),
                    Message::Fork(missing) => born.push(space.born(missing)),
                }
            }
            if !born.is_empty() {
                self.looks = LOOKS;
            }
            for child in born {
                match spaces.iter_mut().find(|s| s.is_none()) {
                    // Those who wait for a page of the one that was here are no more.
                    Some(free) if self.wanted.is_empty() => *free = Some(child),
                    _ => spaces.push(Some(child)),
                }
            }
        }
        Ok(())
    }

    /// Gives somebody the page that he waits for, and those around it when he is the `last` one. False when he has to wait until a
    /// message has come.
    fn serve(&mut self, wanted: Wanted, last: bool) -> Result<bool> {
        let shared = self.shared;
        let source = |spaces: &[Option<Incomplete>]| {
            let space = spaces.get(wanted.space)?.as_ref()?;
            Some((space.owner, space.space.source(wanted.address)))
        };
        let Some((owner, from)) = source(&shared.spaces()) else { return Ok(true) };
        let piece = from.and_then(|from| shared.catalog.find(owner, from));
        let data = match piece {
            Some(piece) => Some(self.data(piece.block)?),
            None => None,
        };
        let put = {
            let mut spaces = shared.spaces();
            // It may be another one by now.
            if source(&spaces) != Some((owner, from)) {
                return Ok(false);
            }
            let Some(space) = spaces[wanted.space].as_ref() else { return Ok(true) };
            let put = match (piece, from, &data) {
                (Some(piece), Some(from), Some(data)) => {
                    put_one(&space.missing, &wanted, Some(bytes(&piece, from, from + PAGE_BYTES, data)?))?
                }
                _ => put_one(&space.missing, &wanted, None)?,
            };
            if put == Put::Gone {
                spaces[wanted.space] = None;
            }
            put
        };
        if let (Some(piece), Some(from), Some(data)) = (piece, from, data) {
            if put == Put::There && last {
                self.put_around(wanted.space, piece, from, &data)?;
            }
            self.keep(piece.block, data);
        }
        Ok(put != Put::Changing)
    }

    /// Whoever needs one page needs its neighbours as a rule, and those behind it first; but whoever waits for another one needs that
    /// more.
    fn put_around(&self, space: usize, piece: Piece, from: u64, data: &[u8]) -> Result<()> {
        let shared = self.shared;
        let Some(missing) = shared.spaces()[space].as_ref().filter(|s| !s.has(piece.block)).map(|s| s.missing.clone()) else {
            return Ok(());
        };
        let waits = || poll(&mut [PollFd::new(missing.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|n| n > 0);
        let put = |piece: &Piece, start: u64, end: u64| -> Result<bool> {
            for at in (start..end).step_by((AT_ONCE * PAGE_BYTES) as usize) {
                let range = (at, end.min(at + AT_ONCE * PAGE_BYTES));
                if waits() || !shared.put(piece, range, data, false, |number, _| number == space)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let all = || shared.catalog.of_block(piece.block).filter(|p| p.owner == piece.owner);
        if all().map(|p| u64::from(p.pages)).sum::<u64>() > WITH_IT {
            let start = piece.address.max(from.saturating_sub(WITH_IT / 2 * PAGE_BYTES));
            return put(&piece, start, piece.end().min(start + WITH_IT * PAGE_BYTES)).map(drop);
        }
        let mut others = all().filter(|other| other.address != piece.address);
        let whole = put(&piece, from + PAGE_BYTES, piece.end())?
            && put(&piece, piece.address, from)?
            && others.try_fold(true, |whole, piece| Ok::<_, Error>(whole && put(&piece, piece.address, piece.end())?))?;
        if whole {
            shared.spaces()[space].iter_mut().for_each(|s| s.got(piece.block));
        }
        Ok(())
    }

    /// A block's data, to be given back by [`Front::keep`].
    fn data(&mut self, block: u32) -> Result<Vec<u8>> {
        if let Some(i) = self.cache.iter().position(|c| c.0 == block) {
            return Ok(self.cache.remove(i).1);
        }
        let buffer = if self.cache.len() >= KEPT { self.cache.remove(0).1 } else { Vec::new() };
        self.shared.catalog.data(block, buffer)
    }

    fn keep(&mut self, block: u32, data: Vec<u8>) {
        self.cache.push((block, data));
    }
}

/// Puts the page that somebody waits for: with this content, or zero.
fn put_one(missing: &Missing, wanted: &Wanted, content: Option<&[u8]>) -> Result<Put> {
    let came = match content {
        Some(content) => missing.copy(wanted.address, content),
        None if wanted.write => missing.copy(wanted.address, &ZERO),
        None => missing.zero(wanted.address),
    };
    match came.stop {
        None => Ok(Put::There),
        // There already, or nothing is to be there: he sees it himself.
        Some(Errno::EEXIST | Errno::ENOENT) => {
            missing.wake(wanted.address);
            Ok(Put::There)
        }
        Some(Errno::EAGAIN) => Ok(Put::Changing),
        Some(Errno::ESRCH) => Ok(Put::Gone),
        Some(e) => Err(failed(e)),
    }
}
