//! How much is left of a machine: asked of its agent before anything is planned for it.

use super::ROOM;
use super::plan::{pack, unpack};
use crate::error::{Error, Result};
use crate::progress::Report;
use crate::sys::proc::read;
use crate::sys::room;
use crate::transport::{self, Destination, How, Link};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What is left of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes of memory that can be taken without anybody being short of it.
    pub memory: u64,
    /// How many want to run, on average over the last minute: proc_loadavg(5).
    pub load: f64,
    /// How many can at once.
    pub processors: u32,
}

impl Room {
    /// Of this machine.
    pub fn own() -> Room {
        let text = read::read_machine("loadavg").unwrap_or_default();
        let load = String::from_utf8_lossy(&text).split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default();
        let processors = crate::sys::priority::processors() as u32;
        Room { memory: room::available(), load, processors }
    }
}

/// Asks a machine; what it calls itself, and what is left of it.
///
/// # Errors
/// When nobody can log in there, or there is no meio that says so.
pub fn ask(to: &Destination, how: &How, report: &mut dyn Report) -> Result<(String, Room)> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut peer = transport::connect(to, how, report)?;
    peer.link.send(&transport::Frame { kind: ROOM, generation: 0, payload: Vec::new() })?;
    loop {
        let frame = peer.link.receive(Some(PATIENCE)).map_err(|e| match peer.link.failure() {
            Some(why) => why,
            None => {
                Error::link(format!("the meio of {to} does not say how much room there is")).help(format!("install this one there ({e})"))
            }
        })?;
        if frame.kind == ROOM {
            return Ok((peer.hello.host.clone(), unpack(&frame.payload)?));
        }
    }
}

/// Answers who asks.
pub fn answer(link: &Link) -> Result<()> {
    link.send(&transport::Frame { kind: ROOM, generation: 0, payload: pack(&Room::own())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_some() {
        let own = Room::own();
        assert!(own.memory > 0 && own.processors > 0 && own.load >= 0.0, "{own:?}");
        assert_eq!(unpack::<Room>(&pack(&own).expect("bytes")).expect("a room"), own);
    }
}
