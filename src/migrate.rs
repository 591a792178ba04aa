//! Moving a tree to another machine.

pub mod address;
pub mod frozen;
pub mod message;
pub mod record;
#[cfg(test)]
mod simulate;
pub mod state;
