//! Lets the stopped tasks of a process tell what only they know: one by one what concerns the whole process, all threads
//! together what concerns each of them.

mod flight;

use crate::error::{Error, Kind, Result};
use crate::resource::aio;
use crate::resource::capture::Capture;
use crate::resource::descriptor::{Descriptor, FileKind};
use crate::resource::keyring;
use crate::resource::numa;
use crate::resource::process::Process;
use crate::resource::sched;
use crate::resource::seccomp;
use crate::resource::signals::Signals;
use crate::resource::system_v;
use crate::resource::thread::Thread;
use crate::resource::timers::Timers;
use crate::sys::proc::maps::Vma;
use crate::sys::proc::{read, stat, status, timers};
use crate::sys::task::Pinned;
use crate::tracee::Held;
use crate::tracee::foothold::Foothold;
use crate::tracee::freeze;
use crate::tracee::inject::{Injector, volley};
use crate::tracee::volley::{Answer, Answers, Question};
pub use flight::Asked;
use std::collections::HashSet;

/// Completes what was captured of a process and its threads.
pub fn ask(
    frozen: &mut freeze::Process,
    vmas: &[Vma],
    saved: &mut Process,
    threads: &mut [Thread],
    capture: &mut Capture,
    warnings: &mut Vec<String>,
) -> Result<()> {
    match prepare(frozen, vmas, saved, threads, capture, warnings)? {
        Some(prepared) => ask_in_turn(frozen, vmas, (saved, threads), prepared, capture, warnings),
        None => Ok(()),
    }
}

/// Where tasks are asked, and which signals their process has caught or ignores.
type Prepared = (Foothold, u64);

/// What comes before the first question. `None` when there is nothing to ask.
fn prepare(
    frozen: &freeze::Process,
    vmas: &[Vma],
    saved: &mut Process,
    threads: &mut [Thread],
    capture: &mut Capture,
    warnings: &mut Vec<String>,
) -> Result<Option<Prepared>> {
    let pid = frozen.pid;
    let status = read::parsed(pid, "status", status::parse)?;
    let caught = status.sig_cgt | status.sig_ign;
    if !has_hidden_flags(saved, capture)
        && capture.system_v.sets(pid).is_empty()
        && capture.recall.quiet.as_mut().is_some_and(|quiet| quiet.answer(saved, threads, caught))
    {
        saved.signals.pending = Signals::pending(pid)?;
        threads.iter_mut().for_each(|thread| thread.sched.timer_slack_ns = sched::slack(thread.tid));
        frozen.threads.iter().try_for_each(super::rounds::settle)?;
        return Ok(None);
    }
    let foothold = Foothold::find(pid, vmas, frozen.threads[0].registers.rsp, &mut capture.recall.footholds)
        .ok_or_else(|| Error::other(format!("process {pid} holds no system call instruction")))?;
    if foothold.trampoline.is_none() {
        warnings.push(format!("process {pid} has no signal trampoline: it was not protected against a sudden death of meio"));
    }
    Ok(Some((foothold, caught)))
}

fn ask_in_turn(
    frozen: &mut freeze::Process,
    vmas: &[Vma],
    (saved, threads): (&mut Process, &mut [Thread]),
    (foothold, caught): Prepared,
    capture: &mut Capture,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let pid = frozen.pid;
    let stat = read::parsed(pid, "stat", stat::parse)?;
    {
        let _pinned = Pinned::to(stat.processor.max(0) as usize);
        leader(&mut frozen.threads[0], &mut threads[0], (&foothold, vmas), (saved, caught), capture)?;
    }
    // Where many questions are as dear as one, nothing is looked up to spare one.
    let at_once = frozen.threads.iter().skip(1).all(|held| volley(held, &foothold).is_some());
    let plain = || saved.memory.as_ref().and_then(|m| m.mappings.first()).is_some_and(|m| m.policy.is_none());
    let alike = !at_once && numa::are_alike(pid, threads.iter().map(|t| t.tid), plain());
    let size = Injector::short_size(threads.iter().map(|t| t.xstate.len()).max().unwrap_or(0));
    let mut tasks: Vec<(&mut Held, &mut Thread)> = frozen.threads.iter_mut().zip(threads.iter_mut()).skip(1).collect();
    let places = foothold.places(tasks.len(), size);
    // One for which there is no such place is asked alone, at a place that is surely dead.
    let (alone, mut together): (Vec<_>, Vec<_>) =
        tasks.drain(..).partition(|(held, _)| places.is_empty() || foothold.on_stack(held.registers.rsp));
    for (held, thread) in alone {
        let mut run = Injector::begin(held, &foothold, call(thread))?;
        thread.answers(!alike, &mut run.ask(&Thread::questions(!alike))?)?;
        run.end()?;
    }
    for group in together.chunks_mut(places.len().max(1)) {
        chorus(group, &foothold, (&places, size), !alike)?;
    }
    saved.attributes.take_modes(threads.iter_mut().map(|t| &mut t.attributes), alike);
    for held in &frozen.threads {
        let (warning, note) = seccomp::safety(held, foothold.trampoline.unwrap_or(0));
        warnings.extend(warning);
        capture.notes.extend(note);
    }
    if let Some(quiet) = &mut capture.recall.quiet {
        quiet.note(saved, threads, caught);
    }
    Ok(())
}

/// Whether a descriptor of a process is one whose `FD_CLOEXEC` only the process itself can tell: TIOCGPTPEER leaves
/// `O_CLOEXEC` among the flags of the file itself, and fdinfo shows it for every descriptor.
fn has_hidden_flags(saved: &Process, capture: &Capture) -> bool {
    saved.descriptors.iter().any(|d| d.cloexec && is_terminal(d, capture))
}

