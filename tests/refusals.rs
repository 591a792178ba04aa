//! What cannot be saved is named and refused, with a way out; and what the user decides about it holds.

use crate::lab::{Lab, Running, SOON, observe, until};
use serde_json::Value;
use std::path::Path;

/// What every program here begins with: `syscall`, and no descriptor that the test runner left open.
const BEGIN: &str = "
import ctypes, os, sys, time, socket, fcntl
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*arguments):
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        open('ready', 'w').write('skip ' + os.strerror(ctypes.get_errno()))
        sys.exit()
    return result
def skip(e):
    open('ready', 'w').write('skip ' + str(e))
    sys.exit()
def connection():
    l = socket.create_server(('127.0.0.1', 0))
    c = socket.create_connection(l.getsockname())
    return l, c, l.accept()[0]
def ready():
    open('ready.new', 'w').write('ready')
    os.rename('ready.new', 'ready')
    time.sleep(1000)
";

/// Starts the program and waits until it is ready; `None` when this machine cannot do it.
pub fn start(lab: &Lab, program: &str) -> Option<Running> {
    let text = format!("{BEGIN}\n{program}\nready()\n");
    let running = lab.spawn(Path::new("python3"), &["-c", &text]);
    let ready = lab.path("ready");
    assert!(until(SOON, || ready.exists()), "it does not get ready: {}", lab.log());
    let said = std::fs::read_to_string(&ready).expect("ready");
    if said.starts_with("skip") {
        println!("skipped: {said}");
        return None;
    }
    Some(running)
}

/// The last line of a run as JSON, and its exit code.
pub fn told(lab: &Lab, arguments: &[&str]) -> (i32, Value) {
    let done = lab.run(lab.meio(&[arguments, &["--json"]].concat()));
    let last = done.stdout.lines().last().unwrap_or_else(|| panic!("{arguments:?} says nothing: {}", done.stderr));
    (done.code, serde_json::from_str(last).expect("JSON"))
}

pub fn refusals(told: &Value) -> Vec<Value> {
    told["refusals"].as_array().expect("refusals").clone()
}

/// The program is refused with these words, by check and by dump, and goes on.
fn refused(name: &str, program: &str, words: &str) {
    let lab = Lab::new(name);
    let Some(mut running) = start(&lab, program) else { return };
    let pid = running.pid.to_string();
    let (code, check) = told(&lab, &["check", "--pid", &pid]);
    assert_eq!(code, 13, "{check}");
    let list = refusals(&check);
    let said = |list: &[Value]| list.iter().any(|r| r["reason"].as_str().is_some_and(|reason| reason.contains(words)));
    assert!(said(&list), "{words} is not in {list:?}");
    for refusal in &list {
        assert!(!refusal["advice"].as_str().expect("advice").is_empty(), "{refusal}");
    }
    let (code, dump) = told(&lab, &["dump", &pid, "-o", "no.meio"]);
    assert_eq!((code, refusals(&dump).len()), (13, list.len()), "{dump}");
    assert!(!lab.path("images/no.meio").exists());
    // The graph shows the very same.
    let (code, graph) = told(&lab, &["graph", &pid]);
    let marked = graph["nodes"].as_array().expect("nodes").iter().filter(|n| n["refused"].is_object()).count();
    assert_eq!((code, marked), (0, list.len()), "{graph}");
    assert!(observe::state(running.pid).is_some());
    running.kill();
}

macro_rules! refused {
    ($($name:ident: $program:literal => $words:literal;)*) => {
        $crate::alone! {$(
            fn $name() { refused(stringify!($name), $program, $words) }
        )*}
    };
}

