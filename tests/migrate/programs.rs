//! Real programs go A -> B -> C -> A under load, and nothing that was acknowledged is lost. `MOVES=N` goes on from there.

use super::MOVE;
use crate::lab::hosts::{Hosts, SERVICE, SERVICE6, VIP, VIP6};
use crate::lab::{Lab, SOON, until};
use crate::programs::net::{Client, REDIS, listens, python, watched};
use crate::programs::{databases, installed, plainly, services, web};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

const SHELL: &str = include_str!("shell.py");
const THREADS: &str = include_str!("threads.py");

/// How many moves each goes through.
fn moves() -> usize {
    std::env::var("MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// The nth move of a tree from host to host.
fn go(lab: &Lab, hosts: &Hosts, pid: i32, n: usize, addresses: &[&str]) {
    let count = hosts.hosts.len();
    let (from, to) = (n % count, (n + 1) % count);
    let (pid, target) = (pid.to_string(), &hosts.hosts[to].address);
    // What is looked at is that nothing is lost: a machine with much else to do need not be quick.
    let mut arguments = vec![pid.as_str(), target, "--on-timeout", "force", "--timeout", "5s", "--max-downtime", "2s"];
    addresses.iter().for_each(|vip| arguments.extend(["--vip", vip]));
    let done = hosts.migrate(lab, from, &arguments);
    // That it is written faster than it can be sent may be warned of.
    assert!(matches!(done.code, 0 | 3), "move {n}: {}{}\n{}", done.stdout, done.stderr, lab.log());
    println!("\njourney: move {n}: {} ms in all: {}", (done.time.1 - done.time.0) / 1_000_000, done.stdout.trim());
    assert!(!hosts.hosts[from].lives(pid.parse().expect("pid")), "something stays");
}

/// A client is served all the time, while the tree goes round.
fn served(lab: &mut Lab, hosts: &Hosts, pid: i32, addresses: &[&str], client: Client, answers: u64) {
    watched(lab, client, answers, moves(), |lab, n| go(lab, hosts, pid, n, addresses));
}

/// Where the tree is in the end.
fn last(hosts: &Hosts) -> &crate::lab::hosts::Host {
    &hosts.hosts[moves() % hosts.hosts.len()]
}

/// It ends by itself when it is told so.
fn end(lab: &Lab, hosts: &Hosts, pid: i32, signal: &str) {
    last(hosts).plain("kill", &[signal, &pid.to_string()]);
    assert!(until(SOON, || !last(hosts).lives(pid)), "it does not end: {}", lab.log());
}

/// A connection that asks, and waits for what it wants to hear.
struct Line {
    stream: TcpStream,
    heard: String,
}

impl Line {
    fn new(port: u16) -> Line {
        let mut stream = None;
        assert!(
            until(SOON, || {
                stream = TcpStream::connect((SERVICE, port)).ok();
                stream.is_some()
            }),
            "nobody listens"
        );
        let stream = stream.expect("a connection");
        stream.set_read_timeout(Some(MOVE)).expect("option");
        Line { stream, heard: String::new() }
    }

    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("it is there");
    }

    /// Waits for a text; what came before it.
    fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.heard.find(text) {
                let rest = self.heard.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.heard, rest);
                before.truncate(at);
                return before;
            }
            let mut some = [0; 4096];
            let n = self.stream.read(&mut some).unwrap_or_else(|e| panic!("{e}; it said {:?}", self.heard));
            assert!(n > 0, "the connection was ended; it said {:?}", self.heard);
            self.heard += &String::from_utf8_lossy(&some[..n]);
        }
    }
}

