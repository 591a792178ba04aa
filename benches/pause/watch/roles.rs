//! Hosts that change places: by hand, by a loss with a witness and without, and one that comes back.

use super::load::{Load, connect};
use super::{Redis, TIMEOUT, Watched, take_over};
use crate::figures::Figure;
use crate::lab::hosts::{Host, SERVICE};
use crate::lab::until;
use crate::{Bench, MEIO, median, ms};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long it may take until a node that is back has everything.
const LONG: Duration = Duration::from_secs(120);

/// A meio on a host that answers: what it says of itself.
fn told(host: &Host, arguments: &[&str]) -> Value {
    let done = host.command(Path::new(MEIO)).args(arguments).arg("--json").output().expect("meio starts");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(matches!(done.status.code(), Some(0 | 3)), "{arguments:?}: {said}{}", String::from_utf8_lossy(&done.stderr));
    said.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| panic!("{arguments:?}: {said}"))
}

/// A client that counts, one at a time, and notes how long it waited for an answer at most.
struct Counting {
    over: Arc<AtomicBool>,
    /// Microseconds.
    longest: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Counting {
    fn begin() -> Counting {
        let (over, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let theirs = (over.clone(), longest.clone());
        let thread = std::thread::spawn(move || {
            let (over, longest) = theirs;
            let mut stream = connect();
            let mut lines = BufReader::new(stream.try_clone().expect("a descriptor"));
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                stream.write_all(b"INCR n\r\n").expect("sent");
                let mut line = String::new();
                lines.read_line(&mut line).expect("an answer");
                longest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                let n = line.trim().strip_prefix(':').and_then(|n| n.parse::<u64>().ok()).unwrap_or_else(|| panic!("{line:?}"));
                assert!(last == 0 || n == last + 1, "{n} after {last}");
                last = n;
            }
        });
        Counting { over, longest, thread }
    }

    /// The longest that it has waited since this was asked last, in milliseconds.
    fn longest(&self) -> f64 {
        self.longest.swap(0, Ordering::Relaxed) as f64 / 1e3
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it has counted right");
    }
}

/// To and fro by hand, with a client that counts.
pub fn switched(_: &Bench, rounds: usize) -> Vec<Figure> {
    let count = 2 * rounds.min(5);
    let mut redis = Redis::start(256);
    let client = Counting::begin();
    let (mut waits, mut frozen) = (Vec::new(), Vec::new());
    // The first one does not count.
    for n in 0..=count {
        let Watched(mut meio) = redis.watch(&["--timeout", "2s"]);
        std::thread::sleep(Duration::from_millis(500));
        let usual = client.longest();
        let done = told(&redis.hosts.hosts[0], &["switchover", "bench"]);
        std::thread::sleep(Duration::from_millis(500));
        let wait = client.longest();
        eprintln!("switch-over {n}: {wait:.1} ms of the client ({usual:.1} before), {done}");
        if n > 0 {
            waits.push(wait);
            frozen.push(done["frozen_ms"].as_f64().expect("a time"));
        }
        let _ = meio.wait();
        told(&redis.hosts.hosts[1], &["unwatch", "bench"]);
        redis.hosts.hosts.swap(0, 1);
    }
    client.end();
    let most = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
    let (wait, stopped) = (median(waits.clone()), median(frozen.clone()));
    vec![
        Figure::new(
            &format!("`switchover`, redis, 256 MiB: a client that counts waits, median of {count}"),
            "60 ms",
            ms(wait),
            Some(wait <= 60.0),
        ),
        Figure::new("the same: the worst of them", "", ms(most(&waits)), None),
        Figure::new("the same: nobody runs (`frozen`), median and worst", "", format!("{} and {}", ms(stopped), ms(most(&frozen))), None),
    ]
}

/// The host is lost, with a witness and without, by turns.
pub fn witnessed(_: &Bench, rounds: usize) -> Vec<Figure> {
    let count = rounds.min(5);
    let [mut alone, mut asked] = [Vec::new(), Vec::new()];
    for _ in 0..count {
        alone.push(take_over(256, TIMEOUT, false));
        asked.push(take_over(256, TIMEOUT, true));
    }
    let of = |value: fn(&super::TakeOver) -> f64| [&alone, &asked].map(|all| median(all.iter().map(value).collect()));
    let ([stall, stall_asked], [took, took_asked]) = (of(|t| t.stall), of(|t| t.took));
    let more = stall_asked - stall;
    vec![
        Figure::new(
            &format!("`watch --witness`, `--timeout {TIMEOUT}`, the host is lost: a client waits longer than without, medians of {count}"),
            "60 ms",
            format!("{more:.0} ms ({} and {})", ms(stall_asked), ms(stall)),
            Some(more <= 60.0),
        ),
        Figure::new("the same: from the notice until it runs", "", format!("{} and {}", ms(took_asked), ms(took)), None),
    ]
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64()
}

/// What the clients of a service got over time.
struct Rates {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(f64, u64)>>,
}

impl Rates {
    fn begin(load: &Load) -> Rates {
        let over = Arc::new(AtomicBool::new(false));
        let (stop, count) = (over.clone(), load.count());
        let thread = std::thread::spawn(move || {
            let mut all = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                all.push((now(), count.load(Ordering::Relaxed)));
                std::thread::sleep(Duration::from_millis(20));
            }
            all
        });
        Rates { over, thread }
    }

