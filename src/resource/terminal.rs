//! Terminals: modes, size, session and foreground group.

use serde::{Deserialize, Serialize};

/// A descriptor of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Index into [`super::Tree::terminals`].
    pub terminal: u32,
}

/// One terminal that the tree uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalState {
    /// Where it was, `/dev/pts/3`.
    pub path: String,
    /// Raw `struct termios2`.
    #[serde(with = "crate::image::bytes")]
    pub termios: Vec<u8>,
    /// Rows and columns.
    pub size: (u16, u16),
    /// The session that it controls, 0 for none.
    pub session: i32,
    /// The foreground process group, 0 for none.
    pub foreground: i32,
}
