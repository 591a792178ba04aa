//! One process: its place in the tree and everything that its threads share.

use super::capture::Capture;
use super::{
    aio::Ring, attributes::ProcessAttributes, descriptor::Descriptor, limits::Limits, memory::AddressSpace, namespace::Places,
    path::FilePath, signals::Signals, system_v::Undo, thread::Thread, timers::Timers,
};
use crate::error::Result;
use crate::sys::proc::{read, stat, status};
use crate::tracee::stub::Script;
use crate::tracee::volley::{Answers, Question};
use serde::{Deserialize, Serialize};

/// Whether it runs, is stopped by job control, or has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Running or sleeping.
    #[default]
    Running,
    /// Stopped by this signal (`SIGSTOP`, `SIGTSTP`, …).
    Stopped(i32),
    /// Ended, not yet waited for; the raw status of wait(2).
    Zombie(i32),
}

/// Root, current directory and umask.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fs {
    /// Current directory.
    pub cwd: FilePath,
    /// The current directory has been removed.
    pub cwd_deleted: bool,
    /// Root directory, `/` unless chroot(2) was called.
    pub root: FilePath,
    /// File mode creation mask.
    pub umask: u32,
}

/// One process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Process id in the tree's pid namespace.
    pub pid: i32,
    /// Parent; 0 for the root of the tree.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Running, stopped or ended.
    pub state: State,
    /// Signal that its parent gets at its end (clone(2)), `SIGCHLD` as a rule.
    pub exit_signal: i32,
    /// Threads, the leader first. Empty for a zombie, save its leader's name.
    pub threads: Vec<Thread>,
    /// Name of a zombie; else the leader's.
    #[serde(with = "crate::image::bytes")]
    pub comm: Vec<u8>,
    /// Memory; `None` for a zombie.
    pub memory: Option<AddressSpace>,
    /// Directories.
    pub fs: Fs,
    /// Descriptor table.
    pub descriptors: Vec<Descriptor>,
    /// Dispositions and pending signals.
    pub signals: Signals,
    /// Interval and POSIX timers.
    pub timers: Timers,
    /// Resource limits.
    pub limits: Limits,
    /// personality(2).
    pub personality: u32,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: u32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: bool,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
    /// Its namespaces, and its numbers in nested pid namespaces.
    #[serde(default, skip_serializing_if = "Places::plain")]
    pub places: Places,
    /// Index into [`crate::resource::Tree::cgroups`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroups: Option<u32>,
    /// Other switches.
    #[serde(default, skip_serializing_if = "ProcessAttributes::is_default")]
    pub attributes: ProcessAttributes,
    /// What the kernel adds to System V semaphores when it ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Undo>,
    /// Contexts of asynchronous I/O.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rings: Vec<Ring>,
}

impl Process {
    /// A process whose threads are stopped, or a zombie. Memory, directories and descriptors are added by their own kinds.
    pub fn capture(pid: i32, ppid: i32, threads: &[Thread]) -> Result<Self> {
        let stat = read::parsed(pid, "stat", stat::parse)?;
        let ended = matches!(stat.state, b'Z' | b'X');
        let number = |name: &str, radix| -> Option<i64> {
            let text = read::read(pid, name).ok()?;
            i64::from_str_radix(std::str::from_utf8(&text).ok()?.trim(), radix).ok()
        };
        Ok(Process {
            pid,
            ppid,
            pgid: stat.pgrp,
            sid: stat.session,
            state: if ended { State::Zombie(stat.exit_code) } else { State::Running },
            exit_signal: stat.exit_signal,
            comm: threads.first().map_or(stat.comm, |t| t.comm.clone()),
            threads: Vec::new(),
            memory: None,
            fs: Fs::default(),
            descriptors: Vec::new(),
            signals: Signals::default(),
            timers: Timers::default(),
            limits: if ended { Limits::default() } else { Limits::capture(pid)? },
            personality: number("personality", 16).unwrap_or(0) as u32,
            dumpable: 0,
            subreaper: false,
            thp_disable: false,
            oom_score_adj: number("oom_score_adj", 10).unwrap_or(0) as i32,
            places: Places::default(),
            cgroups: None,
            attributes: if ended { ProcessAttributes::default() } else { ProcessAttributes::capture(pid, stat.session == pid) },
            undo: Vec::new(),
            rings: Vec::new(),
        })
    }

