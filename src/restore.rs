//! The restore screenplay: read, plant, rebuild, release.

mod ancestors;
mod attach;
mod births;
mod check;
mod confined;
mod datagrams;
mod fill;
mod finish;
pub mod fits;
mod foreground;
mod interest;
mod late;
mod layout;
mod lazy;
mod lock;
mod namespace;
mod places;
mod planted;
mod pool;
mod ptys;
mod queues;
mod raw;
mod reach;
mod rings;
mod root;
mod skeleton;
mod sockets;
mod system_v;
mod terminal;
mod users;
mod vdso;

use crate::capsule::roster::{self, Entry, Roster};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Absent, Chain, Reader, Resolved};
use crate::progress::{Report, phase};
use crate::resource::path::FilePath;
use crate::resource::socket::choice::{self, Choice};
use crate::resource::{Manifest, Tree};
use crate::sys::guardian::Guardian;
use crate::sys::{arch, signal};
use lazy::Lazy;
use lock::Locks;
pub use lock::SharedLock;
use namespace::Namespace;
use places::Places;
use planted::{Planted, end_all};
use pool::Pool;
pub use pool::make_room;
use root::Root;
use sockets::Sockets;
use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use std::{process::ExitStatus, time::Duration};
use terminal::Terminals;
use vdso::Foreign;

/// Where the image comes from.
#[derive(Debug, Clone)]
pub enum Input {
    /// From this file.
    Path(PathBuf),
    /// From standard input.
    Stdin,
    /// Everything of it is known; only lazily.
    Known(Arc<Known>),
}

/// What is known of an image: all of it but pages, and where these are.
#[derive(Debug, Clone)]
pub struct Known {
    /// Where it was made.
    pub manifest: Manifest,
    /// What it holds.
    pub tree: Tree,
    /// Its random id.
    pub id: [u8; 16],
    /// Where its pages are.
    pub resolved: Arc<Resolved>,
}

impl Input {
    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Input::Path(path) => Some(path),
            Input::Stdin | Input::Known(_) => None,
        }
    }
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the image comes from.
    pub input: Input,
    /// Return as soon as the tree runs.
    pub detach: bool,
    /// Write the root's pid here.
    pub pidfile: Option<PathBuf>,
    /// Restore into a fresh pid namespace.
    pub pid_namespace: bool,
    /// Connections with somebody outside of the tree come back broken off.
    pub close_connections: bool,
    /// Those at other addresses than these come back broken off; `None`: all come back.
    pub only_at: Option<Vec<IpAddr>>,
    /// The tree runs before its pages are there.
    pub lazy: bool,
    /// What is known already of the image's parent when it is brought back lazily. Else it is looked for.
    pub parent: Option<Arc<Resolved>>,
    /// Files that are known to be what the tree expects.
    pub settled: HashSet<FilePath>,
    /// Pages that are not in the image; only lazily.
    pub absent: Option<Absent>,
    /// [Blocks](block) what the tree hears and says in meio's own network namespace already, and is opened when it runs.
    pub lock: Option<SharedLock>,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Pid of the tree's root as the caller sees it.
    pub root_pid: i32,
    /// Time until the tree ran.
    pub total: Duration,
    /// How the root ended (foreground only).
    pub exit: Option<ExitStatus>,
    /// What is different than before.
    pub warnings: Vec<String>,
    /// Each phase and its time.
    pub phases: Vec<(&'static str, Duration)>,
}

/// Brings the tree of an image back; see [`bring_back`]. What fails because this kernel does not know it is said to be so.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    run_when(options, &mut |_| Ok(()), report)
}

/// The same, of a tree that may run only when `may_run`, which is told the root's pid, returns: everything is in place then, nothing runs, and nothing has
/// been said. When it fails, nothing of the tree is left.
pub fn run_when(options: &Options, may_run: &mut dyn FnMut(i32) -> Result<()>, report: &mut dyn Report) -> Result<Outcome> {
    let mut made_under = String::new();
    bring_back(options, may_run, report, &mut made_under).map_err(|e| elsewhere(e, &made_under, &own_release()))
}

