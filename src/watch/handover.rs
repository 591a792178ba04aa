//! For who wants a host to be free of what is watched on it: how the hosts are reached that stand by, and the take-over by one of them,
//! which is asked for and waited for, whatever process has the watch at that moment.

use super::control::{self, Ask};
use super::protect::Options;
use super::record::Store;
pub use super::ring::way;
use super::status::{State, Status};
use super::switch::Switched;
use crate::error::{Error, Result};
use crate::sys::signal;
use crate::transport::{Destination, How};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// For what everything may take to be copied, and to be handed over.
const PATIENCE: Duration = Duration::from_secs(120);
/// For who serves a watch to answer.
const MOMENT: Duration = Duration::from_secs(3);

/// How the primary of a watch logs in to a host that stands by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// As its user has named it.
    pub to: String,
    /// The system's client and its options.
    #[serde(default)]
    pub ssh: Option<String>,
    /// Key files.
    #[serde(default)]
    pub identity: Vec<PathBuf>,
    /// Known hosts.
    #[serde(default)]
    pub known_hosts: Option<PathBuf>,
    /// meio there.
    pub remote_path: String,
}

impl Login {
    /// To all that stand by.
    pub fn all(options: &Options) -> Vec<Login> {
        let how = &options.how;
        let to = |host: &Destination| Login {
            to: host.to_string(),
            ssh: how.ssh.clone(),
            identity: how.identity.clone(),
            known_hosts: how.known_hosts.clone(),
            remote_path: how.remote_path.clone(),
        };
        std::iter::once(&options.standby).chain(&options.others).map(to).collect()
    }

    /// The way there: what is usual here counts first.
    pub fn how(&self, usual: &How) -> How {
        way(&How {
            ssh: usual.ssh.clone().or_else(|| self.ssh.clone()),
            identity: usual.identity.iter().chain(&self.identity).cloned().collect(),
            known_hosts: usual.known_hosts.clone().or_else(|| self.known_hosts.clone()),
            remote_path: self.remote_path.clone(),
            ..usual.clone()
        })
    }
}

/// Asks the one watch of that name that somebody serves; with the host that is meant, if one is. `None`: nobody serves it.
///
/// # Errors
/// As [`control::ask_of`].
pub fn ask(name: &str, what: (Ask, Option<String>), patience: Duration) -> Result<Option<Value>> {
    for store in Store::visible() {
        if let Some(answer) = control::ask_of(&store, name, what.clone(), patience)? {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

/// How those are logged in to who stand by for what runs here; nobody is known where nobody answers that.
pub fn logins(name: &str) -> Vec<Login> {
    let answer = ask(name, (Ask::Hosts, None), MOMENT).ok().flatten();
    answer.and_then(|mut answer| serde_json::from_value(answer["hosts"].take()).ok()).unwrap_or_default()
}

/// Has the standby take over, the one that is named if one is, and waits until it has; how that went, and whether several stand by for
/// it there then. `None`: nobody serves the watch.
///
/// # Errors
/// Why it goes on here; with [`crate::error::Kind::Frozen`] it may run there.
pub fn over(name: &str, to: Option<String>) -> Result<Option<(Switched, bool)>> {
    let Some(mut answer) = ask(name, (Ask::Switchover, to.clone()), PATIENCE)? else { return Ok(None) };
    let several = answer["changes"].is_number();
    if several {
        match alone(name, to)? {
            Some(switched) => answer = switched,
            None => return Ok(None),
        }
    }
    Ok(Some((serde_json::from_value(answer["switched"].take()).unwrap_or_default(), several)))
}

/// Where several stand by: as soon as that one does alone, and has everything, it takes over.
fn alone(name: &str, to: Option<String>) -> Result<Option<Value>> {
    const LOOK: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(15);
    let begun = Instant::now();
    let until = begun + PATIENCE;
    let stays = |why: &str| Error::other(format!("{name} goes on here{why}")).help("meio status says how it stands");
    loop {
        // Between the two nobody serves it for a moment.
        let answer = ask(name, (Ask::Status, None), MOMENT).ok().flatten().map(|mut value| value["status"].take());
        let status: Option<Status> = answer.filter(Value::is_object).and_then(|value| serde_json::from_value(value).ok());
        if let Some(status) = status {
            if let Some(why) = &status.refused {
                return Err(stays(&format!(": {why}")));
            }
            // What was served before is for a moment, too.
            if status.state == State::Protected && status.standbys.len() > 1 && begun.elapsed() >= LONG {
                return Err(stays(", with all who stood by before: that host was not ready to take over"));
            }
            if status.state == State::Protected && status.standbys.is_empty() {
                return ask(name, (Ask::Switchover, to), PATIENCE);
            }
        }
        if Instant::now() >= until {
            return Err(stays(": that host does not have everything yet"));
        }
        std::thread::sleep(LOOK);
        signal::check_interrupted()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that are not here are none; what the user says counts before what the watch was begun with.
    #[test]
    fn the_way_to_one_that_is_known() {
        let here = tempfile::NamedTempFile::new().expect("a file");
        let login = Login {
            to: "root@other:2222".into(),
            ssh: Some("ssh -J bastion".into()),
            identity: vec![here.path().to_owned(), "/no/such/key".into()],
            known_hosts: Some("/no/such/hosts".into()),
            remote_path: "/opt/meio".into(),
        };
        let how = login.how(&How::default());
        assert_eq!((how.identity, how.known_hosts), (vec![here.path().to_owned()], None));
        assert_eq!((how.ssh.as_deref(), how.remote_path.as_str()), (Some("ssh -J bastion"), "/opt/meio"));
        let usual = How { ssh: Some("ssh -4".into()), known_hosts: Some(here.path().to_owned()), ..How::default() };
        let how = login.how(&usual);
        assert_eq!((how.ssh.as_deref(), how.known_hosts.as_deref()), (Some("ssh -4"), Some(here.path())));
    }
}
