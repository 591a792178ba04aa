//! Locks at work, each in network namespaces that nobody else lives in. They need the rights of root; without them there
//! is nothing to see.

mod hold;

use super::kept::{self, Owner};
use super::*;
use crate::sys::namespace::fresh_network;
use crate::sys::socket;
use crate::sys::tcp::{self, Queue, Repair};
use crate::sys::wire::Wire;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

/// Long enough for a packet that is not held.
const LONG: Duration = Duration::from_millis(80);
/// Long enough for whatever is sent again.
const PATIENCE: Duration = Duration::from_secs(20);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn sh(script: &str) -> String {
    let out = Command::new("sh").args(["-ec", script]).output().expect("sh");
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Whoever sends is to wait for its timer, rather than to probe early.
const PATIENT: &str = "echo 0 >/proc/sys/net/ipv4/tcp_early_retrans";

/// Runs `body` in a network namespace with `lo`, if that can be.
fn network(body: impl FnOnce() + Send) {
    if nix::unistd::geteuid().is_root() && Command::new("ip").arg("-V").output().is_ok() {
        fresh_network(|| {
            sh(&format!("ip link set lo up; {PATIENT}"));
            body();
        })
        .expect("a network namespace");
    }
}

/// A connection: the tree's end and the peer's.
fn pair(ip: IpAddr) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((ip, 0)).expect("listen");
    join(&listener)
}

fn join(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let peer = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
    let tree = listener.accept().expect("accept").0;
    peer.set_nodelay(true).expect("option");
    (tree, peer)
}

fn flow(tree: &TcpStream) -> Flow {
    Flow { protocol: libc::IPPROTO_TCP as u8, local: tree.local_addr().expect("name"), remote: Some(tree.peer_addr().expect("name")) }
}

/// `tcpi_retransmits` and `tcpi_total_retrans` of tcp(7) `TCP_INFO`.
fn retransmissions(stream: &TcpStream) -> (u8, u32) {
    let info = socket::option(stream.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, 256).expect("TCP_INFO");
    (info[2], u32::from_ne_bytes(info[100..104].try_into().expect("four")))
}

/// What has arrived after a while.
fn heard(mut stream: &TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LONG)).expect("option");
    let mut bytes = vec![0; 1 << 16];
    let n = stream.read(&mut bytes).unwrap_or(0);
    bytes.truncate(n);
    bytes
}

/// So many bytes, when they arrive.
fn next(mut stream: &TcpStream, length: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).expect("option");
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("it comes");
    bytes
}

/// All chains, rules and sets but those of meio's locks, as the kernel tells them.
fn rules() -> Vec<Vec<u8>> {
    let socket = Socket::netfilter().expect("socket");
    let all = [1u16, 4, 7, 10].map(|kind| socket.dump(10 << 8 | kind, &[0; 4]).expect("a list"));
    let foreign = |m: &Vec<u8>| !m.windows(5).any(|w| w == b"meio-");
    // The number of the generation, in the head, changes with every transaction of anybody.
    all.into_iter().flatten().filter(foreign).map(|m| m[4..].to_vec()).collect()
}

/// A table as a user may have.
fn users_table() {
    let socket = Socket::netfilter().expect("socket");
    let mut batch = Batch::default();
    batch.table(&nft::Table { name: "mine".into(), flags: 0, comment: Some("do not touch".into()) });
    batch.set("mine", "ports", 13, 2);
    batch.elements("mine", "ports", &[vec![0, 22], vec![0, 80]]);
    batch.chain("mine", "in", Some(nft::Hook { number: nft::INPUT, priority: 0 }));
    batch.rule("mine", "in", &nft::Rule::new().payload(nft::TRANSPORT, 2, 2, 8).lookup("ports", 8).verdict(nft::ACCEPT));
    batch.commit(&socket).expect("a table");
}

