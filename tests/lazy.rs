//! `meio restore --lazy`: the tree runs before its pages are there, and nobody can tell.

use crate::lab::{Lab, Running, SOON, observe, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a program may take that finds its pages missing.
const WORK: Duration = Duration::from_secs(60);

/// Processes with this name.
fn named(name: &str) -> Vec<i32> {
    let comm = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    observe::processes().into_iter().filter(|pid| comm(pid).trim_end() == name).collect()
}

fn end(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("kill");
}

/// Whether pages of a process are still missing.
fn is_incomplete(pid: i32) -> bool {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" um"))
}

/// How much of a process's memory is made of transparent huge pages, in KiB.
fn huge(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// A fixture with much memory, saved and ended.
fn saved(lab: &mut Lab) -> (Running, PathBuf) {
    let mut running = lab.fixture("lazily", &[]);
    let image = lab.dump(&mut running, &["--kill"]);
    (running, image)
}

/// Restores it again and again until `act`, done at once when it runs, comes before all its pages are there.
fn while_incomplete(lab: &Lab, image: &Path, running: &mut Running, mut act: impl FnMut()) {
    for _ in 0..10 {
        lab.restore(image, running, &["--lazy"]);
        if is_incomplete(running.pid) {
            act();
            return;
        }
        running.kill();
    }
    panic!("all pages are there at once, ten times");
}

/// What meio, or who it has left behind, has said on standard error.
fn said(lab: &Lab) -> String {
    fs::read_to_string(lab.path("stderr")).unwrap_or_default()
}

/// The same image with one byte changed.
fn damaged(lab: &Lab, image: &Path, at: impl Fn(usize) -> usize) -> PathBuf {
    let mut bytes = fs::read(image).expect("image");
    let at = at(bytes.len());
    bytes[at] ^= 0x40;
    let path = lab.path("damaged.meio");
    fs::write(&path, bytes).expect("image");
    path
}

/// A RESP request.
fn request(words: &[&str]) -> String {
    let words: String = words.iter().map(|w| format!("${}\r\n{w}\r\n", w.len())).collect();
    format!("*{}\r\n{words}", words.matches('$').count())
}

struct Redis(TcpStream);

impl Redis {
    fn connect() -> Redis {
        let mut connection = None;
        assert!(until(SOON, || {
            connection = TcpStream::connect("127.0.0.1:6379").ok();
            connection.is_some()
        }));
        Redis(connection.expect("a connection"))
    }

    /// Sends requests and reads as many bytes as are expected in answer.
    fn ask(&mut self, requests: &str, bytes: usize) -> String {
        self.0.write_all(requests.as_bytes()).expect("request");
        let mut answer = vec![0; bytes];
        self.0.read_exact(&mut answer).expect("answer");
        String::from_utf8(answer).expect("text")
    }
}

/// What a redis holds under a key: each something else, and a third of them can be compressed.
fn value(key: usize) -> String {
    let word = |n: usize| format!("{:016x}", (key * 64 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (key << 7));
    (0..64).map(|n| word(if key.is_multiple_of(3) { n / 16 } else { n })).collect()
}

const PYTHON: &str = r#"
import hashlib, os, sys, time
def digest(d):
    h = hashlib.sha256()
    for k in sorted(d):
        h.update(k.encode()); h.update(d[k])
    return h.hexdigest()
d = {f"key {n * 7919 % 200003}": hashlib.sha256(str(n).encode()).digest() * 8 for n in range(100000)}
first = digest(d)
# Two that have all of it, too, and have changed a part each.
peers = [os.fork(), 0]
if peers[0]:
    peers[1] = os.fork()
own = {f"peer {n}": bytes([n % 251]) * 3000 for n in range(2000 if 0 in peers else 0)}
open(f"up{os.getpid()}", "w").close()
while not os.path.exists("go"):
    time.sleep(0.002)
if 0 in peers:
    os._exit(0 if digest(d) == first and all(own[f"peer {n}"] == bytes([n % 251]) * 3000 for n in range(2000)) else 1)
child = os.fork()
if child == 0:
    os._exit(0 if digest(d) == first else 1)
for n in range(0, 100000, 5):
    d[f"key {n * 7919 % 200003}"] = b"x"
for n in range(0, 100000, 5):
    d[f"key {n * 7919 % 200003}"] = hashlib.sha256(str(n).encode()).digest() * 8
same = digest(d) == first
ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [child] + peers]
sys.exit(7 if same and ends == [0, 0, 0] else 1)
"#;

crate::alone! {
    fn a_program_that_uses_its_memory_in_every_way() {
        let mut lab = Lab::new("lazily");
        let (mut running, image) = saved(&mut lab);
        for options in [&["--lazy"][..], &["--lazy", "--pid-namespace"]] {
            // It begins while next to nothing is there.
            fs::write(running.file("go"), "").expect("go");
            let _ = fs::remove_file(running.file("result"));
            lab.restore(&image, &mut running, options);
            let back = Running::of(&lab, running.pid);
            lab.go_and_verify(back, WORK);
            lab.nothing_left();
        }
        let log = lab.log();
        let missing: Vec<u64> = log.lines().filter_map(|l| l.strip_prefix("not there yet: ")?.parse().ok()).collect();
        assert!(missing.len() == 2 && missing.iter().all(|&n| n > 16), "{log}");
    }

    fn a_redis_that_is_asked_at_once() {
        const KEYS: usize = 40_000;
        let mut lab = Lab::new("lazy-redis");
        let options = ["--save", "", "--bind", "127.0.0.1", "--port", "6379"];
        let mut running = lab.spawn(Path::new("/usr/bin/redis-server"), &options);
        let mut redis = Redis::connect();
        for keys in (0..KEYS).collect::<Vec<_>>().chunks(1000) {
            let requests: String = keys.iter().map(|&n| request(&["SET", &format!("k{n}"), &value(n)])).collect();
            assert_eq!(redis.ask(&requests, 5 * keys.len()), "+OK\r\n".repeat(keys.len()));
        }
        drop(redis);
        let mut connections = 1;
        until(SOON, || {
            connections = fs::read_to_string("/proc/net/tcp").unwrap_or_default().matches(":18EB 0100007F").count();
            connections == 0
        });
        let image = lab.dump(&mut running, &["--kill"]);
        lab.restore(&image, &mut running, &["--lazy"]);
        let mut redis = Redis::connect();
        // It has a child that reads everything, too.
        let begun = "+Background saving started\r\n";
        assert_eq!(redis.ask(&request(&["BGSAVE"]), begun.len()), begun);
        for n in 0..KEYS {
            let key = (KEYS - 1 - n) * 7919 % KEYS;
            let value = format!("$1024\r\n{}\r\n", value(key));
            assert!(redis.ask(&request(&["GET", &format!("k{key}")]), value.len()) == value, "key {key} has another value");
        }
        let saved = until(WORK, || {
            redis.0.write_all(request(&["INFO", "persistence"]).as_bytes()).expect("request");
            let mut answer = vec![0; 65536];
            let n = redis.0.read(&mut answer).expect("answer");
            let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
            assert!(!answer.contains("last_bgsave_status:err"), "{answer}");
            answer.contains("rdb_bgsave_in_progress:0")
        });
        assert!(saved && fs::metadata(lab.path("dump.rdb")).expect("dump.rdb").len() > KEYS as u64 * 100);
        end(running.pid, Signal::SIGTERM);
        lab.nothing_left();
    }

    /// Three processes that share most of their pages, in the foreground, with the exit code of the first.
    fn a_python_with_a_large_dict() {
        let mut lab = Lab::new("lazy-python");
        fs::write(lab.path("work.py"), PYTHON).expect("write");
        let mut running = lab.spawn(Path::new("/usr/bin/python3"), &["work.py"]);
        let up = || observe::tree(running.pid).iter().filter(|pid| lab.path(&format!("up{pid}")).exists()).count();
        assert!(until(WORK, || up() == 3), "{}", lab.log());
        let image = lab.dump(&mut running, &["--kill"]);
        fs::write(lab.path("go"), "").expect("go");
        let done = lab.run(lab.meio(&["--json", "restore", "--lazy", image.to_str().expect("path")]));
        assert_eq!(done.code, 7, "{done:?} {}", lab.log());
        let last: serde_json::Value = serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).expect("JSON");
        assert_eq!((last["status"].as_str(), last["exit_code"].as_i64()), (Some("exited"), Some(7)), "{last}");
        lab.nothing_left();
    }

    /// Afterwards nothing tells that it was restored so.
    fn nothing_is_left_when_all_is_there() {
        let mut lab = Lab::new("lazy-end");
        let mut running = lab.fixture("lazily", &[]);
        let before = huge(running.pid);
        let image = lab.dump(&mut running, &["--kill"]);
        lab.restore(&image, &mut running, &["--lazy"]);
        assert!(until(WORK, || named("meio").is_empty() && named("pageguard").is_empty()), "{}", observe::listing());
        assert!(!is_incomplete(running.pid));
        // Huge pages, where the kernel had some to give.
        assert!(before == 0 || huge(running.pid) > 0, "{before} KiB of huge pages before, none now");
        let open: Vec<_> = fs::read_dir(format!("/proc/{}/fd", running.pid)).expect("fd").flatten().collect();
        assert_eq!(open.len(), 3, "{open:?}");
        // It can be saved again, and comes back from there.
        let again = lab.dump(&mut running, &["--kill"]);
        lab.restore(&again, &mut running, &["--lazy"]);
        lab.go_and_verify(running, WORK);
        lab.nothing_left();
    }

    /// Rather than to find zeros the program ends.
    fn whoever_kills_the_server_ends_the_program() {
        let mut lab = Lab::new("lazy-killed");
        let (mut running, image) = saved(&mut lab);
        let mut ended = false;
        for _ in 0..10 {
            lab.restore(&image, &mut running, &["--lazy"]);
            let server = named("meio");
            if let Some(&server) = server.first() {
                let _ = kill(Pid::from_raw(server), Signal::SIGKILL);
            }
            // Either all pages were there already, or it is gone.
            ended = until(SOON, || observe::state(running.pid).is_none() || named("pageguard").is_empty());
            assert!(ended, "{}", observe::listing());
            ended = observe::state(running.pid).is_none();
            if ended {
                break;
            }
            assert!(!is_incomplete(running.pid), "it goes on without its pages");
            running.kill();
        }
        assert!(ended, "all pages were there at once, ten times");
        assert!(until(SOON, || said(&lab).contains("was killed before all were there")), "{}", said(&lab));
        lab.nothing_left();
    }

    fn without_its_guard_the_server_goes_on() {
        let mut lab = Lab::new("lazy-guard");
        let (mut running, image) = saved(&mut lab);
        while_incomplete(&lab, &image, &mut running, || named("pageguard").into_iter().for_each(|guard| end(guard, Signal::SIGKILL)));
        lab.go_and_verify(running, WORK);
        lab.nothing_left();
    }

    fn damage_found_late_ends_the_program() {
        let mut lab = Lab::new("lazy-damage");
        let (running, image) = saved(&mut lab);
        let bad = damaged(&lab, &image, |length| length / 2);
        let bad = bad.to_str().expect("path");
        let done = lab.run(lab.meio(&["restore", "--lazy", bad]));
        assert!(done.code == 14 && done.stderr.contains("image damaged") && done.stderr.contains("wrong checksum"), "{done:?}");
        lab.nothing_left();
        let done = lab.run(lab.meio(&["restore", "-d", "--lazy", bad]));
        assert_eq!((done.code, done.stdout.trim()), (0, running.pid.to_string().as_str()), "{done:?}");
        assert!(until(SOON, || observe::state(running.pid).is_none()), "{}", observe::listing());
        assert!(until(SOON, || said(&lab).contains("image damaged")), "{}", said(&lab));
        lab.nothing_left();
    }

    /// Next to all pages are in the parent, and some are there and in the parent's parent.
    fn pages_of_a_chain_come_later_too() {
        let mut lab = Lab::new("lazy-chain");
        let mut running = lab.fixture("lazily", &[]);
        let first = lab.dump(&mut running, &[]);
        let second = lab.dump(&mut running, &["--compress", "none", "--parent", first.to_str().expect("path")]);
        let third = lab.dump(&mut running, &["--kill", "--parent", second.to_str().expect("path")]);
        let size = |image: &Path| fs::metadata(image).expect("image").len();
        println!("{} bytes upon {} upon {}", size(&third), size(&second), size(&first));
        assert!(size(&third) < size(&first) / 100);
        fs::write(running.file("go"), "").expect("go");
        lab.restore(&third, &mut running, &["--lazy"]);
        let back = Running::of(&lab, running.pid);
        lab.go_and_verify(back, WORK);
        lab.nothing_left();
        let log = lab.log();
        let missing: Vec<u64> = log.lines().filter_map(|l| l.strip_prefix("not there yet: ")?.parse().ok()).collect();
        assert!(missing.len() == 1 && missing[0] > 16, "{log}");
        // Damage where the pages are.
        let good = fs::read(&first).expect("image");
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 0x40;
        fs::write(&first, &bad).expect("image");
        let third = third.to_str().expect("path").to_owned();
        let done = lab.run(lab.meio(&["restore", "--lazy", &third]));
        let named = first.to_str().expect("path");
        assert!(done.code == 14 && ["image damaged", "wrong checksum", named].iter().all(|w| done.stderr.contains(w)), "{done:?}");
        lab.nothing_left();
        let done = lab.run(lab.meio(&["restore", "-d", "--lazy", &third]));
        assert_eq!((done.code, done.stdout.trim()), (0, running.pid.to_string().as_str()), "{done:?}");
        assert!(until(SOON, || observe::state(running.pid).is_none()), "{}", observe::listing());
        assert!(until(SOON, || said(&lab).contains("image damaged") && said(&lab).contains(named)), "{}", said(&lab));
        lab.nothing_left();
        // Of what says where they are it is found before anything is started.
        bad.clone_from(&good);
        bad[good.len() - 200] ^= 0x40;
        for change in [Some(bad), None] {
            match change {
                Some(bytes) => fs::write(&first, bytes).expect("image"),
                None => fs::remove_file(&first).expect("image"),
            }
            let done = lab.run(lab.meio(&["restore", "-d", "--lazy", &third]));
            assert!(done.code == 14 && done.stdout.is_empty() && done.stderr.contains(named), "{done:?}");
        }
        // Whoever has the files open does not need their names.
        fs::write(&first, &good).expect("image");
        let _ = fs::remove_file(running.file("result"));
        lab.restore(Path::new(&third), &mut running, &["--lazy"]);
        for image in [&first, &second] {
            fs::remove_file(image).expect("image");
        }
        let back = Running::of(&lab, running.pid);
        lab.go_and_verify(back, WORK);
        lab.nothing_left();
    }

    fn what_is_refused() {
        let mut lab = Lab::new("lazy-refused");
        let (_, image) = saved(&mut lab);
        let mut command = lab.meio(&["restore", "--lazy", "-"]);
        command.stdin(fs::File::open(&image).expect("image"));
        let done = lab.run(command);
        assert!(done.code == 2 && done.stderr.contains("--lazy needs an image that is a file"), "{done:?}");
        // Damage of what is needed first is found first.
        for at in [|length: usize| length - 200, |length| length - 20, |_| 5000] {
            let bad = damaged(&lab, &image, at);
            let done = lab.run(lab.meio(&["restore", "-d", "--lazy", bad.to_str().expect("path")]));
            assert!(done.code == 14 && done.stdout.is_empty(), "{done:?}");
            lab.nothing_left();
        }
    }
}
