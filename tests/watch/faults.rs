//! Faults at random instants under a client that counts, over one connection or by datagrams: whatever happens, no answer that it
//! was given is ever taken back, and in the end somebody answers: with one standby, with two of them, and with a witness. `FAULTS` says
//! how many (a slice of eight without it), `SEED` with which one they begin.
//!
//! A clock that is set anew is not among them: hosts that are namespaces share the clock of the day with this machine, and a time
//! namespace shifts only the clocks since boot, and those before anything runs in it. Nothing of a watch looks at the clock of the day but
//! to note it, which `tidy` holds.

mod worlds;

use super::control::standing;
use super::links::{cut, cut_all, cut_ports, heal};
use super::{Counter, Watched, has_address, machines, noted, oldest, redis_on};
use crate::lab::hosts::{Hosts, SERVICE};
use crate::lab::{Lab, SOON, compile, until};
use crate::programs::installed;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What happens, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    LoseHost,
    KillStandby,
    CutBothWays,
    KillMeio,
    StopMeio,
    CutLink,
    CutOneWay,
    CutOtherWay,
    CutStreams,
    CutService,
    SlowStandby,
    KillTree,
    /// The meio of the primary is killed, and started again when its tree, which runs there mute, was taken over.
    ComeBack,
    /// With two standbys: the primary's host, one of theirs,
    LosePrimary,
    LoseOne,
    /// all ways between the two, between the primary and one of them, and between it and both.
    PartStandbys,
    CutFromOne,
    CutFromAll,
    /// With a witness: all ways of the primary to it, to the standby, and to both;
    PartFromWitness,
    PartFromStandby,
    PartFromBoth,
    /// and that is killed, and started again.
    KillWitness,
}

/// In the order in which they happen: the first ones are those of every run.
const ALL: [Fault; 22] = [
    Fault::LoseHost,
    Fault::KillStandby,
    Fault::CutBothWays,
    Fault::KillMeio,
    Fault::StopMeio,
    Fault::LosePrimary,
    Fault::CutFromAll,
    Fault::PartFromBoth,
    Fault::CutLink,
    Fault::CutOneWay,
    Fault::CutOtherWay,
    Fault::CutStreams,
    Fault::CutService,
    Fault::SlowStandby,
    Fault::KillTree,
    Fault::ComeBack,
    Fault::LoseOne,
    Fault::PartStandbys,
    Fault::CutFromOne,
    Fault::PartFromWitness,
    Fault::PartFromStandby,
    Fault::KillWitness,
];

/// Who is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum World {
    /// A primary and its standby,
    Pair,
    /// and another one,
    Several,
    /// or a witness.
    Witness,
}

impl Fault {
    fn world(self) -> World {
        use Fault::*;
        match self {
            LosePrimary | LoseOne | PartStandbys | CutFromOne | CutFromAll => World::Several,
            PartFromWitness | PartFromStandby | PartFromBoth | KillWitness => World::Witness,
            _ => World::Pair,
        }
    }
}

/// Who answers, and how it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// One thread, one connection.
    Redis,
    /// Eight threads, one connection to one of them.
    Threads,
    /// The same, by datagrams to a ninth.
    Datagrams,
    /// An interpreter, and an event loop on epoll(7) and a pair of sockets.
    Asyncio,
    /// Threads that hand connections to each other, and clocks of their own.
    Memcached,
}

const SERVICES: [Service; 5] = [Service::Redis, Service::Threads, Service::Datagrams, Service::Asyncio, Service::Memcached];
/// Where those answer that have no port of their own.
const PORT: u16 = 2600;
/// Where memcached does.
const MEMCACHED: u16 = 11211;
/// Counts for many, each over a connection of its own.
const ASYNCIO: &str = include_str!("count.py");

impl Service {
    /// So many hosts, the first of which has it.
    fn start(self, lab: &Lab, count: usize) -> (Hosts, i32) {
        let hosts = machines(lab, count);
        if self == Service::Redis {
            return redis_on(lab, hosts);
        }
        let (port, memcached) = (PORT.to_string(), MEMCACHED.to_string());
        let prefix = lab.path("x").display().to_string();
        let start = |program: &str, arguments: &[&str]| hosts.hosts[0].start(lab, program, arguments);
        let pid = match self {
            Service::Asyncio => {
                fs::write(lab.path("count.py"), ASYNCIO).expect("script");
                start(&installed("python3").display().to_string(), &["count.py", SERVICE, &port])
            }
            Service::Memcached => start("memcached", &["-u", "root", "-l", SERVICE, "-p", &memcached, "-U", "0", "-m", "16", "-t", "4"]),
            _ => start(&compile("keyvalue").display().to_string(), &[&prefix, SERVICE, &port, "8"]),
        };
        let is_up = || match self {
            Service::Asyncio => TcpStream::connect((SERVICE, PORT)).is_ok(),
            Service::Memcached => TcpStream::connect((SERVICE, MEMCACHED)).is_ok(),
            _ => lab.path("x.ready").exists(),
        };
        assert!(until(SOON, is_up), "it does not get ready: {}", lab.log());
        (hosts, pid)
    }

