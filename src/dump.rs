//! The dump screenplay: freeze, capture, write, let go.

mod ask;
mod base;
mod copy;
mod left;
pub mod lock;
pub mod merge;
pub mod moving;
mod output;
mod parent;
mod recent;
mod room;
mod rounds;
mod series;
mod spans;
mod still;
mod tracking;
mod tree;
mod write;

use crate::error::{Context, Error, Kind, Refusal, Result};
use crate::image::{self, Dedup, Inherited};
use crate::netlock::Manner;
use crate::netlock::kept::Owner;
use crate::progress::{Report, phase};
use crate::resource::aio;
use crate::resource::birth::Birth;
use crate::resource::capture::{Capture, Decisions};
use crate::resource::glance::Glance;
use crate::resource::graph::Lost;
use crate::resource::process::State;
use crate::resource::quiet::Quiet;
use crate::resource::recall::Recall;
use crate::resource::socket::choice::Choice;
use crate::resource::socket::tcp;
use crate::resource::{Manifest, Tree};
use crate::sys::ear::Heard;
use crate::sys::proc::{read, stat, status};
use crate::sys::{apart, arch, signal};
use crate::tracee::freeze::Frozen;
pub use crate::tracee::track::Choice as Track;
pub use base::Base;
pub use left::Rest;
use lock::Locks;
use output::Target;
use parent::Heritage;
use room::Room;
use rounds::{End, Laid, copy_rounds};
pub use series::{Ended, Go, Series, Steer, check_pattern, in_folder, newest_in, run_series};
use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;
use std::{path::PathBuf, time::Duration};
use still::Still;
use tracking::Tracking;
use write::Write;

/// Bytes of memory that are not worth a look before the stop.
const LITTLE: u64 = 16 << 20;
/// Bytes that are copied in a moment, in which nothing else on the machine comes first.
const SHORT: u64 = 64 << 20;

/// The longest stop that is allowed where nothing else is said.
pub const MAX_PAUSE: Duration = Duration::from_millis(20);

/// Where the image goes.
#[derive(Debug, Clone)]
pub enum Output {
    /// Into this file; it gets the name only when it is complete.
    Path(PathBuf),
    /// To standard output.
    Stdout,
    /// Into this pipe, whose other end carries it to another machine.
    Pipe(Arc<File>),
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Root of the tree.
    pub pid: i32,
    /// Name of the capsule that it is.
    pub capsule: Option<String>,
    /// Where the image goes.
    pub output: Output,
    /// End the tree once the image is safe.
    pub kill: bool,
    /// zstd level of the pages; `None` stores them raw.
    pub level: Option<i32>,
    /// How long to wait for every task to stop.
    pub freeze_timeout: Duration,
    /// What was decided about things that would be refused.
    pub decisions: Decisions,
    /// Copy while the tree runs, until the last stop is expected to be no longer than this.
    pub live: Option<Duration>,
    /// What tells written pages.
    pub track: Track,
    /// Image of the same tree that the new one builds upon.
    pub parent: Option<PathBuf>,
}

/// What became of the tree that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It goes on.
    Running,
    /// It was ended.
    Gone,
    /// It stands still as before: its root was stopped when it was saved, and still is.
    Frozen,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How long the tree stood still.
    pub pause: Duration,
    /// The longest stop before that, to have memory watched; `None` when there was none.
    pub stops: Option<Duration>,
    /// How often memory was copied while the tree ran.
    pub rounds: u32,
    /// The whole run.
    pub total: Duration,
    /// Bytes of memory that were saved.
    pub memory_bytes: u64,
    /// Those of them that are as in the parent.
    pub inherited_bytes: u64,
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// Threads of all processes.
    pub tasks: u32,
    /// Processes.
    pub processes: u32,
    /// State of the source now.
    pub source: Source,
    /// Path of the image, `-` for standard output.
    pub image: String,
    /// Each phase and its time.
    pub phases: Vec<(&'static str, Duration)>,
    /// What will be different after a restore.
    pub warnings: Vec<String>,
}

/// Saves the tree below `options.pid`.
///
/// Guarantee: until the image is complete the tree is only read. Whatever fails, and whenever meio dies, it goes on
/// as before; `kill` ends it only after the image is on disk under its name.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    save(options, report).map_err(|e| match signal::check_interrupted() {
        // What failed, failed because of that.
        Err(interrupted) => interrupted,
        // Whatever was asked of it last could not be answered.
        Ok(()) if e.refusals.is_empty() && matches!(e.kind, Kind::Other | Kind::Permission) && ended(options.pid) => {
            Error::new(Kind::NotFound, format!("process {} ended while it was being saved", options.pid)).help("nothing was saved")
        }
        Ok(()) => e,
    })
}

