//! Character devices without state of their own: null, zero, full, random, urandom, the controlling terminal's alias.

use serde::{Deserialize, Serialize};

/// A device that is simply opened again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Absolute path.
    pub path: String,
    /// Major and minor number, checked at restore.
    pub number: (u32, u32),
}
