//! Full dumps of large memory, and their restores.

use super::figures::Figure;
use super::{Bench, Load, Run, file_system, median, ms};
use std::path::Path;

const TMPFS: &str = "/dev/shm";

/// Random bytes to memory: pause, restore, and what meio itself takes.
pub fn incompressible(bench: &Bench, rounds: usize) -> Vec<Figure> {
    const MIB: u64 = 1024;
    let mut figures = Vec::new();
    for (level, said) in [("none", "`--compress none`"), ("1", "default compression")] {
        let (speeds, runs) = measured(bench, MIB, level, Path::new(TMPFS), rounds);
        let [touched, _, touch] = speeds;
        let of = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
        let most = |what: fn(&Run) -> f64| runs.iter().map(what).fold(0.0, f64::max);
        let (pause, restore) = (of(|r| r.pause), of(|r| r.restore));
        let target = format!("≤ 1.3 × memcpy = {}", ms(1.3 * touched));
        let what = format!("pause, full dump of 1 GiB incompressible, stop-and-copy to tmpfs, {said}");
        figures.push(Figure::new(&what, &target, format!("{} = {:.2} ×", ms(pause), pause / touched), Some(pause <= 1.3 * touched)));
        let (own, peak) = (most(|r| r.own_kib) / 1024.0, most(|r| r.peak_kib) / 1024.0);
        let here = format!("{own:.0} MiB ({peak:.0} MiB with what it maps of files, the image among them)");
        let room = 64.0 + MIB as f64 / 100.0;
        figures.push(Figure::new("meio's memory in that", &format!("≤ 64 MiB + 1 % = {room:.0} MiB"), here, Some(own <= room)));
        if level == "none" {
            let target = format!("≤ 1.2 × first touch = {}", ms(1.2 * touch));
            let here = format!("{} = {:.2} ×", ms(restore), restore / touch);
            figures.push(Figure::new("restore of that", &target, here, Some(restore <= 1.2 * touch)));
        }
    }
    figures
}

/// A heap as programs have it, to disk.
pub fn mixed(bench: &Bench, rounds: usize) -> Vec<Figure> {
    const MIB: u64 = 1024;
    let folder = bench.folder.path();
    let runs: Vec<Run> = (0..=rounds).map(|_| bench.round(Load::Mixed(MIB), "1", folder)).skip(1).collect();
    let of = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
    let speed = MIB as f64 / of(|r| r.dump_command) * 1e3;
    let here = format!(
        "{speed:.0} MiB/s: {} in all, pause {}, image {:.0} MiB",
        ms(of(|r| r.dump_command)),
        ms(of(|r| r.pause)),
        of(|r| r.image) / 1048576.0
    );
    let what = format!("whole dump, 1 GiB of mixed heap (text, pointers, zeros), default compression, to disk ({})", file_system(folder));
    vec![Figure::new(&what, "≥ 600 MiB/s", here, Some(speed >= 600.0))]
}

/// All of it: sizes, levels, places.
pub fn table(bench: &Bench, sizes: &[u64], rounds: usize) {
    let disk = format!("disk ({})", file_system(bench.folder.path()));
    println!(
        "| memory | `--compress` | image on | memcpy to touched | memcpy to fresh | first touch | **pause** | × memcpy touched | × memcpy fresh | dump in all | image | meio's peak | of it own | **restore** | × first touch |"
    );
    println!("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for &mib in sizes {
        for level in ["none", "1"] {
            for (name, folder) in [("tmpfs", Path::new(TMPFS)), (disk.as_str(), bench.folder.path())] {
                println!("{}", row(bench, mib, level, name, folder, rounds));
            }
        }
    }
    println!();
}

/// What the machine needs to copy to touched, to copy to fresh and to touch so much memory; and runs, in between.
fn measured(bench: &Bench, mib: u64, level: &str, folder: &Path, rounds: usize) -> ([f64; 3], Vec<Run>) {
    let mut speeds: [Vec<f64>; 3] = Default::default();
    let mut runs = Vec::new();
    for round in 0..=rounds {
        // The first one counts for nothing: a virtual machine's memory is often not there before it was used.
        let speed = bench.speed(mib);
        let run = bench.round(Load::Memory(mib, 1), level, folder);
        if round > 0 {
            speeds.iter_mut().zip(speed).for_each(|(all, one)| all.push(one));
            runs.push(run);
        }
    }
    (speeds.map(median), runs)
}

fn row(bench: &Bench, mib: u64, level: &str, name: &str, folder: &Path, rounds: usize) -> String {
    let ([touched, fresh, touch], runs) = measured(bench, mib, level, folder, rounds);
    let of = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
    let most = |what: fn(&Run) -> f64| runs.iter().map(what).fold(0.0, f64::max);
    let (pause, restore) = (of(|r| r.pause), of(|r| r.restore));
    format!(
        "| {} | {} | {name} | {} | {} | {} | **{}** | {:.1} | {:.1} | {} | {:.0} MiB | {:.0} MiB | {:.0} MiB | **{}** | {:.1} |",
        if mib >= 1024 && mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") },
        if level == "1" { "1 (default)" } else { level },
        ms(touched),
        ms(fresh),
        ms(touch),
        ms(pause),
        pause / touched,
        pause / fresh,
        ms(of(|r| r.dump)),
        of(|r| r.image) / 1048576.0,
        most(|r| r.peak_kib) / 1024.0,
        most(|r| r.own_kib) / 1024.0,
        ms(restore),
        restore / touch,
    )
}
