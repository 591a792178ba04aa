//! What leaves some addresses waits.

use super::{PATIENCE, V4, heard, network, next, pair, rules, sh, soon_gone};
use crate::netlock::hold::{Hold, shut};
use crate::netlock::kept::{self, Owner};
use crate::netlock::waits::News;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs `body` with the two addresses whose packets are to wait, where packets can be held.
fn with_addresses(body: impl FnOnce([IpAddr; 2]) + Send) {
    if super::can_hold() {
        network(|| {
            sh("ip address add fd99::5/128 dev lo nodad");
            body(["127.0.0.5".parse().expect("an address"), "fd99::5".parse().expect("an address")]);
        });
    }
}

/// A connection: that of the address and that of a client elsewhere.
fn client_of(address: IpAddr) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((address, 0)).expect("listen");
    super::join(&listener)
}

#[test]
fn what_leaves_waits_for_its_mark() {
    with_addresses(|addresses| {
        let hold = Hold::prepare("test", &addresses[..1], false, || {}).expect("a hold");
        let (mut tree, client) = client_of(addresses[0]);
        let (mut other, others_client) = pair(V4);
        tree.write_all(b"before").expect("write");
        assert_eq!(next(&client, 6), b"before");
        hold.close().expect("closed");
        tree.write_all(b"one").expect("write");
        other.write_all(b"free").expect("write");
        assert_eq!(next(&others_client, 4), b"free");
        assert!(heard(&client).is_empty());
        let mark = hold.mark().expect("a mark");
        let udp = UdpSocket::bind((addresses[0], 0)).expect("bind");
        let to = UdpSocket::bind((V4, 0)).expect("bind");
        to.set_read_timeout(Some(super::LONG)).expect("option");
        udp.send_to(b"datagram", to.local_addr().expect("name")).expect("sent");
        assert!(to.recv(&mut [0; 9]).is_err() && hold.state().held >= 2);
        while hold.waits_after(mark) != News::Waits {
            std::thread::yield_now();
        }
        hold.release(mark).expect("released");
        assert_eq!(next(&client, 3), b"one");
        assert!(to.recv(&mut [0; 9]).is_err());
        hold.open().expect("opened");
        to.set_read_timeout(Some(PATIENCE)).expect("option");
        assert_eq!(to.recv(&mut [0; 9]).expect("a datagram"), 8);
        let waits = hold.waits();
        assert!(waits.count() >= 2 && waits.longest() >= super::LONG, "{waits:?}");
        assert!(waits.quantile(0.0) <= waits.quantile(1.0));
        drop(hold);
        assert!(rules().is_empty() && soon_gone());
    });
}

#[test]
fn large_segments_pass_whole() {
    with_addresses(|addresses| {
        let came = Arc::new(AtomicU32::new(0));
        let told = came.clone();
        let hold = Hold::prepare("test", &addresses, false, move || _ = told.fetch_add(1, Ordering::Relaxed)).expect("a hold");
        for address in addresses {
            let (mut tree, client) = client_of(address);
            hold.close().expect("closed");
            let all: Vec<u8> = (0..4 << 20u32).map(|n| (n / 7) as u8).collect();
            std::thread::scope(|scope| {
                let writes = scope.spawn(|| tree.write_all(&all).expect("write"));
                let reads = scope.spawn(|| next(&client, all.len()));
                while !writes.is_finished() || !reads.is_finished() {
                    hold.release(hold.mark().expect("a mark")).expect("released");
                }
                assert!(reads.join().expect("read") == all);
            });
            hold.open().expect("opened");
        }
        assert!(came.load(Ordering::Relaxed) > 0 && hold.state().dropped == 0);
    });
}

/// Whoever held them is gone: they are lost, and all that comes later, until somebody takes the table away.
#[test]
fn nothing_gets_out_by_itself() {
    with_addresses(|addresses| {
        for address in addresses {
            let hold = Hold::prepare("test", &addresses, false, || {}).expect("a hold");
            let (mut tree, client) = client_of(address);
            hold.close().expect("closed");
            tree.write_all(b"lost").expect("write");
            assert_eq!(heard(&client), b"");
            drop(hold);
            shut("test").expect("shut");
            assert!(kept::sweep(None).expect("swept").is_empty());
            let locks = kept::list(None).expect("a list");
            assert!(matches!(&locks[..], [lock] if lock.owner == Owner::Watch("test".into()) && !lock.stale), "{locks:?}");
            assert!(kept::release_named("test").is_err(), "its meio is at work");
            assert_eq!(heard(&client), b"");
            assert!(kept::release(None, &locks[0].owner).expect("unlocked"));
            // By its timer.
            assert_eq!(next(&client, 4), b"lost");
        }
        // How neighbours are found is nobody's output.
        let at = SocketAddr::new(addresses[1], 0);
        assert!(TcpListener::bind(at).is_ok() && shut("test").is_err());
    });
}
