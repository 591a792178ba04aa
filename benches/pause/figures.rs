//! The figures that are aimed at, in one table: what was wished for, and what it is here.

use super::{Bench, full, lazy, live, many, peer, small};

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

/// What measures them; each gives one row or several that are measured together.
const ROWS: &[fn(&Bench, usize) -> Vec<Figure>] = &[
    full::incompressible,
    full::mixed,
    live::while_it_runs,
    live::series,
    lazy::first_instruction,
    small::commands,
    many::processes,
    peer::criu,
];

/// Measures and prints all of them, medians of `rounds`.
pub fn table(bench: &Bench, rounds: usize) {
    println!("| what | target | here | |\n|---|---|---|---|");
    for Figure { what, target, here, holds } in ROWS.iter().flat_map(|rows| rows(bench, rounds)) {
        let holds = holds.map_or("", |holds| if holds { "holds" } else { "**missed**" });
        println!("| {what} | {target} | {here} | {holds} |");
    }
    println!();
}
