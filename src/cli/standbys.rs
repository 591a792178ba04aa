//! `meio add-standby` and `meio remove-standby`: who stands by for a tree that is watched.

use super::status::{name, nobody};
use super::{Console, way};
use crate::error::{Error, Kind, Result};
use crate::sys::signal;
use crate::transport::Destination;
use crate::watch::control::Ask;
use crate::watch::handover::ask;
use crate::watch::status::{State, Status};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long everything may take to be copied.
const PATIENCE: Duration = Duration::from_secs(300);

/// Have one more host stand by for a watched tree
///
/// It is looked first whether the tree could live there. Then the watch ends, and another one of the same name begins at once, with
/// this host behind the others in their order. The tree and its connections go on all the while. It is unprotected until all who stand
/// by have a copy of it; this waits until they have. If the watch cannot begin with the new host, it goes on with those before.
///
/// A witness and a fence command stay what they are; while the witness does not answer nothing is changed. What the configuration of
/// the watch, or the command that begins it, says is as it was: change it there, too.
///
/// With --json the line has "name" and "standbys", their names.
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio add-standby web third\n  meio add-standby web root@10.0.0.4:2222")]
pub struct AddStandby {
    /// Name of the watch
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// The host, as for meio watch --standby
    #[arg(value_name = "[USER@]HOST[:PORT]", value_parser = way::destination)]
    host: Destination,
}

/// Have one host less stand by for a watched tree
///
/// The watch ends, and another one of the same name begins at once with those that are left. The tree and its connections go on all
/// the while. It is unprotected until all who stand by have a copy of it; this waits until they have. The last standby cannot be
/// removed: meio unwatch ends the watch.
///
/// A host that is not heard of can be removed. What is left of the watch there is shown by meio status when it is back, and ended
/// there by meio unwatch: it cannot take over. Where the tree was taken over, one that is away, too, can be removed: it is told so when
/// it is back, and what is left there ends by itself. What the configuration of the watch, or the command that begins it, says is as it
/// was: change it there, too.
///
/// With --json the line has "name" and "standbys", their names.
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio remove-standby web third")]
pub struct RemoveStandby {
    /// Name of the watch
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// The host, as meio watch or meio status calls it
    #[arg(value_name = "[USER@]HOST[:PORT]", value_parser = way::destination)]
    host: Destination,
}

impl AddStandby {
    /// Waits until all have a copy.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        change(console, ("add-standby", Ask::AddStandby), &self.name, &self.host)
    }
}

impl RemoveStandby {
    /// Waits until all have a copy.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        change(console, ("remove-standby", Ask::RemoveStandby), &self.name, &self.host)
    }
}

fn change(console: &Console, (command, what): (&str, Ask), name: &str, host: &Destination) -> Result<ExitCode> {
    signal::catch();
    let Some(answer) = ask(name, (what, Some(host.to_string())), PATIENCE)? else { return Err(nobody(name)?) };
    let count = answer["changes"].as_u64().unwrap_or_default() as usize;
    let status = settled(name, count)?;
    let hosts: Vec<String> = match status.standbys.as_slice() {
        [] => status.other.clone().into_iter().collect(),
        all => all.iter().map(|one| one.host.clone()).collect(),
    };
    if console.json {
        console.json("result", json!({"command": command, "name": name, "standbys": hosts}));
    } else {
        console.result(&format!("{name} is protected by {}", hosts.join(", ")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the watch is protected again, by so many.
fn settled(name: &str, count: usize) -> Result<Status> {
    const LOOK: Duration = Duration::from_millis(100);
    const MOMENT: Duration = Duration::from_secs(3);
    let until = Instant::now() + PATIENCE;
    loop {
        // Between the two nobody serves it for a moment.
        let answer = ask(name, (Ask::Status, None), MOMENT).ok().flatten().map(|mut value| value["status"].take());
        let status: Option<Status> = answer.filter(Value::is_object).and_then(|value| serde_json::from_value(value).ok());
        if let Some(status) = status {
            if let Some(why) = &status.refused {
                let what = format!("{name} goes on with those who stood by before: {why}");
                return Err(Error::other(what).help("meio status says how it stands"));
            }
            let ready = status.standbys.iter().filter(|one| one.state == "ready").count();
            if status.state == State::Protected && (ready == count || status.standbys.is_empty() && count == 1) {
                return Ok(status);
            }
        }
        if Instant::now() >= until {
            let what = format!("{name} is not protected by all yet");
            return Err(Error::new(Kind::Other, what).help("meio status says how it stands"));
        }
        std::thread::sleep(LOOK);
        signal::check_interrupted()?;
    }
}
