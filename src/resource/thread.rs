//! One task: registers, vector state, interrupted system call, per-thread pointers.

use super::attributes::{Modes, TaskAttributes, refuse_task};
use super::sched::{self, Sched};
use super::{capture::Capture, credentials::Credentials, seccomp::Seccomp};
use crate::error::{Context, Error, Result};
use crate::sys::arch::{self, Registers};
use crate::sys::proc::{read, status};
use crate::sys::{memory, ptrace, task};
use crate::tracee::inject::{ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS};
use crate::tracee::stub::{Script, Stub};
use crate::tracee::volley::{Answer, Answers, Question, Volley};
use crate::tracee::{Held, wait_time};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// A system call with a relative time-out that was under way. The kernel keeps
/// the deadline to itself (`restart_block`), so it is saved as the time left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// The call's number; known even where the registers say `restart_syscall`.
    pub number: u64,
    /// Time left in nanoseconds; `None` when it waits without limit.
    pub remaining_ns: Option<u64>,
}

/// One thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// Thread id in the tree's pid namespace.
    pub tid: i32,
    /// Name, at most 15 bytes (prctl(2) `PR_SET_NAME`).
    #[serde(with = "crate::image::bytes")]
    pub comm: Vec<u8>,
    /// General registers at the stop.
    pub registers: Registers,
    /// The XSAVE area as `PTRACE_GETREGSET NT_X86_XSTATE` returns it.
    #[serde(with = "crate::image::bytes")]
    pub xstate: Vec<u8>,
    /// The interrupted call, when it must be armed anew.
    pub waiting: Option<Waiting>,
    /// Blocked signals, bit n-1 for signal n.
    pub sigmask: u64,
    /// Signals pending for this thread: raw `siginfo_t`, 128 bytes each.
    pub pending: Vec<serde_bytes_vec::Bytes>,
    /// Alternate signal stack (sigaltstack(2)): address, flags, size.
    pub altstack: (u64, u32, u64),
    /// `set_tid_address(2)` pointer.
    pub clear_child_tid: u64,
    /// `set_robust_list(2)` head and length.
    pub robust_list: (u64, u64),
    /// rseq(2) registration: address, size, signature, flags.
    pub rseq: Option<(u64, u32, u32, u32)>,
    /// Identity and capabilities.
    pub credentials: Credentials,
    /// Scheduling.
    pub sched: Sched,
    /// Signal sent when the parent dies (prctl(2) `PR_SET_PDEATHSIG`), 0 for none.
    pub pdeathsig: i32,
    /// What confines it.
    #[serde(default, skip_serializing_if = "Seccomp::is_off")]
    pub seccomp: Seccomp,
    /// Its numbers in the pid namespaces that are nested in the tree's own, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inner: Vec<i32>,
    /// Index into [`crate::resource::Tree::cgroups`], when it is in other groups than its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroups: Option<u32>,
    /// Switches of its own.
    #[serde(default, skip_serializing_if = "TaskAttributes::is_default")]
    pub attributes: TaskAttributes,
}

/// Byte strings inside lists, saved as CBOR byte strings.
pub mod serde_bytes_vec {
    use serde::{Deserialize, Serialize};
    /// A byte string.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct Bytes(#[serde(with = "crate::image::bytes")] pub Vec<u8>);
}

/// Those of [`Thread::questions`] that no kernel refuses.
const OWN: usize = 5;

/// Signals that it would have by now but for us. To be stopped, a restored task needs no signal.
fn deferred(held: &Held) -> impl Iterator<Item = Vec<u8>> {
    held.deferred.iter().filter(|info| info[..4] != libc::SIGSTOP.to_ne_bytes()).cloned()
}

impl Thread {
    /// Its number as it sees it itself.
    pub fn own_number(&self) -> i32 {
        self.inner.last().copied().unwrap_or(self.tid)
    }

    /// All its numbers as clone3(2) takes them (`set_tid`): the innermost pid namespace first.
    pub fn numbers(&self) -> Vec<i32> {
        self.inner.iter().rev().copied().chain([self.tid]).collect()
    }

