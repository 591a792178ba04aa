//! Runs system calls in a stopped task, one by one, and gives everything back.
//!
//! A call is two stops (entry and exit), 15 µs on one CPU; what is merely asked needs a single one for many calls, where
//! there are instructions for that ([`super::volley`]). Nothing is mapped, no text is changed.
//! From the first changed register on, the task would heal itself if meio died: see [`super::foothold`].

use super::foothold::{Foothold, OUT, REGION};
use super::volley::{Answer, Answers, Question, Volley};
use super::{ALL_SIGNALS, Held};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::arch::{Registers, SignalFrame};
use crate::sys::memory;
use crate::sys::ptrace::{self, Status};
use nix::errno::Errno;

/// A task that is made to act. [`Injector::end`] gives it back.
pub struct Injector<'h> {
    held: &'h mut Held,
    armed: Registers,
    region: u64,
    saved: Vec<u8>,
    /// Bytes at the region's start that calls may use.
    usable: u64,
    volley: Option<Volley>,
    /// Stopped inside signal handling, the volley done.
    landed: bool,
    /// A volley is under way.
    flies: bool,
    /// The call that is under way, for messages.
    number: i64,
    given_back: bool,
}

/// What a thread needs at least to be asked together with others: so many bytes, the frame, its `ret`.
const SHORT_OUT: u64 = 2048;

/// Kernel error numbers that mean "restart this call" and never reach a program (include/linux/errno.h).
pub const ERESTARTSYS: i64 = -512;
/// See [`ERESTARTSYS`].
pub const ERESTARTNOINTR: i64 = -513;
/// See [`ERESTARTSYS`].
pub const ERESTARTNOHAND: i64 = -514;
/// See [`ERESTARTSYS`].
pub const ERESTART_RESTARTBLOCK: i64 = -516;

/// The registers with which an interrupted call is made again from its start.
pub fn restarted(regs: &Registers) -> Registers {
    let interrupted = regs.orig_rax as i64 >= 0;
    match regs.rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK if interrupted => {
            Registers { rip: regs.rip - 2, rax: regs.orig_rax, orig_rax: u64::MAX, ..*regs }
        }
        _ => *regs,
    }
}

/// How a task is asked many questions in one go, if it can be.
pub fn volley(held: &Held, foothold: &Foothold) -> Option<Volley> {
    // Under a filter each call is looked at before it is made; while a group stop lasts signals are told in other words.
    let can = foothold.trampoline.is_some() && held.confined.is_none() && held.group_stop.is_none();
    held.hush.filter(|_| can).zip(foothold.links).map(|(call, links)| Volley { links, syscall: foothold.syscall, call })
}

impl<'h> Injector<'h> {
    /// Bytes that calls may use in a short place.
    pub const SHORT: u64 = SHORT_OUT;

