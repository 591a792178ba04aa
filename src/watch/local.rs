//! A watch without a standby: the last images of a tree are kept in a folder, from which it comes back after a power cut.

use super::control::Control;
use super::record::Store;
use super::start::free;
use super::state::Mark;
use super::status::{Board, Role, State, Status, Wish};
use crate::dump::{self, Ended, Go, Series, Steer};
use crate::error::{Context, Error, Kind, Result};
use crate::progress::Report;
use crate::sys::manager::Manager;
use crate::sys::signal;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the watch.
    pub name: String,
    /// The tree, and how it is copied.
    pub dump: dump::Options,
    /// Where the images go.
    pub folder: PathBuf,
    /// Time between the beginnings of two of them.
    pub every: Duration,
    /// How many are kept, at least.
    pub keep: u64,
    /// The group whose members may ask and command.
    pub control_group: Option<String>,
    /// Set when an image is there.
    pub begun: Arc<AtomicBool>,
}

/// How it has ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How many images were made.
    pub images: u64,
    /// Their bytes.
    pub bytes: u64,
    /// All stops of the tree but the first.
    pub stops: Vec<Duration>,
    /// The longest.
    pub longest: Duration,
    /// The tree has ended.
    pub ended: bool,
    /// What is different.
    pub warnings: Vec<String>,
}

/// Who asks over the control socket, and signals.
struct Wishes(Arc<Board>, Manager);

impl Steer for Wishes {
    fn wish(&self) -> Option<Go> {
        self.1.lives();
        let go = |epoch: bool| if epoch { Go::Now } else { Go::Over };
        let signal = signal::passed().map(|signal| go(signal == libc::SIGUSR1)).last();
        self.0.wished().map(|wish| go(wish == Wish::Epoch)).or(signal)
    }

    fn begins(&self, n: u64) {
        self.0.begins(Mark { series: 1, number: n });
    }
}

/// Keeps images until the tree ends, or that is asked for.
///
/// # Errors
/// As [`dump::run_series`]; the images that there are can be restored.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    signal::catch();
    let folder = &options.folder;
    let doing = || format!("keeping images in {}", folder.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).context(doing)?;
    let store = Store::open()?;
    let _claim = free(&store, &options.name)?;
    let _tree = store.claim_tree(options.dump.pid, &options.name)?;
    let _folder = Flock::lock(File::open(folder).context(doing)?, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        nix::errno::Errno::EWOULDBLOCK => {
            Error::other(format!("another meio keeps images in {}", folder.display())).help("name another one")
        }
        e => Error::from(e).context(doing()),
    })?;
    let status = Status {
        name: options.name.clone(),
        role: Role::Series,
        pid: Some(options.dump.pid),
        at: vec![folder.display().to_string()],
        interval_ms: Some(options.every.as_secs_f64() * 1e3),
        ..Status::default()
    };
    let board = Arc::new(Board::new(status));
    let control = Control::open(&store, &options.name, board.clone(), options.control_group.as_deref())?;
    let (pattern, first) = dump::in_folder(folder);
    let wishes = Wishes(board.clone(), Manager::of_environment());
    let series = Series { every: options.every, count: None, pattern, first, keep: Some(options.keep), steer: Some(&wishes) };
    let mut outcome = Outcome::default();
    signal::pass();
    let each = |n: u64, made: dump::Outcome, report: &mut dyn Report| {
        let mark = Mark { series: 1, number: n };
        board.saved(mark, Instant::now() - made.total, made.pause, made.image_bytes);
        board.note(|status| status.state = State::Saved);
        options.begun.store(true, Ordering::Relaxed);
        outcome.images += 1;
        if outcome.images == 1 {
            wishes.1.ready();
        }
        outcome.bytes += made.image_bytes;
        outcome.longest = outcome.longest.max(made.pause);
        if n > first {
            outcome.stops.push(made.pause);
        }
        for warning in made.warnings {
            if !outcome.warnings.contains(&warning) {
                report.warning(&warning);
                outcome.warnings.push(warning);
            }
        }
        report.standing(&format!("images: {}; the last stop took {:.1?}", outcome.images, made.pause));
    };
    let done = dump::run_series(&options.dump, &series, report, each);
    wishes.1.stopping();
    let done = match done {
        Err(e) if e.kind == Kind::Interrupted => Ok(Ended::Complete),
        done => done.map(|(_, ended)| ended),
    };
    board.end(done.clone().map(|_| outcome.warnings.clone()));
    drop(control);
    outcome.ended = done? == Ended::TreeEnded;
    Ok(outcome)
}
