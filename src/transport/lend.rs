//! Streams over ssh sessions: each session starts `meio agent --bulk TOKEN`, which lends its standard input and output
//! to the agent that asked for it, and waits until that has no use for them any more.
//!
//! They meet at an abstract unix socket. Only the same user, or root, is listened to, and only with the token.

use super::direct::Stream;
use super::port::{Port, Stop, Wait, wait};
use crate::error::{Context, Error, Kind, Result};
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt};
use ring::digest;
use ring::rand::SecureRandom;
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where streams are lent to.
pub struct Lender {
    /// What they are asked to say.
    pub token: String,
    listener: UnixListener,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The socket's name does not tell the token: everybody sees it.
fn address(token: &str) -> Result<SocketAddr> {
    let name = hex(&digest::digest(&digest::SHA256, token.as_bytes()).as_ref()[..16]);
    SocketAddr::from_abstract_name(format!("meio-bulk-{name}")).context(|| "cannot make a socket's name")
}

impl Lender {
    /// Listens, with a fresh token.
    pub fn new() -> Result<Lender> {
        let mut secret = [0; 16];
        ring::rand::SystemRandom::new().fill(&mut secret).map_err(|_| Error::other("the kernel gives no random bytes"))?;
        let token = hex(&secret);
        let listener = UnixListener::bind_addr(&address(&token)?).context(|| "cannot listen for streams")?;
        listener.set_nonblocking(true).context(|| "cannot set O_NONBLOCK")?;
        Ok(Lender { token, listener })
    }

    /// Waits until `count` streams have been lent. Beside each stands the connection that it goes back by.
    pub fn take(&self, count: usize, stop: &Arc<Stop>, limit: Duration) -> Result<(Vec<Stream>, Vec<UnixStream>)> {
        let end = Instant::now() + limit;
        let (mut streams, mut back) = (Vec::new(), Vec::new());
        while streams.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            match wait(self.listener.as_fd(), PollFlags::POLLIN, Some(left), stop).context(|| "cannot wait for streams")? {
                Wait::Ready => {}
                Wait::Late => return Err(Error::link(format!("{} of {count} streams have come within {limit:?}", streams.len()))),
                Wait::Stopped => return Err(Error::link("the link failed while streams were opened")),
            }
            let Ok((connection, _)) = self.listener.accept() else { continue };
            if let Ok(Some((input, output))) = self.lent(&connection) {
                streams.push(Stream::Lent(Port::new(input, output, stop.clone(), None)));
                back.push(connection);
            }
        }
        Ok((streams, back))
    }

    /// The two ends of the next stream that is lent, and the connection that it goes back by; `None` when none has come in time.
    pub fn visitor(&self, stop: &Stop, limit: Duration) -> Result<Option<(OwnedFd, OwnedFd, UnixStream)>> {
        match wait(self.listener.as_fd(), PollFlags::POLLIN, Some(limit), stop).context(|| "cannot wait for streams")? {
            Wait::Ready => {}
            Wait::Late | Wait::Stopped => return Ok(None),
        }
        let Ok((connection, _)) = self.listener.accept() else { return Ok(None) };
        let lent = self.lent(&connection).unwrap_or_default();
        Ok(lent.map(|(input, output)| (input, output, connection)))
    }

    /// What somebody who has connected lends; `None` where it is somebody else.
    fn lent(&self, connection: &UnixStream) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let who = getsockopt(connection, sockopt::PeerCredentials)?;
        if who.uid() != 0 && who.uid() != nix::unistd::geteuid().as_raw() {
            return Ok(None);
        }
        connection.set_nonblocking(false)?;
        connection.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut word = [0; 64];
        let mut room = nix::cmsg_space!([std::os::fd::RawFd; 2]);
        let mut parts = [IoSliceMut::new(&mut word)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
        let length = message.bytes;
        let mut fds: Vec<OwnedFd> = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                fds.extend(numbers.into_iter().map(crate::sys::file::own));
            }
        }
        let mut fds = fds.into_iter();
        let (input, output) = (fds.next(), fds.next());
        Ok(if word[..length] == *self.token.as_bytes() { input.zip(output) } else { None })
    }
}

/// `meio agent --bulk TOKEN`: lends standard input and output, and returns when they are not needed any more.
///
/// # Errors
/// When nobody waits for them.
pub fn lend(token: &str) -> Result<()> {
    let nobody = |e: std::io::Error| Error::new(Kind::LinkFailed, format!("nobody waits for this stream: {e}"));
    let mut connection = UnixStream::connect_addr(&address(token)?).map_err(nobody)?;
    let fds = [std::io::stdin().as_fd().as_raw_fd(), std::io::stdout().as_fd().as_raw_fd()];
    let word = [IoSlice::new(token.as_bytes())];
    sendmsg::<()>(connection.as_raw_fd(), &word, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)
        .context(|| "cannot lend the stream")?;
    // It says nothing; its end is the end.
    let _ = connection.read(&mut [0]);
    Ok(())
}
