//! What a process does with signals, and which ones wait for it.

use super::thread::serde_bytes_vec::Bytes;
use crate::error::{Context, Result};
use crate::sys::ptrace;
use crate::tracee::stub::{Script, Stub};
use crate::tracee::volley::{Answers, Question};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// The kernel's `struct kernel_sigaction` of one signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Handler address, or 0 (`SIG_DFL`) or 1 (`SIG_IGN`).
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// `sa_restorer`.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: u64,
}

/// Signals of a whole process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signals {
    /// Disposition of each signal that is not plainly `SIG_DFL`: (number, action).
    pub actions: Vec<(i32, Action)>,
    /// Signals pending for the process as a whole: raw `siginfo_t`.
    pub pending: Vec<Bytes>,
}

impl Signals {
    /// The signals whose dispositions may not be plainly default: those that `/proc/PID/status` calls caught or ignored, and
    /// `SIGCHLD`, whose flags matter even by default.
    fn of_interest(listed: u64) -> impl Iterator<Item = i32> {
        let listed = listed | 1 << (libc::SIGCHLD - 1);
        (1..=64).filter(move |s| listed >> (s - 1) & 1 != 0)
    }

    /// The calls that tell the dispositions of the signals that are `listed` as caught or ignored.
    pub fn questions(listed: u64) -> impl Iterator<Item = Question> {
        Self::of_interest(listed).map(|signal| Question::new(libc::SYS_rt_sigaction, [signal as u64, 0, 0, 8, 0, 0]).leaving(2, 32))
    }

    /// Takes the answers.
    pub fn answers(listed: u64, pending: Vec<Bytes>, answers: &mut Answers) -> Result<Self> {
        let mut actions = Vec::new();
        for signal in Self::of_interest(listed) {
            let answer = answers.next()?;
            answer.must().context(|| format!("asking what is done with signal {signal}"))?;
            let word = |i: usize| u64::from_le_bytes(answer.get(i * 8));
            let action = Action { handler: word(0), flags: word(1), restorer: word(2), mask: word(3) };
            if action != Action::default() {
                actions.push((signal, action));
            }
        }
        Ok(Signals { actions, pending })
    }

    /// The signals that wait for a stopped process as a whole.
    pub fn pending(pid: i32) -> Result<Vec<Bytes>> {
        Ok(ptrace::pending(pid, true)?.into_iter().map(Bytes).collect())
    }
}

impl Action {
    fn bytes(&self) -> Vec<u8> {
        [self.handler, self.flags, self.restorer, self.mask].map(u64::to_le_bytes).concat()
    }
}

impl Signals {
    /// Sets that of `SIGTRAP`. No script is run after that.
    pub fn tell_last(&self, stub: &Stub) -> Result<()> {
        let Some((signal, action)) = self.actions.iter().find(|(signal, _)| *signal == libc::SIGTRAP) else { return Ok(()) };
        match stub.call(libc::SYS_rt_sigaction as u64, [*signal as u64, stub.argument(), 0, 8, 0, 0], &action.bytes())? {
            0 => Ok(()),
            e => Err(Errno::from_raw(-e as i32)).context(|| format!("setting what process {} does with SIGTRAP", stub.pid)),
        }
    }

    /// Sets the dispositions of a stub, but for that of `SIGTRAP`, which no script leaves as it was.
    pub fn tell(&self, script: &mut Script<'_>) -> Result<()> {
        for &(signal, a) in self.actions.iter().filter(|(signal, _)| *signal != libc::SIGTRAP) {
            let at = script.data(&a.bytes());
            script.call("rt_sigaction", libc::SYS_rt_sigaction, &[signal as u64, at, 0, 8])?;
        }
        Ok(())
    }
}

/// Queues pending signals again, in a task whose signals are all blocked. Only a task itself may send what
/// the kernel or another process had sent (rt_sigqueueinfo(2)).
pub fn queue(script: &mut Script<'_>, pending: &[Bytes], pid: i32, thread: Option<i32>) -> Result<()> {
    for Bytes(info) in pending {
        let signal = info.get(..4).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap_or_default()));
        let at = script.data(info);
        match thread {
            Some(tid) => {
                script.call("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, &[pid as u64, tid as u64, u64::from(signal), at])?;
            }
            None => script.call("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &[pid as u64, u64::from(signal), at])?,
        }
    }
    Ok(())
}
