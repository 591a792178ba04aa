//! Watching.

pub mod agent;
mod beat;
mod frame;
mod lease;
pub mod protect;
mod record;
mod setup;
#[cfg(test)]
mod simulate;
pub mod state;
