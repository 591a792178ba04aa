//! The primary's part in a take-over that a user wants: the tree stands still with its last epoch, what comes for it is sent after
//! it, and it is ended here when it runs there.

use super::state::Mark;
use crate::dump::moving::{Moving, Standing};
use crate::error::{Error, Kind, Result};
use crate::migrate::address::Address;
use crate::progress::Report;
use crate::resource::thread::serde_bytes_vec::Bytes;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// How a switch-over went. Times are milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Switched {
    /// The host where it runs now, as it calls itself.
    pub host: String,
    /// Of that host, from now on.
    pub generation: u64,
    /// The last epoch here.
    pub epoch: Mark,
    /// For how long nobody ran.
    pub frozen_ms: f64,
    /// Each step: `copy` and send what had changed, `rebuild` it there, `start` it.
    pub steps: Vec<(String, f64)>,
}

/// Milliseconds with three decimals.
pub fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

/// The thread with the tree has it stand still.
pub struct Still {
    standing: Option<Standing>,
    /// Of who has the link.
    packets: Sender<Vec<Bytes>>,
}

impl Still {
    /// It does not yet.
    pub fn new(packets: Sender<Vec<Bytes>>) -> Still {
        Still { standing: None, packets }
    }

    /// How long to wait for orders at most: packets do not say when they come.
    pub fn step(&self, usual: Duration) -> Duration {
        const OFTEN: Duration = Duration::from_millis(1);
        if self.standing.is_some() { OFTEN } else { usual }
    }

    /// The last epoch; it stands still from then on.
    ///
    /// # Errors
    /// When it could not be copied: it goes on.
    pub fn stop(&mut self, moving: &mut Moving<'_>, pipe: File, report: &mut dyn Report) -> Result<crate::dump::Outcome> {
        let (made, standing) = moving.yields(pipe, report)?;
        self.standing = Some(standing);
        Ok(made)
    }

    /// What has come for it since is wanted elsewhere.
    pub fn forward(&self) {
        let packets: Vec<Bytes> = self.standing.iter().flat_map(Standing::packets).map(Bytes).collect();
        if !packets.is_empty() {
            let _ = self.packets.send(packets);
        }
    }

    /// It goes on here, if it stands still.
    pub fn thaw(&mut self, report: &mut dyn Report) {
        if let Some(Err(e)) = self.standing.take().map(|standing| standing.thaw(None)) {
            report.warning(&format!("the tree goes on here, but not all of it could be let go: {}", e.message));
        }
    }

    /// It runs elsewhere, and is ended here.
    pub fn end(&mut self, report: &mut dyn Report) {
        self.forward();
        if let Some(Err(e)) = self.standing.take().map(Standing::end) {
            report.warning(&format!("the tree runs elsewhere, and could not be ended here: {}", e.message));
        }
    }
}

/// The thread with the machine knows how far it is.
#[derive(Debug, Default)]
pub struct Course {
    /// When it was to stand still,
    stopped: Option<Instant>,
    /// was copied and sent, and was rebuilt.
    copied: Option<Instant>,
    rebuilt: Option<Instant>,
    /// What the standby said of why it could not.
    why: Option<String>,
    epoch: Mark,
}

impl Course {
    /// The last epoch is copied.
    pub fn begins(&mut self, epoch: Mark) {
        *self = Course { stopped: Some(Instant::now()), epoch, ..Course::default() };
    }

    /// It was, and is sent.
    pub fn copied(&mut self) {
        if self.stopped.is_some() {
            self.copied.get_or_insert_with(Instant::now);
        }
    }

    /// The standby is told that it may run. Says whether it is for the first time.
    pub fn starts(&mut self) -> bool {
        self.rebuilt.is_none() && self.rebuilt.insert(Instant::now()).elapsed() < Duration::MAX
    }

    /// What it says of why it cannot.
    pub fn why(&mut self, why: &[u8]) {
        self.why = Some(String::from_utf8_lossy(why).into_owned());
    }

    /// It runs there.
    pub fn ends(&self, host: &str, generation: u64) -> Switched {
        let now = Instant::now();
        let at = [self.stopped, self.copied, self.rebuilt, Some(now)].map(|at| at.unwrap_or(now));
        let names = ["copy", "rebuild", "start"];
        let steps = names.iter().zip(at.windows(2)).map(|(name, two)| ((*name).to_owned(), ms(two[1].saturating_duration_since(two[0]))));
        Switched { host: host.to_owned(), generation, epoch: self.epoch, frozen_ms: ms(now - at[0]), steps: steps.collect() }
    }

    /// It goes on here.
    pub fn stays(&mut self, linked: bool) -> Error {
        let course = std::mem::take(self);
        let help = "it goes on here; meio status says how it stands";
        match (course.why, course.stopped) {
            (Some(why), _) => Error::other(format!("the standby could not take over: {why}")).help(help),
            (None, _) if !linked => Error::new(Kind::LinkFailed, "the link to the standby was lost, and it did not take over").help(help),
            (None, Some(_)) => Error::other("the standby did not take over in time").help(help),
            (None, None) => Error::other("the standby cannot take over now").help(help),
        }
    }

    /// It was told to run there, and nothing is heard.
    pub fn unsure(&self, host: &str) -> Error {
        Error::new(Kind::Frozen, format!("{host} was told to let it run, and is not heard any more: it stands still here"))
            .help("it is ended here when that is heard again; if it does not run there, meio unwatch has it go on here")
    }
}

/// Waits until none of the addresses is here, but not for long.
pub fn are_down(addresses: &[Address]) {
    const MOST: Duration = Duration::from_millis(50);
    const LOOK: Duration = Duration::from_micros(200);
    let until = Instant::now() + MOST;
    while Instant::now() < until && addresses.iter().any(|address| address.is_up().unwrap_or(false)) {
        std::thread::sleep(LOOK);
    }
}
