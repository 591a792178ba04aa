//! The network lock, seen by the one who is at the other end of a tree's connection.

use crate::alone;
use crate::lab::{Lab, Running, SOON, until};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Sends back what it hears. It has a datagram socket, too.
const ECHO: &str = r#"
import os, socket, sys
prefix, port = sys.argv[1], int(sys.argv[2])
peer = socket.create_connection(("127.0.0.1", port), source_address=(sys.argv[3], 0))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
open(prefix + ".part", "w").write("ready\n")
os.rename(prefix + ".part", prefix + ".ready")
while data := peer.recv(1 << 16):
    peer.sendall(data)
"#;

/// One that streams to the tree, and takes every byte that comes back at its word.
pub struct Client {
    pub stream: TcpStream,
    stop: Arc<AtomicBool>,
    back: Arc<AtomicU64>,
    stall: Arc<Mutex<Duration>>,
    threads: Vec<JoinHandle<()>>,
}

/// The byte at a place of the stream.
fn byte(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16).wrapping_mul(167) as u8
}

impl Client {
    pub fn new(stream: TcpStream) -> Client {
        stream.set_nodelay(true).expect("option");
        let (stop, back) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let stall = Arc::new(Mutex::new(Duration::ZERO));
        let (mut out, mut inn) = (stream.try_clone().expect("clone"), stream.try_clone().expect("clone"));
        inn.set_read_timeout(Some(SOON)).expect("option");
        let told = (stop.clone(), back.clone(), stall.clone());
        let writer = std::thread::spawn({
            let (stop, back) = (stop.clone(), back.clone());
            move || {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    let part: Vec<u8> = (sent..sent + 10_000).map(byte).collect();
                    out.write_all(&part).expect("the connection is there");
                    sent += part.len() as u64;
                    while sent > back.load(Ordering::Relaxed) + 400_000 && !stop.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                }
                out.shutdown(std::net::Shutdown::Write).expect("shutdown");
            }
        });
        let reader = std::thread::spawn(move || {
            let ((_, back, stall), mut part) = (told, vec![0; 1 << 16]);
            let (mut at, mut last) = (0u64, Instant::now());
            loop {
                let n = match inn.read(&mut part) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                    n => n.expect("the connection is there"),
                };
                if n == 0 {
                    return;
                }
                for (k, b) in part[..n].iter().enumerate() {
                    assert_eq!(*b, byte(at + k as u64), "byte {} of the stream", at + k as u64);
                }
                at += n as u64;
                back.store(at, Ordering::Relaxed);
                let mut longest = stall.lock().expect("lock");
                *longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        });
        Client { stream, stop, back, stall, threads: vec![writer, reader] }
    }

    /// Waits until more has come back.
    pub fn goes_on(&self) {
        assert!(self.moves(1_000_000), "the stream stands still");
    }

    /// Whether so many bytes come back within a while.
    pub fn moves(&self, bytes: u64) -> bool {
        let before = self.back.load(Ordering::Relaxed);
        let is_broken = || self.threads.iter().any(JoinHandle::is_finished);
        until(SOON, || self.back.load(Ordering::Relaxed) > before + bytes || is_broken()) && !is_broken()
    }

    fn longest_stall(&self) -> Duration {
        std::mem::take(&mut *self.stall.lock().expect("lock"))
    }

    /// The tree has echoed everything, and ends.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("every byte came once and in order");
        }
        drop(self.stream);
    }
}

fn start(lab: &Lab) -> (Running, Client) {
    from(lab, "127.0.0.1")
}

/// A tree whose end of the connection has this address.
pub fn from(lab: &Lab, address: &str) -> (Running, Client) {
    let script = lab.path("echo.py");
    std::fs::write(&script, ECHO).expect("script");
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("name").port().to_string();
    let python = std::path::Path::new("/usr/bin/python3");
    let prefix = lab.path("x");
    let script = script.to_str().expect("path").to_owned();
    let running = lab.spawn(python, &[&script, prefix.to_str().expect("path"), &port, address]);
    let stream = listener.accept().expect("accept").0;
    assert!(until(SOON, || running.file("ready").exists()), "{}", lab.log());
    (running, Client::new(stream))
}

/// What `meio check` tells of locks.
pub fn locks(lab: &Lab) -> Vec<Value> {
    let done = lab.run(lab.meio(&["check", "--json"]));
    let result: Value = serde_json::from_str(done.stdout.lines().last().expect("a line")).expect("JSON");
    result["locks"].as_array().expect("a list").clone()
}

pub fn end(lab: &Lab, running: &mut Running, client: Client) {
    client.end();
    running.wait();
    assert!(locks(lab).is_empty());
}

