//! The first words: each end says that it is a meio, then who it is and which versions of the protocol it speaks; the
//! highest that both speak is spoken.

use super::frame::Frame;
use super::link::Link;
use super::port::{Port, Stop};
use super::pump::plain;
use crate::error::{Context, Error, Kind, Result};
use crate::progress::Report;
use serde::{Deserialize, Serialize};
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use std::time::Duration;

/// What both ends say before anything else, in every version.
const MAGIC: &[u8; 12] = b"\0meio link\n\0";
/// What a login shell may say before `meio agent` begins.
const CHATTER: usize = 64 << 10;
/// Versions of the protocol that this meio speaks.
const SPOKEN: (u16, u16) = (5, 5);
/// Kind of the frame with a [`Hello`].
const HELLO: u16 = 2;

/// Who an end is. Fields may be added: unknown ones are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of its meio.
    pub meio: String,
    /// Lowest version of the protocol that it speaks.
    pub lowest: u16,
    /// Highest version of the protocol that it speaks.
    pub highest: u16,
    /// Kernel and its release: `Linux 6.1.0`.
    pub kernel: String,
    /// `x86_64`
    pub machine: String,
    /// Its node name, uname(2).
    pub host: String,
    /// User that it runs as.
    pub uid: u32,
}

impl Hello {
    /// This very meio.
    pub fn own() -> Result<Hello> {
        let name = nix::sys::utsname::uname().context(|| "cannot ask for the kernel's name")?;
        let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
        Ok(Hello {
            meio: env!("CARGO_PKG_VERSION").into(),
            lowest: SPOKEN.0,
            highest: SPOKEN.1,
            kernel: format!("{} {}", text(name.sysname()), text(name.release())),
            machine: text(name.machine()),
            host: text(name.nodename()),
            uid: nix::unistd::geteuid().as_raw(),
        })
    }

    /// The version that both speak.
    fn common(&self, other: &Hello, name: &str) -> Result<u16> {
        let common = self.highest.min(other.highest);
        if common >= self.lowest.max(other.lowest) {
            return Ok(common);
        }
        let (here, there) = ((self.lowest, self.highest), (other.lowest, other.highest));
        let message = format!(
            "meio {} at {name} speaks versions {}-{} of the link, meio {} here {}-{}",
            other.meio, there.0, there.1, self.meio, here.0, here.1
        );
        let old = if here.1 < there.0 { "here" } else { "there" };
        Err(Error::other(message).help(format!("install a newer meio {old}, or name another with --remote-path")))
    }
}

/// The source's side, over `near`.
pub fn with_target(
    near: UnixStream,
    name: &str,
    limit: Duration,
    reason: Box<dyn Fn() -> Option<Error> + Send + Sync>,
    report: &mut dyn Report,
) -> Result<(Link, Hello, u16)> {
    let near = OwnedFd::from(near);
    let mut port = Port::socket(near.try_clone()?, Stop::new()?, Some(limit))?;
    let begun = port.write_all(MAGIC).and_then(|()| find_magic(&mut port));
    let chatter = begun.map_err(|e| match e.kind() {
        std::io::ErrorKind::TimedOut => Error::link(format!("{name} does not answer as a meio within {} s", limit.as_secs_f32())),
        // Whatever was started there has ended: it knows why.
        _ => reason().unwrap_or_else(|| nothing(name, &e)),
    })?;
    if !chatter.is_empty() {
        report.note(&format!("the shell at {name} said first: {}", plain(chatter.as_bytes())));
    }
    let mut link = Link::new(near.try_clone()?, near, name, reason)?;
    let (hello, version) = exchange(&mut link, &Hello::own()?, name, limit)?;
    Ok((link, hello, version))
}

fn nothing(name: &str, e: &std::io::Error) -> Error {
    Error::other(format!("what was started at {name} is no meio: {e}"))
        .help("--remote-path says where meio is there; the shell there must print nothing before it")
}

/// Passes over what comes before the magic bytes, and gives it back.
fn find_magic(port: &mut Port) -> std::io::Result<String> {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(MAGIC) {
        if seen.len() == CHATTER {
            return Err(std::io::Error::other("it says something else"));
        }
        if port.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        seen.push(byte[0]);
    }
    seen.truncate(seen.len() - MAGIC.len());
    Ok(String::from_utf8_lossy(&seen).into_owned())
}

