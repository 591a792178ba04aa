//! What can be said of a saved tree without running it: the call stack of every thread, and core
//! files for a debugger. Everything comes out of the image; files that were mapped are read where
//! they are still the same.

mod cfi;
mod core;
mod elf;
mod memory;
mod notes;
mod stacks;
mod symbols;
mod unwind;
mod xsave;

pub use self::core::core;
pub use self::memory::Contents;
pub use self::stacks::{Frame, ThreadStack, stacks};

#[cfg(test)]
mod tests;