fn is_terminal(descriptor: &Descriptor, capture: &Capture) -> bool {
    matches!(capture.files.get(descriptor.file as usize).map(|f| &f.kind), Some(FileKind::Terminal(_)))
}

/// The system call that a thread waits in, when it is known.
fn call(thread: &Thread) -> Option<u64> {
    thread.waiting.as_ref().map(|w| w.number)
}

fn leader(
    held: &mut Held,
    thread: &mut Thread,
    (foothold, vmas): (&Foothold, &[Vma]),
    (saved, caught): (&mut Process, u64),
    capture: &mut Capture,
) -> Result<()> {
    let asking = Asking::of(held.pid, vmas, saved, caught, capture)?;
    let mut run = Injector::begin(held, foothold, call(thread))?;
    let answers = run.ask(&asking.questions)?;
    asking.take(answers, &mut run, (thread, saved), capture)?;
    run.end()
}

/// Questions to the first thread of a process: its own, and those about the process.
struct Asking {
    questions: Vec<Question>,
    listed: Vec<timers::Timer>,
    /// Descriptors whose flags only it knows.
    hidden: Vec<usize>,
    caught: u64,
    /// Mappings that may have a policy of their own.
    suspects: HashSet<u64>,
}

impl Asking {
    fn of(pid: i32, vmas: &[Vma], saved: &Process, caught: u64, capture: &Capture) -> Result<Asking> {
        let listed = match read::parsed(pid, "timers", timers::parse) {
            Err(e) if e.kind == Kind::NotFound => Vec::new(), // a kernel without CONFIG_CHECKPOINT_RESTORE
            listed => listed?,
        };
        let hidden: Vec<usize> =
            (0..saved.descriptors.len()).filter(|&n| saved.descriptors[n].cloexec && is_terminal(&saved.descriptors[n], capture)).collect();
        let mut questions = Thread::questions(true);
        questions.extend(Process::questions());
        let flags = |&n: &usize| Question::new(libc::SYS_fcntl, [saved.descriptors[n].fd as u64, libc::F_GETFD as u64, 0, 0, 0, 0]);
        questions.extend(hidden.iter().map(flags));
        questions.extend(keyring::questions());
        questions.extend(Signals::questions(caught));
        questions.extend(Timers::questions(&listed));
        Ok(Asking { questions, listed, hidden, caught, suspects: numa::suspects(pid, vmas) })
    }

    fn take(
        self,
        mut answers: Answers,
        run: &mut Injector<'_>,
        (thread, saved): (&mut Thread, &mut Process),
        capture: &mut Capture,
    ) -> Result<()> {
        let Asking { listed, hidden, caught, suspects, .. } = self;
        let pid = run.pid();
        thread.answers(true, &mut answers)?;
        saved.answers(&mut answers)?;
        for mapping in saved.memory.iter_mut().flat_map(|m| &mut m.mappings).filter(|m| suspects.contains(&m.start)) {
            mapping.policy = numa::ask(run, mapping.start)?;
        }
        for n in hidden {
            saved.descriptors[n].cloexec = answers.next()?.must()? & i64::from(libc::FD_CLOEXEC) != 0;
        }
        let keyrings = [answers.next()?, answers.next()?];
        keyring::capture(pid, thread.credentials.uid[0], keyrings, run, capture)?;
        saved.signals = Signals::answers(caught, Signals::pending(pid)?, &mut answers)?;
        saved.timers = Timers::answers(&listed, &mut answers)?;
        saved.undo = system_v::probe(run, pid, capture.system_v.sets(pid))?;
        let mappings = saved.memory.as_ref().map_or(&[][..], |m| &m.mappings);
        saved.rings = aio::capture(run, pid, mappings, capture)?;
        Ok(())
    }
}

/// Asks threads together, all questions in one go or step by step: each step is started for all before anyone is waited for, so
/// that meio sleeps and wakes once a step and not once a thread. Each has a frame of its own to heal by.
fn chorus(group: &mut [(&mut Held, &mut Thread)], foothold: &Foothold, (places, size): (&[u64], u64), policy: bool) -> Result<()> {
    let mut threads = Vec::with_capacity(group.len());
    let mut runs = Vec::with_capacity(group.len());
    // Of the places those at the end, down to the lowest.
    let places = &places[places.len().saturating_sub(group.len())..];
    for ((held, thread), &place) in group.iter_mut().zip(places) {
        runs.push(Injector::begin_short(held, foothold, call(thread), place, size)?);
        threads.push(thread);
    }
    let questions = Thread::questions(policy);
    let answers = if runs.iter().all(|run| run.can_fire(&questions)) {
        runs.iter_mut().try_for_each(|run| run.fire(&questions))?;
        runs.iter_mut().map(|run| run.land(&questions)).collect::<Result<_>>()?
    } else {
        step_by_step(&mut runs, &questions)?
    };
    for (thread, answers) in threads.into_iter().zip(answers) {
        thread.answers(policy, &mut Answers::of(answers))?;
    }
    runs.iter_mut().try_for_each(Injector::leave)?;
    runs.into_iter().rev().try_for_each(Injector::give_back)
}

fn step_by_step(runs: &mut [Injector<'_>], questions: &[Question]) -> Result<Vec<Vec<Answer>>> {
    let mut answers = vec![Vec::with_capacity(questions.len()); runs.len()];
    for question in questions {
        runs.iter_mut().try_for_each(|run| run.start(question.number(), question.args(run.out())))?;
        runs.iter_mut().try_for_each(Injector::enter)?;
        for (run, answers) in runs.iter_mut().zip(&mut answers) {
            let returned = run.collect()?;
            answers.push(run.answer(question, returned)?);
        }
    }
    Ok(answers)
}
