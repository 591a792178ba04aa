//! The control link: frames both ways, in order, over whatever carries bytes.
//!
//! A thread reads, so that an end that is busy hears all the same whether the other one lives; another one says, when
//! nothing else was said for a while, that this one does. What is silent for longer than the link's patience has died:
//! every wait ends then, with [`crate::error::Kind::LinkFailed`].

use super::frame::{BESIDE, FIRST_KIND, Frame, HEADER, Header};
use super::port::{Port, Stop, Wait, wait};
use crate::error::{Context, Error, Result};
use nix::poll::PollFlags;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What an end says when it has nothing to say.
pub const ALIVE: u16 = 1;
/// How long the other end may be silent, unless somebody says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often an end that has nothing to say says so, and looks how long the other one has been silent.
const BEAT: Duration = Duration::from_millis(250);
/// Bytes of frames that wait to be received; who sends more waits until some were.
const WAITING: usize = 32 << 20;

/// Locks, also what somebody held who panicked.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all threads of a link know.
struct Shared {
    state: Mutex<State>,
    /// Something came, was taken, or failed.
    changed: Condvar,
    writer: Mutex<Port>,
    stop: Arc<Stop>,
    /// Knows why the link failed when all that it saw itself is that nobody is there any more.
    explain: Box<dyn Fn() -> Option<Error> + Send + Sync>,
    /// What the other end is called.
    name: String,
}

struct State {
    waiting: VecDeque<Frame>,
    bytes: usize,
    failed: Option<Error>,
    said: Instant,
    patience: Duration,
    closed: bool,
    /// Who waits for a frame is to look at something else.
    woken: bool,
    /// Others that cannot go on without the link.
    also: Vec<Arc<Stop>>,
    /// Whom it tells that something has come, or that it has failed.
    ring: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// One end of a control link.
pub struct Link {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// Starts to listen on `input` and to talk on `output`; `name` is what errors call the other end. When it is gone,
    /// `explain` is asked whether it knows why.
    pub fn new(input: OwnedFd, output: OwnedFd, name: &str, explain: impl Fn() -> Option<Error> + Send + Sync + 'static) -> Result<Link> {
        let stop = Stop::new().context(|| "cannot make a socket pair")?;
        let own = || output.try_clone().context(|| "cannot duplicate a descriptor");
        let writer = Port::new(own()?, own()?, stop.clone(), Some(PATIENCE));
        let state = State {
            waiting: VecDeque::new(),
            bytes: 0,
            failed: None,
            said: Instant::now(),
            patience: PATIENCE,
            closed: false,
            woken: false,
            also: Vec::new(),
            ring: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            writer: Mutex::new(writer),
            stop,
            explain: Box::new(explain),
            name: name.to_owned(),
        });
        let (ear, heart) = (shared.clone(), shared.clone());
        let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work).context(|| "cannot start a thread")
        };
        let threads = vec![start("link", Box::new(move || ear.listen(input)))?, start("alive", Box::new(move || heart.beat()))?];
        Ok(Link { shared, threads })
    }

    /// Sends one message, and waits for room while the other end has not taken what was sent before.
    ///
    /// # Errors
    /// When the link has failed, or fails now.
    pub fn send(&self, frame: &Frame) -> Result<()> {
        debug_assert!(frame.kind >= FIRST_KIND, "kind {} belongs to the transport", frame.kind);
        self.shared.send(frame)
    }

    /// The next message; waits for `limit` at most, for ever without one.
    ///
    /// # Errors
    /// When nothing comes in that time, or when the link has failed; what came before is received first.
    pub fn receive(&mut self, limit: Option<Duration>) -> Result<Frame> {
        self.shared.take_until(limit, true, |f| (FIRST_KIND..BESIDE).contains(&f.kind))
    }

    /// Ends a wait of [`Link::receive`], or the next one, before its time.
    pub fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }

    /// Has `ring` called whenever a frame has come, or the link has failed: for who waits for several links at once.
    pub fn rings(&self, ring: Arc<dyn Fn() + Send + Sync>) {
        locked(&self.shared.state).ring = Some(ring);
    }

    /// The next message if it is there.
    ///
    /// # Errors
    /// When the link has failed.
    pub fn try_receive(&mut self) -> Result<Option<Frame>> {
        self.shared.pick(&mut locked(&self.shared.state), |f| (FIRST_KIND..BESIDE).contains(&f.kind))
    }

    /// How long the other end may be silent, and how long it may take nothing, until it counts as dead. It says
    /// something four times a second when all is well.
    pub fn set_patience(&self, patience: Duration) {
        locked(&self.shared.state).patience = patience;
        locked(&self.shared.writer).set_patience(Some(patience));
    }

    /// Why it does not work any more.
    pub fn failure(&self) -> Option<Error> {
        locked(&self.shared.state).failed.clone()
    }

    /// A stream has failed with `e`: when the link fails, too, within a moment, it knows better why.
    pub fn explain(&self, e: Error) -> Error {
        self.shared.soon_failed().unwrap_or(e)
    }

    /// Sends a message of the transport's own.
    pub(super) fn send_own(&self, frame: &Frame) -> Result<()> {
        self.shared.send(frame)
    }

    /// The next message of the transport's own; a caller's stay where they are.
    pub(super) fn receive_own(&mut self, kind: u16, limit: Duration) -> Result<Frame> {
        let frame = self.shared.take(Some(limit), |f| f.kind < FIRST_KIND)?;
        if frame.kind == kind {
            return Ok(frame);
        }
        Err(Error::link(format!("{} answers with a message of kind {} where {kind} was expected", self.shared.name, frame.kind)))
    }

    /// Has `stop` told when the link fails.
    pub(super) fn stops(&self, stop: &Arc<Stop>) {
        let mut state = locked(&self.shared.state);
        if let Some(e) = &state.failed {
            stop.end_because(e);
        }
        state.also.push(stop.clone());
    }

    /// A second pair of ears for frames of kinds from [`BESIDE`] on.
    pub fn beside(&self) -> Beside {
        Beside(self.shared.clone())
    }
}

