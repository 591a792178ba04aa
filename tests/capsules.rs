//! Capsules: programs that are started with pids of their own and known by a name.

use crate::lab::{Lab, SOON, observe, until};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

/// A roster of the test's own: the tests run beside each other on one file system.
pub fn lab(name: &str) -> Lab {
    fs::create_dir_all("/run/meio").expect("folder");
    let none = None::<&str>;
    nix::mount::mount(Some("tmpfs"), "/run/meio", Some("tmpfs"), nix::mount::MsFlags::empty(), none).expect("tmpfs");
    Lab::new(name)
}

/// A shell script that waits for a file, detached in a capsule.
fn waiting(lab: &Lab, name: &str, then: &str) {
    let script = format!("echo $$ > {0}.ready; until [ -e {0}.go ]; do sleep 0.05; done; {then}", lab.path(name).display());
    let done = lab.run(lab.meio(&["run", "-d", "--name", name, "--", "sh", "-c", &script]));
    assert_eq!((done.code, done.stdout.as_str()), (0, format!("{name}\n").as_str()), "{}", done.stderr);
    let ready = lab.path(&format!("{name}.ready"));
    assert!(until(SOON, || fs::read_to_string(&ready).is_ok_and(|t| t == "2\n")), "the program is not process 2");
}

fn entry(name: &str) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(format!("/run/meio/{name}.json")).ok()?).ok()
}

fn pid_of(name: &str) -> i32 {
    entry(name).expect("entry")["pid"].as_i64().expect("pid") as i32
}

fn go(lab: &Lab, name: &str) {
    fs::write(lab.path(&format!("{name}.go")), "").expect("go");
}

