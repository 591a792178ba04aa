//! The tests under the kernels of Debian's releases, each in a virtual machine, and trees that are taken from one kernel
//! to the others. `make kernels` does it.

mod machine;

use machine::{Job, Workshop};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the machines need of the repository and of what was built from it.
fn own_files() -> Vec<PathBuf> {
    let programs = Path::new(super::ROOT).join("fixtures/programs");
    let mut files = vec![PathBuf::from(super::MEIO), std::env::current_exe().expect("own path"), PathBuf::from(super::ROOT).join("tests/fixtures.rs")];
    files.push(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("CACHEDIR.TAG"));
    let _ = std::fs::write(files.last().expect("one"), "Signature: 8a477f597d28d172789f06886806bc55\n");
    for entry in std::fs::read_dir(programs).expect("fixtures").flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_some_and(|e| e == "c") {
            files.push(crate::lab::compile(&name));
        }
        files.push(path);
    }
    files
}

/// Runs one test and says how it went, in one piece.
const EACH: &str = r#"
each() {
    local said=/tmp/said.$$ begin=$SECONDS result=FAILED
    $OWN "$1" --exact --include-ignored --color never --test-threads 1 >$said 2>&1 && result=ok
    [ $result = FAILED ] || ! grep -q skipped: $said || result=skipped
    { echo "test $1 ... $result ($((SECONDS - begin)) s)"; [ $result = ok ] || grep -v '^running\|^test \|^$' $said; } >$said.whole
    flock /tmp/lock cat $said.whole
    rm -f $said $said.whole
}
export -f each
"#;

#[test]
#[ignore = "make kernels"]
fn kernels() {
    let (workshop, releases) = Workshop::open();
    workshop.make_disk(&own_files());
    let only = std::env::var("KERNELS").unwrap_or_default();
    let filter = if only == "all" { "fixtures::" } else { &only };
    let own = std::env::current_exe().expect("own path");
    let script = format!(
        "export LAB_PATIENCE=6 OWN={own}\ncd {root}\nmkdir -p {tmp}\n{meio} check --color never 2>&1 | tr -d '\\r'\n{EACH}{own} --list {filter} 2>&1 | sed -n 's/: test$//p' | xargs -P 3 -n 1 bash -c 'each \"$0\"'",
        tmp = env!("CARGO_TARGET_TMPDIR"),
        root = super::ROOT,
        meio = super::MEIO,
        own = own.display()
    );
    // One kernel alone: KERNEL=6.1
    let wanted = std::env::var("KERNEL").unwrap_or_default();
    for release in releases.iter().filter(|r| r.starts_with(&wanted)) {
        let job = Job { kernel: release, name: release, script: &script, limit: Duration::from_secs(3600) };
        println!("{}", workshop.boot(&job));
    }
}
