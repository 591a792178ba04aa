//! A real sshd, with keys that belong to the test.

use super::Lab;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const CONFIGURATION: &str = "
PidFile none
AuthorizedKeysFile none
AuthorizedKeysCommandUser root
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
";

/// Files in which shells say what they do at their start, which is nothing that is looked at.
pub const GREETINGS: [&str; 3] = ["/root/.bashrc", "/root/.profile", "/root/.bash_profile"];

/// Makes a pair of keys in the test's folder.
pub fn key(lab: &Lab, kind: &str, name: &str) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", "", "-C", kind, "-f"]).arg(lab.path(name)).stdin(Stdio::null());
    assert!(command.status().expect("ssh-keygen starts").success());
}

/// Writes a configuration: at this port it shows these host keys, and lets those in whose public keys are in the file `authorized`.
pub fn configuration(lab: &Lab, port: u16, host_keys: &[impl AsRef<str>], authorized: &str) -> PathBuf {
    let mut text = format!("Port {port}\nAuthorizedKeysCommand /usr/bin/cat {}\n", lab.path(authorized).display());
    host_keys.iter().for_each(|key| text += &format!("HostKey {}\n", lab.path(key.as_ref()).display()));
    let file = lab.path("sshd.conf");
    fs::write(&file, text + CONFIGURATION).expect("configuration");
    file
}
