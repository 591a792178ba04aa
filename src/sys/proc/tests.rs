//! Tests over whole fixtures.
