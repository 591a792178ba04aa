//! Interfaces of a network namespace.

use super::{Capture, Record};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::netlink::{Socket, attributes, u32_at};
use serde::{Deserialize, Serialize};
use std::io;

/// Attributes of a link, linux/if_link.h.
pub mod attribute {
    #![allow(missing_docs)] // the kernel's names
    pub const ADDRESS: u16 = 1;
    pub const NAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const QUEUE_LENGTH: u16 = 13;
    pub const INFO: u16 = 18;
    pub const NAMESPACE: u16 = 28;
    pub const ALIAS: u16 = 20;
    pub const GROUP: u16 = 27;
    pub const LINK_NAMESPACE: u16 = 37;
    pub const INFO_KIND: u16 = 1;
    pub const INFO_DATA: u16 = 2;
    pub const INFO_SLAVE_KIND: u16 = 4;
    pub const INFO_SLAVE_DATA: u16 = 5;
}
use attribute as a;

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: i32,
    /// What the kernel calls its kind: `dummy`, `veth`; empty for the loopback interface.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// `IFF_*` that can be set.
    pub flags: u32,
    /// Link layer address.
    #[serde(with = "crate::image::bytes")]
    pub address: Vec<u8>,
    /// Length of the longest packet in bytes.
    pub mtu: u32,
    /// Packets that may wait.
    pub queue_length: u32,
    /// Number of its group.
    #[serde(skip_serializing_if = "zero")]
    pub group: u32,
    /// A second name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub alias: String,
    /// The interface that it stands on, or the other end.
    #[serde(skip_serializing_if = "zero")]
    pub link: u32,
    /// The bridge that it belongs to.
    #[serde(skip_serializing_if = "zero")]
    pub master: u32,
    /// What its kind adds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<(u16, Bytes)>,
    /// What its bridge adds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port: Vec<(u16, Bytes)>,
    /// The other end lies where meio is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
    /// Some descriptor of a tun interface is detached for a while.
    #[serde(skip)]
    pub idle_queues: bool,
    /// `link` is a number in another namespace.
    #[serde(skip)]
    pub elsewhere: bool,
}

/// The end of a veth that lies where meio is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outside {
    /// Its name.
    pub name: String,
    /// Its link layer address.
    #[serde(with = "crate::image::bytes")]
    pub address: Vec<u8>,
    /// Its longest packet.
    pub mtu: u32,
    /// `IFF_*` that can be set.
    pub flags: u32,
    /// Name of its bridge.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bridge: String,
}

fn zero(n: &u32) -> bool {
    *n == 0
}

/// Kinds that are made again out of what they tell.
const KINDS: [&str; 8] = ["", "dummy", "bridge", "veth", "vlan", "macvlan", "ifb", "tun"];
/// `IFF_UP`, `DEBUG`, `NOARP`, `PROMISC`, `ALLMULTI`, `MULTICAST`, `DYNAMIC`.
const SETTABLE: u32 = 0x1 | 0x4 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x8000;

fn text(value: Option<&[u8]>) -> String {
    String::from_utf8_lossy(value.unwrap_or_default()).trim_end_matches('\0').to_owned()
}

/// All interfaces of the namespace of a socket, each after those that it stands on.
pub fn read(socket: &Socket) -> io::Result<Vec<Link>> {
    let found = socket.dump(libc::RTM_GETLINK, &[0; 16])?;
    let mut left: Vec<Link> = found.iter().filter_map(|message| link(&Record::parse(message, 16)?)).collect();
    left.sort_by_key(|l| l.index);
    let mut sorted: Vec<Link> = Vec::new();
    while !left.is_empty() {
        let there = |index: u32| index == 0 || !left.iter().any(|l| l.index as u32 == index);
        let ready = |l: &Link| l.kind == "veth" || l.elsewhere || l.link == l.index as u32 || there(l.link);
        let at = left.iter().position(ready).unwrap_or(0);
        sorted.push(left.remove(at));
    }
    Ok(sorted)
}

