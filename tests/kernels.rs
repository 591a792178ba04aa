//! The tests under the kernels of Debian's releases, each in a virtual machine, and trees that are taken from one kernel
//! to the others. `make kernels` does it.

mod crossing;
mod journey;
mod machine;
mod table;

use machine::{Job, Workshop};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the machines need of the repository and of what was built from it.
fn own_files() -> Vec<PathBuf> {
    let programs = Path::new(super::ROOT).join("fixtures/programs");
    let mut files =
        vec![PathBuf::from(super::MEIO), std::env::current_exe().expect("own path"), PathBuf::from(super::ROOT).join("tests/fixtures.rs")];
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
    files.extend(unit_tests());
    let mut folders = vec![journey::folder()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => files.push(path),
            }
        }
    }
    files
}

/// The tests that `make kernels` runs: where trees go there and back twice all is done that the other ways do.
const ALL: &str = "::restored_twice";

/// What asks for sockets is in modules. The kernel loads them when they are needed first, and says so to those who listen to its events:
/// not in the middle of a test.
const MODULES: &str = "modprobe -qa netlink_diag unix_diag tcp_diag udp_diag raw_diag af_packet_diag";

/// Runs one test after the other and says how it went, each in one piece. Machines with one processor gain nothing by more at a time.
const EACH: &str = r#"
each() {
    local said=/tmp/said.$$ begin=$SECONDS result=FAILED
    $OWN "$1" --exact --include-ignored --color never --test-threads 1 >$said 2>&1 && result=ok
    [ $result = FAILED ] || ! grep -q skipped: $said || result=skipped
    { echo "test $1 ... $result ($((SECONDS - begin)) s)"; [ $result = ok ] || grep -v '^running\|^test \|^$' $said; } >$said.whole
    cat $said.whole
    rm -f $said $said.whole
}
each_of() { local name; for name in $($OWN --list "$@" 2>&1 | sed -n 's/: test$//p'); do each $name; done; }
"#;

/// The program's own tests, the newest that was built, for those of the trackers.
fn unit_tests() -> Option<PathBuf> {
    let own = std::env::current_exe().expect("own path");
    let mut found: Vec<_> = std::fs::read_dir(own.parent()?).ok()?.flatten().filter(|e| e.path() != own).collect();
    found.retain(|e| e.path().extension().is_none() && e.file_name().to_string_lossy().starts_with("meio-"));
    found.sort_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
    let lists = |path: &PathBuf| {
        let listed = Command::new(path).args(["--list", TRACKERS]).stdin(Stdio::null()).output();
        listed.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(TRACKERS))
    };
    found.into_iter().rev().map(|e| e.path()).find(lists)
}

/// What the names of their tests begin with.
const TRACKERS: &str = "tracee::track::tests";

/// What a machine is to do: first the tests, then the journeys.
fn script(filter: Option<&str>, steps: &str, leg: usize) -> String {
    let own = std::env::current_exe().expect("own path");
    let (own, root, tmp) = (own.display(), super::ROOT, env!("CARGO_TARGET_TMPDIR"));
    let mut script = format!("export LAB_PATIENCE=6 OWN={own}\ncd {root}\nmkdir -p {tmp}\n");
    if let Some(filter) = filter {
        script += &format!("{MODULES}\n{} check --color never 2>&1 | tr -d '\\r'\n{EACH}", super::MEIO);
        if let Some(unit) = unit_tests().filter(|_| filter == ALL || std::env::var_os("TRACKERS").is_some()) {
            let fixtures = crate::lab::compile("chaos");
            let fixtures = fixtures.parent().expect("a folder").display();
            let epochs = std::env::var("TRACKERS").unwrap_or_else(|_| "100".into());
            // Where clocks count instructions every run would be the same one.
            let seed = std::env::var("SEED").unwrap_or_else(|_| crate::lab::now().to_string());
            script += &format!("export CHAOS={fixtures}/chaos BUSY={fixtures}/busy SEED={seed}\n");
            script += &format!("TRACKERS={epochs} OWN={} each_of {TRACKERS}\n", unit.display());
        }
        script += &format!("each_of {filter}\n");
    }
    if !steps.is_empty() {
        script += &format!("BOUNDS={} JOURNEY='{steps}' {} $OWN {JOURNEY} 2>&1\n", bounds(), later(leg).join(" "));
    }
    script
}

