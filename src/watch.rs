//! The watch screenplay: a tree that outlives its host. Epoch after epoch goes to a standby, which goes on when nothing is heard
//! of the primary any more.
//!
//! ```text
//! protect    what the primary does; lease: its address, in the hands of a child of meio
//! agent      what the standby does
//!   fit        whether it can be; setup: what they say to each other before; frame: what they say then, as bytes
//!   beat       heartbeats beside the link; fence: the command that ends the other host
//! state      who answers: two pure machines; simulate breaks everything around them
//!   notice     silence on two paths, and jitter; pace: when an epoch begins
//! record     what is durable of it, on each host
//! ```
//!
//! Who answers is decided by [`state`], which does nothing by itself; [`protect`] and [`agent`] do what it says and tell it what
//! came of that.
//!
//! # The path of an epoch
//!
//! On the primary one thread belongs to the tree (ptrace binds it to one) and makes an image of what has changed
//! ([`crate::dump::moving::Moving::round`]) into a pipe that ends in the streams of the transport; another one belongs to the
//! machine, the link and the heartbeats, and is never kept waiting by the tree. What an image is called (series, number, whether
//! one may take over from it) goes over the link behind it. The standby puts images into its spool as they come, finds out where
//! the newest copy of each page is ([`crate::image::Resolved`], one image at a time, so that nothing has to be read again at the
//! take-over), and takes those away of which no page is the newest. Taking over is a lazy restore from the last whole one: it
//! runs before its memory is there.
//!
//! # What is not here yet, and where it goes
//!
//! * [`state::Guarantee::Hold`]: the machines know it. `protect` needs a hold of outgoing packets ([`crate::netlock`]) that is in
//!   place before [`state::Action::Capture`] copies anything, a mark in it for each epoch, and its release at
//!   [`state::Action::Release`]; without meio the queue drops what is in it, which is what is wanted.
//! * A clone that is planted and kept up to date instead of a spool that is restored from: [`state::Action::Keep`] is where it is
//!   brought up to an epoch, [`state::Action::Place`] where it must be at one.
//! * A link that is made again: the machines take [`state::Event::LinkLost`] and its opposite, and send again what is not known
//!   to be whole, for which `protect` must keep the copies until [`state::Action::Release`] or [`state::Action::Discard`].

pub mod agent;
mod beat;
mod fence;
mod fit;
mod frame;
pub mod gate;
mod lease;
pub mod protect;
mod record;
mod setup;
#[cfg(test)]
mod simulate;
pub mod state;
