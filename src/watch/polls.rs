//! What several standbys say to each other ([`Poll`]), in datagrams that only they can write and read.
//!
//! The key is made for one watch and handed to each of them through its link with the primary. Each seals with one of its own that
//! is derived from that, with numbers of 96 random bits; what was recorded and is sent again has a number of a word that was
//! heard already, and says nothing new. Where somebody is, is learnt from what was opened of him last, so he may come back at another
//! port.

use super::beat::{Key, cipher};
use super::state::{Mark, Poll, Vote};
use crate::error::{Context, Error, Result};
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::rand::{SecureRandom, SystemRandom};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

/// Version, place of who speaks, number.
const HEAD: usize = 2 + NONCE_LEN;
const VERSION: u8 = 1;
const NUMBERS: usize = 10;
/// Head, numbers, tag.
const LENGTH: usize = HEAD + NUMBERS * 8 + 16;

/// A socket for it.
pub struct Ear(UdpSocket);

impl Ear {
    /// At a port of its own choice.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> Result<Ear> {
        let socket = UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).and_then(|s| s.set_nonblocking(true).map(|()| s));
        socket.map(Ear).context(|| "a socket for other standbys")
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn port(&self) -> Result<u16> {
        self.0.local_addr().map(|at| at.port()).context(|| "a socket for other standbys")
    }
}

/// The ways to the others.
pub struct Polls {
    socket: UdpSocket,
    place: usize,
    keys: Vec<LessSafeKey>,
    at: Vec<SocketAddr>,
}

fn write(poll: &Poll) -> [u8; NUMBERS * 8] {
    let vote = poll.vote.map_or([0; 3], |vote| [vote.to as u64 + 1, vote.instance, vote.attempt]);
    let own = [poll.generation, poll.instance, poll.sequence, poll.mark.series, poll.mark.number, poll.attempt, u64::from(poll.runs)];
    let mut bytes = [0; NUMBERS * 8];
    for (place, number) in bytes.chunks_exact_mut(8).zip(own.into_iter().chain(vote)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn read(bytes: &[u8]) -> Option<Poll> {
    let (numbers, []) = bytes.as_chunks::<8>() else { return None };
    let numbers: [u64; NUMBERS] = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect::<Vec<_>>().try_into().ok()?;
    let [generation, instance, sequence, series, number, attempt, runs, to, voted, of] = numbers;
    let vote = to.checked_sub(1).map(|to| Vote { to: to as usize, instance: voted, attempt: of });
    Some(Poll { generation, instance, sequence, mark: Mark { series, number }, attempt, vote, runs: runs == 1 })
}

impl Polls {
    /// Of the standby at that place; `at`: where each of them was last known to listen.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn new(ear: Ear, key: &Key, place: usize, at: &[SocketAddr]) -> Result<Polls> {
        let own = |place: usize| cipher(&key.derive(b"meio polls", format!("standby {place}").as_bytes())?);
        Ok(Polls { socket: ear.0, place, keys: (0..at.len()).map(own).collect::<Result<_>>()?, at: at.iter().map(mapped).collect() })
    }

    /// Says something to one of them. That it cannot be sent is as if it were lost.
    ///
    /// # Errors
    /// When it cannot be sealed.
    pub fn send(&mut self, to: usize, poll: &Poll) -> Result<()> {
        let (Some(at), Some(key)) = (self.at.get(to), self.keys.get(self.place)) else { return Ok(()) };
        let mut number = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut number).map_err(|_| Error::other("the kernel has no randomness to give"))?;
        let mut datagram = [&[VERSION, self.place as u8][..], &number].concat();
        let mut sealed = write(poll).to_vec();
        let done = key.seal_in_place_append_tag(Nonce::assume_unique_for_key(number), Aad::from(&datagram[..2]), &mut sealed);
        done.map_err(|_| Error::other("a datagram cannot be sealed"))?;
        datagram.extend_from_slice(&sealed);
        let _ = self.socket.send_to(&datagram, at);
        Ok(())
    }

    /// What has come, and of whom.
    pub fn receive(&mut self) -> Option<(usize, Poll)> {
        const AT_ONCE: usize = 64;
        let mut datagram = [0; LENGTH + 1];
        for _ in 0..AT_ONCE {
            let (length, from) = self.socket.recv_from(&mut datagram).ok()?;
            if let Some((of, poll)) = self.open(&mut datagram[..length]) {
                self.at[of] = from;
                return Some((of, poll));
            }
        }
        None
    }

    fn open(&self, datagram: &mut [u8]) -> Option<(usize, Poll)> {
        let (head, sealed) = datagram.split_at_mut_checked(HEAD).filter(|(_, sealed)| sealed.len() == LENGTH - HEAD)?;
        let (of, number) = (usize::from(head[1]), head[2..].try_into().ok()?);
        let key = self.keys.get(of).filter(|_| head[0] == VERSION && of != self.place)?;
        let inside = key.open_in_place(Nonce::assume_unique_for_key(number), Aad::from(&head[..2]), sealed).ok()?;
        read(inside).map(|poll| (of, poll))
    }
}

/// As a socket takes it that hears both kinds of addresses.
fn mapped(at: &SocketAddr) -> SocketAddr {
    match at {
        SocketAddr::V4(at) => SocketAddr::from((at.ip().to_ipv6_mapped(), at.port())),
        SocketAddr::V6(_) => *at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn three() -> Vec<Polls> {
        let key = Key::make().expect("a key");
        let ears: Vec<Ear> = (0..3).map(|_| Ear::open().expect("a socket")).collect();
        let at: Vec<SocketAddr> = ears.iter().map(|ear| (Ipv4Addr::LOCALHOST, ear.port().expect("a port")).into()).collect();
        ears.into_iter().enumerate().map(|(place, ear)| Polls::new(ear, &key, place, &at).expect("polls")).collect()
    }

    fn poll(vote: Option<Vote>) -> Poll {
        Poll { generation: 7, instance: 2, sequence: 9, mark: Mark { series: 3, number: 4 }, attempt: 5, vote, runs: vote.is_none() }
    }

    fn came(polls: &mut Polls) -> Option<(usize, Poll)> {
        (0..200).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            polls.receive()
        })
    }

    #[test]
    fn what_is_said_is_heard_by_whom_it_is_for() {
        let mut all = three();
        for vote in [None, Some(Vote { to: 0, instance: 1, attempt: 3 })] {
            all[1].send(2, &poll(vote)).expect("sent");
            assert_eq!(came(&mut all[2]), Some((1, poll(vote))));
            assert_eq!(all[0].receive(), None);
        }
    }

    #[test]
    fn what_was_sealed_otherwise_is_nothing() {
        let (mut all, mut others) = (three(), three());
        others[1].at = all[1].at.clone();
        others[1].send(2, &poll(None)).expect("sent");
        // Under another's name, and of no length at all.
        others[0].socket.send_to(&[1, 0], all[2].at[2]).expect("sent");
        all[1].send(2, &poll(None)).expect("sent");
        assert_eq!(came(&mut all[2]), Some((1, poll(None))));
        assert_eq!(all[2].receive(), None);
    }
}
