//! Whether the tree does anything: the processor time of its processes, as the kernel counts it.

use super::state::Guarantee;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// What a stop costs each task itself: it is woken, and goes to sleep again.
const STOP: Duration = Duration::from_micros(30);
/// Where output waits, nothing that anybody knows of is lost with what a tree does that hardly runs: less than one part of so many.
const HARDLY: u32 = 100;
/// How often a tree that did hardly anything is looked at.
const OFTEN: Duration = Duration::from_millis(50);

/// The processor time of a tree since its last epoch began.
pub struct Pulse {
    guarantee: Guarantee,
    processes: Vec<i32>,
    clocks: Vec<ClockId>,
    tasks: u32,
    begun: Instant,
    before: Option<Duration>,
    looked: Instant,
    idle: bool,
}

impl Pulse {
    /// Of a tree that is to be watched with this guarantee.
    pub fn new(guarantee: Guarantee) -> Pulse {
        let now = Instant::now();
        Pulse { guarantee, processes: Vec::new(), clocks: Vec::new(), tasks: 0, begun: now, before: None, looked: now, idle: false }
    }

    /// An epoch begins: whether the tree did hardly anything since the one before.
    pub fn begin(&mut self) -> bool {
        self.idle = self.is_idle();
        (self.begun, self.looked, self.before) = (Instant::now(), Instant::now(), self.time());
        self.idle
    }

    /// What the epoch has shown: the processes, and how many tasks they have.
    pub fn note(&mut self, processes: &[i32], tasks: u32) {
        self.tasks = tasks;
        if self.processes != processes {
            self.processes = processes.to_vec();
            self.clocks = processes.iter().filter_map(|&pid| ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).ok()).collect();
            // Whoever has just been born is about to do something.
            self.before = None;
        }
    }

    /// Whether it does something after all, once.
    pub fn quickens(&mut self) -> bool {
        if !self.idle || self.looked.elapsed() < OFTEN {
            return false;
        }
        self.looked = Instant::now();
        self.idle = self.is_idle();
        !self.idle
    }

    fn is_idle(&self) -> bool {
        let (Some(before), Some(now)) = (self.before, self.time()) else { return false };
        let hardly = if self.guarantee == Guarantee::Hold { self.begun.elapsed() / HARDLY } else { Duration::ZERO };
        now.saturating_sub(before) <= STOP * self.tasks + hardly
    }

    /// Of all processes; `None` when one of them has ended.
    fn time(&self) -> Option<Duration> {
        let all: Result<Vec<Duration>, _> = self.clocks.iter().map(|&clock| clock_gettime(clock).map(Duration::from)).collect();
        all.ok().filter(|all| !all.is_empty() && all.len() == self.processes.len()).map(|all| all.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};

    #[test]
    fn who_sleeps_is_idle_until_it_runs() {
        let busy =
            "import time, sys\nprint(flush = True)\nsys.stdin.readline()\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass";
        let mut child = Command::new("python3").args(["-ISc", busy]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        child.stdout.take().expect("a pipe").read_exact(&mut [0]).expect("it is ready");
        let sleeps = |state: char| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it lives");
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(state))
        };
        while !sleeps('S') {
            std::thread::sleep(OFTEN);
        }
        for guarantee in [Guarantee::Hold, Guarantee::Hot] {
            let mut pulse = Pulse::new(guarantee);
            assert!(!pulse.begin(), "nothing is known yet");
            pulse.note(&[child.id() as i32], 1);
            assert!(!pulse.begin(), "it is new");
            std::thread::sleep(OFTEN * 2);
            assert!(pulse.begin() && !pulse.quickens());
        }
        let mut pulse = Pulse::new(Guarantee::Hot);
        pulse.note(&[child.id() as i32], 1);
        let _ = pulse.begin();
        assert!(pulse.begin());
        drop(child.stdin.take());
        let begun = Instant::now();
        while !pulse.quickens() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(OFTEN / 5);
        }
        assert!(!pulse.quickens(), "once");
        assert!(!pulse.begin());
        child.kill().and_then(|()| child.wait()).expect("it ends");
        assert!(!pulse.begin(), "it has ended");
    }
}
