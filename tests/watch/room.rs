//! What the standby keeps, and where there is no room for it; and links that do not carry all.

use super::{PROTECTED, SERVICE, Watched, answers_again, count, noted, redis};
use crate::lab::hosts::Host;
use crate::lab::{Lab, until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long it may take until a standby that had no room is asked again, and has everything.
const LATER: Duration = Duration::from_secs(90);
/// Bytes of a value.
const VALUE: usize = 1 << 20;

/// Writes so many values that cannot be packed.
fn fill(keys: std::ops::Range<u64>) {
    let mut stream = TcpStream::connect(format!("{SERVICE}:6379")).expect("it answers");
    stream.set_read_timeout(Some(LATER)).expect("an option");
    let mut state = keys.start + 88172645463325252;
    let mut value = vec![0; VALUE];
    for key in keys {
        for part in value.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            part.copy_from_slice(&state.to_le_bytes());
        }
        let key = format!("large:{key}");
        stream.write_all(format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${VALUE}\r\n", key.len()).as_bytes()).expect("sent");
        stream.write_all(&value).and_then(|()| stream.write_all(b"\r\n")).expect("sent");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"+OK\r\n");
    }
}

/// MiB in the folder that a host keeps a copy in.
fn kept(host: &Host, folder: &str) -> u64 {
    host.plain("df", &["--output=used", "-BM", folder])
        .lines()
        .last()
        .and_then(|l| l.trim().trim_end_matches('M').parse().ok())
        .expect("MiB")
}

crate::alone! {
    /// A standby whose disk is full says so: the service goes on unprotected, and is protected again when there is room.
    fn a_standby_that_is_full() {
        let lab = Lab::new("watch-full");
        let (mut hosts, pid) = redis(&lab);
        let folder = lab.path("copy").display().to_string();
        std::fs::create_dir(&folder).expect("a folder");
        hosts.hosts[1].plain("mount", &["-t", "tmpfs", "-o", "size=40m", "copy", &folder]);
        let mut watched = Watched::with(&lab, &hosts, pid, &["--timeout", "2500ms", "--spool", &folder]);
        fill(0..48);
        assert!(until(LATER, || watched.said().contains("the standby has no room for it")), "{}\n{}", watched.said(), noted(&hosts));
        // Nothing waits for a standby that has nothing, and nothing is left of what it had.
        let before = count().expect("it answers");
        assert!(until(LATER, || count().is_some_and(|n| n > before + 20)), "{}", watched.said());
        let said = watched.said().matches(PROTECTED).count();
        hosts.hosts[1].plain("mount", &["-o", "remount,size=512m", &folder]);
        let again = || watched.is_protected() && watched.said().matches(PROTECTED).count() > said;
        assert!(until(LATER, again), "{}\n{}", watched.said(), noted(&hosts));
        // The same pages, again and again: no more is kept of them.
        for _ in 0..2 {
            fill(0..16);
        }
        assert!(until(LATER, || watched.is_protected()), "{}", watched.said());
        assert!(until(LATER, || kept(&hosts.hosts[1], &folder) < 120), "{} MiB are kept", kept(&hosts.hosts[1], &folder));
        hosts.wire(0, false);
        hosts.hosts[0].fail();
        let _ = watched.meio.wait();
        assert!(answers_again(&watched, &hosts, &lab) > 20);
        assert!(noted(&hosts).contains("taken over in "), "{}", noted(&hosts));
        // What was taken over is given back.
        assert!(until(LATER, || kept(&hosts.hosts[1], &folder) == 0), "{} MiB are kept", kept(&hosts.hosts[1], &folder));
        assert!(hosts.hosts[1].runs(pid));
    }

    /// What the link does not carry in time comes later: epochs follow each other more slowly, and nothing piles up.
    fn a_link_that_carries_little() {
        let lab = Lab::new("watch-slow");
        let (hosts, pid) = redis(&lab);
        let watched = Watched::begin(&lab, &hosts, pid, &["--timeout", "4s", "--bandwidth", "8M"]);
        // Several times what the link carries meanwhile.
        (0..3).for_each(|_| fill(0..12));
        let slow = || watched.said().contains("the link does not carry an epoch");
        assert!(until(LATER, slow), "{}\n{}", watched.said(), noted(&hosts));
        let status = "for p in $(pgrep -x meio); do sed -n 's/^RssAnon:[ \t]*//p' /proc/$p/status; done";
        let most = hosts.hosts[0].plain("bash", &["-c", status]);
        let most = most.lines().filter_map(|l| l.split(' ').next()?.parse::<u64>().ok()).max().expect("a meio");
        assert!(most < 300 << 10, "the primary's meio has {most} KiB");
        assert!(count().is_some() && hosts.hosts[0].runs(pid));
        assert!(until(LATER, || watched.is_protected()), "{}\n{}", watched.said(), noted(&hosts));
    }
}
