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

use super::fill::{self, Targets};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Owner, Reader};
use crate::progress::Report;
use crate::resource::Tree;
use crate::resource::memory::{AddressSpace, Backing, Mapping, PAGE};
use crate::sys::missing::{self, Missing};
use crate::sys::server::{Guard, Handles, Server, cut_short};
use crate::sys::{signal, task};
use crate::tracee::stub::Stub;
use catalog::{Catalog, Later, Survey, comes_later};
use nix::errno::Errno;
use serve::Incomplete;
use space::Space;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsRawFd;

/// Bytes of a transparent huge page.
const HUGE: u64 = 2 << 20;
/// A mapping with fewer pages than this that have a content is filled at once.
const LEAST_PAGES: u64 = 64;

/// A restore whose pages come later.
pub struct Lazy {
    survey: Option<Survey>,
    server: Option<Server>,
    /// The image file, for the process that reads on in it.
    image: i32,
    /// meio will not be there to say what goes wrong.
    detach: bool,
    runs: bool,
}

impl Lazy {
    /// Looks where every page stands in the image. Its metadata, the fronts of its blocks and its end have been checked then.
    pub fn prepare(reader: &mut Reader<'_>, detach: bool) -> Result<Lazy> {
        let Some(image) = reader.file() else {
            return Err(Error::new(Kind::Usage, "--lazy needs an image that is a file: a stream cannot be read where a page is wanted"));
        };
        if reader.parent().is_some() {
            let reason = "--lazy does not restore an image that has a parent";
            return Err(
                Error::new(Kind::Unsupported, reason).help("make it one that stands alone with `meio merge`, or restore it without --lazy")
            );
        }
        Ok(Lazy { survey: Some(Survey::read(reader)?), server: None, image, detach, runs: false })
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
        let survey = self.survey.take().ok_or_else(|| Error::other("the pages were looked for twice"))?;
        let mut later = large(tree, &survey);
        let huge = huge(tree, &survey, stubs);
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
        let (catalog, first) = survey.split(&later)?;
        let mut first = first.into_iter();
        let wanted = |owner: Owner, run: &crate::image::Run| !comes_later(&later, owner, run);
        fill::fill(|| Ok(first.next()), targets, wanted, &mut |bytes| {
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
        self.server = Some(self.start(catalog, spaces, huge, stubs, report)?);
        Ok(())
    }

    /// Starts the process that brings the pages.
    fn start(
        &self,
        catalog: Catalog,
        spaces: Vec<Incomplete>,
        huge: Vec<(i32, u64)>,
        stubs: &HashMap<i32, Stub>,
        report: &mut dyn Report,
    ) -> Result<Server> {
        let handle = |stub: &Stub| task::pidfd(stub.pid).map(|handle| (stub.pid, handle)).ok();
        let tree: Vec<_> = stubs.values().filter_map(handle).collect();
        let fds = spaces.iter().map(|s| s.missing.as_raw_fd()).chain(tree.iter().map(|t| t.1.as_raw_fd()));
        let keep: Vec<i32> = fds.chain([self.image]).collect();
        let detach = self.detach;
        Server::start(&keep, |link, handles: Handles| {
            for (pid, handle) in tree {
                handles.add(pid, handle);
            }
            // Before the tree runs meio sees itself that it has ended, and afterwards as long as it waits for its end.
            let mut tell = |e: &Error| {
                if handles.do_run() && (detach || !link.has_listener()) {
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
            let of = handles.all();
            for (pid, address) in huge.into_iter().filter(|_| result.is_ok()) {
                // What the program has unmapped or changed meanwhile stays as it is.
                let _ = of.iter().find(|h| h.0 == pid).map(|h| missing::collapse(h.1, address, HUGE));
            }
            result
        })
    }

    /// What has gone wrong since the tree lives, or will be the end of it.
    pub fn failure(&mut self) -> Option<Error> {
        self.server.as_mut().and_then(Server::failure)
    }

    /// The tree runs.
    pub fn go(&mut self) {
        self.runs = true;
        if let Some(server) = &mut self.server {
            server.go();
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

/// Memory that is brought later: by the pid in the image, the mappings.
fn large(tree: &Tree, survey: &Survey) -> Later {
    let mut pages: HashMap<(i32, u64), u64> = HashMap::new();
    let spaces: HashMap<i32, &AddressSpace> = tree.processes.iter().filter_map(|p| Some((p.pid, p.memory.as_ref()?))).collect();
    for (pid, address, count) in survey.contents() {
        let Some(space) = spaces.get(&pid) else { continue };
        let i = space.mappings.partition_point(|m| m.end <= address);
        if let Some(mapping) = space.mappings.get(i).filter(|m| m.contains(address) && can_wait(m)) {
            *pages.entry((pid, mapping.start)).or_default() += u64::from(count);
        }
    }
    let mut later = Later::new();
    for (pid, space) in spaces {
        let large = |m: &&Mapping| pages.get(&(pid, m.start)).is_some_and(|&n| n >= LEAST_PAGES);
        let ranges: Vec<_> = space.mappings.iter().filter(large).map(|m| (m.start, m.end)).collect();
        if !ranges.is_empty() {
            later.insert(pid, ranges);
        }
    }
    later
}

/// What was filled at once is huge where the kernel gives huge pages at the first touch. What is brought is not: pid as meio
/// sees it, and each range of the size of a huge page that is to become one.
fn huge(tree: &Tree, survey: &Survey, stubs: &HashMap<i32, Stub>) -> Vec<(i32, u64)> {
    let always = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| text.contains("[always]"));
    let wanted = |m: &Mapping| {
        let has = |flag: &str| m.flags.iter().any(|f| f == flag);
        can_wait(m) && (has("hg") || always && !has("nh"))
    };
    let mut found = BTreeSet::new();
    for (pid, address, pages) in survey.contents() {
        let space = tree.processes.iter().find(|p| p.pid == pid).and_then(|p| p.memory.as_ref());
        let (Some(space), Some(stub)) = (space, stubs.get(&pid)) else { continue };
        let i = space.mappings.partition_point(|m| m.end <= address);
        let Some(mapping) = space.mappings.get(i).filter(|m| m.contains(address) && wanted(m)) else { continue };
        let end = (address + u64::from(pages) * PAGE).min(mapping.end);
        let first = (address / HUGE * HUGE).max(mapping.start.next_multiple_of(HUGE));
        found.extend((first..end).step_by(HUGE as usize).filter(|at| at + HUGE <= mapping.end).map(|at| (stub.pid, at)));
    }
    found.into_iter().collect()
}

/// Whether the pages of a mapping may be brought later.
fn can_wait(mapping: &Mapping) -> bool {
    let has = |flag: &str| mapping.flags.iter().any(|f| f == flag);
    // What is locked is wanted in memory; what a child finds zero (MADV_WIPEONFORK) is not told of.
    let fixed = mapping.huge_page_kib != 0 || has("lo") && !has("lf") || has("wf");
    mapping.backing == Backing::Anonymous && !mapping.shared && !fixed
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
