//! A service that moves to a machine with another kernel and back while a client counts with it: `meio migrate` from this kernel to that
//! of a virtual machine, which is on the bridge of the hosts like any of them.

use super::machine::{Job, Machine, Workshop};
use crate::lab::hosts::{Hosts, VIP};
use crate::lab::{Lab, until};
use crate::migrate::{counted, counting, redis};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Address of the machine on the bridge.
const ADDRESS: &str = "10.99.0.9";
/// A machine whose every instruction is played by a program needs time for all.
const PATIENCE: Duration = Duration::from_secs(240);

/// Release of the kernel, inside of the test.
const RELEASE: &str = "CROSSING";

/// Moves a service to a machine with this kernel and back; whether that went well, and what was said.
pub fn go(release: &str) -> (bool, String) {
    let out = Command::new(std::env::current_exe().expect("own path"))
        .args(["kernels::crossing::a_service_moves_to_another_kernel_and_back", "--exact", "--nocapture", "--color", "never"])
        .env(RELEASE, release)
        .env("LAB_PATIENCE", "6")
        // Registers that the machine's processor does not have are not to be in use.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512CD,-AVX512DQ")
        .stdin(Stdio::null())
        .output()
        .expect("the test starts");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let said = text.lines().find_map(|line| line.strip_prefix("journey: ")).map(Into::into);
    (out.status.success() && said.is_some(), said.unwrap_or_else(|| text + &String::from_utf8_lossy(&out.stderr)))
}

/// The machine on the bridge, with an sshd like that of the hosts.
fn machine(lab: &Lab, release: &str) -> Machine {
    for arguments in ["tuntap add tap0 mode tap", "link set tap0 master br0 up"] {
        let done = Command::new("ip").args(arguments.split(' ')).status().expect("ip starts");
        assert!(done.success(), "ip {arguments}");
    }
    let folder = lab.path("").display().to_string();
    let mut script = format!(
        "modprobe virtio_net\nip address add {ADDRESS}/24 dev eth0\nip link set eth0 up\nhostname machine\nmkdir -p {folder} /run/sshd\n"
    );
    for name in ["host", "host.pub", "key", "key.pub", "known", "sshd.conf"] {
        let text = fs::read_to_string(lab.path(name)).expect("file");
        script += &format!("cat >{folder}/{name} <<'EOF'\n{text}EOF\nchmod 600 {folder}/{name}\n");
    }
    script += &format!("/usr/sbin/sshd -f {folder}/sshd.conf -E /run/sshd.log && echo '== ready'\nsleep 3000\n");
    let job = Job { kernel: release, name: "crossing", script: &script, limit: PATIENCE, tap: Some("tap0") };
    let machine = Workshop::opened().start(&job);
    assert!(until(PATIENCE, || machine.said().contains("== ready")), "{}\n{}", machine.said(), machine.console());
    machine
}

crate::alone! {
    /// Part of `make kernels`.
    fn a_service_moves_to_another_kernel_and_back() {
        let Ok(release) = std::env::var(RELEASE) else { return };
        let lab = Lab::new("crossing");
        let hosts = Hosts::new(&lab, 1);
        let key = fs::read_to_string(lab.path("host.pub")).expect("key");
        let known = fs::read_to_string(lab.path("known")).expect("known hosts");
        fs::write(lab.path("known"), format!("{known}{ADDRESS} {key}")).expect("known hosts");
        let machine = machine(&lab, &release);
        let pid = redis(&lab, &hosts).to_string();
        let client = counting(&lab);
        let done = hosts.migrate(&lab, 0, &[&pid, ADDRESS, "--vip", VIP, "--copy-files=written", "--max-downtime", "5s", "-v"]);
        assert!(matches!(done.code, 0 | 3), "{}{}\n{}\n{}", done.stdout, done.stderr, lab.log(), machine.said());
        let there = done.stdout.trim().to_owned();
        let at = |name: &str| lab.path(name).display().to_string();
        let log_in = ["-i", &at("key"), "-o", &format!("UserKnownHostsFile={}", at("known")), "-o", "BatchMode=yes"].map(str::to_owned);
        let mut back = hosts.hosts[0].command(std::path::Path::new("ssh"));
        back.args(log_in).arg(format!("root@{ADDRESS}")).args([crate::MEIO, "migrate", "--known-hosts", &at("known"), "--identity", &at("key")]);
        back.args(["--remote-path", crate::MEIO, &pid, &hosts.hosts[0].address, "--vip", VIP, "--copy-files=written", "--max-downtime", "5s", "-v"]);
        let done = lab.run(back);
        assert!(matches!(done.code, 0 | 3), "{}{}\n{}", done.stdout, done.stderr, machine.said());
        let said = counted(&lab, client);
        assert!(said["last"].as_u64().is_some_and(|n| n > 100), "{said}");
        let longest = said["worst_ms"].as_f64().unwrap_or_default();
        println!("\njourney: {} answers, the longest after {longest:.0} ms; {there}; back: {}", said["last"], done.stdout.trim());
    }
}
