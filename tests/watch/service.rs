//! A watch as a service: its options out of a file, and what a service manager is told.

use super::local::own;
use crate::lab::{Lab, SOON, until};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

/// `meio` with these arguments: exit code, and all that it says.
fn meio(arguments: &[&str]) -> (i32, String) {
    let done = Command::new(crate::MEIO).args(arguments).output().expect("it starts");
    let text = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (done.status.code().expect("an exit code"), text)
}

#[test]
fn a_file_of_options_is_looked_at() {
    let lab = Lab::new("watch-config");
    let path = lab.path("web.toml").display().to_string();
    let check = |text: &str, more: &[&str]| {
        fs::write(&path, text).expect("a file");
        meio(&[&["watch", "--check-config", "--config", &path], more].concat())
    };
    let fine = "target = 1\nstandby = \"root@other\"\nvip = [\"10.0.0.1/24@eth0\"]\n";
    assert_eq!(check(fine, &[]), (0, format!("{path} is fine\n")));
    let (code, said) = check(&format!("{fine}time-out = \"2s\"\n"), &[]);
    assert!(code == 2 && said.contains(&format!("error: {path}:4:1: unknown key \"time-out\"\nhelp: did you mean timeout?")), "{said}");
    let (code, said) = check(&format!("{fine}timeout = \"1ms\"\ninterval = \"2h\"\n"), &[]);
    assert!(code == 2 && said.contains("--timeout must be") && said.contains("--interval must be"), "{said}");
    // The command line wins, and makes good what is missing.
    assert_eq!(check(&format!("{fine}timeout = \"1ms\"\n"), &["--timeout", "2s"]).0, 0);
    assert_eq!(check("standby = \"other\"\n", &["--guarantee", "hot", "1"]).0, 0);
    let (code, said) = check("standby = \"other\"\n", &["1"]);
    assert!(code == 2 && said.contains("nothing can be held without an address"), "{said}");
    let (code, said) = check("target = = 1\nkeep = \"x\"\n", &["--json"]);
    assert!(code == 2 && said.lines().count() >= 2 && said.lines().all(|line| line.contains("\"type\":\"error\"")), "{said}");
    // What is wrong keeps a watch from beginning; without a file there is nothing to look at.
    assert_eq!(meio(&["watch", "--config", &path]).0, 2);
    let (code, said) = meio(&["watch", "--check-config", "--name", "no-such-watch", "--standby", "x", "1"]);
    assert!(code == 2 && said.contains("no file to be looked at"), "{said}");
}

/// What a unit has meio do is what meio takes, and systemd has nothing against it; where it is, as far as there is a systemd here.
fn is_unit(lab: &Lab, command: &str, file: &str, instance: &str) -> Option<String> {
    let text = fs::read_to_string(std::path::Path::new(crate::ROOT).join("contrib/systemd").join(file)).expect("the unit");
    for line in text.lines().filter(|line| line.starts_with("Exec")) {
        let (_, arguments) = line.split_once(&format!("=meio {command} ")).expect("a command");
        let options: Vec<String> = arguments.split(' ').filter(|word| word.starts_with("--")).map(str::to_owned).collect();
        let help = meio(&[command, "--help"]).1;
        assert!(options.len() >= 2 && options.iter().all(|option| help.contains(option.as_str())), "{line}");
    }
    let settings = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    assert!(settings.clone().count() > 20 && settings.clone().any(|line| line == "Type=notify"));
    // It is put where the other one is.
    let makefile = fs::read_to_string(std::path::Path::new(crate::ROOT).join("Makefile")).expect("the Makefile");
    assert!(makefile.contains(&format!("contrib/systemd/{file} $(DESTDIR)$(PREFIX)/lib/systemd/system/{file}\n")), "{file}");
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return None;
    }
    fs::write(lab.path(file), text.replace(&format!("=meio {command}"), &format!("={} {command}", crate::MEIO))).expect("a unit");
    let unit = lab.path(instance).display().to_string();
    if file != instance {
        std::os::unix::fs::symlink(lab.path(file), &unit).expect("an instance");
    }
    let done = Command::new("systemd-analyze").args(["verify", "--man=no", &unit]).output().expect("it starts");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let about: Vec<&str> = said.lines().filter(|line| line.contains(&format!("meio-{command}"))).collect();
    assert!(about.is_empty(), "{said}");
    Some(unit)
}