/// A child that another thread has just begun has a copy of the socket for an instant, and with it the lock.
fn soon_gone() -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if kept::list(None).expect("a list").is_empty() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn holds(manner: Manner, ip: IpAddr) {
    network(|| {
        let listener = TcpListener::bind((ip, 0)).expect("listen");
        let (tree, mut peer) = join(&listener);
        let (other, mut others_peer) = join(&listener);
        let mut lock = NetLock::prepare(None, manner).expect("a lock");
        peer.write_all(b"before ").expect("write");
        assert_eq!(next(&tree, 7), b"before ");
        lock.add(&[flow(&tree)]).expect("added");
        for word in [&b"held "[..], b"in ", b"order"] {
            peer.write_all(word).expect("write");
        }
        others_peer.write_all(b"free").expect("write");
        assert_eq!(next(&other, 4), b"free");
        assert!(heard(&tree).is_empty());
        // What the tree sends is held too, and so are its answers.
        (&tree).write_all(b"answer").expect("write");
        assert_eq!(heard(&peer), b"");
        let opened = lock.open().expect("opened");
        if manner == Manner::Hold {
            assert_eq!(next(&tree, 13), b"held in order");
            assert_eq!(next(&peer, 6), b"answer");
            assert!(opened.packets >= 3 && opened.lost == 0, "{opened:?}");
        } else {
            assert_eq!(next(&tree, 13), b"held in order", "sent again");
        }
        drop(lock);
        assert!(rules().is_empty() && soon_gone());
        peer.write_all(b"after").expect("write");
        assert_eq!(next(&tree, 5), b"after");
    });
}

/// Whether this kernel can hold packets; else the lock says that it cannot.
fn can_hold() -> bool {
    let mut can = false;
    network(|| can = NetLock::prepare(None, Manner::Hold).expect("a lock").remark.is_none());
    can
}

#[test]
fn a_locked_flow_hears_nothing_until_it_is_opened() {
    for ip in [V4, V6] {
        holds(Manner::Drop, ip);
        if can_hold() {
            holds(Manner::Hold, ip);
        }
    }
}

#[test]
fn nothing_is_lost() {
    if !can_hold() {
        return;
    }
    network(|| {
        // So that no timer runs out on a machine that has much else to do.
        sh("ip route change table local local 127.0.0.1 dev lo proto kernel scope host src 127.0.0.1 rto_min 60s");
        let (tree, mut peer) = pair(V4);
        let mut lock = NetLock::prepare(None, Manner::Hold).expect("a lock");
        let begun = Instant::now();
        let sent: Vec<u8> = (0..8_000_000u32).map(|n| (n / 7) as u8).collect();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                peer.write_all(&sent).expect("write");
                retransmissions(&peer)
            });
            let reader = scope.spawn(|| {
                let mut got = vec![0; sent.len()];
                (&tree).read_exact(&mut got).expect("read");
                got
            });
            std::thread::sleep(Duration::from_millis(2));
            lock.add(&[flow(&tree)]).expect("added");
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(lock.open().expect("opened").lost, 0);
            assert!(reader.join().expect("reader") == sent);
            // What leaves the lock may be overtaken in the instant in which it opens, and is said again then, but not by a timer.
            assert_eq!(writer.join().expect("writer").0, 0);
        });
        assert!(begun.elapsed() < Duration::from_secs(30), "something was lost and not sent again for {:?}", begun.elapsed());
    });
}

/// One that was used before, of which the packets are wanted then: what comes in can be taken, and is let in all the same.
#[test]
fn what_waits_can_be_taken() {
    if !can_hold() {
        return;
    }
    network(|| {
        let (tree, mut peer) = pair(V4);
        let mut lock = NetLock::prepare(None, Manner::Hold).expect("a lock");
        for round in 0..3u8 {
            if round == 1 {
                lock.copy().expect("it copies");
            }
            lock.add(&[flow(&tree)]).expect("added");
            (&tree).write_all(&[b'a'; 10]).expect("write");
            // More than one segment holds.
            let sent = vec![round; 40_000];
            peer.write_all(&sent).expect("write");
            std::thread::sleep(Duration::from_millis(20));
            let (mut taken, port) = (0, tree.local_addr().expect("name").port());
            for packet in lock.copies() {
                // Of those that go out nothing is told.
                assert_eq!(packet[22..24], port.to_be_bytes());
                taken += packet.iter().filter(|b| **b == round && round > 0).count();
            }
            assert!(if round > 0 { taken >= sent.len() / 4 } else { taken == 0 }, "{round}: {taken}");
            assert_eq!(lock.open().expect("opened").lost, 0);
            assert_eq!((next(&tree, sent.len()) == sent, next(&peer, 10)), (true, vec![b'a'; 10]));
        }
    });
}

