//! The third party: it says which generation of a service counts, and to whom that belongs. It has nothing of the service itself.
//!
//! ```text
//! ledger   what it knows, and what it answers: does nothing by itself, as the machines of [`super::state`]
//!   store    its folder: a key a service, and one file with all generations
//!   server   takes questions and answers them, many at a time
//! client   asks, for one end of a watch, which knows it as its [`Arbiter`]
//! ```
//!
//! # What is said
//!
//! One kind of question, in a datagram: *let me hold this generation*. Who has it holds on to it by asking for it again, which is a
//! lease; a primary that goes on alone and a standby that takes over both ask for the next one, which only one of them can have.
//! A question that was lost is asked again: to be granted twice is to be granted once. There are no connections, and nothing is
//! kept of who asks but a ticket.
//!
//! # Who may ask
//!
//! Who has the service's key, which both ends of the watch were given ([`store`]). Questions and answers are sealed with keys that
//! are derived from it, one for each end and direction, with numbers of 96 random bits. The head tells which key it is, and not
//! which service. What cannot be opened is not answered. Each answer has a *ticket* that the next question of that end must have: what
//! was recorded and is sent again has none, is told which it were by an answer that only the ends can read, and nothing is done.
//! An answer names the datagram that it answers.

mod client;
mod ledger;
mod server;
mod store;
#[cfg(test)]
mod tests;

pub use client::Contact;
#[cfg(test)]
pub use client::Said;
#[cfg(test)]
pub use ledger::{Answer, Entry, Ledger};
pub use ledger::{Holder, Question, Role, Verdict};
pub use server::Server;
pub use store::{Store, text};

use super::beat::{Key, cipher};
use super::state;
use super::status::Witness;
use crate::error::{Error, Result};
use crate::migrate::address::Address;
use client::Client;
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::rand::{SecureRandom, SystemRandom};
use std::time::Duration;

/// Who says which generation of a service counts: each can be had by one only, who holds on to it by a lease, and it never goes back.
/// The two ends of a watch need nothing else of it, so that whatever can compare and set, and make that durable, may take the place of
/// a [`Client`] of `meio witness`.
pub trait Arbiter: Send {
    /// Where it is.
    fn at(&self) -> String;

    /// What people are told of it.
    fn status(&self) -> Witness;

    /// What is wrong with it, in words.
    fn trouble(&self) -> Option<&'static str>;

    /// Asks for a generation; what was asked before is forgotten. What comes of it: [`Arbiter::event`].
    fn ask(&mut self, generation: u64);

    /// The same for one that is its own, with a lease that ends at once: the other end may have the next one.
    fn cede(&mut self, generation: u64);

    /// What has come of what was asked, as the machines take it; never waits. To be called often.
    fn event(&mut self) -> Option<state::Event>;

    /// What is to be said when it has fallen silent, or is of use again.
    fn news(&mut self) -> Option<String>;

    /// Asks, and waits for the answer. `taken`: addresses that go with the tree.
    ///
    /// # Errors
    /// [`crate::error::Kind::LinkFailed`] when none comes; when the way there begins at one of the addresses.
    fn wait(&mut self, generation: u64, taken: &[Address]) -> Result<state::Ruling>;
}

/// What leads to it decides which kind it is. `lease`: for how long nobody else may have the next generation.
///
/// # Errors
/// When nothing random can be had.
pub fn arbiter(contact: &Contact, watch: u128, role: Role, lease: Duration) -> Result<Box<dyn Arbiter>> {
    Ok(Box::new(Client::new(contact, watch, role, lease)?))
}

/// Where a witness listens that was told nothing else.
pub const PORT: u16 = 26346;

/// Version of what is said.
const VERSION: u8 = 1;
/// Bit of the first byte of an answer.
const ANSWER: u8 = 0x80;
/// Bytes that are sealed: those of an answer, so that nobody gets more than he has sent.
const INSIDE: usize = 64;
/// Version, who, which key, number.
const HEAD: usize = 2 + ID + NONCE_LEN;
/// Bytes of every datagram.
pub const LENGTH: usize = HEAD + INSIDE + 16;
const ID: usize = 16;

/// Names a key to who has it.
type Id = [u8; ID];
/// A number that nothing else is sealed with.
type Number = [u8; NONCE_LEN];
/// What the next question must have.
type Ticket = [u8; 16];

/// Random bytes.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::other("the kernel has no randomness to give"))?;
    Ok(bytes)
}

/// Which key it is.
fn id(key: &Key) -> Result<Id> {
    let mut id = [0; ID];
    id.copy_from_slice(&key.derive(b"meio witness", b"id")?[..ID]);
    Ok(id)
}

/// One direction between one end and the witness.
struct Way {
    key: LessSafeKey,
    /// Version, and whether it is an answer; who asks.
    first: [u8; 2],
    id: Id,
}

impl Way {
    fn new(key: &Key, role: Role, answer: bool) -> Result<Way> {
        let name: &[u8] = match (role, answer) {
            (Role::Primary, false) => b"primary asks",
            (Role::Primary, true) => b"primary is told",
            (Role::Standby, false) => b"standby asks",
            (Role::Standby, true) => b"standby is told",
        };
        let first = [VERSION | if answer { ANSWER } else { 0 }, role as u8];
        Ok(Way { key: cipher(&key.derive(b"meio witness", name)?)?, first, id: id(key)? })
    }

