//! Sockets of datagrams, and who is on the other side of them.

use crate::lab::{Lab, Running, SOON, Way, compile, observe, until};
use serde_json::Value;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Answers each datagram with itself and the count of those before it, once it is told to; from then on at once. The
/// second argument is where it listens. Says which port that is.
const SERVER: &str = r#"
import os, socket, sys, time
prefix, address = sys.argv[1], sys.argv[2]
server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, int(sys.argv[3])))
def tell(name, text):
    open(prefix + ".part", "w").write(text)
    os.rename(prefix + ".part", prefix + name)
tell(".port", str(server.getsockname()[1]))
tell(".ready", "ready\n")
while not os.path.exists(prefix + ".serve"):
    time.sleep(0.01)
count = 0
while True:
    data, peer = server.recvfrom(2000)
    if data == b"end":
        break
    server.sendto(b"%d %s" % (count, data), peer)
    count += 1
tell(".result", "ok\n")
"#;

fn script(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let path = lab.path(name);
    std::fs::write(&path, format!("#!/usr/bin/python3\n{text}")).expect("script");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    path
}

/// A server at `address`, and where it can be reached from here.
fn server(lab: &Lab, address: &str, port: u16) -> (Running, SocketAddr) {
    let running = lab.ready(&script(lab, "server", SERVER), &[address, &port.to_string()]);
    let port = std::fs::read_to_string(lab.path("x.port")).expect("port").parse().expect("a number");
    let ip = match address {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        address => address,
    };
    (running, SocketAddr::new(ip.parse().expect("address"), port))
}

fn client(to: SocketAddr) -> UdpSocket {
    let client = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).expect("bind");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("time-out");
    client.connect(to).expect("connect");
    client
}

fn answer(client: &UdpSocket) -> String {
    let mut text = [0; 2000];
    let n = client.recv(&mut text).expect("an answer");
    String::from_utf8_lossy(&text[..n]).into_owned()
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().expect("ip(8) starts");
    assert!(done.success(), "ip {arguments}");
}

/// Restoring fails with this code, says these words, and starts nothing.
fn fails(lab: &Lab, image: &std::path::Path, pid: i32, words: &[&str]) {
    let done = lab.run(lab.meio(&["restore", "-d", image.to_str().expect("path")]));
    assert_ne!(done.code, 0, "{done:?}");
    assert!(words.iter().all(|w| done.stderr.contains(w)), "{words:?} are not in {}", done.stderr);
    assert!(observe::state(pid).is_none(), "something was started");
}

/// Dumps with `--kill`; what is said of it.
fn dump_with_warning(lab: &Lab, running: &mut Running, image: &str) -> String {
    let done = lab.run(lab.meio(&["dump", "--kill", &running.pid.to_string(), "-o", image]));
    assert_eq!(done.code, 3, "{done:?}");
    running.wait();
    done.stderr
}