/// Whoever was not answered for long says it again when it is told that it was not heard, rather than by its timer.
#[test]
fn who_was_not_heard_is_told() {
    let ms = Duration::from_millis;
    for ip in [V4, V6] {
        network(|| {
            let (tree, mut peer) = pair(ip);
            tcp::repair(tree.as_fd(), Repair::On).and_then(|()| tcp::choose(tree.as_fd(), Queue::Received)).expect("repair");
            let missed = tcp::sequence(tree.as_fd()).expect("a number");
            tcp::repair(tree.as_fd(), Repair::Off).expect("it goes on");
            let wire = Wire::new(PASS).expect("raw sockets");
            let mut lock = NetLock::prepare(None, Manner::Drop).expect("a lock");
            lock.add(&[flow(&tree)]).expect("added");
            let begun = Instant::now();
            peer.write_all(b"lost").expect("write");
            // It is said again after 0.2, 0.6 and 1.4 s.
            std::thread::sleep(ms(800).saturating_sub(begun.elapsed()));
            lock.open().expect("opened");
            for _ in 0..4 {
                wire.unreachable(tree.local_addr().expect("name"), peer.local_addr().expect("name"), missed).expect("told");
            }
            assert_eq!(next(&tree, 4), b"lost");
            assert!(begun.elapsed() < ms(1300), "{:?}", begun.elapsed());
        });
    }
}

#[test]
fn between_two_namespaces() {
    if !can_hold() {
        return;
    }
    network(|| {
        let here = namespace::open(nix::unistd::gettid().as_raw(), "net").expect("own namespace");
        let tid = nix::unistd::gettid();
        fresh_network(|| {
            sh(&format!(
                "ip link add name m0 type veth peer name m1 netns {tid}; ip addr add 10.9.9.2/24 dev m0; ip link set m0 up\n{PATIENT}"
            ));
            inside(Some(here.as_fd()), || sh("ip addr add 10.9.9.1/24 dev m1; ip link set m1 up")).expect("inside");
            let listener = inside(Some(here.as_fd()), || TcpListener::bind("10.9.9.1:0").expect("listen")).expect("inside");
            let (tree, mut peer) = join(&listener);
            let mut lock = NetLock::prepare(Some(here.as_fd()), Manner::Hold).expect("a lock");
            assert!(kept::list(None).expect("a list").is_empty(), "the lock belongs into the other namespace");
            lock.add(&[flow(&tree)]).expect("added");
            let sent: Vec<u8> = (0..3 * 1448).map(|n| (n / 3) as u8).collect();
            sent.chunks(1000).for_each(|part| peer.write_all(part).expect("write"));
            assert_eq!(heard(&tree), b"");
            lock.open().expect("opened");
            let mut got = vec![0; sent.len()];
            (&tree).read_exact(&mut got).expect("read");
            assert_eq!((got == sent, retransmissions(&peer)), (true, (0, 0)));
        })
        .expect("a network namespace");
    });
}

