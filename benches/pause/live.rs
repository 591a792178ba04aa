//! Dumps of a program that writes into its memory all the time: `--live`, and the images of a series.

use super::figures::Figure;
use super::{Bench, MEIO, end, median, ms, until};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that writes.
struct Writer {
    child: Child,
    board: PathBuf,
}

impl Writer {
    fn start(bench: &Bench, mib: u64, rate: u64) -> Writer {
        let path = |name: &str| bench.folder.path().join(name);
        let (program, ready, board) = (path("writer"), path("writer.ready"), path("writer.board"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/writer.c");
        let made = Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&program).arg(source).status();
        assert!(made.expect("cc starts").success(), "writer.c does not compile");
        let _ = fs::remove_file(&ready);
        fs::write(&board, [0; 4096]).expect("board");
        let mut command = Command::new("setsid");
        // Not before everybody else, should the bench be: it never waits.
        command.args(["chrt", "--other", "0"]).arg(&program).arg(&ready).arg(&board).arg(mib.to_string()).arg(rate.to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("setsid(1) starts");
        until(|| ready.exists());
        Writer { child, board }
    }

    fn written(&self) -> u64 {
        let mut word = [0; 8];
        File::open(&self.board).and_then(|f| f.read_exact_at(&mut word, 0)).expect("board");
        u64::from_le_bytes(word)
    }

    /// Pages that it writes in a second, over this time.
    fn speed(&self, time: Duration) -> f64 {
        let (begin, before) = (Instant::now(), self.written());
        std::thread::sleep(time);
        (self.written() - before) as f64 / begin.elapsed().as_secs_f64()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The results of one run of meio, one for each image.
fn run(bench: &Bench, arguments: &[&str]) -> Vec<serde_json::Value> {
    let err = bench.folder.path().join("err");
    let mut command = Command::new(MEIO);
    command.args(["--json", "dump"]).args(arguments).stdin(Stdio::null()).stderr(File::create(&err).expect("file"));
    let out = command.output().expect("meio starts");
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), fs::read_to_string(err).unwrap_or_default());
    let lines = String::from_utf8(out.stdout).expect("text");
    let values = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    values.filter(|v| v["type"] == "result").collect()
}

fn number(value: &serde_json::Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("{name} in {value}"))
}

/// `--live` with 1 GiB of which 20,000 random pages are written a second; what it costs a program that does nothing but
/// write.
pub fn while_it_runs(bench: &Bench, rounds: usize) -> Vec<Figure> {
    let image = "/dev/shm/bench-live.meio";
    let dump = |writer: &Writer| run(bench, &[&writer.child.id().to_string(), "--live", "--compress", "none", "-o", image]).remove(0);
    let writer = Writer::start(bench, 1024, 20_000);
    let runs: Vec<_> = (0..=rounds).map(|_| dump(&writer)).skip(1).collect();
    drop(writer);
    let of = |name: &str| median(runs.iter().map(|run| number(run, name)).collect());
    let (pause, stop) = (of("pause_ms"), median(runs.iter().map(|r| r["stop_ms"].as_f64().unwrap_or(0.0)).collect()));
    let here = format!("{} (before it {}; {} rounds, {} in all)", ms(pause), ms(stop), of("rounds"), ms(of("total_ms")));
    let mut rows = vec![Figure::new("pause, `--live`, 1 GiB, 20,000 random pages written a second", "≤ 15 ms", here, Some(pause <= 15.0))];

    // Beside a peer that takes as much of the machine as copying does: another process that does nothing but read.
    let writer = Writer::start(bench, 1024, 0);
    let ratios = (0..rounds).map(|_| {
        let alone = writer.speed(Duration::from_millis(500));
        let (begin, before) = (Instant::now(), writer.written());
        let result = dump(&writer);
        let during = (writer.written() - before) as f64 / begin.elapsed().as_secs_f64();
        let still = number(&result, "pause_ms") / (begin.elapsed().as_secs_f64() * 1e3);
        during / alone / (1.0 - still)
    });
    let slower = 100.0 * (1.0 - median(ratios.collect()));
    let here = format!("{slower:.0} % slower, of it what two processors give to meio's two threads");
    rows.push(Figure::new("a program that writes as fast as it can, while `--live` lasts", "≤ 15 % slower", here, Some(slower <= 15.0)));
    let _ = fs::remove_file(image);
    rows
}

/// The pause of an image of a series.
pub fn series(bench: &Bench, rounds: usize) -> Vec<Figure> {
    let pause = |mib: u64, rate: u64| {
        let writer = Writer::start(bench, mib, rate);
        let count = (rounds + 2).to_string();
        let pid = writer.child.id().to_string();
        let arguments = [&pid, "--every", "1s", "--count", &count, "--compress", "none", "-o", "/dev/shm/bench-series-{n}.meio"];
        let runs = run(bench, &arguments);
        (1..=rounds + 2).for_each(|n| drop(fs::remove_file(format!("/dev/shm/bench-series-{n}.meio"))));
        let of = |name: &str| median(runs.iter().skip(2).map(|run| number(run, name)).collect());
        (of("pause_ms"), of("memory_bytes") / 4096.0)
    };
    let (large, pages) = pause(1024, 5000);
    let (small, few) = pause(256, 500);
    let (huge, _) = pause(4096, 5000);
    let told = |time, pages: f64| format!("{}, {pages:.0} pages", ms(time));
    vec![
        Figure::new("pause, image of a series, 1 GiB, 5,000 pages written since", "≤ 8 ms", told(large, pages), Some(large <= 8.0)),
        Figure::new("the same, 256 MiB, 500 pages", "≤ 2 ms", told(small, few), Some(small <= 2.0)),
        Figure::new("the same, 4 GiB, 5,000 pages", "≤ 1.5 × that of 1 GiB", ms(huge), Some(huge <= 1.5 * large)),
    ]
}
