//! The link to another machine: a real sshd, real keys, and everything that can be wrong with either.

use crate::lab::{Lab, Outcome, Running, SOON, observe, sshd, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const HOST: &str = "root@127.0.0.1:2222";
const KINDS: [&str; 3] = ["ed25519", "ecdsa", "rsa"];

/// A machine that can be logged in to: this one.
struct Host {
    lab: Lab,
    folder: String,
    sshd: Running,
}

fn plain(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("it starts");
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

impl Host {
    fn new(name: &str) -> Host {
        for file in sshd::GREETINGS.iter().filter(|f| Path::new(f).exists()) {
            nix::mount::mount(Some("/dev/null"), *file, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).expect("mount");
        }
        fs::create_dir_all("/run/sshd").expect("sshd's folder");
        let lab = Lab::new(name);
        let folder = lab.path("").display().to_string();
        for kind in KINDS {
            for who in ["host", "key"] {
                sshd::key(&lab, kind, &format!("{who}_{kind}"));
            }
        }
        fs::create_dir_all(lab.path("home/.ssh")).expect("folder");
        let authorized: String = KINDS.map(|kind| fs::read_to_string(lab.path(&format!("key_{kind}.pub"))).expect("key")).concat();
        fs::write(lab.path("authorized"), authorized).expect("keys");
        let configuration = sshd::configuration(&lab, 2222, &KINDS.map(|kind| format!("host_{kind}")), "authorized").display().to_string();
        let log = format!("{folder}sshd.log");
        let sshd = lab.spawn(Path::new("/usr/sbin/sshd"), &["-D", "-E", &log, "-f", &configuration]);
        let answers = || std::net::TcpStream::connect("127.0.0.1:2222").is_ok();
        assert!(until(SOON, answers), "no sshd: {}", fs::read_to_string(&log).unwrap_or_default());
        let host = Host { lab, folder, sshd };
        host.known(&host.key("ed25519"));
        host
    }

    /// The public key of the host, kind and base64.
    fn key(&self, kind: &str) -> String {
        let text = fs::read_to_string(self.lab.path(&format!("host_{kind}.pub"))).expect("key");
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// Nothing is known but this key of it.
    fn known(&self, key: &str) {
        fs::write(self.lab.path("home/.ssh/known_hosts"), format!("[127.0.0.1]:2222 {key}\n")).expect("known hosts");
    }

    fn command(&self, host: &str, arguments: &[&str]) -> Command {
        let mut command = self.lab.meio(&["check", "--json", "--host", host]);
        command.args(arguments).env("HOME", self.lab.path("home")).env_remove("SSH_AUTH_SOCK");
        if !arguments.contains(&"--remote-path") {
            command.args(["--remote-path", crate::MEIO]);
        }
        command
    }

    /// `meio check --host` with a key that is good.
    fn check(&self, arguments: &[&str]) -> Outcome {
        self.check_at(HOST, arguments)
    }

    /// Only as far as it must get to be let in.
    fn log_in(&self, arguments: &[&str]) -> Outcome {
        self.check(&[&["--speed", "4k"], arguments].concat())
    }

    fn check_at(&self, host: &str, arguments: &[&str]) -> Outcome {
        let key = format!("{}key_ed25519", self.folder);
        let mut command = self.command(host, arguments);
        self.lab.run(std::mem::replace(command.args(["--identity", &key]), Command::new("true")))
    }

    /// It must be refused with `code` and say `words`; what it says.
    fn refused(&self, done: Outcome, code: i32, words: &[&str]) -> String {
        let error = last(&done);
        let said = format!("{}\n{}", error["message"].as_str().unwrap_or_default(), error["help"].as_str().unwrap_or_default());
        assert_eq!(done.code, code, "{said}{}{}", done.stdout, done.stderr);
        words.iter().for_each(|w| assert!(said.contains(w), "no {w:?} in: {said}"));
        said
    }

    /// It must get there.
    fn gets_there(&self, done: &Outcome) -> Value {
        let value = last(done);
        assert!([0, 3].contains(&done.code) && value["type"] == "result", "{done:?}\n{}", self.log());
        value
    }

    fn log(&self) -> String {
        fs::read_to_string(self.lab.path("sshd.log")).unwrap_or_default()
    }

    /// Sends so much over the streams: what was measured.
    fn speed(&self, bytes: &str, arguments: &[&str]) -> Value {
        let done = self.check(&[&["--speed", bytes], arguments].concat());
        let speed = self.gets_there(&done)["speed"].clone();
        assert_eq!(speed["strangers"], 0, "{speed}");
        speed
    }

    fn end(mut self) {
        self.sshd.kill();
        self.lab.nothing_left();
    }
}

fn last(done: &Outcome) -> Value {
    done.stdout.lines().last().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default()
}

/// Processes whose command line has all these words.
fn processes(words: &[&str]) -> Vec<i32> {
    let has = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line: Vec<&[u8]> = line.split(|&b| b == 0).collect();
        words.iter().all(|w| line.contains(&w.as_bytes()))
    };
    observe::processes().into_iter().filter(has).collect()
}

/// A measurement that goes on until something happens to it: what it says in the end.
fn interrupted(host: &Host, arguments: &[&str], happens: impl FnOnce(i32)) -> Outcome {
    let mut command = host.command(HOST, &[&["--speed", "100G", "--bandwidth", "1M"], arguments].concat());
    command.args(["--identity", &format!("{}key_ed25519", host.folder)]);
    let (out, err) = (host.lab.path("out"), host.lab.path("err"));
    let mut child =
        command.stdout(fs::File::create(&out).expect("out")).stderr(fs::File::create(&err).expect("err")).spawn().expect("meio");
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    // Its shell may have the same words; meio itself has them one by one. Bytes go, so all streams are open.
    let mut far = Vec::new();
    let begun = until(SOON, || {
        far = processes(&[crate::MEIO, "agent", "--drain"]);
        far.len() == 1 && text(&out).contains("\"bytes\"")
    });
    assert!(begun, "{far:?} {} {}\n{}", text(&out), text(&err), host.log());
    happens(far[0]);
    let mut status = None;
    let ended = until(3 * SOON, || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    if !ended {
        child.kill().expect("kill");
    }
    assert!(ended, "it does not notice: {}{}", text(&out), text(&err));
    Outcome { code: status.and_then(|s| s.code()).unwrap_or(-1), stdout: text(&out), stderr: text(&err), time: (0, 0) }
}

crate::alone! {
    fn every_kind_of_key_logs_in() {
        let host = Host::new("keys");
        let folder = host.folder.clone();
        for kind in KINDS {
            let command = || host.command(HOST, &["--speed", "4k"]);
            let mut by_file = command();
            by_file.args(["--identity", &format!("{folder}key_{kind}")]);
            host.gets_there(&host.lab.run(by_file));
            // From the folder where keys usually are.
            let place = host.lab.path(&format!("home/.ssh/id_{kind}"));
            fs::copy(host.lab.path(&format!("key_{kind}")), &place).expect("copy");
            host.gets_there(&host.lab.run(command()));
            fs::remove_file(place).expect("removed");
            // From an agent, which has another key, too.
            let socket = format!("{folder}agent_{kind}");
            let agent = host.lab.spawn(Path::new("/usr/bin/ssh-agent"), &["-D", "-a", &socket]);
            assert!(until(SOON, || Path::new(&socket).exists()), "no agent");
            for key in ["host_ed25519", &format!("key_{kind}")] {
                let mut add = Command::new("ssh-add");
                add.arg("-q").arg(format!("{folder}{key}")).env("SSH_AUTH_SOCK", &socket).stdin(Stdio::null());
                assert!(add.status().expect("ssh-add").success());
            }
            let mut by_agent = command();
            by_agent.env("SSH_AUTH_SOCK", &socket);
            host.gets_there(&host.lab.run(by_agent));
            // A key with a passphrase: not from the file, but from the agent.
            let locked = format!("{folder}key_{kind}");
            plain("ssh-keygen", &["-q", "-p", "-P", "", "-N", "secret", "-f", &locked]);
            let mut by_file = command();
            by_file.args(["--identity", &locked]);
            host.refused(host.lab.run(by_file), 11, &["passphrase", "ssh-add"]);
            let mut by_agent = command();
            by_agent.args(["--identity", &locked]).env("SSH_AUTH_SOCK", &socket);
            host.gets_there(&host.lab.run(by_agent));
            let mut agent = agent;
            agent.kill();
        }
        host.refused(host.lab.run(host.command(HOST, &[])), 11, &["does not let root in", "no key to offer"]);
        host.end();
    }

    fn hosts_that_are_not_known_are_refused() {
        let host = Host::new("known");
        let print = plain("ssh-keygen", &["-lf", &format!("{}host_ed25519.pub", host.folder)]);
        let print = print.split_whitespace().nth(1).expect("a fingerprint").to_owned();
        let known = host.lab.path("home/.ssh/known_hosts");
        fs::remove_file(&known).expect("removed");
        let only = "[127.0.0.1]:2222 ";
        let said = host.refused(host.check(&[]), 11, &["is not known", only, "SHA256:"]);
        // The line that it says is the one that is needed.
        let line = said.lines().find(|l| l.starts_with(only)).expect("the line").to_owned();
        fs::write(&known, format!("{line}\n")).expect("known hosts");
        host.gets_there(&host.log_in(&[]));
        // Hashed, and with the key of a kind that the server does not show first.
        for kind in KINDS {
            host.known(&host.key(kind));
            host.gets_there(&host.log_in(&[]));
        }
        plain("ssh-keygen", &["-q", "-H", "-f", known.to_str().expect("path")]);
        assert!(fs::read_to_string(&known).expect("text").starts_with("|1|"));
        host.gets_there(&host.log_in(&[]));
        // The key of somebody else: all kinds are known, so none of them is new.
        let key = |kind: &str| fs::read_to_string(host.lab.path(&format!("key_{kind}.pub"))).expect("key");
        host.known(&key("ed25519"));
        host.refused(host.check(&[]), 11, &["HAS CHANGED", &print, "line 1", "ssh-keygen -R"]);
        fs::write(&known, format!("@revoked * {}\n[127.0.0.1]:2222 {}\n", host.key("ed25519"), host.key("ed25519"))).expect("known hosts");
        host.refused(host.check(&[]), 11, &["revoked", &print]);
        // Another file, by name.
        let other = host.lab.path("others");
        fs::write(&other, format!("127.0.0.2,[127.0.0.1]:* {}\n", host.key("ecdsa"))).expect("known hosts");
        host.gets_there(&host.log_in(&["--known-hosts", other.to_str().expect("path")]));
        host.end();
    }

    fn whoever_cannot_be_talked_to_is_named() {
        let host = Host::new("nobody");
        host.refused(host.check_at("stranger@127.0.0.1:2222", &["--identity", "/nowhere"]), 11, &["does not let stranger in", "/nowhere"]);
        host.refused(host.check(&["--remote-path", "/nowhere/meio"]), 1, &["no meio at", "/nowhere/meio", "--remote-path"]);
        let script = |name: &str, text: &str| {
            let path = host.lab.path(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("script");
            format!("sh {}", path.display())
        };
        let old = script("old", "echo \"error: unrecognized subcommand '$1'\" >&2; exit 2");
        host.refused(host.check(&["--remote-path", &old]), 1, &["too old", "same version"]);
        let other = script("other", "yes");
        host.refused(host.check(&["--remote-path", &other]), 1, &["is no meio"]);
        let mute = script("mute", "exec cat > /dev/null");
        host.refused(host.check(&["--remote-path", &mute, "--connect-timeout", "1s"]), 15, &["does not answer as a meio"]);
        let dies = script("dies", "kill -9 $$");
        host.refused(host.check(&["--remote-path", &dies]), 15, &["ended by a signal"]);
        // A meio from the future.
        let mut hello = Vec::new();
        let words = serde_json::json!({"meio": "9.9", "lowest": 99, "highest": 100, "kernel": "k", "machine": "m", "host": "h\u{1b}[31m", "uid": 0});
        ciborium::into_writer(&words, &mut hello).expect("CBOR");
        let mut bytes = b"\0meio link\n\0".to_vec();
        let start = [&(hello.len() as u32).to_le_bytes()[..], &2u16.to_le_bytes(), &[0; 10]].concat();
        let sum = xxhash_rust::xxh3::xxh3_64(&[&start[..], &hello].concat());
        bytes.extend([&start[..], &sum.to_le_bytes(), &hello].concat());
        fs::write(host.lab.path("greeting"), bytes).expect("file");
        let future = script("future", &format!("cat {}greeting; exec cat > /dev/null", host.folder));
        host.refused(host.check(&["--remote-path", &future]), 1, &["meio 9.9", "speaks versions 99-100", "newer meio here"]);
        // A login shell that greets is not in the way.
        let polite = script("polite", &format!("[ $1 = check ] || echo Welcome; exec {} \"$@\"", crate::MEIO));
        let found = host.gets_there(&host.check(&["--remote-path", &polite]));
        assert_eq!(found["host"]["meio"], env!("CARGO_PKG_VERSION"));
        assert!(found["check"]["findings"].as_array().is_some_and(|f| f.len() > 10), "{found}");
        let usage = host.check_at("-oProxyCommand=true", &[]);
        assert_eq!(usage.code, 2, "{usage:?}");
        host.end();
    }

    fn whoever_cannot_be_reached_is_given_up_in_time() {
        let host = Host::new("reach");
        host.refused(host.check_at("root@127.0.0.1:2223", &[]), 15, &["nothing listens there"]);
        host.refused(host.check_at("no-such-host.invalid", &["--connect-timeout", "5s"]), 15, &["no-such-host.invalid"]);
        // An interface that drops everything, and somebody who takes the connection and says nothing.
        plain("ip", &["link", "add", "hole", "type", "veth", "peer", "name", "wall"]);
        plain("ip", &["address", "add", "10.98.0.1/24", "dev", "hole"]);
        plain("ip", &["link", "set", "hole", "up"]);
        plain("ip", &["link", "set", "wall", "up"]);
        plain("ip", &["neighbour", "add", "10.98.0.2", "lladdr", "02:00:00:00:00:02", "dev", "hole"]);
        host.refused(host.check_at("10.98.0.2", &["--connect-timeout", "500ms"]), 15, &["cannot be reached", "no answer within 0.5 s"]);
        let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let at = mute.local_addr().expect("address").to_string();
        let begin = std::time::Instant::now();
        host.refused(host.check_at(&at, &["--connect-timeout", "500ms"]), 15, &["does not agree on an ssh session"]);
        assert!(begin.elapsed() < SOON);
        drop(mute);
        plain("ip", &["link", "delete", "hole"]);
        host.end();
    }

    fn streams_go_directly_or_over_ssh() {
        let host = Host::new("streams");
        let client = format!(
            "/usr/bin/ssh -F none -i '{0}key_ecdsa' -o 'UserKnownHostsFile {0}home/.ssh/known_hosts' -o BatchMode=yes",
            host.folder
        );
        for (streams, client) in [("1", None), ("3", None), ("2", Some(&client))] {
            let mut arguments = vec!["--streams", streams];
            arguments.extend(client.iter().flat_map(|c| ["--ssh", c]));
            let direct = host.speed("12345678", &arguments);
            assert_eq!((&direct["direct"], &direct["bytes"]), (&true.into(), &12345678.into()), "{direct}");
            arguments.extend(["--direct", "never"]);
            let ssh = host.speed("12345678", &arguments);
            assert_eq!((&ssh["direct"], &ssh["bytes"]), (&false.into(), &12345678.into()), "{ssh}");
        }
        host.gets_there(&host.check(&["--ssh", &client]));
        fs::remove_file(host.lab.path("home/.ssh/known_hosts")).expect("removed");
        host.refused(host.check(&["--ssh", &client]), 11, &["no login", "Host key verification failed"]);
        host.known(&host.key("ed25519"));
        host.refused(host.check(&["--ssh", "/nowhere/ssh -q"]), 2, &["/nowhere/ssh"]);
        // No port but ssh's can be reached.
        let rules = "table inet t {\nchain c {\ntype filter hook input priority 0;\ntcp dport != 2222 tcp flags & (syn|ack) == syn drop\n}\n}\n";
        fs::write(host.lab.path("rules"), rules).expect("rules");
        plain("nft", &["-f", &format!("{}rules", host.folder)]);
        let ssh = host.speed("1M", &[]);
        assert_eq!(ssh["direct"], false, "{ssh}");
        assert!(ssh["opening_ms"].as_f64().is_some_and(|ms| ms >= 900.0), "{ssh}");
        host.end();
    }

    fn the_bandwidth_is_kept() {
        let host = Host::new("bandwidth");
        for arguments in [&["--direct", "auto"], &["--direct", "never"]] {
            let mut seen = Vec::new();
            // Never more; and as much, where the machine has the time.
            let kept = (0..6).any(|_| {
                let speed = host.speed("8M", &[&["--bandwidth", "4M"], &arguments[..]].concat());
                let rate = speed["bytes_per_second"].as_f64().expect("a rate") / f64::from(4 << 20);
                assert!(rate <= 1.05, "{speed}");
                seen.push(rate);
                rate >= 0.95
            });
            assert!(kept, "{arguments:?}: {seen:?}");
        }
        host.end();
    }

    fn a_peer_that_dies_is_noticed() {
        let host = Host::new("dies");
        for way in ["auto", "never"] {
            let killed = interrupted(&host, &["--direct", way], |pid| kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill"));
            host.refused(killed, 15, &[]);
        }
        // Nothing is cut, but nobody is there.
        let mut far = 0;
        let stopped = interrupted(&host, &[], |pid| {
            far = pid;
            kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("kill");
        });
        host.refused(stopped, 15, &["nothing was heard of"]);
        kill(Pid::from_raw(far), Signal::SIGCONT).expect("kill");
        // The source is killed: nothing stays at the target.
        let sources = || processes(&[crate::MEIO, "check", "--speed"]);
        let killed = interrupted(&host, &["--direct", "never"], |_| {
            sources().into_iter().for_each(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill"));
        });
        assert_eq!(killed.code, -1);
        let left = || processes(&[crate::MEIO, "agent"]);
        assert!(until(SOON, || left().is_empty()), "{:?} stay", left());
        host.end();
    }
}