#[test]
fn nobody_answers_for_a_socket_that_is_gone() {
    network(|| {
        let (tree, mut peer) = pair(V4);
        let udp = UdpSocket::bind("0.0.0.0:0").expect("bind");
        let port = udp.local_addr().expect("name").port();
        let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
        client.connect(("127.0.0.1", port)).expect("connect");
        let id = Owner::image(&[0xab; 16]);
        let mut lock = NetLock::prepare(None, Manner::Hold).expect("a lock");
        let unconnected = Flow { protocol: libc::IPPROTO_UDP as u8, local: udp.local_addr().expect("name"), remote: None };
        lock.add(&[flow(&tree), unconnected]).expect("added");
        lock.keep(&id).expect("kept");
        // A reset would be sent: bytes are unread.
        drop(tree);
        drop(udp);
        peer.write_all(b"hello").expect("write");
        client.send(b"hello").expect("send");
        std::thread::sleep(LONG);
        peer.write_all(b"again").expect("no reset has come");
        client.send(b"again").expect("no refusal has come");
        let locks = kept::list(None).expect("a list");
        assert_eq!((locks.len(), &locks[0].owner, locks[0].connections, locks[0].stale), (1, &id, 2, false));
        assert!(kept::sweep(None).expect("swept").is_empty());
        assert!(kept::release_named("cdcdcdcdcd").is_err() && kept::is_kept(None, &id).expect("a list"));
        assert!(kept::release(None, &id).expect("released"));
        assert!(!kept::release(None, &id).expect("nothing left"));
        client.send(b"now").expect("send");
        std::thread::sleep(LONG);
        assert!(client.send(b"refused").is_err(), "the port is unreachable again");
    });
}

#[test]
fn a_stale_lock_is_swept_and_others_stay() {
    network(|| {
        let socket = Socket::netfilter().expect("socket");
        // As a kernel before 5.12 leaves it behind.
        let dead = Owner::Process { pid: 0x7fff_0000, start: 7, namespace: read_namespace() };
        let elsewhere = Owner::Process { pid: 0x7fff_0000, start: 7, namespace: 1 };
        for (name, owner) in [("meio-1-0", &dead), ("meio-2-0", &elsewhere), ("meio-kept-x", &Owner::Image("x".into()))] {
            let mut batch = Batch::default();
            table::build(&mut batch, &nft::Table { name: name.into(), flags: 0, comment: Some(owner.comment(1)) }, [Held::Dropped; 2]);
            batch.commit(&socket).expect("a table");
        }
        users_table();
        let living = NetLock::prepare(None, Manner::Drop).expect("a lock");
        let names = |locks: &[kept::Lock]| locks.iter().map(|l| l.table.clone()).collect::<Vec<_>>();
        assert_eq!(names(&kept::list(None).expect("a list")), ["meio-2-0", "meio-kept-x", &living.name]);
        assert!(kept::sweep(None).expect("swept").is_empty());
        assert_eq!(rules().len(), 1 + 1 + 1 + 1);
    });
}

fn read_namespace() -> u64 {
    match Owner::own() {
        Owner::Process { namespace, .. } => namespace,
        Owner::Image(_) | Owner::Watch(_) => 0,
    }
}

#[test]
fn the_users_rules_stay_as_they_are() {
    network(|| {
        users_table();
        let before = rules();
        assert_eq!(before.len(), 4);
        let (tree, _peer) = pair(V4);
        let mut lock = NetLock::prepare(None, Manner::Hold).expect("a lock");
        lock.add(&[flow(&tree)]).expect("added");
        assert!(rules() == before);
        lock.keep(&Owner::image(&[1; 16])).expect("kept");
        assert!(rules() == before);
        assert_eq!(kept::release_named("all").expect("released").len(), 1);
        assert!(rules() == before);
    });
}

#[test]
fn the_end_of_meio_opens_the_lock() {
    network(|| {
        let (tree, mut peer) = pair(V4);
        let mut lock = NetLock::prepare(None, Manner::Hold).expect("a lock");
        lock.add(&[flow(&tree)]).expect("added");
        peer.write_all(b"late").expect("write");
        assert_eq!(heard(&tree), b"");
        // As the kernel does it for a process that is killed: descriptors are closed, and nothing else.
        assert!(lock.owned);
        lock.locked.clear();
        drop(lock);
        assert!(rules().is_empty() && soon_gone());
        tree.set_read_timeout(Some(Duration::from_secs(5))).expect("option");
        let mut bytes = [0; 4];
        (&tree).read_exact(&mut bytes).expect("sent again");
        assert_eq!(&bytes, b"late");
    });
}