/// The target's side, over standard input and output.
pub fn with_source() -> Result<(Link, Hello, u16)> {
    if std::io::stdin().is_terminal() {
        return Err(Error::new(Kind::Usage, "meio agent is started by a meio on another host, over ssh"));
    }
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().context(|| "cannot duplicate a descriptor");
    let (input, output) = (own(std::io::stdin().as_fd())?, own(std::io::stdout().as_fd())?);
    // From now on nobody else speaks there: what is printed goes to standard error, which the source shows, and whoever
    // is born here does not keep the session open.
    let nothing = std::fs::File::open("/dev/null").context(|| "cannot open /dev/null")?;
    nix::unistd::dup2_stdin(&nothing).context(|| "cannot take the place of standard input")?;
    nix::unistd::dup2_stdout(std::io::stderr()).context(|| "cannot take the place of standard output")?;
    over(input, output)
}

/// The same over these.
pub fn over(input: OwnedFd, output: OwnedFd) -> Result<(Link, Hello, u16)> {
    let name = "the source";
    let limit = Duration::from_secs(30);
    let mut port = Port::new(input.try_clone()?, output.try_clone()?, Stop::new()?, Some(limit));
    let mut magic = [0; MAGIC.len()];
    let begun = port.write_all(MAGIC).and_then(|()| port.read_exact(&mut magic));
    begun.map_err(|e| Error::link(format!("nobody speaks at the other end: {e}")))?;
    if magic != *MAGIC {
        return Err(Error::link("what speaks at the other end is no meio"));
    }
    let mut link = Link::new(input, output, name, || None)?;
    let (hello, version) = exchange(&mut link, &Hello::own()?, name, limit)?;
    Ok((link, hello, version))
}

fn exchange(link: &mut Link, own: &Hello, name: &str, limit: Duration) -> Result<(Hello, u16)> {
    let mut payload = Vec::new();
    ciborium::into_writer(own, &mut payload).map_err(|e| Error::other(format!("cannot write the greeting: {e}")))?;
    link.send_own(&Frame { payload, ..Frame::bare(HELLO) })?;
    let frame = link.receive_own(HELLO, limit)?;
    let hello: Hello =
        ciborium::from_reader(&frame.payload[..]).map_err(|_| Error::link(format!("the greeting of {name} makes no sense")))?;
    // Its words are shown to people.
    let hello = Hello {
        meio: plain(hello.meio.as_bytes()),
        kernel: plain(hello.kernel.as_bytes()),
        machine: plain(hello.machine.as_bytes()),
        host: plain(hello.host.as_bytes()),
        ..hello
    };
    let version = own.common(&hello, name)?;
    Ok((hello, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn hello(lowest: u16, highest: u16) -> Hello {
        Hello { lowest, highest, ..Hello::own().expect("a name") }
    }

    #[test]
    fn the_highest_common_version_is_spoken() {
        assert_eq!(hello(1, 3).common(&hello(2, 5), "host").expect("3"), 3);
        assert_eq!(hello(1, 1).common(&hello(1, 9), "host").expect("1"), 1);
        let e = hello(1, 1).common(&hello(2, 3), "host").expect_err("none");
        assert!(e.message.contains("speaks versions 2-3") && e.help.is_some_and(|h| h.contains("here")));
        let e = hello(4, 5).common(&hello(1, 3), "host").expect_err("none");
        assert!(e.help.is_some_and(|h| h.contains("there")));
    }

    fn source(near: UnixStream, limit: Duration) -> Result<(Link, Hello, u16)> {
        with_target(near, "there", limit, Box::new(|| None), &mut Silent)
    }

    #[test]
    fn both_ends_agree_whatever_the_shell_says_first() {
        let (near, far) = UnixStream::pair().expect("a pair");
        let target = std::thread::spawn(move || {
            (&far).write_all(b"\0meio\nWelcome to this machine\n").expect("written");
            over(far.try_clone().expect("a descriptor").into(), far.into())
        });
        let (mut here, hello, version) = source(near, Duration::from_secs(30)).expect("agreement");
        let (there, _, same) = target.join().expect("no panic").expect("agreement");
        assert_eq!((hello, version), (Hello::own().expect("a name"), same));
        there.send(&Frame::bare(16)).expect("sent");
        assert_eq!(here.receive(None).expect("a frame").kind, 16);
    }

    #[test]
    fn what_is_no_meio_is_found_out() {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        let talk = std::thread::spawn(move || while far.write_all(&[b'x'; 1000]).is_ok() {});
        assert_eq!(source(near, Duration::from_secs(30)).err().expect("no meio").kind, Kind::Other);
        talk.join().expect("no panic");
        let (near, _far) = UnixStream::pair().expect("a pair");
        assert_eq!(source(near, Duration::from_millis(50)).err().expect("silence").kind, Kind::LinkFailed);
        let (near, far) = UnixStream::pair().expect("a pair");
        (&near).write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
        assert!(over(far.try_clone().expect("a descriptor").into(), far.into()).is_err());
    }
}