refused! {
    socket: "s = socket.socket(socket.AF_VSOCK)" => "it is a vsock socket";
    netlink_socket: "s = socket.socket(16, 3, 0); s.send(b'\\x14\\0\\0\\0\\x12\\0\\5\\3' + bytes(12)); time.sleep(0.1)" => "a list is being sent over it";
    datagram_begun: "s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'begun', socket.MSG_MORE, ('127.0.0.1', 9))" => "a datagram has been begun";
    datagram_errors: "s = socket.socket(type=socket.SOCK_DGRAM); s.setsockopt(0, 11, 1); s.connect(('127.0.0.1', 9)); s.send(b'x'); time.sleep(0.1)" => "errors wait in it to be read";
    datagram_tunnel: "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 4500)); s.setsockopt(17, 100, 2)" => "packets of a tunnel";
    packet_ring: "
import struct
s = socket.socket(17, 3, 0); s.setsockopt(263, 5, struct.pack('IIII', 4096, 2, 2048, 4))" => "packets arrive in a ring";
    io_uring: "p = ctypes.create_string_buffer(120); i = syscall(425, 4, p)" => "io_uring";
    userfaultfd: "u = syscall(323, 1)" => "userfaultfd";
    dnotify: "import signal; signal.signal(signal.SIGIO, signal.SIG_IGN); d = os.open('.', os.O_RDONLY); fcntl.fcntl(d, 1026, 4)" => "dnotify";
    fanotify_permission: "f = syscall(300, 4, 0)" => "asked for permission";
    memfd_of_huge_pages: "m = syscall(319, b'huge', 4)" => "huge pages (MFD_HUGETLB)";
    perf: "p = ctypes.create_string_buffer(b'\\x01\\0\\0\\0\\x80\\0\\0\\0', 128); syscall(298, p, 0, -1, -1, 0)" => "perf";
    bpf: "import struct; p = ctypes.create_string_buffer(struct.pack('IIII', 2, 4, 4, 1), 128); b = syscall(321, 0, p, 128)" => "bpf";
    message_queue_told: "q = syscall(240, b'meio-test', 0o102, 0o600, None); syscall(241, b'meio-test'); syscall(242, q, b'x', 1, 0, None); syscall(244, q, (ctypes.c_int * 16)(0, 0, 0, 1))" => "mq_notify";
    message_queue_of_others: "q = syscall(240, b'meio-test', 0o102, 0o600, None); syscall(241, b'meio-test')
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
    os._exit(0)
os.wait()" => "outside of the tree, has this message queue open";
    mptcp: "
try:
    l, c = (socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) for n in range(2))
except OSError as e:
    skip(e)
l.bind(('127.0.0.1', 0)); l.listen(); c.connect(l.getsockname()); a = l.accept()[0]" => "MPTCP";
    mptcp_fallen_back: "
try:
    c = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
except OSError as e:
    skip(e)
l = socket.create_server(('127.0.0.1', 0)); c.connect(l.getsockname()); a = l.accept()[0]" => "MPTCP, fallen back to TCP";
    encrypted_by_the_kernel: "
l, c, a = connection()
try:
    c.setsockopt(socket.IPPROTO_TCP, 31, b'tls')
except OSError as e:
    skip(e)" => "kTLS";
    urgent_data: "
l, c, a = connection(); c.send(b'!', socket.MSG_OOB); time.sleep(0.1)" => "urgent data wait";
    signed_segments: "
import struct
l, c = socket.create_server(('127.0.0.1', 0)), socket.socket()
key = struct.pack('=HH4s120xBBHI80s', 2, 0, bytes([127, 0, 0, 1]), 0, 0, 3, 0, b'key')
try:
    for s in (l, c):
        s.setsockopt(socket.IPPROTO_TCP, 14, key)
except OSError as e:
    skip(e)
c.connect(l.getsockname()); a = l.accept()[0]; l.close()" => "segments are signed";
    traced: "
child = os.fork()
if child == 0:
    time.sleep(1000)
syscall(101, 0x4206, child, 0, 0)" => "traced";
}