    fn count(self) -> Counter {
        match self {
            Service::Redis => Counter::begin(),
            Service::Threads | Service::Asyncio => Counter::to(SERVICE, PORT, "one"),
            Service::Datagrams => Counter::by_datagrams(PORT),
            Service::Memcached => Counter::to_memcached(MEMCACHED),
        }
    }
}

/// Numbers that come again with their seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % most
    }

    fn ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

/// In the namespace of the client.
fn own(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().expect("ip starts").success(), "{arguments:?}");
}

/// It happens, and is over where it can be.
fn befall(fault: Fault, hosts: &mut Hosts, watched: &Watched, pid: i32, dice: &mut Dice) {
    let meio = oldest(&hosts.hosts[0]);
    let signal = |hosts: &Hosts, host: usize, signal: &str, pid: &str| {
        let _ = hosts.hosts[host].command(Path::new("kill")).args([signal, pid]).status();
    };
    match fault {
        Fault::LoseHost => {
            hosts.wire(0, false);
            hosts.hosts[0].fail();
        }
        Fault::KillMeio | Fault::ComeBack => signal(hosts, 0, "-KILL", &meio),
        Fault::KillTree => signal(hosts, 0, "-KILL", &pid.to_string()),
        Fault::KillStandby => drop(hosts.hosts[1].plain("pkill", &["-KILL", "-x", "meio"])),
        Fault::StopMeio => {
            signal(hosts, 0, "-STOP", &meio);
            std::thread::sleep(Duration::from_secs(5));
            signal(hosts, 0, "-CONT", &meio);
            // nsenter(1) stops with what it waits for.
            let waiting = nix::unistd::Pid::from_raw(watched.meio.id() as i32);
            let _ = nix::sys::signal::kill(waiting, nix::sys::signal::Signal::SIGCONT);
        }
        Fault::CutBothWays | Fault::CutLink => {
            let cut = if fault == Fault::CutLink { cut } else { cut_all };
            cut(hosts, 0, 1);
            cut(hosts, 1, 0);
            std::thread::sleep(dice.ms(200, 6000));
            heal(hosts, 0);
            heal(hosts, 1);
        }
        Fault::CutOneWay | Fault::CutOtherWay => {
            let from = usize::from(fault == Fault::CutOtherWay);
            cut_all(hosts, from, 1 - from);
            std::thread::sleep(dice.ms(200, 6000));
            heal(hosts, from);
        }
        Fault::CutStreams => {
            cut_ports(hosts, 0, 1, &["dport", "1024-65534"]);
            std::thread::sleep(dice.ms(200, 8000));
            heal(hosts, 0);
        }
        Fault::CutService => {
            own(&["rule", "add", "blackhole", "to", SERVICE, "pref", "5"]);
            std::thread::sleep(dice.ms(200, 4000));
            own(&["rule", "del", "pref", "5"]);
        }
        Fault::SlowStandby => {
            let agent = oldest(&hosts.hosts[1]);
            for _ in 0..8 {
                signal(hosts, 1, "-STOP", &agent);
                std::thread::sleep(dice.ms(20, 500));
                signal(hosts, 1, "-CONT", &agent);
                std::thread::sleep(dice.ms(20, 300));
            }
        }
        other => worlds::befall(other, hosts, dice),
    }
}

/// What came of a round.
struct Came {
    how: &'static str,
    answers: usize,
    longest: Duration,
}

const NONE: Came = Came { how: "", answers: 0, longest: Duration::ZERO };

/// In the end of a round: what the client saw, all of which must be well.
fn came(how: &'static str, counter: Counter, all: impl Fn() -> String) -> Came {
    let gaps = counter.finish().unwrap_or_else(|e| panic!("{e}\n{}", all()));
    Came { how, answers: gaps.len() + 1, longest: gaps.last().copied().unwrap_or_default() }
}

