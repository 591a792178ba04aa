//! Sockets between the tree and others, and a real server with its clients.

use crate::lab::{Lab, Way, until};
use crate::lab::{SOON, observe};
use serde_json::Value;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// Connects to the socket that its argument names, and says so.
const CLIENT: &str = r#"
import os, socket, sys, time
prefix, path = sys.argv[1], sys.argv[2]
peer = socket.socket(socket.AF_UNIX)
peer.connect("\0" + path[1:] if path[0] == "@" else path)
peer.send(b"hello")
pair = socket.socketpair()
open(prefix + ".part", "w").write("ready\n")
os.rename(prefix + ".part", prefix + ".ready")
while not os.path.exists(prefix + ".go"):
    time.sleep(0.01)
peer.send(b" again")
ok = pair[0].send(b"x") == 1 and pair[1].recv(1) == b"x"
open(prefix + ".part", "w").write("ok\n" if ok else "the pair is broken\n")
os.rename(prefix + ".part", prefix + ".result")
"#;

/// An asyncio server over a unix socket that counts for each of two clients in processes of their own, which check it.
const SERVER: &str = r#"
import asyncio, os, sys
prefix = sys.argv[1]
path = "server-socket"

async def serve(reader, writer):
    total = 0
    while line := await reader.readline():
        total += int(line)
        writer.write(b"%d\n" % total)
        await writer.drain()
    writer.close()

async def client(number):
    reader, writer = await asyncio.open_unix_connection(path)
    total = step = after = 0
    while after < 50:
        step += 1
        total += step * number
        writer.write(b"%d\n" % (step * number))
        got = int(await reader.readline())
        if got != total:
            print("client", number, "step", step, "got", got, "instead of", total, flush=True)
            os._exit(1)
        if step == 20:
            open(f"{prefix}.client{number}", "w").close()
        after += os.path.exists(prefix + ".go")
        await asyncio.sleep(0.002)
    os._exit(0)

async def main():
    ready = asyncio.Event()
    server = await asyncio.start_unix_server(serve, path)
    children = []
    for number in (1, 2):
        child = await asyncio.create_subprocess_exec(sys.executable, __file__, prefix, str(number))
        children.append(child)
    while not all(os.path.exists(f"{prefix}.client{n}") for n in (1, 2)):
        await asyncio.sleep(0.01)
    open(prefix + ".part", "w").write("ready\n")
    os.rename(prefix + ".part", prefix + ".ready")
    codes = [await child.wait() for child in children]
    open(prefix + ".part", "w").write("ok\n" if codes == [0, 0] else f"clients ended with {codes}\n")
    os.rename(prefix + ".part", prefix + ".result")

asyncio.run(client(int(sys.argv[2])) if len(sys.argv) > 2 else main())
"#;

/// Binds sockets in a mount and a network namespace of its own, and connects to them when it is told to.
const PRIVATE: &str = r#"
import os, socket, sys, time
prefix = sys.argv[1]
names = ["private/socket", "\0meio-private-name", "plain-socket"]
listeners = []
for name in names:
    s = socket.socket(socket.AF_UNIX)
    s.bind(name)
    s.listen(3)
    listeners.append(s)
waiting = socket.socket(socket.AF_UNIX)
waiting.connect(names[0])
open(prefix + ".part", "w").write("ready\n")
os.rename(prefix + ".part", prefix + ".ready")
while not os.path.exists(prefix + ".go"):
    time.sleep(0.01)
listeners[0].accept()[0].send(b"waited")
said = [waiting.recv(10) == b"waited"]
for s, name in zip(listeners, names):
    client = socket.socket(socket.AF_UNIX)
    client.connect(name)
    client.send(b"x")
    said.append(s.accept()[0].recv(1) == b"x" and s.getsockname() == (name if name[0] != "\0" else name.encode()))
said.append(os.listdir("private") == ["socket"])
open(prefix + ".part", "w").write("ok\n" if all(said) else f"{said}\n")
os.rename(prefix + ".part", prefix + ".result")
"#;

/// Takes its time to accept connections over which something has come already; the second argument is that time in seconds.
const SLOW: &str = r#"
import os, socket, sys, time
prefix, pause = sys.argv[1], float(sys.argv[2])
listener = socket.socket(socket.AF_UNIX)
listener.bind("slow-socket")
listener.listen(1)
ok = True
while not os.path.exists(prefix + ".go"):
    client = socket.socket(socket.AF_UNIX)
    client.connect("slow-socket")
    client.send(b"early")
    if not os.path.exists(prefix + ".ready"):
        open(prefix + ".part", "w").write("ready\n")
        os.rename(prefix + ".part", prefix + ".ready")
    time.sleep(pause)
    ok &= listener.accept()[0].recv(9) == b"early"
    time.sleep(0.01)
