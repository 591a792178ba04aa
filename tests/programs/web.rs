//! Servers of the web, with clients outside their tree, and what stands between them.

use super::net::{Client, end, listens, python, under_load};
use super::{installed, plainly, read, write};
use crate::lab::{Lab, Running};
use nix::sys::signal::Signal;
use std::path::Path;

pub const CLIENT: &str = include_str!("clients/web.py");
pub const NGINX: &str = include_str!("clients/nginx.conf");
const HAPROXY: &str = include_str!("clients/haproxy.cfg");
const NODE_CLIENT: &str = include_str!("clients/node.py");
const NODE_SERVER: &str = include_str!("clients/node_server.js");

/// What is served.
pub const FILES: &str = "mkdir files && head -c 100000000 /dev/urandom > files/big
    for n in {0..99}; do head -c $((n * n * 7)) /dev/urandom > files/small-$n; done";

/// Both in one tree.
const BOTH: &str = r#"
/usr/sbin/nginx -p "$PWD" -c "$PWD/nginx.conf" & nginx=$!
/usr/sbin/haproxy -db -f haproxy.cfg & haproxy=$!
trap 'kill $haproxy $nginx' TERM
wait; wait
"#;

/// A folder with files and configurations.
fn web(name: &str) -> Lab {
    let lab = Lab::new(name);
    plainly(&lab, "bash", &["-c", FILES]);
    write(&lab, "nginx.conf", NGINX);
    write(&lab, "haproxy.cfg", HAPROXY);
    lab
}

fn nginx(lab: &Lab) -> Running {
    let folder = lab.path("").display().to_string();
    let running = lab.spawn(Path::new("/usr/sbin/nginx"), &["-p", &folder, "-c", &format!("{folder}nginx.conf")]);
    listens(lab, "127.0.0.1:8080");
    listens(lab, "127.0.0.1:8081");
    running
}

fn haproxy(lab: &Lab) -> Running {
    let running = lab.spawn(Path::new("/usr/sbin/haproxy"), &["-db", "-f", "haproxy.cfg"]);
    listens(lab, "127.0.0.1:8000");
    running
}

/// Somebody who asks at these ports.
fn client(lab: &Lab, ports: &str) -> Client {
    Client::python(lab, &mut python(), CLIENT, &["127.0.0.1", ports, "files"])
}

/// Both servers have ended, and said nothing of errors.
pub fn nothing_was_wrong(lab: &Lab) {
    let log = read(lab, "log");
    let wrong = |line: &&str| ["[alert]", "[crit]", "[error]", "[emerg]", "[ALERT]", "is DOWN"].iter().any(|word| line.contains(word));
    let wrong: Vec<_> = log.lines().filter(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

crate::alone! {
    fn nginx_serves_files() {
        let mut lab = web("nginx");
        let mut running = nginx(&lab);
        let client = client(&lab, "8080,8081");
        under_load(&mut lab, &mut running, client, 1500);
        end(&lab, &mut running, Signal::SIGTERM);
        nothing_was_wrong(&lab);
    }

    fn haproxy_and_nginx_in_one_tree() {
        let mut lab = web("both");
        write(&lab, "both.sh", BOTH);
        let mut running = lab.spawn(&installed("bash"), &["both.sh"]);
        ["127.0.0.1:8000", "127.0.0.1:8080", "127.0.0.1:8081"].iter().for_each(|place| listens(&lab, place));
        let client = client(&lab, "8000,8001");
        under_load(&mut lab, &mut running, client, 1500);
        end(&lab, &mut running, Signal::SIGTERM);
        nothing_was_wrong(&lab);
    }

    fn haproxy_before_an_nginx_outside() {
        let mut lab = web("haproxy");
        let mut outside = nginx(&lab);
        let mut running = haproxy(&lab);
        let client = client(&lab, "8000,8001");
        under_load(&mut lab, &mut running, client, 1500);
        outside.kill();
        end(&lab, &mut running, Signal::SIGTERM);
    }

    fn nginx_behind_a_haproxy_outside() {
        let mut lab = web("behind");
        let mut running = nginx(&lab);
        let mut outside = haproxy(&lab);
        let client = client(&lab, "8000,8001");
        under_load(&mut lab, &mut running, client, 1500);
        nothing_was_wrong(&lab);
        outside.kill();
        end(&lab, &mut running, Signal::SIGTERM);
    }

    fn node_keeps_http_connections_and_websockets() {
        let mut lab = Lab::new("node");
        write(&lab, "server.js", NODE_SERVER);
        let mut running = lab.spawn(&installed("node"), &["server.js", "3000"]);
        listens(&lab, "127.0.0.1:3000");
        let client = Client::python(&lab, &mut python(), NODE_CLIENT, &["127.0.0.1", "3000"]);
        under_load(&mut lab, &mut running, client, 1500);
        end(&lab, &mut running, Signal::SIGTERM);
        assert_eq!(lab.log(), "");
    }
}
