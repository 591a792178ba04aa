//! Heartbeats: frames in datagrams that only the two ends of one watch can write and read.
//!
//! A [`Key`] is made for one pair of processes and handed over through their link, so a counter is never used twice with it; each
//! direction has its own of it. What cannot be opened, or was opened before, is dropped and counted, and decides nothing.
//! A standby learns where its primary is from what it has opened last, so addresses may change.

use super::frame;
use super::state::Frame;
use crate::error::{Context, Error, Result};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Counter, frame, tag.
pub const LENGTH: usize = 8 + frame::LENGTH + 16;

/// A secret of two ends.
#[derive(Clone)]
pub struct Key([u8; 32]);

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Primary,
    Standby,
}

/// What was dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Not sealed with the key, or changed on the way.
    pub forged: u64,
    /// Opened before, or older than what can be told.
    pub replayed: u64,
    /// Sealed with the key, and no frame: of another version.
    pub strange: u64,
}

impl Dropped {
    /// All of them.
    pub fn all(&self) -> u64 {
        self.forged + self.replayed + self.strange
    }
}

/// Which of the last counters were there.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// One more than the highest.
    next: u64,
    /// Bit n: `next - 1 - n`.
    seen: u128,
}

/// Makes datagrams of frames, and frames of datagrams.
struct Cipher {
    seal: LessSafeKey,
    open: LessSafeKey,
    /// Of the next datagram.
    counter: u64,
    window: Window,
    dropped: Dropped,
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// A frame of the other end.
    Frame(Frame),
    /// The host that has been heard says that nobody listens there any more.
    Refused,
    /// Nothing, at the moment.
    Nothing,
}

/// One end of the path.
pub struct Beats {
    end: End,
    socket: UdpSocket,
    peer: Option<SocketAddr>,
    /// Something of the other end has come.
    heard: bool,
    cipher: Cipher,
}

impl Key {
    /// A new one.
    pub fn make() -> Result<Key> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| Error::other("the kernel has no randomness to give"))?;
        Ok(Key(bytes))
    }

    /// One that was handed over.
    pub fn of(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// To be handed over, on a way that nobody else can read.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What this end seals with.
    fn of_end(&self, end: End) -> Result<LessSafeKey> {
        let name: &[u8] = match end {
            End::Primary => b"meio beat primary",
            End::Standby => b"meio beat standby",
        };
        cipher(&self.derive(b"meio watch", name)?)
    }

    /// A secret for one purpose.
    pub fn derive(&self, salt: &[u8], name: &[u8]) -> Result<[u8; 32]> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.0);
        let mut own = [0; 32];
        let filled = secret.expand(&[name], hkdf::HKDF_SHA256).and_then(|expanded| expanded.fill(&mut own));
        filled.map(|()| own).map_err(|_| Error::other("a key cannot be derived"))
    }
}

/// What seals and opens with this secret.
pub fn cipher(secret: &[u8; 32]) -> Result<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, secret).map(LessSafeKey::new).map_err(|_| Error::other("a key cannot be used"))
}

impl Window {
    /// How many counters before the highest are told apart.
    const WIDTH: u64 = 128;

    fn is_new(&self, counter: u64) -> bool {
        match self.next.checked_sub(counter) {
            None | Some(0) => true,
            Some(back) => back <= Self::WIDTH && self.seen >> (back - 1) & 1 == 0,
        }
    }

    fn note(&mut self, counter: u64) {
        if counter >= self.next {
            let on = counter - self.next + 1;
            self.seen = if on < Self::WIDTH { self.seen << on } else { 0 } | 1;
            self.next = counter + 1;
        } else {
            self.seen |= 1 << (self.next - 1 - counter);
        }
    }
}

impl Cipher {
    fn new(key: &Key, end: End) -> Result<Cipher> {
        let other = if end == End::Primary { End::Standby } else { End::Primary };
        let (seal, open) = (key.of_end(end)?, key.of_end(other)?);
        Ok(Cipher { seal, open, counter: 0, window: Window::default(), dropped: Dropped::default() })
    }