    /// Everything of a stopped task that ptrace(2) and /proc tell without its help.
    pub fn capture(held: &mut Held, capture: &mut Capture) -> Result<Self> {
        let status = read::parsed_task(held.pid, held.tid, "status", status::parse)?;
        refuse_task(held.pid, held.tid, &status, capture);
        let meaningless = Volley::meaningless(status.sig_cgt, status.sig_blk | held.sigmask);
        held.hush = status.ns_pid.last().copied().zip(meaningless);
        let waiting = wait_time::remaining(held, &mut capture.recall.deadlines)?;
        let unblocked = (status.sig_pnd | status.shd_pnd) & !status.sig_blk;
        let waiting = settle_call(held, waiting, unblocked != 0 || !held.deferred.is_empty());
        Ok(Thread {
            tid: held.tid,
            comm: status.name.clone(),
            registers: held.registers,
            xstate: ptrace::xstate(held.tid)?,
            waiting,
            sigmask: held.sigmask,
            pending: deferred(held).chain(ptrace::pending(held.tid, false)?).map(serde_bytes_vec::Bytes).collect(),
            altstack: (0, 0, 0),
            clear_child_tid: 0,
            robust_list: task::robust_list(held.tid)?,
            rseq: ptrace::rseq(held.tid)?,
            credentials: Credentials::from_status(&status),
            sched: Sched::capture(held.tid)?,
            pdeathsig: 0,
            seccomp: Seccomp { mode: status.seccomp, filters: Vec::new() },
            inner: Vec::new(),
            cgroups: None,
            attributes: TaskAttributes::capture(held.pid, held.tid, &status, capture)?,
        })
    }

    /// The calls that tell what only the task itself knows; its memory policy only where `policy` says so.
    pub fn questions(policy: bool) -> Vec<Question> {
        let prctl = |option: i32| Question::new(libc::SYS_prctl, [option as u64, 0, 0, 0, 0, 0]);
        let mut questions = vec![
            Question::new(libc::SYS_sigaltstack, [0; 6]).leaving(1, 24),
            // Without CONFIG_CHECKPOINT_RESTORE the pointer stays unknown and a joiner would wait for ever.
            prctl(libc::PR_GET_TID_ADDRESS).leaving(1, 8),
            prctl(libc::PR_GET_PDEATHSIG).leaving(1, 4),
            prctl(libc::PR_GET_SECUREBITS),
            sched::SLACK,
        ];
        questions.extend(Modes::questions(policy));
        questions
    }

    /// Takes the answers to [`Thread::questions`].
    pub fn answers(&mut self, policy: bool, answers: &mut Answers) -> Result<()> {
        let mut own = [const { Answer { returned: 0, left: Vec::new() } }; OWN];
        for (answer, question) in own.iter_mut().zip(Self::questions(policy)) {
            *answer = answers.next()?;
            answer.must().context(|| format!("asking task {} (system call {})", self.tid, question.number()))?;
        }
        let [altstack, tid_address, pdeathsig, securebits, slack] = own;
        let word = |i: usize| u64::from_le_bytes(altstack.get(i));
        self.altstack = (word(0), word(8) as u32, word(16));
        self.clear_child_tid = u64::from_le_bytes(tid_address.get(0));
        self.pdeathsig = i32::from_le_bytes(pdeathsig.get(0));
        self.credentials.securebits = securebits.returned as u32;
        self.sched.timer_slack_ns = slack.returned as u64;
        self.attributes.modes = Some(Modes::answers(policy, answers)?);
        Ok(())
    }
}

impl Thread {
    /// Makes an interrupted call begin anew where the task may not have it restarted. A warning when it loses time by that.
    pub fn keep_clear_of_restart(&mut self, held: &mut Held) -> Option<String> {
        let waiting = self.waiting.as_ref();
        let registers = super::seccomp::restart(held, waiting.map_or(held.registers.orig_rax, |w| w.number))?;
        held.registers = registers;
        self.registers = registers;
        let limited = self.waiting.take().is_some_and(|w| w.remaining_ns.is_some());
        limited.then(|| format!("task {}: what it waits for begins anew: its seccomp filter forbids restart_syscall", self.tid))
    }
}

/// Brings the registers of an interrupted task into the form in which they go on as if nothing had been, here and
/// after a restore. What is left of a limited wait is returned when it must be armed anew there.
fn settle_call(held: &mut Held, waiting: Option<Waiting>, signal_waits: bool) -> Option<Waiting> {
    let regs = &mut held.registers;
    let number = regs.orig_rax as i64;
    match regs.rax as i64 {
        ERESTART_RESTARTBLOCK => return waiting,
        // These fail with EINTR at every ptrace stop (signal(7), "never restarted"). When a signal is about to be
        // delivered, EINTR is the truth.
        e if e == -i64::from(libc::EINTR) && number >= 0 && !signal_waits => {
            if let (libc::SYS_epoll_wait | libc::SYS_epoll_pwait, Some(ns)) = (number, waiting.as_ref().and_then(|w| w.remaining_ns)) {
                regs.r10 = ns.div_ceil(1_000_000);
            }
            regs.rip -= 2;
            regs.rax = regs.orig_rax;
            regs.orig_rax = u64::MAX;
        }
        _ => leave_rseq(held),
    }
    None
}

