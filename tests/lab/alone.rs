//! Every test that dumps something runs alone in a pid namespace of its own.
//!
//! A restored tree takes its old pids back. While other tests run, those could be
//! anybody's by then; in a namespace that belongs to one test they are free. What
//! a test leaves behind ends with the namespace, and before that it is counted.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set, in the process inside, to the name of the one test that it is there for.
const INSIDE: &str = "MEIO_LAB_TEST";

/// No test may take longer, but for those that were asked for everything.
fn limit() -> Duration {
    Duration::from_secs(if ["SURVIVE", "CHAINS", "MOVES", "FAULTS", "ROUNDS"].iter().any(|name| std::env::var_os(name).is_some()) {
        24 * 3600
    } else {
        300
    }) * super::patience()
}

/// The first process of the namespace: it has terminals of its own, whose numbers no other test takes, reaps orphans while it waits for the
/// test, and keeps descriptors out that whoever runs the tests may have left
/// open, since a pipe to somebody outside is a thing that no tree can take along.
const INIT: &str = r#"ip link set lo up || exit 8; mount -t devpts -o ptmxmode=666,mode=600 devpts /dev/pts || exit 9; for fd in /proc/self/fd/*; do [ "${fd##*/}" -gt 2 ] && eval "exec ${fd##*/}>&-"; done; "$@"; exit $?"#;

/// Runs `body` in a fresh pid, ipc, network (with `lo` up) and mount namespace; `name` is the test's full path.
pub fn alone(name: &str, body: impl FnOnce()) {
    let name = name.split_once("::").map_or(name, |(_, path)| path);
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return body();
    }
    let log = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("log file");
    let out = || Stdio::from(File::options().append(true).open(log.path()).expect("log file"));
    let mut child = Command::new("unshare")
        .args(["--pid", "--ipc", "--net", "--fork", "--kill-child", "--mount-proc"])
        // Whoever runs the tests may ignore ^C, and what a shell was born with it cannot change.
        .args(["env", "--default-signal", "bash", "-c", INIT, "bash"])
        .arg(std::env::current_exe().expect("own path"))
        .args([name, "--exact", "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env(INSIDE, name)
        .stdin(Stdio::null())
        .stdout(out())
        .stderr(out())
        .spawn()
        .expect("unshare(1) of util-linux starts");
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().expect("wait") {
            Some(status) => break Some(status),
            None if begin.elapsed() > limit() => {
                child.kill().expect("kill");
                child.wait().expect("wait");
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text = String::from_utf8_lossy(&std::fs::read(log.path()).expect("log file")).into_owned();
    match status {
        Some(status) if status.success() && text.contains("1 passed") => print!("{}", remarks(&text)),
        Some(status) => panic!("{name}: {status}\n{text}"),
        None => panic!("{name}: not done after {:?}\n{text}", limit()),
    }
}

/// What the test said, without the frame that the test harness puts around it.
fn remarks(text: &str) -> String {
    text.lines()
        .filter(|line| {
            line.contains("skipped")
                || ["survive: ", "journey: ", "chains: ", "hold: ", "faults: "].iter().any(|word| line.starts_with(word))
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

/// A test whose body runs through [`alone`].
#[macro_export]
macro_rules! alone {
    ($($(#[$meta:meta])* fn $name:ident() $body:block)*) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            $crate::lab::alone::alone(concat!(module_path!(), "::", stringify!($name)), || $body)
        }
    )*};
}