/// Whether a process has ended, waited for or not, or is about to: what is asked of it then is not permitted any more.
pub fn ended(pid: i32) -> bool {
    const PF_EXITING: u32 = 4;
    let gone = |s: stat::Stat| matches!(s.state, b'Z' | b'X') || s.flags & PF_EXITING != 0;
    read::parsed(pid, "stat", stat::parse).map_or_else(|e| e.kind == Kind::NotFound, gone)
}

fn save(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    let mut session = Session::begin(options, report)?;
    if options.live.is_some() {
        session.track(report)?;
    }
    let mut phases = std::mem::take(&mut session.phases);
    let parent = match &options.parent {
        Some(path) => {
            let open = |r: &mut dyn Report| Heritage::open(path, options.pid, &session.birth, &options.output, r);
            Some(phase(report, &mut phases, "parent", open)?)
        }
        None => None,
    };
    session.phases = phases;
    let then = if options.kill { Then::Kill } else { Then::LetGo };
    Ok(session.image(&options.output, parent, then, report)?.outcome)
}

/// What becomes of a tree whose image is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It goes on as soon as it has been read.
    LetGo,
    /// It is ended.
    Kill,
    /// It stands still.
    Hold,
}

/// A tree that one image or several are made of.
struct Session<'o> {
    options: &'o Options,
    begun: Instant,
    phases: Vec<(&'static str, Duration)>,
    /// Inodes of the sockets whose connections are locked while it stands still.
    network: HashSet<u64>,
    recall: Recall,
    /// Which tree it is.
    birth: Birth,
    tracking: Option<Tracking>,
    /// How long a stop took lately but for the memory.
    base: Duration,
    /// What becomes of packets that come while it stands still.
    manner: Manner,
    /// Memory that may come later is left out of the next image, and not copied while the tree runs.
    leave: bool,
    /// Whether locks stay from one image to the next, and those that did.
    lasting: Option<Option<Locks>>,
    /// Where those find room who make one image after the other, and bytes of memory that were copied last.
    staging: Option<copy::Staging>,
    copied: Option<u64>,
    /// Told whenever the tree stands still and is locked, before anything of it is looked at.
    stands: Option<Stands<'o>>,
    /// Somebody who comes later is to have a copy of everything.
    based: bool,
}

/// See [`Session::stands`].
type Stands<'o> = Box<dyn FnMut() -> Result<Option<Vec<Heard>>> + 'o>;

/// An image that was made.
struct Made {
    outcome: Outcome,
    id: [u8; 16],
    hash: image::Hash,
    birth: Birth,
    /// Pids, those of zombies excepted.
    processes: Vec<i32>,
    /// The tree, when it was to be held.
    held: Option<Standstill>,
    /// What was left out.
    rest: Rest,
    /// What somebody is to have who comes later, when that was wanted.
    base: Option<Base>,
}

/// A tree that stands still after its image was made.
struct Standstill {
    since: Instant,
    frozen: Frozen,
    captured: tree::Captured,
    locks: Locks,
}

impl<'o> Session<'o> {
    /// Looks at everything that could stand in the way, and touches nothing.
    fn begin(options: &'o Options, report: &mut dyn Report) -> Result<Self> {
        let begun = Instant::now();
        let mut phases = Vec::new();
        signal::catch();
        let seen = phase(report, &mut phases, "check", |_| preflight(options.pid, &options.decisions))?;
        // What passes by itself may have passed when the tree stands still.
        if !seen.refusals.iter().all(|r| r.transient) {
            let refused = Error::refused(&format!("cannot dump process {}", options.pid), seen.refusals);
            // A slip in a decision looks like a decision that was not heeded.
            return Err(if seen.unused.is_empty() {
                refused
            } else {
                refused.help(format!("nothing was changed; {}", seen.unused.join("; ")))
            });
        }
        crate::sys::workers::start()?;
        crate::sys::ptrace::watch_for_killed().context(|| "starting threads")?;
        // Measured before the clock of the pause runs.
        if let Ok(stat) = read::parsed(options.pid, "stat", stat::parse) {
            let _ = crate::sys::clock::scheduler_offset_ns(stat.processor.max(0) as usize);
        }
        let (network, recall, base) = (seen.network, seen.recall, Duration::from_millis(5));
        let birth = Birth::of(options.pid)?;
        Ok(Session {
            options,
            begun,
            phases,
            network,
            recall,
            birth,
            tracking: None,
            base,
            manner: Manner::Hold,
            leave: false,
            lasting: None,
            staging: None,
            copied: None,
            stands: None,
            based: false,
        })
    }

