//! Listening TCP sockets: what stands in their way at a restore, and connections that wait while meio is killed.

use crate::lab::{Lab, Running, observe};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Listens at the addresses that its arguments name, and says where. Told to go on, it accepts everybody who waits, wants to hear
/// `hello` and a number from each, in their order, and answers with the same.
const SERVER: &str = r#"
import os, socket, sys, time
prefix = sys.argv[1]
listeners = []
for place in sys.argv[2:]:
    host, port = place.rsplit(":", 1)
    s = socket.socket(socket.AF_INET)
    s.bind((host, int(port)))
    s.listen(4096)
    listeners.append(s)
# One that has ended is remembered by the kernel.
first, again = socket.create_connection(listeners[0].getsockname()), listeners[0].accept()[0]
again.close()
first.recv(1)
first.close()
open(prefix + ".places", "w").write(" ".join("%s:%d" % s.getsockname() for s in listeners))
open(prefix + ".part", "w").write("ready\n")
os.rename(prefix + ".part", prefix + ".ready")
while not os.path.exists(prefix + ".go"):
    time.sleep(0.01)
wanted = int(open(prefix + ".wanted").read())
wrong = []
listeners[0].settimeout(10)
for number in range(wanted):
    peer = listeners[0].accept()[0]
    peer.settimeout(10)
    said = peer.recv(100)
    if said != b"hello %d" % number:
        wrong.append((number, said))
    peer.send(said)
    peer.close()
open(prefix + ".part", "w").write("%s\n" % wrong if wrong else "ok\n")
os.rename(prefix + ".part", prefix + ".result")
"#;

/// Answers one after the other, with what each says, three times; there are always some who wait. Told to go on, it ends.
const BUSY: &str = r#"
import os, socket, sys, time
prefix = sys.argv[1]
s = socket.socket(socket.AF_INET)
# Without, connections that were closed and not acknowledged yet keep the port from whoever listens anew.
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 0))
s.listen(64)
s.settimeout(0.1)
open(prefix + ".places", "w").write("%s:%d" % s.getsockname())
open(prefix + ".part", "w").write("ready\n")
os.rename(prefix + ".part", prefix + ".ready")
while not os.path.exists(prefix + ".go"):
    try:
        peer = s.accept()[0]
    except TimeoutError:
        continue
    time.sleep(0.002)
    peer.settimeout(20)
    said = peer.recv(100)
    peer.sendall(said * 3)
    peer.close()
open(prefix + ".part", "w").write("ok\n")
os.rename(prefix + ".part", prefix + ".result")
"#;

fn server(lab: &Lab, text: &str, places: &[&str]) -> (Running, Vec<SocketAddr>) {
    let script = lab.path("server");
    fs::write(&script, format!("#!/usr/bin/python3{text}")).expect("server");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
    let running = lab.ready(&script, places);
    let places = fs::read_to_string(running.file("places")).expect("places");
    (running, places.split(' ').map(|p| p.parse().expect("an address")).collect())
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().expect("ip").success(), "ip {arguments:?}");
}

/// Clients that wait, and have said something already.
fn clients(at: SocketAddr, count: usize) -> Vec<TcpStream> {
    let client = |number| {
        let mut client = TcpStream::connect(at).expect("connect");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        write!(client, "hello {number}").expect("write");
        client
    };
    (0..count).map(client).collect()
}

/// Asks and is answered until it is told to stop; how often.
fn customer(at: SocketAddr, number: usize, stop: &AtomicBool) -> usize {
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut client = TcpStream::connect(at).unwrap_or_else(|e| panic!("customer {number}, {times}: {e}"));
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        let (question, mut said) = (format!("{number} {times};"), String::new());
        client.write_all(question.as_bytes()).unwrap_or_else(|e| panic!("customer {number}, {times}: {e}"));
        client.read_to_string(&mut said).unwrap_or_else(|e| panic!("customer {number}, {times}: {e}"));
        assert_eq!(said, question.repeat(3));
        times += 1;
    }
    times
}

/// Lets the server answer them all.
fn heard(lab: &Lab, running: Running, clients: Vec<TcpStream>) {
    fs::write(running.file("wanted"), clients.len().to_string()).expect("wanted");
    lab.go_and_verify(running, Duration::from_secs(60));
    for (number, mut client) in clients.into_iter().enumerate() {
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap_or_else(|e| panic!("client {number}: {e}"));
        assert_eq!(said, format!("hello {number}"));
    }
    lab.nothing_left();
}

