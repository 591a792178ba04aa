//! Many connections: their options are known before the tree stands still, unless somebody sets one meanwhile.

use crate::alone;
use crate::lab::{Lab, SOON, Way, until};
use std::path::Path;
use std::process::Command;

/// Pairs of connected sockets with options of all kinds. Told to, it looks whether all is as it was. With a second word
/// somebody sets options all the time.
const PROGRAM: &str = r#"
import fcntl, os, signal, socket, struct, sys, threading, time
prefix, restless = sys.argv[1], len(sys.argv) > 2
signal.signal(signal.SIGIO, signal.SIG_IGN)
sockets = []
for n in range(48):
    six = n % 5 == 4
    l = socket.create_server(("::1" if six else "127.0.0.1", 0), family=socket.AF_INET6 if six else socket.AF_INET)
    a = socket.create_connection(l.getsockname()[:2])
    sockets += [a, l.accept()[0]]
    l.close()
T, S = socket.IPPROTO_TCP, socket.SOL_SOCKET
number = lambda value: lambda s, level, name: s.setsockopt(level, name, value)
KINDS = [
    (T, socket.TCP_NODELAY, number(1)), (S, socket.SO_KEEPALIVE, number(1)), (T, socket.TCP_KEEPIDLE, number(77)),
    (S, socket.SO_SNDBUF, number(30000)), (S, socket.SO_RCVBUF, number(20000)), (T, socket.TCP_USER_TIMEOUT, number(12345)),
    (S, socket.SO_LINGER, lambda s, *_: s.setsockopt(S, socket.SO_LINGER, struct.pack("ii", 1, 9))), (S, socket.SO_MARK, number(5)),
    (socket.IPPROTO_IP, socket.IP_TOS, number(0x48)), (S, socket.SO_REUSEADDR, number(1)), (S, 42, number(0)),
    (T, socket.TCP_QUICKACK, number(0)),
]
for n, s in enumerate(sockets):
    level, name, tell = KINDS[n % len(KINDS)]
    tell(s, level, name)
    os.set_inheritable(s.fileno(), n % 3 == 0)
    s.setblocking(n % 4 != 0)
    if n % 11 == 0:
        fcntl.fcntl(s, fcntl.F_SETOWN, os.getpid())
    if n % 12 == 0:
        fcntl.fcntl(s, 10, signal.SIGUSR1)
second = os.dup(sockets[7].fileno())
sockets[3].send(b"unread")
def seen():
    all = []
    for s in sockets:
        options = [s.getsockopt(level, name, 16) for level, name, _ in KINDS if name != socket.TCP_QUICKACK or level != T]
        flags = [fcntl.fcntl(s, c) for c in (fcntl.F_GETFL, fcntl.F_GETFD, fcntl.F_GETOWN, 11)]
        all.append((s.getsockname(), s.getpeername(), options, flags))
    return all
def ask():
    while True:
        loose.setsockopt(S, socket.SO_KEEPALIVE, 1)
        time.sleep(0.001)
if restless:
    loose = socket.socket()
    threading.Thread(target=ask, daemon=True).start()
def say(name, text):
    open(prefix + ".part", "w").write(text + "\n")
    os.rename(prefix + ".part", prefix + "." + name)
before = seen()
say("ready", "ready")
while not os.path.exists(prefix + ".go"):
    time.sleep(0.01)
wrong = [f"{n}: {old} became {new}" for n, (old, new) in enumerate(zip(before, seen())) if old != new]
for n in range(0, len(sockets), 2):
    a, b = sockets[n:n + 2]
    a.setblocking(True), b.setblocking(True)
    a.send(b"there"), b.send(b"back")
    if b.recv(20) != b"there" or a.recv(20) != (b"unreadback" if n == 2 else b"back"):
        wrong.append(f"{n}: other bytes")
os.write(second, b"twice")
if sockets[6].recv(20) != b"twice":
    wrong.append("the second descriptor leads elsewhere")
say("result", "\n".join(wrong) or "ok")
os._exit(0)
"#;

/// Whether the kernel counts system calls: where it does not, nothing is known.
fn counts(lab: &Lab) -> bool {
    let folder = lab.path("tracing");
    std::fs::create_dir(&folder).expect("folder");
    let mounted = Command::new("mount").args(["-t", "tracefs", "tracing"]).arg(&folder).status().expect("mount(8) starts").success();
    let counts = folder.join("events/syscalls/sys_enter_setsockopt").exists();
    if mounted {
        assert!(Command::new("umount").arg(&folder).status().expect("umount(8) starts").success());
    }
    counts
}

/// The options are known exactly where nobody sets any; in both cases all is as it was.
fn known(restless: bool) {
    let mut lab = Lab::new(if restless { "restless" } else { "steady" });
    let script = lab.path("connections.py");
    std::fs::write(&script, PROGRAM).expect("script");
    let prefix = lab.path("x");
    let mut words = vec![script.to_str().expect("path"), prefix.to_str().expect("path")];
    words.extend(restless.then_some("restless"));
    let running = lab.spawn(Path::new("/usr/bin/python3"), &words);
    assert!(until(SOON, || running.file("ready").exists()), "{}", lab.log());
    let told = lab.run(lab.meio(&["-v", "dump", &running.pid.to_string(), "-o", "told.meio"]));
    assert_eq!(told.code, 0, "{told:?}");
    std::fs::remove_file(lab.path("images/told.meio")).expect("image");
    let said = told.stderr.contains("connections whose options were known before");
    assert_eq!(said, !restless && counts(&lab), "{}", told.stderr);
    lab.take(running, Way::KillRestore);
}

alone! {
    fn options_are_known() {
        known(false);
    }

    fn options_are_set_meanwhile() {
        known(true);
    }
}
