//! What a target must know of a tree before it comes, and what it answers.

use super::address::Address;
use super::files;
use crate::error::{Error, Refusal, Result};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::resource::{Manifest, Tree};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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
    /// Files that it needs.
    #[serde(default)]
    pub files: files::Request,
}

/// What was found at the target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Details {
    /// What stands in the way.
    pub refusals: Vec<Refusal>,
    /// What will be different there.
    pub warnings: Vec<String>,
    /// How it stands with the files.
    #[serde(default)]
    pub files: files::Reply,
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
    /// The image of this number has come, with all before it.
    Have(u64),
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
