//! Images whose checksums are right and whose metadata lies: meio says so, and neither panics nor hangs, takes no memory
//! that the image asks for, and leaves nothing behind.
//!
//! Without `SURVIVE=all` a selection is tried for some seconds.

#[path = "../src/image/tests/forge.rs"]
#[allow(dead_code)] // the unit tests of the format use more of it
mod forge;
mod sockets;

use crate::lab::{Lab, SOON, observe, until};
use ciborium::Value;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Fixtures whose images are changed: every kind of resource is in one of them.
const FIXTURES: [(&str, &[&str]); 23] = [
    ("objects", &[]),
    ("unix_names", &[]),
    ("unix_rights", &[]),
    ("unix_options", &[]),
    ("tcp_pair", &["4"]),
    ("listening", &[]),
    ("udp", &[]),
    ("pty", &[]),
    ("sysvmsg", &[]),
    ("sysvsem", &[]),
    ("sysvshm", &[]),
    ("namespaces", &["uiTCp"]),
    ("mounts", &[]),
    ("seccomp", &[]),
    ("numa", &[]),
    ("seals", &[]),
    ("switches", &[]),
    ("inotify", &[]),
    ("epoll", &[]),
    ("pidfd", &[]),
    ("cgroup", &[]),
    ("timers", &[]),
    ("tree", &[]),
];
/// Section of the metadata: the manifest stands before it.
const TREE: u16 = 2;
const CASES: u64 = 400;
const SLICE: Duration = Duration::from_millis(500);
/// What meio promises to end with (`src/error.rs`), but for an interruption.
const PROMISED: [i32; 6] = [1, 10, 11, 12, 13, 14];
/// What reading any image of a fixture may take, in bytes of private memory.
const DATA: &str = "--data=536870912:"; // the soft limit: the tree gets back its own
/// What a task does next is not meio's to judge.
const LEFT_ALONE: [&str; 3] = ["registers", "xstate", "auxv"];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// All values of the metadata that may be changed, by the way to them.
fn places(value: &Value, way: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
    all.push(way.clone());
    let mut inside = |n: usize, value: &Value| {
        way.push(n);
        places(value, way, all);
        way.pop();
    };
    match value {
        // Long lists are like one another: the ends are enough.
        Value::Array(items) => items.iter().enumerate().filter(|(n, _)| *n < 6 || n + 2 > items.len()).for_each(|(n, v)| inside(n, v)),
        Value::Map(fields) => {
            let open = |(_, (name, _)): &(usize, &(Value, Value))| !name.as_text().is_some_and(|name| LEFT_ALONE.contains(&name));
            fields.iter().enumerate().filter(open).for_each(|(n, (_, v))| inside(n, v));
        }
        _ => {}
    }
}

fn at<'a>(value: &'a mut Value, way: &[usize]) -> &'a mut Value {
    way.iter().fold(value, |value, &n| match value {
        Value::Array(items) => &mut items[n],
        Value::Map(fields) => &mut fields[n].1,
        _ => unreachable!("a way leads through lists and maps"),
    })
}

/// The names along a way.
fn named(value: &Value, way: &[usize]) -> String {
    let mut text = "tree".to_owned();
    way.iter().fold(value, |value, &n| match value {
        Value::Array(items) => {
            text += &format!("[{n}]");
            &items[n]
        }
        Value::Map(fields) => {
            text += &format!(".{}", fields[n].0.as_text().unwrap_or("?"));
            &fields[n].1
        }
        _ => unreachable!("a way leads through lists and maps"),
    });
    text
}

/// Another value of the same type.
fn change(value: &mut Value, random: &mut Random) {
    const NUMBERS: [i128; 14] =
        [-1, 0, 1, 2, 3, 7, 4095, 65536, 99_999, i32::MAX as i128, u32::MAX as i128, i64::MAX as i128, u64::MAX as i128, i32::MIN as i128];
    const NAMES: [&str; 8] = ["", "/", "..", "/tmp/../../../../nowhere/x", "a/../../b", "/proc/self/fd/99", "nul\0nul", "/dev/null"];
    let pick = random.next();
    match value {
        Value::Integer(n) => {
            let old = i128::from(*n);
            let new = match pick % 4 {
                0 => old + 1,
                1 => old - 1,
                _ => NUMBERS[random.below(NUMBERS.len())],
            };
            *value = Value::from(
                i64::try_from(new).map_or_else(|_| ciborium::value::Integer::from(new.clamp(0, u64::MAX.into()) as u64), Into::into),
            );
        }
        Value::Bool(b) => *b = !*b,
        Value::Text(text) if pick.is_multiple_of(4) => *text = text.repeat(1 + random.below(2000)),
        Value::Text(text) => *text = NAMES[random.below(NAMES.len())].into(),
        Value::Bytes(bytes) => match pick % 4 {
            0 => bytes.truncate(random.below(bytes.len() + 1)),
            1 => bytes.extend_from_slice(&vec![0xff; random.below(5000)]),
            2 if !bytes.is_empty() => {
                let n = random.below(bytes.len());
                bytes[n] ^= 1 << random.below(8);
            }
            _ => *bytes = NAMES[random.below(NAMES.len())].into(),
        },
        Value::Array(items) => match pick % 4 {
            0 => items.clear(),
            1 if !items.is_empty() => drop(items.remove(random.below(items.len()))),
            2 if !items.is_empty() => {
                let again = items[random.below(items.len())].clone();
                items.extend(std::iter::repeat_n(again, 1 + random.below(300)));
            }
            _ => items.reverse(),
        },
        Value::Map(fields) if !fields.is_empty() => drop(fields.remove(random.below(fields.len()))),
        other => *other = Value::from(random.below(5) as u64),
    }
}

