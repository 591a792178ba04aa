//! What hosts of one link tell each other about who has an address: ARP (RFC 826, 5227) and neighbour discovery (RFC 4861, 4862),
//! by packet(7) sockets, so that an address can be asked for that is not there yet.

use nix::errno::Errno;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// An Ethernet address.
pub type Mac = [u8; 6];

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;
/// What is said counts against what was known before.
const OVERRIDE: u8 = 0x20;
const EVERYBODY: Mac = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Longer than any frame that is understood here.
const LONGEST: usize = 2048;

/// Somebody on the link who has, or wants, the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimant {
    /// Who.
    pub mac: Mac,
    /// Only asks, as who is about to take it.
    pub asks: bool,
}

/// A place on a link from which one address is asked for, and announced. It belongs to the network namespace in which it was made.
#[derive(Debug)]
pub struct Neighbour {
    socket: OwnedFd,
    index: i32,
    mac: Mac,
    ip: IpAddr,
}

/// The group in which whoever has an address is asked for it.
fn solicited(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The Ethernet address of a group.
fn group(ip: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = ip.octets();
    [0x33, 0x33, a, b, c, d]
}

fn arp(operation: u16, mac: Mac, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    // Ethernet, IPv4, and the lengths of their addresses
    let mut frame = vec![0, 1, 8, 0, 6, 4];
    frame.extend_from_slice(&operation.to_be_bytes());
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&from.octets());
    frame.extend_from_slice(&if operation == ARP_REPLY { mac } else { Mac::default() });
    frame.extend_from_slice(&to.octets());
    frame
}

/// Who says by this ARP frame that `ip` is, or will be, theirs.
fn heard_arp(frame: &[u8], ip: Ipv4Addr) -> Option<Claimant> {
    let [0, 1, 8, 0, 6, 4, 0, operation, rest @ ..] = frame else { return None };
    let mac: Mac = rest.get(..6)?.try_into().ok()?;
    let (from, to) = (rest.get(6..10)?, rest.get(16..20)?);
    let asks = u16::from(*operation) == ARP_REQUEST && from == [0; 4] && to == ip.octets();
    (asks || from == ip.octets()).then_some(Claimant { mac, asks })
}

/// The checksum of the protocols above IPv6, RFC 8200.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let head = [&from.octets()[..], &to.octets(), &(message.len() as u32).to_be_bytes(), &[0, 0, 0, ICMPV6]].concat();
    let words = head.chunks(2).chain(message.chunks(2)).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn icmpv6(kind: u8, flags: u8, (from, to): (Ipv6Addr, Ipv6Addr), ip: Ipv6Addr, option: Option<(u8, Mac)>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&ip.octets());
    if let Some((number, mac)) = option {
        message.extend_from_slice(&[number, 1]);
        message.extend_from_slice(&mac);
    }
    let sum = checksum(from, to, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    // Version 6; nobody heeds what came through a router, where 255 hops cannot be left.
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(message.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[ICMPV6, 255]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&message);
    packet
}

/// Who says by this IPv6 packet that `ip` is, or will be, theirs. `sender`: of the frame that it came in.
fn heard_icmpv6(packet: &[u8], ip: Ipv6Addr, sender: Mac) -> Option<Claimant> {
    let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    let message = packet.get(40..).filter(|_| packet[0] >> 4 == 6 && packet[6] == ICMPV6 && packet[7] == 255)?;
    if message.get(8..24)? != ip.octets() {
        return None;
    }
    let option = message.get(24..32).filter(|o| o[..2] == [2, 1]).and_then(|o| o[2..].try_into().ok());
    match message[0] {
        ADVERTISEMENT => Some(Claimant { mac: option.unwrap_or(sender), asks: false }),
        SOLICITATION if from == [0; 16] => Some(Claimant { mac: sender, asks: true }),
        _ => None,
    }
}

impl Neighbour {
    /// On the interface with this number and address.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`.
    pub fn new(index: i32, mac: Mac, ip: IpAddr) -> Result<Self, Errno> {
        let protocol = (if ip.is_ipv4() { libc::ETH_P_ARP } else { libc::ETH_P_IPV6 }) as u16;
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        // SAFETY: on success the kernel gives a new descriptor that nobody else owns.
        let socket = unsafe {
            let fd = Errno::result(libc::socket(libc::AF_PACKET, kind, 0))?;
            OwnedFd::from_raw_fd(fd)
        };
        let neighbour = Neighbour { socket, index, mac, ip };
        let here = neighbour.address(protocol, Mac::default());
        // SAFETY: the structure outlives the call, and that is its size.
        Errno::result(unsafe {
            libc::bind(neighbour.socket.as_raw_fd(), (&raw const here).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        })?;
        if let IpAddr::V6(ip) = ip {
            neighbour.listen_to(group(solicited(ip)))?;
            neighbour.listen_to(group(ALL_NODES))?;
        }
        Ok(neighbour)
    }

    fn address(&self, protocol: u16, mac: Mac) -> libc::sockaddr_ll {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = self.index;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&mac);
        address
    }

    /// Has the interface let in what is sent to a group.
    fn listen_to(&self, mac: Mac) -> Result<(), Errno> {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut membership: libc::packet_mreq = unsafe { mem::zeroed() };
        membership.mr_ifindex = self.index;
        membership.mr_type = libc::PACKET_MR_MULTICAST as u16;
        membership.mr_alen = 6;
        membership.mr_address[..6].copy_from_slice(&mac);
        let (value, size) = ((&raw const membership).cast(), size_of::<libc::packet_mreq>() as libc::socklen_t);
        // SAFETY: the structure outlives the call, and that is its size.
        Errno::result(unsafe { libc::setsockopt(self.socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, value, size) })
            .map(drop)
    }

