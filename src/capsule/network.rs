//! The network of a capsule: the host's, none, or one end of a pair of interfaces whose other end is in a bridge.

use crate::error::{Context, Error, Kind, Result};
use std::fmt;
use std::process::{Command, Stdio};
use std::str::FromStr;

/// What a capsule sees of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The host's, shared.
    Host,
    /// A loop-back interface of its own, nothing else.
    None,
    /// An interface `eth0` of its own.
    Veth {
        /// Bridge on the host that its other end belongs to.
        bridge: String,
        /// Address and length of its prefix.
        address: String,
    },
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let usage = || "write host, none, or veth=BRIDGE:ADDR/LEN, such as veth=br0:10.0.0.2/24".to_owned();
        match text {
            "host" => return Ok(Network::Host),
            "none" => return Ok(Network::None),
            _ => {}
        }
        let (bridge, address) = text.strip_prefix("veth=").and_then(|rest| rest.split_once(':')).ok_or_else(usage)?;
        let (ip, length) = address.split_once('/').ok_or_else(usage)?;
        let ip: std::net::IpAddr = ip.parse().map_err(|_| format!("{ip} is no address"))?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let fits = length.parse::<u8>().is_ok_and(|n| n <= longest) && !bridge.is_empty() && bridge.len() < 16 && !bridge.contains('/');
        if fits { Ok(Network::Veth { bridge: bridge.into(), address: address.into() }) } else { Err(usage()) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::Host => f.write_str("host"),
            Network::None => f.write_str("none"),
            Network::Veth { bridge, address } => write!(f, "veth={bridge}:{address}"),
        }
    }
}

impl Network {
    /// What can be known to go wrong.
    pub fn check(&self) -> Result<()> {
        match self {
            // Not in /sys: that shows the network namespace of who mounted it.
            Network::Veth { bridge, .. } if !bridges()?.contains(bridge) => {
                Err(Error::new(Kind::NotFound, format!("there is no bridge {bridge}")).help(format!("ip link add {bridge} type bridge")))
            }
            _ => Ok(()),
        }
    }

    /// Furnishes the network namespace of process `pid`. The interface outside ends with the one inside.
    pub fn connect(&self, pid: i32, capsule: &str) -> Result<()> {
        let process = pid.to_string();
        match self {
            Network::Host => Ok(()),
            Network::None => inside(&process, &["link", "set", "lo", "up"]),
            Network::Veth { bridge, address } => {
                // The kernel takes the first number that is free.
                ip(&["link", "add", "meio%d", "up", "master", bridge, "type", "veth", "peer", "name", "eth0", "netns", &process])
                    .context(|| format!("connecting the capsule {capsule}"))?;
                inside(&process, &["link", "set", "lo", "up"])?;
                inside(&process, &["addr", "add", address, "dev", "eth0"])?;
                inside(&process, &["link", "set", "eth0", "up"])
            }
        }
    }
}

/// ip(8) where meio is.
fn ip(arguments: &[&str]) -> Result<String> {
    run(Command::new("ip").args(arguments))
}

/// Names of all bridges: `2: br0: <BROADCAST,...`.
fn bridges() -> Result<Vec<String>> {
    let said = ip(&["-o", "link", "show", "type", "bridge"])?;
    Ok(said.lines().filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned())).collect())
}

/// ip(8) in the network namespace of a process.
fn inside(process: &str, arguments: &[&str]) -> Result<()> {
    run(Command::new("nsenter").args(["-n", "-t", process, "ip"]).args(arguments)).map(drop)
}

fn run(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().map_err(|e| Error::from(e).context("starting ip").help("install iproute2"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(Error::other(format!("ip: {}", String::from_utf8_lossy(&out.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_asked_for() {
        let veth = Network::Veth { bridge: "br0".into(), address: "10.0.0.2/24".into() };
        for (text, network) in [("host", Network::Host), ("none", Network::None), ("veth=br0:10.0.0.2/24", veth)] {
            assert_eq!(text.parse::<Network>().unwrap(), network);
            assert_eq!(network.to_string(), text);
        }
        assert!("veth=br0:fd00::2/64".parse::<Network>().is_ok());
        for bad in ["", "veth", "veth=br0", "veth=br0:10.0.0.2", "veth=br0:10.0.0.2/33", "veth=:1.2.3.4/8", "veth=br0:x/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
