//! The migrate screenplay, at the source: agree, copy in rounds, switch over, confirm or take back.
//!
//! Who may run is decided by [`state`], which does nothing by itself; [`Source`] does what it says and tells it what came of
//! that. The target's half is in [`agent`].

pub mod address;
pub mod agent;
pub mod frozen;
pub mod message;
pub mod plan;
mod rounds;
#[cfg(test)]
mod simulate;
mod source;
pub mod state;

pub use source::{Ended, Options, Outcome, Policy, dry_run, run};
pub use state::Wish;

mod local;
mod spool;
mod verdicts;

/// Kind of the frames that carry a [`message::Frame`].
const MOVE: u16 = 0x100;
/// Kind of those that carry a [`plan::Remark`].
const REMARK: u16 = 0x101;

/// A move's name as people write it.
pub fn name(id: &message::Id) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

/// Takes up a move that was left.
pub fn take_up(_: &str, _: Wish, _: &crate::transport::How, _: &mut dyn crate::progress::Report) -> crate::error::Result<String> {
    Err(crate::error::Error::other("not yet"))
}