alone! {
    /// As `ip netns` makes them, with a wire to where the client is.
    fn a_named_network_namespace_outlives_its_tree() {
        const MADE: &str = "mkdir -p /run/netns && mount -t tmpfs names /run/netns && ip netns add outlives
            ip link add here type veth peer name there && ip link set there netns outlives
            ip address add 10.66.0.1/24 dev here && ip link set here up && ip -n outlives link set lo up
            ip -n outlives address add 10.66.0.2/24 dev there && ip -n outlives link set there up";
        let shell = |text: &str| assert!(Command::new("bash").args(["-ec", text]).status().expect("bash starts").success(), "{text}");
        shell(MADE);
        let mut lab = Lab::new("netlock-named");
        let script = lab.path("echo.py");
        std::fs::write(&script, ECHO.replace("127.0.0.1", "10.66.0.1").replace("(\"10.66.0.1\", 0)", "(\"10.66.0.2\", 0)")).expect("script");
        let listener = TcpListener::bind("10.66.0.1:0").expect("listen");
        let port = listener.local_addr().expect("name").port().to_string();
        let (script, prefix) = (script.to_str().expect("path").to_owned(), lab.path("x"));
        let words = ["--net=/run/netns/outlives", "/usr/bin/python3", &script, prefix.to_str().expect("path"), &port, "10.66.0.2"];
        let mut running = lab.spawn(std::path::Path::new("/usr/bin/nsenter"), &words);
        let client = Client::new(listener.accept().expect("accept").0);
        assert!(until(SOON, || running.file("ready").exists()), "{}", lab.log());
        for _ in 0..2 {
            client.goes_on();
            let image = lab.dump(&mut running, &["--kill"]);
            lab.restore(&image, &mut running, &[]);
        }
        client.goes_on();
        let place = |path: &str| std::fs::metadata(path).expect("a namespace").ino();
        assert_eq!(place(&format!("/proc/{}/ns/net", running.pid)), place("/run/netns/outlives"));
        let image = lab.dump(&mut running, &["--kill"]);
        shell("ip link delete here");
        let refused = lab.run(lab.meio(&["restore", "-d", image.to_str().expect("path")]));
        assert!(refused.code != 0 && refused.stderr.contains("outlives is there without its interface there"), "{refused:?}");
        drop(client);
    }

    fn a_stream_goes_through_dumps() {
        let mut lab = Lab::new("netlock-stream");
        let (mut running, client) = start(&lab);
        let mut stalls = Vec::new();
        for _ in 0..10 {
            client.goes_on();
            client.longest_stall();
            let begin = Instant::now();
            lab.dump(&mut running, &[]);
            let dump = begin.elapsed();
            client.goes_on();
            stalls.push(client.longest_stall().saturating_sub(dump));
        }
        stalls.sort();
        println!("\nsurvive: stalls of a streaming client, beyond the dumps themselves: {stalls:.1?}");
        // Who waits for a retransmission waits for 200 ms at least. The machine may be busy with something else once.
        assert!(stalls[stalls.len() / 2] < Duration::from_millis(200), "{stalls:?}");
        end(&lab, &mut running, client);
    }

    fn nobody_notices_that_the_tree_was_gone() {
        let mut lab = Lab::new("netlock-gone");
        let (mut running, client) = start(&lab);
        for _ in 0..2 {
            client.goes_on();
            let image = lab.dump(&mut running, &["--kill"]);
            let kept = locks(&lab);
            assert_eq!(kept.len(), 1, "{kept:?}");
            // The datagram socket and the connection.
            assert_eq!(kept[0]["connections"], 2, "{kept:?}");
            let said = lab.run(lab.meio(&["check"])).stdout;
            let id = kept[0]["owner"]["image"].as_str().expect("an id").to_owned();
            assert!(said.contains(&format!("kept for image {id}")) && said.contains("--unlock"), "{said}");
            std::thread::sleep(Duration::from_millis(500));
            lab.restore(&image, &mut running, &[]);
            assert!(locks(&lab).is_empty());
            client.goes_on();
        }
        end(&lab, &mut running, client);
    }

    fn a_restore_that_fails_leaves_the_lock() {
        let mut lab = Lab::new("netlock-fails");
        let (mut running, client) = start(&lab);
        client.goes_on();
        let image = lab.dump(&mut running, &["--kill"]);
        let before = locks(&lab);
        let done = lab.run(lab.meio(&["restore", "-d", "--pidfile", "/nowhere/pid", image.to_str().expect("path")]));
        assert!(done.code != 0 && !done.stderr.is_empty(), "{done:?}");
        assert_eq!((before.len(), locks(&lab)), (1, before));
        lab.restore(&image, &mut running, &[]);
        client.goes_on();
        end(&lab, &mut running, client);
    }

    fn a_kept_lock_can_be_opened_by_hand() {
        let mut lab = Lab::new("netlock-unlock");
        let (mut running, client) = start(&lab);
        client.goes_on();
        lab.dump(&mut running, &["--kill"]);
        let id = locks(&lab)[0]["owner"]["image"].as_str().expect("an id").to_owned();
        let nobody = lab.run(lab.meio(&["check", "--unlock", "0123456789"]));
        assert_eq!(nobody.code, 10, "{nobody:?}");
        let opened = lab.run(lab.meio(&["check", "--unlock", &id[..8]]));
        assert_eq!((opened.code, locks(&lab).len()), (0, 0), "{opened:?}");
        // Now whoever asks is told that nobody is there.
        let reset = || client.stream.take_error().expect("asked").is_some() || client.threads.iter().any(|t| t.is_finished());
        assert!(until(SOON, reset), "no reset has come");
    }

    fn a_meio_that_is_killed_leaves_nothing() {
        let lab = Lab::new("netlock-killed");
        let (mut running, client) = start(&lab);
        let pid = running.pid.to_string();
        for n in 0..16 {
            let mut meio = lab.meio(&["dump", &pid, "-o", "killed.meio"]).spawn().expect("meio starts");
            std::thread::sleep(Duration::from_millis(5 + 4 * n));
            meio.kill().expect("kill");
            meio.wait().expect("wait");
            client.goes_on();
            assert!(locks(&lab).is_empty());
        }
        end(&lab, &mut running, client);
    }
}
