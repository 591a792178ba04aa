//! Scheduling of a task: policy, priority, nice value, affinity.

use crate::error::{Context, Result};
use crate::sys::proc::read;
use crate::sys::task;
use crate::tracee::volley::Question;
use serde::{Deserialize, Serialize};

/// sched(7) attributes of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sched {
    /// `SCHED_OTHER`, `SCHED_FIFO`, … of sched_setattr(2).
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// Real-time priority, 0 to 99.
    pub priority: u32,
    /// Deadline class: runtime, deadline, period in nanoseconds.
    pub deadline: (u64, u64, u64),
    /// CPUs that it may use, as a bit mask, lowest CPU first.
    #[serde(with = "crate::image::bytes")]
    pub affinity: Vec<u8>,
    /// `PR_GET_TIMERSLACK` in nanoseconds.
    pub timer_slack_ns: u64,
    /// Clamped utilisation, `SCHED_FLAG_UTIL_CLAMP`: least and most of 1024; `None` is all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamp: Option<(u32, u32)>,
}

/// What is not clamped.
const WHOLE: (u32, u32) = (0, 1024);

impl Sched {
    /// Reads the attributes of a task, but for the slack of its timers.
    pub fn capture(tid: i32) -> Result<Self> {
        let attr = task::sched_attr(tid).context(|| format!("reading the scheduling of task {tid}"))?;
        Ok(Sched {
            policy: attr.policy,
            flags: attr.flags,
            nice: attr.nice,
            priority: attr.priority,
            deadline: (attr.runtime, attr.deadline, attr.period),
            affinity: task::affinity(tid).context(|| format!("reading the affinity of task {tid}"))?,
            timer_slack_ns: 0,
            clamp: Some((attr.util_min, attr.util_max)).filter(|&c| c != WHOLE && (c.1 != 0 || task::utilisation_is_clamped())),
        })
    }
}

/// The call that tells the slack of its timers to a task itself.
pub const SLACK: Question = Question::new(libc::SYS_prctl, [libc::PR_GET_TIMERSLACK as u64, 0, 0, 0, 0, 0]);

/// The same of a task that is not asked.
pub fn slack(tid: i32) -> u64 {
    let text = read::read(tid, "timerslack_ns").unwrap_or_default();
    std::str::from_utf8(&text).ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0)
}

impl Sched {
    /// Gives a task these attributes, from outside. What is not permitted is returned as a warning.
    pub fn apply(&self, tid: i32, name: i32) -> Option<String> {
        const SCHED_DEADLINE: u32 = 6;
        let attr = task::SchedAttr {
            size: 0,
            policy: self.policy,
            flags: self.flags,
            nice: self.nice,
            priority: self.priority,
            runtime: if self.policy == SCHED_DEADLINE { self.deadline.0 } else { 0 },
            deadline: if self.policy == SCHED_DEADLINE { self.deadline.1 } else { 0 },
            period: if self.policy == SCHED_DEADLINE { self.deadline.2 } else { 0 },
            ..task::SchedAttr::default()
        };
        // The stubs have that of meio.
        let now = Sched::capture(tid).ok().map(|now| Sched { timer_slack_ns: task::own_timer_slack(), ..now });
        if now.as_ref() == Some(self) {
            return None;
        }
        let warn = |what: &str, e: nix::errno::Errno| Some(format!("task {name}: its {what} could not be set: {e}"));
        if now.as_ref().is_none_or(|n| n.affinity != self.affinity)
            && let Err(e) = task::set_affinity(tid, &self.affinity)
        {
            return warn("CPU affinity", e);
        }
        if let Err(e) = task::set_sched_attr(tid, &attr) {
            return warn("scheduling", e);
        }
        // The policy brings a clamp of its own (sched_util_clamp_min_rt_default).
        if Sched::capture(tid).is_ok_and(|now| now.clamp != self.clamp) {
            const KEEP_ALL_AND_CLAMP: u64 = 0x18 | 0x60;
            let (util_min, util_max) = self.clamp.unwrap_or(WHOLE);
            let attr = task::SchedAttr { flags: KEEP_ALL_AND_CLAMP, util_min, util_max, ..Default::default() };
            if let Err(e) = task::set_sched_attr(tid, &attr) {
                return warn(&format!("utilisation clamp ({util_min} to {util_max})"), e);
            }
        }
        let _ = std::fs::write(format!("/proc/{tid}/timerslack_ns"), self.timer_slack_ns.to_string());
        None
    }
}
