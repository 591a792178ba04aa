//! Capsules: programs with pids, IPC objects, host name and mounts of their own, known by a name.

pub mod network;
pub mod roster;

use crate::error::{Context, Error, Kind, Result};
use crate::sys::capsule::{Capsule, init_program, start};
use crate::sys::{file, ptrace, signal, task};
use network::Network;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use roster::{Entry, Roster};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the capsule; `None` for one after the program.
    pub name: Option<String>,
    /// Its network.
    pub network: Network,
    /// Return as soon as it runs.
    pub detach: bool,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// A capsule that runs, in the foreground of meio.
pub struct Running {
    /// Its place in the roster.
    pub entry: Entry,
    roster: Roster,
    terminal: Option<OwnedFd>,
    /// Modes of the terminal before.
    modes: Option<Vec<u8>>,
}

/// Starts a capsule.
pub fn run(options: &Options) -> Result<Running> {
    let Some(wanted) = options.command.first() else { return Err(Error::new(Kind::Usage, "no program is named")) };
    let program = find(wanted)?;
    let roster = Roster::open()?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => roster.free_name(&Path::new(wanted).file_name().unwrap_or(wanted).to_string_lossy())?,
    };
    roster.must_be_free(&name)?;
    options.network.check()?;
    let text = |s: &[u8]| CString::new(s).map_err(|_| Error::new(Kind::Usage, "an argument with a zero byte"));
    let arguments = options.command.iter().map(|a| text(a.as_bytes())).collect::<Result<_>>()?;
    let doing = || format!("starting the capsule {name}");
    let init = file::memfd(b"meio-init", libc::MFD_CLOEXEC).context(doing)?;
    std::io::Write::write_all(&mut File::from(init.try_clone()?), &init_program())?;
    let (gate, opener) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (reports, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let terminal = std::io::stdin().as_fd().try_clone_to_owned().ok().filter(|t| !options.detach && file::termios(t.as_fd()).is_ok());
    let in_front = terminal.as_ref().is_some_and(|t| tcgetpgrp(t) == Ok(getpgrp()));
    if !options.detach {
        signal::pass();
        signal::ignore_terminal_stops();
    }
    let capsule = Capsule {
        program: text(program.as_os_str().as_bytes())?,
        arguments,
        host: &name,
        network: options.network != Network::Host,
        detach: options.detach,
        terminal: terminal.as_ref().filter(|_| in_front).map(AsFd::as_fd),
        init: &init,
        gate: &gate,
        opener: &opener,
        report: &report,
    };
    let pid = start(&capsule).map_err(|e| match e {
        Errno::EPERM => Error::new(Kind::Permission, "may not make namespaces").help("run meio as root"),
        e => Error::from(e).context(doing()),
    })?;
    let modes = terminal.as_ref().and_then(|t| file::termios(t.as_fd()).ok());
    let begin = || -> Result<Entry> {
        options.network.connect(pid, &name)?;
        let entry = Entry::of(&name, pid)?;
        roster.enter(&entry)?;
        nix::unistd::write(&opener, &[1])?;
        drop(report);
        let mut said = Vec::new();
        File::from(reports).read_to_end(&mut said)?;
        if let &[step, a, b, c, d] = said.as_slice() {
            let _ = roster.leave(&entry);
            return Err(failed(step, Errno::from_raw(i32::from_le_bytes([a, b, c, d])), &program));
        }
        Ok(entry)
    };
    match begin() {
        Ok(entry) => Ok(Running { entry, roster, terminal: terminal.filter(|_| in_front), modes }),
        Err(e) => {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = waitpid(Pid::from_raw(pid), None);
            Running::take_back(terminal.as_ref().filter(|_| in_front), modes.as_deref());
            Err(e)
        }
    }
}

/// Why the program, or the capsule, did not start.
fn failed(step: u8, e: Errno, program: &Path) -> Error {
    let what = match step {
        b'x' => return Error::from(e).context(format!("cannot execute {}", program.display())),
        b'm' => "mounting /proc and /dev/shm",
        b'h' => "setting the host name",
        b's' => "starting its session",
        _ => "starting its first process",
    };
    Error::from(e).context(format!("making a capsule: {what}"))
}

