//! Resource limits, getrlimit(2).

use serde::{Deserialize, Serialize};

/// Soft and hard limit of each `RLIMIT_*`, by its number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Limits(pub Vec<(u64, u64)>);
