//! A series of images of one tree, each of what has changed since the one before.

use super::parent::Heritage;
use super::{Made, Options, Outcome, Output, Session, Source, Then};
use crate::error::{Error, Kind, Result};
use crate::progress::Report;
use crate::sys::signal;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What makes it a series.
#[derive(Debug, Clone)]
pub struct Series {
    /// From the beginning of one image to that of the next.
    pub every: Duration,
    /// How many images; `None`: until the tree ends or meio is interrupted.
    pub count: Option<u64>,
    /// Where they go: `{n}` stands for their number, from 1.
    pub pattern: PathBuf,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All images were made.
    Complete,
    /// The tree has ended.
    TreeEnded,
}

impl Series {
    /// Path of an image.
    pub fn path(&self, n: u64) -> PathBuf {
        let pattern = self.pattern.as_os_str().as_bytes();
        let at = memchr::memmem::find(pattern, b"{n}").unwrap_or(pattern.len());
        let rest = pattern.get(at + 3..).unwrap_or_default();
        OsString::from_vec([&pattern[..at], n.to_string().as_bytes(), rest].concat()).into()
    }
}

/// Saves the tree below `options.pid` again and again. `each` is told of each image.
///
/// # Errors
/// As [`super::run`]; the images that were made before stay and can be restored.
pub fn run_series(
    options: &Options,
    series: &Series,
    report: &mut dyn Report,
    mut each: impl FnMut(u64, Outcome, &mut dyn Report),
) -> Result<(u64, Ended)> {
    let mut session = Session::begin(options, report)?;
    session.track(report)?;
    let mut before: Option<(Made, PathBuf)> = None;
    let mut due = Instant::now();
    let mut n = 0;
    while series.count.is_none_or(|count| n < count) {
        if !wait(options.pid, due)? {
            return Ok((n, Ended::TreeEnded));
        }
        session.begun = Instant::now();
        due = session.begun + series.every;
        let path = series.path(n + 1);
        let output = Output::Path(path.clone());
        let parent = before.take().map(|(made, path)| Heritage::after((made.id, made.hash), made.birth, &path, &output));
        let made = match session.image(&output, parent.transpose()?, Then::LetGo, report) {
            Err(_) if n > 0 && super::ended(options.pid) => return Ok((n, Ended::TreeEnded)),
            made => made.map_err(|e| signal::check_interrupted().err().unwrap_or(e))?,
        };
        n += 1;
        if let Some(tracking) = &mut session.tracking {
            tracking.saved();
        }
        let gone = made.outcome.source == Source::Gone;
        each(n, made.outcome.clone(), report);
        before = Some((made, path));
        if gone {
            return Ok((n, Ended::TreeEnded));
        }
    }
    Ok((n, Ended::Complete))
}

/// Waits until an image is due; false when the tree ends before.
fn wait(pid: i32, due: Instant) -> Result<bool> {
    const STEP: Duration = Duration::from_millis(20);
    loop {
        signal::check_interrupted()?;
        if super::ended(pid) {
            return Ok(false);
        }
        match due.checked_duration_since(Instant::now()) {
            None => return Ok(true),
            Some(left) => std::thread::sleep(left.min(STEP)),
        }
    }
}

/// Refuses a pattern that names one file for all images.
pub fn check_pattern(pattern: &Path) -> Result<()> {
    let text = pattern.as_os_str().as_bytes();
    if memchr::memmem::find(text, b"{n}").is_some() {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("every image of a series would be {}", pattern.display()))
        .help("write {n} where the number of the image belongs: -o 'DIR/{n}.meio'"))
}
