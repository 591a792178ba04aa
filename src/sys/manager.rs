//! The service manager that has started meio, as sd_notify(3) has it: a datagram to the socket that it names in the environment.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Names the socket.
pub const SOCKET: &str = "NOTIFY_SOCKET";
/// Within how many microseconds it wants to hear that meio lives,
const EVERY: &str = "WATCHDOG_USEC";
/// and the process that is meant.
const WHO: &str = "WATCHDOG_PID";

/// Whom to tell how things stand; nobody where there is none.
#[derive(Debug, Default)]
pub struct Manager {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// Time between two signs of life.
    every: Option<Duration>,
    /// When the last one was given.
    last: Mutex<Option<Instant>>,
}

fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

impl Manager {
    /// The one of the environment.
    pub fn of_environment() -> Manager {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let meant = number(WHO).is_none_or(|pid| pid == u64::from(std::process::id()));
        let every = number(EVERY).filter(|usec| meant && *usec > 0).map(Duration::from_micros);
        Manager::at(std::env::var_os(SOCKET).as_deref(), every)
    }

    fn at(name: Option<&OsStr>, limit: Option<Duration>) -> Manager {
        // One that hangs for a moment is not to be taken for dead.
        const OFTEN: u32 = 3;
        let socket = UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).ok();
        let to = name.and_then(address).and_then(|address| Some((socket?, address)));
        Manager { every: limit.filter(|_| to.is_some()).map(|limit| limit / OFTEN), to, last: Mutex::default() }
    }

    fn tell(&self, text: &str) {
        if let Some((socket, address)) = &self.to {
            // Who does not listen need not know.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }

    /// How often it wants to hear that meio lives.
    pub fn every(&self) -> Option<Duration> {
        self.every
    }

    /// Everything that was to be begun is.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// How things stand, in a line.
    pub fn status(&self, text: &str) {
        self.tell(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// To be called over and over: a sign of life whenever one is due.
    pub fn lives(&self) {
        let Some(every) = self.every else { return };
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= every) {
            *last = Some(Instant::now());
            drop(last);
            self.tell("WATCHDOG=1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_hears_how_things_stand() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let named = UnixDatagram::bind(&path).expect("a socket");
        let name = format!("meio-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let unnamed = UnixDatagram::bind_addr(&address).expect("a socket");
        for (socket, name) in [(named, path.into_os_string()), (unnamed, format!("@{name}").into())] {
            let manager = Manager::at(Some(&name), Some(Duration::from_millis(90)));
            manager.ready();
            manager.status("two\nlines");
            (0..5).for_each(|_| manager.lives());
            std::thread::sleep(Duration::from_millis(40));
            manager.lives();
            manager.stopping();
            let said: Vec<String> = (0..5)
                .map(|_| {
                    let mut bytes = [0; 100];
                    let length = socket.recv(&mut bytes).expect("it was told");
                    String::from_utf8_lossy(&bytes[..length]).into_owned()
                })
                .collect();
            assert_eq!(said, ["READY=1", "STATUS=two lines", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]);
        }
    }

    #[test]
    fn without_one_nobody_is_told() {
        for name in [None, Some(OsStr::new("")), Some(OsStr::new("no/path")), Some(OsStr::new("/no/such/socket"))] {
            let manager = Manager::at(name, Some(Duration::from_secs(1)));
            manager.ready();
            manager.lives();
        }
    }
}
