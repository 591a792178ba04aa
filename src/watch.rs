//! Watching.

#[cfg(test)]
mod simulate;
mod state;
