//! What the kernel tells of packet sockets: `PACKET_DIAG`, linux/packet_diag.h.

use super::SOCK_DIAG_BY_FAMILY;
use crate::sys::netlink::{Socket, attributes, u16_at, u32_at};
use std::io;

/// One packet socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Inode.
    pub inode: u64,
    /// `ETH_P_*` that it hears; 0 for none.
    pub protocol: u16,
    /// Number of the interface that it is bound to; 0 for all.
    pub index: u32,
    /// Bytes from which on a packet is copied beside its ring.
    pub copy_threshold: u32,
    /// Number of the interface, `PACKET_MR_*`, address, how often.
    pub memberships: Vec<(u32, u16, Vec<u8>, u32)>,
    /// It has a ring.
    pub rings: bool,
    /// Number of its group, and how that divides what arrives, from bit 16 on.
    pub fanout: Option<u32>,
}

/// All packet sockets of the network namespace that the caller lives in.
pub fn list() -> io::Result<Vec<Seen>> {
    const SHOW: u32 = 0xf; // properties, memberships, rings, groups
    let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0, 0, 0, 0, 0];
    request.extend(SHOW.to_ne_bytes());
    request.extend([0; 8]);
    Ok(Socket::sock_diag()?.dump(SOCK_DIAG_BY_FAMILY, &request)?.iter().filter_map(|message| seen(message)).collect())
}

/// `struct packet_diag_msg` and its attributes.
fn seen(message: &[u8]) -> Option<Seen> {
    let mut seen = Seen { protocol: u16_at(message, 2)?, inode: u64::from(u32_at(message, 4)?), ..Seen::default() };
    for (kind, value) in attributes(message.get(16..)?) {
        match kind {
            0 => (seen.index, seen.copy_threshold) = (u32_at(value, 0)?, u32_at(value, 12)?),
            1 => {
                for one in value.chunks_exact(44) {
                    let length = usize::from(u16_at(one, 10)?);
                    let address = one.get(12..12 + length)?.to_vec();
                    seen.memberships.push((u32_at(one, 0)?, u16_at(one, 8)?, address, u32_at(one, 4)?));
                }
            }
            2 | 3 => seen.rings = true,
            4 => seen.fanout = u32_at(value, 0),
            _ => {}
        }
    }
    Some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart() {
        let mut message = vec![17, 3, 3, 0, 77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        message.extend([28, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend([48, 0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 6, 0, 1, 2, 3, 4, 5, 6]);
        message.resize(16 + 28 + 48, 0);
        message.extend([8, 0, 4, 0, 5, 0, 1, 0]);
        let expected = Seen {
            inode: 77,
            protocol: 3,
            index: 2,
            copy_threshold: 9,
            memberships: vec![(2, 0, vec![1, 2, 3, 4, 5, 6], 1)],
            rings: false,
            fanout: Some(0x1_0005),
        };
        assert_eq!(seen(&message), Some(expected));
        assert_eq!(seen(&message[..15]), None);
    }
}