/// An older kernel has no other word for an argument that it does not know than `EINVAL`.
fn elsewhere(e: Error, made_under: &str, here: &str) -> Error {
    let unknown = e.kind == Kind::Kernel || e.kind == Kind::Other && e.message.contains("EINVAL");
    if !unknown || made_under.is_empty() || made_under == here {
        return e;
    }
    let help = format!("the image was made under Linux {made_under}, this is Linux {here}, which may lack what is named above");
    Error { kind: Kind::Kernel, help: Some(e.help.map_or(help.clone(), |more| format!("{help}; {more}"))), ..e }
}

fn own_release() -> String {
    nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Brings the tree of an image back.
///
/// Guarantee: until everything is in place nothing of the tree runs, and whatever fails, and whenever meio dies,
/// nothing of it is left: all its processes die with meio until they are let go together.
fn bring_back(
    options: &Options,
    may_run: &mut dyn FnMut(i32) -> Result<()>,
    report: &mut dyn Report,
    made_under: &mut String,
) -> Result<Outcome> {
    let begin = Instant::now();
    let mut phases = Vec::new();
    signal::catch();
    let mut reader = if matches!(options.input, Input::Known(_)) { None } else { Some(open(&options.input)?) };
    let (manifest, mut tree, id) = metadata(&options.input, reader.as_mut())?;
    made_under.clone_from(&manifest.kernel);
    if options.close_connections || tree.decisions.tcp == Choice::Close {
        tree.decisions.tcp = Choice::Close;
        report.note(&format!("connections that are broken off now: {}", choice::close(&mut tree)));
    }
    if let Some(addresses) = &options.only_at {
        report.note(&format!("connections at other addresses, broken off: {}", choice::close_elsewhere(&mut tree, addresses)));
    }
    let capsule = match &manifest.capsule {
        Some(name) if !roster::is_name(name) => return Err(Error::image("image damaged: its capsule has no possible name")),
        Some(name) => {
            let roster = Roster::open()?;
            roster.must_be_free(name)?;
            Some((roster, name))
        }
        None => None,
    };
    phase(report, &mut phases, "check", |_| check::check(&manifest, &tree, options.pid_namespace, &[]))?;
    let foreign = Foreign::settle(&mut tree)?;
    if foreign.count() > 0 {
        report.note(&format!("processes whose vDSO is another kernel's: {}", foreign.count()));
    }
    crate::sys::workers::start()?;
    let mut lazy = if options.lazy { Some(Lazy::prepare(reader.as_mut(), options, report, &mut phases)?) } else { None };
    let chain = match &reader {
        Some(reader) if reader.parent().is_some() && lazy.is_none() => {
            Some(phase(report, &mut phases, "parents", |_| Chain::upon(reader))?)
        }
        _ => None,
    };
    let mut terminals = Terminals::prepare(&tree, options.detach)?;
    let mut warnings = terminals.warnings.clone();
    warnings.extend(check::lesser_processor(&manifest));
    let fresh = options.pid_namespace || tree.base().is_some();
    let mut places = Places::new(&tree, Pool::base_of(&tree));
    places.make_users()?;
    let namespace = if fresh && !Root::is_init(&tree) { Some(Namespace::new()?) } else { None };
    // Before the root takes its pid, which somebody may have to have had; but where it is to be the first process of a
    // pid namespace there are no others before it, and where namespaces matter these come first.
    let furnish = sockets::need_places(&tree) || lock::needs_places(&tree);
    let inside = fresh && (furnish || Root::is_init(&tree));
    if furnish && !inside {
        places.make_others(None)?;
    }
    let mut locks = if inside { None } else { Some(Locks::close(&tree, &mut places, &id, options.lock.as_ref())?) };
    let mut sockets = if inside { None } else { Some(Sockets::make(&tree, &places, None)?) };
    let gadget = layout::gadget(&tree)?;
    let bear = |places: &Places<'_>| Root::bear(&tree, gadget, places, namespace.as_ref(), options.detach);
    let taken = |e: &Error| !fresh && e.message.contains("EEXIST");
    let mut root = match bear(&places) {
        Err(e) if taken(&e) => None,
        born => Some(born?),
    };
    let mut pool = phase(report, &mut phases, "files", |_| {
        let home = root.as_ref().map(|root| root.pid).filter(|_| fresh);
        if inside || !furnish {
            places.make_others(home)?;
        }
        if locks.is_none() {
            locks = Some(Locks::close(&tree, &mut places, &id, options.lock.as_ref())?);
        }
        check::files(&tree, &places, &options.settled)?;
        let sockets = sockets.take().map_or_else(|| Sockets::make(&tree, &places, home), Ok)?;
        let pool = Pool::open(&tree, &terminals, &places, sockets, home)?;
        terminals.close()?;
        Ok::<_, Error>(pool)
    })?;
    warnings.append(&mut places.warnings);
    warnings.append(&mut pool.warnings);
    warnings.extend(tree.decisions.ignore.iter().map(|id| format!("{id} was left out of the image (--ignore) and has not come back")));

    let mut planted = phase(report, &mut phases, "processes", |report| {
        // A pid that has just been given up is in use for an instant longer than /proc shows it.
        let mut tries = 0;
        loop {
            let born = root.take().map_or_else(|| bear(&places), Ok);
            match born.and_then(|root| Planted::plant(&tree, root, &terminals, &places)) {
                Err(e) if taken(&e) && tries < 8 => {
                    end_all();
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(2 << tries));
                }
                Err(e) => {
                    end_all();
                    return Err(e);
                }
                Ok(planted) => {
                    let (tasks, processes) = (planted.threads.len(), tree.processes.len());
                    report.note(&format!("tasks that were made: {tasks}; processes: {processes}"));
                    return Ok(planted);
                }
            }
        }
    })?;
    let sources = (reader.as_mut(), chain, lazy.as_mut());
    let result = planted.rebuild(sources, &mut pool, (&terminals, &foreign), report, &mut phases, &mut warnings);
    if let Err(e) = result {
        let e = lazy.as_mut().and_then(Lazy::failure).unwrap_or(e);
        drop(namespace);
        planted.destroy();
        return Err(e);
    }
    let root = planted.root();
    if let Some(path) = &options.pidfile
        && let Err(e) = std::fs::write(path, format!("{root}\n")).context(|| format!("writing {}", path.display()))
    {
        drop(namespace);
        planted.destroy();
        return Err(e);
    }
    let image = options.input.path().and_then(|path| std::fs::canonicalize(path).ok());
    let entry = |name: &str| Entry::of(name, root).map(|entry| Entry { image, ..entry });
    let entry = capsule.as_ref().map(|(roster, name)| entry(name).and_then(|e| roster.enter(&e).map(|()| e))).transpose();
    let entry = match entry {
        Ok(entry) => entry,
        Err(e) => {
            drop(namespace);
            planted.destroy();
            return Err(e);
        }
    };
    // Nothing is said or heard yet: what fails or is killed from here on can be restored again.
    warnings.extend(pool.begin(&tree).unwrap_or_else(|e| vec![e.message]));
    let left = locks.as_ref().and_then(Locks::left);
    let brought = lazy.as_mut().map_or(Ok(()), Lazy::live);
    // Last: from here on no file is opened any more.
    let ready = brought.and_then(|()| may_run(root));
    let guardian = match ready.and_then(|()| pool.arm(&tree, root)).and_then(|()| planted.entrust(left)) {
        Ok(guardian) => guardian,
        Err(e) => {
            pool.silence(&tree);
            drop(namespace);
            planted.destroy();
            return Err(e);
        }
    };
    if let Some(namespace) = namespace {
        namespace.keep();
    }
    // The tree is not meio's any more: what fails here cannot be undone. What the connections say first is to be heard.
    if let Some(Err(e)) = locks.take().map(Locks::open) {
        warnings.push(format!("{e}; `meio check --unlock` opens what the dump has locked"));
    }
    if let Some(Err(e)) = guardian.map(Guardian::dismiss) {
        warnings.push(e.message);
    }
    warnings.extend(pool.speak(&tree).unwrap_or_else(|e| vec![e.message]));
    report.clear();
    let session = foreground::Session::begin(&terminals, &tree, planted.front(), options.detach);
    pool.queues.keep();
    let nudges = pool.nudges(&tree);
    drop(pool);
    terminals.let_go();
    planted.release();
    lazy.iter_mut().for_each(Lazy::go);
    nudges.send();
    let total = begin.elapsed();
    let tend = || lazy.iter_mut().for_each(Lazy::tend);
    let exit = if options.detach { None } else { Some(session.serve(root, terminals, tend)?) };
    if let (Some(_), Some((roster, _)), Some(entry)) = (&exit, &capsule, &entry) {
        roster.leave(entry)?;
    }
    // It was ended for want of its pages.
    let ended = exit.is_some_and(|e| std::os::unix::process::ExitStatusExt::signal(&e) == Some(libc::SIGKILL));
    if let Some(e) = lazy.as_mut().filter(|_| ended).and_then(Lazy::failure) {
        return Err(e);
    }
    Ok(Outcome { root_pid: root, total, exit, warnings, phases })
}

