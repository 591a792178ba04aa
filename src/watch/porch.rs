//! At a primary: where they come who stand by for it, and call by themselves. It outlives each of the watches that it serves: who comes
//! between two of them waits as a guest, and is met by the one that begins.

use super::again::{self, Ask, Found, Whom};
use super::ring::is_among;
use super::setup::{Returns, Setup};
use crate::error::{Context, Error, Result};
use crate::migrate::plan::unpack;
use crate::transport::{Destination, Door, Peer, Visitor};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// One that has called while nobody had time for it.
pub struct Guest {
    /// The link that it has made.
    pub peer: Peer,
    /// What it wants.
    pub returns: Returns,
}

/// Where one of those is met who stand by.
struct Place {
    ask: Arc<Ask>,
    tell: mpsc::Sender<Result<Found>>,
    /// Who is wanted, while nobody stands by.
    wanted: Option<Whom>,
    /// Somebody is there, although somebody stands by.
    knocks: bool,
    /// What the host calls itself that came last.
    host: Option<String>,
}

/// Who takes in another host, which is logged in to so; what it is to be told.
type Joins = Arc<dyn Fn(&str) -> String + Send + Sync>;

#[derive(Default)]
struct Rooms {
    /// Of the watch that is served, if one is.
    places: Vec<Place>,
    guests: Vec<Guest>,
    joins: Option<Joins>,
    /// Those that have no part in it any more.
    barred: Vec<String>,
}

/// Where they come.
pub struct Porch {
    token: String,
    rooms: Mutex<Rooms>,
    ends: AtomicBool,
}

impl Porch {
    /// Opens the door. [`Porch::end`] shuts it.
    ///
    /// # Errors
    /// When the kernel gives no socket or no thread.
    pub fn begin() -> Result<Arc<Porch>> {
        let door = Door::new()?;
        let porch = Arc::new(Porch { token: door.token().to_owned(), rooms: Mutex::default(), ends: AtomicBool::new(false) });
        let own = porch.clone();
        std::thread::Builder::new().name("door".into()).spawn(move || own.serve(&door)).context(|| "cannot start a thread")?;
        Ok(porch)
    }

    /// What they are to say.
    pub fn token(&self) -> &str {
        &self.token
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of those who stand by is met at this place from now on; who was a guest comes again.
    pub fn opens(&self, of: usize, ask: &Arc<Ask>, tell: &mpsc::Sender<Result<Found>>, host: &str) {
        let mut rooms = self.rooms();
        let host = Some(host.to_owned()).filter(|host| !host.is_empty());
        rooms.places.truncate(of);
        rooms.places.push(Place { ask: ask.clone(), tell: tell.clone(), wanted: None, knocks: false, host });
        rooms.guests.clear();
    }

    /// Who else may stand by is said by this one.
    pub fn joined_by(&self, joins: impl Fn(&str) -> String + Send + Sync + 'static) {
        self.rooms().joins = Some(Arc::new(joins));
    }

    /// These have no part in it any more, and are told so.
    pub fn bars(&self, names: &[String]) {
        self.rooms().barred = names.to_vec();
    }

    /// Nobody is met any more: who comes is a guest.
    pub fn close(&self) {
        let mut rooms = self.rooms();
        (rooms.places, rooms.joins) = (Vec::new(), None);
    }

    /// Nobody can come any more.
    pub fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
        let guests = std::mem::take(&mut self.rooms().guests);
        drop(guests);
    }

    /// This one is there again: welcome.
    pub fn receives(&self, guest: Guest) {
        let mut rooms = self.rooms();
        rooms.guests.retain(|there| there.peer.hello.host != guest.peer.hello.host);
        rooms.guests.push(guest);
    }

    /// How those are logged in to who are there as guests.
    pub fn guests(&self) -> Vec<String> {
        let mut rooms = self.rooms();
        rooms.guests.retain(|guest| guest.peer.link.failure().is_none());
        rooms.guests.iter().map(|guest| guest.returns.at.clone()).collect()
    }

    /// They are met.
    pub fn take(&self) -> Vec<Guest> {
        std::mem::take(&mut self.rooms().guests)
    }

    /// Somebody calls, although somebody stands by at this place.
    pub fn knocks(&self, of: usize) -> bool {
        self.rooms().places.get(of).is_some_and(|place| place.knocks)
    }

    /// Who stands by there.
    pub fn met(&self, of: usize, host: &str) {
        if let Some(place) = self.rooms().places.get_mut(of) {
            place.host = Some(host.to_owned());
        }
    }

