//! What differs between processor architectures. One file each.

mod x86_64;
pub use x86_64::*;
