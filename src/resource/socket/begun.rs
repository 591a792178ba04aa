//! Half-open connections, by the packets that they began with.
//!
//! To look into one it has to be taken out of the kernel and put back ([`super::exchange`]), and since Linux 6.15 what is put back
//! believes nothing that its peer has said to the one before: the peer is let in when the SYN is answered again, a second later.
//! Where a tree is stopped again and again that would go on for as long as the peer needs. So whoever looks again and again hears the
//! packets instead: the SYN of the peer and what answers it say all that the two have agreed on, and the connection is left alone.

use super::waiting::{Stage, Waiting};
use crate::sys::ear::{Ear, Heard};
use crate::sys::wire::{ACK, SYN, Segment, plain};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Connections of which something is known, at most: a flood of SYN is not remembered.
const MOST: usize = 4096;
/// ECE and CWR: the peer heeds congestion marks; and ECE, which says so of this end.
const MARKS: [u8; 2] = [0xc0, 0x40];

/// Both ends of a connection, the own one first, without what is not on the wire.
type Ends = [(IpAddr, u16); 2];

fn ends(local: SocketAddr, peer: SocketAddr) -> Ends {
    [local, peer].map(|end| (plain(end).ip(), end.port()))
}

/// What has been heard.
#[derive(Debug, Default)]
pub struct Begun {
    /// By network namespace, as far as one can be heard.
    ears: HashMap<u64, Option<Ear>>,
    known: HashMap<Ends, One>,
    /// How often this was asked.
    looks: u64,
    /// Answers are told by who holds them back.
    told: bool,
}

/// What is known of one.
#[derive(Debug)]
struct One {
    syn: Segment,
    waiting: Option<Waiting>,
    /// When the SYN was heard first, in looks.
    since: u64,
}

impl Begun {
    /// These are held back, and not to be heard on the wire yet.
    pub fn told(&mut self, answers: Vec<Heard>) {
        self.told = true;
        // They may answer what is in an ear yet.
        self.hear();
        answers.into_iter().for_each(|answer| self.heard(answer));
    }

    /// Hears a network namespace from now on, if it does not yet. `ear` makes one there.
    pub fn begin(&mut self, network: u64, ear: impl FnOnce(bool) -> Option<Ear>) {
        let outgoing = !self.told;
        self.ears.entry(network).or_insert_with(|| ear(outgoing));
    }

    /// Takes what was heard. The tree stands still, and nothing comes in to it.
    pub fn look(&mut self) {
        self.looks += 1;
        self.hear();
    }

    fn hear(&mut self) {
        let (mut heard, mut all) = (Vec::new(), true);
        for ear in self.ears.values().flatten() {
            // What comes in may say that it answers for this end: anybody can send that.
            let ours = |one: &Heard, outgoing: bool| outgoing || one.segment.flags & ACK == 0;
            all &= ear.take(|one, outgoing| heard.extend(Some(one).filter(|one| ours(one, outgoing)))) == Ok(true);
        }
        if !all {
            // Of what was not heard nothing may be believed that was heard before.
            self.known.clear();
            return;
        }
        heard.into_iter().for_each(|one| self.heard(one));
    }

    fn heard(&mut self, Heard { from, to, segment }: Heard) {
        if segment.flags & ACK == 0 {
            let ends = ends(to, from);
            match self.known.get(&ends) {
                // Nobody has answered in time, and it says the same again.
                Some(one) if one.syn.seq == segment.seq => {}
                None if self.known.len() >= MOST => {}
                _ => drop(self.known.insert(ends, One { syn: segment, waiting: None, since: self.looks })),
            }
        } else if let Some(one) = self.known.get_mut(&ends(from, to))
            && one.waiting.is_none()
        {
            one.waiting = agreed((from, to), &one.syn, &segment);
        }
    }

    /// What was agreed on between these ends, as far as it is known.
    pub fn of(&self, (local, peer): (SocketAddr, SocketAddr)) -> Option<&Waiting> {
        self.known.get(&ends(local, peer))?.waiting.as_ref()
    }

    /// That was found out otherwise.
    pub fn learn(&mut self, waiting: &Waiting) {
        let (local, peer) = waiting.ends();
        let one = One { syn: waiting.syn(), waiting: Some(waiting.clone()), since: self.looks };
        if self.known.len() < MOST {
            self.known.insert(ends(local, peer), one);
        }
    }

    /// Forgets all but these, and what may wait to come in.
    pub fn keep(&mut self, half_open: &[(SocketAddr, SocketAddr)]) {
        let there: std::collections::HashSet<Ends> = half_open.iter().map(|(local, peer)| ends(*local, *peer)).collect();
        self.known.retain(|ends, one| there.contains(ends) || one.waiting.is_none() && one.since + 2 > self.looks);
    }
}

/// What a SYN and its answer agree on. `None` where the one does not answer the other, or there was more in the SYN than that (TCP
/// Fast Open).
fn agreed((local, peer): (SocketAddr, SocketAddr), syn: &Segment, answer: &Segment) -> Option<Waiting> {
    if answer.flags & SYN == 0 || answer.ack != syn.seq.wrapping_add(1) {
        return None;
    }
    // RFC 9293: 536 where it does not say, 1220 with IPv6.
    let usual = if plain(local).is_ipv4() { 536 } else { 1220 };
    let largest_segment = syn.option(2).and_then(|v| v.try_into().ok()).map_or(usual, u16::from_be_bytes);
    let both = |kind: u8| syn.option(kind).zip(answer.option(kind));
    let scales = both(3).and_then(|(theirs, own)| Some((theirs.first()?.min(&14), own.first()?)));
    let timestamps = both(8).is_some();
    Some(Waiting {
        local: local.into(),
        peer: peer.into(),
        own_first: answer.seq,
        peer_first: syn.seq,
        largest_segment,
        scales: scales.map_or((0, 0), |(theirs, own)| (*theirs, *own)),
        sack: both(4).is_some(),
        timestamps,
        peer_clock: syn.timestamps().filter(|_| timestamps).map_or(0, |(clock, _)| clock),
        marks: syn.flags & MARKS[0] == MARKS[0] && answer.flags & MARKS[0] == MARKS[1],
        window: syn.window.into(),
        data: Vec::new(),
        stage: Stage::HalfOpen,
    })
}

