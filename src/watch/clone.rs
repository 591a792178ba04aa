//! What the standby keeps of the tree: every page once ([`Flat`]), and above that the epochs that came last and are whole.
//!
//! An image comes into memory of its own, or a file without a name in a folder, where nobody else can read it. One that has come
//! in part is nothing. One that is whole waits until it is known that nothing older will be taken over from; then a thread
//! brings its pages in, while the next one comes. No more than [`MOST`] wait: who sends waits with them.
//!
//! Where there is no room for what comes it is let go by, with all that builds upon it, and [`Clone::short`] says so; what was
//! there stays as long as nobody gives it up. There must be memory for the tree itself beside what is kept of it, too: it is brought
//! to life while all of that is still there, and who ran out of memory only then would have promised too much.

use crate::error::{Context, Error, Result};
use crate::image::{Flat, PAGE, Reader, Resolved};
use crate::resource::{Manifest, Tree};
use crate::restore::Known;
use crate::sys::{arch, file, priority, room};
use crate::transport::{Receiver, Waker};
use serde::de::IgnoredAny;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Images that wait to be brought in, at most.
const MOST: usize = 2;
/// Bytes that are taken from a stream at a time.
const PIECE: usize = 256 << 10;
/// Memory that is left to others.
const OTHERS: u64 = 64 << 20;
/// How many bytes come before it is looked again whether there is room.
const OFTEN: u64 = 16 << 20;

/// The clone, and who keeps it up to date.
pub struct Clone(Arc<Shared>);

struct Shared {
    place: Keeping,
    state: Mutex<State>,
    changed: Condvar,
    /// Whoever has it brings an image in.
    flat: Mutex<Option<Flat>>,
    /// Nobody wants what is in the flat as it is.
    goes_on: AtomicBool,
    /// Bytes of pages in it.
    bytes: AtomicU64,
}

/// Where pages are kept.
#[derive(Debug, Clone)]
enum Keeping {
    Memory,
    Folder(PathBuf),
}

#[derive(Default)]
struct State {
    /// How many images have come.
    whole: u64,
    /// Those that are here and belong together: the one that stands alone, and the last.
    series: Option<(u64, u64)>,
    /// Those that are not brought in yet.
    waiting: VecDeque<(u64, File)>,
    /// Nothing older than this is taken over from.
    kept: u64,
    /// The last one that was brought in.
    latest: Option<(u64, Known)>,
    /// Why something is not here.
    short: Option<Error>,
    waker: Option<Waker>,
    /// Nothing more comes by the streams.
    stands: bool,
    over: bool,
}

impl Keeping {
    /// An empty file that only this process can find.
    fn file(&self) -> Result<File> {
        match self {
            Keeping::Memory => Ok(file::memfd(b"meio-clone", libc::MFD_CLOEXEC)?.into()),
            Keeping::Folder(folder) => {
                let mut options = File::options();
                options.read(true).write(true).mode(0o600);
                match options.custom_flags(libc::O_TMPFILE).open(folder) {
                    // A file system that has none without a name.
                    Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(tempfile_in(folder, &options)?),
                    made => made,
                }
                .context(|| format!("making a file in {}", folder.display()))
            }
        }
    }

    /// Whether so many bytes more can be kept, and so many brought to life. A file system says itself what it has room for.
    fn has_room(&self, kept: u64, life: u64) -> Result<()> {
        let (kept, help) = match self {
            Keeping::Memory => (kept, "end something on the standby, or keep the copy on a disk: --spool FOLDER"),
            Keeping::Folder(_) => (0, "end something on the standby"),
        };
        let (needed, there) = (kept.saturating_add(life), room::available());
        if needed == 0 || there >= needed.saturating_add(OTHERS) {
            return Ok(());
        }
        let [there, needed] = [there, needed.saturating_add(OTHERS)].map(|bytes| bytes >> 20);
        Err(Error::other(format!("{there} MiB of memory are free here, and {needed} MiB are needed")).help(help))
    }
}