/// The program as execve(2) wants it.
fn find(wanted: &OsString) -> Result<PathBuf> {
    let executable = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let missing = || Error::new(Kind::NotFound, format!("no such program: {}", wanted.to_string_lossy()));
    if wanted.as_bytes().contains(&b'/') {
        let path = PathBuf::from(wanted);
        return if path.exists() { Ok(path) } else { Err(missing()) };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|folder| folder.join(wanted)).find(|p| executable(p)).ok_or_else(missing)
}

impl Running {
    /// Serves until the capsule ends: its exit code. Signals to meio go to the program; when the program stops, so does meio.
    pub fn serve(self) -> Result<i32> {
        let pid = self.entry.pid;
        let pidfd = task::pidfd(pid).context(|| format!("watching process {pid}"))?;
        let code = loop {
            for passed in signal::passed() {
                let _ = Signal::try_from(passed).map(|signal| kill(Pid::from_raw(pid), signal));
            }
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut fds, PollTimeout::from(100u16)) {
                Ok(0) => self.follow_stop(),
                Ok(_) => match waitpid(Pid::from_raw(pid), None) {
                    Ok(WaitStatus::Exited(_, code)) => break code,
                    Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(e) => return Err(Error::from(e).context(format!("waiting for process {pid}"))),
                },
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        };
        Self::take_back(self.terminal.as_ref(), self.modes.as_deref());
        self.roster.leave(&self.entry)?;
        Ok(code)
    }

    /// How it has ended, if it has, also in the middle of a stop; to be asked of one that nobody serves. `None` as long as it runs.
    pub fn ended(&self) -> Option<i32> {
        let pid = Pid::from_raw(self.entry.pid);
        let told = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => ptrace::end_of(pid.as_raw()).ok_or(Errno::ECHILD).and_then(|status| WaitStatus::from_raw(pid, status)),
            told => told,
        };
        let code = match told {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            _ => return None,
        };
        let _ = self.roster.leave(&self.entry);
        Some(code)
    }

    /// Ends it, with everything in it.
    pub fn end(self) {
        let pid = Pid::from_raw(self.entry.pid);
        let _ = kill(pid, Signal::SIGKILL);
        while waitpid(pid, None) == Err(Errno::EINTR) {}
        let _ = self.roster.leave(&self.entry);
    }

    /// ^Z stops the program; its parent, the init, cannot stop. Meio gives the terminal back, stops, and goes on with it.
    fn follow_stop(&self) {
        let Some(terminal) = &self.terminal else { return };
        let Some(program) = program_of(self.entry.pid) else { return };
        let stat = crate::sys::proc::read::parsed(program, "stat", crate::sys::proc::stat::parse);
        if !stat.is_ok_and(|s| s.state == b'T') {
            return;
        }
        let modes = file::termios(terminal.as_fd()).ok();
        Self::take_back(Some(terminal), self.modes.as_deref());
        let _ = nix::sys::signal::raise(Signal::SIGSTOP);
        let group = nix::unistd::getpgid(Some(Pid::from_raw(program))).unwrap_or(Pid::from_raw(program));
        if tcgetpgrp(terminal) == Ok(getpgrp()) {
            let _ = modes.map(|modes| file::set_termios(terminal.as_fd(), &modes));
            let _ = tcsetpgrp(terminal, group);
        }
        let _ = kill(Pid::from_raw(-group.as_raw()), Signal::SIGCONT);
    }

    fn take_back(terminal: Option<&OwnedFd>, modes: Option<&[u8]>) {
        if let Some(terminal) = terminal {
            let _ = tcsetpgrp(terminal, getpgrp());
            let _ = modes.map(|modes| file::set_termios(terminal.as_fd(), modes));
        }
    }
}

/// The program of a capsule: number 2 in it.
fn program_of(init: i32) -> Option<i32> {
    use crate::sys::proc::{read, status};
    let is = |pid: &i32| read::parsed(*pid, "status", status::parse).is_ok_and(|s| s.ns_pid.last() == Some(&2));
    read::children(init).ok()?.into_iter().find(is)
}
