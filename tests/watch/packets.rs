//! Every kind of packet waits for its epoch, over both families, and goes on at the other host.

use super::{Counter, SLOW, Watched, has_address, noted, oldest, two};
use crate::lab::hosts::{Hosts, SERVICE, SERVICE6, VIP6};
use crate::lab::{Lab, SOON, until};
use crate::programs::net::listens;
use std::process::Command;
use std::time::Duration;

/// Echoes that are asked for: `ping ADDRESS HOW-OFTEN SECONDS`; says how many came back in time, and the longest wait in milliseconds.
const PING: &str = r"
import socket, struct, sys, time
address, times, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
six = ':' in address
ping = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, socket.getprotobyname('ipv6-icmp' if six else 'icmp'))
ping.connect((address, 0))
def total(data):
    n = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while n >> 16:
        n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff
came, longest = 0, 0
for n in range(times):
    kind, back = (128, 129) if six else (8, 0)
    head = struct.pack('!BBHHH', kind, 0, 0, 4711, n)
    if not six:
        head = struct.pack('!BBHHH', kind, 0, total(head), 4711, n)
    begun = time.monotonic()
    ping.send(head)
    while time.monotonic() < begun + patience:
        ping.settimeout(max(0.001, begun + patience - time.monotonic()))
        try:
            got = ping.recv(2048)
        except socket.timeout:
            break
        got = got if six else got[20:]
        if got[0] == back and struct.unpack('!HH', got[4:8]) == (4711, n):
            came, longest = came + 1, max(longest, time.monotonic() - begun)
            break
print(came, round(longest * 1000))
";

/// Connections that stay half-open for a while, since the kernel keeps the last ACK back for what is to be written (`TCP_DEFER_ACCEPT`
/// of a socket that connects): `slow ADDRESS PORT HOW-MANY`; how many were answered, and the longest from a request to its answer, in
/// milliseconds. Others ask meanwhile, so that the tree is stopped again and again.
const SLOW_ONES: &str = r"
import socket, sys, threading, time
address, port, many = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
over, took = threading.Event(), []
def asks():
    s = socket.create_connection((address, port))
    while not over.is_set():
        s.sendall(b'PING\r\n')
        s.recv(64)
def slow(n):
    time.sleep(0.037 * n)
    s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    s.settimeout(30)
    s.connect((address, port))
    time.sleep(0.12)
    begun = time.monotonic()
    s.sendall(b'PING\r\n')
    assert s.recv(64) == b'+PONG\r\n'
    took.append(time.monotonic() - begun)
others = [threading.Thread(target=asks) for _ in range(2)]
all = [threading.Thread(target=slow, args=(n,)) for n in range(many)]
for t in others + all: t.start()
for t in all: t.join()
over.set()
print(len(took), round(max(took) * 1000))
";

/// How many echoes came back of so many, each within this time, and the longest wait of those.
fn echoes(address: &str, times: u32, patience: Duration) -> (u32, Duration) {
    let arguments = [address, &times.to_string(), &patience.as_secs_f64().to_string()];
    let done = Command::new("python3").args(["-c", PING]).args(arguments).output().expect("python3 starts");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let numbers: Vec<u32> = said.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [came, ms] = numbers[..] else { panic!("{said}{}", String::from_utf8_lossy(&done.stderr)) };
    (came, Duration::from_millis(ms.into()))
}

/// A redis at both addresses of the service.
fn redis(lab: &Lab) -> (Hosts, i32) {
    let hosts = two(lab);
    hosts.hosts[0].plain("ip", &["address", "add", VIP6.split('@').next().expect("address"), "dev", "eth0", "nodad"]);
    let folder = lab.path("").display().to_string();
    let options = ["--save", "", "--dir", &folder, "--protected-mode", "no", "--logfile", "", "--bind", SERVICE, SERVICE6];
    let pid = hosts.hosts[0].start(lab, "redis-server", &options);
    listens(lab, &format!("[{SERVICE6}]:6379"));
    (hosts, pid)
}

/// Connections that are half-open while the tree is stopped again and again are answered as soon as any other.
fn slow_ones(guarantee: &str) {
    let lab = Lab::new("watch-slow-ones");
    let (hosts, pid) = redis(&lab);
    let watched = Watched::with(&lab, &hosts, pid, &["--timeout", "20s", "--guarantee", guarantee, "--interval", "20ms", "--vip", VIP6]);
    for address in [SERVICE, SERVICE6] {
        let done = Command::new("python3").args(["-c", SLOW_ONES, address, "6379", "60"]).output().expect("python3 starts");
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        println!("{guarantee}, {address}: answered, and ms at most: {}", said.trim());
        let numbers: Vec<u32> = said.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [answered, most] = numbers[..] else { panic!("{said}{}", String::from_utf8_lossy(&done.stderr)) };
        // A SYN is answered again after a second, which is what would have to let them in.
        assert!(answered == 60 && most < 600, "{answered} of 60, after {most} ms: {}", watched.said());
    }
}

crate::alone! {
    /// Where what is said waits,
    fn slow_ones_where_answers_wait() {
        slow_ones("hold");
    }

    /// and where it does not.
    fn slow_ones_where_nothing_waits() {
        slow_ones("hot");
    }

    /// The standby hears nothing for a while: no answer gets out, of no kind.
    fn what_waits() {
        let lab = Lab::new("watch-packets");
        let (hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, &["--timeout", "20s", "--vip", VIP6]);
        const QUICK: Duration = Duration::from_millis(800);
        for address in [SERVICE, SERVICE6] {
            let (came, longest) = echoes(address, 50, SOON);
            println!("hold: {came} echoes of {address}, after {longest:?} at most");
            assert_eq!(came, 50, "{address}: {}", watched.said());
        }
        let standby = oldest(&hosts.hosts[1]);
        hosts.hosts[1].plain("kill", &["-STOP", &standby]);
        // What was on its way may still come.
        let _ = echoes(SERVICE, 1, QUICK);
        for address in [SERVICE, SERVICE6] {
            assert_eq!(echoes(address, 2, QUICK).0, 0, "{address}: {}", watched.said());
        }
        hosts.hosts[1].plain("kill", &["-CONT", &standby]);
        for address in [SERVICE, SERVICE6] {
            assert_eq!(echoes(address, 5, SOON).0, 5, "{address}: {}", watched.said());
        }
        hosts.hosts[0].plain("kill", &["-INT", &oldest(&hosts.hosts[0])]);
        let _ = watched.meio.wait();
        assert_eq!(echoes(SERVICE6, 5, QUICK).0, 5);
    }

    /// A connection over IPv6, and echoes of both families, outlive their host.
    fn both_families_outlive_their_host() {
        let lab = Lab::new("watch-families");
        let (mut hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--vip", VIP6]].concat());
        let counters = [Counter::to(SERVICE, 6379, "four"), Counter::to(SERVICE6, 6379, "six")];
        for counter in &counters {
            assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        }
        assert!(until(SOON, || watched.is_protected()), "{}\n{}", watched.said(), noted(&hosts));
        hosts.wire(0, false);
        hosts.hosts[0].fail();
        let _ = watched.meio.wait();
        for counter in counters {
            assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
            counter.end();
        }
        assert!(has_address(&hosts.hosts[1]) && hosts.hosts[1].runs(pid));
        for address in [SERVICE, SERVICE6] {
            assert_eq!(echoes(address, 5, SOON).0, 5, "{address}: {}", noted(&hosts));
        }
    }
}
