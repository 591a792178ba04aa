//! One of several standbys comes back with nothing, or far behind: everything is copied to it by itself, while the others go on.

use super::control::{meio, status};
use super::several::{both, goes_on, guarded, guarded_by, lose, noted, taken};
use super::{Counter, Watched, ask, oldest};
use crate::lab::hosts::Hosts;
use crate::lab::{Lab, SOON, until};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// So many values, each of two thousand bytes.
const VALUES: u32 = 30_000;

/// What is in a value, as redis writes it: by its number and a number that all of one writing have in common.
const VALUE: &str = "string.rep(redis.sha1hex(i..':'..g),50)";

/// Writes every so many'th value.
fn write(each: u32, writing: u32) {
    let script = format!("local g={writing} for i=1,{VALUES},{each} do redis.call('SET','k'..i,{VALUE}) end return 1");
    assert_eq!(ask(&format!("EVAL \"{script}\" 0")).as_deref(), Some(":1"));
}

/// All of them are as they were written last: every so many'th by this writing, the others by the first.
fn are_as_written(each: u32, writing: u32) {
    let script = format!(
        "local bad=0 for i=1,{VALUES} do local g=1 if (i-1)%{each}==0 then g={writing} end if redis.call('GET','k'..i)~={VALUE} then bad=bad+1 end end return bad"
    );
    assert_eq!(ask(&format!("EVAL \"{script}\" 0")).as_deref(), Some(":0"), "values are lost");
}

fn series(hosts: &Hosts) -> Option<u64> {
    status(&hosts.hosts[0])["epoch"]["series"].as_u64()
}

/// Writes on, some of it over and over, until that many are ready; the last writing. Nothing was copied to the others again.
fn until_ready(hosts: &Hosts, watched: &Watched, count: usize, first: Option<u64>) -> u32 {
    let mut writing = 1;
    let ready = || {
        // Who comes late has more to do than the others for a while.
        std::thread::sleep(Duration::from_millis(200));
        writing += 1;
        write(7, writing);
        both(hosts, "ready") == count
    };
    assert!(until(SOON, ready), "{}\n{}\n{}", status(&hosts.hosts[0]), watched.said(), noted(hosts));
    assert_eq!(series(hosts), first, "everything was copied to all again: {}", watched.said());
    writing
}

/// One of them has taken over with all that was written.
fn has_all(hosts: &mut Hosts, watched: &mut Watched, counter: Counter, pid: i32, writing: u32) -> usize {
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(hosts));
    lose(hosts, watched);
    assert!(counter.go_on(1), "it does not go on: {}\n{}", watched.said(), noted(hosts));
    are_as_written(7, writing);
    goes_on(hosts, watched, counter, pid)
}