    /// Where nobody stands by who is wanted.
    pub fn missing(&self) -> Vec<Destination> {
        let rooms = self.rooms();
        rooms.places.iter().filter(|place| place.wanted.is_some()).map(|place| place.ask.options.standby.clone()).collect()
    }

    /// Nobody stands by there, and this one is wanted.
    pub fn wants(&self, of: usize, whom: &Whom) {
        if let Some(place) = self.rooms().places.get_mut(of) {
            place.wanted = Some(whom.clone());
        }
    }

    /// Who is wanted at a place, when it is known that nobody stands by there any more.
    fn wait(&self, of: usize) -> Option<Whom> {
        const STEP: Duration = Duration::from_millis(5);
        const MOST: u32 = 2000;
        let knock = |knocks| self.rooms().places.get_mut(of).into_iter().for_each(|place| place.knocks = knocks);
        knock(true);
        let wanted = (0..MOST).find_map(|_| {
            let wanted = self.rooms().places.get_mut(of).and_then(|place| place.wanted.take());
            if wanted.is_none() && !self.ends.load(Ordering::Relaxed) {
                std::thread::sleep(STEP);
            }
            wanted
        });
        knock(false);
        wanted
    }

    fn serve(self: &Arc<Porch>, door: &Door) {
        const LOOK: Duration = Duration::from_secs(1);
        while !self.ends.load(Ordering::Relaxed) {
            match door.next(LOOK) {
                Ok(Some(visitor)) => {
                    let own = self.clone();
                    let _ = std::thread::Builder::new().name("visitor".into()).spawn(move || drop(own.meet(visitor)));
                }
                Ok(None) => {}
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    fn meet(&self, visitor: Visitor) -> Result<()> {
        const SOON: Duration = Duration::from_secs(5);
        let mut peer = visitor.agree()?;
        let came = peer.link.receive(Some(SOON))?;
        let returns = match unpack(&came.payload)? {
            Setup::Returns(returns) => *returns,
            Setup::Invite(seat) => seat.returns,
            _ => return Err(Error::link("who comes says something else than what it wants")),
        };
        if !returns.runs && is_among(&self.rooms().barred, &returns.at) {
            return again::say(&peer, &Setup::Over);
        }
        let host = peer.hello.host.clone();
        let Some((of, known)) = self.place(&host, &returns) else {
            if returns.runs {
                return again::say(&peer, &Setup::NotYet { why: "who runs it here is about to end".to_owned() });
            }
            self.receives(Guest { peer, returns });
            return Ok(());
        };
        let take = || self.rooms().places.get_mut(of).and_then(|place| place.wanted.take());
        // Whoever stands by is not to be lost for another one.
        let Some(whom) = (if known { self.wait(of) } else { take() }) else {
            let joins = self.rooms().joins.clone().filter(|_| !known && !returns.at.is_empty() && !returns.runs);
            let why = joins.map_or_else(|| "another host stands by for it".to_owned(), |joins| joins(&returns.at));
            return again::say(&peer, &Setup::NotYet { why });
        };
        let Some((ask, tell)) = self.rooms().places.get(of).map(|place| (place.ask.clone(), place.tell.clone())) else { return Ok(()) };
        let Returns { generation, instance, runs, .. } = returns;
        let found = if whom.generation.is_some_and(|own| generation > own) {
            Found::Taken { generation, instance, runs }
        } else {
            self.met(of, &host);
            again::agree(&ask, &whom, peer)?
        };
        let _ = tell.send(Ok(found));
        Ok(())
    }

    /// Where somebody is met, and whether it is known there. `None`: nobody is served.
    fn place(&self, host: &str, returns: &Returns) -> Option<(usize, bool)> {
        let rooms = self.rooms();
        let known = |place: &Place| place.host.as_deref().is_none_or(|known| known == host);
        if let Some(of) = rooms.places.iter().position(known) {
            return Some((of, true));
        }
        // Of several each has its own place, but whoever has taken over is to be heard.
        let older = |place: &Place| {
            let wanted = place.wanted.as_ref().and_then(|whom| whom.generation);
            wanted.is_some_and(|own| returns.generation > own)
        };
        let of = rooms.places.iter().position(older);
        match (rooms.places.len(), of) {
            (0, _) => None,
            (1, _) => Some((0, false)),
            (_, Some(of)) => Some((of, false)),
            (several, None) => Some((several, false)),
        }
    }
}
