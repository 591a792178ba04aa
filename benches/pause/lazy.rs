//! `meio restore --lazy`: how long until a program runs, and until it has read all of its memory.

use super::{Bench, MEIO, median, until};
use nix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Until the first instruction, wished for, in milliseconds.
pub const TARGET: f64 = 30.0;

/// Milliseconds from the start of the command: until the program ran, until it had read everything, both medians.
pub fn first_instruction(bench: &Bench, mib: u64, rounds: usize) -> [f64; 2] {
    let path = |name: &str| bench.folder.path().join(name);
    let (program, ready, board) = (path("first"), path("first.ready"), path("board"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/first.c");
    let made = Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&program).arg(source).status();
    assert!(made.expect("cc starts").success(), "first.c does not compile");
    let image = Path::new("/dev/shm/bench-lazy.meio");
    let _ = fs::remove_file(&ready);
    fs::write(&board, [0; 4096]).expect("board");
    let mut command = Command::new("setsid");
    command.arg(&program).arg(&ready).arg(&board).arg(mib.to_string());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("setsid(1) starts");
    until(|| ready.exists());
    let meio = |arguments: &[&str]| {
        let mut command = Command::new(MEIO);
        command.args(arguments).arg(image).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(path("err")).expect("file"));
        assert!(command.status().expect("meio starts").success(), "{}", fs::read_to_string(path("err")).unwrap_or_default());
    };
    let pid = child.id().to_string();
    meio(&["dump", &pid, "--kill", "--compress", "none", "-o"]);
    child.wait().expect("wait");
    let words = || {
        let bytes = fs::read(&board).expect("board");
        [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a word")))
    };
    let mut times: [Vec<f64>; 2] = Default::default();
    for round in 0..=rounds {
        File::options().write(true).open(&board).and_then(|f| f.write_all_at(&1u64.to_le_bytes(), 8)).expect("board");
        let begin = now();
        meio(&["restore", "-d", "--lazy"]);
        until(|| words()[1] >= 3);
        let (end, [first, verdict]) = (now(), words());
        assert_eq!(verdict, 3, "the memory is not what it was");
        if round > 0 {
            times[0].push((first - begin) as f64 / 1e6);
            times[1].push((end - begin) as f64 / 1e6);
        }
        Command::new("kill").args(["-KILL", &pid]).status().expect("kill(1) starts");
        until(|| !Path::new("/proc").join(&pid).exists());
        until(|| !is_there("pageguard"));
    }
    let _ = fs::remove_file(image);
    times.map(median)
}

/// Whether a process with this name is there.
fn is_there(name: &str) -> bool {
    let listed = Command::new("ps").args(["-e", "-o", "comm="]).output().expect("ps(1) starts");
    String::from_utf8_lossy(&listed.stdout).lines().any(|line| line.trim() == name)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
fn now() -> u64 {
    let t = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC");
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}