    /// Has the memory of the tree watched from now on.
    fn track(&mut self, report: &mut dyn Report) -> Result<()> {
        let tracking = Tracking::new(self.options.track)?;
        report.note(&format!("written pages are told by: {}", tracking.tracker.name()));
        self.tracking = Some(tracking);
        self.recall.quiet = Quiet::new();
        Ok(())
    }

    /// Makes an image, which builds upon `parent` where there is one.
    fn image(&mut self, output: &Output, mut parent: Option<Heritage>, then: Then, report: &mut dyn Report) -> Result<Made> {
        let options = self.options;
        let mut phases = std::mem::take(&mut self.phases);
        let (target, image) = match output {
            Output::Path(path) => (Target::file(path)?, path.display().to_string()),
            Output::Stdout => (Target::Stream(File::from(nix::unistd::dup(std::io::stdout())?)), "-".to_owned()),
            Output::Pipe(pipe) => (Target::Stream(pipe.try_clone()?), "-".to_owned()),
        };
        let mut id = [0u8; 16];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut id)?;
        let mut rounds = None;
        // What has changed in the moment since the last one is copied in the stop as fast as it is found while the tree runs.
        let little = self.stands.is_some() && self.copied.is_some_and(|copied| copied <= LITTLE);
        if let Some(tracking) = self.tracking.as_mut().filter(|t| !self.leave && !little && !t.tracker.still()) {
            let allowed = (options.live.unwrap_or(MAX_PAUSE), self.base);
            let copied =
                phase(report, &mut phases, "rounds", |report| copy_rounds(options, (tracking, &mut self.recall), &target, allowed, report));
            rounds = Some(copied.inspect_err(|_| tracking.lost())?);
        }
        let expected = match rounds {
            Some(rounds) => rounds.expected(),
            None if little => 2 * LITTLE,
            None if self.leave => 0,
            None => tree::extent(options.pid).1,
        };
        let (dedup, mut room) = phase(report, &mut phases, "room", |_| {
            target.reserve(copy::image_bytes(expected));
            let key = parent.as_ref().and_then(|p| p.inherited.as_ref()).map_or(&id, Inherited::id);
            let dedup = Dedup::with_room(key, expected / image::PAGE as u64);
            Ok::<_, Error>((dedup, Room::prepare(&target, expected, then != Then::LetGo, self.staging.take())?))
        })?;
        if self.tracking.is_none() && then == Then::LetGo {
            self.recall.glance = Glance::at(&processes(options.pid));
        }
        signal::check_interrupted()?;

