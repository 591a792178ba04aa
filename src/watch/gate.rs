//! What the primary's tree says waits here for its epoch: [`Hold`] with a mark for each epoch.

use super::state::{Guarantee, Mark};
use crate::error::Result;
use crate::migrate::address::Address;
use crate::netlock::hold::Hold;
pub use crate::netlock::waits::News;
use crate::netlock::waits::Waits;
use crate::sys::ear::Heard;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared by who copies the tree, who puts the marks, and who knows of epochs, who lets out. Nothing is held where nothing has to be.
#[derive(Clone)]
pub struct Gate(Option<Arc<Inner>>);

struct Inner {
    hold: Hold,
    marks: Mutex<Marks>,
}

#[derive(Default)]
struct Marks {
    /// Behind what had gone out when the tree was stopped last.
    last: u32,
    /// Epochs of which it is not known that they are whole, with their marks.
    epochs: VecDeque<(Mark, u32)>,
    /// It was said that something waits for the next epoch, or that is being copied.
    told: bool,
}

/// How things stand.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Packets that wait now.
    pub now: u32,
    /// Those that were lost for want of room.
    pub lost: u32,
    /// How long those have waited that were let out.
    pub waits: Waits,
}

fn locked(marks: &Mutex<Marks>) -> MutexGuard<'_, Marks> {
    marks.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// One that is open yet, or `closed` from the beginning: nothing gets out between what a meio has left that was killed, and this.
    /// `came` is called when something has come to wait.
    ///
    /// # Errors
    /// Where packets have to be held and cannot be.
    pub fn prepare(
        guarantee: Guarantee,
        watch: &str,
        addresses: &[Address],
        closed: bool,
        came: impl Fn() + Send + 'static,
    ) -> Result<Gate> {
        if guarantee == Guarantee::Hot {
            return Ok(Gate(None));
        }
        let addresses: Vec<_> = addresses.iter().map(|address| address.ip).collect();
        let hold = Hold::prepare(watch, &addresses, closed, came)?;
        Ok(Gate(Some(Arc::new(Inner { hold, marks: Mutex::default() }))))
    }

    fn with(&self, what: impl FnOnce(&Hold, &mut Marks) -> Result<()>) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |inner| what(&inner.hold, &mut locked(&inner.marks)))
    }

    /// From now on everything waits.
    pub fn close(&self) -> Result<()> {
        self.with(|hold, _| hold.close())
    }

    /// The tree stands still: what it has said until now is of the epoch that is about to be copied, what it says later is not.
    /// How it was answered who has begun connections since this was called last; `None` where nothing is held.
    pub fn stands(&self) -> Result<Option<Vec<Heard>>> {
        let Some(inner) = &self.0 else { return Ok(None) };
        let mut marks = locked(&inner.marks);
        // What is taken before the mark is put rings for no epoch.
        let answers = inner.hold.answers()?;
        (marks.last, marks.told) = (inner.hold.mark()?, true);
        Ok(Some(answers))
    }

    /// That epoch was copied.
    pub fn captured(&self, epoch: Mark) {
        let _ = self.with(|_, marks| {
            marks.epochs.push_back((epoch, marks.last));
            marks.told = false;
            Ok(())
        });
    }

    /// Whether something has come to wait for the next epoch; that it does is said once for each. There is none while another one
    /// is copied, or on its way: who waits for that asks for more when it is there.
    pub fn news(&self) -> News {
        let Some(inner) = &self.0 else { return News::Nothing };
        let mut marks = locked(&inner.marks);
        if marks.told || !marks.epochs.is_empty() {
            return News::Nothing;
        }
        let news = inner.hold.waits_after(marks.last);
        marks.told = news == News::Waits;
        news
    }

    /// What was said until this epoch may go out.
    pub fn release(&self, epoch: Mark) -> Result<()> {
        self.with(|hold, marks| {
            let whole = marks.epochs.iter().take_while(|(of, _)| *of <= epoch).count();
            let mark = marks.epochs.drain(..whole).next_back();
            mark.map_or(Ok(()), |(_, mark)| hold.release(mark))
        })
    }

    /// Everything goes out.
    pub fn open(&self) -> Result<()> {
        self.with(|hold, marks| {
            marks.epochs.clear();
            hold.open()
        })
    }

    /// Another host answers: nothing that waits goes out any more, and nothing that comes later until this is taken away.
    pub fn lose(&self) {
        let _ = self.with(|hold, marks| {
            marks.epochs.clear();
            hold.lose();
            Ok(())
        });
    }

    /// How things stand.
    pub fn held(&self) -> Option<Held> {
        let hold = &self.0.as_ref()?.hold;
        let state = hold.state();
        Some(Held { now: state.held, lost: state.dropped, waits: hold.waits() })
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Held { now, lost, waits } = self;
        let (half, most) = (waits.quantile(0.5), waits.quantile(0.99));
        let longest = waits.longest();
        write!(f, "packets that waited: {}, for {half:.1?} (median), {most:.1?} (99 of 100), {longest:.1?} at most", waits.count())?;
        write!(f, "; that wait: {now}; lost for want of room: {lost}")
    }
}