    /// With this number, which must be a fresh one.
    fn seal(&self, number: Number, inside: &[u8; INSIDE]) -> Result<Vec<u8>> {
        let mut datagram = Vec::with_capacity(LENGTH);
        [&self.first[..], &self.id, &number].into_iter().for_each(|part| datagram.extend_from_slice(part));
        let mut sealed = *inside;
        let aad = Aad::from(&datagram[..HEAD]);
        let tag = self.key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(number), aad, &mut sealed);
        let tag = tag.map_err(|_| Error::other("a datagram cannot be sealed"))?;
        datagram.extend_from_slice(&sealed);
        datagram.extend_from_slice(tag.as_ref());
        Ok(datagram)
    }

    /// Its number, and what is inside; `None`: it was not sealed so.
    fn open(&self, datagram: &[u8]) -> Option<(Number, [u8; INSIDE])> {
        let (head, sealed) = datagram.split_at_checked(HEAD).filter(|(_, sealed)| sealed.len() == LENGTH - HEAD)?;
        let number: Number = head[HEAD - NONCE_LEN..].try_into().ok()?;
        if head[..2] != self.first || head[2..2 + ID] != self.id {
            return None;
        }
        let mut sealed: [u8; LENGTH - HEAD] = sealed.try_into().ok()?;
        let inside = self.key.open_in_place(Nonce::assume_unique_for_key(number), Aad::from(head), &mut sealed).ok()?;
        Some((number, (&*inside).try_into().ok()?))
    }
}

/// Which key a datagram names, and who says to have sent it; `None`: it is no question.
fn head(datagram: &[u8]) -> Option<(Id, Role)> {
    if datagram.len() != LENGTH || datagram[0] != VERSION {
        return None;
    }
    Some((datagram[2..2 + ID].try_into().ok()?, Role::of(datagram[1])?))
}

/// A question as bytes: ticket, which watch, generation, lease in milliseconds, zeros.
fn write_question(ticket: &Ticket, question: &Question) -> [u8; INSIDE] {
    let mut bytes = [0; INSIDE];
    bytes[..16].copy_from_slice(ticket);
    bytes[16..32].copy_from_slice(&question.who.watch.to_le_bytes());
    bytes[32..40].copy_from_slice(&question.generation.to_le_bytes());
    bytes[40..48].copy_from_slice(&(question.lease.as_millis() as u64).to_le_bytes());
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn wide(bytes: &[u8]) -> u128 {
    u128::from(number(&bytes[8..16])) << 64 | u128::from(number(&bytes[..8]))
}

fn read_question(bytes: &[u8; INSIDE], role: Role) -> (Ticket, Question) {
    let mut ticket = Ticket::default();
    ticket.copy_from_slice(&bytes[..16]);
    let who = Holder { watch: wide(&bytes[16..32]), role };
    (ticket, Question { who, generation: number(&bytes[32..40]), lease: Duration::from_millis(number(&bytes[40..48])) })
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reply {
    /// The datagram that it answers.
    echo: Number,
    /// `None`: the ticket was not the right one, and nothing was done.
    verdict: Option<Verdict>,
    ticket: Ticket,
    /// Whose which generation is.
    holder: Option<Holder>,
    generation: u64,
    /// How long nobody else can have the next one.
    left: Duration,
}

/// An answer as bytes: which question, verdict, holder, two zeros, ticket, which watch, generation, what is left in milliseconds.
fn write_reply(reply: &Reply) -> [u8; INSIDE] {
    let mut bytes = [0; INSIDE];
    bytes[..12].copy_from_slice(&reply.echo);
    bytes[12] = reply.verdict.map_or(0, |verdict| verdict as u8);
    bytes[13] = reply.holder.map_or(0, |holder| holder.role as u8);
    bytes[16..32].copy_from_slice(&reply.ticket);
    bytes[32..48].copy_from_slice(&reply.holder.map_or(0, |holder| holder.watch).to_le_bytes());
    bytes[48..56].copy_from_slice(&reply.generation.to_le_bytes());
    bytes[56..].copy_from_slice(&(reply.left.as_micros().div_ceil(1000) as u64).to_le_bytes());
    bytes
}

fn read_reply(bytes: &[u8; INSIDE]) -> Option<Reply> {
    let (mut echo, mut ticket) = (Number::default(), Ticket::default());
    echo.copy_from_slice(&bytes[..12]);
    ticket.copy_from_slice(&bytes[16..32]);
    let verdict = match bytes[12] {
        0 => None,
        other => Some(Verdict::of(other)?),
    };
    let watch = wide(&bytes[32..48]);
    let holder = match bytes[13] {
        0 => None,
        role => Some(Holder { watch, role: Role::of(role)? }),
    };
    let (generation, left) = (number(&bytes[48..56]), Duration::from_millis(number(&bytes[56..])));
    Some(Reply { echo, verdict, ticket, holder, generation, left })
}
