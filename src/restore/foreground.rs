//! A tree in the foreground: it gets this terminal, signals and the exit status pass through.

use super::terminal::Terminals;
use crate::error::{Context, Result};
use crate::resource::Tree;
use crate::sys::{file, signal, task};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// What meio keeps of its own terminal while the tree has it.
pub struct Session {
    terminal: Option<OwnedFd>,
    /// Modes of the terminal before the tree had it.
    modes: RefCell<Option<Vec<u8>>>,
    /// Modes that the tree wants.
    tree_modes: RefCell<Option<Vec<u8>>>,
    /// The tree is a job of this terminal's session, beside meio.
    job: bool,
    /// Who is in front: the root, or a program of the capsule whose init the root is, which cannot stop.
    front: i32,
    /// The terminal was taken, and is to be given back. A job in the background has not got it.
    taken: Cell<bool>,
}

impl Session {
    /// Prepares the terminal before the tree runs.
    pub fn begin(terminals: &Terminals, tree: &Tree, front: i32, detach: bool) -> Self {
        let mut session = Session { terminal: None, modes: None.into(), tree_modes: None.into(), job: false, front, taken: false.into() };
        if detach {
            return session;
        }
        signal::ignore_terminal_stops();
        session.terminal = std::io::stdin().as_fd().try_clone_to_owned().ok().filter(|t| file::termios(t.as_fd()).is_ok());
        let Some(terminal) = &session.terminal else { return session };
        if terminals.master.is_some() {
            let modes = file::termios(terminal.as_fd()).ok();
            if let Some(modes) = &modes {
                let _ = file::set_termios(terminal.as_fd(), &file::raw_modes(modes));
            }
            session.modes = modes.into();
            session.taken = true.into();
            return session;
        }
        session.tree_modes = terminals.outer_modes.clone().into();
        // The root leads a group in this session when its own session was outside of the tree.
        session.job = tree.processes.first().is_some_and(|p| p.sid != p.pid);
        session.take(front);
        session
    }

    /// Gives the terminal to the tree, when it is meio's to give: when meio is in front.
    fn take(&self, root: i32) {
        let Some(terminal) = &self.terminal else { return };
        if tcgetpgrp(terminal.as_fd()) != Ok(nix::unistd::getpgrp()) {
            return;
        }
        self.taken.set(true);
        *self.modes.borrow_mut() = file::termios(terminal.as_fd()).ok();
        if let Some(modes) = &*self.tree_modes.borrow() {
            let _ = file::set_termios(terminal.as_fd(), modes);
        }
        if self.job {
            let _ = tcsetpgrp(terminal.as_fd(), group_of(root));
        }
    }

    /// Takes the terminal back from the tree, when it has it.
    fn give_back(&self) {
        let Some(terminal) = &self.terminal else { return };
        if !self.taken.replace(false) {
            return;
        }
        *self.tree_modes.borrow_mut() = file::termios(terminal.as_fd()).ok();
        if self.job {
            let _ = tcsetpgrp(terminal.as_fd(), nix::unistd::getpgrp());
        }
        if let Some(modes) = &*self.modes.borrow() {
            let _ = file::set_termios(terminal.as_fd(), modes);
        }
    }

