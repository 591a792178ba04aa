//! The figures that are aimed at, in one table: what was wished for, and what it is here.

use super::{Bench, full, lazy, live, many, migrate, peer, small, watch, witness};

/// One row.
pub struct Figure {
    /// What is measured.
    pub what: String,
    /// What it should be.
    pub target: String,
    /// What it is.
    pub here: String,
    /// Whether that is reached; nothing when there is no target.
    pub holds: Option<bool>,
}

impl Figure {
    /// A row.
    pub fn new(what: &str, target: &str, here: String, holds: Option<bool>) -> Figure {
        Figure { what: what.into(), target: target.into(), here, holds }
    }
}

/// Gives one row or several that are measured together.
type Rows = fn(&Bench, usize) -> Vec<Figure>;

/// What measures those of one machine.
const LOCAL: &[Rows] = &[
    full::incompressible,
    full::mixed,
    live::while_it_runs,
    live::series,
    lazy::first_instruction,
    small::commands,
    many::processes,
    peer::criu,
];
/// Those of moves between machines.
const MOVES: &[Rows] = &[migrate::redis, migrate::idle, migrate::throughput];
/// Those of trees that outlive their host.
const WATCH: &[Rows] = &[
    watch::cost,
    watch::pages,
    watch::small,
    watch::large,
    watch::more::guarantees,
    watch::more::half,
    watch::more::idle,
    watch::more::stalls,
    witness::leases,
    watch::more::several,
    watch::roles::switched,
    watch::roles::witnessed,
    watch::roles::returns,
];

/// Measures and prints all of them, medians of `rounds`.
pub fn table(bench: &Bench, rounds: usize) {
    print(&[LOCAL, MOVES, WATCH].concat(), bench, rounds);
}

/// The same of moves between machines only.
pub fn moves(bench: &Bench, rounds: usize) {
    print(MOVES, bench, rounds);
}

/// The same of trees that outlive their host.
pub fn watch(bench: &Bench, rounds: usize) {
    print(WATCH, bench, rounds);
}

fn print(rows: &[Rows], bench: &Bench, rounds: usize) {
    println!("| what | target | here | |\n|---|---|---|---|");
    let wanted = |n: usize| bench.row.is_none_or(|row| row == n + 1);
    let rows = rows.iter().enumerate().filter(|(n, _)| wanted(*n));
    for Figure { what, target, here, holds } in rows.flat_map(|(_, rows)| rows(bench, rounds)) {
        let holds = holds.map_or("", |holds| if holds { "holds" } else { "**missed**" });
        println!("| {what} | {target} | {here} | {holds} |");
    }
    println!();
}
