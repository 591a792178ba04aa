//! Real programs outlive their host under load: what a client was told holds, and its connections go on.

use super::{SLOW, Watched, has_address, noted, two};
use crate::lab::hosts::{Hosts, SERVICE};
use crate::lab::{Lab, SOON, until};
use crate::programs::net::{self, Client, listens, python, watched};
use crate::programs::{WORK, installed};
use std::fs;

/// The first host is lost while `client` is served by the tree below `pid`.
fn outlives(lab: &mut Lab, mut hosts: Hosts, pid: i32, client: impl FnOnce(&Lab) -> Client, answers: u64) {
    let mut meio = Watched::with(lab, &hosts, pid, SLOW);
    let client = client(lab);
    watched(lab, client, answers, 1, |lab, _| {
        // A machine that was busy for long may have had the standby begin anew.
        assert!(until(WORK, || meio.is_protected()), "{}", meio.said());
        hosts.wire(0, false);
        hosts.hosts[0].fail();
        let _ = meio.meio.wait();
        let mut told = String::new();
        let taken = until(WORK, || {
            let now = noted(&hosts);
            if now.len() > told.len() {
                told = now;
            }
            has_address(&hosts.hosts[1])
        });
        assert!(taken, "nobody takes over: {}\n{told}\n{}\n{}", meio.said(), noted(&hosts), lab.log());
    });
    assert!(hosts.hosts[1].runs(pid));
}

crate::alone! {
    /// Threads, and values that are sent in parts.
    fn memcached_keeps_what_was_set() {
        let mut lab = Lab::new("watch-memcached");
        let hosts = two(&lab);
        let options = ["-u", "root", "-l", SERVICE, "-p", "11211", "-m", "64", "-t", "4"];
        let pid = hosts.hosts[0].start(&lab, "memcached", &options);
        listens(&lab, &format!("{SERVICE}:11211"));
        outlives(&mut lab, hosts, pid, |lab| Client::python(lab, &mut python(), net::MEMCACHED, &[SERVICE, "11211", "16"]), 300);
    }

    /// Datagrams, and a process for each connection.
    fn dnsmasq_answers() {
        let mut lab = Lab::new("watch-dnsmasq");
        let hosts = two(&lab);
        fs::write(lab.path("hosts"), net::hosts()).expect("configuration");
        let options = ["-k", "-p", "5353", "-R", "-h", "-C", "hosts", "-a", SERVICE, "-z", "-u", "root", "--pid-file="];
        let pid = hosts.hosts[0].start(&lab, "/usr/sbin/dnsmasq", &options);
        listens(&lab, &format!("{SERVICE}:5353"));
        outlives(&mut lab, hosts, pid, |lab| Client::python(lab, &mut python(), net::DNS, &[SERVICE, "5353"]), 200);
    }

    fn asyncio_with_200_clients() {
        let mut lab = Lab::new("watch-asyncio");
        let hosts = two(&lab);
        fs::write(lab.path("server.py"), net::ECHO_SERVER).expect("script");
        let python3 = installed("python3").display().to_string();
        let pid = hosts.hosts[0].start(&lab, &python3, &["server.py", "7777", "1", SERVICE]);
        assert!(until(SOON, || lab.path("up0").exists()), "{}", lab.log());
        outlives(&mut lab, hosts, pid, |lab| Client::python(lab, &mut python(), net::ECHO, &["7777", "200", SERVICE]), 150);
    }
}