fn round(number: u64, fault: Fault, service: Service) -> Came {
    let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    let lab = Lab::new(&format!("watch-fault-{number}"));
    let world = fault.world();
    let (mut hosts, pid) = service.start(&lab, if world == World::Pair { 2 } else { 3 });
    let name = format!("fault-{number}");
    let options = [&["--timeout", "1500ms", "--name", &name][..], &worlds::options(world, &lab, &hosts)].concat();
    let mut watched = Watched::with(&lab, &hosts, pid, &options);
    let counter = service.count();
    let all = |watched: &Watched, hosts: &Hosts| format!("round {number}, {fault:?}, {service:?}:\n{}\n{}", watched.said(), noted(hosts));
    let ends = |watched: &mut Watched| until(SOON, || watched.meio.try_wait().is_ok_and(|done| done.is_some()));
    assert!(counter.go_on(20 + dice.below(100)), "{}", all(&watched, &hosts));
    std::thread::sleep(dice.ms(0, 50));
    assert!(until(SOON, || watched.is_protected()), "{}", all(&watched, &hosts));
    if world == World::Several {
        return worlds::several(fault, (hosts, pid), watched, counter, &mut dice);
    }
    befall(fault, &mut hosts, &watched, pid, &mut dice);
    let none = |how| Came { how, ..NONE };
    if fault == Fault::KillTree {
        // Its own end is none of the host.
        assert!(ends(&mut watched) && !hosts.hosts[1].runs(pid), "{}", all(&watched, &hosts));
        return none("it ended");
    }
    if !counter.go_on(30) {
        // A machine that was busy for long may have had the standby begin anew just then.
        let excused = fault == Fault::LoseHost && !watched.is_protected();
        assert!(excused, "nobody answers: {}", all(&watched, &hosts));
        return none("unprotected");
    }
    // Only one has the address, and there it runs.
    let lost = fault == Fault::LoseHost;
    let there = |hosts: &Hosts| (!lost && has_address(&hosts.hosts[0]), has_address(&hosts.hosts[1]));
    let one = |hosts: &Hosts| {
        let (first, second) = there(hosts);
        first != second && hosts.hosts[usize::from(second)].runs(pid)
    };
    assert!(until(SOON, || one(&hosts)), "{:?}: {}", there(&hosts), all(&watched, &hosts));
    let taken = there(&hosts).1;
    if taken && matches!(fault, Fault::KillMeio | Fault::ComeBack) {
        assert!(ends(&mut watched), "{}", all(&watched, &hosts));
        // What is there does not run unseen: it is mute, and ended when its meio hears that it runs elsewhere.
        if fault == Fault::ComeBack {
            assert!(hosts.hosts[0].lives(pid), "{}", all(&watched, &hosts));
            watched = Watched::start(&lab, &hosts, pid, &options);
            let back = || worlds::serves(&hosts, 1, "primary") && worlds::serves(&hosts, 0, "standby") && !hosts.hosts[0].lives(pid);
            assert!(until(SOON, back), "{}", all(&watched, &hosts));
        }
    } else if taken && !lost {
        // What stood still there has been ended, and that host stands by.
        standing(&hosts.hosts[1], "protected");
        assert!(!hosts.hosts[0].runs(pid) && until(SOON, || one(&hosts)), "{}", all(&watched, &hosts));
    } else if !taken {
        // What was lost has come back. Without a watch nothing of it is left.
        assert!(until(SOON, || watched.is_protected()), "{}", all(&watched, &hosts));
        hosts.hosts[0].plain("kill", &["-INT", &oldest(&hosts.hosts[0])]);
        assert!(ends(&mut watched), "{}", all(&watched, &hosts));
        let left = hosts.hosts[0].command(Path::new(crate::MEIO)).args(["check", "--unlock", &name]).status().expect("it starts");
        assert!(!left.success(), "a lock was left");
    }
    assert!(counter.go_on(20), "it does not go on: {}", all(&watched, &hosts));
    came(if taken { "taken over" } else { "stayed" }, counter, || all(&watched, &hosts))
}

crate::alone! {
    /// See above.
    fn random_faults() {
        let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
        let (rounds, seed) = (number("FAULTS").unwrap_or(8), number("SEED").unwrap_or(0));
        let mut table: BTreeMap<Fault, Vec<Came>> = BTreeMap::new();
        let mut failed = Vec::new();
        for n in seed..seed + rounds {
            let fault = ALL[(n % ALL.len() as u64) as usize];
            // Each of them meets each fault, and a slice has all of them.
            let service = SERVICES[((n + n / ALL.len() as u64) % SERVICES.len() as u64) as usize];
            match std::panic::catch_unwind(|| round(n, fault, service)) {
                Ok(came) => table.entry(fault).or_default().push(came),
                Err(_) => failed.push((n, fault, service)),
            }
        }
        println!(
            "\nfaults: {:<15} {:>6} {:>7} {:>10} {:>6} {:>9} {:>12} {:>10}",
            "fault", "rounds", "stayed", "taken over", "other", "answers", "stall median", "stall most"
        );
        for (fault, all) in &table {
            let count = |how: &str| all.iter().filter(|came| came.how == how).count();
            let (stayed, taken) = (count("stayed"), count("taken over"));
            let mut stalls: Vec<Duration> = all.iter().map(|came| came.longest).collect();
            stalls.sort();
            let (median, most) = (stalls[stalls.len() / 2].as_millis(), stalls[stalls.len() - 1].as_millis());
            let (rounds, answers) = (all.len(), all.iter().map(|came| came.answers).sum::<usize>());
            let (fault, other) = (format!("{fault:?}"), rounds - stayed - taken);
            println!("faults: {fault:<15} {rounds:>6} {stayed:>7} {taken:>10} {other:>6} {answers:>9} {median:>9} ms {most:>7} ms");
        }
        assert!(failed.is_empty(), "failed: {failed:?}");
    }
}