#[test]
fn the_unit_is_one() {
    is_unit(&Lab::new("watch-unit"), "watch", "meio-watch@.service", "meio-watch@web.service");
}

/// The witness's likewise; and it leaves next to nothing that it could do.
#[test]
fn the_witnesss_unit_is_one() {
    let lab = Lab::new("witness-unit");
    let Some(unit) = is_unit(&lab, "witness", "meio-witness.service", "meio-witness.service") else { return };
    // Out of 100: systemd's own word for less than 20 is "OK".
    let done = Command::new("systemd-analyze").args(["security", "--offline=yes", "--threshold=20", "--no-pager", &unit]).output();
    let done = done.expect("it starts");
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(done.status.success() && said.contains("meio-witness.service"), "{said}");
}

/// A witness tells its service manager that it listens, what it knows, and that it lives; and that it ends.
#[test]
fn a_witness_tells_its_service_manager() {
    let lab = Lab::new("witness-notify");
    let socket = UnixDatagram::bind(lab.path("notify")).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("option");
    let folder = lab.path("folder").display().to_string();
    let mut witness = Command::new(crate::MEIO);
    witness.args(["witness", "--quiet", "--listen", "127.0.0.1:0", "--dir", &folder]);
    witness.env("NOTIFY_SOCKET", lab.path("notify")).env("WATCHDOG_USEC", "300000");
    let mut witness = witness.stdin(Stdio::null()).spawn().expect("it starts");
    let hear = || {
        let mut bytes = [0; 200];
        let length = socket.recv(&mut bytes).expect("it says something");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let mut said = vec![hear()];
    assert_eq!(said, ["READY=1"]);
    while said.iter().filter(|word| *word == "WATCHDOG=1").count() < 3 || !said.iter().any(|word| word == "STATUS=services: 0") {
        said.push(hear());
        assert!(said.len() < 200, "{said:?}");
    }
    assert_eq!(meio(&["witness", "--dir", &folder, "--add", "web"]).0, 0);
    while hear() != "STATUS=services: 1" {}
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(witness.id() as i32), nix::sys::signal::Signal::SIGTERM).expect("it is there");
    while hear() != "STOPPING=1" {}
    assert!(witness.wait().expect("it ends").success());
}

crate::alone! {
    /// It hears that the watch is ready, that it lives, and that it ends.
    fn a_service_manager_is_told() {
        let lab = own("watch-notify");
        let socket = UnixDatagram::bind(lab.path("notify")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("option");
        let folder = lab.path("images").display().to_string();
        let config = lab.path("kept.toml").display().to_string();
        fs::write(
            &config,
            format!("command = [\"sleep\", \"1000\"]\nname = \"notify-{}\"\ndir = {folder:?}\ninterval = \"100ms\"\n", std::process::id()),
        )
        .expect("a file");
        // What it writes to goes with the tree.
        let log = || fs::File::options().create(true).append(true).open(lab.path("log")).expect("a file");
        let mut watch = Command::new(crate::MEIO);
        watch.args(["watch", "--quiet", "--config", &config]).env("NOTIFY_SOCKET", lab.path("notify")).env("WATCHDOG_USEC", "600000");
        let mut watch = watch.stdin(Stdio::null()).stdout(log()).stderr(log()).spawn().expect("it starts");
        let hear = || {
            let mut bytes = [0; 200];
            let length = socket.recv(&mut bytes).expect("it says something");
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        let mut said = Vec::new();
        while said.iter().filter(|word| *word == "WATCHDOG=1").count() < 3 || !said.iter().any(|word| word == "READY=1") {
            said.push(hear());
            assert!(said.len() < 200, "{said:?}");
        }
        let name = format!("notify-{}", std::process::id());
        let status: serde_json::Value = serde_json::from_str(&meio(&["status", &name, "--json"]).1).expect("JSON");
        let pid = status["watches"][0]["pid"].as_i64().expect("a pid");
        assert_eq!(meio(&["unwatch", &name]).0, 0);
        while hear() != "STOPPING=1" {}
        let _ = watch.wait();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).expect("it is there");
        assert!(until(SOON, || meio(&["status", &name]).0 == 10));
    }
}
