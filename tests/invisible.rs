//! A dump of a server that goes on is invisible to whoever streams through it: every byte comes back once and in order.

use crate::alone;
use crate::lab::{Lab, SOON, until};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sends back what it hears.
const ECHO: &str = r#"
import os, socket, sys
prefix, port = sys.argv[1], int(sys.argv[2])
peer = socket.create_connection(("127.0.0.1", port))
open(prefix + ".part", "w").write("ready\n")
os.rename(prefix + ".part", prefix + ".ready")
room = memoryview(bytearray(1 << 20))
while n := peer.recv_into(room):
    peer.sendall(room[:n])
"#;

/// Bytes in a second.
const RATE: u64 = 200_000_000;
/// Bytes that are written at once, and after which the stream repeats itself: a prime, so that no page or segment begins alike.
pub const PART: usize = 1_000_003;

/// The bytes of the stream up to there.
pub fn part() -> Vec<u8> {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..PART).map(|_| byte()).collect()
}

/// Segments that both ends have sent again: what ss(8) shows of `TCP_INFO`, `retrans:0/7`.
fn sent_again(port: &str) -> u64 {
    let listed = std::process::Command::new("ss").args(["-Htin", &format!("( sport = :{port} or dport = :{port} )")]).output();
    let text = String::from_utf8(listed.expect("ss of iproute2 starts").stdout).expect("text");
    assert!(text.contains("bytes_acked:"), "{text}");
    let counts = text.split_whitespace().filter_map(|word| word.strip_prefix("retrans:")?.split_once('/'));
    counts.map(|(_, all)| all.parse::<u64>().expect("a number")).sum()
}

/// Sends the stream at its pace, as long as it is wanted; how much it was.
fn send(mut stream: TcpStream, stop: &AtomicBool) -> u64 {
    let (part, begin) = (part(), Instant::now());
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&part).expect("the connection is there");
        sent += part.len() as u64;
        // What was missed while nobody answered is made up for.
        let due = Duration::from_secs_f64(sent as f64 / RATE as f64);
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    sent
}

/// Takes what comes back; how much it was.
fn receive(mut stream: TcpStream, back: &AtomicU64) -> u64 {
    let (part, mut room) = (part(), vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let n = stream.read(&mut room).expect("the connection is there");
        if n == 0 {
            return at;
        }
        let mut got = &room[..n];
        while !got.is_empty() {
            let from = (at % PART as u64) as usize;
            let length = got.len().min(PART - from);
            assert!(got[..length] == part[from..from + length], "the stream is another one near byte {at}");
            (at, got) = (at + length as u64, &got[length..]);
        }
        back.store(at, Ordering::Relaxed);
    }
}

alone! {
    fn a_fast_stream_goes_through_dumps() {
        let all = std::env::var_os("INVISIBLE").is_some();
        let dumps = if all { 200 } else { 8 };
        let mut lab = Lab::new("invisible");
        let script = lab.path("echo.py");
        std::fs::write(&script, ECHO).expect("script");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("name").port().to_string();
        let prefix = lab.path("x");
        let words = [script.to_str().expect("path"), prefix.to_str().expect("path"), &port];
        let mut running = lab.spawn(std::path::Path::new("/usr/bin/python3"), &words);
        let stream = listener.accept().expect("accept").0;
        stream.set_read_timeout(Some(SOON)).expect("option");
        assert!(until(SOON, || running.file("ready").exists()), "{}", lab.log());
        let (stop, back) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (out, inn) = (stream.try_clone().expect("clone"), stream.try_clone().expect("clone"));
        let sender = std::thread::spawn({
            let stop = stop.clone();
            move || send(out, &stop)
        });
        let receiver = std::thread::spawn({
            let back = back.clone();
            move || receive(inn, &back)
        });
        let begin = Instant::now();
        for _ in 0..dumps {
            let before = back.load(Ordering::Relaxed);
            let goes_on = || back.load(Ordering::Relaxed) > before + 5_000_000 || receiver.is_finished();
            assert!(until(SOON, goes_on) && !receiver.is_finished(), "the stream stands still");
            let image = lab.dump(&mut running, &[]);
            std::fs::remove_file(image).expect("image");
        }
        let took = begin.elapsed().as_secs_f64();
        let again = sent_again(&port);
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("all was sent");
        assert_eq!(receiver.join().expect("every byte once and in order"), sent);
        println!(
            "\nsurvive: {dumps} dumps under a stream of {:.0} MB/s: {sent} bytes came back once and in order, {again} segments sent again",
            sent as f64 / 1e6 / took
        );
        running.wait();
    }
}