/// A file whose name is taken away at once.
fn tempfile_in(folder: &Path, options: &std::fs::OpenOptions) -> io::Result<File> {
    let path = folder.join(format!(".meio.{}.clone", std::process::id()));
    let file = options.clone().custom_flags(0).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

impl Clone {
    /// An empty one, in a folder or in memory, that takes what `receiver` brings.
    pub fn begin(folder: Option<&Path>, receiver: Receiver) -> Result<Clone> {
        // Else they start when the first image is brought in, and cannot be started any more when the tree is brought back.
        crate::sys::workers::start()?;
        let place = folder.map_or(Keeping::Memory, |folder| Keeping::Folder(folder.to_owned()));
        place.file()?;
        let shared = Shared {
            place,
            state: Mutex::default(),
            changed: Condvar::new(),
            flat: Mutex::new(None),
            goes_on: AtomicBool::new(true),
            bytes: AtomicU64::new(0),
        };
        let clone = Clone(Arc::new(shared));
        let own = clone.0.clone();
        start("clone", move || own.bring_in())?;
        clone.go_on(receiver)?;
        Ok(clone)
    }

    /// Has a thread take what comes next, when nothing more comes by the streams before.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn go_on(&self, receiver: Receiver) -> Result<()> {
        self.0.state().stands = false;
        let own = self.0.clone();
        start("spool", move || {
            let _ = own.take_in(receiver);
            own.state().stands = true;
            own.wake();
        })
    }

    /// Whether nothing more comes by the streams that it has.
    pub fn stands(&self) -> bool {
        self.0.state().stands
    }

    /// Has somebody told whenever one more image has come.
    pub fn wakes(&self, waker: Waker) {
        self.0.state().waker = Some(waker);
    }

    /// How many images have come.
    pub fn whole(&self) -> u64 {
        self.0.state().whole
    }

    /// Whether an image that has come is here, with all that it builds upon.
    pub fn has(&self, image: u64) -> bool {
        self.0.state().series.is_some_and(|(first, last)| (first..=last).contains(&image))
    }

    /// Bytes of pages that have been brought in.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Why something that came is not here; said once.
    pub fn short(&self) -> Option<Error> {
        self.0.state().short.take()
    }

    /// Nothing older than this image will be taken over from.
    pub fn keep(&self, image: u64) {
        self.0.state().kept = image;
        self.0.changed.notify_all();
    }

    /// Nothing that is here is wanted any more.
    pub fn drop_all(&self) {
        self.0.goes_on.store(false, Ordering::Release);
        let mut flat = locked(&self.0.flat);
        *flat = None;
        self.0.bytes.store(0, Ordering::Relaxed);
        let mut state = self.0.state();
        (state.series, state.latest) = (None, None);
        state.waiting.clear();
        self.0.goes_on.store(true, Ordering::Release);
        drop(state);
        self.0.changed.notify_all();
    }

    /// What is known of an image that is here. Nothing that comes later is brought in any more.
    ///
    /// # Errors
    /// When it is not here, or damaged.
    pub fn take(&self, image: u64) -> Result<Known> {
        self.0.goes_on.store(false, Ordering::Release);
        // Whoever has it gives it back at the next block.
        let mut flat = locked(&self.0.flat);
        self.0.settle(&mut flat, image)?;
        self.known(image)
    }

    /// What is known of an image that is here, as of now.
    pub fn known(&self, image: u64) -> Result<Known> {
        let state = self.0.state();
        let mut last: Option<Known> = None;
        if let Some((number, known)) = &state.latest {
            if *number == image {
                return Ok(known.clone());
            }
            last = Some(known.clone());
        }
        for (number, file) in state.waiting.iter().filter(|(number, _)| *number <= image) {
            let name = name(*number);
            let mut reader = Reader::from_file(file.try_clone()?, arch::MACHINE).context(|| name.display().to_string())?;
            let (manifest, mut tree): (Manifest, Tree) = (reader.manifest()?, reader.tree()?);
            tree.complete(last.as_ref().map(|known| &known.tree))?;
            let parent = last.as_ref().map(|known| &*known.resolved);
            let mut resolved = Resolved::read(&mut reader, &name, parent)?;
            manifest.stands_for.into_iter().for_each(|other| resolved.stand_for(other));
            last = Some(Known { manifest, tree, id: reader.id(), resolved: Arc::new(resolved) });
        }
        let is_there = state.waiting.iter().any(|(number, _)| *number == image);
        last.filter(|_| is_there).ok_or_else(|| Error::other("what is to be taken over from is not here"))
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        self.0.goes_on.store(false, Ordering::Release);
        self.0.state().over = true;
        self.0.changed.notify_all();
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).context(|| "cannot start a thread").map(drop)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(image: u64) -> PathBuf {
    PathBuf::from(format!("image {image}"))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn wake(&self) {
        self.state().waker.iter().for_each(Waker::wake);
        self.changed.notify_all();
    }

    /// Takes images as they come.
    fn take_in(&self, mut receiver: Receiver) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        // What came by another link may never be kept, if this one begins with a copy of everything.
        let mut is_first = true;
        while let Some(mut item) = receiver.next_item()? {
            let mut state = self.state();
            while state.waiting.len() >= MOST && !state.over && !is_first {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            is_first = false;
            drop(state);
            let came = match self.receive(&mut item, &mut buffer) {
                Ok(file) => Ok(file),
                // The streams have failed: it comes again.
                Err(Short::Link(e)) => return Err(e),
                Err(Short::Here(e)) => {
                    while item.read(&mut buffer)? > 0 {}
                    Err(e)
                }
            };
            let mut state = self.state();
            if state.over {
                return Ok(());
            }
            let number = state.whole + 1;
            let link = came.and_then(|file| {
                let link = Reader::from_file(file.try_clone()?, arch::MACHINE)?.link()?;
                if link.is_none() {
                    // Known before it is said that this can be taken over from.
                    let bytes = extent(&file)?;
                    self.place.has_room(bytes, bytes)?;
                }
                Ok((file, link.is_some()))
            });
            match (link, state.series) {
                (Ok((file, false)), _) => {
                    state.waiting.clear();
                    state.waiting.push_back((number, file));
                    state.series = Some((number, number));
                }
                (Ok((file, true)), Some((first, last))) if last + 1 == number => {
                    state.waiting.push_back((number, file));
                    state.series = Some((first, number));
                }
                // What it builds upon is not here.
                (Ok(_), _) => {}
                (Err(e), _) => state.short = Some(e),
            }
            state.whole = number;
            drop(state);
            self.wake();
        }
        Ok(())
    }

    fn receive(&self, item: &mut impl Read, buffer: &mut [u8]) -> std::result::Result<File, Short> {
        let (mut file, mut length, mut looked) = (None, 0, 0);
        loop {
            let read = item.read(buffer).map_err(|e| Short::Link(e.into()))?;
            if read == 0 {
                return file.ok_or_else(|| Short::Link(Error::link("an image is empty")));
            }
            if file.is_none() {
                file = Some(self.place.file().map_err(Short::Here)?);
            }
            length += read as u64;
            if looked == 0 || length > looked + OFTEN {
                self.place.has_room(OFTEN, 0).map_err(Short::Here)?;
                looked = length;
            }
            let put = file.as_mut().map_or(Ok(()), |file| file.write_all(&buffer[..read]));
            put.context(|| "keeping an image").map_err(Short::Here)?;
        }
    }

    /// Brings in those that are whole, as soon as nothing older is wanted.
    fn bring_in(&self) {
        priority::yields_soon();
        loop {
            let mut state = self.state();
            let next = loop {
                if state.over {
                    return;
                }
                let ready = |(number, _): &&(u64, File)| *number <= state.kept;
                let first = state.waiting.front().filter(ready).filter(|_| self.goes_on.load(Ordering::Acquire));
                if let Some((number, file)) = first {
                    break file.try_clone().map(|file| (*number, file));
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let mut flat = locked(&self.flat);
            let done = next.map_err(Error::from).and_then(|(number, file)| {
                self.place.has_room(file.metadata()?.len(), 0)?;
                Ok((number, self.bring(&mut flat, number, file, &self.goes_on)?))
            });
            let mut state = self.state();
            let failed = match done {
                // Somebody else has the say.
                Ok((_, None)) => continue,
                Ok((number, Some(known))) => {
                    state.latest = Some((number, known));
                    state.waiting.retain(|(of, _)| *of != number);
                    self.place.has_room(0, self.bytes.load(Ordering::Relaxed)).err()
                }
                Err(e) => {
                    if flat.as_ref().is_some_and(Flat::is_torn) {
                        (state.latest, state.waiting) = (None, VecDeque::new());
                    }
                    Some(e)
                }
            };
            if failed.is_some() {
                // What is here stays; nothing more is.
                (state.series, state.short, state.kept) = (None, failed, 0);
                drop(state);
                self.wake();
                continue;
            }
            drop(state);
            drop(flat);
            self.changed.notify_all();
        }
    }

    /// Brings in all up to this image where one of them says of pages only how they differ: nobody else knows what they are. Whoever
    /// takes over does so with what room there is.
    fn settle(&self, flat: &mut Option<Flat>, image: u64) -> Result<()> {
        let due = |state: &State| {
            let due = state.waiting.iter().filter(|(number, _)| *number <= image);
            due.map(|(number, file)| Ok((*number, file.try_clone()?))).collect::<io::Result<Vec<_>>>()
        };
        let due = due(&self.state())?;
        let mut last = None;
        for (number, file) in &due {
            last = if differs(file.try_clone()?)? { Some(*number) } else { last };
        }
        for (number, file) in due.into_iter().take_while(|(number, _)| Some(*number) <= last) {
            let known = self.bring(flat, number, file, &AtomicBool::new(true))?;
            let mut state = self.state();
            state.latest = known.map(|known| (number, known));
            state.waiting.retain(|(of, _)| *of != number);
        }
        Ok(())
    }

    fn bring(&self, flat: &mut Option<Flat>, number: u64, file: File, goes_on: &AtomicBool) -> Result<Option<Known>> {
        let name = name(number);
        let flat = match flat {
            Some(flat) => flat,
            None => flat.insert(Flat::new(self.place.file()?, give_back)),
        };
        let mut reader = Reader::from_file(file, arch::MACHINE).context(|| name.display().to_string())?;
        let (manifest, mut tree): (Manifest, Tree) = (reader.manifest()?, reader.tree()?);
        tree.complete(self.state().latest.as_ref().map(|(_, known)| &known.tree))?;
        if !flat.bring_in(&mut reader, &name, goes_on)? {
            return Ok(None);
        }
        manifest.stands_for.into_iter().for_each(|other| flat.stand_for(other));
        self.bytes.store(flat.taken(), Ordering::Relaxed);
        let resolved = flat.now().cloned().ok_or_else(|| Error::other("nothing was brought in"))?;
        Ok(Some(Known { manifest, tree, id: reader.id(), resolved }))
    }
}

/// Bytes of memory that an image has which stands alone, but for pages of zeros.
fn extent(file: &File) -> Result<u64> {
    let mut reader = Reader::from_file(file.try_clone()?, arch::MACHINE)?;
    let resolved = Resolved::read(&mut reader, Path::new("image"), None)?;
    let places = resolved.owners().flat_map(|(_, places)| places).filter(|place| place.at.is_some());
    Ok(places.map(|place| u64::from(place.pages) * PAGE as u64).sum())
}

/// Whether an image says of pages only how they differ from those before them.
fn differs(file: File) -> Result<bool> {
    let mut reader = Reader::from_file(file, arch::MACHINE)?;
    let _: (IgnoredAny, IgnoredAny) = (reader.manifest()?, reader.tree()?);
    reader.has_deltas()
}

/// Where that is not possible the room is used again all the same.
fn give_back(file: &File, from: u64, bytes: u64) {
    let _ = file::punch(file, from, bytes);
}

/// Why an image is not here.
enum Short {
    /// It did not come.
    Link(Error),
    /// There is no room for it.
    Here(Error),
}
