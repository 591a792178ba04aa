//! Queues in which the kernel keeps packets until somebody says what becomes of them: `linux/netfilter/nfnetlink_queue.h`.

use super::netlink::{Buffer, Socket, align, put, u16_at};
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// `NFNL_SUBSYS_QUEUE`, in the upper byte of a message's type.
const CONFIG: u16 = 3 << 8 | 2;
const VERDICT_BATCH: u16 = 3 << 8 | 3;
const NF_ACCEPT: u32 = 1;
/// The kernel numbers packets from 1 on and compares numbers as signed ones.
const ANY: u32 = i32::MAX as u32;
const PACKET: u16 = 3 << 8;
/// `NF_INET_LOCAL_OUT`, `NF_INET_POST_ROUTING`: packets that go out pass these.
const OUTWARD: [u8; 2] = [3, 4];
/// Bytes of copies that may wait to be taken.
const COPIES: usize = 32 << 20;
/// Bytes of a packet that come with its notice: an IPv6 header and the longest of TCP.
const FRONT: u16 = 100;
/// What the kernel charges for the notice of one packet, at most.
const NOTICE: usize = 1 << 12;

/// A queue of our own. Without its socket it is gone, and what it held is dropped.
#[derive(Debug)]
pub struct Queue {
    socket: Socket,
    number: u16,
    list: File,
    copies: bool,
}

