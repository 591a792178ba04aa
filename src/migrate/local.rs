//! What ties a tree to its machine.

use super::address::{Address, Probe};
use super::plan::Plan;
use crate::error::Refusal;
use crate::resource::Tree;
use crate::resource::descriptor::FileKind;
use crate::resource::socket::choice::{self, Choice};
use crate::sys::namespace::Kind;
use crate::sys::neighbour::Mac;
use std::collections::HashSet;
use std::net::IpAddr;

/// Connections that cannot come along: those with somebody else on this machine, and those at an address that stays here.
pub fn stays_behind(tree: &Tree, moving: &[Address]) -> Vec<Refusal> {
    if tree.decisions.tcp == Choice::Close {
        return Vec::new();
    }
    let moving: HashSet<IpAddr> = moving.iter().map(|a| a.ip).collect();
    let outside = choice::outside(&tree.files);
    let ends = outside.iter().filter_map(|&id| match &tree.files.get(id as usize)?.kind {
        FileKind::Tcp(tcp) if tcp.inet.network.is_none() => Some((id, tcp.inet.local?, tcp.inet.peer?)),
        _ => None,
    });
    let refuse = |(id, local, peer): (_, crate::resource::socket::inet::Address, crate::resource::socket::inet::Address)| {
        let own = local.ip.to_canonical();
        let (reason, advice) = if own.is_loopback() || own == peer.ip.to_canonical() {
            let reason = format!("its other end is on this machine, and stays here ({})", std::net::SocketAddr::from(peer));
            (reason, "end that connection, or have it broken off: --tcp close".to_owned())
        } else if !moving.contains(&own) {
            let advice = format!("name the address if it is to move (--vip {own}/LEN@DEV), or have the connection broken off: --tcp close");
            (format!("its address {own} stays with this machine"), advice)
        } else {
            return None;
        };
        let holder = tree.processes.iter().find_map(|p| Some((p.pid, p.descriptors.iter().find(|d| d.file == id)?.fd)));
        let (pid, fd) = holder.unwrap_or_default();
        let object = format!("fd {fd} (connection with {})", std::net::SocketAddr::from(peer));
        Some(Refusal { pid, object, reason, advice, ..Refusal::default() })
    };
    ends.filter_map(refuse).collect()
}

/// Capabilities that meio lacks here for this tree.
pub fn not_allowed(plan: &Plan) -> Vec<Refusal> {
    // One that brings a user namespace has all it needs in there.
    let own_users = plan.tree.processes.first().is_some_and(|root| root.places.of(&plan.tree.namespaces, Kind::User).is_some());
    let mut names: Vec<&'static str> = match (own_users, plan.pid_namespace) {
        (true, _) => vec![],
        (false, true) => vec!["CAP_SYS_ADMIN"],
        // Either will do for chosen pids.
        (false, false) if crate::check::lacking(&["CAP_SYS_ADMIN"]).is_empty() => vec![],
        (false, false) => vec!["CAP_CHECKPOINT_RESTORE"],
    };
    names.extend((!plan.addresses.is_empty()).then_some("CAP_NET_ADMIN"));
    let refuse = |(name, advice): (&str, String)| Refusal {
        object: format!("capability {name}"),
        reason: "the meio of the target does not have it".into(),
        advice,
        ..Refusal::default()
    };
    crate::check::lacking(&names).into_iter().map(refuse).collect()
}

/// Why this machine cannot have an address. `known`: who has it now.
pub fn cannot_have(address: &Address, known: &[Mac], probe: Probe) -> Option<Refusal> {
    let refuse = |reason: String, advice: &str| {
        Some(Refusal { object: format!("address {address}"), reason, advice: advice.to_owned(), ..Refusal::default() })
    };
    match address.is_up() {
        Err(e) => return refuse(e.message, "give the right interface of the target: --vip ADDRESS/LENGTH@INTERFACE"),
        Ok(true) => return refuse("it is here already".into(), "take it away first: ip address del …"),
        Ok(false) => {}
    }
    match address.probe(probe, known) {
        Ok(others) if !others.is_empty() => refuse("somebody else on the network has it".into(), "find out who: arping ADDRESS"),
        Ok(_) => None,
        Err(e) => refuse(e.message, "the interface must be up, and meio root"),
    }
}
