//! meio checkpoints and restores running Linux process trees, from outside: no preload, no kernel module, no daemon,
//! no program that was made ready for it.
//!
//! # Bird's-eye view
//!
//! A *tree* of processes is frozen by ptrace(2), everything that the kernel keeps for it is read (`/proc`, ptrace,
//! pidfd_getfd(2), and a few system calls that a stopped task is made to run), and written as an *image*: one stream
//! of sections. The injected calls run in instructions that the program has anyway, with a signal frame on dead bytes
//! of its stack as the way back, so that nothing is mapped into it and it heals itself if meio dies
//! ([`tracee::foothold`]). To restore, meio *plants*: a *stub* that never runs an instruction of its own bears
//! threads and children with `clone3(set_tid)`; *scripts* (tables of system calls) give each its memory, files and
//! state; then registers are set and all are let go together ([`tracee::stub`]).
//!
//! ```text
//! cli          parses, prints, colours, exits; one file a command
//!   drain      everything goes to other machines, one after the other
//!   watch      the screenplay that goes on when a machine is lost; who answers is two pure state machines
//!   migrate    the screenplay that is played on two machines; who may run is a pure state machine
//!   dump, restore, check, postmortem      screenplays: short lists of named, timed phases
//!     capsule    who lives in namespaces of meio's making, by name
//!     netlock    nothing answers for connections whose tree stands still or is gone
//!     transport  frames and bulk between two meios on two hosts: ssh, TLS, versions
//!     resource   what a process is made of; one file a kind: saved type, capture, restore
//!       tracee     holding a task and making it act: freeze, scripts, memory, planting
//!         image      the format: bytes in, bytes out     (touches no kernel)
//!         sys        Linux as it is, typed and thin      (the only `unsafe`)
//! error, progress   words that every layer may use
//! ```
//!
//! # Invariants
//!
//! * Arrows point down; `tests/tidy.rs` reads every `crate::` path and holds them.
//! * On failure the source tree runs as before (dump), or nothing was started (restore).
//! * What cannot be saved is named *at once*, before anything is touched: pid, object, reason, advice.
//! * After meio ends, however it ends, nothing of it is left in the tree: no mapping, no changed register.
//! * `unsafe` lives under `sys`; every block says why it is sound.
//! * Nothing below `cli` prints; screenplays report to [`progress::Report`].
//! * [`image`] never touches a kernel, bounds every length before it allocates, and answers damage with exit code 14.
//! * Two kinds of resource never import each other: what they share has a number in [`resource::Tree`].
//! * The exit code *is* [`error::Kind`]; man pages and completions are generated from the command definitions.
//!
//! # Deliberately absent
//!
//! No async runtime and no thread for each tracee (ptrace binds a tracee to one thread, so one loop serves all). No
//! code blob with its own libc inside the tracee: logic stays in ordinary Rust outside. No configuration but the
//! options of a watch, no daemon, no plug-ins. No options at restore that repeat what the dump knew. No table of kernel
//! versions: features are probed, never guessed.

mod capsule;
mod check;
mod cli;
mod drain;
mod dump;
mod error;
mod image;
mod migrate;
mod netlock;
mod postmortem;
mod progress;
mod resource;
mod restore;
mod sys;
mod tracee;
mod transport;
mod watch;

fn main() -> std::process::ExitCode {
    // Before there are threads it takes no time.
    sys::file::make_room(1024);
    cli::main()
}
