//! An address that moves from one host to another; a client on the same link. Without the rights of root there is nothing to see.

use super::*;
use crate::sys::namespace::{self, Kind as Namespace, fresh_network};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

#[test]
fn words() {
    let good = "10.0.0.10/24@eth0".parse::<Address>().unwrap();
    assert_eq!((good.ip.to_string().as_str(), good.length, good.device.as_str()), ("10.0.0.10", 24, "eth0"));
    assert_eq!("fd00::a/64@br-1.7".parse::<Address>().unwrap().to_string(), "fd00::a/64@br-1.7");
    for wrong in [
        "10.0.0.10@eth0",
        "10.0.0.10/24",
        "10.0.0.10/33@eth0",
        "fd00::a/129@eth0",
        "10.0.0/24@eth0",
        "0.0.0.0/0@eth0",
        "ff02::1/64@eth0",
        "10.0.0.10/24@",
        "10.0.0.10/24@a name",
        "10.0.0.10/24@abcdefghijklmnop",
        "10.0.0.10/-1@eth0",
        "",
    ] {
        assert_eq!(wrong.parse::<Address>().unwrap_err().kind, Kind::Usage, "{wrong}");
    }
}

fn sh(script: &str) -> String {
    let out = Command::new("sh").args(["-ec", script]).output().expect("sh");
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A network of its own, with somebody who keeps it.
struct Host {
    keeper: Child,
    network: OwnedFd,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

impl Host {
    /// On the bridge of the caller, who is the client; `name` is that of the interface there.
    fn new(name: &str, own: u8) -> Host {
        // It ends with the test.
        let script = ["--net", "sh", "-ec", "echo; exec cat >/dev/null"];
        let mut keeper = Command::new("unshare").args(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(keeper.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let pid = keeper.id() as i32;
        let host = Host { keeper, network: namespace::open(pid, "net").unwrap() };
        sh(&format!("ip link add {name} type veth peer name eth0 netns {pid}; ip link set {name} master br0 up"));
        let script =
            "ip link set lo up; ip link set eth0 up; ip address add 10.9.0.OWN/24 dev eth0; ip -6 address add fd09::OWN/64 dev eth0 nodad";
        host.on(|| sh(&script.replace("OWN", &own.to_string())));
        host
    }

    fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::within(&namespace::places([(&self.network, Namespace::Net)]), work).unwrap()
    }
}

/// In a network with a bridge, where the caller has 10.9.0.1 and fd09::1.
fn network(work: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    fresh_network(|| {
        sh("ip link set lo up; ip link add br0 type bridge; ip link set br0 up; ip address add 10.9.0.1/24 dev br0
            ip -6 address add fd09::1/64 dev br0 nodad");
        work();
    })
    .unwrap();
}

const SOON: Probe = Probe { times: 100, gap: Duration::from_millis(20), patience: Duration::from_millis(20) };
const LITTLE: Probe = Probe { times: 3, gap: Duration::from_millis(50), patience: Duration::from_millis(200) };

/// Where the client thinks that the address is.
fn known(address: &Address) -> Option<Mac> {
    let text = sh(&format!("ip neighbour show {} dev br0", address.ip));
    let mac = text.split(' ').skip_while(|w| *w != "lladdr").nth(1)?;
    let bytes: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().ok()
}

fn moves(text: &'static str) {
    network(|| {
        let (a, b) = (Host::new("va", 2), Host::new("vb", 3));
        let address: Address = text.parse().unwrap();
        let mac = |host: &Host| host.on(|| address.mac().unwrap().unwrap());
        assert_eq!(b.on(|| address.probe(LITTLE, &[]).unwrap()), []);
        a.on(|| address.bring_up().unwrap());
        a.on(|| address.bring_up().unwrap());
        assert!(a.on(|| address.is_up().unwrap()) && !b.on(|| address.is_up().unwrap()));
        // The client has spoken to it, and knows where it is.
        let client = UdpSocket::bind(if address.ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        client.send_to(b"x", (address.ip, 9)).unwrap();
        until("the client knows it", || known(&address) == Some(mac(&a)));
        // Who is to take it finds who has it; that may be no surprise.
        let found = b.on(|| address.probe(SOON, &[]).unwrap());
        assert_eq!(found, [Claimant { mac: mac(&a), asks: false }]);
        assert_eq!(b.on(|| address.probe(LITTLE, &[mac(&a)]).unwrap()), []);

        let tables = || sh("ip -o address show dev eth0 | grep -v fe80; ip route; ip -6 route | grep -v fe80");
        let before = a.on(tables);
        let taken = a.on(|| address.take().unwrap());
        assert!(!a.on(|| address.is_up().unwrap()) && !a.on(tables).contains(&address.ip.to_string()));
        assert_eq!(a.on(|| address.take().unwrap_err().kind), Kind::NotFound);
        assert_eq!(b.on(|| address.probe(LITTLE, &[]).unwrap()), []);
        b.on(|| address.bring_up().unwrap());
        let telling = b.on(|| address.announce().unwrap());
        until("the client is told", || known(&address) == Some(mac(&b)));
        drop(telling);
        // And back, as after a move that was given up.
        b.on(|| address.take().unwrap());
        a.on(|| address.give_back(&taken).unwrap());
        assert_eq!(a.on(tables), before);
        let telling = a.on(|| address.announce().unwrap());
        until("the client is told again", || known(&address) == Some(mac(&a)));
        drop(telling);
    });
}

#[test]
fn an_address_moves() {
    moves("10.9.0.10/24@eth0");
}

#[test]
fn an_address_of_ipv6_moves() {
    moves("fd09::10/64@eth0");
}

/// Whoever is about to take the address says so before it has it.
#[test]
fn two_that_want_it_hear_of_each_other() {
    network(|| {
        let (a, b) = (Host::new("va", 2), Host::new("vb", 3));
        for text in ["10.9.0.10/24@eth0", "fd09::10/64@eth0"] {
            let address: Address = text.parse().unwrap();
            let other = b.on(|| address.mac().unwrap().unwrap());
            let (found, _) = std::thread::scope(|scope| {
                let one = scope.spawn(|| a.on(|| address.probe(SOON, &[]).unwrap()));
                let two = scope.spawn(|| b.on(|| address.probe(SOON, &[]).unwrap()));
                (one.join().unwrap(), two.join().unwrap())
            });
            assert_eq!(found, [Claimant { mac: other, asks: true }], "{text}");
        }
    });
}

/// What is sent to an address right after it came up stays here.
#[test]
fn an_address_is_used_as_soon_as_it_is_up() {
    network(|| {
        let host = Host::new("va", 2);
        host.on(|| {
            for n in 0..100 {
                for text in ["fd09::77/64@eth0", "fd07::77/128@eth0", "10.9.0.77/24@eth0"] {
                    let address: Address = text.parse().unwrap();
                    address.bring_up().unwrap();
                    let socket = UdpSocket::bind((address.ip, 0)).unwrap();
                    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                    socket.send_to(b"here", socket.local_addr().unwrap()).unwrap();
                    socket.recv(&mut [0; 8]).unwrap_or_else(|e| panic!("{text}, time {n}: {e}"));
                    address.take().unwrap();
                }
            }
        });
    });
}

/// The kernel takes more away than was asked for: other addresses of the same link, and routes.
#[test]
fn others_stay() {
    network(|| {
        let host = Host::new("va", 2);
        host.on(|| {
            sh("ip address flush dev eth0; ip address add 10.9.0.10/24 dev eth0; ip address add 10.9.0.11/24 dev eth0
                ip address add 10.8.0.1/24 dev eth0; ip route add default via 10.9.0.1; ip route add 10.7.0.0/16 via 10.9.0.1 src 10.9.0.10
                ip route add 10.6.0.0/16 via 10.9.0.1 src 10.9.0.11 metric 7 table 99");
            let address: Address = "10.9.0.10/24@eth0".parse().unwrap();
            let taken = address.take().unwrap();
            let now = sh("ip -o address show dev eth0; ip route; ip route show table 99");
            for there in ["10.9.0.11/24", "10.8.0.1/24", "default via 10.9.0.1", "10.6.0.0/16 via 10.9.0.1"] {
                assert!(now.contains(there), "{there}\n{now}");
            }
            assert!(!now.contains("10.9.0.10") && !now.contains("10.7.0.0"), "{now}");
            address.give_back(&taken).unwrap();
            let now = sh("ip -o address show dev eth0; ip route; ip route show table 99");
            for there in ["10.9.0.10/24", "10.9.0.11/24", "10.7.0.0/16 via 10.9.0.1 dev eth0 src 10.9.0.10", "default via 10.9.0.1"] {
                assert!(now.contains(there), "{there}\n{now}");
            }
            let other: Address = "10.9.0.10/25@eth0".parse().unwrap();
            assert!(other.take().unwrap_err().message.contains("length 24"));
            assert_eq!("10.9.0.10/24@eth7".parse::<Address>().unwrap().take().unwrap_err().kind, Kind::NotFound);
            sh("ip link set eth0 down");
            assert!("10.9.0.77/24@eth0".parse::<Address>().unwrap().bring_up().unwrap_err().message.contains("is down"));
            // Nobody asks there who has it.
            let own: Address = "10.5.0.1/32@lo".parse().unwrap();
            own.bring_up().unwrap();
            assert_eq!(own.probe(LITTLE, &[]).unwrap(), []);
            own.announce().unwrap().finish();
        });
    });
}
