//! What this machine allows.
