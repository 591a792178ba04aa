//! What becomes of connections with somebody outside of the tree: `--tcp`.

use crate::alone;
use crate::lab::{Lab, Running, SOON, until};
use crate::refusals::{refusals, told};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Connections that lead out, of which one waits in recv(2), one is watched, one holds bytes and one is being opened; one with both
/// ends in the tree; and a socket that listens. Told to, it writes down what it finds.
const PROGRAM: &str = r#"
import errno, os, select, socket, struct, sys, threading, time
prefix, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
def connected():
    s = socket.socket(family)
    s.bind((sys.argv[4], 0))
    s.connect((address, port))
    return s
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[4], 0))
listener.listen()
waits, watched, full, writer, asked = (connected() for n in range(5))
names = [s.getsockname() for s in (waits, watched, full, writer, asked)]
near = socket.socket(family)
near.connect(listener.getsockname())
far = listener.accept()[0]
near.send(b"in flight")
found = {}
def wait():
    try:
        found["recv"] = waits.recv(10)
    except OSError as e:
        found["recv"] = errno.errorcode[e.errno]
thread = threading.Thread(target=wait)
thread.start()
poll = select.epoll()
poll.register(watched, select.EPOLLIN | select.EPOLLOUT)
while full.recv(10, socket.MSG_PEEK) != b"unread":
    time.sleep(0.01)
def say(name, text):
    open(prefix + ".part", "w").write(text)
    os.rename(prefix + ".part", prefix + "." + name)
say("ready", str(listener.getsockname()[1]))
while not os.path.exists(prefix + ".go"):
    time.sleep(0.01)
