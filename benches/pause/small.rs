//! Small programs: what is left when there is no memory to speak of.

use super::figures::Figure;
use super::{Bench, Load, Run, median, ms};
use std::path::Path;

fn runs(bench: &Bench, load: Load, rounds: usize) -> Vec<Run> {
    (0..=rounds).map(|_| bench.round(load, "1", Path::new("/dev/shm"))).skip(1).collect()
}

/// Whole commands on a program of 1 MiB.
pub fn commands(bench: &Bench, rounds: usize) -> Vec<Figure> {
    let runs = runs(bench, Load::Memory(1, 1), rounds);
    let of = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
    let (dump, restore) = (of(|r| r.dump_command), of(|r| r.restore_command));
    let figure = |what: &str, time: f64, also: String| {
        Figure::new(&format!("{what} of a 1 MiB program, from exec to exit"), "≤ 12 ms", format!("{}{also}", ms(time)), Some(time <= 12.0))
    };
    vec![figure("dump", dump, format!(", pause {}", ms(of(|r| r.pause)))), figure("restore", restore, String::new())]
}

/// Programs with little memory, but many threads or descriptors.
pub fn table(bench: &Bench, rounds: usize) {
    println!("| program | pause | dump, exec to exit | restore, exec to exit |\n|---|--:|--:|--:|");
    let loads = [
        ("1 MiB of memory", Load::Memory(1, 1)),
        ("1 MiB of memory, 200 threads", Load::Memory(1, 200)),
        ("1,000 descriptors of eight kinds", Load::Descriptors(1000)),
    ];
    for (name, load) in loads {
        let runs = runs(bench, load, rounds);
        let time = |what: fn(&Run) -> f64| ms(median(runs.iter().map(what).collect()));
        println!("| {name} | {} | {} | {} |", time(|r| r.pause), time(|r| r.dump_command), time(|r| r.restore_command));
    }
}
