//! Interfaces whose other end is a file: the tun driver.

use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const TUNSETIFF: libc::Ioctl = 0x4004_54ca_u32 as libc::Ioctl;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb_u32 as libc::Ioctl;
const TUNSETOWNER: libc::Ioctl = 0x4004_54cc_u32 as libc::Ioctl;
const TUNSETGROUP: libc::Ioctl = 0x4004_54ce_u32 as libc::Ioctl;
const TUNSETIFINDEX: libc::Ioctl = 0x4004_54da_u32 as libc::Ioctl;

/// Makes an interface of the own network namespace that stays. `flags` are `IFF_TUN`, `IFF_NO_PI` and so on.
pub fn make(name: &str, index: i32, flags: i16, owner: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = named(name)?;
    request.ifr_ifru.ifru_flags = flags;
    let number = index as u32;
    // SAFETY: the requests read what is passed, which outlives the calls.
    unsafe {
        Errno::result(libc::ioctl(file.as_raw_fd(), TUNSETIFINDEX, &raw const number))?;
        Errno::result(libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request))?;
        for (id, call) in [(owner, TUNSETOWNER), (group, TUNSETGROUP)] {
            if let Some(id) = id {
                Errno::result(libc::ioctl(file.as_raw_fd(), call, libc::c_ulong::from(id)))?;
            }
        }
        Errno::result(libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong))?;
    }
    Ok(())
}

const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
const TUNGETFILTER: libc::Ioctl = 0x8010_54db_u32 as libc::Ioctl;
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;
/// Bytes that may wait to be sent: how it is asked and set.
pub const SNDBUF: (u32, u32) = (0x8004_54d3, 0x4004_54d4);
/// Bytes of the header before each packet.
pub const HEADER: (u32, u32) = (0x8004_54d7, 0x4004_54d8);
/// That header is little endian.
pub const LITTLE: (u32, u32) = (0x8004_54dd, 0x4004_54dc);
/// That header is big endian.
pub const BIG: (u32, u32) = (0x8004_54df, 0x4004_54de);

fn named(name: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: all-zero is a valid structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::EINVAL);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// The interface that a descriptor is attached to, and its `IFF_*` flags; `None` when it is attached to none.
pub fn attached(fd: BorrowedFd<'_>) -> Result<Option<(String, u16)>, Errno> {
    let mut request = named("")?;
    // SAFETY: the request fills the structure.
    match Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) }) {
        Err(Errno::EBADFD) => return Ok(None),
        done => done?,
    };
    let name: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect();
    // SAFETY: the request fills this field.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(Some((String::from_utf8_lossy(&name).into_owned(), flags as u16)))
}

/// Attaches a new descriptor to an interface of the network namespace in which it was opened; one that is not there is made, with
/// the number `index` if that is free.
///
/// # Errors
/// `EBUSY` when somebody else has it.
pub fn attach(fd: BorrowedFd<'_>, name: &str, index: i32, flags: u16) -> Result<(), Errno> {
    let mut request = named(name)?;
    request.ifr_ifru.ifru_flags = flags as i16;
    let number = index as u32;
    // SAFETY: the requests read what is passed, which outlives the calls.
    unsafe {
        if index > 0 {
            Errno::result(libc::ioctl(fd.as_raw_fd(), TUNSETIFINDEX, &raw const number))?;
        }
        Errno::result(libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request)).map(drop)
    }
}

/// A number of an attached descriptor: [`SNDBUF`], [`HEADER`], [`LITTLE`], [`BIG`].
pub fn number(fd: BorrowedFd<'_>, which: (u32, u32)) -> Result<i32, Errno> {
    let mut value = 0i32;
    // SAFETY: the requests that are passed here write one number.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), which.0 as libc::Ioctl, &raw mut value) })?;
    Ok(value)
}

/// Sets such a number.
pub fn set_number(fd: BorrowedFd<'_>, which: (u32, u32), value: i32) -> Result<(), Errno> {
    // SAFETY: the requests that are passed here read one number.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), which.1 as libc::Ioctl, &raw const value) }).map(drop)
}

/// Whether the interface has a filter (tap interfaces only).
pub fn has_filter(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: all-zero is valid; the request fills the structure.
    unsafe {
        let mut program: libc::sock_fprog = std::mem::zeroed();
        libc::ioctl(fd.as_raw_fd(), TUNGETFILTER, &raw mut program) == 0 && program.len > 0
    }
}

/// The network namespace that the interface is in (Linux 5.2).
pub fn network(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS, 0) }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the interface outlives its descriptors, who may attach to it, and what work may be left to the reader of packets (`TUN_F_*`).
pub fn set_manner(fd: BorrowedFd<'_>, stays: bool, owner: Option<u32>, group: Option<u32>, offloads: u32) -> Result<(), Errno> {
    let ids = [(owner, TUNSETOWNER), (group, TUNSETGROUP)].into_iter().filter_map(|(id, call)| Some((call, id?)));
    for (call, value) in ids.chain([(TUNSETOFFLOAD, offloads), (TUNSETPERSIST, u32::from(stays))]) {
        // SAFETY: numbers only.
        Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), call, libc::c_ulong::from(value)) })?;
    }
    Ok(())
}

fn ethtool(socket: BorrowedFd<'_>, interface: &str, data: &mut [u32]) -> Result<(), Errno> {
    let mut request = named(interface)?;
    request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    // SAFETY: the caller gives room for what its command is answered with.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) }).map(drop)
}

/// What work may be left to the reader of packets, `TUN_F_*`, as the features of the interface show it. `socket` is one in
/// its network namespace.
pub fn offloads(socket: BorrowedFd<'_>, interface: &str) -> Result<u32, Errno> {
    const ETHTOOL_GSTRINGS: u32 = 0x1b;
    const ETHTOOL_GSSET_INFO: u32 = 0x37;
    const ETHTOOL_GFEATURES: u32 = 0x3a;
    const FEATURES: u32 = 4;
    const MOST: u32 = 1024;
    let mut count = [ETHTOOL_GSSET_INFO, 0, 1 << FEATURES, 0, 0];
    ethtool(socket, interface, &mut count)?;
    let count = count[4].min(MOST) as usize;
    let mut names = vec![0u32; 3 + count * 8];
    names[..2].copy_from_slice(&[ETHTOOL_GSTRINGS, FEATURES]);
    ethtool(socket, interface, &mut names)?;
    let blocks = count.div_ceil(32);
    let mut features = vec![0u32; 2 + blocks * 4];
    features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    ethtool(socket, interface, &mut features)?;
    let name = |n: usize| names[3 + n * 8..11 + n * 8].iter().flat_map(|w| w.to_ne_bytes()).take_while(|&b| b != 0).collect::<Vec<u8>>();
    let active = |n: usize| features[2 + n / 32 * 4 + 2] & 1 << (n % 32) != 0;
    const MEANING: [(&[u8], u32); 5] = [
        (b"tx-checksum-ip-generic", 1),
        (b"tx-tcp-segmentation", 2),
        (b"tx-tcp6-segmentation", 4),
        (b"tx-tcp-ecn-segmentation", 8),
        (b"tx-udp-segmentation", 0x60),
    ];
    let bits = (0..count).filter(|&n| active(n)).map(name);
    Ok(bits.filter_map(|name| MEANING.iter().find(|m| m.0 == name)).fold(0, |all, m| all | m.1))
}
