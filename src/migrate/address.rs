//! Addresses that move.
use crate::error::{Context, Error, Kind, Result};
use crate::sys::netlink::{Socket, put};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// An address with the length of its prefix and its interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    ip: IpAddr,
    length: u8,
    device: String,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}", self.ip, self.length, self.device)
    }
}

impl Address {
    /// Reads `10.0.0.10/24@eth0`.
    pub fn parse(text: &str) -> Result<Address> {
        let wrong = || Error::new(Kind::Usage, "write ADDRESS/LENGTH@INTERFACE, such as 10.0.0.10/24@eth0");
        let (address, device) = text.split_once('@').ok_or_else(wrong)?;
        let (ip, length) = address.split_once('/').ok_or_else(wrong)?;
        Ok(Address { ip: ip.parse().map_err(|_| wrong())?, length: length.parse().map_err(|_| wrong())?, device: device.into() })
    }
    /// The address itself.
    pub fn ip(&self) -> IpAddr {
        self.ip.to_canonical()
    }
    fn message(&self) -> Result<Vec<u8>> {
        let index = nix::net::if_::if_nametoindex(self.device.as_str()).context(|| format!("interface {}", self.device))?;
        let (family, bytes) = match self.ip {
            IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
            IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
        };
        // IFA_F_NODAD
        let mut message = vec![family as u8, self.length, if family == libc::AF_INET6 { 2 } else { 0 }, 0];
        message.extend(index.to_ne_bytes());
        put(&mut message, 2, &bytes);
        put(&mut message, 1, &bytes);
        Ok(message)
    }
    /// Takes it from its interface.
    pub fn take_down(&self) -> Result<()> {
        Socket::route()?.change(libc::RTM_DELADDR, 0, &self.message()?).context(|| format!("taking down {self}"))
    }
    /// Gives it to its interface.
    pub fn bring_up(&self) -> Result<()> {
        Socket::route()?
            .change(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &self.message()?)
            .context(|| format!("bringing up {self}"))
    }
    /// Tells the neighbours.
    pub fn announce(&self) {
        let _ = std::process::Command::new("arping")
            .args(["-A", "-c", "1", "-I", &self.device, &self.ip.to_string()])
            .stdout(std::process::Stdio::null())
            .spawn();
    }
    /// Why this machine cannot have it.
    pub fn obstacle(&self) -> Option<String> {
        self.message().err().map(|e| e.message)
    }
}

/// Whether these are here.
pub fn check(_: &[Address]) -> Result<()> {
    Ok(())
}
