//! The service address: taken away from one host and given to the other, whose neighbours are told.
//!
//! All of it happens in the network namespace of the calling thread.

use crate::error::{Context, Error, Kind, Result};
use crate::resource::network::{self, Saved};
use crate::sys::neighbour::{Claimant, Mac, Neighbour};
use crate::sys::netlink::{Socket, attributes, put, u32_at};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// It can be used at once: meio has asked whether somebody has it.
const IFA_F_NODAD: u32 = 0x02;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;

/// `ADDR/LEN@DEV`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address itself.
    pub ip: IpAddr,
    /// How many bits of it name the link.
    pub length: u8,
    /// The interface.
    pub device: String,
}

/// How thoroughly others are asked.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// How often.
    pub times: u32,
    /// Time between two questions.
    pub gap: Duration,
    /// Time for an answer to the last one.
    pub patience: Duration,
}

impl Probe {
    /// As RFC 5227 has it, while there is time: before the tree stands still.
    pub const CAREFUL: Probe = Probe { times: 3, gap: Duration::from_millis(1500), patience: Duration::from_secs(2) };
    /// While everybody waits: does the other host still answer?
    pub const QUICK: Probe = Probe { times: 1, gap: Duration::ZERO, patience: Duration::from_millis(20) };
}

/// An address that was taken away, and what else the interface had.
#[derive(Debug)]
pub struct Taken {
    before: Saved,
}

/// An interface as far as it matters here.
struct Device {
    index: u32,
    flags: u32,
    mac: Option<Mac>,
}

impl Device {
    /// Whether it has neighbours that ask who has an address.
    fn has_neighbours(&self) -> bool {
        let none = libc::IFF_NOARP | libc::IFF_LOOPBACK | libc::IFF_POINTOPOINT;
        self.mac.is_some() && self.flags & none as u32 == 0
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::new(Kind::Usage, format!("{text} is not an address")).help("an address is ADDR/LEN@DEV: 10.0.0.10/24@eth0");
        let (address, device) = text.rsplit_once('@').ok_or_else(wrong)?;
        let (ip, length) = address.split_once('/').ok_or_else(wrong)?;
        let (ip, length): (IpAddr, u8) = (ip.parse().map_err(|_| wrong())?, length.parse().map_err(|_| wrong())?);
        // IFNAMSIZ, with the byte that ends it.
        let named = !device.is_empty() && device.len() < 16 && !device.contains(['/', ' ', '\0']);
        let fits = length <= if ip.is_ipv4() { 32 } else { 128 } && !ip.is_unspecified() && !ip.is_multicast();
        if named && fits { Ok(Address { ip, length, device: device.to_owned() }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.ip, self.length, self.device)
    }
}

impl Address {
    fn bytes(&self) -> Vec<u8> {
        match self.ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        }
    }

    fn device(&self) -> Result<Device> {
        let socket = Socket::route().context(|| "opening a netlink socket")?;
        let name = [self.device.as_bytes(), &[0]].concat();
        for link in socket.dump(libc::RTM_GETLINK, &[0; 16]).context(|| "listing interfaces")? {
            let attribute = |kind| attributes(link.get(16..).unwrap_or_default()).find(|a| a.0 == kind).map(|a| a.1);
            if let (true, Some(index), Some(flags)) = (attribute(IFLA_IFNAME) == Some(&name), u32_at(&link, 4), u32_at(&link, 8)) {
                let mac = attribute(IFLA_ADDRESS).and_then(|mac| mac.try_into().ok());
                return Ok(Device { index, flags, mac });
            }
        }
        Err(Error::new(Kind::NotFound, format!("there is no interface {}", self.device)).help("see: ip link"))
    }

    /// `struct ifaddrmsg` and the address itself.
    fn message(&self, index: u32) -> Vec<u8> {
        let family = if self.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut message = vec![family as u8, self.length, 0, 0];
        message.extend_from_slice(&index.to_ne_bytes());
        put(&mut message, IFA_LOCAL, &self.bytes());
        put(&mut message, IFA_ADDRESS, &self.bytes());
        message
    }

