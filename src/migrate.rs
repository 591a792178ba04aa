//! Moving a tree to another machine.

pub mod message;
#[cfg(test)]
mod simulate;
pub mod state;
