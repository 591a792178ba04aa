//! Every integration test, in one binary: it links once, and its modules run side by side.

mod bad_input;
mod capsules;
mod chains;
mod closing;
mod commands;
mod datagrams;
mod demo;
mod drain;
mod fixtures;
mod foreign;
mod generated;
mod hostile;
mod invisible;
mod ipc;
mod kernels;
mod lab;
mod lazy;
mod listening;
mod migrate;
mod moved_files;
mod netlock;
mod postmortem;
mod programs;
mod readme;
mod refusals;
mod sockets;
mod steady;
mod survive;
mod terminal;
mod tidy;
mod transport;
mod warned;
mod watch;

/// The program under test.
const MEIO: &str = env!("CARGO_BIN_EXE_meio");
/// The repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