open(prefix + ".part", "w").write("ok\n" if ok else "something is lost\n")
os.rename(prefix + ".part", prefix + ".result")
"#;

/// Sockets with many names in the folder, and an abstract one.
const NAMED: &str = r#"
import os, socket, sys, time
prefix, abstract = sys.argv[1], len(sys.argv) > 2 and sys.argv[2]
files = []
for n in range(200):
    files.append(socket.socket(socket.AF_UNIX))
    files[-1].bind(f"named{n}")
if abstract:
    files.append(socket.socket(socket.AF_UNIX))
    files[-1].bind("\0" + abstract)
open(prefix + ".part", "w").write("ready\n")
os.rename(prefix + ".part", prefix + ".ready")
while not os.path.exists(prefix + ".go"):
    time.sleep(0.01)
for n in range(200):
    files[n].listen()
    socket.socket(socket.AF_UNIX).connect(f"named{n}")
open(prefix + ".part", "w").write("ok\n")
os.rename(prefix + ".part", prefix + ".result")
"#;

/// Two clients wait to be accepted; the first has sent something and is gone.
const GONE: &str = r#"
import os, socket, sys, time
prefix = sys.argv[1]
path = os.path.join(os.path.dirname(prefix), "gone-socket")
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(4)
first, second = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
first.connect(path)
first.send(b"lost")
first.close()
second.connect(path)
open(prefix + ".part", "w").write("ready\n")
os.rename(prefix + ".part", prefix + ".ready")
while not os.path.exists(prefix + ".go"):
    time.sleep(0.01)
second.send(b"alive")
heard = [listener.accept()[0].recv(9) for _ in range(2)]
open(prefix + ".part", "w").write(f"{heard[0]} {heard[1]}\n")
os.rename(prefix + ".part", prefix + ".result")
"#;

/// Three processes in network namespaces of their own, each a server of the same name and its client, one waiting.
const SEVERAL: &str = r#"
import ctypes, os, socket, sys, time
prefix = sys.argv[1]
name = b"\0the same name"
libc = ctypes.CDLL(None)

def publish(suffix, text):
    open(prefix + suffix + ".part", "w").write(text)
    os.rename(prefix + suffix + ".part", prefix + suffix)

def serve(number):
    if number:
        libc.unshare(0x40000000)
    listener, client, waiting = (socket.socket(socket.AF_UNIX) for _ in range(3))
    listener.bind(name)
    listener.listen(2)
    client.connect(name)
    server = listener.accept()[0]
    server.send(b"from %d" % number)
    waiting.connect(name)
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(b"\0datagrams")
    datagrams.sendto(b"datagram %d" % number, b"\0datagrams")
    publish(f".there{number}", "")
    while not os.path.exists(prefix + ".go"):
        time.sleep(0.01)
    assert client.recv(20) == b"from %d" % number
    waiting.send(b"late %d" % number)
    assert listener.accept()[0].recv(20) == b"late %d" % number
    assert datagrams.recvfrom(20) == (b"datagram %d" % number, b"\0datagrams")
    new = socket.socket(socket.AF_UNIX)
    new.connect(name)
    new.send(b"new")
    assert listener.accept()[0].recv(20) == b"new"

children = []
for number in (1, 2):
    pid = os.fork()
    if pid == 0:
        serve(number)
        os._exit(0)
    children.append(pid)
while not all(os.path.exists(f"{prefix}.there{n}") for n in (1, 2)):
    time.sleep(0.01)
pid = os.fork()
if pid == 0:
    serve(0)
    os._exit(0)
children.append(pid)
while not os.path.exists(prefix + ".there0"):
    time.sleep(0.01)
publish(".ready", "ready\n")
ended = [os.waitpid(pid, 0)[1] for pid in children]
publish(".result", "ok\n" if not any(ended) else f"{ended}\n")
"#;

/// A program started in namespaces of its own.
fn in_namespaces(lab: &Lab, options: &str, program: &str) -> std::path::PathBuf {
    let path = lab.path("wrapper");
    std::fs::write(&path, format!("#!/bin/sh\nexec unshare {options} {program} \"$@\"\n")).expect("script");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    path
}