    /// Whether the interface has it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] without the interface; another one when it has the address with another length.
    pub fn is_up(&self) -> Result<bool> {
        let (index, bytes) = (self.device()?.index, self.bytes());
        let socket = Socket::route().context(|| "opening a netlink socket")?;
        for message in socket.dump(libc::RTM_GETADDR, &[0; 8]).context(|| "listing addresses")? {
            let Some((head, rest)) = message.split_at_checked(8) else { continue };
            let mut own = attributes(rest).filter(|a| a.0 == IFA_LOCAL || a.0 == IFA_ADDRESS);
            if u32_at(head, 4) != Some(index) || !own.any(|a| a.1 == bytes) {
                continue;
            }
            if head[1] != self.length {
                return Err(Error::new(Kind::Usage, format!("{} has the address with length {}", self.device, head[1]))
                    .help(format!("say {}/{}@{}", self.ip, head[1], self.device)));
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Takes it away. What the kernel takes along (other addresses of the same link, routes) but need not is given back.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it is not there, [`Kind::Permission`] without `CAP_NET_ADMIN`.
    pub fn take(&self) -> Result<Taken> {
        let doing = || format!("taking {self} away");
        if !self.is_up()? {
            return Err(Error::new(Kind::NotFound, format!("{} does not have {}", self.device, self.ip)).help("see: ip address"));
        }
        let before = network::connected(&self.device)?.ok_or_else(|| Error::other(format!("{} has gone", self.device)))?;
        let message = self.message(self.device()?.index);
        Socket::route().and_then(|socket| socket.change(libc::RTM_DELADDR, 0, &message)).context(doing)?;
        before.complete(Some(&self.bytes())).context(doing)?;
        Ok(Taken { before })
    }

    /// Gives it back to where it was taken from, with the routes that it had. Neighbours are to be told.
    pub fn give_back(&self, taken: &Taken) -> Result<()> {
        taken.before.complete(None).context(|| format!("giving {self} back"))
    }

    /// Gives it to this host. That it is there already is no failure.
    ///
    /// # Errors
    /// [`Kind::NotFound`] without the interface, [`Kind::Permission`] without `CAP_NET_ADMIN`, another one where it is down.
    pub fn bring_up(&self) -> Result<()> {
        let device = self.device()?;
        if device.flags & libc::IFF_UP as u32 == 0 {
            return Err(Error::other(format!("the interface {} is down", self.device)).help(format!("ip link set {} up", self.device)));
        }
        let mut message = self.message(device.index);
        match self.ip {
            IpAddr::V4(ip) if self.length < 31 => {
                let broadcast = ip.to_bits() | u32::MAX >> self.length;
                put(&mut message, IFA_BROADCAST, &Ipv4Addr::from_bits(broadcast).octets());
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(_) => drop(put(&mut message, IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes())),
        }
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        match Socket::route().and_then(|socket| socket.change(libc::RTM_NEWADDR, flags, &message)) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            done => done.context(|| format!("taking over {self}"))?,
        }
        self.until_local()
    }

    /// Of IPv6 another thread of the kernel does what is left, and until it has what is for the address leaves this host.
    fn until_local(&self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(2);
        const STEP: Duration = Duration::from_micros(100);
        let (begun, socket) = (Instant::now(), Socket::route().context(|| "opening a netlink socket")?);
        while self.ip.is_ipv6() && !self.is_local(&socket) {
            if begun.elapsed() > PATIENCE {
                return Err(Error::other(format!("{self} is not used by the kernel")).help("see: ip -6 route get"));
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// Whether what is sent to it stays here, `struct rtmsg`.
    fn is_local(&self, socket: &Socket) -> bool {
        const RTA_DST: u16 = 1;
        let (bytes, mut ask) = (self.bytes(), vec![0; 12]);
        ask[0] = if self.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
        ask[1] = 8 * bytes.len() as u8;
        put(&mut ask, RTA_DST, &bytes);
        let route = socket.one(libc::RTM_GETROUTE, &ask).ok().flatten();
        route.is_some_and(|route| route.get(7) == Some(&libc::RTN_LOCAL))
    }

    /// A place from which neighbours are asked and told; `None` where the interface has none that would ask.
    fn neighbour(&self) -> Result<Option<Neighbour>> {
        let device = self.device()?;
        let Some(mac) = device.mac.filter(|_| device.has_neighbours()) else { return Ok(None) };
        Neighbour::new(device.index as i32, mac, self.ip).map(Some).context(|| format!("asking on {} for {}", self.device, self.ip))
    }

    /// Who else has it, or is about to take it: nobody may, but for those in `known`, such as the host that it comes from.
    pub fn probe(&self, how: Probe, known: &[Mac]) -> Result<Vec<Claimant>> {
        let mut found: Vec<Claimant> = Vec::new();
        let Some(neighbour) = self.neighbour()? else { return Ok(found) };
        for n in 1..=how.times {
            neighbour.ask().context(|| format!("asking on {} for {}", self.device, self.ip))?;
            let until = Instant::now() + if n < how.times { how.gap } else { how.patience };
            while let Some(claimant) = neighbour.hear(until).context(|| format!("listening on {}", self.device))? {
                if !known.contains(&claimant.mac) && found.iter().all(|c| c.mac != claimant.mac) {
                    found.push(claimant);
                }
            }
        }
        Ok(found)
    }

    /// The Ethernet address under which it is, or will be, reached here.
    pub fn mac(&self) -> Result<Option<Mac>> {
        Ok(self.device()?.mac)
    }

    /// Tells the neighbours that it is here, once.
    pub fn announce_once(&self) -> Result<()> {
        let Some(neighbour) = self.neighbour()? else { return Ok(()) };
        neighbour.announce().context(|| format!("telling on {} who has {}", self.device, self.ip))
    }

    /// The same, and several times more while the result lives.
    pub fn announce(&self) -> Result<Announcing> {
        // Since the one before: a switch may just be learning where it is, or a packet be lost.
        const AGAIN: [u64; 7] = [50, 100, 350, 500, 4000, 1000, 4000];
        let Some(neighbour) = self.neighbour()? else { return Ok(Announcing { stop: None, thread: None }) };
        neighbour.announce().context(|| format!("telling on {} who has {}", self.device, self.ip))?;
        let (stop, stopped) = mpsc::channel::<()>();
        let own = self.clone();
        let again = move || {
            for pause in AGAIN.map(Duration::from_millis) {
                let wanted = stopped.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout);
                // It may have moved on meanwhile: what is said of it is said by where it is.
                if !wanted || !own.is_up().unwrap_or(false) || neighbour.announce().is_err() {
                    break;
                }
            }
        };
        // Without a thread there was the first time.
        let thread = std::thread::Builder::new().name("announce".into()).spawn(again).ok();
        Ok(Announcing { stop: Some(stop), thread })
    }
}

/// Neighbours are being told. Dropped, they are not told again; [`Announcing::finish`] waits until all is said.
#[derive(Debug)]
pub struct Announcing {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Announcing {
    /// Waits until they have been told for the last time, ten seconds after the first.
    pub fn finish(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Announcing {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
