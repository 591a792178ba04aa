//! Scheduling of a task: policy, priority, nice value, affinity.

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
}