crate::alone! {
    /// Who stands by on one of two hosts is killed: another one is begun there, which has nothing, and gets everything while clients
    /// write. It is the one that takes over then.
    fn a_standby_that_is_killed() {
        let lab = Lab::new("copied-killed");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        write(1, 1);
        let first = series(&hosts);
        hosts.hosts[1].plain("pkill", &["-KILL", "-x", "meio"]);
        assert!(until(SOON, || both(&hosts, "ready") == 1), "{}\n{}", status(&hosts.hosts[0]), watched.said());
        let writing = until_ready(&hosts, &watched, 2, first);
        assert!(watched.said().contains("everything is copied to host2"), "{}", watched.said());
        assert_eq!(has_all(&mut hosts, &mut watched, counter, pid, writing), 1, "the first one has as much: {}", noted(&hosts));
    }

    /// The same where all must have what is let out, and one of three is killed twice, the second time while everything is copied.
    fn a_standby_that_is_killed_twice() {
        let lab = Lab::new("copied-twice");
        let (mut hosts, pid, mut watched, counter) = guarded_by(&lab, 3, &["--ack", "all"]);
        write(1, 1);
        let first = series(&hosts);
        hosts.hosts[1].plain("pkill", &["-KILL", "-x", "meio"]);
        let copying = || both(&hosts, "copying") == 1 || watched.said().contains("everything is copied to host2");
        assert!(until(SOON, copying), "{}\n{}", status(&hosts.hosts[0]), watched.said());
        hosts.hosts[1].plain("pkill", &["-KILL", "-x", "meio"]);
        assert!(until(SOON, || both(&hosts, "ready") == 2), "{}\n{}", status(&hosts.hosts[0]), watched.said());
        let writing = until_ready(&hosts, &watched, 3, first);
        assert_eq!(taken(&hosts), None);
        hosts.wire(3, false);
        hosts.hosts[3].fail();
        assert_eq!(has_all(&mut hosts, &mut watched, counter, pid, writing), 1, "the first one has as much: {}", noted(&hosts));
    }

    /// One of two stands still while more is written than is kept for it: nobody who counts notices. It gives up what it has, and gets
    /// everything.
    fn a_standby_that_falls_behind() {
        let lab = Lab::new("copied-behind");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &["--compress", "none"]);
        write(1, 1);
        let first = series(&hosts);
        let agent = oldest(&hosts.hosts[1]);
        hosts.hosts[1].plain("kill", &["-STOP", &agent]);
        let before = counter.answers.load(Ordering::Relaxed);
        (2..6).for_each(|writing| write(1, writing));
        write(1, 1);
        std::thread::sleep(Duration::from_millis(500));
        assert!(counter.answers.load(Ordering::Relaxed) > before + 10, "{}\n{}", watched.said(), noted(&hosts));
        hosts.hosts[1].plain("kill", &["-CONT", &agent]);
        let behind = || both(&hosts, "ready") < 2;
        assert!(until(SOON, behind), "{}\n{}", status(&hosts.hosts[0]), watched.said());
        let writing = until_ready(&hosts, &watched, 2, first);
        let (_, told) = meio(&hosts.hosts[0], &["history", "web"]);
        assert!(told.contains("everything is copied to host2"), "{told}");
        assert_eq!(has_all(&mut hosts, &mut watched, counter, pid, writing), 1, "the first one has as much: {}", noted(&hosts));
    }

    /// The link to one that everything is copied to lives, and carries nothing of it any more: it is made again, and so is the copy.
    fn a_copy_that_does_not_get_through() {
        let lab = Lab::new("copied-stuck");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        write(1, 1);
        // It packs badly, and what comes later does not: so it is the copy that does not get through.
        for from in (1..VALUES).step_by(500) {
            let more = "local t={} for j=1,50 do t[j]=redis.sha1hex(i..'.'..j) end redis.call('SET','x'..i,table.concat(t))";
            let script = format!("for i={from},{} do {more} end return 1", from + 499);
            assert_eq!(ask(&format!("EVAL \"{script}\" 0")).as_deref(), Some(":1"));
        }
        assert!(until(SOON, || both(&hosts, "ready") == 2), "{}\n{}", status(&hosts.hosts[0]), watched.said());
        let first = series(&hosts);
        // Streams lose everything after so much, and new ones are not to be had there: words, heartbeats and SSH are.
        let much = "ip daddr 10.99.0.2 tcp dport 1024-65534 quota over 5 mbytes drop";
        let cut = format!("add table inet cut; add chain inet cut out {{ type filter hook output priority 0 ; }} ; add rule inet cut out {much}");
        hosts.hosts[0].plain("nft", &[&cut]);
        hosts.hosts[1].plain("pkill", &["-KILL", "-x", "meio"]);
        let stuck = || watched.said().contains("a copy of everything does not get through");
        assert!(until(3 * SOON, stuck), "{}\n{}\n{}", status(&hosts.hosts[0]), watched.said(), noted(&hosts));
        let writing = until_ready(&hosts, &watched, 2, first);
        // The first one, unless the other one is an epoch ahead just then: the way to the first carries less.
        let over = has_all(&mut hosts, &mut watched, counter, pid, writing);
        assert!(matches!(over, 1 | 2), "{over}: {}", noted(&hosts));
    }
}