#[cfg(test)]
mod tests {
    use super::super::exchange::{Seat, exchange};
    use super::super::waiting::tests::alone;
    use super::*;
    use crate::sys::sock_diag::inet as diag;
    use crate::sys::tcp::SYN_RECV;
    use crate::sys::wire::{PASS, Wire};
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    /// What a peer offers in its SYN.
    fn offers() -> Vec<(u8, Vec<u8>)> {
        let stamp = [8, 10, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0];
        vec![
            (SYN, vec![]),
            (SYN, vec![2, 4, 5, 0xb4]),
            (SYN, [&[2, 4, 4, 0xb4, 4, 2][..], &stamp, &[1, 3, 3, 7]].concat()),
            (SYN | MARKS[0], [&[2, 4, 3, 0xe8][..], &stamp].concat()),
            (SYN, vec![2, 4, 5, 0xb4, 1, 3, 3, 0, 4, 2]),
            (SYN, vec![3, 3, 14, 1]),
        ]
    }

    /// What the packets say is what the kernel says when one is taken out.
    #[test]
    fn packets_say_what_the_kernel_says() {
        alone(|| {
            let _ = std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1");
            for (mine, theirs, own) in [("198.51.100.1:0", "198.51.100.9", "198.51.100.1"), ("[::]:0", "2001:db8::9", "2001:db8::1")] {
                let listener = TcpListener::bind(mine).unwrap();
                let local = SocketAddr::new(own.parse().unwrap(), listener.local_addr().unwrap().port());
                let mut begun = Begun::default();
                begun.begin(0, |outgoing| Some(Ear::of_beginnings(outgoing).unwrap()));
                let wire = Wire::new(PASS).unwrap();
                for (n, (flags, options)) in offers().into_iter().enumerate() {
                    let peer = SocketAddr::new(theirs.parse().unwrap(), 7000 + n as u16);
                    let syn = Segment { seq: 0xffff_ff00 + n as u32, flags, window: 4000, options, ..Segment::default() };
                    // Once more, as when nobody had answered.
                    wire.tcp(peer, local, &syn).unwrap();
                    wire.tcp(peer, local, &syn).unwrap();
                }
                let all = || {
                    // Those of a socket that has gone stay for a while.
                    let all = diag::tcp(1 << SYN_RECV).unwrap().into_iter().map(|e| (e.local, e.peer));
                    all.filter(|ends| ends.0 == local).collect::<Vec<_>>()
                };
                assert_eq!(all().len(), offers().len());
                begun.look();
                begun.keep(&all());
                let seats = [Seat::of(listener.as_fd().try_clone_to_owned().unwrap()).unwrap()];
                // Those that are known are left alone.
                assert_eq!(exchange(&seats, &all()).unwrap()[0].waiting, []);
                for taken in exchange(&seats, &[]).unwrap().remove(0).waiting {
                    let known = begun.of(taken.ends()).unwrap();
                    assert_eq!((known.window, known.is_sound()), (4000, true));
                    assert_eq!(*known, Waiting { window: 4000, local: known.local, peer: known.peer, ..taken });
                }
                assert_eq!(begun.known.len(), offers().len());
                begun.look();
                begun.keep(&[]);
                assert!(begun.known.is_empty());
            }
        });
    }

    #[test]
    fn what_is_told_belongs_to_what_was_heard() {
        let (local, peer) = ("192.0.2.1:80".parse().unwrap(), "192.0.2.9:4000".parse().unwrap());
        let syn = |seq| Heard { from: peer, to: local, segment: Segment { seq, flags: SYN, window: 9, ..Segment::default() } };
        let answer = |ack| Heard { from: local, to: peer, segment: Segment { seq: 77, ack, flags: SYN | ACK, ..Segment::default() } };
        let mut begun = Begun::default();
        begun.told(vec![answer(6)]);
        assert!(begun.told && begun.of((local, peer)).is_none());
        begun.heard(syn(5));
        begun.told(vec![answer(5)]);
        assert!(begun.of((local, peer)).is_none());
        begun.told(vec![answer(6)]);
        let numbers = |begun: &Begun| begun.of((local, peer)).map(|w| (w.own_first, w.peer_first));
        assert_eq!(numbers(&begun), Some((77, 5)));
        begun.heard(syn(5));
        assert_eq!(numbers(&begun), Some((77, 5)));
        // Another one between the same ends.
        begun.heard(syn(6));
        assert_eq!(numbers(&begun), None);
        begun.told(vec![answer(7)]);
        assert_eq!(numbers(&begun), Some((77, 6)));
        begun.look();
        begun.keep(&[(local, peer)]);
        assert_eq!(numbers(&begun), Some((77, 6)));
        // One that waits to come in is remembered until it can have.
        begun.heard(Heard { from: local, ..syn(1) });
        begun.keep(&[]);
        assert_eq!(begun.known.len(), 1);
        begun.look();
        begun.keep(&[]);
        assert_eq!(begun.known.len(), 1);
        begun.look();
        begun.keep(&[]);
        assert!(begun.known.is_empty());
    }
}