crate::alone! {
    fn what_stands_in_the_way_is_named_at_once() {
        let mut lab = Lab::new("listening_refused");
        ip(&["address", "add", "198.51.100.7/32", "dev", "lo"]);
        let (mut running, places) = server(&lab, SERVER, &["127.0.0.1:0", "198.51.100.7:0", "127.0.0.1:0"]);
        let waiting = clients(places[0], 3);
        let image = lab.dump(&mut running, &["--kill"]);
        ip(&["address", "del", "198.51.100.7/32", "dev", "lo"]);
        let taker = TcpListener::bind(places[2]).expect("the port");
        let mut command = lab.meio(&["restore", "-d"]);
        command.arg(&image);
        let refused = lab.run(command);
        assert_eq!(refused.code, 13, "{refused:?}");
        let own = format!("its address {} is in use: process {} (", places[2], std::process::id());
        let gone = format!("cannot have its address {}", places[1]);
        for said in [own.as_str(), "end that process first", &gone, "ip address add 198.51.100.7"] {
            assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
        }
        assert_eq!(observe::state(running.pid), None, "something was started");
        drop(taker);
        ip(&["address", "add", "198.51.100.7/32", "dev", "lo"]);
        lab.restore(&image, &mut running, &[]);
        heard(&lab, running, waiting);
    }

    /// What waits to be accepted is out of the queue for a moment; it comes back whatever becomes of meio.
    fn nobody_who_waits_is_lost_when_meio_is_killed() {
        let mut lab = Lab::new("listening_killed");
        let (mut running, places) = server(&lab, SERVER, &["127.0.0.1:0"]);
        let waiting = clients(places[0], 200);
        let begin = std::time::Instant::now();
        lab.dump(&mut running, &[]);
        let whole = begin.elapsed();
        const TIMES: u32 = 25;
        for n in 0..TIMES {
            let image = lab.path("killed.meio");
            let mut command = lab.meio(&["dump", &running.pid.to_string(), "-o"]);
            let mut meio = command.arg(&image).spawn().expect("meio starts");
            std::thread::sleep(whole * n / TIMES);
            let _ = meio.kill();
            meio.wait().expect("wait");
            let _ = fs::remove_file(&image);
        }
        // A keeper may still be at work.
        std::thread::sleep(Duration::from_millis(300));
        for entry in fs::read_dir(lab.path(".")).expect("folder").flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().contains("killed.meio") {
                fs::remove_file(entry.path()).expect("remove");
            }
        }
        heard(&lab, running, waiting);
    }

    /// Twenty who connect and are answered, again and again, over dumps and restores.
    fn a_busy_door() {
        let mut lab = Lab::new("listening_busy");
        let (mut running, places) = server(&lab, BUSY, &[]);
        let stop = AtomicBool::new(false);
        let times: Vec<usize> = std::thread::scope(|scope| {
            let customers: Vec<_> = (0..20).map(|n| scope.spawn({ let (at, stop) = (places[0], &stop); move || customer(at, n, stop) })).collect();
            for _ in 0..4 {
                std::thread::sleep(Duration::from_millis(200));
                lab.dump(&mut running, &[]);
                std::thread::sleep(Duration::from_millis(200));
                let image = lab.dump(&mut running, &["--kill"]);
                lab.restore(&image, &mut running, &[]);
            }
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
            customers.into_iter().map(|c| c.join().expect("a customer")).collect()
        });
        assert!(times.iter().all(|&n| n > 5), "{times:?}");
        lab.go_and_verify(running, Duration::from_secs(60));
        lab.nothing_left();
    }

    /// Over a dump that ends the tree and a restore nobody who waits can tell, whatever he does meanwhile.
    fn who_waits_may_go_on_talking() {
        let mut lab = Lab::new("listening_talking");
        let (mut running, places) = server(&lab, SERVER, &["127.0.0.1:0"]);
        let mut waiting = clients(places[0], 12);
        // What comes while nobody is there comes again.
        waiting.push(TcpStream::connect(places[0]).expect("connect"));
        let image = lab.dump(&mut running, &["--kill"]);
        let last = waiting.last_mut().expect("a client");
        last.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        write!(last, "hello 12").expect("write");
        lab.restore(&image, &mut running, &[]);
        heard(&lab, running, waiting);
    }
}
