//! `meio demo` shows what it promises, and nothing of it stays.

use crate::lab::{Lab, SOON, observe, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Command, Stdio};

/// `meio demo` with a folder of its own for temporary files.
fn demo(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.meio(&["demo"]);
    std::fs::create_dir_all(lab.path("tmp")).expect("folder");
    command.args(arguments).env("TMPDIR", lab.path("tmp"));
    command
}

fn empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).expect("folder").next().is_none()
}

crate::alone! {
    fn it_is_right_and_cleans_up() {
        let lab = Lab::new("demo");
        let done = lab.run(demo(&lab, &["--json"]));
        assert_eq!(done.code, 0, "{done:?}");
        let result: serde_json::Value = serde_json::from_str(done.stdout.lines().last().expect("a line")).expect("JSON");
        assert!(result["type"] == "result" && result["correct"] == true, "{result}");
        assert!(result["digits_saved"].as_u64() < result["digits"].as_u64() && result["digits_saved"].as_u64() > Some(100), "{result}");
        assert!(["pause_ms", "gone_ms", "restore_ms", "running_ms"].iter().all(|f| result[f].as_f64().is_some_and(|ms| ms > 0.0)), "{result}");
        assert!(empty(&lab.path("tmp")));
        lab.nothing_left();
    }

    /// With nothing but what every Debian has.
    fn awk_will_do() {
        let lab = Lab::new("demo-awk");
        std::fs::create_dir(lab.path("bin")).expect("folder");
        std::os::unix::fs::symlink(["/usr/bin/mawk", "/usr/bin/awk"].into_iter().find(|p| Path::new(p).exists()).expect("awk"), lab.path("bin/awk")).expect("link");
        let mut command = demo(&lab, &[]);
        command.env("PATH", lab.path("bin"));
        let done = lab.run(command);
        assert_eq!(done.code, 0, "{done:?}");
        let pictured = ["running", "frozen", "gone", "running again", "▓", "awk"].iter().all(|w| done.stdout.contains(w));
        assert!(pictured && !done.stdout.contains('\x1b'), "{}", done.stdout);
        assert!(empty(&lab.path("tmp")));
        lab.nothing_left();
    }

    /// ^C while it runs, while it is gone, after it is back.
    fn an_interrupted_one_cleans_up() {
        let lab = Lab::new("demo-interrupted");
        for word in ["running", "gone", "restored"] {
            let out = std::fs::File::create(lab.path("out")).expect("file");
            let mut meio = demo(&lab, &[]).stdout(out).stderr(Stdio::null()).spawn().expect("meio starts");
            let shown = until(SOON, || std::fs::read_to_string(lab.path("out")).is_ok_and(|t| t.contains(word)));
            assert!(shown, "{word} is not shown");
            kill(Pid::from_raw(meio.id() as i32), Signal::SIGINT).expect("kill");
            assert_eq!(meio.wait().expect("wait").code(), Some(130), "{word}");
            assert!(empty(&lab.path("tmp")), "{word}");
            // Those that have ended are reaped by the namespace's first process, in its own time.
            let mut left = Vec::new();
            until(SOON, || {
                left = observe::processes().into_iter().filter(|p| *p != 1 && *p != std::process::id() as i32).collect();
                left.is_empty()
            });
            assert!(left.is_empty(), "{word}: {left:?}");
        }
        lab.nothing_left();
    }

    fn a_service_that_moves() {
        let lab = Lab::new("demo-migrate");
        let done = lab.run(demo(&lab, &["migrate", "--json"]));
        assert_eq!(done.code, 0, "{done:?}");
        let result: serde_json::Value = serde_json::from_str(done.stdout.lines().last().expect("a line")).expect("JSON");
        assert!(result["type"] == "result" && result["correct"] == true && result["answers"].as_u64() > Some(1500), "{result}");
        let moves = result["moves"].as_array().expect("moves");
        assert!(moves.len() == 2 && moves.iter().all(|m| m["downtime_ms"].as_f64() > Some(0.0)), "{result}");
        assert!(moves[0]["from"] == moves[1]["to"] && moves[0]["to"] == moves[1]["from"], "{result}");
        assert!(empty(&lab.path("tmp")));
        // The way to the program need not be open to everybody.
        const CAPABILITIES: [&str; 2] = ["--inh-caps=+dac_override,+dac_read_search", "--ambient-caps=+dac_override,+dac_read_search"];
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(CAPABILITIES).args([crate::MEIO, "demo", "migrate"]);
        let refused = lab.run(command);
        assert!(refused.code == 11 && refused.stderr.contains("sudo meio demo migrate"), "{refused:?}");
        lab.nothing_left();
    }

    fn a_machine_that_is_killed() {
        let lab = Lab::new("demo-watch");
        let done = lab.run(demo(&lab, &["watch", "--json"]));
        assert_eq!(done.code, 0, "{done:?}");
        let result: serde_json::Value = serde_json::from_str(done.stdout.lines().last().expect("a line")).expect("JSON");
        assert!(result["type"] == "result" && result["correct"] == true && result["answers"].as_u64() >= Some(200), "{result}");
        let log = result["log"].as_array().expect("a log");
        assert!(log.len() == 8 && log[3]["after"] == false && log[4]["after"] == true && result["stall_ms"].as_f64() > Some(0.0), "{result}");
        assert!(empty(&lab.path("tmp")));
        lab.nothing_left();
    }

    /// ^C while it moves: the machines end with it.
    fn an_interrupted_move_cleans_up() {
        let lab = Lab::new("demo-migrate-interrupted");
        let out = std::fs::File::create(lab.path("out")).expect("file");
        let mut meio = demo(&lab, &["migrate"]).stdout(out).stderr(Stdio::null()).spawn().expect("meio starts");
        let shown = until(SOON, || std::fs::read_to_string(lab.path("out")).is_ok_and(|t| t.contains("asking")));
        assert!(shown, "no client asks");
        kill(Pid::from_raw(meio.id() as i32), Signal::SIGINT).expect("kill");
        assert_eq!(meio.wait().expect("wait").code(), Some(130));
        assert!(empty(&lab.path("tmp")));
        lab.nothing_left();
    }
}
