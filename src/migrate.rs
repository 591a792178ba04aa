//! The migrate screenplay, at the source: agree, copy in rounds, switch over, confirm or take back.
//!
//! ```text
//! preflight  what is found out before that; source: what the source does; rounds: images on their way; resume: a move that was left
//! agent      what the target does; spool: images as they come; plan: what each must know of the other
//! pull       pages that come after it runs, at the target; feed: the same at the source
//! state      who may run: two pure machines; simulate breaks everything around them
//!   message    what they say to each other; record: what is durable of that; frozen: a tree that stands still without meio
//! files      what the tree has open or mapped, and its data
//! address    what moves along; local: what cannot; room: how much is left of a machine
//! ```
//!
//! Who may run is decided by [`state`], which does nothing by itself; [`source`] does what it says and tells it what came of
//! that. The target's half is in [`agent`].

pub mod address;
pub mod agent;
mod feed;
pub mod files;
pub mod frozen;
pub mod local;
pub mod message;
mod outcome;
pub mod plan;
mod preflight;
mod pull;
pub mod record;
mod resume;
pub mod room;
pub mod rounds;
#[cfg(test)]
pub mod simulate;
mod source;
mod spool;
pub mod state;

pub use outcome::{Ended, Outcome};
pub use preflight::dry_run;
pub use resume::take_up;
pub use source::{Options, Policy, run};
pub use state::Wish;

/// Kind of the frames that carry a [`message::Frame`].
const MOVE: u16 = 0x100;
/// Kind of those that carry a [`plan::Remark`].
const REMARK: u16 = 0x101;
/// Kind of the one that asks for a [`room::Room`], and of the answer.
const ROOM: u16 = 0x103;
/// Kind of those that ask for a block of pages, or carry it: see [`pull`].
const PAGES: u16 = crate::transport::BESIDE;
