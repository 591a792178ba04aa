//! What the primary has to do with its witness, where it has one.

use super::{End, Options, Order};
use crate::error::{Error, Result};
use crate::progress::Report;
use crate::transport::{self, Destination};
use crate::watch::start::Start;
use crate::watch::state::Event;
use crate::watch::status::Board;
use crate::watch::witness::{self, Arbiter, Contact, Role};
use std::time::{Duration, Instant};

/// The witness that a user has named.
#[derive(Clone, PartialEq, Eq)]
pub struct Witness {
    /// Where it is: its own port, and the name to log in with for the key.
    pub at: Destination,
    /// The key, where the user has it.
    pub key: Option<String>,
}

impl std::fmt::Debug for Witness {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Witness({})", self.at)
    }
}

/// What leads to it: with the key that the user has given, or that it gives to who can log in there. `known`: what led to it before.
///
/// # Errors
/// When nobody can log in, or that is no key.
pub fn contact(options: &Options, known: Option<&Contact>, report: &mut dyn Report) -> Result<Option<Contact>> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let Some(Witness { at, key }) = &options.witness else { return Ok(None) };
    if let (Some(known), None) = (known, key) {
        return Ok(Some(known.clone()));
    }
    if let Some(key) = key {
        return Contact::new(at, key).map(Some);
    }
    let help = |e: Error| match e.help {
        Some(_) => e,
        None => e.help("--witness-key FILE takes the key that meio witness --add prints on the witness"),
    };
    let login = Destination { port: None, ..at.clone() };
    let peer = transport::connect(&login, &options.how, report).map_err(help)?;
    let said = peer.output(&format!("witness --add {}", options.name), PATIENCE).map_err(help)?;
    Contact::new(at, &String::from_utf8_lossy(&said)).map(Some).map_err(help)
}

/// Asks for the last generation of a watch that begins: its own is to be higher.
///
/// # Errors
/// When the witness does not answer: a watch begins with all that it is to have.
pub fn look(options: &Options, start: &mut Start, board: &Board) -> Result<Option<Box<dyn Arbiter>>> {
    let Some(contact) = &start.ask.witness else { return Ok(None) };
    let mut client = witness::arbiter(contact, start.ask.watch, Role::Primary, options.limits.lease())?;
    board.note(|status| status.witness = Some(client.status()));
    if start.resumed.is_none() {
        let lease = options.limits.lease();
        let until = Instant::now() + 2 * lease;
        let mut last = client.wait(0, &options.addresses)?;
        // Who has taken over here, or watched it with others, has just ended, and its lease goes on for a while.
        while !last.left.is_zero() && last.left <= lease && Instant::now() < until {
            std::thread::sleep(last.left + Duration::from_millis(1));
            last = client.wait(0, &options.addresses)?;
        }
        start.first.least = start.first.least.max(last.generation);
    }
    Ok(Some(client))
}

/// It begins with this generation.
///
/// # Errors
/// When another watch of that name lives.
pub fn begin(options: &Options, client: Option<&mut Box<dyn Arbiter>>, generation: u64) -> Result<()> {
    let Some(client) = client else { return Ok(()) };
    let ruling = client.wait(generation, &options.addresses)?;
    if ruling.granted {
        return Ok(());
    }
    match client.trouble() {
        None if ruling.generation < generation && ruling.left.is_zero() => {
            Err(Error::other(format!("the witness {} cannot make anything durable", client.at())).help("look at its disk"))
        }
        _ => {
            let what = format!("another watch that is called {} lives, as the witness {} knows", options.name, client.at());
            Err(Error::other(what).help("end that one, or give this one another name: --name"))
        }
    }
}

impl End {
    /// What the witness has said.
    pub(super) fn ruling(&mut self) -> Option<Event> {
        let witness = self.witness.as_mut()?;
        let event = witness.event();
        if let Some(news) = witness.news() {
            let status = witness.status();
            self.board.note(|all| all.witness = Some(status));
            let _ = self.orders.send(Order::Tell(news));
        }
        event
    }
}
