//! A tree as the command line names it: by the pid of its root, or by the name of a capsule.

use crate::capsule::roster::{Roster, is_name};
use crate::error::{Error, Kind, Result};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Pid of a root.
    Pid(i32),
    /// Name of a capsule.
    Capsule(String),
}

/// Reads a pid or a name.
pub fn parse(text: &str) -> std::result::Result<Target, String> {
    match text.parse() {
        Ok(pid @ 1..) => Ok(Target::Pid(pid)),
        Err(_) if is_name(text) => Ok(Target::Capsule(text.to_owned())),
        _ => Err("write a pid, or the name of a capsule (meio list)".into()),
    }
}

impl Target {
    /// The root's pid.
    pub fn pid(&self) -> Result<i32> {
        match self {
            Target::Pid(pid) => Ok(*pid),
            Target::Capsule(name) => match Roster::open()?.find(name)? {
                Some(entry) => Ok(entry.pid),
                None => Err(Error::new(Kind::NotFound, format!("no such capsule ({name})")).help("meio list shows those that live")),
            },
        }
    }

    /// The capsule's name.
    pub fn capsule(&self) -> Option<&str> {
        match self {
            Target::Pid(_) => None,
            Target::Capsule(name) => Some(name),
        }
    }

    /// The name of the capsule whose init has this pid, however it was named.
    pub fn name_of(&self, pid: i32) -> Option<String> {
        let by_pid = || Roster::open().ok()?.all().ok()?.into_iter().find(|entry| entry.pid == pid).map(|entry| entry.name);
        self.capsule().map(str::to_owned).or_else(by_pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_and_names() {
        assert_eq!(parse("12"), Ok(Target::Pid(12)));
        assert_eq!(parse("web-2"), Ok(Target::Capsule("web-2".into())));
        assert!(["0", "-1", "", "a/b", "99999999999"].iter().all(|t| parse(t).is_err()));
    }
}
