//! The link between two meios on two hosts.
//!
//! The source logs in to the target by ssh and has `meio agent` started there; both say who they are and agree on a
//! version of what is spoken. From then on there are two ways for bytes: the control link ([`Link`]: frames, both
//! ways, in order, with a pulse), and the bulk streams ([`Sender`], [`Receiver`]: images, one way, over several
//! encrypted connections at once).
//!
//! ```text
//! mod        who is called and how; connect, accept
//!   agree      the first words of both ends
//!   login      an ssh session of libssh2: host key, user, command; pump feeds its one channel
//!   client     the system's ssh instead, as a child process
//!   command    another command of meio, run there to its end
//!   door       a link that is made again with the agent that is there
//!   bulk       opening the streams: direct (TLS), or lent (ssh sessions)
//!     flow     items in numbered chunks over all of them
//!     link       frames over a pair of descriptors
//!       frame, port, known_hosts, identity, base64
//! ```
//!
//! libssh2 reads no ssh_config(5), knows no host certificates and no jump hosts; `--ssh` is for those.

mod agree;
mod base64;
mod bulk;
mod client;
mod command;
mod direct;
mod door;
mod drain;
mod flow;
mod frame;
mod identity;
mod known_hosts;
mod lend;
mod limit;
mod link;
mod login;
mod port;
mod pump;

pub use agree::Hello;
pub use bulk::called_from;
pub use command::{run as run_at, word};
pub use door::{Door, Visitor, again};
pub use drain::{Speed, drain, measure};
pub use flow::{Receiver, Sender};
pub use frame::{BESIDE, Frame};
pub use lend::lend;
pub use link::{Beside, Link, PATIENCE, Waker};

use crate::error::{Error, Kind, Result};
use crate::progress::Report;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Who is called: `[user@]host[:port]`; an IPv6 address with a port stands in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Login name there; without it the one here.
    pub user: Option<String>,
    /// Name or address.
    pub host: String,
    /// Port of the ssh server; without it 22, or what `--ssh` says.
    pub port: Option<u16>,
}

/// Whether bulk goes over connections of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direct {
    /// Where the target can be reached; else over ssh.
    #[default]
    Auto,
    /// Over ssh.
    Never,
}

/// How to get there.
#[derive(Debug, Clone)]
pub struct How {
    /// The system's client and its options, as in `ssh -J bastion`, in place of libssh2.
    pub ssh: Option<String>,
    /// Key files; with none the agent's keys and those in ~/.ssh are tried.
    pub identity: Vec<PathBuf>,
    /// Instead of ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts.
    pub known_hosts: Option<PathBuf>,
    /// meio there, as the shell there is to start it.
    pub remote_path: String,
    /// Connections that bulk is striped over; 1 to [`STREAMS`].
    pub streams: usize,
    /// Whether bulk may go over connections of its own.
    pub direct: Direct,
    /// No more bytes of bulk a second.
    pub bandwidth: Option<u64>,
    /// To be logged in, and agreed.
    pub timeout: Duration,
}

/// No more streams than this.
pub const STREAMS: usize = 64;

impl Default for How {
    fn default() -> Self {
        How {
            ssh: None,
            identity: Vec::new(),
            known_hosts: None,
            remote_path: "meio".into(),
            streams: 4,
            direct: Direct::Auto,
            bandwidth: None,
            timeout: Duration::from_secs(15),
        }
    }
}

impl Destination {
    /// Reads `[user@]host[:port]`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Destination> {
        Destination::read(text).map_err(|e| Error::new(Kind::Usage, e))
    }

    fn read(text: &str) -> std::result::Result<Self, String> {
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        let number = |port: &str| match port.parse::<u16>() {
            Ok(port) if port != 0 => Ok(Some(port)),
            _ => Err(format!("`{port}` is no port")),
        };
        let (host, port) = match (rest.strip_prefix('['), rest.split_once(':')) {
            (Some(bracketed), _) => match bracketed.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, port)) if port.starts_with(':') => (host, number(&port[1..])?),
                _ => return Err("a bracket is not closed: [address]:port".into()),
            },
            (None, Some((host, port))) if !port.contains(':') => (host, number(port)?),
            _ => (rest, None),
        };
        // The system's client would take them for options.
        let fine = |word: &str| !word.is_empty() && !word.starts_with('-') && !word.contains(|c: char| c.is_whitespace() || c.is_control());
        if !fine(host) || !user.is_none_or(fine) {
            return Err("[user@]host[:port] is wanted".into());
        }
        Ok(Destination { user: user.map(Into::into), host: host.into(), port })
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// The other end, agreed with.
pub struct Peer {
    /// The control link.
    pub link: Link,
    /// Who it is.
    pub hello: Hello,
    /// Version of the protocol that both speak.
    pub protocol: u16,
    bulk: Option<bulk::Bulk>,
    role: Role,
}

/// Which end this is.
enum Role {
    Source {
        /// How to get there once more.
        way: Way,
        how: How,
        /// What keeps the control link going; after the link, so that what was sent last gets there.
        _carrier: Carrier,
    },
    Target {
        /// By which a lent link goes back.
        _lent: Option<std::os::unix::net::UnixStream>,
    },
}

/// A way to start commands there.
#[derive(Clone)]
enum Way {
    Library(Arc<login::Way>),
    Client(Arc<client::Way>),
}