/// Everything of a tree that nobody ended.
fn end_all(own: i32) {
    let gone = until(SOON, || {
        let others: Vec<i32> = observe::processes().into_iter().filter(|&pid| pid != 1 && pid != own).collect();
        for pid in &others {
            // it may have ended by itself
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        others.is_empty()
    });
    assert!(gone, "a restored tree cannot be ended\n{}", observe::listing());
}

/// Tries one image with all commands that read it.
fn judge(lab: &Lab, image: &Path) -> Result<(), String> {
    let own = std::process::id() as i32;
    for arguments in [&["verify"][..], &["inspect", "--json"], &["graph", "--format", "json"], &["restore", "-d"]] {
        let mut command = Command::new("prlimit");
        // System V objects go with their namespace.
        command.args([DATA, "unshare", "--ipc", "--uts", crate::MEIO]).args(arguments).arg(image).current_dir(lab.path("images"));
        let done = lab.run(command);
        // 3: restored, and something is different than it was.
        if done.code == 0 || done.code == 3 {
            end_all(own);
            continue;
        }
        let left = || observe::processes().into_iter().filter(|&pid| pid != 1 && pid != own).count();
        let said = done.stderr.contains("error:") || done.stdout.contains("\"type\":\"error\"");
        if !PROMISED.contains(&done.code) || !said {
            end_all(own);
            return Err(format!("meio {} ended with {}: {}{}", arguments[0], done.code, done.stderr, done.stdout));
        }
        if !until(Duration::from_secs(5), || left() == 0) {
            let listing = observe::listing();
            end_all(own);
            return Err(format!("meio {} ended with {} ({}) and left\n{listing}", arguments[0], done.code, done.stderr.trim()));
        }
    }
    Ok(())
}

fn of_a_fixture(name: &str, arguments: &[&str], failures: &mut Vec<String>) -> (u64, bool) {
    let mut lab = Lab::new(name);
    let mut running = lab.fixture(name, arguments);
    if running.skipped.is_some() {
        return (0, true);
    }
    let image = lab.dump(&mut running, &[]);
    running.kill();
    let bytes = std::fs::read(&image).expect("image");
    let section = forge::spans(&bytes).iter().position(|s| s.kind == TREE).expect("metadata");
    let span = forge::spans(&bytes)[section];
    let tree: Value = ciborium::from_reader(&bytes[span.payload..span.end]).expect("metadata");
    let mut all = Vec::new();
    places(&tree, &mut Vec::new(), &mut all);
    let fields = tree.as_map().map_or(1, Vec::len);
    let begin = Instant::now();
    let everything = std::env::var("SURVIVE").is_ok_and(|v| v == "all");
    let mut done = 0;
    for case in 0..CASES {
        if !everything && begin.elapsed() > SLICE {
            break;
        }
        let mut random = Random((case + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ name.len() as u64);
        for _ in 0..8 {
            random.next();
        }
        let mut changed = tree.clone();
        // First which field of the metadata, or the many mappings would take nearly all changes.
        let kind = all[1 + random.below(all.len() - 1)][0];
        let kind = if random.below(4) == 0 { kind } else { random.below(fields) };
        let inside: Vec<&Vec<usize>> = all.iter().filter(|way| way.first() == Some(&kind)).collect();
        let way = inside[random.below(inside.len())];
        let place = at(&mut changed, way);
        let before = format!("{place:.0?}").chars().take(80).collect::<String>();
        change(place, &mut random);
        let after = format!("{place:.0?}").chars().take(80).collect::<String>();
        let mut payload = Vec::new();
        ciborium::into_writer(&changed, &mut payload).expect("metadata");
        std::fs::write(&image, forge::replace(&bytes, section, &payload)).expect("image");
        if let Err(why) = judge(&lab, &image) {
            failures.push(format!("{name} {arguments:?}, case {case}: {} is {after} in place of {before}\n{why}", named(&tree, way)));
        }
        done += 1;
    }
    lab.nothing_left();
    (done, false)
}

crate::alone! {
    fn images_that_lie_are_refused() {
        let (mut failures, mut tried, begin) = (Vec::new(), 0, Instant::now());
        for (name, arguments) in FIXTURES {
            let (done, skipped) = of_a_fixture(name, arguments, &mut failures);
            assert!(done > 0 || skipped, "{name}: nothing was tried");
            tried += done;
        }
        println!("\nsurvive: images that lie: {tried} done in {:.0?}, {} failed", begin.elapsed(), failures.len());
        assert!(failures.is_empty(), "{} of {tried} failed\n\n{}", failures.len(), failures.join("\n\n"));
    }
}
