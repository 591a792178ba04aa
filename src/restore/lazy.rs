//! `meio restore --lazy`: the tree runs before its pages are there.
//!
//! Large private memory is registered with a userfaultfd(2) of each process; a process of meio's own ([`serve`]) brings every
//! page when it is touched first, by the program or by the kernel on its behalf, and all others one after the other. Everything
//! else is there when the tree begins to run: small mappings (stacks, the data of libraries), what is locked or made of huge
//! pages, private copies of file pages, and all shared memory, whose holes two kinds of madvise(2) treat differently but tell
//! alike. From the time at which a mapping is registered its pages are brought also for what meio itself writes.

mod catalog;
mod serve;
mod space;
mod stop;

use super::fill::Targets;
use super::{Input, Options, pool};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Elsewhere, Owner, Place, Reader, Resolved};
use crate::progress::{Report, phase};
use crate::resource::Tree;
use crate::resource::memory::{AddressSpace, LATER_FROM, Mapping};
use crate::sys::missing::{self, Missing};
use crate::sys::server::{Guard, Handles, Server, cut_short};
use crate::sys::{signal, task};
use crate::tracee::stub::Stub;
use catalog::{Catalog, Later, Piece};
use nix::errno::Errno;
use serve::Incomplete;
use space::Space;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a transparent huge page.
const HUGE: u64 = 2 << 20;

/// Files that may be open at once when a chain is long.
const MANY_FILES: u64 = 1 << 16;