fn link(record: &Record) -> Option<Link> {
    let number = |kind| record.get(kind).and_then(|v| u32_at(v, 0)).unwrap_or(0);
    let info = attributes(record.get(a::INFO).unwrap_or_default());
    let part = |kind| info.clone().find(|i| i.0 == kind).map(|i| i.1);
    let list = |kind| attributes(part(kind).unwrap_or_default()).map(|(k, v)| (k, Bytes(v.to_vec()))).collect::<Vec<_>>();
    let kind = text(part(a::INFO_KIND));
    let mut data = list(a::INFO_DATA);
    let mut idle_queues = false;
    let mut port = if text(part(a::INFO_SLAVE_KIND)) == "bridge" { list(a::INFO_SLAVE_DATA) } else { Vec::new() };
    match kind.as_str() {
        // Protocol timers, what was learned, and what follows from the rest.
        "bridge" => {
            data.retain(|d| matches!(d.0, 1..=9 | 22..=39 | 41..=46 | 49));
            // IFLA_BR_MULTI_BOOLOPT, value and mask: a switch that this kernel lacks cannot even be switched off.
            for (_, Bytes(value)) in data.iter_mut().filter(|d| d.0 == 46 && d.1.0.len() == 8) {
                value.copy_within(..4, 4);
            }
        }
        "tun" => {
            idle_queues = data.iter().any(|d| d.0 == 9 && d.1.0.iter().any(|b| *b != 0));
            data.retain(|d| d.0 <= 7);
        }
        "veth" => data.clear(),
        "macvlan" => data.retain(|d| d.0 <= 2),
        _ => {}
    }
    port.retain(|d| matches!(d.0, 2..=12 | 27..=33));
    Some(Link {
        name: text(record.get(a::NAME)),
        index: u32_at(&record.head.0, 4)? as i32,
        flags: u32_at(&record.head.0, 8)? & SETTABLE,
        address: record.get(a::ADDRESS).unwrap_or_default().to_vec(),
        mtu: number(a::MTU),
        queue_length: number(a::QUEUE_LENGTH),
        group: number(a::GROUP),
        alias: text(record.get(a::ALIAS)),
        link: number(a::LINK),
        master: number(a::MASTER),
        data,
        port,
        outside: None,
        idle_queues,
        elsewhere: record.get(a::LINK_NAMESPACE).is_some(),
        kind,
    })
}

/// Finds the other ends that lie where meio is, and refuses what cannot be made again. `here` are meio's own links.
pub fn complete(pid: i32, links: &mut [Link], here: &[Link], capture: &mut Capture) {
    for link in links {
        let object = format!("interface {} ({})", link.name, if link.kind.is_empty() { "a device" } else { &link.kind });
        if !KINDS.contains(&link.kind.as_str()) && !fallback(link) || link.kind.is_empty() && link.index != 1 {
            let advice = "take it out of the namespace first: ip link set dev NAME netns 1";
            capture.refuse(pid, object, "an interface of this kind is not made again", advice);
            continue;
        }
        if link.elsewhere && link.kind == "veth" {
            let other = here.iter().find(|l| l.kind == "veth" && l.elsewhere && l.index as u32 == link.link && l.link == link.index as u32);
            let Some(other) = other else {
                capture.refuse(pid, object, "its other end lies in a third namespace", "include that namespace in the tree, or remove it");
                continue;
            };
            let bridge = here.iter().find(|l| other.master != 0 && l.index as u32 == other.master);
            link.outside = Some(Outside {
                name: other.name.clone(),
                address: other.address.clone(),
                mtu: other.mtu,
                flags: other.flags,
                bridge: bridge.map(|b| b.name.clone()).unwrap_or_default(),
            });
            link.link = 0;
        } else if link.elsewhere {
            capture.refuse(pid, object, "it stands on an interface of another namespace", "remove it first");
        } else if link.kind == "tun" && !link.data.iter().any(|d| d.0 == 6 && d.1.0 == [1]) {
            capture.loose.push((pid, link.name.clone()));
        }
    }
}

/// Interfaces that a namespace has from its beginning, by modules that are loaded.
fn fallback(link: &Link) -> bool {
    ["sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0"].contains(&link.name.as_str())
}
