//! Two descriptors that bytes come from and go to, which never block for ever: a wait ends with the time that it may
//! take, or with [`Stop`].

use crate::error::Error;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, sendmsg, shutdown};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What may be written to a pipe that poll(2) calls writable without blocking on it: `PIPE_BUF`.
const ATOMIC: usize = 4096;

/// Ends every wait of the ports that hold it, now and later.
#[derive(Debug)]
pub struct Stop {
    seen: UnixStream,
    told: UnixStream,
    why: OnceLock<Error>,
}

impl Stop {
    /// One that nobody has been told yet.
    pub fn new() -> io::Result<Arc<Stop>> {
        let (seen, told) = UnixStream::pair()?;
        Ok(Arc::new(Stop { seen, told, why: OnceLock::new() }))
    }

    /// Tells, with a reason.
    pub fn end_because(&self, why: &Error) {
        self.why.get_or_init(|| why.clone());
        self.end();
    }

    /// Tells.
    pub fn end(&self) {
        // It can only fail when that was done before.
        let _ = self.told.shutdown(std::net::Shutdown::Both);
    }
}

/// What a wait came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The descriptor has something, or room.
    Ready,
    /// Nothing happened for so long.
    Late,
    /// [`Stop`].
    Stopped,
}

/// Waits until `fd` is ready for `what`, for `limit` at most (`None`: for ever), or until `stop`.
pub fn wait(fd: BorrowedFd<'_>, what: PollFlags, limit: Option<Duration>, stop: &Stop) -> io::Result<Wait> {
    let end = limit.map(|l| Instant::now() + l);
    loop {
        let left = end.map(|e| e.saturating_duration_since(Instant::now()));
        // Rounded up, or the last millisecond would be spent spinning.
        let timeout = left.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX));
        let mut fds = [PollFd::new(fd, what), PollFd::new(stop.seen.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        if fds[1].any().unwrap_or(true) {
            return Ok(Wait::Stopped);
        }
        if fds[0].any().unwrap_or(true) {
            return Ok(Wait::Ready);
        }
        if left.is_some_and(|l| l.is_zero()) {
            return Ok(Wait::Late);
        }
    }
}

/// An input and an output.
#[derive(Debug)]
pub struct Port {
    input: OwnedFd,
    output: OwnedFd,
    stop: Arc<Stop>,
    /// How long a single read or write may wait; `None`: for ever.
    patience: Option<Duration>,
}

impl Port {
    /// Takes both.
    pub fn new(input: OwnedFd, output: OwnedFd, stop: Arc<Stop>, patience: Option<Duration>) -> Port {
        Port { input, output, stop, patience }
    }

    /// A socket is both at once.
    pub fn socket(socket: impl Into<OwnedFd>, stop: Arc<Stop>, patience: Option<Duration>) -> io::Result<Port> {
        let input = socket.into();
        let output = input.try_clone()?;
        Ok(Port::new(input, output, stop, patience))
    }

    /// Nothing more is written: the other end reads to the end. A pipe ends with its last descriptor only.
    pub fn end_output(&self) {
        let _ = shutdown(self.output.as_raw_fd(), Shutdown::Write);
    }

    /// Changes how long it waits.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    fn until(&self, fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
        match wait(fd, what, self.patience, &self.stop)? {
            Wait::Ready => Ok(()),
            Wait::Late => Err(io::ErrorKind::TimedOut.into()),
            Wait::Stopped => Err(self.stop.why.get().map_or_else(|| io::ErrorKind::ConnectionAborted.into(), |why| why.clone().into())),
        }
    }
}

impl Read for Port {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut done = recv(self.input.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT);
            if done == Err(Errno::ENOTSOCK) {
                self.until(self.input.as_fd(), PollFlags::POLLIN)?;
                done = nix::unistd::read(&self.input, into);
            }
            match done {
                Err(Errno::EAGAIN) => self.until(self.input.as_fd(), PollFlags::POLLIN)?,
                Err(Errno::EINTR) => {}
                Ok(n) => return Ok(n),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Write for Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The descriptor may be shared with others: O_NONBLOCK is not ours to set.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            let mut done = send(self.output.as_raw_fd(), bytes, flags);
            if done == Err(Errno::ENOTSOCK) {
                self.until(self.output.as_fd(), PollFlags::POLLOUT)?;
                done = nix::unistd::write(&self.output, &bytes[..bytes.len().min(ATOMIC)]);
            }
            match done {
                Err(Errno::EAGAIN) => self.until(self.output.as_fd(), PollFlags::POLLOUT)?,
                Err(Errno::EINTR) => {}
                Ok(n) => return Ok(n),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.output.as_raw_fd(), pieces, &[], flags, None) {
                Err(Errno::ENOTSOCK) => return self.write(pieces.iter().find(|p| !p.is_empty()).map_or(&[][..], |p| &p[..])),
                Err(Errno::EAGAIN) => self.until(self.output.as_fd(), PollFlags::POLLOUT)?,
                Err(Errno::EINTR) => {}
                Ok(n) => return Ok(n),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
