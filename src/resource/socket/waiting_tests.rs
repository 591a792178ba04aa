//! Connections that are taken and put back, from peers that are only made up. They need the rights of root; without them there is
//! nothing to see.

use super::*;
use crate::sys::namespace;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::Command;

/// In a network of its own, with a way to those peers.
pub fn alone(work: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        return;
    }
    let script = "ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
        ip addr add 198.51.100.1/24 dev v0; ip -6 addr add 2001:db8::1/64 dev v0 nodad
        ip neigh replace 198.51.100.9 lladdr 02:00:00:00:00:09 dev v0
        ip -6 neigh replace 2001:db8::9 lladdr 02:00:00:00:00:09 dev v0
        ip route add default via 198.51.100.9";
    namespace::fresh_network(|| {
        assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success());
        work();
    })
    .unwrap();
}

fn made_up(local: SocketAddr, peer: &str, number: u32, stage: Stage, data: &[u8]) -> Waiting {
    Waiting {
        local: local.into(),
        peer: peer.parse::<SocketAddr>().unwrap().into(),
        own_first: 0xffff_0000u32.wrapping_add(number * 0x7fff),
        peer_first: 0x7fff_fff0u32.wrapping_add(number * 0x1000_0001),
        largest_segment: 1400 + number as u16,
        scales: (number as u8 % 9 + 1, 0),
        sack: number.is_multiple_of(2),
        timestamps: !number.is_multiple_of(3),
        peer_clock: if stage == Stage::HalfOpen && !number.is_multiple_of(3) { 0xabcd_0000 + number } else { 0 },
        marks: false,
        window: 40000 >> (number as u8 % 9 + 1) << (number as u8 % 9 + 1),
        data: data.to_vec(),
        stage,
    }
}

/// The kernel chooses the shift of its own window by itself.
fn same(a: &Waiting, b: &Waiting) {
    let scales = (b.scales.0, a.scales.1);
    let broken = a.stage == Stage::Broken;
    let window = if broken { a.window } else { b.window };
    assert_eq!(*a, Waiting { scales, window, ..b.clone() });
}

fn taken(listener: &impl AsFd) -> Vec<Waiting> {
    let mut taken = Vec::new();
    take(listener.as_fd(), &mut taken).unwrap();
    taken
}

fn long() -> Vec<u8> {
    (0..40000u32).map(|n| (n.wrapping_mul(2654435761) >> 13) as u8).collect()
}

#[test]
fn they_come_back_in_their_order_with_all_they_hold() {
    alone(|| {
        let placing = Placing::new().unwrap();
        for (mine, theirs) in [("198.51.100.1:0", "198.51.100.9"), ("[2001:db8::1]:0", "[2001:db8::9]"), ("[::]:0", "192.0.2.5")] {
            let listener = TcpListener::bind(mine).unwrap();
            let mut local = listener.local_addr().unwrap();
            if local.ip().is_unspecified() {
                local.set_ip("198.51.100.1".parse().unwrap());
            }
            let stages = [Stage::Open, Stage::Ended, Stage::Open, Stage::Broken, Stage::Ended, Stage::Open];
            let data: [&[u8]; 6] = [b"", b"", b"some bytes", b"broken off", &long(), &long()];
            let wanted: Vec<Waiting> =
                (0..6).map(|n| made_up(local, &format!("{theirs}:{}", 5000 + n), n as u32, stages[n], data[n])).collect();
            for waiting in &wanted {
                possible(waiting.local.into(), waiting.peer.into()).unwrap();
                placing.put(waiting, 0).unwrap();
            }
            for _ in 0..3 {
                let first = taken(&listener);
                assert_eq!(first.len(), 6, "{mine}");
                let ends = |w: &Waiting| Waiting { local: w.ends().0.into(), peer: w.ends().1.into(), ..w.clone() };
                first.iter().zip(&wanted).for_each(|(a, b)| same(&ends(a), b));
                first.iter().for_each(|waiting| placing.put(waiting, 0).unwrap());
                let second = taken(&listener);
                assert_eq!(first, second, "{mine}");
                second.iter().for_each(|waiting| placing.put(waiting, 0).unwrap());
            }
            for (n, waiting) in wanted.iter().enumerate() {
                let (mut accepted, from) = listener.accept().unwrap();
                assert_eq!(plain(from), waiting.ends().1);
                let mut read = vec![0; waiting.data.len()];
                accepted.read_exact(&mut read).unwrap();
                assert_eq!(read, waiting.data);
                match waiting.stage {
                    Stage::Ended => assert_eq!(accepted.read(&mut [0]).unwrap(), 0),
                    Stage::Broken => assert!(accepted.read(&mut [0]).is_err(), "{n}"),
                    _ => {}
                }
            }
        }
    });
}

