//! Sessions of OpenSSH: the server with all that it serves, or one connection with the shell behind it.

use super::net::{Client, end, listens, python, under_load};
use super::{installed, plainly, write};
use crate::lab::{Lab, Running, SOON, observe, until};
use nix::sys::signal::Signal;
use std::path::Path;

const CLIENT: &str = include_str!("clients/ssh.py");
const CONFIGURATION: &str = include_str!("clients/sshd.conf");

/// Keys, and a user whom nobody needs to have.
const PREPARE: &str = r#"
mkdir -p /run/sshd # it wants to lock itself up there
ssh-keygen -q -t ed25519 -N "" -f host && ssh-keygen -q -t ed25519 -N "" -f key
echo "[127.0.0.1]:2222 $(cut -d' ' -f1,2 host.pub)" > known
(cat /etc/passwd; echo 'someone:*:12345:12345::/:/bin/bash') > passwd
mount --bind passwd /etc/passwd
"#;

fn sshd(name: &str) -> (Lab, Running) {
    // What shells of the user who runs the tests do at their start is not looked at.
    for file in [".bashrc", ".profile", ".bash_profile"].map(|f| format!("/root/{f}")).iter().filter(|f| Path::new(f).exists()) {
        nix::mount::mount(Some("/dev/null"), file.as_str(), None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).expect("mount");
    }
    let lab = Lab::new(name);
    plainly(&lab, "bash", &["-ec", PREPARE]);
    let folder = lab.path("").display().to_string();
    write(&lab, "sshd.conf", &CONFIGURATION.replace("FOLDER/", &folder));
    let configuration = format!("{folder}sshd.conf");
    let running = lab.spawn(Path::new("/usr/sbin/sshd"), &["-D", "-E", &format!("{folder}sshd.log"), "-f", &configuration]);
    listens(&lab, "127.0.0.1:2222");
    (lab, running)
}

fn client(lab: &Lab, user: &str, visitors: &str) -> Client {
    let known = format!("UserKnownHostsFile={}", lab.path("known").display());
    let ssh = installed("ssh").display().to_string();
    let mut arguments = vec![visitors, &ssh, "-F", "none", "-p", "2222", "-i", "key", "-l", user, "-o", &known];
    let options = ["HostName=127.0.0.1", "StrictHostKeyChecking=yes", "RekeyLimit=1M", "ServerAliveInterval=2", "ServerAliveCountMax=100"];
    arguments.extend(options.iter().flat_map(|option| ["-o", option]));
    Client::python(lab, &mut python(), CLIENT, &arguments)
}

/// The server goes on, and what speaks for it on one connection is moved.
fn one_connection(name: &str, user: &str, processes: usize) {
    let (mut lab, mut listener) = sshd(name);
    let client = client(&lab, user, "0");
    let mut first = 0;
    let come = until(SOON, || {
        let below = observe::tree(listener.pid).into_iter().skip(1);
        // The shell, what counts and what sends back; above them what they are served by.
        first = below.into_iter().find(|&pid| observe::tree(pid).len() >= processes + 3).unwrap_or(0);
        first != 0
    });
    assert!(come, "{}\n{}", client.said(&lab), observe::listing());
    let mut running = Running::of(&lab, first);
    under_load(&mut lab, &mut running, client, 150);
    assert!(until(SOON, || observe::state(first).is_none()), "the connection has ended, its process has not");
    plainly(&lab, "umount", &["/etc/passwd"]);
    end(&lab, &mut listener, Signal::SIGTERM);
}

crate::alone! {
    fn openssh_with_sessions_and_those_who_come() {
        let (mut lab, mut running) = sshd("sshd");
        let client = client(&lab, "someone", "2");
        under_load(&mut lab, &mut running, client, 150);
        plainly(&lab, "umount", &["/etc/passwd"]);
        end(&lab, &mut running, Signal::SIGTERM);
    }

    /// The one that may do all, and the one that has become the user.
    fn openssh_connection_of_a_user() {
        one_connection("ssh-user", "someone", 2);
    }

    fn openssh_connection_of_root() {
        one_connection("ssh-root", "root", 1);
    }
}
