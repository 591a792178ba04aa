//! Pseudo-terminals with both sides in the tree: made with their old numbers, filled, and handed over.

use crate::error::{Context, Error, Kind, Result};
use crate::resource::pty::{Pair, Slave, put_input, put_output};
use crate::resource::terminal::TerminalState;
use crate::sys::{file, pty};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

/// One pair that has been made.
pub struct Made {
    master: OwnedFd,
    /// Open until all who have it open or are controlled by it do so themselves. Inherited by the stubs.
    slave: Option<OwnedFd>,
    pair: Pair,
    session: (i32, i32),
}

/// All pairs, by the number of their terminal in the image.
pub type Ptys = BTreeMap<u32, Made>;

/// Makes all pairs. Numbers that are taken are given in `warnings`.
pub fn make(terminals: &[TerminalState], warnings: &mut Vec<String>) -> Result<Ptys> {
    let wanted: Vec<(u32, &TerminalState, &Pair)> =
        terminals.iter().enumerate().filter_map(|(n, t)| Some((n as u32, t, t.pair.as_ref()?))).collect();
    let mut masters = allocate(&wanted.iter().map(|w| w.2.index).collect::<Vec<_>>())?;
    let mut made = Ptys::new();
    for (number, state, pair) in wanted {
        let master = masters.remove(&pair.index).map_or_else(open_master, Ok)?;
        let index = pty::index(master.as_fd())?;
        if index != pair.index {
            warnings.push(format!("{} is in use: the tree has /dev/pts/{index} instead", state.path));
        }
        made.insert(number, fill(master, index, state, pair).context(|| format!("making {} again", state.path))?);
    }
    Ok(made)
}

fn open_master() -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    nix::fcntl::open("/dev/ptmx", flags, nix::sys::stat::Mode::empty()).context(|| "making a pseudo-terminal")
}

/// Masters with these numbers, as far as they are free. The kernel gives the lowest free one: those before are held meanwhile.
fn allocate(wanted: &[u32]) -> Result<BTreeMap<u32, OwnedFd>> {
    let mut all = BTreeMap::new();
    let highest = wanted.iter().max().copied().unwrap_or(0);
    while !wanted.iter().all(|n| all.contains_key(n)) {
        // No more to be had: whatever is missing is in use.
        let Ok(master) = open_master() else { break };
        let index = pty::index(master.as_fd())?;
        all.insert(index, master);
        if index > highest {
            break;
        }
    }
    all.retain(|n, _| wanted.contains(n));
    Ok(all)
}

fn fill(master: OwnedFd, index: u32, state: &TerminalState, pair: &Pair) -> Result<Made> {
    file::set_termios(master.as_fd(), &state.termios)?;
    pty::set_window(master.as_fd(), pair.window)?;
    let node = format!("/dev/pts/{index}");
    std::os::unix::fs::chown(&node, Some(pair.owner.0), Some(pair.owner.1))?;
    std::fs::set_permissions(&node, std::fs::Permissions::from_mode(pair.mode & 0o7777))?;
    let slave = match pair.slave {
        Slave::Never if state.session == 0 => None,
        _ => {
            pty::set_locked(master.as_fd(), false)?;
            Some(pty::peer(master.as_fd(), libc::O_RDWR)?)
        }
    };
    if let Some(slave) = &slave {
        fcntl(slave.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        put_input(slave.as_fd(), &pair.input, &state.termios)?;
        put_output(slave.as_fd(), &pair.output, pair.stopped, &state.termios)?;
    }
    let session = (state.session, state.foreground);
    Ok(Made { master, slave, pair: Pair { input: vec![], output: vec![], ..pair.clone() }, session })
}

impl Made {
    /// The master, for who has it open.
    pub fn master(&self, flags: u32) -> Result<OwnedFd> {
        let fd = self.master.try_clone()?;
        file::set_flags(fd.as_fd(), flags as i32).context(|| "setting the flags of a terminal's master")?;
        Ok(fd)
    }

    /// The slave, opened anew.
    pub fn slave(&self, flags: u32) -> Result<OwnedFd> {
        if self.slave.is_none() {
            return Err(Error::image("image damaged: a terminal is open that nobody has opened"));
        }
        pty::peer(self.master.as_fd(), flags as i32).map_err(|e| match e {
            nix::errno::Errno::ENOTTY => Error::new(Kind::Kernel, "this kernel has no TIOCGPTPEER (Linux 4.13)"),
            e => e.into(),
        })
    }

    /// The session that it controls, its foreground group, and a descriptor of the slave that all stubs have.
    pub fn session(&self) -> Option<(i32, i32, i32)> {
        let slave = self.slave.as_ref()?;
        (self.session.0 != 0).then_some((self.session.0, self.session.1, slave.as_raw_fd()))
    }

    /// When all its descriptors are open: what would have been in the way.
    pub fn close(&self) -> Result<()> {
        let master = self.master.as_fd();
        if self.pair.packet {
            pty::set_packet(master, true)?;
        }
        if self.pair.exclusive.0 {
            pty::set_exclusive(master)?;
        }
        if let (true, Some(slave)) = (self.pair.exclusive.1, &self.slave) {
            pty::set_exclusive(slave.as_fd())?;
        }
        if self.pair.locked {
            pty::set_locked(master, true)?;
        }
        Ok(())
    }
}