impl Queue {
    /// A queue for at most so many packets, in the network namespace of the caller. Its number is the first free one
    /// from `number` on. With `copies` the packets themselves can be taken ([`Queue::copies`]).
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`, `EINVAL` where the kernel has no such queues.
    pub fn new(number: u16, packets: u32, copies: bool) -> io::Result<Self> {
        const TRIES: u16 = 64;
        let mut number = number;
        let last = number.wrapping_add(TRIES);
        loop {
            // BIND = 1 of any protocol family.
            let list = File::open("/proc/thread-self/net/netfilter/nfnetlink_queue")?;
            let queue = Queue { socket: Socket::netfilter()?, number, list, copies };
            match queue.configure(1, &[1, 0, 0, 0]) {
                // The kernel says EPERM where another socket has it, this process's own too, as of a lock that is to go soon.
                Err(e) if number != last && [Errno::EBUSY, Errno::EPERM].iter().any(|is| e.raw_os_error() == Some(*is as i32)) => {
                    number = number.wrapping_add(1);
                }
                bound => {
                    bound?;
                    if copies {
                        queue.prepare_copies(packets)?
                    } else {
                        queue.prepare(packets)?
                    }
                    return Ok(queue);
                }
            }
        }
    }

    fn prepare(&self, packets: u32) -> io::Result<()> {
        // Notices are never read, for verdicts do not need them; but where there is no room for one its packet is dropped.
        self.socket.room(Buffer::Receive, packets as usize * NOTICE / 2)?;
        self.configure(3, &packets.to_be_bytes())?;
        // NFQA_CFG_F_GSO: large packets stay whole.
        let gso = 4u32.to_be_bytes();
        let mut both = self.head();
        put(&mut both, 5, &gso);
        put(&mut both, 4, &gso);
        self.socket.change(CONFIG, 0, &both)?;
        // NFQNL_COPY_PACKET: what stands first in it, which says whether anybody waits for it.
        self.configure(2, &[&u32::from(FRONT).to_be_bytes()[..], &[2]].concat())
    }

    /// From now on the packets themselves can be taken ([`Queue::copies`]).
    ///
    /// # Errors
    /// As of [`Queue::new`].
    pub fn copy(&mut self) -> io::Result<()> {
        self.socket.room(Buffer::Receive, COPIES)?;
        // NFQA_CFG_F_GSO, which is taken away.
        let mut both = self.head();
        put(&mut both, 5, &4u32.to_be_bytes());
        put(&mut both, 4, &[0; 4]);
        self.socket.change(CONFIG, 0, &both)?;
        self.configure(2, &[0, 0, 0xff, 0xff, 2])?;
        self.copies = true;
        Ok(())
    }

    /// Without `NFQA_CFG_F_GSO` packets are cut and summed up as they would be on a wire.
    fn prepare_copies(&self, packets: u32) -> io::Result<()> {
        self.socket.room(Buffer::Receive, COPIES)?;
        self.configure(3, &packets.to_be_bytes())?;
        // NFQNL_COPY_PACKET: all of it.
        self.configure(2, &[0, 0, 0xff, 0xff, 2])
    }

    /// The packets that have come in since this was asked last, from the IP header on; they stay in the queue.
    pub fn copies(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        self.socket.unasked(|kind, message| {
            if kind == PACKET
                && let Some(packet) = inward(message.get(4..).unwrap_or_default())
            {
                found.push(packet.to_vec());
            }
        })?;
        Ok(found)
    }

    /// `struct nfgenmsg`.
    fn head(&self) -> Vec<u8> {
        [&[0, 0], &self.number.to_be_bytes()[..]].concat()
    }

    fn configure(&self, attribute: u16, value: &[u8]) -> io::Result<()> {
        let mut message = self.head();
        put(&mut message, attribute, value);
        self.socket.change(CONFIG, 0, &message)
    }

    /// Whether packets themselves can be taken.
    pub fn copies_packets(&self) -> bool {
        self.copies
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Lets all packets that are in the queue now go on their way, in the order in which they came.
    pub fn accept(&self) -> io::Result<()> {
        self.accept_to(ANY)
    }

    /// The same, up to the packet of this number. Numbers count round: see [`is_after`].
    pub fn accept_to(&self, last: u32) -> io::Result<()> {
        let mut message = self.head();
        put(&mut message, 2, &[NF_ACCEPT.to_be_bytes(), last.to_be_bytes()].concat());
        // Without an answer, which would stand behind a notice of each packet.
        self.socket.send(VERDICT_BATCH, 0, &message)
    }

    /// Takes the notices of packets that have come since this was asked last; `each` gets their numbers, and what stands first in them.
    pub fn notices(&self, buffer: &mut [u8], mut each: impl FnMut(u32, &[u8])) -> io::Result<()> {
        self.socket.drain(buffer, |kind, message| {
            let told = message.get(4..).unwrap_or_default();
            if kind == PACKET
                && let Some(number) = packet_number(told)
            {
                each(number, front(told).unwrap_or_default());
            }
        })
    }

    /// How it stands.
    pub fn state(&self) -> io::Result<State> {
        let mut text = [0; 64 << 10];
        let n = self.list.read_at(&mut text, 0)?;
        let state = std::str::from_utf8(&text[..n]).ok().and_then(|text| text.lines().find_map(|l| State::parse(l, self.number)));
        Ok(state.unwrap_or_default())
    }
}

/// What `/proc/net/netfilter/nfnetlink_queue` tells of a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// Packets in it now.
    pub held: u32,
    /// Packets for which there was no room.
    pub dropped: u32,
    /// Packets that it has seen.
    pub seen: u32,
}

impl State {
    /// Number, port id, packets, copy mode, copy range, dropped for want of room, dropped for want of room for the notice,
    /// last number of a packet, 1.
    fn parse(line: &str, number: u16) -> Option<State> {
        let fields: Vec<u32> = line.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        let &[own, _, held, _, _, full, unnoticed, seen, _] = fields.as_slice() else { return None };
        (own == u32::from(number)).then_some(State { held, dropped: full + unnoticed, seen })
    }
}

impl AsFd for Queue {
    /// It can be read when there are [notices](Queue::notices).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a packet has come after another one: the kernel compares numbers as this does.
pub fn is_after(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) > 0
}

/// What stands first in `NFQA_PACKET_HDR`.
fn packet_number(attributes: &[u8]) -> Option<u32> {
    let head = super::netlink::attributes(attributes).find(|a| a.0 == 1)?.1;
    head.first_chunk().map(|number| u32::from_be_bytes(*number))
}

/// What comes of the packet with its notice.
fn front(attributes: &[u8]) -> Option<&[u8]> {
    super::netlink::attributes(attributes).find(|a| a.0 == 10).map(|a| a.1)
}

/// The packet in a notice, if it is one that comes in. `NFQA_PACKET_HDR` says at which hook it is.
fn inward(attributes: &[u8]) -> Option<&[u8]> {
    let (mut left, mut hook, mut packet) = (attributes, None, None);
    while let (Some(length), Some(kind)) = (u16_at(left, 0), u16_at(left, 2)) {
        let value = left.get(4..usize::from(length))?;
        match kind & 0x3fff {
            1 => hook = value.get(6).copied(),
            10 => packet = Some(value),
            _ => {}
        }
        left = left.get(align(length.into())..).unwrap_or_default();
    }
    packet.filter(|_| hook.is_some_and(|hook| !OUTWARD.contains(&hook)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_list() {
        let line = "28005  2147483  17 1     0     2     3     400  1";
        assert_eq!(State::parse(line, 28005), Some(State { held: 17, dropped: 5, seen: 400 }));
        assert_eq!(State::parse(line, 28006), None);
        assert_eq!(State::parse("28005 1", 28005), None);
    }

    #[test]
    fn numbers_count_round() {
        assert!(is_after(2, 1) && !is_after(1, 1) && !is_after(1, 2) && is_after(3, u32::MAX) && !is_after(u32::MAX, 3));
        let mut notice = Vec::new();
        put(&mut notice, 7, &[1; 4]);
        put(&mut notice, 1, &[0, 0, 1, 2, 8, 0, 4]);
        assert_eq!(packet_number(&notice), Some(258));
        assert_eq!(packet_number(&notice[..8]), None);
    }
}
