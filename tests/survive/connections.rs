//! A tree with connections to somebody outside, who streams through one of them all the time and takes every byte that comes back at
//! its word: whatever fails and whenever meio dies, the stream goes on, at once or after another restore.

use super::calls::{self, Case, Injury};
use super::{KILLED, all, each, images, promised, run_for, source};
use crate::lab::{Lab, Running, SOON, observe, until};
use crate::netlock::{Client, locks};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The tree, both of its connections, and a third that waits to be accepted.
struct Server {
    lab: Lab,
    running: Running,
    client: Client,
    idle: TcpStream,
    _waits: TcpStream,
}

/// Echoes what comes through two connections until one of them ends; a child holds both ends of a third, over which they tell each
/// other that they live. It also listens.
const PROGRAM: &str = r#"
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in at;
static socklen_t size = sizeof at;

static void say(const char *prefix, const char *what, int number)
{
    char part[4096], name[4096];
    snprintf(part, sizeof part, "%s.part", prefix);
    snprintf(name, sizeof name, "%s.%s", prefix, what);
    FILE *f = fopen(part, "w");
    fprintf(f, "%d\n", number);
    fclose(f);
    rename(part, name);
}

static int joined(int port)
{
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(port);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(s, (struct sockaddr *)&at, size)) exit(2);
    return s;
}

