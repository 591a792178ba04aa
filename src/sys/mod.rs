//! Linux as it is: thin, typed access to the kernel, and the only `unsafe` of the crate.

pub mod arch;
pub mod proc;