    /// Answers a second between these moments.
    fn end(self, from: f64, to: f64) -> f64 {
        self.over.store(true, Ordering::Relaxed);
        let all = self.thread.join().expect("figures");
        let at = |moment: f64| all.iter().rfind(|(at, _)| *at <= moment).copied().unwrap_or(all[0]);
        let (one, other) = (at(from), at(to));
        (other.1 - one.1) as f64 / (other.0 - one.0)
    }
}

/// The rate of clients for some seconds.
fn rate(load: &Load) -> f64 {
    let (count, begun) = (load.count(), Instant::now());
    let before = count.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(4));
    (count.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64()
}

/// Seconds for so many MiB without any order through `ssh` from the first host to the second, for which `cat` puts them nowhere.
fn plain_copy(redis: &Redis, mib: u64) -> f64 {
    let path = |name: &str| redis.lab.path(name).display().to_string();
    let script = format!(
        "for n in $(seq {}); do cat {}; done | ssh -i {} -o UserKnownHostsFile={} -o StrictHostKeyChecking=yes root@{} 'cat > /dev/null'",
        mib / 64,
        path("plain"),
        path("key"),
        path("known"),
        redis.hosts.hosts[1].address,
    );
    let begun = Instant::now();
    redis.hosts.hosts[0].plain("bash", &["-o", "pipefail", "-c", &script]);
    begun.elapsed().as_secs_f64()
}

/// When the last of these happened on a host.
fn when(host: &Host, event: &str) -> f64 {
    let all = told(host, &["history", "bench"]);
    let last =
        all["events"].as_array().and_then(|events| events.iter().rfind(|one| one["event"] == event)).and_then(|one| one["at"].as_f64());
    last.unwrap_or_else(|| panic!("{event}: {all}"))
}

/// A host that was cut off comes back when the other one has taken over: how long until it stands by with all that the other one has,
/// and what the clients get meanwhile.
fn comes_back(name: &str, redis: &Redis) -> Vec<Figure> {
    const MIB: u64 = 1024;
    redis.hosts.hosts[0].plain("sh", &["-c", &format!("head -c 64M /dev/urandom > {}", redis.lab.path("plain").display())]);
    let idle = plain_copy(redis, MIB);
    let load = Load::begin(50, redis.keys);
    std::thread::sleep(Duration::from_secs(1));
    let busy = plain_copy(redis, MIB);
    let _ = load.end();
    let Watched(mut meio) = redis.watch(&["--timeout", "2s"]);
    redis.hosts.wire(0, false);
    let service: SocketAddr = format!("{SERVICE}:6379").parse().expect("an address");
    let answers = || TcpStream::connect_timeout(&service, Duration::from_millis(200)).is_ok();
    assert!(until(LONG, answers), "nobody takes over");
    let load = Load::begin(50, redis.keys);
    std::thread::sleep(Duration::from_secs(1));
    let alone = rate(&load);
    let rates = Rates::begin(&load);
    let back = now();
    redis.hosts.wire(0, true);
    let protected = || {
        std::thread::sleep(Duration::from_millis(250));
        let said = told(&redis.hosts.hosts[1], &["status", "bench"]);
        said["watches"][0]["role"] == "primary" && said["watches"][0]["state"] == "protected"
    };
    assert!(until(LONG, protected), "nobody stands by: {}", told(&redis.hosts.hosts[1], &["history", "bench"]));
    let [here, there] = [&redis.hosts.hosts[0], &redis.hosts.hosts[1]];
    let until_protected = when(there, "protected");
    let meanwhile = rates.end(back, until_protected);
    let with_hold = rate(&load);
    let _ = load.end();
    let steps = [("ended", when(here, "replaced")), ("stands by", when(here, "standing-by")), ("begun", when(there, "begun"))];
    let took = until_protected - back;
    eprintln!("{name}: back for {took:.2} s; {}", steps.map(|(what, at)| format!("{what} after {:.2} s", at - back)).join(", "));
    let _ = meio.kill();
    let _ = meio.wait();
    vec![
        Figure::new(
            &format!(
                "`watch`, {name}, 1 GiB, 50 clients: a host that is back stands by again, of what `ssh` takes for 1 GiB beside the same clients"
            ),
            "3 x",
            format!("{:.1} x ({took:.1} and {busy:.1} s; `ssh` with nothing else to do {idle:.1} s)", took / busy),
            Some(took <= 3.0 * busy),
        ),
        Figure::new(
            "the same: answers a second until then, of those before the host was back",
            "70 %",
            format!("{:.0} % ({meanwhile:.0} of {alone:.0}; {with_hold:.0} afterwards, with `hold`)", meanwhile / alone * 100.0),
            Some(meanwhile >= 0.7 * alone),
        ),
    ]
}

/// Of a redis that takes all that it gets, and of one that may use half a processor.
pub fn returns(_: &Bench, _: usize) -> Vec<Figure> {
    let mut rows = comes_back("redis", &Redis::start(1024));
    let redis = Redis::start(1024);
    let group = super::more::half_a_processor(&redis);
    rows.extend(comes_back("redis that has half a processor", &redis));
    drop(redis);
    let _ = std::fs::remove_dir(group);
    rows
}
