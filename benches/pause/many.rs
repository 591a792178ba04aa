//! Many processes.

use super::figures::Figure;
use super::{Bench, Load, Run, median, ms};
use std::path::Path;

/// 200 of 5 threads each.
pub fn processes(bench: &Bench, rounds: usize) -> Vec<Figure> {
    let runs: Vec<Run> = (0..=rounds).map(|_| bench.round(Load::Many(200, 5), "1", Path::new("/dev/shm"))).skip(1).collect();
    let of = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
    let (pause, restore) = (of(|r| r.pause), of(|r| r.restore));
    vec![
        Figure::new("200 processes × 5 threads: dump pause", "≤ 250 ms", ms(pause), Some(pause <= 250.0)),
        Figure::new("the same: restore", "≤ 500 ms", ms(restore), Some(restore <= 500.0)),
    ]
}
