//! Connections and ports that cannot be had here: said before anything starts, all at once, and a second try works.

use super::{last, message, refused};
use crate::lab::{Lab, Outcome, Running, SOON, until};
use crate::netlock::{Client, end, from, locks};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip(8) of iproute2 starts");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("path")
}

/// Starts a program of Python's that says when it is ready.
fn program(lab: &Lab, body: &str, arguments: &[&str]) -> Running {
    let begin = "import errno, os, socket, sys, time\ndef say(what, text='ready'):\n    open('part', 'w').write(text)\n    os.rename('part', what)\n";
    let body = format!("{begin}{body}");
    let all: Vec<&str> = [&["-c"][..], &[&body], arguments].concat();
    let _ = std::fs::remove_file(lab.path("ready"));
    let running = lab.spawn(Path::new("python3"), &all);
    assert!(until(SOON, || lab.path("ready").exists()), "it does not get ready: {}", lab.log());
    running
}

/// The reason of the one refusal that is about this, which has an advice.
fn about<'e>(error: &'e Value, object: &str, advice: &str) -> &'e str {
    let all = error["refusals"].as_array().expect("refusals");
    let text = |r: &'e Value, field: &str| r[field].as_str().expect("text");
    let found: Vec<&Value> = all.iter().filter(|r| text(r, "object").contains(object) && text(r, "advice").contains(advice)).collect();
    assert_eq!(found.len(), 1, "{object} in {error:#}");
    text(found[0], "reason")
}

/// What a program says of its connection when it was told to look.
fn looked(lab: &Lab) -> String {
    until(SOON, || lab.path("said").exists());
    std::fs::read_to_string(lab.path("said")).unwrap_or_else(|_| lab.log())
}

const CONNECTED: &str = "
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
say('ready')
try:
    got = s.recv(10)
except OSError as e:
    got = errno.errorcode[e.errno]
say('said', str(got))";

fn accepted(lab: &Lab) -> (Running, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let running = program(lab, CONNECTED, &[&listener.local_addr().expect("name").port().to_string()]);
    (running, listener.accept().expect("accept").0)
}

/// meio without a capability, or where some kind of socket is not known.
fn confined(lab: &Lab, how: &str, arguments: &[&str]) -> Outcome {
    let mut command = Command::new("python3");
    command.args(["-c", CONFINE, how, crate::MEIO]).args(arguments).arg("--json").current_dir(lab.path("images"));
    lab.run(command)
}

/// PR_CAPBSET_DROP of CAP_NET_ADMIN; or a filter by which socket(2) of NETLINK_NETFILTER is EPROTONOSUPPORT, as in a kernel
/// without it.
const CONFINE: &str = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
if sys.argv[1] == 'capability':
    assert libc.prctl(24, 12, 0, 0, 0) == 0
else:
    load, equal, give = 0x20, 0x15, 6
    code = [(load, 0, 0, 0), (equal, 0, 5, 41), (load, 0, 0, 16), (equal, 0, 3, 16), (load, 0, 0, 32), (equal, 0, 1, 12),
            (give, 0, 0, 0x50000 | 93), (give, 0, 0, 0x7fff0000)]
    code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *c) for c in code))
    program = struct.pack('HxxxxxxQ', 8, ctypes.addressof(code))
    assert libc.prctl(22, 2, program) == 0
os.execv(sys.argv[2], sys.argv[2:])";