thread.join(5)
found["epoll"] = [e & ~(select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP) for _, e in poll.poll(5)]
found["error"] = errno.errorcode.get(asked.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
found["full"] = full.recv(10)
def tried(what):
    try:
        return what()
    except OSError as e:
        return errno.errorcode[e.errno]
found["after"] = tried(lambda: full.recv(10))
writer.settimeout(5)
found["write"] = tried(lambda: writer.send(b"x"))
found["then"] = tried(lambda: writer.send(b"x"))
found["names"] = [s.getsockname() for s in (waits, watched, full, writer, asked)] == names
found["pair"] = far.recv(20) + (far.send(b"back") and near.recv(20))
new = socket.socket(family)
new.connect(listener.getsockname())
found["new"] = listener.accept()[0].send(b"x")
say("result", repr(sorted(found.items())))
"#;

const BROKEN: &str = "[('after', 'ECONNRESET'), ('epoll', [24]), ('error', 'ECONNRESET'), ('full', b'unread'), ('names', True), \
                      ('new', 1), ('pair', b'in flightback'), ('recv', 'ECONNRESET'), ('then', 'EPIPE'), ('write', 'ECONNRESET')]";

fn accept(lab: &Lab, listener: &TcpListener) -> TcpStream {
    let mut peer = None;
    listener.set_nonblocking(true).expect("option");
    until(SOON, || {
        peer = listener.accept().ok();
        peer.is_some()
    });
    let peer = peer.unwrap_or_else(|| panic!("nobody connects: {}", lab.log())).0;
    peer.set_nonblocking(false).expect("option");
    peer
}

/// The program and the other ends of its connections.
fn start(lab: &Lab, far: &str, near: &str) -> (Running, Vec<TcpStream>) {
    let script = lab.path("closing.py");
    std::fs::write(&script, PROGRAM).expect("script");
    let listener = TcpListener::bind((far, 0)).expect("listen");
    let port = listener.local_addr().expect("name").port().to_string();
    let text = |path: &Path| path.to_str().expect("path").to_owned();
    let running = lab.spawn(Path::new("python3"), &[&text(&script), &text(&lab.path("x")), far, &port, near]);
    let mut peers: Vec<TcpStream> = (0..5).map(|_| accept(lab, &listener)).collect();
    peers[2].write_all(b"unread").expect("write");
    assert!(until(SOON, || running.file("ready").exists()), "{}", lab.log());
    // The one that waits in recv(2) does so by now.
    std::thread::sleep(Duration::from_millis(50));
    (running, peers)
}

/// What the program finds.
fn found(lab: &Lab, mut running: Running) -> String {
    std::fs::write(running.file("go"), "").expect("go");
    until(SOON * 2, || running.file("result").exists());
    let result = std::fs::read_to_string(running.file("result")).unwrap_or_else(|_| lab.log());
    running.kill();
    result
}

/// The other end is told within a moment that nobody is there any more.
fn ends(peer: &mut TcpStream) {
    peer.set_read_timeout(Some(SOON)).expect("option");
    match peer.read(&mut [0; 10]) {
        Ok(0) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("the other end of a connection that was broken off finds {other:?}"),
    }
}

fn locks(lab: &Lab) -> usize {
    told(lab, &["check"]).1["locks"].as_array().expect("a list").len()
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip(8) of iproute2 starts");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

fn recorded(lab: &Lab, image: &Path) -> Value {
    told(lab, &["inspect", image.to_str().expect("path")]).1["tree"]["decisions"]["tcp"].clone()
}

alone! {
    fn what_is_broken_off_is_reset_and_nothing_is_locked() {
        for (far, near) in [("127.0.0.1", "127.0.0.3"), ("::1", "::1"), ("::ffff:127.0.0.1", "::ffff:127.0.0.3")] {
            let mut lab = Lab::new("closing");
            let (mut running, mut peers) = start(&lab, far, near);
            let port: u16 = std::fs::read_to_string(running.file("ready")).expect("port").parse().expect("a number");
            let waits = TcpStream::connect((near, port)).expect("connect");
            let image = lab.dump(&mut running, &["--kill", "--tcp", "close"]);
            assert_eq!((recorded(&lab, &image), locks(&lab)), ("close".into(), 0));
            let said = lab.run(lab.meio(&["inspect", image.to_str().expect("path")])).stdout;
            assert!(said.contains("broken off"), "{said}");
            peers.iter_mut().chain([&mut { waits }]).for_each(ends);
            lab.restore(&image, &mut running, &[]);
            assert_eq!(found(&lab, running), BROKEN, "{near}");
            lab.nothing_left();
        }
    }

    fn the_tree_that_goes_on_keeps_its_connections() {
        let mut lab = Lab::new("closing-live");
        let (mut running, mut peers) = start(&lab, "127.0.0.1", "127.0.0.1");
        let image = lab.dump(&mut running, &["--tcp", "close"]);
        for peer in &mut peers {
            peer.write_all(b"alive").expect("the connection is there");
        }
        let live = found(&lab, running);
        assert!(live.contains("('recv', b'alive')") && live.contains("('full', b'unreadaliv')"), "{live}");
        drop(peers);
        for name in ["go", "result"] {
            std::fs::remove_file(lab.path("x").with_extension(name)).expect("remove");
        }
        let mut running = Running::of(&lab, 0);
        running.pid = told(&lab, &["inspect", image.to_str().expect("path")]).1["tree"]["processes"][0]["pid"].as_i64().expect("pid") as i32;
        lab.restore(&image, &mut running, &[]);
        assert_eq!(found(&lab, running), BROKEN);
        lab.nothing_left();
    }

    fn the_restore_can_decide_it() {
        for (far, near, address) in [("10.9.0.1", "10.9.0.2", "10.9.0.2/32"), ("fd00::1", "fd00::2", "fd00::2/128")] {
            let mut lab = Lab::new("closing-later");
            let both = [address, &address.replace("2/", "1/")];
            let nodad = if far.contains(':') { " nodad" } else { "" };
            both.iter().for_each(|a| ip(&format!("address add {a} dev lo{nodad}")));
            let (mut running, mut peers) = start(&lab, far, near);
            let image = lab.dump(&mut running, &["--kill"]);
            assert_eq!((recorded(&lab, &image), locks(&lab)), (Value::Null, 1));
            // The listening socket and the pair need it; what is broken off does not.
            lab.restore(&image, &mut running, &["--tcp", "close"]);
            assert_eq!(locks(&lab), 0);
            for peer in &mut peers {
                let _ = peer.write_all(b"is anybody there?");
                ends(peer);
            }
            assert_eq!(found(&lab, running), BROKEN);
            lab.nothing_left();
        }
    }

    fn an_address_that_is_gone_is_kept_for_show() {
        let mut lab = Lab::new("closing-elsewhere");
        ip("address add 10.9.0.2/32 dev lo");
        let script = lab.path("one.py");
        std::fs::write(&script, ONE).expect("script");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("name").port().to_string();
        let text = |path: &Path| path.to_str().expect("path").to_owned();
        let mut running = lab.spawn(Path::new("python3"), &[&text(&script), &text(&lab.path("x")), &port]);
        let _peer = accept(&lab, &listener);
        assert!(until(SOON, || running.file("ready").exists()), "{}", lab.log());
        let image = lab.dump(&mut running, &["--kill"]);
        ip("address del 10.9.0.2/32 dev lo");
        lab.restore(&image, &mut running, &["--tcp", "close"]);
        assert_eq!(found(&lab, running), "ECONNRESET True");
        lab.nothing_left();
    }

    fn a_tree_that_must_not_have_any_is_refused() {
        let lab = Lab::new("closing-refused");
        let (mut running, _peers) = start(&lab, "127.0.0.1", "127.0.0.1");
        let pid = running.pid.to_string();
        for command in [&["dump", &pid, "--tcp", "refuse"][..], &["check", "--pid", &pid, "--tcp", "refuse"]] {
            let (code, said) = told(&lab, command);
            let list = refusals(&said);
            assert_eq!((code, list.len()), (13, 5), "{said}");
            assert!(list.iter().all(|r| r["reason"].as_str().is_some_and(|t| t.contains("leads out of the tree"))), "{said}");
        }
        running.kill();
        lab.nothing_left();
    }
}

const ONE: &str = r#"
import errno, os, socket, sys, time
prefix = sys.argv[1]
s = socket.socket()
s.bind(("10.9.0.2", 0))
s.connect(("127.0.0.1", int(sys.argv[2])))
name = s.getsockname()
def say(what, text):
    open(prefix + ".part", "w").write(text)
    os.rename(prefix + ".part", prefix + "." + what)
say("ready", "ready")
while not os.path.exists(prefix + ".go"):
    time.sleep(0.01)
try:
    said = s.recv(1)
except OSError as e:
    said = errno.errorcode[e.errno]
say("result", f"{said} {s.getsockname() == name}")
"#;
