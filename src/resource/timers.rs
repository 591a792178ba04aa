//! Interval timers and POSIX timers.

use crate::error::{Context, Result};
use crate::sys::proc;
use crate::tracee::stub::Script;
use crate::tracee::volley::{Answers, Question};
use serde::{Deserialize, Serialize};

/// One POSIX timer, as timer_create(2) made it and timer_gettime(2) shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosixTimer {
    /// Timer id.
    pub id: i32,
    /// Clock id.
    pub clock: i32,
    /// `SIGEV_*`, possibly with `SIGEV_THREAD_ID`.
    pub notify: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// Thread that is notified, with `SIGEV_THREAD_ID`.
    pub tid: i32,
    /// Interval in nanoseconds.
    pub interval_ns: u64,
    /// Time left in nanoseconds; 0 when disarmed.
    pub remaining_ns: u64,
    /// Overruns counted so far.
    pub overrun: i32,
}

/// The timers of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timers {
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`: (interval, remaining) in microseconds.
    pub interval: [(u64, u64); 3],
    /// POSIX timers.
    pub posix: Vec<PosixTimer>,
}

impl Timers {
    /// The calls that tell the timers. `listed` is the parsed `/proc/PID/timers`.
    pub fn questions(listed: &[proc::timers::Timer]) -> Vec<Question> {
        let interval = |which| Question::new(libc::SYS_getitimer, [which, 0, 0, 0, 0, 0]).leaving(1, 32);
        let mut questions: Vec<Question> = (0..3).map(interval).collect();
        for t in listed {
            questions.push(Question::new(libc::SYS_timer_gettime, [t.id as u64, 0, 0, 0, 0, 0]).leaving(1, 32));
            questions.push(Question::new(libc::SYS_timer_getoverrun, [t.id as u64, 0, 0, 0, 0, 0]));
        }
        questions
    }

    /// Takes the answers.
    pub fn answers(listed: &[proc::timers::Timer], answers: &mut Answers) -> Result<Self> {
        let mut timers = Timers::default();
        for timer in &mut timers.interval {
            let answer = answers.next()?;
            answer.must().context(|| "asking for an interval timer")?;
            let [interval_s, interval_us, value_s, value_us] = words(answer.get(0));
            *timer = (interval_s * 1_000_000 + interval_us, value_s * 1_000_000 + value_us);
        }
        for t in listed {
            let answer = answers.next()?;
            answer.must().context(|| format!("asking for timer {}", t.id))?;
            let [interval_s, interval_ns, value_s, value_ns] = words(answer.get(0));
            timers.posix.push(PosixTimer {
                id: t.id,
                clock: t.clock,
                notify: t.sigev_notify(),
                signal: t.signal,
                value: t.value,
                tid: t.target,
                interval_ns: interval_s * 1_000_000_000 + interval_ns,
                remaining_ns: value_s * 1_000_000_000 + value_ns,
                overrun: answers.next()?.returned.max(0) as i32,
            });
        }
        Ok(timers)
    }
}

fn words(raw: [u8; 32]) -> [u64; 4] {
    std::array::from_fn(|i| u64::from_le_bytes(raw[i * 8..i * 8 + 8].try_into().unwrap_or_default()))
}

const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;

impl Timers {
    /// Makes the POSIX timers with their old ids. `chosen` says that the kernel can be told the id (Linux 6.15);
    /// else ids are used up until the right one comes. `own` turns the number of a thread into the one that the process
    /// itself sees.
    pub fn create(&self, script: &mut Script<'_>, chosen: bool, own: impl Fn(i32) -> i32) -> Result<()> {
        let mut timers: Vec<&PosixTimer> = self.posix.iter().collect();
        timers.sort_by_key(|t| t.id);
        if chosen && !timers.is_empty() {
            script.call("prctl PR_TIMER_CREATE_RESTORE_IDS", libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0])?;
        }
        let mut next = 0;
        for t in &timers {
            while !chosen && next < t.id {
                let at = script.data(&next.to_le_bytes());
                script.expect("timer_create", 0, libc::SYS_timer_create, &[libc::CLOCK_MONOTONIC as u64, 0, at])?;
                script.call("timer_delete", libc::SYS_timer_delete, &[next as u64])?;
                next += 1;
            }
            next = t.id + 1;
            let mut event = [0u8; 64];
            event[..8].copy_from_slice(&t.value.to_le_bytes());
            event[8..12].copy_from_slice(&t.signal.to_le_bytes());
            event[12..16].copy_from_slice(&t.notify.to_le_bytes());
            event[16..20].copy_from_slice(&own(t.tid).to_le_bytes());
            let event = script.data(&event);
            let id = script.data(&t.id.to_le_bytes());
            script.call("timer_create", libc::SYS_timer_create, &[t.clock as u64, event, id])?;
        }
        if chosen && !timers.is_empty() {
            script.call("prctl PR_TIMER_CREATE_RESTORE_IDS", libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0])?;
        }
        Ok(())
    }

    /// Starts everything with the time that was left. Comes last.
    pub fn arm(&self, script: &mut Script<'_>) -> Result<()> {
        for (which, &(interval, value)) in self.interval.iter().enumerate().filter(|(_, t)| **t != (0, 0)) {
            const MICRO: u64 = 1_000_000;
            // A timer that has just expired starts its next round when its signal is taken.
            let value = if value == 0 { interval } else { value };
            let at = script.data(&[interval / MICRO, interval % MICRO, value / MICRO, value % MICRO].map(u64::to_le_bytes).concat());
            script.call("setitimer", libc::SYS_setitimer, &[which as u64, at, 0])?;
        }
        for t in self.posix.iter().filter(|t| t.remaining_ns != 0 || t.interval_ns != 0) {
            const NANO: u64 = 1_000_000_000;
            let remaining = if t.remaining_ns == 0 { t.interval_ns } else { t.remaining_ns };
            let words = [t.interval_ns / NANO, t.interval_ns % NANO, remaining / NANO, remaining % NANO];
            let at = script.data(&words.map(u64::to_le_bytes).concat());
            script.call("timer_settime", libc::SYS_timer_settime, &[t.id as u64, 0, at, 0])?;
        }
        Ok(())
    }

    /// Whether this kernel lets a process choose the ids of its timers.
    pub fn ids_can_be_chosen() -> bool {
        crate::sys::feature::timer_ids_can_be_chosen()
    }
}
