//! Images as they come, until they are not needed any more: in a folder that nobody else can read, and that goes with meio.
//!
//! Where pages will be brought when the tree runs already they are put together while it still runs at the source: each once and
//! decompressed ([`Flat`]), so that who waits for one waits for no other, and for no decompression.

use super::files::Applier;
use super::message::Id;
use super::{pull, record};
use crate::dump::moving::name;
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Flat, Reader, Resolved};
use crate::resource::{Manifest, Tree};
use crate::sys::{arch, file};
use crate::transport::Receiver;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the names of such folders begin and end with; the move's name is between.
const BEFORE: &str = ".meio.";
const BEHIND: &str = ".images";
/// Nobody needs longer to lock what was made.
const MOMENT: Duration = Duration::from_secs(60);
/// Bytes that are taken from a stream at a time.
const PIECE: usize = 1 << 20;

/// What comes beside images: changes to files are the applier's, and pages that come by themselves go into the socket.
type Others = (Applier, UnixStream);

/// The folder, and who fills it.
pub struct Spool {
    folder: PathBuf,
    /// As long as somebody has it, it is not swept.
    _lock: Flock<File>,
    state: Arc<(Mutex<State>, Condvar)>,
    /// More images are to come, which may build upon those that are there.
    goes_on: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    /// How many images are there.
    whole: u64,
    /// How many sets of changes to files were made.
    sets: u64,
    /// What is known of the last one of which that has been found out, and its number.
    resolved: Option<(u64, Arc<Resolved>)>,
    /// The same of the one before it.
    before: Option<(u64, Arc<Resolved>)>,
    /// No more will come; why, if that is not as it should be.
    ended: Option<Option<Error>>,
}

fn locked(mutex: &Mutex<State>) -> MutexGuard<'_, State> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spool {
    /// A new one in `parent`, filled by what `receiver` brings; `have` is told the number of each image that has come. `lazily`: so
    /// many bytes of pages will be brought one by one.
    pub fn begin(
        parent: &Path,
        id: &Id,
        receiver: Receiver,
        others: Option<Others>,
        lazily: Option<u64>,
        have: impl Fn(u64) + Send + 'static,
    ) -> Result<Spool> {
        // Else they start when the first image is looked at, and cannot be started any more when it is brought back.
        crate::sys::workers::start()?;
        sweep(parent);
        let folder = parent.join(format!("{BEFORE}{}{BEHIND}", record::name(id)));
        fs::DirBuilder::new().mode(0o700).create(&folder).context(|| format!("making {}", folder.display()))?;
        let doing = || folder.display().to_string();
        let lock = Flock::lock(File::open(&folder).context(doing)?, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).context(doing)?;
        let state = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let goes_on = Arc::new(AtomicBool::new(true));
        let (theirs, place) = (state.clone(), folder.clone());
        // All pages are there beside the first image. Where that is too much they are looked for in the images.
        let free = nix::sys::statvfs::statvfs(parent).map_or(0, |s| s.blocks_available() * s.fragment_size());
        let pages = lazily.filter(|bytes| free / 2 > *bytes).map(|_| Pages { flat: None, goes_on: goes_on.clone() });
        let work = move || {
            let work = std::panic::AssertUnwindSafe(|| fill(receiver, others, (&place, pages), (&theirs, &have)));
            let done = std::panic::catch_unwind(work).unwrap_or_else(|_| Err(Error::other("taking images has failed")));
            locked(&theirs.0).ended = Some(done.err());
            theirs.1.notify_all();
        };
        std::thread::Builder::new().name("spool".into()).spawn(work).context(|| "cannot start a thread")?;
        Ok(Spool { folder, state, goes_on, _lock: lock })
    }

    /// Waits until the image of this number is there with all before it: its path, and where the pages of the one before are.
    pub fn wait(&mut self, n: u64, limit: Duration) -> Result<(PathBuf, Option<Arc<Resolved>>)> {
        let until = Instant::now() + limit;
        let mut state = locked(&self.state.0);
        while state.whole < n {
            if let Some(ended) = &state.ended {
                return Err(ended.clone().unwrap_or_else(|| Error::other("not all images have come")));
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return Err(Error::new(Kind::LinkFailed, "the last image did not come in time"));
            };
            state = self.state.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.goes_on.store(false, Ordering::Release);
        let known = [state.resolved.take(), state.before.take()].into_iter().flatten();
        let resolved = known.filter(|(of, _)| of + 1 == n).map(|(_, resolved)| resolved).next();
        Ok((self.folder.join(name(n)), resolved))
    }

    /// Whether so many sets of changes to files were made; waits for a moment.
    ///
    /// # Errors
    /// When no more will be.
    pub fn applied(&self, n: u64) -> Result<bool> {
        const MOMENT: Duration = Duration::from_millis(100);
        let mut state = locked(&self.state.0);
        if state.sets < n && state.ended.is_none() {
            state = self.state.1.wait_timeout(state, MOMENT).unwrap_or_else(PoisonError::into_inner).0;
        }
        match &state.ended {
            _ if state.sets >= n => Ok(true),
            Some(ended) => Err(ended.clone().unwrap_or_else(|| Error::other("not all files have come"))),
            None => Ok(false),
        }
    }

    /// Why no more will come, when it is not that everything has.
    pub fn failure(&self) -> Option<Error> {
        locked(&self.state.0).ended.clone().flatten()
    }
}

