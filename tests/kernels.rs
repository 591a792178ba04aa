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

#[test]
#[ignore = "make kernels"]
fn kernels() {
    let (workshop, releases) = Workshop::open();
    workshop.make_disk(&own_files());
    let only = std::env::var("KERNELS").unwrap_or_default();
    let filter = if only == "all" { "fixtures::" } else { &only };
    let own = std::env::current_exe().expect("own path");
    let script = format!(
        "export LAB_PATIENCE=6\ncd {root}\nmkdir -p {tmp}\n{meio} check --color never 2>&1\n{own} {filter} --color never --test-threads 2 2>&1",
        tmp = env!("CARGO_TARGET_TMPDIR"),
        root = super::ROOT,
        meio = super::MEIO,
        own = own.display()
    );
    for release in &releases {
        let job = Job { kernel: release, name: release, script: &script, limit: Duration::from_secs(3600) };
        println!("{}", workshop.boot(&job));
    }
}
