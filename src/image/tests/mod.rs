//! Tests of the whole format. Those of one part stand with it.

mod round_trip;
mod sample;