/// Tells who waits for a frame that something else has happened.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// See [`Link::waker`].
    pub fn wake(&self) {
        locked(&self.0.state).woken = true;
        self.0.changed.notify_all();
    }
}

/// Frames beside those of the [`Link`], which somebody else sends and receives.
pub struct Beside(Arc<Shared>);

impl Beside {
    /// As [`Link::send`].
    ///
    /// # Errors
    /// When the link has failed, or fails now.
    pub fn send(&self, frame: &Frame) -> Result<()> {
        debug_assert!(frame.kind >= BESIDE, "kind {} is heard on the link itself", frame.kind);
        self.0.send(frame)
    }

    /// The next of these frames; `None` when nothing comes in that time.
    ///
    /// # Errors
    /// When the link has failed.
    pub fn receive(&self, limit: Duration) -> Result<Option<Frame>> {
        let frame = self.0.take(Some(limit), |f| f.kind >= BESIDE);
        if frame.is_err() && locked(&self.0.state).failed.is_none() { Ok(None) } else { frame.map(Some) }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        locked(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
        self.shared.stop.end();
        self.threads.drain(..).for_each(|t| drop(t.join()));
        // Others may hold the descriptor, and the other end is not to wait for them.
        locked(&self.shared.writer).end_output();
    }
}

impl Shared {
    fn send(&self, frame: &Frame) -> Result<()> {
        let bytes = frame.encode()?;
        let mut writer = locked(&self.writer);
        if let Some(e) = &locked(&self.state).failed {
            return Err(e.clone());
        }
        let done = writer.write_all(&bytes);
        drop(writer);
        locked(&self.state).said = Instant::now();
        done.map_err(|e| {
            let name = &self.name;
            self.fail(match e.kind() {
                std::io::ErrorKind::TimedOut => Error::link(format!("{name} takes nothing any more")),
                std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => {
                    // What the other end has said before is heard first, to its end.
                    self.soon_failed().unwrap_or_else(|| self.gone())
                }
                _ => Error::link(format!("cannot send to {name}: {e}")),
            })
        })
    }

    /// Notes the first failure, and gives it back.
    fn fail(&self, e: Error) -> Error {
        let mut state = locked(&self.state);
        let first = state.failed.get_or_insert(e).clone();
        state.also.iter().for_each(|s| s.end_because(&first));
        let ring = state.ring.clone();
        drop(state);
        self.stop.end();
        self.changed.notify_all();
        ring.iter().for_each(|ring| ring());
        first
    }

    /// Why it fails within a moment, if it does.
    fn soon_failed(&self) -> Option<Error> {
        const MOMENT: Duration = Duration::from_secs(2);
        let wait = self.changed.wait_timeout_while(locked(&self.state), MOMENT, |s| s.failed.is_none());
        wait.unwrap_or_else(PoisonError::into_inner).0.failed.clone()
    }

    fn gone(&self) -> Error {
        (self.explain)().unwrap_or_else(|| Error::link(format!("{} has ended the link", self.name)))
    }

