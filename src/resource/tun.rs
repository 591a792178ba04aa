//! Descriptors of `/dev/net/tun`: the other end of a network interface (tun, tap).
//!
//! An interface that does not persist goes with its last descriptor. In a network namespace of the tree's own it is made
//! again with everything else there, and only attached to here; elsewhere it comes back with this descriptor.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::Part;
use super::network;
use super::path::FilePath;
use crate::error::{Context, Error, Kind as Failure, Result};
use crate::sys::namespace::{self, Kind, places, within};
use crate::sys::{file, socket, tun};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// One open file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tun {
    /// Path of the device.
    pub path: FilePath,
    /// The network namespace that it was opened in, an index into the tree's; `None` for meio's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<u32>,
    /// What it is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attached>,
}

/// The interface of a descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// `IFF_TUN` or `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`, …
    pub flags: u16,
    /// Bytes that may wait to be sent.
    pub sndbuf: i32,
    /// Bytes of the header before each packet (`IFF_VNET_HDR`).
    pub header: i32,
    /// That header is little endian, big endian; else as the processor is.
    pub endian: (bool, bool),
    /// `TUN_F_*`.
    pub offloads: u32,
    /// The interface with its addresses and routes, where it is not in a network namespace of the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Box<network::Saved>>,
}

/// Major and minor number.
const DEVICE: (u32, u32) = (10, 200);
const IFF_PERSIST: u16 = 0x0800;
/// Flags that an interface is attached to with.
const TOLD: u16 = 0x0001 | 0x0002 | 0x0010 | 0x0020 | 0x0100 | 0x1000 | 0x4000;

/// Whether a descriptor is one of these.
pub fn is(found: &Found) -> bool {
    (libc::major(found.meta.rdev()), libc::minor(found.meta.rdev())) == DEVICE
}

/// Saves a descriptor. Packets that nobody has read are not kept.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let doing = || format!("reading {} of process {}", found.object(), found.pid);
    let fd = found.own()?;
    let home = socket::network(fd).context(doing)?;
    let identity = namespace::identity(&home).context(doing)?;
    let own = std::fs::metadata("/proc/thread-self/ns/net")?;
    let network = capture.namespaces.known(identity);
    let attached = tun::attached(fd).context(doing)?;
    let elsewhere = attached.is_some() && tun::network(fd).is_ok_and(|n| namespace::identity(&n).is_ok_and(|i| i != identity));
    let obstacle = match () {
        () if network.is_none() && identity != (own.dev(), own.ino()) => {
            Some(("it was opened in a network namespace that no process of the tree lives in", "dump a process above"))
        }
        () if elsewhere => Some(("its interface was moved to another network namespace", "close the interface first")),
        () if attached.is_some() && tun::has_filter(fd) => {
            Some(("its interface has a filter that cannot be read", "detach it first (TUNDETACHFILTER)"))
        }
        () => None,
    };
    if let Some((reason, advice)) = obstacle {
        capture.refuse(found.pid, found.object(), reason, advice);
        return Ok(None);
    }
    let attached = match attached {
        None => None,
        Some((name, flags)) => {
            let look = || -> Result<_> {
                let socket = socket::socket(libc::AF_INET, libc::SOCK_DGRAM)?;
                let offloads = tun::offloads(socket.as_fd(), &name).unwrap_or(0);
                Ok((offloads, network::interface(&name)?))
            };
            let (offloads, interface) = within(&places([(&home, Kind::Net)]), look)?.context(doing)?;
            if interface.as_ref().is_some_and(network::Saved::has_idle_queues) {
                capture.refuse(found.pid, found.object(), "a queue of its interface is detached (TUNSETQUEUE)", "attach or close it first");
                return Ok(None);
            }
            if capture.standing && socket::events(fd)? & libc::POLLIN != 0 {
                let what = format!("process {}, {}: packets that were not read will not be there again", found.pid, found.object());
                capture.warnings.push(what);
            }
            let is = |which| tun::number(fd, which).is_ok_and(|n| n != 0);
            Some(Attached {
                sndbuf: tun::number(fd, tun::SNDBUF).context(doing)?,
                header: tun::number(fd, tun::HEADER).context(doing)?,
                endian: (is(tun::LITTLE), is(tun::BIG)),
                interface: if network.is_none() { interface.map(Box::new) } else { None },
                name,
                flags,
                offloads,
            })
        }
    };
    Ok(Some(FileKind::Tun(Box::new(Tun { path: FilePath::from(found.link.as_slice()), network, attached }))))
}

