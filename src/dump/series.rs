//! A series of images of one tree, each of what has changed since the one before.
//!
//! One that is kept does not grow for ever: of each image that is the last of so many a flat one is made, in its place and under
//! its name, which the next one builds upon. What none of the images that are to be kept needs is taken away then. Whatever
//! ends in between, each image that has its name can be restored: it has that when it is on its disk, and what it builds upon goes
//! only when a later one has.

use super::parent::Heritage;
use super::{Made, Options, Outcome, Output, Session, Source, Then, merge};
use crate::error::{Context, Error, Kind, Result};
use crate::progress::Report;
use crate::sys::signal;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What somebody wants of a series beside the next image in its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// The next one, now.
    Now,
    /// No more.
    Over,
}

/// Who may want that.
pub trait Steer {
    /// What is wanted; it is forgotten then.
    fn wish(&self) -> Option<Go>;
    /// The image of this number begins.
    fn begins(&self, n: u64);
}

/// What makes it a series.
pub struct Series<'s> {
    /// From the beginning of one image to that of the next.
    pub every: Duration,
    /// How many images; `None`: until the tree ends or meio is interrupted.
    pub count: Option<u64>,
    /// Where they go: `{n}` stands for their number.
    pub pattern: PathBuf,
    /// The number of the first.
    pub first: u64,
    /// How many are kept, at least; `None` for all.
    pub keep: Option<u64>,
    /// Who may want more.
    pub steer: Option<&'s dyn Steer>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All images were made that were wanted.
    Complete,
    /// The tree has ended.
    TreeEnded,
}

impl Series<'_> {
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
    series: &Series<'_>,
    report: &mut dyn Report,
    mut each: impl FnMut(u64, Outcome, &mut dyn Report),
) -> Result<(u64, Ended)> {
    let mut session = Session::begin(options, report)?;
    session.track(report)?;
    let mut before: Option<(Made, PathBuf)> = None;
    let mut due = Instant::now();
    let mut n = 0;
    // Numbers of those that stand alone, the newest last.
    let mut flat = vec![series.first];
    while series.count.is_none_or(|count| n < count) {
        match wait(options.pid, series, due)? {
            Next::Image => {}
            Next::TreeEnded => return Ok((n, Ended::TreeEnded)),
            Next::Over => return Ok((n, Ended::Complete)),
        }
        session.begun = Instant::now();
        due = session.begun + series.every;
        let number = series.first + n;
        let path = series.path(number);
        if let Some(steer) = series.steer {
            steer.begins(number);
        }
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
        each(number, made.outcome.clone(), report);
        let mut made = made;
        if let Some(keep) = series.keep {
            if number + 1 >= flat.last().unwrap_or(&number) + keep && keep > 1 {
                made.hash = flatten(options, &path, report)?;
                flat.push(number);
            }
            prune(series, &mut flat, number, keep);
        }
        before = Some((made, path));
        if gone {
            return Ok((n, Ended::TreeEnded));
        }
    }
    Ok((n, Ended::Complete))
}

/// Makes an image that stands alone of one, in its place; the name that it has then.
fn flatten(options: &Options, path: &Path, report: &mut dyn Report) -> Result<crate::image::Hash> {
    let merged = merge::Options { images: vec![path.to_owned()], output: Output::Path(path.to_owned()), level: options.level };
    merge::run(&merged, report).map(|outcome| outcome.summary.hash)
}

/// Takes away what the last `keep` images do not need.
fn prune(series: &Series<'_>, flat: &mut Vec<u64>, newest: u64, keep: u64) {
    let oldest = (newest + 1).saturating_sub(keep);
    let Some(at) = flat.iter().rposition(|base| *base <= oldest) else { return };
    flat.drain(..at);
    let (base, folder) = (flat[0], folder(&series.pattern));
    for (n, path) in images(&folder, &series.pattern).into_iter().filter(|(n, _)| *n < base) {
        // One that cannot be taken away now is the next time.
        let _ = fs::remove_file(&path);
        debug_assert!(n < newest);
    }
}

