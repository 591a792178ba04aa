//! Pipes and FIFOs with what is inside them.

use serde::{Deserialize, Serialize};

/// One end of a pipe; ends with the same `pipe` belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipeEnd {
    /// Index into [`super::Tree::pipes`].
    pub pipe: u32,
}

/// One pipe or FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipe {
    /// Path of a FIFO; `None` for a pipe.
    pub path: Option<String>,
    /// `F_GETPIPE_SZ` in bytes.
    pub size: u32,
    /// Unread content; in packet mode (`O_DIRECT`) one element a packet.
    pub content: Vec<super::thread::serde_bytes_vec::Bytes>,
}
