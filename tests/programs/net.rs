//! Servers, and clients of theirs outside the tree: the client must not be able to tell anything but a pause.
//!
//! Each server is dumped five times while its clients go on, and five times dumped, killed and restored. The client's own
//! record is the judge (`clients/`): every answer that it gets is the right one, once and in order, and the server knows
//! of everything that was acknowledged. No wait is much longer than the server was away.

use super::{WORK, finish, installed, plainly, read, write};
use crate::lab::{Lab, Running, SOON, now, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What every client notes.
const RECORD: &str = include_str!("clients/record.py");
pub const REDIS: &str = include_str!("clients/redis.py");
pub const MEMCACHED: &str = include_str!("clients/memcached.py");
pub const DNS: &str = include_str!("clients/dns.py");
pub const ECHO: &str = include_str!("clients/echo.py");
pub const ECHO_SERVER: &str = include_str!("clients/echo_server.py");

/// How much longer than the server was away, and than a retransmission that waits twice as long each time, a client may
/// wait: this machine may be busy.
const SLACK: u64 = 5_000_000_000;

/// Somebody outside the tree who asks it.
pub struct Client {
    child: Child,
    name: &'static str,
}

impl Client {
    /// Starts a program that ends by itself only when something is wrong.
    pub fn start(lab: &Lab, name: &'static str, command: &mut Command) -> Client {
        let log = || File::options().create(true).append(true).open(lab.path(name)).expect("log");
        command.current_dir(lab.path("")).stdin(Stdio::null()).stdout(log()).stderr(log());
        Client { child: command.spawn().expect(name), name }
    }

    /// Starts one of `clients/`, in what `command` says so far.
    pub fn python(lab: &Lab, command: &mut Command, script: &str, arguments: &[&str]) -> Client {
        write(lab, "record.py", RECORD);
        write(lab, "client.py", script);
        Client::start(lab, "client", command.arg("client.py").args(arguments))
    }

    /// What it has printed.
    pub fn said(&self, lab: &Lab) -> String {
        format!("{}: {}\nserver: {}", self.name, read(lab, self.name), lab.log())
    }

    pub fn lives(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits until it has got so many answers more.
    fn served(&mut self, lab: &Lab, more: u64) {
        let answers = || read(lab, "progress").trim().parse().unwrap_or(0);
        let before: u64 = answers();
        let served = until(WORK, || !self.lives() || answers() >= before + more);
        assert!(served && self.lives(), "the client gets no answers\n{}", self.said(lab));
    }

    /// Ends one that does not end by itself; gives what it printed.
    pub fn end(mut self, lab: &Lab) -> String {
        let lived = self.lives();
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        assert!(lived, "the load has ended: {}", self.said(lab));
        read(lab, self.name)
    }
}

/// Lets `client` be served while the tree is dumped and moved five times; then everything must have been right.
pub fn under_load(lab: &mut Lab, running: &mut Running, client: Client, answers: u64) {
    served_through(lab, client, answers, |lab, end| {
        let image = lab.dump(running, if end { &["--kill"] } else { &[] });
        if end {
            lab.restore(&image, running, &[]);
        }
    });
}

/// The same for a tree that `step` knows how to dump, and to end and restore when it is told so.
fn served_through(lab: &mut Lab, client: Client, answers: u64, mut step: impl FnMut(&mut Lab, bool)) {
    watched(lab, client, answers, 10, |lab, n| step(lab, n % 2 == 1));
}

/// Lets `client` be served before, between and after so many steps; no wait may be much longer than they are.
pub fn watched(lab: &mut Lab, mut client: Client, answers: u64, count: usize, mut step: impl FnMut(&mut Lab, usize)) {
    let mut steps = Vec::new();
    for n in 0..count {
        client.served(lab, answers);
        let begin = now();
        step(lab, n);
        steps.push((begin, now()));
    }
    client.served(lab, answers);
    write(lab, "stop", "");
    let ended = until(WORK, || !client.lives());
    assert!(ended && read(lab, "verdict") == "ok\n", "ended: {ended}\n{}", client.said(lab));
    let gaps = read(lab, "gaps");
    for (n, step) in steps.iter().enumerate() {
        println!("step {n}: {} ms, longest wait {} ms", (step.1 - step.0) / 1_000_000, longest(&gaps, *step) / 1_000_000);
    }
    let long = too_long(&gaps, &steps);
    assert!(long.is_empty(), "clients waited too long:\n{}", long.join("\n"));
}

/// Begin and end of each wait.
fn waits(gaps: &str) -> impl Iterator<Item = (u64, u64)> {
    let number = |text: &str| text.parse().expect("a time");
    gaps.lines().map(move |line| line.split_once(' ').map(|(a, b)| (number(a), number(b))).expect("two times"))
}

/// How much of a wait falls into a step.
fn during(wait: (u64, u64), step: (u64, u64)) -> u64 {
    wait.1.min(step.1).saturating_sub(wait.0.max(step.0))
}

/// The longest wait that has to do with a step; 0 where none was long enough to be noted.
fn longest(gaps: &str, step: (u64, u64)) -> u64 {
    waits(gaps).filter(|&wait| during(wait, step) > 0).map(|(begin, end)| end - begin).max().unwrap_or(0)
}

/// Waits that are not explained by what meio did.
fn too_long(gaps: &str, steps: &[(u64, u64)]) -> Vec<String> {
    let judge = |(begin, end)| {
        let away: u64 = steps.iter().map(|&step| during((begin, end), step)).sum();
        let long = end - begin > 2 * away + SLACK;
        long.then(|| format!("{} ms, of which meio worked {} ms", (end - begin) / 1_000_000, away / 1_000_000))
    };
    waits(gaps).filter_map(judge).collect()
}

/// Waits until a server accepts connections.
pub fn listens(lab: &Lab, address: &str) {
    let listens = until(SOON, || std::net::TcpStream::connect(address).is_ok());
    assert!(listens, "nobody listens at {address}\n{}", lab.log());
}

/// Tells the server to end; it must end by itself.
pub fn end(lab: &Lab, running: &mut Running, signal: Signal) {
    kill(Pid::from_raw(running.pid), signal).expect("kill");
    finish(lab, running, |_| true);
}

pub fn python() -> Command {
    Command::new(installed("python3"))
}

/// Echo servers at one port, and so many clients.
fn echo(name: &str, servers: u32, clients: &str) {
    let mut lab = Lab::new(name);
    write(&lab, "server.py", ECHO_SERVER);
    let mut running = lab.spawn(&installed("python3"), &["server.py", "7777", &servers.to_string()]);
    assert!(until(SOON, || (0..servers).all(|n| lab.path(&format!("up{n}")).exists())), "{}", lab.log());
    let client = Client::python(&lab, &mut python(), ECHO, &["7777", clients]);
    let answers = clients.parse::<u64>().expect("a number") * 3 / 4;
    under_load(&mut lab, &mut running, client, answers);
    running.kill();
    lab.nothing_left();
}

/// What dnsmasq is to say.
pub fn hosts() -> String {
    let records = (0..200).map(|n| format!("host-record=h{n}.test,10.9.8.{n}\n"));
    records.chain(["local=/test/\n".to_owned()]).collect()
}

#[test]
fn waits_are_explained_by_steps() {
    const MS: u64 = 1_000_000;
    let steps = [(1000 * MS, 1500 * MS), (9000 * MS, 9100 * MS)];
    let gap = |begin: u64, end: u64| format!("{} {}\n", begin * MS, end * MS);
    let gaps = [gap(900, 1700), gap(900, 6800), gap(2000, 6900), gap(900, 7200), gap(2000, 7100)].concat();
    assert_eq!(longest(&gaps, steps[0]), 6300 * MS);
    assert_eq!(longest(&gaps, steps[1]), 0);
    let long = too_long(&gaps, &steps);
    assert_eq!(long, ["6300 ms, of which meio worked 500 ms", "5100 ms, of which meio worked 0 ms"]);
}

crate::alone! {
    fn redis_counts_every_increment() {
        let mut lab = Lab::new("redis");
        // It writes all down, and has children that write it all down, too.
        let options = ["--save", "1", "1", "--appendonly", "yes", "--bind", "127.0.0.1", "--port", "6379"];
        let mut running = lab.spawn(&installed("redis-server"), &options);
        listens(&lab, "127.0.0.1:6379");
        let benchmark = |name, options: &[&str]| {
            let mut command = Command::new(installed("redis-benchmark"));
            Client::start(&lab, name, command.args(["-n", "1000000000", "-t", "incr", "-q"]).args(options))
        };
        let benchmarks = [benchmark("pipelined", &["-c", "8", "-P", "4"]), benchmark("reconnecting", &["-c", "4", "-k", "0"])];
        let client = Client::python(&lab, &mut python(), REDIS, &["127.0.0.1", "6379", "50"]);
        under_load(&mut lab, &mut running, client, 2000);
        for benchmark in benchmarks {
            let said = benchmark.end(&lab);
            assert!(!said.contains("rror"), "{said}");
        }
        end(&lab, &mut running, Signal::SIGTERM);
    }

    /// The client lives in another network namespace, at the other end of a wire. While the server is away, so are its
    /// addresses.
    fn redis_over_a_wire() {
        let mut lab = Lab::new("wire");
        plainly(&lab, "ip", &["link", "add", "here", "type", "veth", "peer", "name", "there"]);
        let addresses = |lab: &Lab, change| {
            plainly(lab, "ip", &["address", change, "10.77.0.1/24", "dev", "here"]);
            plainly(lab, "ip", &["address", change, "fd77::1/64", "dev", "here", "nodad"]);
        };
        addresses(&lab, "add");
        plainly(&lab, "ip", &["link", "set", "here", "up"]);
        let options = ["--save", "", "--protected-mode", "no", "--bind", "10.77.0.1", "fd77::1"];
        let mut running = lab.spawn(&installed("redis-server"), &options);
        listens(&lab, "10.77.0.1:6379");
        const THERE: &str = "echo > apart; until ip link set there up 2>&-; do sleep 0.02; done
            ip address add 10.77.0.2/24 dev there && ip address add fd77::2/64 dev there nodad && exec python3 \"$@\"";
        let mut there = Command::new("unshare");
        there.args(["--net", "bash", "-c", THERE, "bash"]);
        let client = Client::python(&lab, &mut there, REDIS, &["10.77.0.1,fd77::1", "6379", "20"]);
        assert!(until(SOON, || lab.path("apart").exists()), "{}", client.said(&lab));
        plainly(&lab, "ip", &["link", "set", "there", "netns", &client.child.id().to_string()]);
        served_through(&mut lab, client, 2000, |lab, end| {
            let image = lab.dump(&mut running, if end { &["--kill"] } else { &[] });
            if end {
                addresses(lab, "del");
                let refused = lab.run(lab.meio(&["restore", "-d", image.to_str().expect("path")]));
                assert!(refused.code != 0 && refused.stderr.contains("10.77.0.1") && refused.stderr.contains("fd77::1"), "{refused:?}");
                std::thread::sleep(Duration::from_millis(300));
                addresses(lab, "add");
                lab.restore(&image, &mut running, &[]);
            }
        });
        end(&lab, &mut running, Signal::SIGTERM);
    }

    fn memcached_keeps_what_was_set() {
        let mut lab = Lab::new("memcached");
        let options = ["-u", "root", "-l", "127.0.0.1", "-p", "11211", "-m", "64", "-t", "4"];
        let mut running = lab.spawn(&installed("memcached"), &options);
        listens(&lab, "127.0.0.1:11211");
        let client = Client::python(&lab, &mut python(), MEMCACHED, &["127.0.0.1", "11211", "16"]);
        under_load(&mut lab, &mut running, client, 1000);
        end(&lab, &mut running, Signal::SIGTERM);
    }

    fn dnsmasq_answers_dig() {
        let mut lab = Lab::new("dnsmasq");
        write(&lab, "hosts", &hosts());
        let options = ["-k", "-p", "5353", "-R", "-h", "-C", "hosts", "-a", "127.0.0.1", "-z", "-u", "root", "--pid-file="];
        let mut running = lab.spawn(Path::new("/usr/sbin/dnsmasq"), &options);
        listens(&lab, "127.0.0.1:5353");
        const DIGS: &str = "while :; do dig @127.0.0.1 -p 5353 +tries=20 +time=1 +short h7.test || echo failed; done";
        let digs = Client::start(&lab, "digs", Command::new(installed("bash")).args(["-c", DIGS]));
        let client = Client::python(&lab, &mut python(), DNS, &["127.0.0.1", "5353"]);
        under_load(&mut lab, &mut running, client, 200);
        assert!(until(WORK, || read(&lab, "digs").lines().count() > 20), "{}", digs.said(&lab));
        let said = digs.end(&lab);
        // What was asked while nobody was there is asked again; nobody says that nobody is there.
        let wrong = |line: &&str| *line != "10.9.8.7" && !line.ends_with("127.0.0.1#5353: timed out");
        assert!(!said.lines().any(|l| wrong(&l)), "{said}");
        end(&lab, &mut running, Signal::SIGTERM);
    }

    /// A whole network namespace comes and goes at a bridge, and nobody at the bridge is told that a port is closed.
    fn dnsmasq_in_a_capsule() {
        let mut lab = crate::capsules::lab("capsule-net");
        write(&lab, "hosts", &hosts());
        plainly(&lab, "ip", &["link", "add", "bridge", "type", "bridge"]);
        plainly(&lab, "ip", &["address", "add", "10.77.0.2/24", "dev", "bridge"]);
        plainly(&lab, "ip", &["link", "set", "bridge", "up"]);
        let meio = |lab: &Lab, arguments: &[&str]| {
            let done = lab.run(lab.meio(arguments));
            assert_eq!(done.code, 0, "{arguments:?}: {}{}\n{}", done.stdout, done.stderr, lab.log());
        };
        let hosts = lab.path("hosts").display().to_string();
        let server = ["/usr/sbin/dnsmasq", "-k", "-p", "5353", "-R", "-h", "-C", &hosts, "-u", "root", "--pid-file="];
        meio(&lab, &[&["run", "-d", "--name", "names", "--net", "veth=bridge:10.77.0.1/24", "--"], &server[..]].concat());
        listens(&lab, "10.77.0.1:5353");
        let client = Client::python(&lab, &mut python(), DNS, &["10.77.0.1", "5353"]);
        served_through(&mut lab, client, 200, |lab, end| {
            let image = lab.path("image").display().to_string();
            meio(lab, &[&["dump", "names", "-o", &image], &["--kill"][..usize::from(end)]].concat());
            if end {
                meio(lab, &["restore", "-d", &image]);
            }
        });
        let entry: serde_json::Value = serde_json::from_slice(&std::fs::read("/run/meio/names.json").expect("entry")).expect("JSON");
        let mut running = Running::of(&lab, entry["pid"].as_i64().expect("pid") as i32);
        running.kill();
        lab.nothing_left();
    }

    fn asyncio_echo_with_2000_clients() {
        echo("asyncio", 1, "2000");
    }

    /// Each of four processes has a listening socket of its own; a connection that waits at one is not another's.
    fn workers_at_one_port() {
        echo("workers", 4, "200");
    }
}