/// A command that runs there: its standard input and output at the near end of a socket pair, and who feeds the far one.
struct Carrier {
    near: std::os::unix::net::UnixStream,
    far: Box<dyn Far>,
}

/// What is behind a [`Carrier`]. Dropped, it waits for a moment until what was written has gone, then ends it.
trait Far: Send {
    /// Why the command has ended, once its output has; waits a moment for the reason.
    fn reason(&self) -> Box<dyn Fn() -> Option<Error> + Send + Sync>;
    /// How it has ended, once its output has; `None` where that is not known after a moment.
    fn end(&self) -> Option<pump::End>;
}

impl Way {
    fn new(to: &Destination, how: &How, report: &mut dyn Report) -> Result<Way> {
        Ok(match &how.ssh {
            Some(words) => Way::Client(Arc::new(client::Way::new(to, words)?)),
            None => Way::Library(Arc::new(login::Way::new(to, how, report)?)),
        })
    }

    fn start(&self, command: &str, timeout: Duration) -> Result<Carrier> {
        match self {
            Way::Library(way) => way.start(command, timeout),
            Way::Client(way) => way.start(command),
        }
    }

    /// Where the target may be reached without ssh.
    fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Way::Library(way) => vec![way.address().ip()],
            Way::Client(way) => {
                login::resolve(&way.to.host, 0, Duration::from_secs(1)).unwrap_or_default().iter().map(|a| a.ip()).collect()
            }
        }
    }
}

/// The source's end: logs in, has `meio agent` started there, and agrees with it.
///
/// # Errors
/// [`Kind::LinkFailed`] when the host cannot be reached or the link fails, [`Kind::Permission`] when its key is not
/// known to be its own or it lets nobody in, [`Kind::Other`] when there is no meio, or none that can be talked to.
pub fn connect(to: &Destination, how: &How, report: &mut dyn Report) -> Result<Peer> {
    connect_to(to, how, "agent", report)
}

/// As [`connect`], with another of meio's commands at the target: one that calls [`accept`].
pub fn connect_to(to: &Destination, how: &How, command: &str, report: &mut dyn Report) -> Result<Peer> {
    if !(1..=STREAMS).contains(&how.streams) {
        return Err(Error::new(Kind::Usage, format!("1 to {STREAMS} streams are possible")));
    }
    let way = Way::new(to, how, report)?;
    let carrier = way.start(&format!("{} {command}", how.remote_path), how.timeout)?;
    let near = carrier.near.try_clone()?;
    let reason = carrier.far.reason();
    let (link, hello, protocol) = agree::with_target(near, &to.to_string(), how.timeout, reason, report)?;
    report.note(&format!("{to}: meio {}, {}, {}", hello.meio, hello.kernel, hello.host));
    let role = Role::Source { way, how: how.clone(), _carrier: carrier };
    Ok(Peer { link, hello, protocol, bulk: None, role })
}

impl Peer {
    /// Runs another of meio's commands at the target, to its end; what it writes to its standard output.
    ///
    /// # Errors
    /// When it cannot be started, does not end within `limit`, or writes more than 16 MiB.
    pub fn output(&self, command: &str, limit: Duration) -> Result<Vec<u8>> {
        let Role::Source { way, how, .. } = &self.role else { return Err(Error::other("only the source starts commands")) };
        let carrier = way.start(&format!("{} {command}", how.remote_path), how.timeout)?;
        let end = std::time::Instant::now() + limit;
        carrier.near.shutdown(std::net::Shutdown::Write)?;
        let mut port = port::Port::socket(carrier.near.try_clone()?, port::Stop::new()?, None)?;
        let (mut all, mut some) = (Vec::new(), [0; 4096]);
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            port.set_patience(Some(left));
            match port.read(&mut some).map_err(|e| Error::link(format!("`meio {command}` says nothing more: {e}")))? {
                0 => return Ok(all),
                n if all.len() + n > frame::LARGEST => return Err(Error::link(format!("`meio {command}` says too much"))),
                n => all.extend_from_slice(&some[..n]),
            }
        }
    }
}

/// The target's end, in `meio agent`: over standard input and output.
///
/// # Errors
/// When what comes is not from a meio, or from one that cannot be talked to.
pub fn accept() -> Result<Peer> {
    let (link, hello, protocol) = agree::with_source()?;
    Ok(Peer { link, hello, protocol, bulk: None, role: Role::Target { _lent: None } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let read = |text: &str| Destination::read(text).map(|d| (d.user.unwrap_or_default(), d.host, d.port.unwrap_or(0)));
        let fine = |user: &str, host: &str, port| Ok((user.to_string(), host.to_string(), port));
        assert_eq!(read("host"), fine("", "host", 0));
        assert_eq!(read("me@host:2222"), fine("me", "host", 2222));
        assert_eq!(read("me@corp@host"), fine("me@corp", "host", 0));
        assert_eq!(read("[fe80::1%eth0]:22"), fine("", "fe80::1%eth0", 22));
        assert_eq!(read("u@[::1]"), fine("u", "::1", 0));
        assert_eq!(read("::1"), fine("", "::1", 0));
        for wrong in ["", "@host", "host:", "host:0", "host:99999", "host:x", "-oProxyCommand=x", "-l@host", "a b", "[::1", "[::1]x", "u@"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        for text in ["me@host:2222", "[::1]:22", "::1", "host"] {
            assert_eq!(Destination::read(text).expect("a destination").to_string(), text);
        }
    }
}
