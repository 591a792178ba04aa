//! What the two ends say to each other before the watch begins, and what frames of the link carry then.

use super::state::{Limits, Mark, Part};
use super::witness::Contact;
use crate::migrate::address::Address;
use crate::migrate::plan::{Details, Plan};
use crate::resource::capture::Decisions;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Kind of the frames of the link that carry a [`Setup`].
pub const SETUP: u16 = 0x110;
/// Kind of those that carry a [`super::state::Frame`] as [`super::frame`] writes it.
pub const WORD: u16 = 0x111;
/// Kind of those that carry an [`Epoch`].
pub const EPOCH: u16 = 0x112;

/// Kind of those by which somebody at the standby has asked for the end of the watch.
pub const OVER: u16 = 0x113;
/// Kind of those that carry packets which came for the tree where it stands still, from the IP header on.
pub const PACKETS: u16 = 0x114;
/// Kind of those that say, in words, why the standby could not take over as it was asked to.
pub const WHY: u16 = 0x115;
/// Kind of those that have one of several standbys give up what it has, for a copy of everything.
pub const ANEW: u16 = 0x116;
/// Kind of those that carry what an end knows of all hosts ([`super::nodes`]). Who does not know them does not heed them.
pub const NODES: u16 = 0x117;

/// Kind of those that say that another watch of that name follows, with who has them: it is called.
pub const MORE: u16 = 0x118;

/// The words of the beginning, in their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Setup {
    /// Primary: this is to be watched.
    Ask {
        /// Name of the watch.
        name: String,
        /// Which one of that name.
        watch: u128,
        /// What the tree needs.
        plan: Box<Plan>,
        /// For the heartbeats of these two processes.
        key: [u8; 32],
        /// Of the primary; 0 when the watch begins.
        generation: u64,
        /// Of the last standby that it has known.
        known: u64,
        /// This primary has never spoken to who stands by there, if somebody does.
        fresh: bool,
        /// Others stand by, too.
        #[serde(default)]
        several: bool,
    },
    /// Standby: what stands in the way, and who it is.
    Answer {
        /// What stands in the way of the tree.
        details: Details,
        /// The generation on record here.
        generation: u64,
        /// Which process for this watch it is.
        instance: u64,
        /// Where it hears heartbeats.
        port: u16,
        /// What is to be said to come back when the link is lost.
        token: String,
        /// It was taken over here, and runs.
        #[serde(default)]
        runs: bool,
        /// Where it hears other standbys; 0 where there are none.
        #[serde(default)]
        polls: u16,
    },
    /// Standby, the one that has been there before: it goes on with what it has.
    Going {
        /// Its own: higher than the primary's when it has taken over.
        generation: u64,
        /// Which process for this watch it is.
        instance: u64,
        /// How many images are here.
        images: u64,
        /// Where it hears heartbeats that a fresh primary has given a key for.
        port: u16,
        /// It was taken over here, and runs.
        #[serde(default)]
        runs: bool,
    },
    /// A former primary, or one that stands by since then: it calls whoever runs it now.
    Returns(Box<Returns>),
    /// Who runs it: the host that is called is to stand by for it, and to call back.
    Invite(Box<Seat>),
    /// The answer where nobody runs it there.
    Nobody,
    /// The answer where it was ended, or goes on without the host that asks: nobody is to be asked any more.
    Over,
    /// The answer where it cannot be protected yet: it is to be asked again.
    NotYet {
        /// What is waited for, in words.
        why: String,
    },
    /// The answer where another process has it: what is to be said to come to that one.
    There {
        /// See [`crate::transport::Door`].
        token: String,
    },
    /// Primary: it begins.
    Begin {
        /// Higher than all on record.
        generation: u64,
        /// What the user chose.
        limits: Limits,
        /// The command that ends the primary's host.
        fence: Option<String>,
        /// What leads to the witness.
        #[serde(default)]
        witness: Option<Contact>,
        /// The command that is told of what happens.
        on_event: Option<String>,
        /// What leads to the others who stand by.
        #[serde(default)]
        seat: Option<Box<Seat>>,
    },
}

/// What one of several standbys is told of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seat {
    /// Which of them it is, from 0.
    pub place: usize,
    /// Of what they say to each other.
    pub key: [u8; 32],
    /// Where each of them hears the others,
    pub at: Vec<SocketAddr>,
    /// and how the primary logs in there.
    pub hosts: Vec<String>,
    /// The system's client and its options.
    pub ssh: Option<String>,
    /// Key files,
    pub identity: Vec<PathBuf>,
    /// and known hosts, where they are at the primary.
    pub known_hosts: Option<PathBuf>,
    /// meio there.
    pub remote_path: String,
    /// How the primary is logged in to,
    #[serde(default)]
    pub home: String,
    /// and hosts that belong to it, and are not there.
    #[serde(default)]
    pub away: Vec<String>,
    /// Those that have no part in it any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// What it says to the one that has taken over, to stand by for it.
    pub returns: Returns,
}

/// Who stands by where the tree ran before, or runs now: with all that is to be known to protect it by that host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Returns {
    /// Name of the watch.
    pub name: String,
    /// The highest generation that it has heard of.
    pub generation: u64,
    /// Which process for this watch it is; 0 where there is none yet.
    pub instance: u64,
    /// It has taken over, with that generation, and runs there.
    pub runs: bool,
    /// Addresses that go with the tree.
    pub addresses: Vec<Address>,
    /// It is to live in a pid namespace of its own where it goes on.
    pub pid_namespace: bool,
    /// Where the standby keeps its copy; empty for memory.
    pub spool: PathBuf,
    /// What the user chose.
    pub limits: Limits,
    /// The command that ends the other host.
    pub fence: Option<String>,
    /// What leads to the witness.
    pub witness: Option<Contact>,
    /// The command that is told of what happens.
    pub on_event: Option<String>,
    /// Name of the capsule that it is.
    pub capsule: Option<String>,
    /// zstd level of the pages; `None` for raw ones.
    pub level: Option<i32>,
    /// How long to wait for every task to stop.
    pub freeze_timeout: Duration,
    /// What was decided about things that would be refused.
    pub decisions: Decisions,
    /// Where several stand by: how the host is logged in to that says so,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub at: String,
    /// and the others that belong to it, without the one that is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ring: Vec<String>,
}

/// An epoch was given to the streams as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Of the primary.
    pub generation: u64,
    /// Which.
    pub mark: Mark,
    /// One may take over from it,
    pub ready: bool,
    /// Which of the images on the streams it is, from 1.
    pub image: u64,
    /// or not yet.
    #[serde(default)]
    pub part: Part,
}