/// A task that was stopped inside a restartable sequence goes on at the sequence's abort handler, as the kernel would
/// have it (rseq(2)): any injected call would otherwise hide the interruption from it.
fn leave_rseq(held: &mut Held) {
    let Ok(Some((area, ..))) = ptrace::rseq(held.tid) else { return };
    let Ok(sequence) = memory::read_u64(held.pid, area + 8) else { return };
    let word = |at: u64| memory::read_u64(held.pid, at).unwrap_or(0);
    if sequence != 0 {
        let (start, length, abort) = (word(sequence + 8), word(sequence + 16), word(sequence + 24));
        if held.registers.rip.wrapping_sub(start) < length {
            held.registers.rip = abort;
        }
    }
}

impl Thread {
    /// Sets what a task keeps for itself. Its memory is in place already.
    pub fn tell(&self, script: &mut Script<'_>) -> Result<()> {
        let comm = script.data(&[self.comm.as_slice(), &[0]].concat());
        script.call("prctl PR_SET_NAME", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, comm, 0, 0, 0])?;
        script.call("set_tid_address", libc::SYS_set_tid_address, &[self.clear_child_tid])?;
        if self.robust_list.0 != 0 {
            script.call("set_robust_list", libc::SYS_set_robust_list, &[self.robust_list.0, self.robust_list.1])?;
        }
        if let Some((area, size, signature, _)) = self.rseq {
            script.call("rseq", libc::SYS_rseq, &[area, u64::from(size), 0, u64::from(signature)])?;
        }
        let (address, flags, size) = self.altstack;
        const SS_ONSTACK: u32 = 1;
        let words = [address, u64::from(flags & !SS_ONSTACK), size].map(u64::to_le_bytes).concat();
        let at = script.data(&words);
        script.call("sigaltstack", libc::SYS_sigaltstack, &[at, 0])
    }

    /// Comes after the identity, which resets it.
    pub fn tell_last(&self, script: &mut Script<'_>) -> Result<()> {
        script.call("prctl PR_SET_PDEATHSIG", libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64, self.pdeathsig as u64, 0, 0, 0])
    }

    /// Arms an interrupted call with the time that was left, and gives the task its final registers and mask. It must
    /// be stopped inside signal handling afterwards, from where the kernel restarts interrupted calls.
    pub fn enter_wait(&self, stub: &Stub) -> Result<Option<Registers>> {
        let Some(waiting) = &self.waiting else { return Ok(None) };
        let Some(ns) = waiting.remaining_ns else {
            // Without a limit there is nothing to arm: the call is made again from its start.
            return Ok(Some(Registers { rax: ERESTARTNOHAND as u64, orig_rax: waiting.number, ..self.registers }));
        };
        let r = &self.registers;
        let mut args = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
        let time = [ns / 1_000_000_000, ns % 1_000_000_000].map(u64::to_le_bytes).concat();
        match waiting.number as i64 {
            libc::SYS_poll => args[2] = ns.div_ceil(1_000_000),
            libc::SYS_nanosleep => args[0] = stub.argument(),
            libc::SYS_clock_nanosleep => args[2] = stub.argument(),
            _ => args[3] = stub.argument(),
        }
        let answer = stub.enter(waiting.number, args, &time)?;
        let registers = match answer {
            ERESTART_RESTARTBLOCK | ERESTARTSYS | ERESTARTNOHAND | ERESTARTNOINTR => {
                Registers { rax: answer as u64, orig_rax: waiting.number, ..self.registers }
            }
            // What it waited for is there already.
            answer => Registers { rax: answer as u64, orig_rax: u64::MAX, ..self.registers },
        };
        Ok(Some(registers))
    }

    /// Gives a task its vector state, or `other`, when it has gone on already.
    pub fn set_vectors(&self, tid: i32, other: Option<&[u8]>) -> Result<()> {
        let saved = other.unwrap_or(&self.xstate);
        let set = match ptrace::set_xstate(tid, saved) {
            // Another processor's area has another length.
            Err(Errno::EFAULT | Errno::EINVAL) => {
                let area = arch::fit_xstate(saved, ptrace::xstate(tid)?.len()).ok_or_else(|| {
                    let text = format!("the vector state of task {} is laid out as another processor has it", self.tid);
                    Error::image(text).help("restore it on a machine with the same processor features")
                })?;
                ptrace::set_xstate(tid, &area)
            }
            set => set,
        };
        set.context(|| format!("setting the vector state of task {}", self.tid))
    }

    /// Gives a task its final registers, vector state and mask; others than were saved where it has gone on already.
    pub fn finish(&self, tid: i32, registers: Option<Registers>, xstate: Option<&[u8]>) -> Result<()> {
        self.set_vectors(tid, xstate)?;
        ptrace::set_sigmask(tid, self.sigmask).context(|| format!("setting the signal mask of task {}", self.tid))?;
        ptrace::set_registers(tid, &registers.unwrap_or(self.registers)).context(|| format!("setting the registers of task {}", self.tid))
    }
}