int main(int argc, char **argv)
{
    int port = atoi(argv[2 + 0 * argc]), s[3] = {joined(port), joined(port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    at.sin_port = 0;
    bind(listener, (struct sockaddr *)&at, sizeof at);
    listen(listener, 5);
    getsockname(listener, (struct sockaddr *)&at, &size);
    int listens_at = ntohs(at.sin_port);
    int near = joined(listens_at);
    s[2] = accept(listener, NULL, NULL);
    pid_t child = fork();
    char *buffer = malloc(1 << 16);
    if (child == 0) {
        for (int i = 0; i < 3; i++) close(s[i]);
        while (write(near, "x", 1) == 1 && read(near, buffer, 1) == 1) usleep(5000);
        _exit(0);
    }
    close(near);
    say(argv[1], "ready", listens_at);
    struct pollfd p[3] = {{s[0], POLLIN, 0}, {s[1], POLLIN, 0}, {s[2], POLLIN, 0}};
    for (unsigned beats = 0;;) {
        poll(p, 3, -1);
        for (int i = 0; i < 3; i++) {
            if (!p[i].revents) continue;
            ssize_t n = read(s[i], buffer, 1 << 16);
            if (n <= 0) {
                close(s[2]);
                waitpid(child, NULL, 0);
                if (n < 0) say(argv[1], "broken", i);
                return n < 0;
            }
            for (ssize_t done = 0, m; done < n; done += m)
                if ((m = write(s[i], buffer + done, n - done)) < 0) return 3;
            if (i == 2 && ++beats % 20 == 0) say(argv[1], "beats", beats);
        }
    }
}
"#;

/// Exit code 1 when a socket of one of these processes is in repair.
const IN_REPAIR: &str = "
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
for pid in map(int, sys.argv[1:]):
    handle = os.pidfd_open(pid)
    for fd in os.listdir(f'/proc/{pid}/fd'):
        if os.readlink(f'/proc/{pid}/fd/{fd}').startswith('socket:'):
            s = socket.socket(fileno=libc.syscall(438, handle, int(fd), 0))
            if s.getsockopt(socket.IPPROTO_TCP, 19):
                sys.exit(f'fd {fd} of {pid}')";

fn accept(lab: &Lab, listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("option");
    let mut peer = None;
    until(SOON, || {
        peer = listener.accept().ok();
        peer.is_some()
    });
    let peer = peer.unwrap_or_else(|| panic!("nobody connects: {}", lab.log())).0;
    peer.set_nonblocking(false).expect("option");
    peer
}

impl Server {
    fn start() -> Server {
        let lab = Lab::new("survive-connections");
        let (text, program) = (lab.path("server.c"), lab.path("server"));
        fs::write(&text, PROGRAM).expect("source");
        let done = Command::new("gcc").args(["-O1", "-w", "-o"]).arg(&program).arg(&text).status().expect("gcc starts");
        assert!(done.success());
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("name").port().to_string();
        let running = lab.spawn(&program, &[lab.path("x").to_str().expect("path"), &port]);
        let (stream, idle) = (accept(&lab, &listener), accept(&lab, &listener));
        assert!(until(SOON, || running.file("ready").exists()), "{}", lab.log());
        let port: u16 = fs::read_to_string(running.file("ready")).expect("port").trim().parse().expect("a number");
        let waits = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        idle.set_read_timeout(Some(SOON)).expect("option");
        idle.set_nodelay(true).expect("option");
        let server = Server { client: Client::new(stream), idle, _waits: waits, running, lab };
        server.well(false).expect("undisturbed");
        server
    }

    fn image(&self) -> PathBuf {
        self.lab.path("images/tree.meio")
    }

    fn dump(&self) -> Command {
        self.lab.meio(&["dump", &self.running.pid.to_string(), "-o", self.image().to_str().expect("path")])
    }

    fn restore(&self) -> Command {
        self.lab.meio(&["restore", "-d", self.image().to_str().expect("path")])
    }

    /// The tree and its connections are as they should be. After a meio that was killed a helper may still be at work.
    fn well(&self, killed: bool) -> Result<(), String> {
        let beats = || fs::read_to_string(self.running.file("beats")).unwrap_or_default();
        let before = beats();
        source::free(self.running.pid)?;
        if !self.client.moves(200_000) {
            return Err(format!(
                "the client's stream stands still; {}",
                fs::read_to_string(self.running.file("broken")).unwrap_or_default()
            ));
        }
        let mut byte = [0];
        (&self.idle).write_all(b"?").map_err(|e| format!("the idle connection: {e}"))?;
        (&self.idle).read_exact(&mut byte).map_err(|e| format!("the idle connection: {e}"))?;
        if byte != *b"?" {
            return Err("another byte has come back".into());
        }
        if !until(SOON, || beats() != before) {
            return Err("the connection within the tree stands still".into());
        }
        let tree: Vec<String> = observe::tree(self.running.pid).iter().map(i32::to_string).collect();
        let repaired = Command::new("python3").arg("-c").arg(IN_REPAIR).args(&tree).output().expect("python3 starts");
        if tree.len() != 2 || !repaired.status.success() {
            return Err(format!("in repair: {} of {tree:?}", String::from_utf8_lossy(&repaired.stderr)));
        }
        let no_table = || rules().is_empty();
        let gone = if killed { until(SOON, no_table) } else { no_table() };
        if gone { Ok(()) } else { Err(format!("rules are left: {}", rules())) }
    }

    /// Dumps and ends the tree; its lock is kept.
    fn save(&mut self) -> Result<(), String> {
        let mut command = self.dump();
        command.arg("--kill");
        let done = self.lab.run(command);
        self.running.wait();
        let gone = until(SOON, || self.gone());
        let kept = locks(&self.lab);
        if done.code == 0 && gone && kept.len() == 1 { Ok(()) } else { Err(format!("not saved: {done:?}, {kept:?}")) }
    }

    fn gone(&self) -> bool {
        let own = std::process::id() as i32;
        !observe::processes().into_iter().any(|pid| pid != 1 && pid != own)
    }

    fn whole(&self) -> bool {
        observe::tree(self.running.pid).len() == 2
    }

    /// A restore that nobody disturbs brings the stream back, where there is nothing.
    fn again(&self) -> Result<(), String> {
        if locks(&self.lab).len() != 1 {
            return Err("the lock that was kept is gone, and the tree is not there".into());
        }
        let done = self.lab.run(self.restore());
        if done.code != 0 {
            return Err(format!("the second restore: {done:?}"));
        }
        self.well(false).map_err(|why| format!("after a second restore: {why}"))
    }

    /// After a meio that was killed: all, or nothing.
    fn all_or_again(&self) -> Result<(), String> {
        until(Duration::from_millis(400), || self.gone());
        if until(SOON / 4, || self.gone() || self.whole()) && self.whole() && self.well(true).is_ok() {
            return Ok(());
        }
        if until(SOON / 4, || self.gone()) { self.again() } else { self.well(true) }
    }

    fn end(self) {
        let image = self.image();
        let Server { lab, mut running, client, .. } = self;
        client.end();
        running.wait();
        let _ = fs::remove_file(image);
        lab.nothing_left();
    }
}

fn rules() -> String {
    let listed = Command::new("nft").args(["list", "ruleset"]).output().expect("nft(8) starts");
    String::from_utf8_lossy(&listed.stdout).into_owned()
}

fn dump(injury: Injury) {
    let mut server = Server::start();
    let cases = calls::list(&server.lab, &server.dump(), true, injury);
    each(&format!("dump of connections, a call {injury:?}"), cases.len(), |i| {
        let case: &Case = &cases[i];
        let judge = |server: &Server| -> Result<(), String> {
            let outcome = calls::run(&server.lab, &server.dump(), case).ok_or("meio does not end")?;
            promised(case, &outcome)?;
            server.well(injury == Injury::Killed)?;
            images(&server.lab, &server.image(), injury == Injury::Killed, false)
        };
        let result = judge(&server).map_err(|why| format!("{case}\n    {why}"));
        renew(&mut server, &result);
        result
    });
    server.end();
}

/// Begins again where something is wrong.
fn renew(server: &mut Server, result: &Result<(), String>) {
    if result.is_err() {
        let own = std::process::id() as i32;
        until(SOON, || {
            observe::processes().into_iter().filter(|&pid| pid != 1 && pid != own).for_each(super::kill);
            server.running.wait();
            server.gone()
        });
        let _ = server.lab.run(server.lab.meio(&["check", "--unlock", "all"]));
        *server = Server::start();
    }
}

fn killed_at_random(restores: bool, n: usize) {
    let mut server = Server::start();
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        let command = if restores {
            server.save().expect("undisturbed");
            server.restore()
        } else {
            server.dump()
        };
        let done = server.lab.run(command);
        assert_eq!(done.code, 0, "{done:?}");
        longest = longest.max(Duration::from_nanos(done.time.1 - done.time.0));
        server.well(false).expect("undisturbed");
    }
    let mut seed = std::process::id() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let what = if restores { "restore" } else { "dump" };
    each(&format!("{what} of connections, killed within {longest:?}"), n, |_| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let instant = longest.mul_f64((seed >> 11) as f64 / (1u64 << 53) as f64);
        let mut judge = || -> Result<(), String> {
            if !restores {
                run_for(&mut server.dump(), instant);
                server.well(true)?;
                return images(&server.lab, &server.image(), true, false);
            }
            server.save()?;
            run_for(&mut server.restore(), instant);
            server.all_or_again()
        };
        let result = judge().map_err(|why| format!("killed after {instant:?}\n    {why}"));
        renew(&mut server, &result);
        result
    });
    server.end();
}