/// Capabilities that nobody has on this machine, as setpriv(1) takes them away.
fn bounds() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let mask = status.lines().find_map(|l| l.strip_prefix("CapBnd:")).expect("capabilities");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("hexadecimal");
    // The last one of the oldest kernel; see capabilities(7).
    let missing: Vec<String> = (0..=40).filter(|n| mask & 1 << n == 0).map(|n| format!("-cap_{n}")).collect();
    missing.join(",")
}

/// Runs a command on a clock that is ahead of those of the machines where the trees have been before, as it is where time
/// namespaces are used to that end.
fn later(leg: usize) -> Vec<String> {
    let seconds = (1_000_000 * (leg + 1)).to_string();
    ["unshare", "--time", "--fork", "--monotonic", &seconds, "--boottime", &seconds].map(Into::into).to_vec()
}

const JOURNEY: &str = "kernels::journeys --exact --nocapture --color never --test-threads 1";

/// Does the steps under this machine's own kernel.
fn here(steps: &str, leg: usize) -> String {
    let command = later(leg);
    let out = Command::new(&command[0])
        .args(&command[1..])
        .arg(std::env::current_exe().expect("own path"))
        .args(JOURNEY.split(' '))
        .env("JOURNEY", steps)
        .stdin(Stdio::null())
        .output()
        .expect("unshare(1) starts");
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

crate::alone! {
    /// Part of `make kernels`, on each machine.
    fn journeys() {
        if let Ok(steps) = std::env::var("JOURNEY") {
            journey::go(&steps);
        }
    }
}

#[test]
fn kernels() {
    let Ok(asked) = std::env::var("KERNELS") else {
        println!("skipped: `make kernels` does it");
        return;
    };
    let (workshop, releases) = Workshop::open();
    // One kernel alone: KERNEL=6.1. -- and some tests alone: KERNELS='fixtures::vdso fixtures::epoll', or none; TRACKERS=N: so many
    // epochs of each tracker, also then.
    let wanted = std::env::var("KERNEL").unwrap_or_default();
    let releases: Vec<&String> = releases.iter().filter(|r| r.starts_with(&wanted)).collect();
    let names: Vec<String> = releases.iter().map(|r| journey::short(r)).collect();
    let own = nix::sys::utsname::uname().expect("uname");
    let own = journey::short(&own.release().to_string_lossy());
    let filter = match asked.as_str() {
        "all" => Some(ALL),
        "none" => None,
        filter => Some(filter),
    };
    let _ = std::fs::remove_dir_all(journey::folder());
    let mut said = here(&format!("depart {own}"), 0);
    workshop.make_disk(&own_files());
    for (n, (release, name)) in releases.iter().zip(&names).enumerate() {
        let mut steps = format!("arrive {own} {own}-{name}; depart {name}");
        names[..n].iter().for_each(|from| steps += &format!("; arrive {from} {from}-{name}"));
        let job = Job { kernel: release, name, script: &script(filter, &steps, 1 + n), limit: Duration::from_secs(3 * 3600), tap: None };
        said += &workshop.boot(&job);
    }
    // And back.
    for (n, (release, name)) in releases.iter().zip(&names).enumerate() {
        let mut steps = String::new();
        names[n + 1..].iter().for_each(|from| steps += &format!("arrive {from} {from}-{name}; arrive {name}-{from}; "));
        names[..n].iter().for_each(|from| steps += &format!("arrive {name}-{from}; "));
        let job = Job {
            kernel: release,
            name: &format!("{name}-again"),
            script: &script(None, &steps, 10 + n),
            limit: Duration::from_secs(1800),
            tap: None,
        };
        said += &workshop.boot(&job);
    }
    let _ = std::fs::remove_dir_all(journey::folder());
    workshop.fetch(&journey::folder());
    let mut steps = String::new();
    for name in &names {
        steps += &format!("arrive {name}; arrive {own}-{name}; ");
        names.iter().filter(|other| *other != name).for_each(|other| steps += &format!("arrive {name}-{other}; "));
    }
    said += &here(&steps, 20);
    std::fs::write(workshop.folder.join("said"), &said).expect("file");
    let mut wrong = table::table(&said, &own);
    println!("\n| a service moves, its client with it | |\n|---|---|");
    for (release, name) in releases.iter().zip(&names) {
        let (gone, said) = crossing::go(release);
        println!("| Linux {own} to {name} and back | {said} |");
        if !gone {
            wrong.push(format!("a service did not come from {own} to {name} and back:\n{said}"));
        }
    }
    println!("\nall that was said: {}", workshop.folder.join("said").display());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
