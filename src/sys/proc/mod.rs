//! The texts of proc(5): one pure parser per file, and [`read`], which fetches
//! the bytes. A parser takes whatever bytes it is given, never opens a file,
//! and never panics: process names and paths are under the control of the
//! processes looked at, and need not be UTF-8.

/// The bytes of a text under fixtures/proc, each taken from or written after the kernel it is named for.
#[cfg(test)]
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/proc/", $name)).as_slice()
    };
}

pub mod ahead;
pub mod children;
pub mod fdinfo;
pub mod limits;
pub mod maps;
pub mod mountinfo;
pub mod read;
pub mod sched;
pub mod stat;
pub mod status;
pub mod syscall;
pub mod sysvipc;
pub mod text;
pub mod timer_list;
pub mod timers;

#[cfg(test)]
mod tests;