/// What an image says of itself and its tree.
fn metadata(input: &Input, reader: Option<&mut Reader<'_>>) -> Result<(Manifest, Tree, [u8; 16])> {
    match (input, reader) {
        (Input::Known(known), _) => Ok((known.manifest.clone(), known.tree.clone(), known.id)),
        (_, Some(reader)) => Ok((reader.manifest()?, reader.tree()?, reader.id())),
        (_, None) => Err(Error::other("there is no image")),
    }
}

/// The tree that is in an image.
pub fn tree_of(image: &Path) -> Result<Tree> {
    let mut reader = open(&Input::Path(image.to_owned()))?;
    let _: Manifest = reader.manifest()?;
    reader.tree()
}

fn open(input: &Input) -> Result<Reader<'static>> {
    match input {
        Input::Stdin => Reader::open(std::io::stdin(), arch::MACHINE),
        Input::Known(_) => Err(Error::other("what is known already is not read")),
        Input::Path(path) => {
            let file = File::open(path).map_err(|e| {
                let kind = match e.kind() {
                    std::io::ErrorKind::NotFound => Kind::NotFound,
                    std::io::ErrorKind::PermissionDenied => Kind::Permission,
                    _ => Kind::Other,
                };
                Error::new(kind, format!("cannot open image {}: {e}", path.display()))
            })?;
            Reader::from_file(file, arch::MACHINE).context(|| path.display()).map(|reader| reader.beside(image::folder_of(path)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_said_to_be_its_lack() {
        let unknown = || Error::other("rebuilding task 7: rseq: EINVAL: Invalid argument");
        assert_eq!(elsewhere(unknown(), "6.18.1", "6.18.1").kind, Kind::Other);
        let lacks = elsewhere(unknown(), "6.18.1", "6.1.0");
        assert_eq!(lacks.kind, Kind::Kernel);
        assert!(lacks.message.contains("rseq") && lacks.help.is_some_and(|h| h.contains("6.18.1") && h.contains("6.1.0")));
        assert_eq!(elsewhere(Error::image("damaged"), "6.18.1", "6.1.0").kind, Kind::Image);
        assert_eq!(Error::from(nix::errno::Errno::ENOSYS).kind, Kind::Kernel);
    }
}