#[test]
fn half_open_ones_wait_for_the_last_ack() {
    alone(|| {
        let placing = Placing::new().unwrap();
        let listener = TcpListener::bind("198.51.100.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let waiting = made_up(local, "198.51.100.9:4000", 1, Stage::HalfOpen, b"");
        placing.put(&waiting, 0).unwrap();
        assert!(taken(&listener).is_empty());
        placing.send(&waiting, &waiting.segment(waiting.peer_first.wrapping_add(1), ACK)).unwrap();
        let there = taken(&listener);
        same(&there[0], &Waiting { stage: Stage::Open, peer_clock: 0, ..waiting });
    });
}

#[test]
fn what_cannot_be_is_said_before() {
    alone(|| {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(possible(at("203.0.113.1:80"), at("198.51.100.9:1")), Err(Errno::EADDRNOTAVAIL));
        assert_eq!(possible(at("[2001:db8::1]:80"), at("[2001:db9::9]:1")), Err(Errno::ENETUNREACH));
        // Somebody has a connection between these addresses.
        let placing = Placing::new().unwrap();
        let listener = TcpListener::bind("198.51.100.1:0").unwrap();
        let waiting = made_up(listener.local_addr().unwrap(), "198.51.100.9:4000", 2, Stage::Open, b"x");
        placing.put(&waiting, 0).unwrap();
        let other = Waiting { data: b"other".to_vec(), ..waiting.clone() };
        let (held, _): (OwnedFd, _) = inet::accept(listener.as_fd()).unwrap();
        drop(listener);
        assert!(placing.put(&other, 0).is_err());
        drop(held);
    });
}

#[test]
fn an_exchange_changes_nothing() {
    use crate::resource::socket::exchange::{Seat, exchange, possible};
    alone(|| {
        let placing = Placing::new().unwrap();
        for (mine, theirs) in [("198.51.100.1:0", "198.51.100.9"), ("[::]:0", "[2001:db8::9]")] {
            let listener = TcpListener::bind(mine).unwrap();
            // Nobody who brings no data is let in by this one.
            let deferred = 5i32.to_ne_bytes();
            socket::set_option(listener.as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &deferred).unwrap();
            socket::set_number(listener.as_fd(), libc::SO_MARK, 7).unwrap();
            let mut local = listener.local_addr().unwrap();
            if local.ip().is_unspecified() {
                local.set_ip("2001:db8::1".parse().unwrap());
            }
            let stages = [Stage::Open, Stage::HalfOpen, Stage::Ended, Stage::HalfOpen];
            let data: [&[u8]; 4] = [b"some bytes", b"", b"and the end", b""];
            let mut wanted: Vec<Waiting> =
                (0..4).map(|n| made_up(local, &format!("{theirs}:{}", 5000 + n), n as u32, stages[n], data[n])).collect();
            wanted.iter().for_each(|waiting| placing.put(waiting, 0).unwrap());
            let seats = [Seat::of(listener.as_fd().try_clone_to_owned().unwrap()).unwrap()];
            possible(&seats).unwrap();
            let limit = "/proc/sys/net/ipv4/tcp_max_tw_buckets";
            let usual = std::fs::read_to_string(limit).unwrap();
            std::fs::write(limit, "10").unwrap();
            assert!(possible(&seats).is_err());
            std::fs::write(limit, usual).unwrap();
            let first = exchange(&seats, &[]).unwrap().remove(0);
            assert_eq!((first.waiting.len(), &first.unknown[..]), (4, &[][..]));
            wanted.sort_by_key(|w| w.stage == Stage::HalfOpen);
            let by_peer = |a: &Waiting| wanted.iter().position(|b| b.peer == a.peer).unwrap();
            for waiting in &first.waiting {
                let wanted = &wanted[by_peer(waiting)];
                let window = if wanted.stage == Stage::HalfOpen { waiting.window } else { wanted.window };
                same(waiting, &Waiting { window, ..wanted.clone() });
            }
            assert_eq!((by_peer(&first.waiting[0]), by_peer(&first.waiting[1])), (0, 1));
            // In any order: the kernel keeps no one of half-open ones.
            let mut second = exchange(&seats, &[]).unwrap().remove(0);
            second.waiting.sort_by_key(|w| first.waiting.iter().position(|f| f.peer == w.peer));
            assert_eq!(first, second);
            let value = socket::option(listener.as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4).unwrap();
            assert!(value != [0; 4] && socket::number(listener.as_fd(), libc::SO_MARK) == Ok(7));
            assert_eq!(taken(&listener).len(), 2);
        }
    });
}
