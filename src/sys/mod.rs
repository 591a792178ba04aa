//! Linux as it is: thin, typed access to the kernel, and the only `unsafe` of the crate.

#![allow(unsafe_code)]

pub mod anon;
pub mod apart;
pub mod arch;
pub mod calls;
pub mod capsule;
pub mod clock;
#[cfg(test)]
pub mod counting_alloc;
pub mod datagram;
pub mod durable;
pub mod ear;
pub mod feature;
pub mod file;
pub mod guardian;
pub mod handle;
pub mod heap;
pub mod inet;
pub mod ipc;
pub mod manager;
pub mod memory;
pub mod missing;
pub mod mount;
pub mod mqueue;
pub mod namespace;
pub mod neighbour;
pub mod netlink;
pub mod nfqueue;
pub mod nft;
pub mod notify;
pub mod pagemap;
pub mod priority;
pub mod proc;
pub mod ptrace;
pub mod pty;
pub mod region;
pub mod room;
pub mod seccomp;
pub mod server;
pub mod signal;
pub mod sock_diag;
pub mod socket;
pub mod spawn;
pub mod task;
pub mod tcp;
pub mod tun;
pub mod userfaultfd;
pub mod wire;
pub mod workers;
pub mod xattr;