    fn take(&self, limit: Option<Duration>, wanted: fn(&Frame) -> bool) -> Result<Frame> {
        self.take_until(limit, false, wanted)
    }

    /// `wakes`: a [`Waker`] ends it.
    fn take_until(&self, limit: Option<Duration>, wakes: bool, wanted: fn(&Frame) -> bool) -> Result<Frame> {
        let end = limit.map(|l| Instant::now() + l);
        let mut state = locked(&self.state);
        loop {
            if let Some(frame) = self.pick(&mut state, wanted)? {
                return Ok(frame);
            }
            let left = end.map(|e| e.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) || wakes && std::mem::take(&mut state.woken) {
                let limit = limit.unwrap_or_default();
                return Err(Error::link(format!("{} has not answered for {limit:?}", self.name)));
            }
            let wait = left.unwrap_or(Duration::from_secs(3600));
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The first waiting frame that is wanted.
    fn pick(&self, state: &mut State, wanted: fn(&Frame) -> bool) -> Result<Option<Frame>> {
        match state.waiting.iter().position(wanted) {
            Some(at) => {
                let frame = state.waiting.remove(at);
                state.bytes -= frame.as_ref().map_or(0, |f| f.payload.len() + HEADER);
                self.changed.notify_all();
                Ok(frame)
            }
            None => state.failed.clone().map_or(Ok(None), Err),
        }
    }

    /// The thread that reads.
    fn listen(&self, input: OwnedFd) {
        if let Err(e) = self.hear(input) {
            self.fail(e);
        }
    }

    fn hear(&self, input: OwnedFd) -> Result<()> {
        let mut file = std::fs::File::from(input);
        loop {
            let mut header = [0; HEADER];
            self.fill(&mut file, &mut header)?;
            let header = Header::decode(&header)?;
            let mut payload = vec![0; header.length];
            self.fill(&mut file, &mut payload)?;
            let frame = header.with(payload)?;
            if frame.kind == ALIVE {
                continue;
            }
            let mut state = locked(&self.state);
            let room = |s: &State| s.closed || s.waiting.is_empty() || s.bytes + frame.payload.len() + HEADER <= WAITING;
            while !room(&state) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.bytes += frame.payload.len() + HEADER;
            state.waiting.push_back(frame);
            let ring = state.ring.clone();
            drop(state);
            self.changed.notify_all();
            ring.iter().for_each(|ring| ring());
        }
    }

    fn fill(&self, file: &mut std::fs::File, mut into: &mut [u8]) -> Result<()> {
        while !into.is_empty() {
            let patience = locked(&self.state).patience;
            // Patience may change while it waits: look again now and then.
            let begin = Instant::now();
            let step = BEAT.min(patience);
            loop {
                match wait(file.as_fd(), PollFlags::POLLIN, Some(step), &self.stop).context(|| "cannot wait for the link")? {
                    Wait::Ready => break,
                    Wait::Stopped => return Err(Error::link("the link was closed")),
                    Wait::Late if begin.elapsed() >= locked(&self.state).patience => {
                        let silent = begin.elapsed().as_secs_f64();
                        return Err(Error::link(format!("nothing was heard of {} for {silent:.0} s", self.name)));
                    }
                    Wait::Late => {}
                }
            }
            match file.read(into) {
                Ok(0) => return Err(self.gone()),
                Ok(n) => into = &mut into[n..],
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::link(format!("cannot hear {}: {e}", self.name))),
            }
        }
        Ok(())
    }

    /// The thread that says that this end lives.
    fn beat(&self) {
        let mut state = locked(&self.state);
        while !state.closed && state.failed.is_none() {
            let every = BEAT.min(state.patience / 4);
            let silent = state.said.elapsed();
            if silent >= every {
                drop(state);
                if self.send(&Frame::bare(ALIVE)).is_err() {
                    return;
                }
                state = locked(&self.state);
                continue;
            }
            state = self.changed.wait_timeout(state, every - silent).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::os::unix::net::UnixStream;

    fn link(socket: UnixStream) -> Link {
        let other = socket.try_clone().expect("a descriptor");
        Link::new(socket.into(), other.into(), "peer", || None).expect("a link")
    }

    fn frame(kind: u16, payload: &[u8]) -> Frame {
        Frame { kind, generation: 7, payload: payload.to_vec() }
    }

    #[test]
    fn frames_go_both_ways_and_the_transports_own_stay_apart() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (mut a, mut b) = (link(a), link(b));
        assert_eq!(a.try_receive().expect("no failure"), None);
        b.send(&frame(20, b"first")).expect("sent");
        b.send_own(&frame(5, b"own")).expect("sent");
        b.send(&frame(21, &vec![9; 1 << 20])).expect("sent");
        a.send(&frame(22, b"back")).expect("sent");
        assert_eq!(a.receive_own(5, PATIENCE).expect("a frame").payload, b"own");
        assert_eq!(a.receive(None).expect("a frame"), frame(20, b"first"));
        assert_eq!(a.receive(Some(PATIENCE)).expect("a frame").payload.len(), 1 << 20);
        assert_eq!(b.receive(None).expect("a frame"), frame(22, b"back"));
        let e = b.receive(Some(Duration::from_millis(1))).expect_err("there is no more");
        assert!(e.kind == Kind::LinkFailed && b.failure().is_none(), "{e}");
    }

    #[test]
    fn who_waits_can_be_woken() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (mut a, b) = (link(a), link(b));
        let waker = a.waker();
        std::thread::scope(|s| {
            s.spawn(|| waker.wake());
            assert!(a.receive(None).is_err() && a.failure().is_none());
        });
        b.send(&frame(16, b"word")).expect("sent");
        assert_eq!(a.receive(None).expect("a frame"), frame(16, b"word"));
    }

    #[test]
    fn what_was_sent_before_the_end_is_received() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (a, mut b) = (link(a), link(b));
        a.send(&frame(16, b"last words")).expect("sent");
        drop(a);
        assert_eq!(b.receive(None).expect("a frame").payload, b"last words");
        assert_eq!(b.receive(None).expect_err("the end").kind, Kind::LinkFailed);
        assert!(b.failure().is_some() && b.send(&frame(16, b"")).is_err());
    }

