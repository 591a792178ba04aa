//! What a target has on record of a move: whether the tree was let run there, or never will be. `/run` lasts as long as the
//! machine runs, and so do the trees that it speaks of.

use super::message::Id;
use super::state::{Life, Recorded, Verdict};
use crate::error::{Context, Error, Result};
use crate::sys::proc::{read, stat};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

/// Where records are.
const FOLDER: &str = "/run/meio/migrate";

/// The record of one move.
pub struct Verdicts {
    path: PathBuf,
    /// This meio has written it.
    own: bool,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Word {
    Going,
    Alive,
    Refused,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
struct Entry {
    verdict: Word,
    /// Who wrote it, and when that process began.
    writer: (i32, u64),
}

fn start_of(pid: i32) -> Option<u64> {
    read::parsed(pid, "stat", stat::parse).ok().filter(|s| !matches!(s.state, b'Z' | b'X')).map(|s| s.start_time)
}

impl Verdicts {
    /// Those of a move.
    pub fn of(id: Id) -> Result<Verdicts> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(FOLDER).context(|| format!("making {FOLDER}"))?;
        Ok(Verdicts { path: PathBuf::from(format!("{FOLDER}/{}.target", super::name(&id))), own: false })
    }

    /// Writes a verdict as [`Recorded`] has it.
    pub fn judge(&mut self, verdict: Verdict) -> Result<Recorded> {
        let word = match verdict {
            Verdict::Going => Word::Going,
            Verdict::Alive => Word::Alive,
            Verdict::Refused => Word::Refused,
        };
        let own = std::process::id() as i32;
        let draft = self.path.with_extension(format!("{own}.draft"));
        let entry = Entry { verdict: word, writer: (own, start_of(own).unwrap_or(0)) };
        let text = serde_json::to_vec(&entry).map_err(|e| Error::other(e.to_string()))?;
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft).context(|| draft.display())?;
        file.write_all(&text).and_then(|()| file.sync_all()).context(|| format!("writing {}", draft.display()))?;
        let replaces = word == Word::Alive || word == Word::Refused && self.own;
        let named = if replaces { fs::rename(&draft, &self.path) } else { fs::hard_link(&draft, &self.path) };
        let _ = fs::remove_file(&draft);
        match named {
            Ok(()) => {
                self.own = true;
                File::open(FOLDER).and_then(|folder| folder.sync_all()).context(|| FOLDER)?;
                Ok(Recorded::Written)
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => self.there().map(|entry| {
                Recorded::Is(match entry.verdict {
                    Word::Going => Verdict::Going,
                    Word::Alive => Verdict::Alive,
                    Word::Refused => Verdict::Refused,
                })
            }),
            Err(e) => Err(Error::from(e).context(format!("writing {}", self.path.display()))),
        }
    }

    fn there(&self) -> Result<Entry> {
        let text = fs::read(&self.path).context(|| self.path.display())?;
        serde_json::from_slice(&text).map_err(|e| Error::other(format!("{} is damaged: {e}", self.path.display())))
    }

    /// Whoever wrote that it is going is at it as long as it lives; then nobody can say what it has done.
    pub fn look(&self) -> Life {
        match self.there() {
            Ok(entry) if start_of(entry.writer.0) == Some(entry.writer.1) => Life::AtWork,
            _ => Life::Gone,
        }
    }
}
