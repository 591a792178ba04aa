//! What may be heard, and what may not.

use super::super::frame::tests::some;
use super::super::state::{Event, Limits, Path, Standby};
use super::*;
use std::time::{Duration, Instant};

fn pair() -> (Cipher, Cipher) {
    let key = Key::make().expect("a key");
    (Cipher::new(&key, End::Primary).expect("an end"), Cipher::new(&key, End::Standby).expect("an end"))
}

#[test]
fn each_frame_is_heard_once() {
    let (mut primary, mut standby) = pair();
    let sealed: Vec<_> = (0..300).map(|n| primary.seal(&some(n)[0]).expect("sealed")).collect();
    for (n, datagram) in sealed.iter().enumerate() {
        assert_eq!(datagram.len(), LENGTH);
        assert_eq!(standby.open(&mut datagram.clone()), Some(some(n as u64)[0]));
    }
    for datagram in &sealed {
        assert_eq!(standby.open(&mut datagram.clone()), None);
    }
    assert_eq!(standby.dropped, Dropped { replayed: 300, ..Dropped::default() });
}

#[test]
fn late_ones_are_heard_and_very_late_ones_are_not() {
    let (mut primary, mut standby) = pair();
    let sealed: Vec<_> = (0..200).map(|n| primary.seal(&some(n)[0]).expect("sealed")).collect();
    assert!(standby.open(&mut sealed[150].clone()).is_some());
    assert!(standby.open(&mut sealed[149].clone()).is_some());
    assert!(standby.open(&mut sealed[23].clone()).is_some(), "the last that can be told from one that was there");
    assert!(standby.open(&mut sealed[22].clone()).is_none());
    assert!(standby.open(&mut sealed[149].clone()).is_none());
    assert!(standby.open(&mut sealed[199].clone()).is_some());
    assert!(standby.open(&mut sealed[150].clone()).is_none());
    assert_eq!(standby.dropped.replayed, 3);
}

#[test]
fn what_was_changed_or_made_by_others_decides_nothing() {
    let (mut primary, mut standby) = pair();
    let sealed = primary.seal(&some(5)[0]).expect("sealed");
    for place in 0..LENGTH {
        for bit in 0..8 {
            let mut changed = sealed.clone();
            changed[place] ^= 1 << bit;
            assert_eq!(standby.open(&mut changed), None, "byte {place}");
        }
    }
    (0..LENGTH).for_each(|n| assert_eq!(standby.open(&mut sealed.clone()[..n]), None));
    // Of another watch; of this one, and its own words.
    let (mut stranger, _) = pair();
    assert_eq!(standby.open(&mut stranger.seal(&some(5)[0]).expect("sealed")), None);
    let mut own = standby.seal(&some(5)[1]).expect("sealed");
    assert_eq!(standby.open(&mut own), None);
    let mut state = 11u64;
    for length in (0..2 * LENGTH).cycle().take(5_000) {
        let mut random: Vec<u8> = (0..length).map(|_| dice(&mut state)).collect();
        assert_eq!(standby.open(&mut random), None);
    }
    assert_eq!((standby.dropped.replayed, standby.dropped.strange), (0, 0));
    // None of it has moved the window.
    assert_eq!(standby.open(&mut sealed.clone()), Some(some(5)[0]));
}

fn dice(state: &mut u64) -> u8 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) as u8
}

#[test]
fn what_is_sealed_and_no_frame_is_counted() {
    let (primary, mut standby) = pair();
    let counter = 3u64.to_be_bytes();
    let mut text = vec![0xff; frame::LENGTH];
    primary.seal.seal_in_place_append_tag(Cipher::nonce(counter), Aad::from(counter), &mut text).expect("sealed");
    assert_eq!(standby.open(&mut [&counter[..], &text].concat()), None);
    assert_eq!(standby.dropped.strange, 1);
}

#[test]
fn a_key_that_is_used_up_seals_nothing() {
    let (mut primary, _) = pair();
    primary.counter = u64::MAX;
    assert!(primary.seal(&some(1)[0]).is_err());
}

/// Waits, generously, for what comes.
fn heard(beats: &mut Beats) -> Came {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        match beats.receive() {
            Came::Nothing => std::thread::yield_now(),
            came => return came,
        }
    }
    Came::Nothing
}

#[test]
fn over_sockets() {
    let key = Key::make().expect("a key");
    let handed = Key::of(*key.bytes());
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let mut standby = Beats::listen(&handed, any.parse().expect("an address")).expect("a socket");
        let at = SocketAddr::new(any.parse::<SocketAddr>().expect("an address").ip(), standby.port().expect("a port"));
        let mut primary = Beats::to(&key, at).expect("a socket");
        assert!(!standby.send(&some(1)[1]).expect("sealed"), "it knows of nobody yet");
        // A flood of what is not sealed stands in nobody's way.
        let stranger = UdpSocket::bind(any).expect("a socket");
        (0..100).for_each(|n| drop(stranger.send_to(&vec![n; usize::from(n) * 3], at)));
        assert!(primary.send(&some(1)[0]).expect("sealed"));
        assert_eq!(heard(&mut standby), Came::Frame(some(1)[0]));
        assert!(standby.send(&some(2)[1]).expect("sealed"));
        assert_eq!(heard(&mut primary), Came::Frame(some(2)[1]));
        assert!(standby.dropped().forged > 0);
        drop(standby);
        assert!(primary.send(&some(3)[0]).expect("sealed"));
        assert_eq!(heard(&mut primary), Came::Refused);
    }
}

/// What the cipher lets through has still to be of the right generation.
#[test]
fn stale_generations_are_counted() {
    let mut machine = Standby::begin(5, 1, Limits::default());
    machine.step(Event::Start, Duration::ZERO);
    for n in 0..4 {
        machine.step(Event::Heard(Path::Beat, some(n)[0]), Duration::from_millis(n));
    }
    assert_eq!(machine.stale(), 4);
}
