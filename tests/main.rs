//! All integration tests in one binary.

mod fixtures;
mod lab;
mod programs;
