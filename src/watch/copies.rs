//! Images on their way to the standby. Those that it is not known to have are kept, for a link that is made again: one that is too
//! large for that has everything copied anew.

mod fan;

pub use fan::{Fan, Filler};

use super::state::{Mark, Part};
use crate::error::{Context, Error, Result};
use crate::transport::Sender;
use nix::fcntl::{FcntlArg, fcntl};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that a pipe holds at most.
const PIPE: i32 = 1 << 20;
/// Of an image that is kept.
const MOST: usize = 64 << 20;

/// Images on their way to who stands by, or to several of them.
pub enum Ways {
    One(Copies),
    Several(Fan),
}

/// What is known of them on both threads.
#[derive(Clone)]
pub enum Seen {
    One(Known),
    Several(fan::Known),
}

impl Ways {
    /// To so many, of whom so many are waited for.
    pub fn to(count: usize, quorum: usize) -> Ways {
        if count == 1 { Ways::One(Copies::default()) } else { Ways::Several(Fan::new(count, quorum)) }
    }

    /// What the other thread is to know.
    pub fn known(&self) -> Seen {
        match self {
            Ways::One(copies) => Seen::One(copies.known()),
            Ways::Several(fan) => Seen::Several(fan.known()),
        }
    }

    /// See [`Copies::item`].
    ///
    /// # Errors
    /// As there.
    pub fn item<T>(&mut self, mark: Mark, make: impl FnOnce(File) -> Result<T>) -> Result<T> {
        match self {
            Ways::One(copies) => copies.item(mark, make),
            Ways::Several(fan) => fan.item(mark, make),
        }
    }

    /// Whether there are streams that work.
    pub fn has_streams(&self) -> bool {
        match self {
            Ways::One(copies) => copies.has_streams(),
            Ways::Several(fan) => fan.has_streams(),
        }
    }

    /// See [`Copies::forget`]. Several have what they have at different times, and what is kept for them is bounded otherwise.
    pub fn forget(&mut self, mark: Mark) {
        if let Ways::One(copies) = self {
            copies.forget(mark);
        }
    }

    /// Who gets the series that begins.
    pub fn join(&mut self, joined: &[bool]) {
        if let Ways::Several(fan) = self {
            fan.join(joined);
        }
    }

    /// See [`Fan::is_open`].
    pub fn is_open(&self) -> bool {
        matches!(self, Ways::Several(fan) if fan.is_open())
    }

    /// See [`Fan::fill`]. A single standby gets everything by a series that begins.
    pub fn fill(&self, of: usize, mark: Mark) -> Option<Filler> {
        match self {
            Ways::One(_) => None,
            Ways::Several(fan) => fan.fill(of, mark),
        }
    }

    /// See [`Copies::link`].
    pub fn link(&mut self, of: usize, link: u64, sender: Sender, images: Option<u64>) -> bool {
        match self {
            Ways::One(copies) => copies.link(link, sender, images),
            Ways::Several(fan) => fan.link(of, link, sender, images),
        }
    }
}

impl Seen {
    /// Which image an epoch is to one of them; `None`: it does not get it.
    pub fn image(&self, of: usize, mark: Mark) -> Option<u64> {
        match self {
            Seen::One(known) => known.image(mark),
            Seen::Several(known) => known.image(of, mark),
        }
    }

    /// What an epoch is to one of them.
    pub fn part(&self, of: usize, mark: Mark) -> Part {
        match self {
            Seen::One(_) => Part::All,
            Seen::Several(known) => known.part(of, mark),
        }
    }

    /// One of several is to get nothing more of what it gets. Says whether it got something: its link is over then.
    pub fn detach(&self, of: usize) -> bool {
        match self {
            Seen::One(_) => false,
            Seen::Several(known) => known.detach(of),
        }
    }

    /// Whether one of several was sent a copy of everything long ago, whatever it says of it.
    pub fn is_overdue(&self, of: usize) -> bool {
        match self {
            Seen::One(_) => false,
            Seen::Several(known) => known.is_overdue(of),
        }
    }

    /// Whether the streams of this link are in use.
    pub fn uses(&self, of: usize, link: u64) -> bool {
        match self {
            Seen::One(known) => known.uses(link),
            Seen::Several(known) => known.uses(of, link),
        }
    }

    /// Why the streams of this link are of no use any more.
    pub fn failure(&self, of: usize, link: u64) -> Option<Error> {
        match self {
            Seen::One(known) => known.failure(link),
            Seen::Several(known) => known.failure(of, link),
        }
    }
}

/// What is known of the images on both threads.
#[derive(Clone, Default)]
pub struct Known(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// Epochs by the number of their image at the standby.
    images: Vec<(Mark, u64)>,
    /// The link whose streams are used.
    at_work: u64,
    /// The last link whose streams have failed, and why.
    broken: Option<(u64, Error)>,
}

impl Known {
    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which image an epoch is.
    pub fn image(&self, mark: Mark) -> Option<u64> {
        self.locked().images.iter().find(|(of, _)| *of == mark).map(|(_, image)| *image)
    }

    /// Whether the streams of this link are in use.
    pub fn uses(&self, link: u64) -> bool {
        self.locked().at_work == link
    }

    /// Why the streams of this link are of no use any more.
    pub fn failure(&self, link: u64) -> Option<Error> {
        self.locked().broken.as_ref().filter(|(of, _)| *of == link).map(|(_, e)| e.clone())
    }
}

