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
peer.connect(path)
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

    fn an_asyncio_server_and_two_clients() {
        for way in [Way::DumpOnly, Way::KillRestore, Way::TwiceRestored] {
            let mut lab = Lab::new("asyncio");
            let program = script(&lab, "server", SERVER);
            let running = lab.ready(&program, &[]);
            assert!(until(Duration::from_secs(5), || observe::tree(running.pid).len() == 3));
            lab.take(running, way);
        }
    }
}