#[test]
fn packets_with_the_mark_pass() {
    network(|| {
        let tree = UdpSocket::bind("127.0.0.1:0").expect("bind");
        tree.set_read_timeout(Some(LONG)).expect("option");
        let peer = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let mut lock = NetLock::prepare(None, Manner::Drop).expect("a lock");
        let local = tree.local_addr().expect("name");
        lock.add(&[Flow { protocol: libc::IPPROTO_UDP as u8, local, remote: None }]).expect("added");
        peer.send_to(b"held", local).expect("send");
        assert!(tree.recv(&mut [0; 9]).is_err());
        socket::set_number(peer.as_fd(), libc::SO_MARK, PASS as i32).expect("mark");
        peer.send_to(b"pass", local).expect("send");
        assert_eq!(tree.recv(&mut [0; 9]).expect("arrives"), 4);
    });
}

#[test]
fn many_packets_wait() {
    if !can_hold() {
        return;
    }
    network(|| {
        let count = std::env::var("PACKETS").ok().and_then(|n| n.parse().ok()).unwrap_or(30_000u32);
        let tree = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let peer = UdpSocket::bind("127.0.0.1:0").expect("bind");
        peer.connect(tree.local_addr().expect("name")).expect("connect");
        let mut lock = NetLock::prepare(None, Manner::Hold).expect("a lock");
        let flow = Flow { protocol: libc::IPPROTO_UDP as u8, local: tree.local_addr().expect("name"), remote: None };
        lock.add(&[flow]).expect("added");
        let begin = Instant::now();
        (0..count).for_each(|n| assert_eq!(peer.send(&n.to_ne_bytes()).expect("send"), 4));
        let sent = begin.elapsed();
        let begin = Instant::now();
        let opened = lock.open().expect("opened");
        println!("{count} packets: sent in {sent:?}, let in in {:?}: {opened:?}", begin.elapsed());
        assert_eq!((opened.packets, opened.lost), (count, 0));
        // What the socket has room for are the first ones.
        let mut bytes = [0; 4];
        tree.set_nonblocking(true).expect("option");
        let mut next = 0u32;
        while tree.recv(&mut bytes).is_ok() {
            assert_eq!(u32::from_ne_bytes(bytes), next);
            next += 1;
        }
        assert!(next > 100, "{next}");
    });
}

/// Elements of many flows are one transaction; no packet is needed to see what it takes.
#[test]
fn ten_thousand_flows() {
    network(|| {
        let flow = |n: u32| Flow {
            protocol: libc::IPPROTO_TCP as u8,
            local: "10.1.2.3:443".parse().expect("address"),
            remote: Some((Ipv4Addr::from_bits(0x0a00_0000 + n), 1024).into()),
        };
        let time = |count: u32, expected: u32| {
            let flows: Vec<Flow> = (0..count).map(flow).collect();
            let begin = Instant::now();
            let mut lock = NetLock::prepare(None, Manner::Hold).expect("a lock");
            lock.expect(&flows[..expected as usize]).expect("expected");
            let prepared = begin.elapsed();
            let begin = Instant::now();
            lock.add(&flows).expect("added");
            let added = begin.elapsed();
            let begin = Instant::now();
            lock.open().expect("opened");
            println!("{count} flows, {expected} expected: prepare {prepared:?}, add {added:?}, open {:?}", begin.elapsed());
            added
        };
        let few = (0..5).map(|_| time(10, 0)).min().expect("some");
        let known = (0..5).map(|_| time(10_000, 9_900)).min().expect("some");
        let many = (0..5).map(|_| time(10_000, 0)).min().expect("some");
        // The bounds have room for unoptimised code on a machine that is shared.
        assert!(few < Duration::from_millis(200), "{few:?}");
        assert!(many < Duration::from_secs(2) && known < many, "{many:?} {known:?}");
    });
}