        let Still { stopped, frozen, mut captured, locks, urgent } = self.hold_still(report, &mut phases)?;
        // What takes long leaves room for others.
        let mut urgent = (captured.bytes <= SHORT).then_some(urgent);
        let glance = std::mem::take(&mut captured.capture.recall.glance);
        let rest = if self.leave { Rest::of(&mut captured) } else { Rest::default() };
        self.base = stopped.elapsed();
        let mut birth = self.birth.clone();
        birth.note(captured.capture.sources.iter().map(|source| &source.file))?;
        if let Some(parent) = &mut parent {
            parent.settle(&birth, &captured.tree.objects);
        }
        captured.capture.notes.iter().for_each(|note| report.note(note));
        let mut held = Some(frozen);
        let mut locks = Some(locks);
        let mut opened = None;
        let mut pause = None;
        let mut late = false;
        let write =
            Write { options, target: &target, captured: &captured, id, dedup: &dedup, birth: birth.clone(), parent: parent.as_ref() };
        let written = phase(report, &mut phases, "memory", |report| {
            write.run(self.tracking.as_ref(), &mut room, report, || {
                late |= aio::moved(&captured.capture.rings);
                if then == Then::LetGo {
                    if let Some(a) = held.take() {
                        Frozen::release(a)
                    }
                    opened = locks.as_mut().map(Locks::open);
                    pause = Some(stopped.elapsed());
                    urgent = None;
                    if let Some(locks) = locks.take_if(|_| self.lasting.is_none()) {
                        locks.let_go();
                    }
                }
                glance.end();
            })
        });
        drop(urgent);
        let summary = match written {
            Ok(summary) => summary,
            Err(e) => {
                drop(held);
                return Err(e);
            }
        };
        if let Some(opened) = opened.transpose()?.filter(|o| o.packets > 0) {
            report.note(&format!("packets that waited: {}; that found no room: {}", opened.packets, opened.lost));
        }
        if late {
            return Err(Error::other("asynchronous I/O was under way and has ended while the tree was being saved").help("try again"));
        }
        let staging = room.keep();
        phase(report, &mut phases, "flush", |_| target.commit())?;
        let laid = self.tracking.as_ref().map_or(0, |t| Laid::bytes(&t.wanted));
        let memory_bytes = captured.bytes + laid + rest.bytes();
        let inherited_bytes = summary.pages.parent * image::PAGE as u64;
        if let (Some(lasting), Then::LetGo) = (&mut self.lasting, then) {
            *lasting = locks.take();
            self.staging = staging;
            self.copied = Some(memory_bytes.saturating_sub(inherited_bytes));
        }
        let mut standing = None;
        let source = match held.take() {
            Some(frozen) if then == Then::Hold => {
                standing = Some((frozen, locks.take().unwrap_or_default()));
                Source::Frozen
            }
            Some(frozen) => {
                kill(frozen, &captured, &mut locks.take().unwrap_or_default(), &Owner::image(&id))?;
                Source::Gone
            }
            None if matches!(captured.tree.processes.first().map(|root| &root.state), Some(State::Stopped(_))) => Source::Frozen,
            None => Source::Running,
        };
        self.recall = std::mem::take(&mut captured.capture.recall);
        self.network.extend(&captured.capture.network);
        if rounds.is_some_and(|r| r.end == End::Restless) {
            report.note("memory is written about as fast as it can be copied: the last stop took what was left");
        }
        let outcome = Outcome {
            pause: pause.unwrap_or_else(|| stopped.elapsed()),
            stops: rounds.map(|r| r.stop).filter(|s| !s.is_zero()),
            rounds: rounds.map_or(0, |r| r.count),
            total: self.begun.elapsed(),
            memory_bytes,
            inherited_bytes,
            image_bytes: summary.bytes,
            tasks: captured.tree.processes.iter().map(|p| p.threads.len().max(1) as u32).sum(),
            processes: captured.tree.processes.len() as u32,
            source,
            image,
            phases,
            warnings: std::mem::take(&mut captured.warnings),
        };
        let processes = captured.tree.processes.iter().filter(|p| !p.threads.is_empty()).map(|p| p.pid).collect();
        let base = match self.tracking.as_ref().filter(|_| std::mem::take(&mut self.based) && then == Then::LetGo) {
            Some(tracking) => {
                let objects = captured.capture.sources.iter().map(|s| s.file.try_clone()).collect::<std::io::Result<_>>()?;
                let root = captured.tree.processes.first().map_or(options.pid, |root| root.pid);
                let manifest = write::manifest(root, options.capsule.clone(), birth.clone());
                let numbers = &captured.numbers;
                let name = |pid| numbers.translate(pid);
                let tree = std::mem::take(&mut captured.tree);
                Some(Base::of((manifest, tree), (id, summary.hash), tracking, objects, (options.level, name)))
            }
            None => None,
        };
        let held = standing.map(|(frozen, locks)| Standstill { since: stopped, frozen, captured, locks });
        Ok(Made { outcome, id, hash: summary.hash, birth, processes, held, rest, base })
    }
}

/// Ends a frozen tree. Nothing of it runs again: it is killed while it is held. Nor do the connections that are kept say a
/// word, and from now on nothing answers for them.
fn kill(mut frozen: Frozen, captured: &tree::Captured, locks: &mut Locks, owner: &Owner) -> Result<()> {
    let processes: Vec<i32> = frozen.processes.iter().filter(|p| !p.threads.is_empty()).map(|p| p.pid).collect();
    // What is broken off ends like the connections of any program that ends.
    let broken_off = captured.tree.decisions.tcp == Choice::Close;
    if broken_off {
        locks.open()?;
    }
    let end = || -> Result<()> {
        if !broken_off {
            locks.keep(owner)?;
        }
        tcp::silence(&captured.tree, &captured.capture)?;
        processes.iter().try_for_each(|&pid| {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
                .or_else(|e| if e == nix::errno::Errno::ESRCH { Ok(()) } else { Err(e) })
                .context(|| format!("ending process {pid}"))
        })
    };
    // A connection that is silent is no use to a tree that lives: one follows the other also when meio is killed.
    if let Err(e) = apart::run(0, end).context(|| "ending the tree").and_then(|done| done) {
        locks.take_back(owner);
        return Err(e);
    }
    locks.cut_off(&processes);
    // Children first: the init of a pid namespace ends only when all others in it have been waited for.
    for process in frozen.processes.drain(..).rev() {
        for thread in process.threads.iter().rev() {
            // Reaps the tracer's share; the real parent still gets its own notice.
            while !matches!(crate::sys::ptrace::wait(thread.tid), Ok(crate::sys::ptrace::Status::Ended(_)) | Err(_)) {}
        }
    }
    Ok(())
}