fn restore(injury: Injury) {
    let mut server = Server::start();
    server.save().expect("undisturbed");
    let cases = calls::list(&server.lab, &server.restore(), false, injury);
    server.well(false).expect("undisturbed");
    each(&format!("restore of connections, a call {injury:?}"), cases.len(), |i| {
        let case = &cases[i];
        let mut judge = || -> Result<(), String> {
            server.save()?;
            let outcome = calls::run(&server.lab, &server.restore(), case).ok_or("meio does not end")?;
            promised(case, &outcome)?;
            match outcome.code {
                0 | 3 if locks(&server.lab).is_empty() => server.well(false),
                // It is said that the lock could not be opened.
                0 | 3 if outcome.stderr.contains("--unlock") => {
                    let opened = server.lab.run(server.lab.meio(&["check", "--unlock", "all"]));
                    if opened.code == 0 { server.well(false) } else { Err(format!("{opened:?}")) }
                }
                0 | 3 => Err(format!("the lock is left and nothing was said: {outcome:?}")),
                KILLED => server.all_or_again(),
                _ if until(SOON / 4, || server.gone()) => server.again(),
                _ => Err(format!("processes are left\n{}", observe::listing())),
            }
        };
        let result = judge().map_err(|why| format!("{case}\n    {why}"));
        renew(&mut server, &result);
        result
    });
    server.end();
}

crate::alone! {
    fn dump_of_connections_when_a_call_fails() { dump(Injury::Fails) }
    fn dump_of_connections_killed_at_a_call() { dump(Injury::Killed) }
    fn dump_of_connections_killed_at_random() { killed_at_random(false, if all() { 500 } else { 40 }) }
    fn restore_of_connections_when_a_call_fails() { restore(Injury::Fails) }
    fn restore_of_connections_killed_at_a_call() { restore(Injury::Killed) }
    fn restore_of_connections_killed_at_random() { killed_at_random(true, if all() { 500 } else { 40 }) }
}