    #[test]
    fn last_words_are_heard_by_who_speaks_himself() {
        for _ in 0..500 {
            let (mut a, b) = UnixStream::pair().expect("a pair");
            a.write_all(&frame(16, b"last words").encode().expect("bytes")).expect("written");
            drop(a);
            let mut b = link(b);
            let e = b.send(&frame(16, b"more")).expect_err("nobody takes it");
            assert_eq!((e.kind, b.receive(None).expect("a frame").payload), (Kind::LinkFailed, b"last words".to_vec()));
        }
    }

    #[test]
    fn a_silent_peer_is_dead_and_a_quiet_one_is_not() {
        let (a, silent) = UnixStream::pair().expect("a pair");
        let mut a = link(a);
        a.set_patience(Duration::from_millis(200));
        let e = a.receive(None).expect_err("nobody speaks");
        assert!(e.kind == Kind::LinkFailed && e.message.contains("nothing was heard"), "{e}");
        drop(silent);
        let (a, b) = UnixStream::pair().expect("a pair");
        let (mut a, mut b) = (link(a), link(b));
        // It says so now and then, or oftener where it is asked to be impatient itself.
        a.set_patience(Duration::from_secs(8));
        std::thread::scope(|s| {
            s.spawn(|| drop(b.receive(Some(Duration::from_secs(3)))));
            let e = a.receive(Some(Duration::from_secs(3))).expect_err("nothing is said");
            assert!(e.message.contains("has not answered") && a.failure().is_none(), "{e}");
        });
    }

    #[test]
    fn a_peer_that_takes_nothing_is_dead() {
        let (a, full) = UnixStream::pair().expect("a pair");
        let a = link(a);
        a.set_patience(Duration::from_millis(300));
        let e = loop {
            if let Err(e) = a.send(&frame(16, &vec![0; 1 << 20])) {
                break e;
            }
        };
        assert_eq!(e.kind, Kind::LinkFailed);
        drop(full);
    }

    #[test]
    fn foreign_bytes_end_the_link() {
        let (a, mut other) = UnixStream::pair().expect("a pair");
        let mut a = link(a);
        other.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("written");
        assert_eq!(a.receive(None).expect_err("that is no frame").kind, Kind::LinkFailed);
    }

    #[test]
    fn who_does_not_receive_does_not_fill_memory() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (a, mut b) = (link(a), link(b));
        std::thread::scope(|s| {
            s.spawn(|| {
                for n in 0..10u8 {
                    a.send(&frame(16, &vec![n; 8 << 20])).expect("sent");
                }
            });
            for n in 0..10u8 {
                assert!(locked(&b.shared.state).bytes <= WAITING);
                assert_eq!(b.receive(None).expect("a frame").payload[0], n);
            }
        });
    }
}
