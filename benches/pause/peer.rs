//! The peer, where it is installed.

use super::figures::Figure;
use super::{Bench, Load, end_all, median, ms};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The same 1 GiB by criu(8): the time that it says the tree was frozen for, and the whole restore.
pub fn criu(bench: &Bench, rounds: usize) -> Vec<Figure> {
    let what = "criu: the same 1 GiB to tmpfs, pause and restore";
    let rounds = (0..=rounds).map(|_| round(bench)).collect::<Result<Vec<_>, _>>();
    vec![match rounds {
        Ok(rounds) => {
            let of = |n: usize| ms(median(rounds[1..].iter().map(|r| r[n]).collect()));
            Figure::new(what, "", format!("{} and {}", of(0), of(1)), None)
        }
        Err(why) => Figure::new(what, "", why, None),
    }]
}

fn run(arguments: &[&str]) -> Result<Output, String> {
    let out = Command::new("criu").args(arguments).stdin(Stdio::null()).output();
    let out = out.map_err(|e| if e.kind() == std::io::ErrorKind::NotFound { "not on PATH".into() } else { e.to_string() })?;
    if out.status.success() {
        return Ok(out);
    }
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let last = said.lines().rfind(|l| l.contains("Error")).or(said.lines().last()).unwrap_or_default();
    Err(format!("`criu {}` does not work here: {last}", arguments[0]))
}

fn round(bench: &Bench) -> Result<[f64; 2], String> {
    run(&["--version"])?;
    run(&["check"])?;
    let folder = tempfile::tempdir_in("/dev/shm").map_err(|e| e.to_string())?;
    let images = folder.path().to_str().expect("path");
    let mut child = bench.start(Load::Memory(1024, 1));
    let pid = child.id().to_string();
    let dumped = run(&["dump", "--tree", &pid, "--images-dir", images, "--leave-running", "--display-stats"]);
    end_all(&mut child);
    let said = dumped?;
    let said = [said.stdout, said.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
    let frozen = said.lines().find_map(|l| l.trim().strip_prefix("Frozen time:")?.split_whitespace().next()?.parse::<f64>().ok());
    let frozen = frozen.ok_or("it does not say how long the tree was frozen")?;
    let begin = std::time::Instant::now();
    let restored = run(&["restore", "--images-dir", images, "--restore-detached"]);
    let took = begin.elapsed().as_secs_f64() * 1e3;
    super::kill_session(&pid);
    super::until(|| !Path::new("/proc").join(&pid).exists());
    restored.map(|_| [frozen / 1e3, took])
}