    /// Serves until the root ends, and tends to something else meanwhile; its status.
    pub fn serve(self, root: i32, mut terminals: Terminals, mut tend: impl FnMut()) -> Result<ExitStatus> {
        terminals.slave = None;
        let pidfd = task::pidfd(root).context(|| format!("watching process {root}"))?;
        let mut master = terminals.master.map(|m| File::from(OwnedFd::from(m)));
        let mut input = master.is_some();
        redraw(master.as_ref());
        let status = loop {
            self.pass_signals(root, master.as_ref());
            let stdin = std::io::stdin();
            let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            if let Some(m) = &master {
                fds.push(PollFd::new(m.as_fd(), PollFlags::POLLIN));
                if input {
                    fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
                }
            }
            match nix::poll::poll(&mut fds, PollTimeout::from(200u16)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty())).collect();
            drop(fds);
            if ready.get(1) == Some(&true) && !master.as_ref().is_some_and(|m| pump(m, &mut std::io::stdout())) {
                master = None;
            }
            if ready.get(2) == Some(&true)
                && let Some(m) = &master
            {
                let mut sink = m;
                input = pump(&File::from(stdin.as_fd().try_clone_to_owned()?), &mut sink);
            }
            if let Some(status) = self.reap(root)? {
                break status;
            }
            self.follow_stop(root);
            tend();
        };
        // What it wrote last.
        while let Some(m) = &master {
            let mut fds = [PollFd::new(m.as_fd(), PollFlags::POLLIN)];
            if nix::poll::poll(&mut fds, PollTimeout::from(20u16)).unwrap_or(0) == 0 || !pump(m, &mut std::io::stdout()) {
                break;
            }
        }
        self.end();
        Ok(status)
    }

    /// ^C and its kin to meio are meant for the tree.
    fn pass_signals(&self, root: i32, master: Option<&File>) {
        if let Some(caught) = signal::take()
            && let Ok(signal) = Signal::try_from(caught)
        {
            let _ = kill(Pid::from_raw(root), signal);
        }
        if signal::window_changed()
            && let (Some(m), Some(t)) = (master, &self.terminal)
            && let Ok(size) = file::window(t.as_fd())
        {
            let _ = file::set_window(m.as_fd(), size);
        }
    }

    /// The root's status once it has ended. When it stops, meio stops with it, and continues it afterwards.
    fn reap(&self, root: i32) -> Result<Option<ExitStatus>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(Pid::from_raw(root)), flags) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(ExitStatus::from_raw(code << 8))),
            Ok(WaitStatus::Signaled(_, signal, core)) => Ok(Some(ExitStatus::from_raw(signal as i32 | if core { 0x80 } else { 0 }))),
            Ok(WaitStatus::Stopped(..)) if self.job && self.terminal.is_some() => {
                self.suspend(root);
                Ok(None)
            }
            Ok(_) | Err(Errno::EINTR) => Ok(None),
            // Somebody else took the status (a pid namespace's parent is not us, say).
            Err(Errno::ECHILD) => Ok(Some(ExitStatus::from_raw(0))),
            Err(e) => Err(e.into()),
        }
    }

    /// Nobody tells meio that a program of a capsule has stopped.
    fn follow_stop(&self, root: i32) {
        use crate::sys::proc::{read, stat};
        let stopped = || read::parsed(self.front, "stat", stat::parse).is_ok_and(|s| s.state == b'T');
        if self.front != root && self.job && self.terminal.is_some() && stopped() {
            self.suspend(self.front);
        }
    }

    /// The job was stopped (^Z): give the terminal back and stop, too; go on together, in front or behind.
    fn suspend(&self, root: i32) {
        self.give_back();
        let _ = nix::sys::signal::raise(Signal::SIGSTOP);
        self.take(root);
        let _ = kill(Pid::from_raw(-group_of(root).as_raw()), Signal::SIGCONT);
    }

    /// Takes the terminal back for good.
    fn end(&self) {
        self.give_back();
        let _ = signal::set_handler(Signal::SIGTTOU, SigHandler::SigDfl);
    }
}

/// The process group of the root; once it has ended, the one that it led.
fn group_of(root: i32) -> Pid {
    let root = Pid::from_raw(root);
    nix::unistd::getpgid(Some(root)).unwrap_or(root)
}

/// Makes full-screen programs draw themselves on the new terminal.
fn redraw(master: Option<&File>) {
    if let Some(m) = master
        && let Ok(group) = tcgetpgrp(m.as_fd())
    {
        let _ = kill(Pid::from_raw(-group.as_raw()), Signal::SIGWINCH);
    }
}

/// Moves what is there. False at the end.
fn pump(from: &File, to: &mut dyn Write) -> bool {
    let mut buf = [0u8; 16 * 1024];
    let mut from = from;
    match from.read(&mut buf) {
        Ok(0) | Err(_) => false,
        Ok(n) => to.write_all(&buf[..n]).and_then(|()| to.flush()).is_ok(),
    }
}
