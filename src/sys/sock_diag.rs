//! What the kernel tells of the sockets of a network namespace: sock_diag(7).

pub mod inet;
pub mod packets;
pub mod unix;

const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// `TCP_LISTEN`.
pub const LISTEN: u8 = 10;