fn foreground(lab: &Lab, arguments: &[&str]) -> Child {
    let mut command = lab.meio(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("meio starts")
}

crate::alone! {
    /// The program's end is meio's.
    fn exit_status_and_signal() {
        let lab = lab("capsule-exit");
        for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -9 $$", 137)] {
            let done = lab.run(lab.meio(&["run", "--", "sh", "-c", script]));
            assert_eq!(done.code, code, "{script}: {}", done.stderr);
        }
        let done = lab.run(lab.meio(&["run", "--", "no-such-program"]));
        assert_eq!(done.code, 10, "{}", done.stderr);
        let text = lab.path("text");
        fs::write(&text, "no program").expect("file");
        let done = lab.run(lab.meio(&["run", "--", text.to_str().expect("path")]));
        assert_eq!(done.code, 11, "{}", done.stderr);
        lab.nothing_left();
    }

    /// What lives in a capsule sees only itself.
    fn it_sees_itself_alone() {
        let lab = lab("capsule-alone");
        let out = lab.path("out");
        let script = format!("(echo $$; hostname; ls -d /proc/[0-9]; ls /dev/shm; cat /proc/1/comm) > {}", out.display());
        let done = lab.run(lab.meio(&["run", "--name", "hermit", "--", "sh", "-c", &script]));
        assert_eq!(done.code, 0, "{}", done.stderr);
        let said = fs::read_to_string(out).expect("output");
        assert!(said.starts_with("2\nhermit\n/proc/1\n/proc/2\n") && said.ends_with("meio-init\n"), "{said}");
        lab.nothing_left();
    }

    /// Signals to meio are meant for the program; orphans are reaped by the init.
    fn signals_pass_and_orphans_are_reaped() {
        let lab = lab("capsule-signals");
        let (ready, orphan) = (lab.path("ready"), lab.path("orphan"));
        let script = format!(
            "trap 'exit 9' USR1; (sh -c 'sleep 0.2; exit 3' & echo > {}); echo > {}; while :; do sleep 0.05; done",
            orphan.display(),
            ready.display()
        );
        let mut meio = foreground(&lab, &["run", "--name", "loud", "--", "sh", "-c", &script]);
        assert!(until(SOON, || ready.exists() && orphan.exists()));
        let init = pid_of("loud");
        let zombies = || observe::tree(init).iter().filter(|&&p| observe::state(p) == Some('Z')).count();
        std::thread::sleep(std::time::Duration::from_millis(400));
        assert!(until(SOON, || zombies() == 0), "an orphan was not reaped");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(meio.id() as i32), nix::sys::signal::SIGUSR1).expect("kill");
        assert_eq!(meio.wait().expect("wait").code(), Some(9));
        assert_eq!(entry("loud"), None, "its entry is left");
        lab.nothing_left();
    }

    /// By name through a dump, with everything that it is; twice.
    fn saved_and_restored_by_name() {
        let lab = lab("capsule-restore");
        let result = lab.path("result");
        waiting(&lab, "web", &format!("(echo $$; hostname; ls -d /proc/[0-9] | head -2) > {}; exit 5", result.display()));
        for round in 0..2 {
            let image = lab.path(&format!("{round}.meio"));
            let image = image.to_str().expect("path");
            let done = lab.run(lab.meio(&["dump", "web", "-o", image]));
            assert_eq!(done.code, 0, "{}", done.stderr);
            assert_eq!(entry("web").expect("entry")["image"], image);
            let done = lab.run(lab.meio(&["restore", "-d", image]));
            assert!(done.code == 1 && done.stderr.contains("lives already"), "{} {}", done.code, done.stderr);
            let init = pid_of("web");
            let tree = observe::tree(init);
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::SIGKILL).expect("kill");
            assert!(until(SOON, || tree.iter().all(|&pid| observe::state(pid).is_none())));
            let done = lab.run(lab.meio(&["restore", "-d", image]));
            assert_eq!(done.code, 0, "{}", done.stderr);
        }
        let done = lab.run(lab.meio(&["check", "--pid", "web", "-q"]));
        assert!([0, 3].contains(&done.code), "{} {}", done.stdout, done.stderr);
        let init = pid_of("web");
        go(&lab, "web");
        assert!(until(SOON, || observe::state(init).is_none()), "it does not end");
        assert_eq!(fs::read_to_string(result).expect("result"), "2\nweb\n/proc/1\n/proc/2\n");
        lab.nothing_left();
    }

    /// One end in a bridge of the host: the same address, the same hardware, and the way there and back.
    fn attached_to_a_bridge() {
        use std::io::{Read, Write};
        let lab = lab("capsule-bridge");
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
        let ip = |line: &str| assert!(std::process::Command::new("ip").args(line.split(' ')).status().expect("ip(8) of iproute2 starts").success());
        ["link add br7 type bridge", "addr add 10.7.0.1/24 dev br7", "link set br7 up"].into_iter().for_each(ip);
        let listener = std::net::TcpListener::bind("10.7.0.1:9000").expect("bind");
        let script = format!(
            "cd {}; show() {{ ip -o link show eth0; ip -o -4 addr show eth0; ip route; }}; show > first; echo > ready; \
             until [ -e go ]; do read -t 0.05 <> fifo; done; show > second; \
             exec 3<>/dev/tcp/10.7.0.1/9000; echo within >&3; read -r said <&3; echo \"$said\" > said",
            lab.path("").display()
        );
        nix::unistd::mkfifo(&lab.path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        let arguments = ["run", "-d", "--name", "net", "--net", "veth=br7:10.7.0.2/24", "--", "bash", "-c", &script];
        let done = lab.run(lab.meio(&arguments));
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert!(until(SOON, || lab.path("ready").exists()));
        let outside = || {
            let out = std::process::Command::new("ip").args(["-o", "link", "show", "master", "br7"]).output().expect("ip starts");
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        let hardware = |text: &str| text.lines().find_map(|l| Some(l.split("link/ether ").nth(1)?.split(' ').next()?.to_owned()));
        let before = outside();
        assert!(before.contains("meio0@"), "{before}");
        for round in 0..2 {
            let image = lab.path(&format!("net{round}.meio"));
            let image = image.to_str().expect("path");
            let done = lab.run(lab.meio(&["dump", "net", "--kill", "-o", image]));
            assert_eq!(done.code, 0, "{}", done.stderr);
            assert!(until(SOON, || outside().is_empty()), "{}", outside());
            let done = lab.run(lab.meio(&["restore", "-d", image]));
            assert_eq!(done.code, 0, "{}", done.stderr);
            let now = outside();
            assert!(now.contains("meio0@") && hardware(&now) == hardware(&before), "{now} after {before}");
            assert_eq!(entry("net").expect("entry")["image"], image, "the list has lost the image");
        }
        let init = pid_of("net");
        fs::write(lab.path("go"), "").expect("go");
        let (mut stream, from) = listener.accept().expect("accept");
        assert_eq!(from.ip().to_string(), "10.7.0.2");
        let mut said = [0; 7];
        stream.read_exact(&mut said).expect("read");
        assert_eq!(&said, b"within\n");
        stream.write_all(b"outside\n").expect("write");
        assert!(until(SOON, || observe::state(init).is_none()), "it does not end");
        assert_eq!(fs::read_to_string(lab.path("said")).expect("said"), "outside\n");
        let shown = |name: &str| fs::read_to_string(lab.path(name)).expect("interfaces");
        // The number that the other end has outside is another one every time.
        let own = |text: String| text.lines().map(|l| l.split_once(": <").map_or(l, |(_, rest)| rest).to_owned() + "\n").collect::<String>();
        assert_eq!(own(shown("second")), own(shown("first")));
        assert!(until(SOON, || outside().is_empty()), "{}", outside());
        lab.nothing_left();
    }

    /// The first process of a pid namespace that belongs to a user namespace, by itself: what `unshare -Urpf` runs.
    fn a_container_without_root() {
        let mut lab = Lab::new("rootless");
        let script = format!(
            "cd {}; n=0; mkfifo fifo; exec 9<>fifo; until [ -e go ]; do n=$((n+1)); echo $n > count; read -t 0.02 <&9; done; \
             read -r map < /proc/self/uid_map; echo $$ $map > result; mount -t tmpfs none /mnt && echo mounted >> result",
            lab.path("").display()
        );
        let mut outer = lab.spawn(Path::new("unshare"), &["-Urpfm", "--mount-proc", "bash", "-c", &script]);
        assert!(until(SOON, || lab.path("count").exists()), "{}", lab.log());
        let mut inner = crate::lab::Running::of(&lab, observe::tree(outer.pid)[1]);
        for _ in 0..2 {
            let image = lab.dump(&mut inner, &["--kill"]);
            outer.wait();
            lab.restore(&image, &mut inner, &["--pid-namespace"]);
        }
        fs::write(lab.path("go"), "").expect("go");
        assert!(until(SOON, || observe::state(inner.pid).is_none()), "it does not end");
        assert_eq!(fs::read_to_string(lab.path("result")).expect("result"), "1 0 0 1\nmounted\n");
        lab.nothing_left();
    }

    /// In the foreground a restored capsule ends as its program does.
    fn restored_in_the_foreground() {
        let lab = lab("capsule-foreground");
        waiting(&lab, "job", "exit 7");
        let image = lab.path("job.meio");
        let image = image.to_str().expect("path");
        let done = lab.run(lab.meio(&["dump", "job", "--kill", "-o", image]));
        assert_eq!(done.code, 0, "{}", done.stderr);
        go(&lab, "job");
        let done = lab.run(lab.meio(&["restore", image]));
        assert_eq!(done.code, 7, "{}", done.stderr);
        assert_eq!(entry("job"), None, "its entry is left");
        lab.nothing_left();
    }

    /// Names are given once; entries of those that have gone do not count.
    fn names() {
        let lab = lab("capsule-names");
        waiting(&lab, "one", "exit 0");
        let done = lab.run(lab.meio(&["run", "--name", "one", "--", "true"]));
        assert!(done.code == 1 && done.stderr.contains("lives already"), "{} {}", done.code, done.stderr);
        let done = lab.run(lab.meio(&["list", "--json"]));
        let list: serde_json::Value = serde_json::from_str(&done.stdout).expect("json");
        assert_eq!((&list["capsules"][0]["name"], &list["capsules"][0]["pid"]), (&"one".into(), &pid_of("one").into()));
        let done = lab.run(lab.meio(&["list"]));
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert!(lines.len() == 2 && lines[1].starts_with("one ") && lines.iter().all(|l| l.chars().count() <= 80), "{}", done.stdout);
        // The same pid, but another process by now.
        let mut stale = entry("one").expect("entry");
        stale["start"] = 1.into();
        stale["name"] = "two".into();
        fs::write("/run/meio/two.json", stale.to_string()).expect("entry");
        let done = lab.run(lab.meio(&["dump", "two"]));
        assert_eq!(done.code, 10, "{}", done.stderr);
        assert!(!Path::new("/run/meio/two.json").exists(), "a stale entry is left");
        waiting(&lab, "two", "exit 0");
        for name in ["one", "two"] {
            let init = pid_of(name);
            go(&lab, name);
            assert!(until(SOON, || observe::state(init).is_none()), "{name} does not end");
        }
        assert_eq!(lab.run(lab.meio(&["list"])).stdout.lines().count(), 1);
        for bad in ["12", "a/b", ".x", "-x"] {
            assert_eq!(lab.run(lab.meio(&["run", &format!("--name={bad}"), "--", "true"])).code, 2, "{bad}");
        }
        lab.nothing_left();
    }

    /// A capsule without a network, or with an interface in a bridge, comes back with it.
    fn networks() {
        let lab = lab("capsule-network");
        let out = lab.path("out");
        let script = format!("ls /proc/sys/net/ipv4/conf > {}", out.display());
        let done = lab.run(lab.meio(&["run", "--net", "none", "--", "sh", "-c", &script]));
        assert_eq!(done.code, 0, "{}", done.stderr);
        let links = fs::read_to_string(&out).expect("output");
        assert_eq!(links, "all\ndefault\nlo\n");
        let done = lab.run(lab.meio(&["run", "--net", "veth=nobridge:10.9.8.7/24", "--", "true"]));
        assert_eq!(done.code, 10, "{}", done.stderr);
        lab.nothing_left();
    }
}
