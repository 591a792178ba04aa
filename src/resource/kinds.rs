//! All kinds of kernel object, whether meio keeps them, and which test shows it. The README's table is made of this.

use serde::Serialize;

/// How far a kind is supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It comes back.
    Supported,
    /// It comes back, but for what the sentence names.
    Partly,
    /// It is named and refused.
    Refused,
}

/// One kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// Its name, as the graph and the lists have it.
    pub name: &'static str,
    /// How far it is supported.
    pub status: Status,
    /// What comes back, or why it does not.
    pub says: &'static str,
    /// Lines of `tests/fixtures.rs` that show that it comes back, or tests that provoke the refusal.
    pub shown_by: &'static [&'static str],
}

use Status::{Partly, Refused, Supported};

macro_rules! kinds {
    ($($name:literal, $status:ident, $says:literal, [$($test:literal),*];)*) => {
        /// All kinds, one line each.
        pub const KINDS: &[Kind] = &[$(Kind { name: $name, status: $status, says: $says, shown_by: &[$($test),*] }),*];
    };
}

kinds! {
    "process", Supported, "pids, parents, stopped ones, zombies, orphans, any number of threads", ["tree", "zombies", "stopped", "threads_1000"];
    "session", Supported, "same number, same leader", ["tree"];
    "process group", Supported, "same number, same members", ["tree"];
    "mapped file", Supported, "mapped again from its path; private changes travel in the image", ["filemap"];
    "shared memory", Supported, "one object for all that map it", ["anonymous"];
    "memfd", Supported, "content, name, seals", ["memfd"];
    "deleted file", Supported, "content travels in the image", ["deleted"];
    "file", Supported, "path, flags, offset shared as before, locks", ["files", "locks"];
    "directory", Supported, "opened again by its path, with its position", ["directory", "folders"];
    "path", Supported, "`O_PATH` descriptors, opened again by path", ["files"];
    "pipe", Supported, "unread content, packet borders, size", ["pipes"];
    "FIFO", Supported, "the same, through its path", ["fifo"];
    "device", Supported, "null, zero, full, random, urandom", ["devices"];
    "terminal", Partly, "modes, size, session, foreground group; the master side is refused", [];
    "epoll", Supported, "what it watches, with the program's own words", ["waits_in_epoll"];
    "eventfd", Supported, "its value, semaphore or not", ["eventfd"];
    "timerfd", Supported, "every clock; time left, interval, expirations not yet read", ["timerfd"];
    "signalfd", Supported, "its mask", ["signalfd"];
    "seccomp", Supported, "strict mode and filters of each thread", ["seccomp"];
    "refused", Refused, "what has no kind of its own yet", [];
}

/// The kind of this name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.name == name)
}