/// Each phase and its time.
type Phases = Vec<(&'static str, Duration)>;

/// A restore whose pages come later.
pub struct Lazy {
    resolved: Option<Arc<Resolved>>,
    server: Option<Server>,
    /// Who has what is in no image here.
    elsewhere: Option<Arc<dyn Elsewhere>>,
    /// meio will not be there to say what goes wrong.
    detach: bool,
    runs: bool,
}

impl Lazy {
    /// Looks where every page stands in the image and in those that it builds upon. Its metadata, the fronts of its blocks and its
    /// end have been checked then.
    pub fn prepare(reader: Option<&mut Reader<'_>>, options: &Options, report: &mut dyn Report, phases: &mut Phases) -> Result<Lazy> {
        let mut resolved = match (&options.input, reader) {
            (Input::Known(known), _) => known.resolved.clone(),
            (_, Some(reader)) => Arc::new(look(reader, options, report, phases)?),
            (_, None) => return Err(Error::other("there is no image")),
        };
        let elsewhere = options.absent.as_ref().map(|absent| absent.from.clone());
        if let Some(absent) = &options.absent {
            Arc::make_mut(&mut resolved).leave(absent)?;
        }
        Ok(Lazy { resolved: Some(resolved), server: None, elsewhere, detach: options.detach, runs: false })
    }

    /// Fills what must be there, and has everything else brought from now on. The address spaces are laid out.
    pub fn fill(
        &mut self,
        tree: &Tree,
        stubs: &HashMap<i32, Stub>,
        targets: &Targets<'_>,
        report: &mut dyn Report,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let resolved = self.resolved.take().ok_or_else(|| Error::other("the pages were looked for twice"))?;
        let mut later = large(tree, &resolved);
        let mut missing = HashMap::new();
        for process in &tree.processes {
            if later.contains_key(&process.pid) {
                match watch(&stubs[&process.pid])? {
                    Some(watched) => drop(missing.insert(process.pid, watched)),
                    None => {
                        later.remove(&process.pid);
                        let why = "the owner of its user namespace may not use userfaultfd";
                        warnings.push(format!("process {}: its memory was filled before it ran: {why}", process.pid));
                    }
                }
            }
        }
        let (catalog, first) = catalog::split(&resolved, &later)?;
        first.zero.iter().try_for_each(|&(owner, address, pages)| targets.zero(owner, address, pages))?;
        let place = |part: &image::Piece, bytes: &[u8]| targets.write(part.owner, part.address, bytes);
        image::deliver(&first.blocks, &place, &mut |bytes| {
            report.bytes(bytes, None);
            signal::check_interrupted()
        })?;
        report.note(&format!("pages that come later: {}", catalog.pages()));
        if missing.is_empty() {
            return Ok(());
        }
        let mut spaces = Vec::new();
        for (owner, missing) in missing {
            for &(start, end) in &later[&owner] {
                missing.register(start, end).context(|| format!("watching the memory of process {owner} by userfaultfd"))?;
            }
            spaces.push(Incomplete::new(missing, owner, Space::new(&later[&owner])));
        }
        self.server = Some(self.start(catalog, spaces, tree, stubs, report)?);
        Ok(())
    }

    /// Starts the process that brings the pages.
    fn start(
        &self,
        catalog: Catalog,
        spaces: Vec<Incomplete>,
        tree: &Tree,
        stubs: &HashMap<i32, Stub>,
        report: &mut dyn Report,
    ) -> Result<Server> {
        let handle = |stub: &Stub| task::pidfd(stub.pid).map(|handle| (stub.pid, handle)).ok();
        let tasks: Vec<_> = stubs.values().filter_map(handle).collect();
        let fds = spaces.iter().map(|s| s.missing.as_raw_fd()).chain(tasks.iter().map(|t| t.1.as_raw_fd()));
        let elsewhere = self.elsewhere.clone();
        let keep: Vec<i32> = fds.chain(catalog.files()).chain(elsewhere.iter().flat_map(|e| e.files())).collect();
        let detach = self.detach;
        Server::start(&keep, |link, handles: Handles| {
            for (pid, handle) in tasks {
                handles.add(pid, handle);
            }
            // Before the tree runs meio sees itself that it has ended, and afterwards as long as it waits for its end.
            let mut tell = |e: &Error| {
                if handles.do_live() && (detach || !link.has_listener()) {
                    report.last_words(e);
                }
            };
            let guard = Guard::post(c"pageguard", || {
                stop::end(handles);
                tell(&cut_short());
            })?;
            link.ready();
            let result = serve::serve(&catalog, spaces, link, handles);
            if let Err(e) = &result {
                tell(e);
            }
            guard.dismiss();
            elsewhere.iter().for_each(|e| e.over(result.as_ref().err()));
            let of = handles.all();
            let huge = if result.is_ok() { huge(tree, catalog.pieces(), stubs) } else { Vec::new() };
            for (pid, address) in huge {
                // What the program has unmapped or changed meanwhile stays as it is.
                let _ = of.iter().find(|h| h.0 == pid).map(|h| missing::collapse(h.1, address, HUGE));
            }
            result
        })
    }

    /// From here on whoever is left says what goes wrong; until now nothing has.
    pub fn live(&mut self) -> Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        server.lives();
        server.failure().map_or(Ok(()), Err)
    }

    /// What has gone wrong, or will be the end of the tree.
    pub fn failure(&mut self) -> Option<Error> {
        self.server.as_mut().and_then(Server::failure)
    }

    /// The tree runs.
    pub fn go(&mut self) {
        self.runs = true;
        match (&mut self.server, &self.elsewhere) {
            (Some(server), _) => server.go(),
            (None, Some(elsewhere)) => elsewhere.over(None),
            (None, None) => {}
        }
    }

    /// Takes note when all pages are there.
    pub fn tend(&mut self) {
        if let Some(server) = &mut self.server {
            server.has_ended();
        }
    }
}

impl Drop for Lazy {
    /// When the tree does not come to life nothing is left of it by now.
    fn drop(&mut self) {
        if let Some(server) = self.server.take().filter(|_| !self.runs && !std::thread::panicking()) {
            server.end();
        }
    }
}

/// Looks where every page stands in an image and in those that it builds upon.
fn look(reader: &mut Reader<'_>, options: &Options, report: &mut dyn Report, phases: &mut Phases) -> Result<Resolved> {
    let Some(path) = options.input.path().filter(|_| !reader.is_stream()) else {
        return Err(Error::new(Kind::Usage, "--lazy needs an image that is a file: a stream cannot be read where a page is wanted"));
    };
    let mut parent = options.parent.clone();
    if reader.parent().is_some() && parent.is_none() {
        // Where it cannot be raised, that may do.
        let _ = pool::raise(MANY_FILES);
        parent = phase(report, phases, "parents", |_| Resolved::parent_of(reader))?.map(Arc::new);
    }
    phase(report, phases, "index", |_| Resolved::read(reader, path, parent.as_deref()))
}

