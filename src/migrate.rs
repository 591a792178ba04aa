//! The migrate screenplay, at the source: agree, copy in rounds, switch over, confirm or take back.
//!
//! Who may run is decided by [`state`], which does nothing by itself; [`Source`] does what it says and tells it what came of
//! that. The target's half is in [`agent`].

pub mod address;
pub mod agent;
pub mod frozen;
pub mod message;
pub mod plan;
pub mod record;
mod resume;
mod rounds;
#[cfg(test)]
mod simulate;
mod source;
pub mod state;

pub use resume::take_up;
pub use source::{Ended, Options, Outcome, Policy, dry_run, run};
pub use state::Wish;

mod local;
mod spool;

/// Kind of the frames that carry a [`message::Frame`].
const MOVE: u16 = 0x100;
/// Kind of those that carry a [`plan::Remark`].
const REMARK: u16 = 0x101;
