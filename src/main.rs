//! meio checkpoints and restores running Linux process trees from outside.

mod error;
mod image;
mod resource;
mod sys;
mod tracee;

fn main() {}