/// Refuses the interfaces in network namespaces of the tree that go with a descriptor of somebody else.
pub fn refuse_unheld(capture: &mut Capture) -> Result<()> {
    for (pid, name) in std::mem::take(&mut capture.loose) {
        let Ok(fd) = namespace::open(pid, "net") else { continue };
        let network = capture.namespaces.known(namespace::identity(&fd)?);
        let holds = |kind: &FileKind| match kind {
            FileKind::Tun(tun) => tun.network == network && tun.attached.as_ref().is_some_and(|a| a.name == name),
            _ => false,
        };
        if !capture.files.iter().any(|f| holds(&f.kind)) {
            let reason = "it goes with a process outside of the tree that has it open";
            capture.refuse(pid, format!("interface {name} (tun)"), reason, "dump a process above, or make it persistent: ip tuntap add");
        }
    }
    Ok(())
}

impl Tun {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("tun").detail(self.attached.as_ref().map_or(String::new(), |a| a.name.clone()))
    }

    /// The descriptor again; `path` leads to the device, `network` to the namespace when that is not meio's.
    pub fn make(&self, path: &Path, network: Option<&OwnedFd>, flags: u32, warnings: &mut Vec<String>) -> Result<OwnedFd> {
        let mut told = Vec::new();
        let mut work = || -> Result<OwnedFd> {
            let write = flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
            let device = OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(path);
            let fd = OwnedFd::from(device.context(|| format!("opening {}", path.display()))?);
            if let Some(attached) = &self.attached {
                attached.attach(&fd, &mut told)?;
            }
            file::set_flags(fd.as_fd(), (flags & libc::O_NONBLOCK as u32) as i32)?;
            Ok(fd)
        };
        let made = match network {
            Some(network) => within(&places([(network, Kind::Net)]), work)?,
            None => work(),
        };
        warnings.append(&mut told);
        made
    }
}

impl Attached {
    fn attach(&self, fd: &OwnedFd, warnings: &mut Vec<String>) -> Result<()> {
        let doing = || format!("attaching to the interface {}", self.name);
        let there = network::interface(&self.name)?;
        let index = self.interface.as_ref().and_then(|s| s.index()).filter(|_| there.is_none()).unwrap_or(0);
        let attach = |index| tun::attach(fd.as_fd(), &self.name, index, self.flags & TOLD);
        let attached = match attach(index) {
            // Its number is another's by now.
            Err(Errno::EBUSY | Errno::EEXIST) if index > 0 => {
                warnings.push(format!("the interface {} has another number than it had, {index}", self.name));
                tun::attach(fd.as_fd(), &self.name, -1, self.flags & TOLD)
            }
            attached => attached,
        };
        attached.map_err(|e| {
            let message = format!("the interface {} cannot be attached to: {e}", self.name);
            Error::new(Failure::NotFound, message).help(format!("look at who has it open: ip -details tuntap show dev {}", self.name))
        })?;
        let (owner, group) = self.interface.as_ref().map_or((None, None), |s| s.tun_owner());
        tun::set_manner(fd.as_fd(), self.flags & IFF_PERSIST != 0, owner, group, self.offloads).context(doing)?;
        tun::set_number(fd.as_fd(), tun::SNDBUF, self.sndbuf).context(doing)?;
        tun::set_number(fd.as_fd(), tun::HEADER, self.header).context(doing)?;
        for (which, wanted) in [(tun::LITTLE, self.endian.0), (tun::BIG, self.endian.1)] {
            if wanted && tun::number(fd.as_fd(), which).is_ok_and(|n| n == 0) {
                tun::set_number(fd.as_fd(), which, 1).context(doing)?;
            }
        }
        match (&self.interface, there) {
            (Some(saved), None) => saved.furnish(warnings).context(doing),
            _ => Ok(()),
        }
    }
}