crate::alone! {
    /// It has children that write its memory down, and clients at addresses of both families.
    fn redis_under_redis_benchmark() {
        let mut lab = Lab::new("move-redis");
        let hosts = Hosts::new(&lab, 3);
        hosts.serve_at(0);
        hosts.hosts[0].plain("ip", &["address", "add", VIP6.split('@').next().expect("address"), "dev", "eth0", "nodad"]);
        let folder = lab.path("").display().to_string();
        let options = ["--save", "1", "1", "--appendonly", "yes", "--dir", &folder, "--protected-mode", "no", "--bind", SERVICE, SERVICE6];
        let pid = hosts.hosts[0].start(&lab, "redis-server", &options);
        listens(&lab, &format!("{SERVICE}:6379"));
        listens(&lab, &format!("[{SERVICE6}]:6379"));
        let benchmark = |name, options: &[&str]| {
            let mut command = Command::new(installed("redis-benchmark"));
            Client::start(&lab, name, command.args(["-h", SERVICE, "-n", "1000000000", "-t", "incr", "-q"]).args(options))
        };
        let benchmarks = [benchmark("pipelined", &["-c", "8", "-P", "4"]), benchmark("reconnecting", &["-c", "4", "-k", "0"])];
        let client = Client::python(&lab, &mut python(), REDIS, &[&format!("{SERVICE},{SERVICE6}"), "6379", "20"]);
        served(&mut lab, &hosts, pid, &[VIP, VIP6], client, 500);
        for benchmark in benchmarks {
            let said = benchmark.end(&lab);
            assert!(!said.contains("rror"), "{said}");
        }
        end(&lab, &hosts, pid, "-TERM");
    }

    fn postgresql_under_pgbench() {
        let mut lab = Lab::new("move-postgresql");
        let hosts = Hosts::new(&lab, 3);
        hosts.serve_at(0);
        let (as_user, bin) = services::cluster(&lab);
        std::fs::write(lab.path("data/pg_hba.conf"), "host all all all trust\n").expect("who is let in");
        let postgres = bin.join("postgres").display().to_string();
        let listening = format!("listen_addresses={SERVICE}");
        let options = ["-D", "data", "-k", "", "-c", &listening, "-c", "dynamic_shared_memory_type=sysv", "-c", "fsync=off", "-c", "shared_buffers=16MB"];
        let pid = hosts.hosts[0].start(&lab, "setpriv", &[&as_user[..], &[&postgres], &options].concat());
        listens(&lab, &format!("{SERVICE}:5432"));
        let host = format!("PGHOST={SERVICE}");
        let reach = [host.as_str(), "PGUSER=nobody", "PGDATABASE=postgres"];
        let ready = until(SOON, || Command::new("pg_isready").args(["-q", "-h", SERVICE]).status().is_ok_and(|s| s.success()));
        assert!(ready, "{}", lab.log());
        let pgbench = bin.join("pgbench").display().to_string();
        plainly(&lab, "env", &[&reach[..], &[&pgbench, "-q", "-i", "-s", "1"]].concat());
        let load = ["-n", "-c", "2", "-R", "100", "-T", "100000"];
        let load = Client::start(&lab, "load", Command::new("env").args(reach).arg(&pgbench).args(load));
        let mut python = Command::new("env");
        python.args(reach).arg(installed("python3"));
        let client = Client::python(&lab, &mut python, databases::SQL, &["2"]);
        served(&mut lab, &hosts, pid, &[VIP], client, 100);
        let said = load.end(&lab);
        assert!(!said.contains("rror") && !said.contains("abort"), "{said}");
        assert_eq!(plainly(&lab, "env", &[&reach[..], &["psql", "-At", "-c", databases::SUMS]].concat()), "t|t|t\n", "{said}");
        end(&lab, &hosts, pid, "-INT");
    }

    fn nginx_downloads() {
        let mut lab = Lab::new("move-nginx");
        let hosts = Hosts::new(&lab, 3);
        hosts.serve_at(0);
        plainly(&lab, "bash", &["-c", web::FILES]);
        std::fs::write(lab.path("nginx.conf"), web::NGINX.replace("127.0.0.1", SERVICE)).expect("configuration");
        let folder = lab.path("").display().to_string();
        let pid = hosts.hosts[0].start(&lab, "/usr/sbin/nginx", &["-p", &folder, "-c", &format!("{folder}nginx.conf")]);
        listens(&lab, &format!("{SERVICE}:8080"));
        listens(&lab, &format!("{SERVICE}:8081"));
        let client = Client::python(&lab, &mut python(), web::CLIENT, &[SERVICE, "8080,8081", "files"]);
        served(&mut lab, &hosts, pid, &[VIP], client, 500);
        end(&lab, &hosts, pid, "-TERM");
        web::nothing_was_wrong(&lab);
    }

    /// Lines are typed to one half before it moves, and to the other half after it.
    fn an_interactive_shell() {
        let lab = Lab::new("move-shell");
        let hosts = Hosts::new(&lab, 3);
        hosts.serve_at(0);
        std::fs::write(lab.path("shell.py"), SHELL).expect("script");
        let pid = hosts.hosts[0].start(&lab, "/usr/bin/python3", &["shell.py", SERVICE, "2300"]);
        let mut line = Line::new(2300);
        line.expect("ready> ");
        line.say("stty rows 33 cols 77; n=0; sleep 100000 & \r");
        line.expect("[1] ");
        for n in 0..moves() {
            line.say("n=$((n + 1)); echo value-$n\r");
            line.expect(&format!("value-{}\r\n", n + 1));
            line.expect("ready> ");
            line.say("echo half-$((6*");
            line.expect("half-$((6*");
            go(&lab, &hosts, pid, n, &[VIP]);
            line.say("7))-$n\r");
            line.expect(&format!("half-42-{}\r\n", n + 1));
        }
        line.say("stty size; jobs; kill %1; wait %1; exit 5\r");
        line.expect("33 77\r\n");
        line.expect("Running");
        line.expect("ended: 5");
        assert!(until(SOON, || !last(&hosts).lives(pid)), "it does not end: {}", lab.log());
    }

    fn python_with_200_threads() {
        let lab = Lab::new("move-threads");
        let hosts = Hosts::new(&lab, 3);
        hosts.serve_at(0);
        std::fs::write(lab.path("threads.py"), THREADS).expect("script");
        let pid = hosts.hosts[0].start(&lab, "/usr/bin/python3", &["threads.py", SERVICE, "2400"]);
        let mut line = Line::new(2400);
        // What all have counted together, what each of them has, and who has the least.
        let mut ask = || {
            line.say("?");
            let said: Vec<u64> = line.expect("\n").split(' ').map(|n| n.parse().expect("a number")).collect();
            assert_eq!(said[0], said[1], "something was lost");
            said[2]
        };
        for n in 0..=moves() {
            let least = ask();
            assert!(until(SOON, || ask() > least + 10), "move {n}: somebody stands still");
            if n < moves() {
                go(&lab, &hosts, pid, n, &[VIP]);
            }
        }
        end(&lab, &hosts, pid, "-TERM");
    }
}