crate::alone! {
    fn an_address_that_is_gone_and_comes_back() {
        let mut lab = Lab::new("address-gone");
        ip("addr add 10.9.0.2/32 dev lo");
        let (mut running, client): (Running, Client) = from(&lab, "10.9.0.2");
        client.goes_on();
        let image = lab.dump(&mut running, &["--kill"]);
        ip("addr del 10.9.0.2/32 dev lo");
        let before = locks(&lab);
        let error = refused(&lab, &["restore", "-d", text(&image)], 13);
        let reason = about(&error, "TCP connection 10.9.0.2:", "ip address add 10.9.0.2/32 dev");
        assert!(reason.contains("10.9.0.2"), "{reason}");
        assert_eq!((before.len(), locks(&lab)), (1, before));
        ip("addr add 10.9.0.2/32 dev lo");
        lab.restore(&image, &mut running, &[]);
        client.goes_on();
        end(&lab, &mut running, client);
        lab.nothing_left();
    }

    fn everything_that_is_missing_or_taken_is_said_at_once() {
        let mut lab = Lab::new("network-missing");
        for arguments in ["link add br9 type bridge", "link set br9 up", "addr add 10.8.0.1/24 dev br9", "addr add fd08::1/64 dev br9 nodad", "addr add 10.6.0.1/32 dev lo"] {
            ip(arguments);
        }
        let scope = std::fs::read_to_string("/sys/class/net/br9/ifindex").or_else(|_| {
            let said = Command::new("ip").args(["-o", "link", "show", "br9"]).output()?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&said.stdout).split(':').next().unwrap_or_default().to_owned())
        });
        let scope = scope.expect("a number").trim().to_owned();
        ip("addr add fe80::9/64 dev br9 nodad");
        let mut running = program(&lab, "
tcp = socket.create_server(('127.0.0.1', 7001))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', 7002))
bound = socket.socket()
bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'br9')
bound.bind(('', 7003))
bound.listen()
there = socket.create_server(('10.8.0.1', 7004))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.bind(('fe80::9', 7005, 0, int(sys.argv[1])))
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
way.connect(('10.8.0.7', 9))
way6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
way6.connect(('fd08::7', 9))
way2 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
way2.bind(('10.6.0.1', 0))
way2.connect(('10.8.0.8', 9))
say('ready')
time.sleep(1000)", &[&scope]);
        let image = lab.dump(&mut running, &["--kill"]);
        ip("link del br9");
        let mut thief = program(&lab, "
import socket
a = socket.create_server(('', 7001))
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
b.bind(('127.0.0.1', 7002))
say('ready')
time.sleep(1000)", &[]);
        let before = locks(&lab);
        let error = refused(&lab, &["restore", "-d", text(&image)], 13);
        let who = format!("process {} (python3)", thief.pid);
        for (object, advice, words) in [
            ("127.0.0.1:7001", "end that process", who.as_str()),
            ("127.0.0.1:7002", "end that process", &who),
            ("0.0.0.0:7003", "ip link add br9", "interface br9"),
            ("10.8.0.1:7004", "ip address add 10.8.0.1/32", "10.8.0.1"),
            ("7005", "ip link add br9", "interface br9"),
            ("fd 8 (UDP socket 10.8.0.1:", "ip address add 10.8.0.1/32", "10.8.0.1"),
            ("fd 9 (UDP socket [fd08::1]:", "ip address add fd08::1/128", "fd08::1"),
            ("UDP socket 10.6.0.1:", "ip route", "no way to 10.8.0.8"),
        ] {
            let reason = about(&error, object, advice);
            assert!(reason.contains(words), "{object}: {reason}");
        }
        assert_eq!((error["refusals"].as_array().map(Vec::len), locks(&lab)), (Some(8), before), "{error:#}");
        thief.kill();
        assert_eq!(lab.run(lab.meio(&["check", "--unlock", "all"])).code, 0);
        lab.nothing_left();
    }

    fn a_second_restore_while_the_first_one_runs() {
        let mut lab = Lab::new("restored-twice");
        let (mut running, client) = from(&lab, "127.0.0.1");
        client.goes_on();
        let image = lab.dump(&mut running, &["--kill"]);
        lab.restore(&image, &mut running, &[]);
        let error = refused(&lab, &["restore", "-d", text(&image), "--pid-namespace"], 13);
        let reason = about(&error, "TCP connection 127.0.0.1:", "end that process");
        assert!(reason.contains(&format!("process {} (", running.pid)), "{reason}");
        // Together with what else is in use.
        let error = refused(&lab, &["restore", "-d", text(&image)], 13);
        about(&error, "TCP connection 127.0.0.1:", "end that process");
        about(&error, &format!("pid {}", running.pid), "--pid-namespace");
        client.goes_on();
        end(&lab, &mut running, client);
        lab.nothing_left();
    }

    /// Nobody here can know; the program is told as soon as it is back, although it says nothing itself.
    fn the_other_end_has_given_up_meanwhile() {
        let mut lab = Lab::new("reset-meanwhile");
        let (mut running, peer) = accepted(&lab);
        let image = lab.dump(&mut running, &["--kill"]);
        // Bytes that nobody has read make close(2) a reset; it is not heard.
        peer.set_nonblocking(true).expect("option");
        nix::sys::socket::setsockopt(&peer, nix::sys::socket::sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("linger");
        drop(peer);
        lab.restore(&image, &mut running, &[]);
        assert_eq!(looked(&lab), "ECONNRESET");
        lab.nothing_left();
    }

    fn without_the_right_to_lock_the_network_it_is_11() {
        let mut lab = Lab::new("no-net-admin");
        let (mut running, mut peer) = accepted(&lab);
        let pid = running.pid.to_string();
        let done = confined(&lab, "capability", &["dump", &pid, "-o", "x.meio"]);
        assert_eq!(done.code, 11, "{done:?}");
        assert!(message(&last(&done)).contains("CAP_NET_ADMIN") || last(&done)["help"].as_str().is_some_and(|h| h.contains("CAP_NET_ADMIN")), "{done:?}");
        let image = lab.dump(&mut running, &["--kill"]);
        let done = confined(&lab, "capability", &["restore", "-d", text(&image)]);
        assert_eq!((done.code, locks(&lab).len()), (11, 1), "{done:?}");
        assert!(format!("{}", last(&done)).contains("CAP_NET_ADMIN"), "{done:?}");
        lab.restore(&image, &mut running, &[]);
        peer.write_all(b"hello").expect("the connection is there");
        assert_eq!(looked(&lab), "b'hello'");
        lab.nothing_left();
    }

    fn without_nftables_it_is_12() {
        let mut lab = Lab::new("no-nftables");
        let (mut running, mut peer) = accepted(&lab);
        let pid = running.pid.to_string();
        let done = confined(&lab, "filter", &["dump", &pid, "-o", "x.meio"]);
        assert_eq!(done.code, 12, "{done:?}");
        assert!(last(&done)["help"].as_str().is_some_and(|h| h.contains("CONFIG_NF_TABLES")), "{done:?}");
        let image = lab.dump(&mut running, &["--kill"]);
        let done = confined(&lab, "filter", &["restore", "-d", text(&image)]);
        assert_eq!((done.code, locks(&lab).len()), (12, 1), "{done:?}");
        // The connection is as it was; then it is broken off where nothing can be locked.
        let done = confined(&lab, "filter", &["restore", "-d", text(&image), "--tcp", "close"]);
        assert_eq!((done.code, looked(&lab).as_str()), (0, "ECONNRESET"), "{done:?}");
        assert_eq!(lab.run(lab.meio(&["check", "--unlock", "all"])).code, 0);
        peer.set_read_timeout(Some(Duration::from_secs(10))).expect("option");
        let _ = peer.write_all(b"is anybody there?");
        let heard = peer.read(&mut [0; 10]);
        assert!(heard.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{heard:?}");
        lab.nothing_left();
    }
}
