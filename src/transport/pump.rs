//! The one thread that owns an ssh session: it carries bytes between the channel of a command and a socket pair.
//!
//! libssh2 knows two rules: a call that could not send all of its packet must be made again before any other, and what
//! has come is only seen by reading until there is nothing. So whoever is stuck in the middle of a packet goes first.

use super::link::locked;
use super::{Carrier, Far};
use crate::error::{Context, Error, Kind, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use ssh2::{BlockDirections, Channel, Session};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that are carried at once.
const ROOM: usize = 128 << 10;
/// What is kept of the words that a command says as it fails.
const WORDS: usize = 4 << 10;
/// How long a command may take to end once nobody listens to it any more.
pub const LAST: Duration = Duration::from_secs(2);

/// How a command ended.
#[derive(Debug, Default, Clone)]
pub struct End {
    /// Its exit code; none where a signal ended it, or the session.
    pub code: Option<i32>,
    /// The end of its standard error.
    pub words: String,
    /// Why the session ended first.
    pub failure: Option<String>,
}

/// Where a thread leaves how the command ended.
#[derive(Default)]
pub struct Ended {
    end: Mutex<Option<End>>,
    known: Condvar,
}

impl Ended {
    /// It has.
    pub fn tell(&self, end: End) {
        *locked(&self.end) = Some(end);
        self.known.notify_all();
    }

    /// Waits for `limit` at most.
    pub fn wait(&self, limit: Duration) -> Option<End> {
        let end = locked(&self.end);
        self.known.wait_timeout_while(end, limit, |e| e.is_none()).unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// What to tell of it: a failed login, no such command, or a command that ended by itself.
    pub fn reason(&self, name: &str, command: &str) -> Option<Error> {
        let end = self.wait(LAST)?;
        let words = plain(end.words.trim().as_bytes());
        let said = if words.is_empty() { String::new() } else { format!(": {words}") };
        if let Some(failure) = end.failure {
            // The system's client says so in words only.
            if ["Permission denied", "Host key verification failed"].iter().any(|w| words.contains(w)) {
                let message = format!("no login at {name}: {words}");
                return Some(Error::new(Kind::Permission, message).help("try the command of --ssh by itself"));
            }
            return Some(Error::link(format!("the ssh session with {name} has ended: {failure}{said}")));
        }
        Some(match end.code {
            Some(126 | 127) => Error::other(format!("there is no meio at {name}: `{command}` cannot be started{said}"))
                .help("install meio there, or say where it is with --remote-path"),
            Some(2) if words.contains("unrecognized subcommand") || words.contains("unexpected argument") => {
                Error::other(format!("meio at {name} is too old or too new: it does not know `{command}`{said}"))
                    .help("install the same version there, or name another with --remote-path")
            }
            Some(code) => Error::link(format!("`{command}` at {name} has ended with code {code}{said}")),
            None => Error::link(format!("`{command}` at {name} was ended by a signal{said}")),
        })
    }
}

/// Foreign words for a message: no control characters, and not too many.
pub fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect();
    clean.trim().to_owned()
}

/// Keeps the end of what a command says.
pub fn keep(words: &mut Vec<u8>, more: &[u8]) {
    words.extend_from_slice(more);
    let surplus = words.len().saturating_sub(WORDS);
    words.drain(..surplus);
}

struct Pumped {
    ended: Arc<Ended>,
    thread: Option<JoinHandle<()>>,
    name: String,
    command: String,
}

impl Far for Pumped {
    fn reason(&self) -> Box<dyn Fn() -> Option<Error> + Send + Sync> {
        let (ended, name, command) = (self.ended.clone(), self.name.clone(), self.command.clone());
        Box::new(move || ended.reason(&name, &command))
    }

    fn end(&self) -> Option<End> {
        self.ended.wait(LAST)
    }
}

impl Drop for Pumped {
    fn drop(&mut self) {
        // It ends within a bounded time once the near end is closed, and all of its ends are by now.
        if self.ended.wait(2 * LAST).is_some() {
            self.thread.take().map(JoinHandle::join);
        }
    }
}

/// Starts the thread for a command that has begun.
pub fn start(session: Session, channel: Channel, stream: TcpStream, name: &str, command: &str) -> Result<Carrier> {
    let (near, inner) = UnixStream::pair().context(|| "cannot make a socket pair")?;
    inner.set_nonblocking(true).context(|| "cannot set O_NONBLOCK")?;
    session.set_blocking(false);
    let ended = Arc::new(Ended::default());
    let tell = ended.clone();
    let mut pump = Pump {
        session,
        channel,
        stream,
        near: inner,
        out: Buffer::new(),
        back: Buffer::new(),
        words: Vec::new(),
        stuck: Stuck::No,
        near_ended: false,
        far_ended: false,
        eof_sent: false,
        last: None,
    };
    let work = move || {
        let failure = pump.run().err().map(|e| e.to_string());
        let code = if failure.is_none() { pump.code() } else { None };
        let words = String::from_utf8_lossy(&pump.words).into_owned();
        let _ = pump.stream.shutdown(std::net::Shutdown::Both);
        tell.tell(End { code, words, failure });
        // Whoever reads asks why only once it is known. Others may hold the descriptor: a guardian is a copy of meio.
        let _ = pump.near.shutdown(std::net::Shutdown::Both);
        drop(pump);
    };
    let thread = std::thread::Builder::new().name("ssh".into()).spawn(work).context(|| "cannot start a thread")?;
    let far = Pumped { ended, thread: Some(thread), name: name.into(), command: command.into() };
    Ok(Carrier { near, far: Box::new(far) })
}

/// Bytes on their way.
struct Buffer {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl Buffer {
    fn new() -> Buffer {
        Buffer { bytes: vec![0; ROOM], from: 0, to: 0 }
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Fills it, when it is empty.
    fn fill(&mut self, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let n = read(&mut self.bytes)?;
        (self.from, self.to) = (0, n);
        Ok(n)
    }

    fn drain(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let n = write(&self.bytes[self.from..self.to])?;
        self.from += n;
        Ok(n)
    }
}

/// Whose packet is half sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stuck {
    No,
    Output,
    Words,
    Input,
    Eof,
}

struct Pump {
    session: Session,
    channel: Channel,
    stream: TcpStream,
    near: UnixStream,
    /// From here to the command.
    out: Buffer,
    /// From the command to here.
    back: Buffer,
    words: Vec<u8>,
    stuck: Stuck,
    near_ended: bool,
    far_ended: bool,
    eof_sent: bool,
    /// By when it must be over.
    last: Option<Instant>,
}

/// `None` where it would block.
fn now(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Some(0)),
        Err(e) => Err(e),
    }
}

