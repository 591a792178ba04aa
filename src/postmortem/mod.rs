//! What can be said of a saved tree without running it: the call stack of every thread, and core
//! files for a debugger. Everything comes out of the image; files that were mapped are read where
//! they are still the same.

mod cfi;
mod elf;
mod symbols;
mod unwind;
