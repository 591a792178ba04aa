//! At the standby: a primary that comes back whose link was lost. Who stands by goes on meanwhile: all that takes its time is done
//! by threads.

use super::beat::{Beats, Key};
use super::setup::{SETUP, Setup};
use crate::error::{Context, Error, Result};
use crate::migrate::plan::{pack, unpack};
use crate::transport::{Door, Frame, Peer, Receiver, Visitor};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For what the other end may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What it wants.
pub struct Asked {
    /// Which watch it speaks of.
    pub watch: u128,
    /// Its own.
    pub generation: u64,
    /// Another process than the one that was there before.
    fresh: bool,
    key: Key,
}

/// What has happened at the door.
pub enum News {
    /// Somebody wants to go on.
    Asks(Box<(Peer, Asked)>),
    /// This answer has led to it.
    Open(u64, Box<Opened>),
}

/// Everything that is needed to go on.
pub struct Opened {
    /// The new link,
    pub peer: Peer,
    /// its streams,
    pub receiver: Receiver,
    /// and where heartbeats come from now on, if not where they came from before.
    pub beats: Option<Beats>,
}

/// Where they come.
pub struct Visits {
    token: String,
    came: mpsc::Receiver<News>,
    tell: Sender<News>,
    ends: Arc<AtomicBool>,
    door: Arc<Door>,
    thread: Option<JoinHandle<()>>,
    /// Which answer was the last.
    count: u64,
    /// Since when one is on its way.
    answering: Option<Instant>,
}

impl Visits {
    /// Opens the door.
    ///
    /// # Errors
    /// When the kernel gives no socket or no thread.
    pub fn begin() -> Result<Visits> {
        const LOOK: Duration = Duration::from_secs(1);
        let door = Arc::new(Door::new()?);
        let token = door.token().to_owned();
        let (tell, came) = mpsc::channel();
        let ends = Arc::new(AtomicBool::new(false));
        let (theirs, news, open) = (ends.clone(), tell.clone(), door.clone());
        let work = move || {
            while !theirs.load(Ordering::Relaxed) {
                match open.next(LOOK) {
                    Ok(Some(visitor)) => {
                        let news = news.clone();
                        let listen = move || drop(ask(visitor).map(|came| news.send(News::Asks(Box::new(came)))));
                        let _ = std::thread::Builder::new().name("visitor".into()).spawn(listen);
                    }
                    Ok(None) => {}
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        };
        let thread = Some(std::thread::Builder::new().name("door".into()).spawn(work).context(|| "cannot start a thread")?);
        Ok(Visits { token, came, tell, ends, door, thread, count: 0, answering: None })
    }

    /// What they are to say.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// What has happened since. What came of an answer that is not the last one is over.
    pub fn news(&mut self) -> Option<News> {
        match self.came.try_recv().ok()? {
            News::Open(visit, _) if visit != self.count => None,
            news => {
                self.answering = None;
                Some(news)
            }
        }
    }

    /// An answer is on its way.
    pub fn is_answering(&self) -> bool {
        self.answering.is_some_and(|since| since.elapsed() < 2 * PATIENCE)
    }

    /// Answers: this generation and process, with so many images, or that it runs here. What comes of it is [`News::Open`], if anything
    /// does.
    pub fn answer(&mut self, mut peer: Peer, asked: Asked, (generation, instance): (u64, u64), images: u64, runs: bool) {
        self.count += 1;
        self.answering = Some(Instant::now());
        let (visit, tell) = (self.count, self.tell.clone());
        let open = move || -> Result<()> {
            let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
            let beats = if asked.fresh { Some(Beats::listen(&asked.key, at)?) } else { None };
            let port = beats.as_ref().map_or(Ok(0), Beats::port)?;
            let going = Setup::Going { generation, instance, images, port, runs };
            peer.link.send(&Frame { kind: SETUP, generation, payload: pack(&going)? })?;
            // Who was overtaken has nothing more to say.
            if generation == asked.generation {
                peer.open_bulk()?;
                let receiver = peer.receiver()?;
                let _ = tell.send(News::Open(visit, Box::new(Opened { peer, receiver, beats })));
            }
            Ok(())
        };
        let _ = std::thread::Builder::new().name("answer".into()).spawn(open);
    }
}

impl Drop for Visits {
    /// This process may go on as another end of the watch: nobody is to find a door behind which nobody is.
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.door.close();
        self.thread.take().map(JoinHandle::join);
    }
}

fn ask(visitor: Visitor) -> Result<(Peer, Asked)> {
    let mut peer = visitor.agree()?;
    let asked = peer.link.receive(Some(PATIENCE))?;
    Asked::of(unpack(&asked.payload)?).map(|asked| (peer, asked))
}

impl Asked {
    /// What was said first.
    ///
    /// # Errors
    /// When that is something else.
    pub fn of(setup: Setup) -> Result<Asked> {
        let Setup::Ask { watch, key, generation, fresh, .. } = setup else {
            return Err(Error::link("who comes back says something else than what a watch begins with"));
        };
        Ok(Asked { watch, generation, fresh, key: Key::of(key) })
    }
}