crate::alone! {
    /// What clients outside had sent is answered after the restore, to each of them.
    fn clients_outside_are_answered() {
        for address in ["127.0.0.1", "0.0.0.0", "::1", "::"] {
            let mut lab = Lab::new("clients");
            let (mut running, to) = server(&lab, address, 0);
            let clients = [(); 3].map(|()| client(to));
            for (n, client) in clients.iter().enumerate() {
                assert_eq!(client.send(format!("early {n}").as_bytes()).expect("send"), 7);
            }
            // Looked at, and left as it was: each is answered once.
            lab.dump(&mut running, &[]);
            for _ in 0..2 {
                let image = lab.dump(&mut running, &["--kill"]);
                lab.restore(&image, &mut running, &[]);
            }
            std::fs::write(lab.path("x.serve"), "").expect("serve");
            for (n, client) in clients.iter().enumerate() {
                assert_eq!(answer(client), format!("{n} early {n}"), "{address}");
            }
            clients[0].send(b"late").expect("send");
            assert_eq!(answer(&clients[0]), "3 late");
            clients[0].send(b"end").expect("send");
            lab.go_and_verify(running, SOON);
            lab.nothing_left();
        }
    }

    /// A port that is taken and an address that is gone are named, and can be given back.
    fn what_is_missing_here_is_named_before_anything_starts() {
        let mut lab = Lab::new("taken");
        ip("address add 198.51.100.7/32 dev lo");
        let (mut running, to) = server(&lab, "198.51.100.7", 4711);
        let image = lab.dump(&mut running, &["--kill"]);
        let (pid, taken) = (running.pid, UdpSocket::bind(to).expect("bind"));
        fails(&lab, &image, pid, &["198.51.100.7:4711", "in use"]);
        drop(taken);
        ip("address del 198.51.100.7/32 dev lo");
        fails(&lab, &image, pid, &["198.51.100.7:4711", "ip address add 198.51.100.7"]);
        ip("address add 198.51.100.7/32 dev lo");
        lab.restore(&image, &mut running, &[]);
        std::fs::write(lab.path("x.serve"), "").expect("serve");
        let client = client(to);
        client.send(b"hello").expect("send");
        assert_eq!(answer(&client), "0 hello");
        client.send(b"end").expect("send");
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    /// In a network namespace of the tree's own.
    fn datagram_sockets_in_a_network_namespace() {
        for name in ["udp", "udp_groups", "raw", "packet"] {
            let mut lab = Lab::new(name);
            let wrapper = lab.path("wrapper");
            let text = format!("#!/bin/sh\nexec unshare -n sh -c 'ip link set lo up; exec {} \"$@\"' sh \"$@\"\n", compile(name).display());
            std::fs::write(&wrapper, text).expect("script");
            std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
            let running = lab.ready(&wrapper, &[]);
            lab.take(running, Way::TwiceRestored);
        }
    }

    /// Packets that only the first of could be looked at are told to be lost; the program goes on without them.
    fn unread_packets_of_raw_sockets_are_told_to_be_lost() {
        let lab = Lab::new("unread");
        let program = "
import os, socket, sys, time
prefix = sys.argv[1]
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
s.sendto(b'one', ('127.0.0.1', 0)); s.sendto(b'two', ('127.0.0.1', 0))
time.sleep(0.1)
os.rename(prefix + '.part', prefix + '.ready') if open(prefix + '.part', 'w').write('ready') else 0
while not os.path.exists(prefix + '.go'):
    time.sleep(0.01)
s.setblocking(False)
try:
    text = 'received %r' % s.recv(100)
except BlockingIOError:
    text = 'ok\\n'
open(prefix + '.part', 'w').write(text)
os.rename(prefix + '.part', prefix + '.result')
";
        let mut running = lab.ready(&script(&lab, "program", program), &[]);
        let image = lab.path("images/x.meio");
        let said = dump_with_warning(&lab, &mut running, image.to_str().expect("path"));
        assert!(said.contains("will not be there again"), "{said}");
        lab.restore(&image, &mut running, &[]);
        lab.go_and_verify(running, SOON);
        std::fs::remove_file(image).expect("remove");
        lab.nothing_left();
    }

    /// A socket that somebody outside of the tree holds as well is not taken away from him.
    fn a_socket_held_outside_is_refused() {
        let lab = Lab::new("held");
        let program = "
import os, socket, sys, time
prefix = sys.argv[1]
s = socket.socket(type=socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 0))
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        open(prefix + '.other', 'w').write(str(os.getpid()))
        time.sleep(1000)
    os._exit(0)
os.wait()
while not os.path.exists(prefix + '.other'):
    time.sleep(0.01)
open(prefix + '.part', 'w').write('ready')
os.rename(prefix + '.part', prefix + '.ready')
time.sleep(1000)
";
        let mut running = lab.ready(&script(&lab, "program", program), &[]);
        let other = || std::fs::read_to_string(lab.path("x.other")).ok()?.parse::<i32>().ok();
        assert!(until(SOON, || other().is_some()));
        let done = lab.run(lab.meio(&["dump", &running.pid.to_string(), "--json"]));
        let error: Value = serde_json::from_str(done.stdout.lines().last().expect("JSON")).expect("JSON");
        let reason = error["refusals"][0]["reason"].as_str().unwrap_or_default().to_owned();
        assert!(done.code == 13 && reason.contains(&format!("process {}", other().expect("pid"))), "{error}");
        running.kill();
        let other = nix::unistd::Pid::from_raw(other().expect("pid"));
        nix::sys::signal::kill(other, nix::sys::signal::Signal::SIGKILL).expect("kill");
    }
}