/// A tree that was only looked at.
pub struct Look {
    /// What an image would hold, but for what only a stopped task can tell.
    pub tree: Tree,
    /// What stands in the way of a dump.
    pub refusals: Vec<Refusal>,
    /// The descriptors among that.
    pub lost: Vec<Lost>,
    /// Decisions that concerned nothing, each a sentence.
    pub unused: Vec<String>,
    /// Inodes of the sockets that have to do with the network.
    pub network: HashSet<u64>,
    /// What needs not be found out again.
    pub recall: Recall,
}

/// What an image of the tree below `pid` would say of where and of what it is made.
pub fn manifest(pid: i32, capsule: Option<String>) -> Result<Manifest> {
    Ok(write::manifest(pid, capsule, Birth::of(pid)?))
}

/// How many processes the tree below `pid` has, and about how many bytes of memory of its own; it may be running.
pub fn extent(pid: i32) -> (usize, u64) {
    tree::extent(pid)
}

/// The processes of the tree below `pid`, parents before children; it may be running.
fn processes(pid: i32) -> Vec<i32> {
    let mut pids = vec![pid];
    let mut next = 0;
    while next < pids.len() {
        pids.extend(read::children(pids[next]).unwrap_or_default());
        next += 1;
    }
    pids
}

/// Everything in the tree below `pid` that stands in the way of a dump, found without stopping it.
pub fn preflight(pid: i32, decisions: &Decisions) -> Result<Look> {
    let own = std::process::id() as i32;
    let stat = read::parsed(pid, "stat", stat::parse)?;
    if stat.is_kernel_thread() {
        return Err(Error::new(Kind::Unsupported, format!("process {pid} is a kernel thread")).help("choose a process of a program"));
    }
    let mut ancestor = own;
    while ancestor > 0 {
        if ancestor == pid {
            let what = if pid == own { "meio itself" } else { "an ancestor of this meio" };
            return Err(Error::new(Kind::Unsupported, format!("process {pid} is {what}"))
                .help("start meio from outside of the tree, for example from another terminal"));
        }
        ancestor = read::parsed(ancestor, "stat", stat::parse).map_or(0, |s| s.ppid);
    }
    if matches!(stat.state, b'Z' | b'X') {
        return Err(Error::new(Kind::NotFound, format!("process {pid} has ended already (zombie)"))
            .help(format!("its parent {} has not waited for it", stat.ppid)));
    }
    let pids = processes(pid);
    let mut capture = Capture { decisions: decisions.clone().into(), ..Capture::default() };
    for &pid in &pids {
        let tracer = read::parsed(pid, "status", status::parse).map_or(0, |s| s.tracer_pid);
        if tracer != 0 {
            capture.refuse(pid, "process", format!("it is being traced by process {tracer}"), "end the debugger or tracer first");
        }
        if arch::is_32_bit(&read::read(pid, "auxv").unwrap_or_default()) {
            capture.refuse(pid, "process", "it is a 32-bit program", "only 64-bit programs are supported");
        }
    }
    // Of a tree that is traced or foreign there is nothing more to see.
    let mut processes = Vec::new();
    if capture.refusals.is_empty() {
        let network = |e: Error, capture: &Capture| match e.kind {
            Kind::Permission if !capture.network.is_empty() => e.help("connections need CAP_NET_ADMIN: run meio as root"),
            _ => e,
        };
        processes = tree::survey(&pids, &mut capture).map_err(|e| network(e, &capture))?;
    }
    let tree = tree::gather(processes, &mut capture);
    capture.settle(&tree);
    Ok(Look {
        tree,
        refusals: capture.refusals,
        lost: capture.lost,
        unused: capture.decisions.unused(),
        network: capture.network,
        recall: capture.recall,
    })
}
