//! What a target must know of a tree before it comes, and what it answers.

use super::address::{Address, Probe};
use crate::dump;
use crate::error::{Error, Kind, Refusal, Result};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::resource::{Manifest, Tree};
use crate::restore::fits::{Needs, fits};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The tree as it was seen while it ran, and how it is to come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Where it is from.
    pub manifest: Manifest,
    /// What it is made of.
    pub tree: Tree,
    /// Bytes of its memory.
    pub memory: u64,
    /// It is to live in a pid namespace of its own.
    pub pid_namespace: bool,
    /// Addresses that move with it.
    pub addresses: Vec<Address>,
    /// Ethernet addresses under which these are reached now.
    pub neighbours: Vec<[u8; 6]>,
    /// Where its images are put meanwhile.
    pub spool: PathBuf,
    /// Only whether it could come is asked.
    pub dry_run: bool,
}

/// What was found at the target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Details {
    /// What stands in the way.
    pub refusals: Vec<Refusal>,
    /// What will be different there.
    pub warnings: Vec<String>,
}

/// What the target says beside the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Remark {
    /// Blocks of pages that are not in the last image, after those that were named before: the pid of each, and address and number
    /// of its ranges.
    Left(Vec<(i32, Vec<(u64, u32)>)>),
    /// The image of this number is the last one, and stands for a tree that stands still.
    Last(u64),
    /// Something is different there.
    Warning(String),
    /// Something that only a curious user wants to know.
    Note(String),
    /// A phase there and its time in microseconds.
    Phase(String, u64),
    /// Packets that came for the tree where it stands still, from the IP header on.
    Packets(Vec<Bytes>),
    /// Pid of the root there.
    Root(i32),
}

impl Plan {
    /// Of a tree as it is seen while it runs; how many processes and threads it has.
    ///
    /// # Errors
    /// With all that stands in the way here.
    pub fn of(dump: &dump::Options, addresses: &[Address], spool: &Path) -> Result<(Plan, (u32, u32))> {
        let pid = dump.pid;
        let mut look = dump::preflight(pid, &dump.decisions)?;
        look.refusals.extend(super::local::stays_behind(&look.tree, addresses));
        if look.refusals.iter().any(|r| !r.transient) {
            return Err(Error::refused(&format!("cannot move process {pid}"), look.refusals));
        }
        let mut neighbours = Vec::new();
        for address in addresses {
            if !address.is_up()? {
                return Err(
                    Error::new(Kind::NotFound, format!("the address {address} is not here")).help("ip address shows those that are")
                );
            }
            neighbours.extend(address.mac()?);
        }
        let counts = (look.tree.processes.len() as u32, look.tree.processes.iter().map(|p| p.threads.len().max(1) as u32).sum());
        let manifest: Manifest = dump::manifest(pid, dump.capsule.clone())?;
        let memory = dump::extent(pid).1;
        let (addresses, spool) = (addresses.to_vec(), spool.to_owned());
        Ok((Plan { manifest, tree: look.tree, memory, pid_namespace: false, addresses, neighbours, spool, dry_run: false }, counts))
    }

    /// Everything that stands in the way of it at the target, which this is.
    pub fn check(&self) -> Result<Details> {
        let arriving: Vec<(IpAddr, u8)> = self.addresses.iter().map(|a| (a.ip, a.length)).collect();
        let needs = Needs { pid_namespace: self.pid_namespace, arriving: &arriving, memory: self.memory, spool: &self.spool };
        let found = fits(&self.manifest, &self.tree, needs)?;
        // Who only looks has the time to ask thoroughly.
        let probe = if self.dry_run { Probe::CAREFUL } else { Probe::QUICK };
        let mut details = Details { refusals: found.refusals, warnings: found.warnings };
        details.refusals.extend(self.addresses.iter().filter_map(|a| super::local::cannot_have(a, &self.neighbours, probe)));
        details.refusals.extend(super::local::not_allowed(self));
        Ok(details)
    }
}

/// Writes what is sent.
pub fn pack<T: Serialize>(what: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ciborium::into_writer(what, &mut bytes).map_err(|e| Error::other(format!("cannot write a message: {e}")))?;
    Ok(bytes)
}

/// Reads what came.
pub fn unpack<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T> {
    ciborium::from_reader(bytes).map_err(|e| Error::other(format!("the other end sent what makes no sense: {e}")))
}