impl Pump {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let moved = self.step()?;
            if self.far_ended && self.back.is_empty() {
                return Ok(());
            }
            if self.near_ended && self.out.is_empty() && self.last.is_none() {
                self.last = Some(Instant::now() + LAST);
            }
            if self.last.is_some_and(|l| Instant::now() >= l) {
                return Ok(());
            }
            if !moved {
                self.wait()?;
            }
        }
    }

    /// Makes a call of libssh2, unless another one is in the middle of a packet.
    fn call(&mut self, who: Stuck, work: impl FnOnce(&mut Self) -> io::Result<usize>) -> io::Result<Option<usize>> {
        if self.stuck != Stuck::No && self.stuck != who {
            return Ok(None);
        }
        let done = now(work(self))?;
        let outward = matches!(self.session.block_directions(), BlockDirections::Outbound | BlockDirections::Both);
        self.stuck = if done.is_none() && outward { who } else { Stuck::No };
        Ok(done)
    }

    /// Moves what can be moved; whether there was anything.
    fn step(&mut self) -> io::Result<bool> {
        let mut moved = false;
        if self.back.is_empty() && !self.far_ended {
            let read = self.call(Stuck::Output, |p| p.back.fill(|into| p.channel.read(into)))?;
            moved |= read.is_some_and(|n| n > 0);
            let mut words = [0; 1024];
            let read = self.call(Stuck::Words, |p| p.channel.stderr().read(&mut words))?;
            if let Some(n @ 1..) = read {
                keep(&mut self.words, &words[..n]);
                moved = true;
            }
            if !moved && self.stuck == Stuck::No && self.channel.eof() {
                self.far_ended = true;
                moved = true;
            }
        }
        if !self.out.is_empty() && !self.far_ended {
            moved |= self.call(Stuck::Input, |p| p.out.drain(|bytes| p.channel.write(bytes)))?.is_some_and(|n| n > 0);
        }
        if self.near_ended && self.out.is_empty() && !self.eof_sent && !self.far_ended {
            self.eof_sent = self.call(Stuck::Eof, |p| p.channel.send_eof().map(|()| 0).map_err(Into::into))?.is_some();
        }
        Ok(moved | self.step_near()?)
    }

    fn step_near(&mut self) -> io::Result<bool> {
        let mut moved = false;
        if !self.back.is_empty() {
            let near = &mut self.near;
            match now(self.back.drain(|bytes| near.write(bytes))) {
                Ok(n) => moved |= n.is_some_and(|n| n > 0),
                // Nobody listens any more.
                Err(_) => (self.back.from, self.back.to, self.near_ended) = (0, 0, true),
            }
        }
        if self.out.is_empty() && !self.near_ended {
            let near = &mut self.near;
            match now(self.out.fill(|into| near.read(into))) {
                Ok(Some(0)) | Err(_) => (self.near_ended, moved) = (true, true),
                Ok(n) => moved |= n.is_some(),
            }
        }
        Ok(moved)
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut far = PollFlags::empty();
        let directions = self.session.block_directions();
        if self.stuck != Stuck::No {
            far |= PollFlags::POLLOUT;
        }
        // While nobody takes what has come, more is only looked at by a call that waits for leave to send.
        let awaits = !self.out.is_empty() && matches!(directions, BlockDirections::Inbound | BlockDirections::Both);
        if self.stuck == Stuck::No && (self.back.is_empty() || awaits) {
            far |= PollFlags::POLLIN;
        }
        let mut near = PollFlags::empty();
        near.set(PollFlags::POLLIN, self.out.is_empty() && !self.near_ended);
        near.set(PollFlags::POLLOUT, !self.back.is_empty());
        let timeout = match self.last {
            Some(last) => PollTimeout::try_from(last.saturating_duration_since(Instant::now()) + Duration::from_millis(1)),
            None => Ok(PollTimeout::NONE),
        };
        // A hang-up is told whatever is asked for: who is not asked must not be there.
        let mut fds = Vec::with_capacity(2);
        if !far.is_empty() {
            fds.push(PollFd::new(self.stream.as_fd(), far));
        }
        if !near.is_empty() {
            fds.push(PollFd::new(self.near.as_fd(), near));
        }
        match nix::poll::poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The exit code comes after the last output, with the channel's end.
    fn code(&mut self) -> Option<i32> {
        let end = Instant::now() + LAST;
        loop {
            let done = now(self.channel.wait_close().map(|()| 0).map_err(Into::into));
            match done {
                Ok(None) if Instant::now() < end => {
                    let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
                    let _ = nix::poll::poll(&mut fds, PollTimeout::from(50u16));
                }
                Ok(Some(_)) => break,
                _ => return None,
            }
        }
        let signal = self.channel.exit_signal().ok().and_then(|s| s.exit_signal);
        if signal.is_some() { None } else { self.channel.exit_status().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_the_end() {
        let mut words = Vec::new();
        keep(&mut words, &vec![b'x'; WORDS]);
        keep(&mut words, b"the end");
        assert!(words.len() == WORDS && words.ends_with(b"xthe end"));
        assert_eq!(plain(b" a\x1b[31m\nb "), "a [31m b");
    }

    #[test]
    fn the_reason_says_what_to_do() {
        let reason = |code, words: &str, failure: Option<&str>| {
            let ended = Ended::default();
            ended.tell(End { code, words: words.into(), failure: failure.map(Into::into) });
            ended.reason("host", "meio agent").expect("a reason")
        };
        let none = reason(Some(127), "sh: meio: not found\n", None);
        assert!(none.kind == Kind::Other && none.message.contains("not found") && none.help.is_some());
        assert!(reason(Some(2), "error: unrecognized subcommand 'agent'", None).message.contains("too old"));
        assert_eq!(reason(None, "", Some("reset")).kind, Kind::LinkFailed);
        assert_eq!(reason(None, "", None).kind, Kind::LinkFailed);
    }
}
