//! Interfaces whose other end is a file: the tun driver.

use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca_u32 as libc::Ioctl;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb_u32 as libc::Ioctl;
const TUNSETOWNER: libc::Ioctl = 0x4004_54cc_u32 as libc::Ioctl;
const TUNSETGROUP: libc::Ioctl = 0x4004_54ce_u32 as libc::Ioctl;
const TUNSETIFINDEX: libc::Ioctl = 0x4004_54da_u32 as libc::Ioctl;

/// Makes an interface of the own network namespace that stays. `flags` are `IFF_TUN`, `IFF_NO_PI` and so on.
pub fn make(name: &str, index: i32, flags: i16, owner: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::EINVAL.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
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