/// The folder of a pattern.
fn folder(pattern: &Path) -> PathBuf {
    pattern.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// The images of a series, with their numbers, the newest first.
fn images(folder: &Path, pattern: &Path) -> Vec<(u64, PathBuf)> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((front, end)) = name.split_once("{n}") else { return Vec::new() };
    let number = |name: &str| name.strip_prefix(front)?.strip_suffix(end).filter(|n| !n.starts_with(['0', '+']))?.parse().ok();
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> =
        files.filter_map(|file| Some((number(&file.file_name().to_string_lossy())?, file.path()))).collect();
    found.sort_unstable_by_key(|(n, _)| std::cmp::Reverse(*n));
    found
}

/// How images are called that are kept in a folder of their own.
const KEPT: &str = "{n}.meio";

/// The pattern of a series in a folder of its own, and the number of the next image in it. What one was writing that was killed is
/// taken away.
pub fn in_folder(folder: &Path) -> (PathBuf, u64) {
    let pattern = folder.join(KEPT);
    let parts = fs::read_dir(folder).into_iter().flatten().flatten();
    let part = |name: &str| name.strip_prefix('.').is_some_and(|name| name.contains(".meio.") && name.ends_with(".part"));
    parts.filter(|file| part(&file.file_name().to_string_lossy())).for_each(|file| drop(fs::remove_file(file.path())));
    let next = images(folder, &pattern).first().map_or(1, |(n, _)| n + 1);
    (pattern, next)
}

/// The images of a series in a folder of its own, the newest first.
///
/// # Errors
/// [`Kind::NotFound`] when there are none.
pub fn newest_in(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder).context(|| folder.display().to_string())?;
    let found = images(folder, &folder.join(KEPT));
    if found.is_empty() {
        let what = format!("there is no image of a series in {}", folder.display());
        return Err(Error::new(Kind::NotFound, what).help("meio watch --dir makes them: 1.meio, 2.meio, …"));
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// What comes next.
enum Next {
    Image,
    TreeEnded,
    Over,
}

/// Waits until an image is due, or wanted.
fn wait(pid: i32, series: &Series<'_>, due: Instant) -> Result<Next> {
    const STEP: Duration = Duration::from_millis(20);
    loop {
        signal::check_interrupted()?;
        if super::ended(pid) {
            return Ok(Next::TreeEnded);
        }
        match series.steer.and_then(Steer::wish) {
            Some(Go::Now) => return Ok(Next::Image),
            Some(Go::Over) => return Ok(Next::Over),
            None => {}
        }
        match due.checked_duration_since(Instant::now()) {
            None => return Ok(Next::Image),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// For any number that is kept: the last ones are there with what they build upon, and not many more.
    #[test]
    fn what_is_kept_is_bounded() {
        for keep in 1..7 {
            let place = tempfile::tempdir().expect("a folder");
            fs::write(place.path().join(".3.meio.77.part"), "").expect("a file");
            fs::write(place.path().join("other.meio"), "").expect("a file");
            let (pattern, first) = in_folder(place.path());
            assert_eq!(first, 1);
            let series = Series { every: Duration::ZERO, count: None, pattern, first, keep: Some(keep), steer: None };
            let mut flat = vec![first];
            for n in first..40 {
                fs::write(series.path(n), "").expect("a file");
                if n + 1 >= flat.last().expect("one") + keep {
                    flat.push(n);
                }
                prune(&series, &mut flat, n, keep);
                let there: Vec<u64> = images(place.path(), &series.pattern).into_iter().map(|(n, _)| n).collect();
                let last = there.len() as u64;
                assert!(there[0] == n && there.windows(2).all(|two| two[0] == two[1] + 1), "{there:?}");
                assert!(last >= keep.min(n) && last <= 2 * keep, "{keep}: {there:?}");
                assert!(flat.contains(there.last().expect("one")), "{there:?} {flat:?}");
            }
            assert_eq!(in_folder(place.path()).1, 40);
            let newest = newest_in(place.path()).expect("images");
            assert!(newest[0].ends_with("39.meio"));
            assert!(place.path().join("other.meio").exists() && !place.path().join(".3.meio.77.part").exists());
        }
        assert_eq!(newest_in(tempfile::tempdir().expect("a folder").path()).map_err(|e| e.kind), Err(Kind::NotFound));
    }
}