    /// Prepares a stopped task. `call` is the system call that it waits in, when that is known to be one.
    ///
    /// # Errors
    /// When the task has gone, or its stack leaves no room.
    pub fn begin(held: &'h mut Held, foothold: &Foothold, call: Option<u64>) -> Result<Self> {
        let region = foothold.region(held.pid, held.registers.rsp).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("no room on the stack of process {} to work with", held.pid))
                .help("try again a moment later: the program is deep in its stack just now")
        })?;
        Self::begin_at(held, foothold, call, (region, OUT, REGION))
    }

    /// Bytes that a thread needs to be asked together with others, given the size of its vector state.
    pub fn short_size(xstate: usize) -> u64 {
        (SHORT_OUT + SignalFrame::SIZE_WITHOUT_XSTATE + xstate as u64 + 64).next_multiple_of(64)
    }

    /// The same in a short place of `size` bytes at `region`, for few results.
    pub fn begin_short(held: &'h mut Held, foothold: &Foothold, call: Option<u64>, region: u64, size: u64) -> Result<Self> {
        Self::begin_at(held, foothold, call, (region, SHORT_OUT, size))
    }

    fn begin_at(held: &'h mut Held, foothold: &Foothold, call: Option<u64>, (region, out, size): (u64, u64, u64)) -> Result<Self> {
        let gone = |e: Errno| Error::from(e).context(format!("preparing task {}", held.tid));
        let mut saved = vec![0u8; size as usize];
        memory::read(held.pid, region, &mut saved).map_err(gone)?;
        let mut rsp = region + size - 64;
        if let Some(trampoline) = foothold.trampoline {
            let xstate = ptrace::xstate(held.tid).map_err(gone)?;
            let mut back = restarted(&held.registers);
            // rt_sigreturn(2) makes the kernel forget what restart_syscall(2) would go on with, which then fails
            // with EINTR: the call itself is made again instead.
            if back.rip != held.registers.rip && back.rax == libc::SYS_restart_syscall as u64 {
                back.rax = call.unwrap_or(back.rax);
            }
            let frame = SignalFrame::new(&back, held.sigmask, &xstate, trampoline);
            rsp = region + out;
            let bytes = frame.at(rsp);
            if out + bytes.len() as u64 > size {
                return Err(Error::other(format!("the vector state of task {} does not fit", held.tid)));
            }
            memory::write(held.pid, rsp, &bytes).map_err(gone)?;
        }
        let armed = Registers { rip: foothold.syscall, rsp, rax: libc::SYS_getpid as u64, orig_rax: u64::MAX, ..held.registers };
        // First the registers, then the mask: the frame restores both, the mask alone would stay changed.
        let first = match foothold.trampoline {
            // A filter that is in force again when meio dies must see nothing but the return.
            Some(trampoline) if held.confined.is_some() => Registers { rip: trampoline, rsp: rsp + 8, ..armed },
            _ => armed,
        };
        ptrace::set_registers(held.tid, &first).map_err(gone)?;
        let volley = volley(held, foothold);
        let but = volley.map_or(0, |v| 1 << (v.call.1 - 1));
        ptrace::set_sigmask(held.tid, ALL_SIGNALS & !but).map_err(gone)?;
        Ok(Injector { held, armed, region, saved, usable: out, volley, landed: false, flies: false, number: 0, given_back: false })
    }

    /// Runs one call. The kernel's answer, -errno on failure.
    pub fn call(&mut self, number: i64, args: [u64; 6]) -> Result<i64> {
        self.start(number, args)?;
        self.enter()?;
        self.collect()
    }

    fn doing(&self) -> String {
        format!("running system call {} in task {}", self.number, self.held.tid)
    }

    /// Sends the task on its way to one call. [`Injector::enter`] and [`Injector::collect`] must follow: many tasks
    /// that take each step together need far less time than one after the other.
    pub fn start(&mut self, number: i64, args: [u64; 6]) -> Result<()> {
        if let Some(confined) = &self.held.confined {
            self.held.exposed |= !confined.survives(number, &args, self.armed.rip + 2);
        }
        (self.number, self.landed) = (number, false);
        let regs = Registers {
            rax: number as u64,
            rdi: args[0],
            rsi: args[1],
            rdx: args[2],
            r10: args[3],
            r8: args[4],
            r9: args[5],
            ..self.armed
        };
        let tid = self.held.tid;
        let run = || ptrace::set_registers(tid, &regs).and_then(|()| ptrace::syscall(tid));
        run().context(|| self.doing())
    }

    /// Lets the task make the call that was started.
    pub fn enter(&mut self) -> Result<()> {
        let tid = self.held.tid;
        self.until(Status::Syscall).and_then(|()| Ok(ptrace::syscall(tid)?)).context(|| self.doing())
    }

    /// Waits for the answer of the call that was entered.
    pub fn collect(&mut self) -> Result<i64> {
        let tid = self.held.tid;
        self.until(Status::Syscall).and_then(|()| Ok(ptrace::registers(tid)?.rax as i64)).context(|| self.doing())
    }

    /// Like [`Injector::call`], with the kernel's refusal as an error.
    pub fn must(&mut self, number: i64, args: [u64; 6]) -> Result<i64> {
        match self.call(number, args)? {
            e @ -4095..0 => Err(Error::from(Errno::from_raw(-e as i32)).context(format!("system call {number} in task {}", self.held.tid))),
            value => Ok(value),
        }
    }

    /// Asks everything, in as few goes as possible.
    pub fn ask(&mut self, questions: &[Question]) -> Result<Answers> {
        self.ask_others(questions, vec![None; questions.len()])
    }

    /// Which of the questions that have no answer yet can be asked in the next go.
    pub fn choose(&self, questions: &[Question], answers: &[Option<Answer>]) -> Vec<usize> {
        let asked: Vec<bool> = answers.iter().map(Option::is_some).collect();
        self.volley.map_or(Vec::new(), |volley| volley.together(questions, &asked, self.usable))
    }

    /// Asks what has no answer yet.
    pub fn ask_others(&mut self, questions: &[Question], mut answers: Vec<Option<Answer>>) -> Result<Answers> {
        loop {
            let chosen = self.choose(questions, &answers);
            if chosen.is_empty() {
                break;
            }
            let together: Vec<Question> = chosen.iter().map(|&n| questions[n]).collect();
            self.fire(&together)?;
            self.land(&together)?.into_iter().zip(chosen).for_each(|(answer, n)| answers[n] = Some(answer));
        }
        for (question, answer) in questions.iter().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
            let returned = self.call(question.number(), question.args(self.region))?;
            *answer = Some(self.answer(question, returned)?);
        }
        Ok(Answers::of(answers.into_iter().flatten()))
    }

    /// What became of a question that was asked alone.
    pub fn answer(&self, question: &Question, returned: i64) -> Result<Answer> {
        let mut left = vec![0; question.room()];
        if !left.is_empty() {
            memory::read(self.held.pid, self.region, &mut left)?;
        }
        Ok(Answer { returned, left })
    }

    /// Whether all these questions can be asked in one go.
    pub fn can_fire(&self, questions: &[Question]) -> bool {
        self.volley.is_some_and(|v| v.together(questions, &vec![false; questions.len()], self.usable).len() == questions.len())
    }

    /// Sends the task on its way through all these calls. [`Injector::land`] must follow.
    pub fn fire(&mut self, questions: &[Question]) -> Result<()> {
        let Some(volley) = self.volley else { return Err(Error::other("calls cannot be strung together here")) };
        let laid = volley.lay(questions, self.region + self.usable);
        let [r10, r8, r9] = laid.fixed;
        // At the `ret` behind the call.
        let regs = Registers { rip: volley.syscall + 2, rsp: laid.words, rax: 0, r10, r8, r9, ..self.armed };
        let tid = self.held.tid;
        (self.number, self.landed) = (libc::SYS_tkill, false);
        let run = || -> std::result::Result<(), Errno> {
            memory::write(self.held.pid, laid.start, &laid.bytes)?;
            ptrace::set_registers(tid, &regs)?;
            ptrace::cont(tid, 0)
        };
        run().context(|| format!("asking task {tid}"))?;
        self.flies = true;
        Ok(())
    }

    /// Waits for the answers.
    pub fn land(&mut self, questions: &[Question]) -> Result<Vec<Answer>> {
        let Some(volley) = self.volley else { return Err(Error::other("calls cannot be strung together here")) };
        let tid = self.held.tid;
        self.flies = false;
        let mut run = || -> Result<Vec<Answer>> {
            loop {
                match ptrace::wait(tid)? {
                    Status::Signal(signal) if signal == volley.call.1 && self.arrived()? => break,
                    // All that can be blocked are: this one is for what it has just done.
                    Status::Signal(fault @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGTRAP)) => {
                        return Err(Error::other(format!("its instructions are not what they were: signal {fault}")));
                    }
                    Status::Signal(_) => self.held.defer()?,
                    Status::Ended(_) => return Err(Error::new(Kind::NotFound, format!("task {tid} was killed"))),
                    _ => {}
                }
                ptrace::cont(tid, 0)?;
            }
            self.landed = true;
            let mut bytes = vec![0; Volley::room(questions)];
            memory::read(self.held.pid, volley.lay(questions, self.region + self.usable).start, &mut bytes)?;
            Ok(Volley::answers(questions, &bytes))
        };
        run().context(|| format!("asking task {tid}"))
    }

    /// Whether the task has made the last call of a volley.
    fn arrived(&self) -> Result<bool> {
        let now = ptrace::registers(self.held.tid)?;
        Ok((now.rip, now.rsp) == (self.armed.rip + 2, self.armed.rsp))
    }

    /// Process that is made to act.
    pub fn pid(&self) -> i32 {
        self.held.pid
    }

    /// Its task.
    pub fn tid(&self) -> i32 {
        self.held.tid
    }

    /// Whether it was stopped by job control before.
    pub fn stopped(&self) -> bool {
        self.held.group_stop.is_some()
    }

    /// Whether it is under seccomp(2).
    pub fn confined(&self) -> bool {
        self.held.confined.is_some()
    }

    /// The registers with which calls are made.
    pub fn armed(&self) -> Registers {
        self.armed
    }

    /// Address of [`OUT`] bytes (fewer in a short place) that calls may use.
    pub fn out(&self) -> u64 {
        self.region
    }

    /// Writes arguments at `offset` of the scratch bytes.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        memory::write(self.held.pid, self.region + offset, bytes).map_err(Into::into)
    }

    /// Reads results at `offset` of the scratch bytes.
    pub fn get<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        memory::read(self.held.pid, self.region + offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Waits for a stop of this kind.
    fn until(&mut self, until: Status) -> Result<()> {
        let tid = self.held.tid;
        loop {
            match ptrace::wait(tid)? {
                status if status == until => return Ok(()),
                Status::GroupStop(_) if until == Status::Stop => return Ok(()),
                Status::Ended(_) => return Err(Error::new(Kind::NotFound, format!("task {tid} was killed"))),
                // SIGSTOP cannot be blocked. It is kept back and sent again at the end.
                Status::Signal(_) => self.held.defer()?,
                _ => {}
            }
            if until == Status::Syscall { ptrace::syscall(tid)? } else { ptrace::cont(tid, 0)? }
        }
    }

    /// Gives the task back exactly as it was taken, stopped where the kernel handles interrupted calls itself.
    pub fn end(mut self) -> Result<()> {
        self.leave()?;
        self.give_back()
    }

    /// Back to a stop inside signal handling first, still armed; only from there the kernel restarts calls.
    pub fn leave(&mut self) -> Result<()> {
        if self.landed {
            return Ok(());
        }
        let tid = self.held.tid;
        ptrace::interrupt(tid).and_then(|()| ptrace::cont(tid, 0)).context(|| format!("giving back task {tid}"))
    }

    /// What follows [`Injector::leave`].
    pub fn give_back(mut self) -> Result<()> {
        let tid = self.held.tid;
        let mut run = || -> Result<()> {
            if !self.landed {
                self.until(Status::Stop)?;
            }
            ptrace::set_sigmask(tid, self.held.sigmask)?;
            ptrace::set_registers(tid, &self.held.registers)?;
            self.given_back = true;
            memory::write(self.held.pid, self.region, &self.saved)?;
            Ok(())
        };
        run().context(|| format!("giving back task {tid}"))
    }
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        if self.given_back {
            return;
        }
        if self.flies {
            let _ = self.land(&[]);
        }
        // After an error between begin and end: the registers are what matters. The task may stand at the entry of an
        // injected call, which must not become the one that it was interrupted in.
        let registers = Registers { orig_rax: u64::MAX, ..restarted(&self.held.registers) };
        // When it has not stopped yet the mask cannot be set: then the registers stay armed, since the frame restores both.
        if ptrace::set_sigmask(self.held.tid, self.held.sigmask).is_ok() {
            let _ = ptrace::set_registers(self.held.tid, &registers);
        }
    }
}