    /// The calls that tell what only the process itself knows.
    pub fn questions() -> Vec<Question> {
        let prctl = |option: i32| Question::new(libc::SYS_prctl, [option as u64, 0, 0, 0, 0, 0]);
        let mut questions = vec![
            prctl(libc::PR_GET_DUMPABLE),
            prctl(libc::PR_GET_CHILD_SUBREAPER).leaving(1, 4),
            prctl(libc::PR_GET_THP_DISABLE),
            Question::new(libc::SYS_brk, [0; 6]),
        ];
        questions.extend(ProcessAttributes::questions());
        questions
    }

    /// Takes the answers.
    pub fn answers(&mut self, answers: &mut Answers) -> Result<()> {
        self.dumpable = answers.next()?.must()? as u32;
        let subreaper = answers.next()?;
        subreaper.must()?;
        self.subreaper = i32::from_le_bytes(subreaper.get(0)) != 0;
        let thp = answers.next()?.must()? as u32;
        self.thp_disable = thp & 1 != 0;
        self.attributes.thp_flags = thp & !1;
        let brk = answers.next()?.must()? as u64;
        if let Some(memory) = &mut self.memory {
            memory.borders.brk = brk;
        }
        self.attributes.answers(answers)
    }
}

impl Fs {
    /// Directories and umask of a process.
    pub fn capture(pid: i32, capture: &mut Capture) -> Result<Self> {
        let status = read::parsed(pid, "status", status::parse)?;
        let mut path = |name: &str| -> Result<(FilePath, bool)> {
            let link = read::link(pid, name)?;
            match FilePath::from_link(&link) {
                (path, deleted) if path.is_absolute() => {
                    Ok((path, deleted && !capture.place(pid, &FilePath::from(link.as_slice())).exists()))
                }
                (link, _) => {
                    let reason = "it lies outside of the mounts that can be seen from here";
                    capture.refuse(pid, format!("{name} ({link})"), reason, "run meio in the mount namespace of the process");
                    Ok((link, false))
                }
            }
        };
        let (cwd, cwd_deleted) = path("cwd")?;
        let (root, _) = path("root")?;
        Ok(Fs { cwd, cwd_deleted, root, umask: status.umask.unwrap_or(0o22) })
    }
}

impl Fs {
    /// Puts a stub into its current directory while it may go everywhere: before it enters a user namespace.
    pub fn go_ahead(&self, script: &mut Script<'_>) -> Result<()> {
        let cwd = script.text(self.cwd.bytes());
        script.attempt("chdir", libc::SYS_chdir, &[cwd])
    }

    /// Puts a stub into its directories. Paths are those that meio sees.
    pub fn tell(&self, pid: i32, script: &mut Script<'_>) -> Result<()> {
        let there = |name: &str, path: &FilePath| read::link(pid, name).is_ok_and(|link| link == path.bytes());
        let arrived = there("cwd", &self.cwd) && there("root", &self.root);
        if !arrived {
            let cwd = script.text(self.cwd.bytes());
            script.call("chdir", libc::SYS_chdir, &[cwd])?;
        }
        if self.root.bytes() != b"/" && !arrived {
            let root = script.text(self.root.bytes());
            script.call("chroot", libc::SYS_chroot, &[root])?;
        }
        script.call("umask", libc::SYS_umask, &[u64::from(self.umask)])
    }
}

impl Process {
    /// Sets what the process itself must set: personality and a few flags.
    pub fn tell(&self, script: &mut Script<'_>) -> Result<()> {
        script.call("personality", libc::SYS_personality, &[u64::from(self.personality)])?;
        let subreaper = u64::from(self.subreaper);
        script.call("prctl PR_SET_CHILD_SUBREAPER", libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER as u64, subreaper, 0, 0, 0])?;
        if self.thp_disable && self.attributes.thp_flags == 0 {
            script.call("prctl PR_SET_THP_DISABLE", libc::SYS_prctl, &[libc::PR_SET_THP_DISABLE as u64, 1, 0, 0, 0])?;
        }
        Ok(())
    }

    /// Sets what is set from outside. Returns a warning for what is not permitted.
    pub fn apply(&self, pid: i32) -> Vec<String> {
        let mut warnings = self.limits.apply(pid, self.pid);
        warnings.extend(self.attributes.apply(pid, self.pid));
        let path = format!("/proc/{pid}/oom_score_adj");
        let now = std::fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok());
        if now != Some(self.oom_score_adj)
            && let Err(e) = std::fs::write(&path, self.oom_score_adj.to_string())
        {
            warnings.push(format!("process {}: oom_score_adj could not be set to {}: {e}", self.pid, self.oom_score_adj));
        }
        warnings
    }
}
