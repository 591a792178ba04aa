//! As much of the tests' lab as its hosts need.

#[expect(dead_code, reason = "some of it is for tests")]
#[path = "../../tests/lab/hosts.rs"]
pub mod hosts;
#[path = "../../tests/lab/sshd.rs"]
pub mod sshd;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that should happen at once.
pub const SOON: Duration = Duration::from_secs(20);

/// A folder.
pub struct Lab(tempfile::TempDir);

/// A run of meio that has ended.
pub struct Outcome {
    /// Exit code; 128 where it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Waits until `condition` holds; whether it did within `limit`.
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

impl Lab {
    /// An empty one.
    pub fn new(name: &str) -> Lab {
        Lab(tempfile::Builder::new().prefix(name).tempdir().expect("folder"))
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What its programs have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs a command to its end.
    pub fn run(&self, mut command: Command) -> Outcome {
        let done = command.stdin(Stdio::null()).output().expect("it starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Outcome { code: done.status.code().unwrap_or(128), stdout: text(&done.stdout), stderr: text(&done.stderr) }
    }
}
