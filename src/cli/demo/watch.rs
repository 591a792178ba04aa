//! `meio demo watch`: a machine is killed, and another one goes on with its service and the connection of its client.

use super::migrate::client::Client;
use super::migrate::hosts::{Host, PORT, SERVICE, Service, VIP, bridge};
use super::migrate::{LIMIT, MOVE, own, until};
use super::program::installed;
use super::{Paint, Teller};
use crate::cli::{Console, figures};
use crate::error::{Error, Result};
use crate::sys::signal;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Answers that the client waits for before and after.
const ANSWERS: u64 = 100;
/// Lines of its log before and after the moment.
const LINES: (usize, usize) = (4, 4);

/// Shows everything, in namespaces of its own.
pub fn stage(folder: &Path, console: &Console) -> Result<ExitCode> {
    signal::catch();
    let teller = Teller { console, begin: Instant::now() };
    bridge()?;
    let [mut one, two] = [Host::new(folder, 1, "one")?, Host::new(folder, 2, "two")?];
    let text = "one (10.99.0.1) and two (10.99.0.2): namespaces with processes, network and mounts of their own";
    teller.say("machines", Paint::Strong, text);
    one.plain("ip", &["address", "add", VIP.split('@').next().unwrap_or(VIP), "dev", "eth0"])?;
    let service = if installed(Service::Redis.program()) { Service::Redis } else { Service::Counter };
    let pid = one.serve(folder, service)?;
    teller.say("running", Paint::Good, &format!("{} at {SERVICE}:{PORT}, on one; its pid is {pid}", service.program()));
    let mut meio = one.watch(folder, pid, &two)?;
    let said = || std::fs::read_to_string(folder.join("said")).unwrap_or_default();
    until("protection", MOVE, || match meio.try_wait()? {
        Some(_) => Err(Error::other(format!("meio watch has ended: {}", said()))),
        None => Ok(state(&one, "primary").is_some_and(|state| state == "protected")),
    })?;
    let text = format!("on one: meio watch --name demo --standby {} --vip {VIP} {pid}", two.address);
    teller.say("watched", Paint::Good, &text);
    let client = Client::start(service.question(), MOVE)?;
    until("an answer", MOVE, || client.answers().map(|n| n >= ANSWERS))?;
    let wait = figures::time(client.longest());
    let text = format!("a client, on neither, has one connection and has counted to {}; the longest wait was {wait}", client.answers()?);
    teller.say("asking", Paint::Good, &text);
    until("protection", MOVE, || Ok(state(&one, "primary").is_some_and(|state| state == "protected")))?;

    let killed = Instant::now();
    one.fail()?;
    teller.say("killed", Paint::Bad, "the cable of one is pulled, and everything on it is killed: nothing is saved, nobody says goodbye");
    let _ = meio.wait();
    let before = client.answers()?;
    until("the standby", MOVE, || client.answers().map(|n| n > before))?;
    let stall = killed.elapsed();
    let text = format!("two has noticed, has the address, and answers {} after one was killed", figures::time(stall));
    teller.say("goes on", Paint::Good, &text);
    until("an answer of the standby", MOVE, || client.answers().map(|n| n >= before + ANSWERS))?;
    if !two.lives(pid) {
        return Err(Error::other(format!("process {pid} does not live on two")));
    }
    until("the word of the standby", LIMIT, || Ok(state(&two, "standby").is_some_and(|state| state == "running")))?;
    let log = client.log(killed, LINES.0, LINES.1);
    let answers = client.end()?;
    tell(console, service, pid, answers, stall, &log);
    Ok(ExitCode::SUCCESS)
}

/// How the watch stands on a machine, if it is there in this role.
fn state(host: &Host, role: &str) -> Option<String> {
    // It is asked for again and again.
    std::thread::sleep(Duration::from_millis(50));
    let said = host.plain(&own().ok()?.display().to_string(), &["status", "--json"]).ok()?;
    let said: Value = serde_json::from_str(&said).ok()?;
    let one = said["watches"].as_array()?.iter().find(|one| one["role"] == role)?;
    one["state"].as_str().map(str::to_owned)
}

fn tell(console: &Console, service: Service, pid: i32, answers: u64, stall: Duration, log: &[(u64, Duration, bool)]) {
    if console.json {
        let log: Vec<Value> =
            log.iter().map(|(answer, took, after)| json!({"answer": answer, "ms": figures::ms(*took), "after": after})).collect();
        let (program, stall) = (service.program(), figures::ms(stall));
        return console.json(
            "result",
            json!({"command": "demo", "program": program, "pid": pid, "answers": answers, "correct": true, "stall_ms": stall, "log": log}),
        );
    }
    console.result("\n  The log of the client, around that moment:");
    let mut was = false;
    for (answer, took, after) in log {
        let what = if *after && !was { console.out("  <- one was killed", Paint::Bad) } else { String::new() };
        was = *after;
        console.result(&format!("    counted to {answer:<8} after {:>8}{what}", figures::time(*took)));
    }
    console.result(&format!(
        "\n  {} one connection, {answers} answers from 1 to {answers}: none was lost, none came twice.\n  \
         Try your own: meio watch --standby HOST --vip ADDRESS PID; meio status.",
        console.out("A machine died, and the client has noticed a stall:", Paint::Good)
    ));
}
