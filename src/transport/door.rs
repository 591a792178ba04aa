//! Where a source comes back whose link was lost: it has `meio agent --again TOKEN` started, which lends its standard input and
//! output to the agent that has been there all the time.

use super::lend::Lender;
use super::port::Stop;
use super::{Peer, Role, agree};
use crate::error::{Context, Error, Result};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// An agent listens for who comes back.
pub struct Door {
    lender: Lender,
    stop: Arc<Stop>,
}

/// Somebody who knows the token.
pub struct Visitor {
    ends: (OwnedFd, OwnedFd),
    lent: UnixStream,
}

impl Door {
    /// One with a token of its own.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn new() -> Result<Door> {
        Ok(Door { lender: Lender::new()?, stop: Stop::new().context(|| "cannot make a socket pair")? })
    }

    /// What they are to say who come back.
    pub fn token(&self) -> &str {
        &self.lender.token
    }

    /// The next one; `None` when nobody has come within this time.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn next(&self, limit: Duration) -> Result<Option<Visitor>> {
        let came = self.lender.visitor(&self.stop, limit)?;
        Ok(came.map(|(input, output, lent)| Visitor { ends: (input, output), lent }))
    }

    /// Nobody comes any more, and who waits for somebody does not wait any longer.
    pub fn close(&self) {
        self.stop.end();
    }
}

impl Visitor {
    /// The target's end of a new link.
    ///
    /// # Errors
    /// As [`super::accept`].
    pub fn agree(self) -> Result<Peer> {
        let (input, output) = self.ends;
        let (link, hello, protocol) = agree::over(input, output)?;
        Ok(Peer { link, hello, protocol, bulk: None, role: Role::Target { _lent: Some(self.lent) } })
    }
}

/// What the command of [`super::connect_to`] is to be told in addition, so that it goes to the one who has made this token.
///
/// # Errors
/// When that is no token.
pub fn again(token: &str) -> Result<String> {
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::link("the token makes no sense"));
    }
    Ok(format!("--again {token}"))
}