/// An image that the standby is not known to have.
struct Kept {
    mark: Mark,
    image: u64,
    /// `None`: it was too large.
    bytes: Option<Vec<u8>>,
}

/// Sends images, and keeps them.
#[derive(Default)]
pub struct Copies {
    sender: Option<Sender>,
    /// Number of the link that it belongs to.
    link: u64,
    /// Number of the last image.
    images: u64,
    kept: VecDeque<Kept>,
    spare: Vec<Vec<u8>>,
    known: Known,
}

/// What has become of one image.
struct Carried {
    copy: Option<Vec<u8>>,
    failed: Option<Error>,
}

impl Copies {
    /// What the other thread is to know.
    pub fn known(&self) -> Known {
        self.known.clone()
    }

    /// Sends what `make` writes into a pipe. Where it is kept it does not matter whether the streams work.
    ///
    /// # Errors
    /// Those of `make`; when the streams have failed, and it is not kept.
    pub fn item<T>(&mut self, mark: Mark, make: impl FnOnce(File) -> Result<T>) -> Result<T> {
        let (from, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(|| "making a pipe")?;
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE));
        // A copy of everything is never kept.
        let copy = (mark.number > 1).then(|| self.spare.pop().unwrap_or_default());
        let sender = self.sender.as_mut();
        let (made, carried) = std::thread::scope(|scope| {
            let carrier = scope.spawn(move || carry(File::from(from), sender, copy));
            let made = make(File::from(into));
            (made, carrier.join().unwrap_or_else(|_| Err(Error::other("sending an image has failed"))))
        });
        let carried = match (made.is_ok(), carried) {
            (_, Ok(carried)) => carried,
            // What was not carried was not made either, but says less about why.
            (_, Err(e)) => {
                self.fail(e.clone());
                return Err(e);
            }
        };
        if let Some(e) = carried.failed {
            self.fail(e);
        }
        let made = made?;
        self.images += 1;
        self.kept.push_back(Kept { mark, image: self.images, bytes: carried.copy });
        self.known.locked().images.push((mark, self.images));
        Ok(made)
    }

    /// Whether there are streams that work.
    pub fn has_streams(&self) -> bool {
        self.sender.is_some()
    }

    fn fail(&mut self, e: Error) {
        if self.sender.take().is_some() {
            self.known.locked().broken = Some((self.link, e));
        }
    }

    /// The standby has this epoch and those before it, or nobody needs them any more.
    pub fn forget(&mut self, mark: Mark) {
        let gone = self.kept.iter().take_while(|kept| kept.mark <= mark).count();
        for mut bytes in self.kept.drain(..gone).filter_map(|kept| kept.bytes) {
            if self.spare.len() < 2 && bytes.capacity() <= 4 * PIPE as usize {
                bytes.clear();
                self.spare.push(bytes);
            }
        }
        self.known.locked().images.retain(|(of, _)| *of > mark);
    }

    /// From now on it goes over the streams of another link, to somebody who has so many `images` of it. What is under way is sent
    /// again. Says whether all of it could be: else everything is to be copied anew.
    pub fn link(&mut self, link: u64, sender: Sender, images: Option<u64>) -> bool {
        (self.sender, self.link) = (Some(sender), link);
        let there = images.unwrap_or(0);
        let missing = |kept: &&Kept| kept.image > there;
        let next = self.kept.iter().filter(missing).map(|kept| kept.image);
        let all =
            next.zip(there + 1..).all(|(image, wanted)| image == wanted) && self.kept.iter().filter(missing).all(|k| k.bytes.is_some());
        let whole = all && images.is_some();
        if !whole {
            self.kept.clear();
        }
        self.images = self.kept.back().map_or(there, |last| last.image.max(there));
        self.known.locked().images = self.kept.iter().map(|kept| (kept.mark, kept.image)).collect();
        let sender = self.sender.as_mut();
        let failed = sender.and_then(|sender| {
            let mut again = self.kept.iter().filter(missing).filter_map(|kept| kept.bytes.as_ref());
            again.find_map(|bytes| sender.write_all(bytes).map_err(Error::from).and_then(|()| sender.end_item()).err())
        });
        self.known.locked().at_work = link;
        if let Some(e) = failed {
            self.fail(e);
        }
        whole
    }
}

/// Brings what comes out of the pipe onto the streams and into a copy, as long as there is one of them.
fn carry(mut from: File, mut sender: Option<&mut Sender>, copy: Option<Vec<u8>>) -> Result<Carried> {
    let mut carried = Carried { copy, failed: None };
    if sender.is_none() && carried.copy.is_none() {
        return Err(Error::link("there is no link to the standby"));
    }
    let mut buffer = vec![0; PIPE as usize];
    loop {
        let n = from.read(&mut buffer)?;
        if let Some(to) = &mut sender {
            let done = if n == 0 { to.end_item() } else { to.write_all(&buffer[..n]).map_err(Error::from) };
            if let Err(e) = done {
                (carried.failed, sender) = (Some(e), None);
            }
        }
        if n == 0 {
            return Ok(carried);
        }
        carried.copy = carried.copy.take().filter(|copy| copy.len() + n <= MOST).map(|mut copy| {
            copy.extend_from_slice(&buffer[..n]);
            copy
        });
        if let (None, Some(e)) = (&carried.copy, &carried.failed) {
            return Err(e.clone());
        }
    }
}
