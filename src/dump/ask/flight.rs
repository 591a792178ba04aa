//! All threads of a process asked in one go, while meio looks at the next process from outside: what is waited for mostly is that
//! they get a processor.

use super::{Asking, Prepared, ask_in_turn, call, prepare};
use crate::error::Result;
use crate::resource::capture::Capture;
use crate::resource::process::Process;
use crate::resource::thread::Thread;
use crate::sys::proc::maps::Vma;
use crate::tracee::freeze;
use crate::tracee::inject::{Injector, volley};
use crate::tracee::volley::{Answer, Answers, Question};

/// A process, and what it tells as soon as it has.
pub enum Asked<'f> {
    /// Everything is known.
    Done(Box<Process>),
    /// It is being asked.
    Flying(Box<Flight<'f>>),
}

/// A process that is being asked.
pub struct Flight<'f> {
    saved: Process,
    threads: Vec<Thread>,
    leader: Injector<'f>,
    asking: Asking,
    answers: Vec<Option<Answer>>,
    /// Which of the questions to the first thread are under way.
    chosen: Vec<usize>,
    /// The other threads that are being asked.
    others: Vec<Injector<'f>>,
}

impl<'f> Asked<'f> {
    /// Begins to ask a process for what could not be seen of it. Where that is not possible in one go, it is asked here and now.
    pub fn begin(
        frozen: &'f mut freeze::Process,
        vmas: &[Vma],
        mut saved: Process,
        mut threads: Vec<Thread>,
        capture: &mut Capture,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let done = |saved: Process, threads| Ok(Asked::Done(Box::new(Process { threads, ..saved })));
        let Some(prepared) = prepare(frozen, vmas, &mut saved, &mut threads, capture, warnings)? else { return done(saved, threads) };
        if !at_once(frozen, &threads, &prepared) {
            ask_in_turn(frozen, vmas, (&mut saved, &mut threads), prepared, capture, warnings)?;
            return done(saved, threads);
        }
        let (foothold, caught) = prepared;
        let asking = Asking::of(frozen.pid, vmas, &saved, caught, capture)?;
        let size = size(&threads);
        let mut tasks = frozen.threads.iter_mut().zip(&threads);
        let Some((held, thread)) = tasks.next() else { return done(saved, threads) };
        let leader = Injector::begin(held, &foothold, call(thread))?;
        let mut others = Vec::with_capacity(threads.len());
        for ((held, thread), place) in tasks.zip(foothold.places(threads.len() - 1, size)) {
            others.push(Injector::begin_short(held, &foothold, call(thread), place, size)?);
        }
        let answers = vec![None; asking.questions.len()];
        let mut flight = Flight { saved, threads, leader, asking, answers, chosen: Vec::new(), others };
        flight.fire()?;
        let own = Thread::questions(true);
        flight.others.iter_mut().try_for_each(|run| run.fire(&own))?;
        Ok(Asked::Flying(Box::new(flight)))
    }
}

/// Whether all threads of a process can be asked together in one go.
fn at_once(frozen: &freeze::Process, threads: &[Thread], (foothold, _): &Prepared) -> bool {
    let others = &frozen.threads[1..];
    frozen.threads.iter().all(|held| volley(held, foothold).is_some_and(|v| v.room_for(&Thread::questions(true)) <= Injector::SHORT))
        && others.iter().all(|held| !foothold.on_stack(held.registers.rsp))
        && foothold.places(others.len(), size(threads)).len() == others.len()
}

fn size(threads: &[Thread]) -> u64 {
    Injector::short_size(threads.iter().map(|t| t.xstate.len()).max().unwrap_or(0))
}

impl Flight<'_> {
    fn together(&self) -> Vec<Question> {
        self.chosen.iter().map(|&n| self.asking.questions[n]).collect()
    }

    /// Sends the first thread on its way through what can be asked next.
    fn fire(&mut self) -> Result<()> {
        self.chosen = self.leader.choose(&self.asking.questions, &self.answers);
        let together = self.together();
        if together.is_empty() { Ok(()) } else { self.leader.fire(&together) }
    }

    /// Waits for all answers, and gives the process back.
    pub fn land(mut self, capture: &mut Capture) -> Result<Process> {
        if !self.chosen.is_empty() {
            let landed = self.leader.land(&self.together())?;
            landed.into_iter().zip(std::mem::take(&mut self.chosen)).for_each(|(answer, n)| self.answers[n] = Some(answer));
        }
        // The rest while the other threads are listened to.
        self.fire()?;
        let own = Thread::questions(true);
        for (run, thread) in self.others.iter_mut().zip(self.threads.iter_mut().skip(1)) {
            thread.answers(true, &mut Answers::of(run.land(&own)?))?;
        }
        let together = self.together();
        let Flight { mut saved, mut threads, mut leader, asking, mut answers, chosen, others } = self;
        others.into_iter().rev().try_for_each(Injector::give_back)?;
        if !chosen.is_empty() {
            leader.land(&together)?.into_iter().zip(chosen).for_each(|(answer, n)| answers[n] = Some(answer));
        }
        let answers = leader.ask_others(&asking.questions, answers)?;
        let caught = asking.caught;
        asking.take(answers, &mut leader, (&mut threads[0], &mut saved), capture)?;
        leader.end()?;
        saved.attributes.take_modes(threads.iter_mut().map(|t| &mut t.attributes), false);
        if let Some(quiet) = &mut capture.recall.quiet {
            quiet.note(&saved, &threads, caught);
        }
        Ok(Process { threads, ..saved })
    }
}