    fn send(&self, protocol: i32, to: Mac, frame: &[u8]) -> Result<(), Errno> {
        let to = self.address(protocol as u16, to);
        let (fd, size) = (self.socket.as_raw_fd(), size_of::<libc::sockaddr_ll>() as libc::socklen_t);
        // SAFETY: both outlive the call, and these are their sizes.
        Errno::result(unsafe { libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size) }).map(drop)
    }

    /// Asks who has the address, as one who has none yet.
    pub fn ask(&self) -> Result<(), Errno> {
        match self.ip {
            IpAddr::V4(ip) => self.send(libc::ETH_P_ARP, EVERYBODY, &arp(ARP_REQUEST, self.mac, Ipv4Addr::UNSPECIFIED, ip)),
            IpAddr::V6(ip) => {
                let to = solicited(ip);
                let packet = icmpv6(SOLICITATION, 0, (Ipv6Addr::UNSPECIFIED, to), ip, None);
                self.send(libc::ETH_P_IPV6, group(to), &packet)
            }
        }
    }

    /// Says once that the address is here.
    pub fn announce(&self) -> Result<(), Errno> {
        match self.ip {
            // Some heed only one of both.
            IpAddr::V4(ip) => [ARP_REQUEST, ARP_REPLY]
                .iter()
                .try_for_each(|&operation| self.send(libc::ETH_P_ARP, EVERYBODY, &arp(operation, self.mac, ip, ip))),
            IpAddr::V6(ip) => {
                let packet = icmpv6(ADVERTISEMENT, OVERRIDE, (ip, ALL_NODES), ip, Some((2, self.mac)));
                self.send(libc::ETH_P_IPV6, group(ALL_NODES), &packet)
            }
        }
    }

    /// The next one but us who claims the address; `None` when nobody has until then.
    pub fn hear(&self, until: Instant) -> Result<Option<Claimant>, Errno> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.readable(left)? {
                return Ok(None);
            }
            let mut frame = [0u8; LONGEST];
            // SAFETY: all-zero is a valid value of this plain structure.
            let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
            let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            let (fd, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT);
            // SAFETY: all three outlive the call, and these are their sizes.
            let n = Errno::result(unsafe {
                libc::recvfrom(fd, frame.as_mut_ptr().cast(), frame.len(), flags, (&raw mut from).cast(), &raw mut size)
            });
            let n = match n {
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                n => n? as usize,
            };
            let mut sender = Mac::default();
            sender.copy_from_slice(&from.sll_addr[..6]);
            let heard = match self.ip {
                IpAddr::V4(ip) => heard_arp(&frame[..n], ip),
                IpAddr::V6(ip) => heard_icmpv6(&frame[..n], ip, sender),
            };
            let own = from.sll_pkttype == libc::PACKET_OUTGOING;
            if let Some(claimant) = heard.filter(|c| !own && c.mac != self.mac) {
                return Ok(Some(claimant));
            }
        }
    }

    fn readable(&self, patience: Duration) -> Result<bool, Errno> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => Ok(true),
            n => n.map(|n| n > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 1, 2, 3];

    #[test]
    fn arp_frames() {
        let ip = Ipv4Addr::new(10, 0, 0, 10);
        let claim = |asks| Some(Claimant { mac: MAC, asks });
        assert_eq!(heard_arp(&arp(ARP_REQUEST, MAC, ip, ip), ip), claim(false));
        assert_eq!(heard_arp(&arp(ARP_REPLY, MAC, ip, ip), ip), claim(false));
        assert_eq!(heard_arp(&arp(ARP_REQUEST, MAC, Ipv4Addr::UNSPECIFIED, ip), ip), claim(true));
        // Who has it asks for another one; somebody asks for it in order to send something there.
        let other = Ipv4Addr::new(10, 0, 0, 11);
        assert_eq!(heard_arp(&arp(ARP_REQUEST, MAC, ip, other), ip), claim(false));
        assert_eq!(heard_arp(&arp(ARP_REQUEST, MAC, other, ip), ip), None);
        let frame = arp(ARP_REPLY, MAC, ip, ip);
        assert_eq!(frame.len(), 28);
        (0..28).for_each(|n| assert_eq!(heard_arp(&frame[..n], ip), None));
    }

    #[test]
    fn neighbour_discovery() {
        let ip: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();
        assert_eq!(solicited(ip), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        assert_eq!(group(solicited(ip)), [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let said = icmpv6(ADVERTISEMENT, OVERRIDE, (ip, ALL_NODES), ip, Some((2, MAC)));
        assert_eq!(heard_icmpv6(&said, ip, [9; 6]), Some(Claimant { mac: MAC, asks: false }));
        let asked = icmpv6(SOLICITATION, 0, (Ipv6Addr::UNSPECIFIED, solicited(ip)), ip, None);
        assert_eq!(heard_icmpv6(&asked, ip, [9; 6]), Some(Claimant { mac: [9; 6], asks: true }));
        assert_eq!(heard_icmpv6(&said, ALL_NODES, [9; 6]), None);
        // A sum over a message with its right sum in it is nothing.
        assert_eq!(checksum(ip, ALL_NODES, &said[40..]), 0);
        (0..64).for_each(|n| assert_eq!(heard_icmpv6(&said[..n], ip, MAC), None));
    }
}