/// Memory that is brought later: by the pid in the image, the mappings.
fn large(tree: &Tree, resolved: &Resolved) -> Later {
    let spaces: HashMap<i32, &AddressSpace> = tree.processes.iter().filter_map(|p| Some((p.pid, p.memory.as_ref()?))).collect();
    let mut later = Later::new();
    for (owner, places) in resolved.owners() {
        let Owner::Process(pid) = owner else { continue };
        let Some(space) = spaces.get(&pid) else { continue };
        let mut pages = vec![0; space.mappings.len()];
        let mut i = 0;
        for Place { address, pages: count, .. } in places.iter().filter(|p| p.at.is_some()) {
            while space.mappings.get(i).is_some_and(|m| m.end <= *address) {
                i += 1;
            }
            if space.mappings.get(i).is_some_and(|m| m.contains(*address)) {
                pages[i] += u64::from(*count);
            }
        }
        let large = space.mappings.iter().zip(pages).filter(|(m, pages)| *pages >= LATER_FROM && m.can_wait());
        let ranges: Vec<_> = large.map(|(m, _)| (m.start, m.end)).collect();
        if !ranges.is_empty() {
            later.insert(pid, ranges);
        }
    }
    later
}

/// What is filled at once is huge where the kernel gives huge pages at the first touch. What is brought is not: pid as meio
/// sees it, and each range of the size of a huge page that is to become one.
fn huge(tree: &Tree, pieces: &[Piece], stubs: &HashMap<i32, Stub>) -> Vec<(i32, u64)> {
    let always = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| text.contains("[always]"));
    let wanted = |m: &Mapping| {
        let has = |flag: &str| m.flags.iter().any(|f| f == flag);
        m.can_wait() && (has("hg") || always && !has("nh"))
    };
    let mut found = BTreeSet::new();
    for of_one in pieces.chunk_by(|a, b| a.owner == b.owner) {
        let pid = of_one[0].owner;
        let space = tree.processes.iter().find(|p| p.pid == pid).and_then(|p| p.memory.as_ref());
        let (Some(space), Some(stub)) = (space, stubs.get(&pid)) else { continue };
        let mut mappings = space.mappings.iter().peekable();
        for piece in of_one {
            while mappings.next_if(|m| m.end <= piece.address).is_some() {}
            let Some(mapping) = mappings.peek().filter(|m| m.contains(piece.address) && wanted(m)) else { continue };
            let end = piece.end().min(mapping.end);
            let first = (piece.address / HUGE * HUGE).max(mapping.start.next_multiple_of(HUGE));
            found.extend((first..end).step_by(HUGE as usize).filter(|at| at + HUGE <= mapping.end).map(|at| (stub.pid, at)));
        }
    }
    found.into_iter().collect()
}

/// A userfaultfd of a process, that nobody has but meio. `None` when it may not have one that serves the kernel, too.
fn watch(stub: &Stub) -> Result<Option<Missing>> {
    let doing = || format!("watching the memory of process {} by userfaultfd", stub.pid);
    let mut script = stub.script();
    script.attempt("userfaultfd", libc::SYS_userfaultfd, &[(libc::O_CLOEXEC | libc::O_NONBLOCK) as u64])?;
    let number = *script.run()?.results.last().unwrap_or(&-i64::from(libc::ENOSYS));
    if number == -i64::from(libc::EPERM) {
        return Ok(None);
    }
    if number < 0 {
        let e = Error::from(Errno::from_raw(-number as i32)).context(doing());
        return Err(Error { kind: Kind::Kernel, ..e }.help("restore without --lazy"));
    }
    let taken = task::Files::of(stub.pid).get(number as i32).context(doing);
    let mut script = stub.script();
    script.call("close", libc::SYS_close, &[number as u64])?;
    script.run()?;
    let missing = Missing::begin(taken?).context(doing).map_err(|e| e.help("restore without --lazy"))?;
    Ok(Some(missing))
}
