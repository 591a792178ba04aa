//! Watching.

mod beat;
mod frame;
mod record;
#[cfg(test)]
mod simulate;
mod state;