/// A client of a socket outside of the tree, and the end of its connection.
fn client_of(lab: &Lab, listener: &UnixListener, name: &str) -> (crate::lab::Running, UnixStream) {
    let running = lab.ready(&script(lab, "client", CLIENT), &[name]);
    let (mut accepted, _) = listener.accept().expect("accept");
    let mut said = [0; 5];
    std::io::Read::read_exact(&mut accepted, &mut said).expect("hello");
    (running, accepted)
}

/// Dumped and restored twice, for programs whose images cannot be compared since they are never at rest.
fn twice(mut lab: Lab, mut running: crate::lab::Running) {
    for _ in 0..2 {
        let image = lab.dump(&mut running, &["--kill"]);
        lab.restore(&image, &mut running, &[]);
    }
    lab.go_and_verify(running, SOON);
    lab.nothing_left();
}

fn script(lab: &Lab, name: &str, text: &str) -> std::path::PathBuf {
    let path = lab.path(name);
    std::fs::write(&path, format!("#!/usr/bin/python3\n{text}")).expect("script");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    path
}

crate::alone! {
    fn a_peer_outside_of_the_tree_is_named_and_refused() {
        let lab = Lab::new("peer");
        let name = format!("/tmp/meio-outside-{}", crate::lab::now());
        let listener = UnixListener::bind(&name).expect("bind");
        let program = script(&lab, "client", CLIENT);
        let running = lab.ready(&program, &[&name]);
        let (mut accepted, _): (UnixStream, _) = listener.accept().expect("accept");
        let before = observe::snapshot(&observe::tree(running.pid));
        let done = lab.run(lab.meio(&["dump", &running.pid.to_string(), "--json"]));
        let error: Value = serde_json::from_str(done.stdout.lines().last().expect("JSON")).expect("JSON");
        assert_eq!(done.code, 13, "{done:?}");
        let refusals = error["refusals"].as_array().expect("refusals");
        assert_eq!(refusals.len(), 1, "{error}");
        let reason = refusals[0]["reason"].as_str().expect("reason");
        // This very process holds the other end.
        assert!(reason.contains(&name) && reason.contains(&format!("process {} ", std::process::id())), "{reason}");
        assert!(refusals[0]["advice"].as_str().is_some_and(|a| a.contains(&format!("--external unix:{name}"))), "{error}");
        assert_eq!(observe::difference(&before, &observe::snapshot(&observe::tree(running.pid))), "");
        lab.go_and_verify(running, SOON);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut accepted, &mut said).expect("read");
        assert_eq!(said, "hello again");
        std::fs::remove_file(&name).expect("remove");
        lab.nothing_left();
    }

    fn a_peer_outside_is_connected_to_anew() {
        let mut lab = Lab::new("anew");
        let name = format!("/tmp/meio-outside-{}", crate::lab::now());
        let listener = UnixListener::bind(&name).expect("bind");
        let (mut running, accepted) = client_of(&lab, &listener, &name);
        let image = lab.dump(&mut running, &["--kill", "--external", &format!("unix:{name}")]);
        drop(accepted);
        lab.restore(&image, &mut running, &[]);
        let (mut accepted, _) = listener.accept().expect("it connects again");
        lab.go_and_verify(running, SOON);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut accepted, &mut said).expect("read");
        assert_eq!(said, " again");
        // Without the server it cannot come back, and says why.
        drop(listener);
        let done = lab.run(lab.meio(&["restore", "-d", image.to_str().expect("path")]));
        assert!(done.code == 10 && done.stderr.contains(&name) && done.stderr.contains("outside of the tree"), "{done:?}");
        std::fs::remove_file(&name).expect("remove");
        lab.nothing_left();
    }

    /// Nothing is wrong with the image.
    fn a_name_that_is_in_use_is_told() {
        let mut lab = Lab::new("busy");
        let mut running = lab.ready(&script(&lab, "named", NAMED), &["meio-name-in-use"]);
        let image = lab.dump(&mut running, &[]);
        let arguments = ["restore", "-d", "--pid-namespace", image.to_str().expect("path")];
        let abstract_name = |error: &str| error.contains("@meio-name-in-use") && error.contains("network namespace of its own");
        let path = |error: &str| error.contains("named") && error.contains("in use by another program");
        let done = lab.run(lab.meio(&arguments));
        assert!(done.code == 13 && (abstract_name(&done.stderr) || path(&done.stderr)), "{done:?}");
        running.kill();
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name("meio-name-in-use").expect("name");
        let listener = UnixListener::bind_addr(&address).expect("bind");
        let done = lab.run(lab.meio(&arguments));
        assert!(done.code == 13 && abstract_name(&done.stderr), "{done:?}");
        drop(listener);
        lab.restore(&image, &mut running, &[]);
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    /// A restore that is killed while it names sockets leaves nothing behind; what an older one left is removed.
    fn killed_while_names_are_given() {
        let mut lab = Lab::new("named");
        let mut running = lab.ready(&script(&lab, "named", NAMED), &[]);
        let image = lab.dump(&mut running, &["--kill"]);
        let ours = |lab: &Lab| {
            let names = std::fs::read_dir(lab.path("")).expect("folder").flatten().map(|e| e.file_name().into_string().expect("name"));
            names.filter(|n| n.starts_with(".meio-")).collect::<Vec<_>>()
        };
        let mut seen = 0;
        for _ in 0..10 {
            let mut meio = lab.meio(&["restore", "-d", "--pid-namespace", image.to_str().expect("path")]).spawn().expect("meio starts");
            while ours(&lab).is_empty() && meio.try_wait().expect("wait").is_none() {}
            seen += usize::from(meio.try_wait().expect("wait").is_none());
            meio.kill().expect("kill");
            meio.wait().expect("wait");
            assert!(until(SOON, || ours(&lab).is_empty()), "left behind: {:?}", ours(&lab));
        }
        assert!(seen > 0, "it was never caught");
        let old = nix::sys::time::TimeSpec::new(1_000_000, 0);
        for name in [".meio-1-0", ".meio-1-1", ".meio-x"] {
            std::fs::create_dir_all(lab.path(name).join("run")).expect("folder");
            let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
            nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &lab.path(name), &old, &old, flags).expect("time");
        }
        let held = std::fs::File::open(lab.path(".meio-1-1")).expect("open");
        let _held = nix::fcntl::Flock::lock(held, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, e)| e).expect("lock");
        lab.restore(&image, &mut running, &[]);
        let mut left = ours(&lab);
        left.sort();
        assert_eq!(left, [".meio-1-1", ".meio-x"]);
        left.iter().for_each(|name| std::fs::remove_dir_all(lab.path(name)).expect("remove"));
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    /// The same by an abstract name.
    fn a_peer_outside_is_found_by_an_abstract_name() {
        use std::os::linux::net::SocketAddrExt;
        let mut lab = Lab::new("abstract");
        let name = format!("meio-outside-{}", crate::lab::now());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("name");
        let listener = UnixListener::bind_addr(&address).expect("bind");
        let (mut running, accepted) = client_of(&lab, &listener, &format!("@{name}"));
        let image = lab.dump(&mut running, &["--kill", "--external", &format!("unix:@{name}")]);
        drop(accepted);
        lab.restore(&image, &mut running, &[]);
        let (mut accepted, _) = listener.accept().expect("it connects again");
        lab.go_and_verify(running, SOON);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut accepted, &mut said).expect("read");
        assert_eq!(said, " again");
        lab.nothing_left();
    }

    /// One name in three network namespaces of one tree: whoever connects finds the one of its own.
    fn one_abstract_name_in_several_network_namespaces() {
        for way in [Way::DumpOnly, Way::KillRestore, Way::TwiceRestored] {
            let mut lab = Lab::new("several");
            let running = lab.ready(&script(&lab, "several", SEVERAL), &[]);
            lab.take(running, way);
        }
    }

    /// What a client sent that has closed its end before it was accepted cannot be read: it is refused, and left out when the
    /// user wants so.
    fn what_was_sent_before_the_end_is_not_lost_in_silence() {
        let mut lab = Lab::new("gone_early");
        let mut running = lab.ready(&script(&lab, "gone", GONE), &[]);
        let before = observe::snapshot(&observe::tree(running.pid));
        let done = lab.run(lab.meio(&["dump", &running.pid.to_string()]));
        assert!(done.code == 13 && done.stderr.contains("1 of those who wait to be accepted have closed"), "{done:?}");
        assert!(done.stderr.contains("--ignore unix:"), "{done:?}");
        assert_eq!(observe::difference(&before, &observe::snapshot(&observe::tree(running.pid))), "");
        let image = lab.dump(&mut running, &["--kill", "--ignore", &format!("unix:{}", lab.path("gone-socket").display())]);
        let done = lab.run(lab.meio(&["restore", "-d", image.to_str().expect("path")]));
        assert!(done.code == 3 && done.stderr.contains("left out"), "{done:?}");
        std::fs::write(lab.path("x.go"), "").expect("go");
        assert!(until(SOON, || lab.path("x.result").exists()), "{}", lab.log());
        // The connection itself is there, and the one that came after it.
        assert_eq!(std::fs::read_to_string(lab.path("x.result")).expect("result"), "b'' b'alive'\n");
        assert!(until(SOON, || observe::state(running.pid).is_none()));
        lab.nothing_left();
    }

    fn what_is_lost_on_the_way_out_is_told() {
        let lab = Lab::new("lost");
        let name = format!("/tmp/meio-outside-{}", crate::lab::now());
        let listener = UnixListener::bind(&name).expect("bind");
        let (mut running, mut accepted) = client_of(&lab, &listener, &name);
        std::io::Write::write_all(&mut accepted, b"unread").expect("write");
        let (pid, image) = (running.pid.to_string(), lab.path("images/x.meio"));
        let image = image.to_str().expect("path");
        let inode = std::fs::read_link(format!("/proc/{pid}/fd/3")).expect("its socket");
        let inode = inode.to_str().expect("text").trim_start_matches("socket:").to_owned();
        let done = lab.run(lab.meio(&["dump", &pid, "-o", image, "--external", &format!("unix:{inode}")]));
        assert!(done.code == 3 && done.stderr.contains("6 bytes from"), "{done:?}");
        // Left out it is closed for the program.
        let done = lab.run(lab.meio(&["dump", "--kill", &pid, "-o", image, "--ignore", &format!("unix:{inode}")]));
        assert_eq!(done.code, 0, "{done:?}");
        running.wait();
        drop((listener, accepted));
        std::fs::remove_file(&name).expect("remove");
        let done = lab.run(lab.meio(&["restore", "-d", image]));
        assert!(done.code == 3 && done.stderr.contains("left out"), "{done:?}");
        std::fs::write(lab.path("x.go"), "").expect("go");
        assert!(until(SOON, || lab.log().contains("BrokenPipeError")), "{}", lab.log());
        std::fs::remove_file(image).expect("remove");
        lab.nothing_left();
    }

    fn sockets_in_a_network_namespace() {
        for options in ["-n", "-mn"] {
            for name in ["unix_names", "unix_dgram", "unix_rights"] {
                let mut lab = Lab::new(name);
                let program = in_namespaces(&lab, options, crate::lab::compile(name).to_str().expect("path"));
                let running = lab.ready(&program, &[]);
                lab.take(running, Way::TwiceRestored);
            }
        }
    }

    fn sockets_in_a_file_system_of_their_own() {
        use std::os::linux::net::SocketAddrExt;
        // Here the name is taken.
        let address = std::os::unix::net::SocketAddr::from_abstract_name("meio-private-name").expect("name");
        let _listener = UnixListener::bind_addr(&address).expect("bind");
        for way in [Some(Way::DumpOnly), Some(Way::KillRestore), None] {
            let mut lab = Lab::new("private");
            let program = script(&lab, "program", PRIVATE);
            let inside = format!("-mn sh -c 'mkdir private && mount -t tmpfs none private && exec {} \"$0\"'", program.display());
            let running = lab.ready(&in_namespaces(&lab, &inside, ""), &[]);
            match way {
                Some(way) => lab.take(running, way),
                // A connection that is made anew is an access to the file: its images differ in that.
                None => twice(lab, running),
            }
        }
    }

    fn what_passes_by_itself_is_waited_for() {
        let mut lab = Lab::new("slow");
        let mut running = lab.ready(&script(&lab, "slow", SLOW), &["0.04"]);
        for _ in 0..10 {
            lab.dump(&mut running, &[]);
        }
        twice(lab, running);
        let lab = Lab::new("slower");
        let running = lab.ready(&script(&lab, "slower", SLOW), &["4"]);
        let done = lab.run(lab.meio(&["dump", &running.pid.to_string()]));
        assert!(done.code == 13 && done.stderr.contains("dump again a moment later"), "{done:?}");
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    fn an_asyncio_server_and_two_clients() {
        for way in [Some(Way::DumpOnly), Some(Way::KillRestore), None] {
            let mut lab = Lab::new("asyncio");
            let program = script(&lab, "server", SERVER);
            let running = lab.ready(&program, &[]);
            assert!(until(Duration::from_secs(5), || observe::tree(running.pid).len() == 3));
            match way {
                Some(way) => lab.take(running, way),
                None => twice(lab, running),
            }
        }
    }
}