crate::alone! {
    /// One refusal names all holders of a thing and the way to them; decisions that concern nothing are told.
    fn a_refusal_names_everybody_and_the_way() {
        let lab = Lab::new("holders");
        let program = "
a = socket.socket(socket.AF_VSOCK)
for n in range(2):
    if os.fork() == 0:
        if n:
            e = syscall(323, 1)
        time.sleep(1000)
time.sleep(0.2)";
        let mut running = start(&lab, program).expect("sockets are everywhere");
        let pid = running.pid.to_string();
        let (_, check) = told(&lab, &["check", "--pid", &pid, "--ignore", "fd:1/77", "--external", "pipe:[1]"]);
        let list = refusals(&check);
        assert_eq!(list.len(), 2, "{list:?}");
        let find = |what: &str| list.iter().find(|r| r["object"].as_str().is_some_and(|o| o.contains(what))).expect(what).clone();
        let socket = find("socket:[");
        assert_eq!(socket["object"].as_str().expect("object").matches('/').count(), 2, "two more holders: {socket}");
        let fault = find("userfaultfd");
        let chain: Vec<&str> = fault["chain"].as_array().expect("a way").iter().map(|c| c.as_str().expect("text")).collect();
        assert!(chain.len() == 3 && chain[0].starts_with(&pid) && chain[2].contains("userfaultfd"), "{chain:?}");
        let unused = check["warnings"].as_array().expect("warnings");
        assert!(unused.len() == 2 && unused[1].as_str().is_some_and(|w| w.contains("fd:1/77")), "{unused:?}");
        let id = fault["id"].as_str().expect("id");
        assert!(id.starts_with("fd:"), "{id}");
        let (code, why) = told(&lab, &["graph", &pid, "--why", id]);
        assert_eq!((code, &why["why"][0]["refused"]["id"]), (0, &id.into()), "{why}");
        running.kill();
    }

    /// What was left out reads as the end of a file and swallows what is written; the number stays taken.
    fn what_is_left_out_is_dev_null() {
        let mut lab = Lab::new("ignored");
        let program = "
a, b = (socket.socket(socket.AF_VSOCK) for _ in range(2))
import select
watching = select.epoll()
watching.register(a, select.EPOLLIN)
def again():
    before = os.readlink('/proc/self/fd/%d' % a.fileno())
    while os.readlink('/proc/self/fd/%d' % a.fileno()) == before:
        time.sleep(0.01)
    told = [os.readlink('/proc/self/fd/%d' % s.fileno()) for s in (a, b)] + [len(os.read(a.fileno(), 5)), os.write(b.fileno(), b'x')]
    open('told', 'w').write(repr(told))
ready_again = ready
def ready():
    open('ready', 'w').write('ready')
    again()
    ready_again()";
        let mut running = start(&lab, program).expect("sockets are everywhere");
        let pid = running.pid.to_string();
        let (_, check) = told(&lab, &["check", "--pid", &pid]);
        let ids: Vec<String> = refusals(&check).iter().map(|r| r["id"].as_str().expect("id").to_owned()).collect();
        assert_eq!(ids.len(), 2, "{check}");
        let image = lab.dump(&mut running, &["--kill", "--ignore", &ids[0], "--ignore", &ids[1]]);
        let (_, inspected) = told(&lab, &["inspect", image.to_str().expect("path")]);
        assert_eq!(inspected["tree"]["decisions"]["ignore"], serde_json::json!(ids));
        let done = lab.run(lab.meio(&["restore", "-d", image.to_str().expect("path")]));
        assert_eq!(done.code, 3, "{}", done.stderr);
        assert!(ids.iter().all(|id| done.stderr.contains(id)), "{}", done.stderr);
        assert!(until(SOON, || lab.path("told").exists()), "{}", lab.log());
        assert!(until(SOON, || std::fs::read_to_string(lab.path("told")).is_ok_and(|t| t.ends_with(']'))));
        assert_eq!(std::fs::read_to_string(lab.path("told")).expect("told"), "['/dev/null', '/dev/null', 0, 1]");
        running.kill();
    }

    /// A program that writes into somebody's pipe finds that very pipe again while it is there, else its standard output.
    fn a_pipe_to_outside_is_found_again() {
        use std::io::{BufRead, BufReader};
        use std::process::Stdio;
        let mut lab = Lab::new("outside");
        let count = "import time\nn = 0\nwhile True:\n    print(n, flush=True)\n    n += 1\n    time.sleep(0.01)";
        let mut child = std::process::Command::new("setsid");
        child.args(["python3", "-c", count]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = child.spawn().expect("setsid starts");
        let mut lines = BufReader::new(child.stdout.take().expect("pipe")).lines();
        let mut next = || lines.next().expect("a line").expect("text").parse::<u32>().expect("a number");
        assert_eq!((next(), next()), (0, 1));
        let mut running = Running::child(&lab, child);
        let pid = running.pid.to_string();
        let (code, check) = told(&lab, &["check", "--pid", &pid]);
        let list = refusals(&check);
        let id = list[0]["id"].as_str().expect("id").to_owned();
        assert!(code == 13 && list.len() == 1 && id.starts_with("pipe:["), "{list:?}");
        let image = lab.dump(&mut running, &["--kill", "--external", &id]);
        let image = image.to_str().expect("path");
        // This test still holds the other end: no warning, and the count goes on where it was.
        let done = lab.run(lab.meio(&["restore", "-d", image]));
        assert_eq!(done.code, 0, "{}", done.stderr);
        let begin = next();
        assert!((0..20).all(|n| next() == begin + 1 + n));
        running.kill();
        drop(lines);
        // Now it has gone: what meio writes to is what the program writes to.
        let done = lab.run(lab.meio(&["restore", "-d", image]));
        assert!(done.code == 3 && done.stderr.contains("standard output takes its place"), "{}", done.stderr);
        let out = lab.path("stdout");
        assert!(until(SOON, || std::fs::read_to_string(&out).is_ok_and(|t| t.lines().count() > 20)));
        running.kill();
    }
}