    fn nonce(counter: [u8; 8]) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&counter);
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, frame: &Frame) -> Result<Vec<u8>> {
        let counter = self.counter.to_be_bytes();
        // Longer than any watch, but never twice.
        self.counter = self.counter.checked_add(1).ok_or_else(|| Error::other("the key is used up"))?;
        let mut sealed = frame::write(frame).to_vec();
        let done = self.seal.seal_in_place_append_tag(Self::nonce(counter), Aad::from(counter), &mut sealed);
        done.map_err(|_| Error::other("a heartbeat cannot be sealed"))?;
        Ok([&counter[..], &sealed].concat())
    }

    fn open(&mut self, datagram: &mut [u8]) -> Option<Frame> {
        let Some((counter, sealed)) = datagram.split_first_chunk_mut::<8>().filter(|(_, sealed)| sealed.len() == LENGTH - 8) else {
            self.dropped.forged += 1;
            return None;
        };
        let number = u64::from_be_bytes(*counter);
        let Ok(frame) = self.open.open_in_place(Self::nonce(*counter), Aad::from(*counter), sealed) else {
            self.dropped.forged += 1;
            return None;
        };
        if number == u64::MAX || !self.window.is_new(number) {
            self.dropped.replayed += 1;
            return None;
        }
        self.window.note(number);
        let frame = frame::read(frame);
        self.dropped.strange += u64::from(frame.is_none());
        frame
    }
}

impl Beats {
    /// The standby's end, at a port of its own choice.
    pub fn listen(key: &Key, at: SocketAddr) -> Result<Beats> {
        Beats::bind(key, End::Standby, at)
    }

    /// The primary's end.
    pub fn to(key: &Key, standby: SocketAddr) -> Result<Beats> {
        let any: SocketAddr = if standby.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
        let beats = Beats::bind(key, End::Primary, any)?;
        // So that the kernel tells when nobody is there.
        beats.socket.connect(standby).context(|| format!("heartbeats to {standby}"))?;
        Ok(Beats { peer: Some(standby), ..beats })
    }

    fn bind(key: &Key, end: End, at: SocketAddr) -> Result<Beats> {
        let socket = UdpSocket::bind(at).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        Ok(Beats { end, socket: socket.context(|| "a socket for heartbeats")?, peer: None, heard: false, cipher: Cipher::new(key, end)? })
    }

    /// Where it listens.
    pub fn port(&self) -> Result<u16> {
        self.socket.local_addr().map(|at| at.port()).context(|| "a socket for heartbeats")
    }

    /// Its own address on the way to the other end, where that is known.
    pub fn local(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// What was dropped.
    pub fn dropped(&self) -> Dropped {
        self.cipher.dropped
    }

    /// Says something. That it cannot be sent is as if it were lost; `false` says so.
    pub fn send(&mut self, frame: &Frame) -> Result<bool> {
        let Some(peer) = self.peer else { return Ok(false) };
        let sealed = self.cipher.seal(frame)?;
        let sent = match self.end {
            End::Primary => self.socket.send(&sealed),
            End::Standby => self.socket.send_to(&sealed, peer),
        };
        Ok(sent.is_ok())
    }

    /// What has come; never waits. Whoever floods this end is heard out for a bounded time only.
    pub fn receive(&mut self) -> Came {
        const MOST: usize = 64;
        let mut datagram = [0; LENGTH + 1];
        for _ in 0..MOST {
            let (length, from) = match self.socket.recv_from(&mut datagram) {
                Ok(came) => came,
                // A firewall says so, too, or a host on the way.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && self.heard => return Came::Refused,
                Err(_) => return Came::Nothing,
            };
            if let Some(frame) = self.cipher.open(&mut datagram[..length]) {
                (self.peer, self.heard) = (Some(from), true);
                return Came::Frame(frame);
            }
        }
        Came::Nothing
    }
}

impl std::os::fd::AsFd for Beats {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