/// Takes away what meios have left that were killed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix(BEFORE).is_some_and(|rest| rest.ends_with(BEHIND));
        // A folder that has just been made is not locked yet, but empty.
        let free = || File::open(entry.path()).is_ok_and(|f| Flock::lock(f, FlockArg::LockExclusiveNonblock).is_ok());
        let old = || entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age > MOMENT));
        if ours && old() && free() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn fill(
    mut receiver: Receiver,
    mut others: Option<Others>,
    (folder, mut pages): (&Path, Option<Pages>),
    (state, have): (&(Mutex<State>, Condvar), &dyn Fn(u64)),
) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut n = 0;
    while let Some(mut item) = receiver.next_item()? {
        let mut begin = [0; pull::BEGIN.len()];
        item.read_exact(&mut begin)?;
        if let Some((applier, _)) = others.as_mut().filter(|_| Applier::is_for(&begin)) {
            applier.apply(&mut std::io::BufReader::with_capacity(PIECE, item))?;
            locked(&state.0).sets += 1;
            state.1.notify_all();
            continue;
        }
        if let Some((_, pages)) = others.as_mut().filter(|_| begin == pull::BEGIN) {
            // Who does not need them any more hears no more of them; the source is not kept waiting.
            let mut wanted = true;
            loop {
                match item.read(&mut buffer)? {
                    0 => break,
                    read => wanted = wanted && pages.write_all(&buffer[..read]).is_ok(),
                }
            }
            continue;
        }
        n += 1;
        let path = folder.join(name(n));
        // All of it is with the others.
        if pages.as_ref().is_some_and(|pages| pages.flat.is_some()) {
            let _ = fs::remove_file(folder.join(name(n - 1)));
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).context(|| path.display())?;
        file.write_all(&begin).context(|| format!("writing {}", path.display()))?;
        loop {
            match item.read(&mut buffer)? {
                0 => break,
                read => file.write_all(&buffer[..read]).context(|| format!("writing {}", path.display()))?,
            }
        }
        let mut there = locked(&state.0);
        there.whole = n;
        drop(there);
        state.1.notify_all();
        // While the next one is on its way.
        let before = locked(&state.0).resolved.as_ref().filter(|(of, _)| of + 1 == n).map(|(_, resolved)| resolved.clone());
        if n == 1 || before.is_some() {
            let resolved = match &mut pages {
                Some(pages) => pages.bring_in(&path, folder),
                None => resolve(&path, folder, before.as_deref()).map(|resolved| Some(Arc::new(resolved))),
            };
            let resolved = resolved.context(|| format!("image {n}"))?;
            let mut state = locked(&state.0);
            if let Some(resolved) = resolved.filter(|_| state.whole == n) {
                state.before = state.resolved.replace((n, resolved));
            }
        }
        have(n);
    }
    Ok(())
}

/// All pages, each once.
struct Pages {
    flat: Option<Flat>,
    goes_on: Arc<AtomicBool>,
}

impl Pages {
    /// Brings in those of an image, unless it is the last one.
    fn bring_in(&mut self, path: &Path, folder: &Path) -> Result<Option<Arc<Resolved>>> {
        let flat = match &mut self.flat {
            Some(flat) => flat,
            None => {
                let path = folder.join("pages");
                let mut options = File::options();
                let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path).context(|| path.display())?;
                self.flat.insert(Flat::new(file, give_back))
            }
        };
        let mut reader = Reader::from_file(File::open(path)?, arch::MACHINE)?.beside(folder.to_owned());
        let _: Manifest = reader.manifest()?;
        let _: Tree = reader.tree()?;
        let whole = flat.bring_in(&mut reader, path, &self.goes_on)?;
        Ok(flat.now().filter(|_| whole).cloned())
    }
}

/// Where that is not possible the room is used again all the same.
fn give_back(file: &File, from: u64, bytes: u64) {
    let _ = file::punch(file, from, bytes);
}

/// Finds out where the pages of an image are.
fn resolve(path: &Path, folder: &Path, parent: Option<&Resolved>) -> Result<Resolved> {
    let mut reader = Reader::from_file(File::open(path)?, arch::MACHINE)?.beside(folder.to_owned());
    let _: Manifest = reader.manifest()?;
    let _: Tree = reader.tree()?;
    // One that stands alone begins anew.
    let parent = parent.filter(|_| reader.parent().is_some());
    Resolved::read(&mut reader, path, parent)
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Whoever still reads in the images has them open.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
