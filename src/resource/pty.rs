//! A pseudo-terminal whose master side is in the tree: tmux, script, expect, sshd.
//!
//! The kernel lets nobody look at the bytes that wait in a terminal; they can only be taken out. So they are, of a tree that
//! stands still, and are put back at once, each side before the next is touched: what waits for the master is read from it and
//! written to the slave again without translation (`OPOST` off); what waits for the slave is read without line editing
//! (`ICANON` off) and typed again (`TIOCSTI`) with every special character out of force, so that complete lines, ends of
//! file and a half-typed line stay what they are. A keeper does it ([`crate::sys::apart`]), which goes on to the end when meio is
//! killed. A terminal in which surely nothing waits is not touched; where lines are edited (`ICANON`) nobody tells whether one
//! is half typed, and the modes are switched to and fro to see. A status that waits in packet mode (`TIOCPKT`)
//! cannot be put back: while there is one a dump waits, and refuses in the end. Whether the console's output comes here (`TIOCCONS`)
//! is told by nobody. A NUL that was typed in a line counts as an end of file (^D), which looks the same.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::terminal::{Terminal, TerminalState};
use super::thread::serde_bytes_vec::Bytes;
use crate::error::{Context, Error, Result};
use crate::sys::proc::read;
use crate::sys::{apart, file, pty};
use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// What is known of the slave side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slave {
    /// Nobody has opened it yet.
    #[default]
    Never,
    /// Somebody has it open.
    Open,
    /// All who had it have closed it.
    Closed,
}

/// Whether and how output is stopped; each way is undone by its own kind only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// It flows.
    #[default]
    No,
    /// tcflow(3) `TCOOFF`.
    Flow,
    /// `VSTOP` was typed: ^S.
    Typed,
}

/// The pair, beside what [`TerminalState`] says of its slave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The N of `/dev/pts/N`.
    pub index: u32,
    /// Rows, columns, and the size in pixels.
    pub window: [u16; 4],
    /// Packet mode, `TIOCPKT`.
    pub packet: bool,
    /// `TIOCEXCL` of the master and of the slave.
    pub exclusive: (bool, bool),
    /// The slave has not been unlocked yet.
    pub locked: bool,
    /// Whether the slave is open.
    pub slave: Slave,
    /// Whether output is stopped.
    pub stopped: Stop,
    /// Owner of the slave's node: uid, gid.
    pub owner: (u32, u32),
    /// Mode of the slave's node.
    pub mode: u32,
    /// What waits for the slave.
    #[serde(with = "crate::image::bytes")]
    pub input: Vec<u8>,
    /// What waits for the master.
    #[serde(with = "crate::image::bytes")]
    pub output: Vec<u8>,
}

/// A master of the tree, held until everything else has been captured.
#[derive(Debug)]
pub struct Master {
    terminal: u32,
    fd: OwnedFd,
    holder: (i32, String),
}

/// Whether a character device is the master side of a pseudo-terminal.
pub fn is_master(found: &Found) -> bool {
    let number = found.meta.rdev();
    (libc::major(number), libc::minor(number)) == (5, 2)
}

/// Saves a master.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let fd = found.duplicate()?;
    let doing = || format!("reading {} of process {}", found.object(), found.pid);
    let master = fd.as_fd();
    let index = pty::index(master).context(doing)?;
    if pty::discipline(master).context(doing)? != 0 {
        capture.refuse(found.pid, found.object(), "it has a line discipline of its own", "only plain terminals are supported");
        return Ok(None);
    }
    let path = format!("/dev/pts/{index}");
    let node = std::fs::metadata(&path).ok();
    let pair = Pair {
        index,
        window: pty::window(master).context(doing)?,
        packet: pty::packet(master).context(doing)?,
        exclusive: (pty::exclusive(master).context(doing)?, false),
        locked: pty::locked(master).context(doing)?,
        owner: node.as_ref().map_or((0, 0), |m| (m.uid(), m.gid())),
        mode: node.as_ref().map_or(0o620, |m| m.mode() & 0o7777),
        ..Pair::default()
    };
    let terminal = match capture.terminals.iter().position(|t| t.path == path) {
        Some(known) => known,
        None => {
            let termios = file::termios(master).context(doing)?;
            capture.terminals.push(TerminalState { path, termios, size: (pair.window[0], pair.window[1]), ..TerminalState::default() });
            capture.terminals.len() - 1
        }
    };
    let state = &mut capture.terminals[terminal];
    (state.session, state.foreground) = pty::session(master);
    state.pair = Some(pair);
    capture.masters.push(Master { terminal: terminal as u32, fd, holder: (found.pid, found.object()) });
    Ok(Some(FileKind::Master(Terminal { terminal: terminal as u32 })))
}

/// After all descriptors have been seen: refuses pairs with somebody else at the slave, and reads what waits.
pub fn finish(tree: &HashSet<i32>, capture: &mut Capture) -> Result<()> {
    let masters = std::mem::take(&mut capture.masters);
    if masters.is_empty() {
        return Ok(());
    }
    let paths: Vec<String> = masters.iter().map(|m| capture.terminals[m.terminal as usize].path.clone()).collect();
    for (pid, path) in outsiders(tree, &paths) {
        let name = String::from_utf8_lossy(&read::read(pid, "comm").unwrap_or_default()).trim().to_owned();
        let Some(master) = paths.iter().position(|p| *p == path).map(|i| &masters[i]) else { continue };
        let (holder, object) = master.holder.clone();
        let reason = format!("its other side {path} is open in process {pid} ({name}), outside of the tree");
        capture.refuse(holder, object, reason, "dump a process above both, or end the other one first");
    }
    if !capture.standing || !capture.refusals.is_empty() {
        return Ok(());
    }
    // Each is read as one byte that says what has happened to the other side, and cleared by switching packet mode.
    for master in &masters {
        let packet = capture.terminals[master.terminal as usize].pair.as_ref().is_some_and(|p| p.packet);
        if packet && pty::ready(master.fd.as_fd(), PollFlags::POLLPRI) {
            let (holder, object) = master.holder.clone();
            let reason = "a status of packet mode (TIOCPKT) waits in it, which cannot be put back";
            capture.refuse_for_now(holder, object, reason, "dump again a moment later: the program has not read it yet");
        }
    }
    if !capture.refusals.is_empty() {
        return Ok(());
    }
    let mut full = Vec::new();
    for master in &masters {
        let open = capture.files.iter().any(|f| matches!(&f.kind, FileKind::Terminal(t) if t.terminal == master.terminal));
        let state = &mut capture.terminals[master.terminal as usize];
        let (path, termios) = (&state.path, &state.termios);
        let Some(pair) = &mut state.pair else { continue };
        pair.slave = match open {
            true => Slave::Open,
            false if pty::ready(master.fd.as_fd(), PollFlags::POLLHUP) => Slave::Closed,
            false => Slave::Never,
        };
        if pair.slave != Slave::Never && !pair.locked {
            let doing = || format!("looking into {path}");
            let slave = pty::peer(master.fd.as_fd(), libc::O_RDWR | libc::O_NONBLOCK).context(doing)?;
            pair.exclusive.1 = pty::exclusive(slave.as_fd()).context(doing)?;
            if may_wait(master.fd.as_fd(), slave.as_fd(), termios).context(doing)? {
                full.push((master, slave, pair.packet));
            }
        }
    }
    if full.is_empty() {
        return Ok(());
    }
    let terminals = &capture.terminals;
    let taken = apart::keep(|| {
        let take = |(master, slave, packet): &(&Master, OwnedFd, bool)| {
            take_out(master.fd.as_fd(), slave.as_fd(), *packet, &terminals[master.terminal as usize].termios)
        };
        Ok(full.iter().map(take).map(|taken| taken.map_err(|e| e.message)).collect::<Vec<_>>())
    })?;
    for ((master, ..), taken) in full.iter().zip(taken) {
        let state = &mut capture.terminals[master.terminal as usize];
        let (output, input, stopped) = taken.map_err(|e| Error::other(format!("reading what waits in {}: {e}", state.path)))?;
        if let Some(pair) = &mut state.pair {
            (pair.output, pair.input, pair.stopped) = (output.0, input.0, stopped);
        }
    }
    Ok(())
}

/// Whether something may wait on either side, or output is stopped.
fn may_wait(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, termios: &[u8]) -> Result<bool> {
    let lines = Modes(termios.to_vec()).has(Modes::LOCAL, libc::ICANON);
    let flows = pty::ready(slave, PollFlags::POLLOUT);
    Ok(lines || !flows || pty::ready(master, PollFlags::POLLIN) || pty::unread(slave)? > 0)
}

/// Processes outside of the tree that have one of these slaves open.
fn outsiders(tree: &HashSet<i32>, paths: &[String]) -> Vec<(i32, String)> {
    let own = std::process::id() as i32;
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).filter(|p| !tree.contains(p) && *p != own);
    // Those below the tree were born since it was listed.
    let pids = pids.filter(|&pid| !read::is_below(pid, tree));
    let held = |pid: i32| {
        let fds = read::fds(pid).unwrap_or_default();
        fds.into_iter().find_map(|fd| {
            let link = read::fd_link(pid, fd).ok()?;
            paths.iter().find(|p| p.as_bytes() == link).map(|p| (pid, p.clone()))
        })
    };
    pids.filter_map(held).collect()
}

/// Reads what waits on both sides, the output first, and puts it back.
fn take_out(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, packet: bool, termios: &[u8]) -> Result<(Bytes, Bytes, Stop)> {
    // Changes of modes would be noted in packet mode.
    if packet {
        pty::set_packet(master, false)?;
    }
    let run = || -> Result<(Bytes, Bytes, Stop)> {
        let output = output(master)?;
        // There is room for more now, unless it is stopped.
        let flows = || pty::ready(slave, PollFlags::POLLOUT);
        let mut stopped = Stop::No;
        if !flows() {
            pty::stop_output(slave, false)?;
            stopped = if flows() { Stop::Flow } else { Stop::Typed };
        }
        if stopped == Stop::Typed && !output.is_empty() {
            type_control(slave, false, termios)?;
        }
        put_output(slave, &output, stopped, termios)?;
        let input = input(slave, termios)?;
        put_input(slave, &input, termios)?;
        Ok((Bytes(output), Bytes(input), stopped))
    };
    let taken = run();
    if packet {
        pty::set_packet(master, true)?;
    }
    taken
}

/// How long the kernel may take to carry bytes from one side to the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that the master has not read.
fn output(master: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let (mut all, begin) = (Vec::new(), Instant::now());
    let mut file = File::from(master.try_clone_to_owned()?);
    // Its own descriptor may be one that waits: it is read only when there is something.
    while pty::ready(master, PollFlags::POLLIN) {
        let mut piece = [0u8; 65536];
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&piece[..n]),
            // On its way between the two sides.
            Err(e) if e.kind() == ErrorKind::WouldBlock && begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_micros(100)),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(all)
}

/// Writes to the slave, which flows, what is to wait for the master, and stops output if it was stopped.
pub fn put_output(slave: BorrowedFd<'_>, output: &[u8], stopped: Stop, termios: &[u8]) -> Result<()> {
    if !output.is_empty() {
        file::set_termios(slave, &Modes(termios.to_vec()).without(Modes::OUTPUT, libc::OPOST).0)?;
        let written = write_all(slave, output);
        file::set_termios(slave, termios)?;
        written?;
    }
    match stopped {
        Stop::No => Ok(()),
        Stop::Flow => pty::stop_output(slave, true).map_err(Into::into),
        Stop::Typed => type_control(slave, true, termios),
    }
}

/// Writes all of it into a descriptor that does not wait. The kernel gives the room of what was just taken out free in its own
/// time.
fn write_all(slave: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    let mut file = File::from(slave.try_clone_to_owned()?);
    let begin = Instant::now();
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) && begin.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_micros(100));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Types ^S or ^Q, whatever characters the modes have for them.
fn type_control(slave: BorrowedFd<'_>, stop: bool, termios: &[u8]) -> Result<()> {
    const START: u8 = 0x11;
    const STOP: u8 = 0x13;
    let modes = Modes(termios.to_vec());
    let modes = modes.literal(b'\r').with(Modes::INPUT, libc::IXON);
    file::set_termios(slave, &modes.character(libc::VSTART, START).character(libc::VSTOP, STOP).0)?;
    let typed = pty::type_byte(slave, if stop { STOP } else { START });
    file::set_termios(slave, termios)?;
    typed.map_err(Into::into)
}

/// Everything that the slave has not read, half a line included. Afterwards there is nothing, and the modes are the old ones.
fn input(slave: BorrowedFd<'_>, termios: &[u8]) -> Result<Vec<u8>> {
    let modes = Modes(termios.to_vec());
    let lines = modes.has(Modes::LOCAL, libc::ICANON);
    if lines {
        file::set_termios(slave, &modes.clone().without(Modes::LOCAL, libc::ICANON).character(libc::VMIN, 0).character(libc::VTIME, 0).0)?;
    }
    let mut all = Vec::new();
    let mut run = || -> Result<()> {
        let mut file = File::from(slave.try_clone_to_owned()?);
        while pty::unread(slave)? > 0 {
            let mut piece = [0u8; 4096];
            match file.read(&mut piece)? {
                0 => break,
                n => all.extend_from_slice(&piece[..n]),
            }
        }
        Ok(())
    };
    let result = run();
    if lines {
        file::set_termios(slave, termios)?;
    }
    result.map(|()| all)
}

/// Types what is to wait for the slave, in modes that give nothing a meaning but the ends of lines.
pub fn put_input(slave: BorrowedFd<'_>, input: &[u8], termios: &[u8]) -> Result<()> {
    if input.is_empty() {
        return Ok(());
    }
    let modes = Modes(termios.to_vec());
    let lines = modes.has(Modes::LOCAL, libc::ICANON);
    let plain = modes.clone().literal(0);
    file::set_termios(slave, &plain.0)?;
    let type_all = || -> Result<()> {
        for &b in input {
            if lines && b == 0 {
                // Only for that instant a byte has the meaning of an end: any may be in there.
                file::set_termios(slave, &modes.clone().literal(1).0)?;
                pty::type_byte(slave, 1)?;
                file::set_termios(slave, &plain.0)?;
            } else {
                pty::type_byte(slave, b)?;
            }
        }
        Ok(())
    };
    let typed = type_all();
    file::set_termios(slave, termios)?;
    typed
}

/// A `struct termios2`.
#[derive(Debug, Clone)]
struct Modes(Vec<u8>);

impl Modes {
    const INPUT: usize = 0;
    const OUTPUT: usize = 4;
    const LOCAL: usize = 12;
    const CHARACTERS: usize = 17;

    fn word(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap_or_default()))
    }

    fn has(&self, at: usize, bit: u32) -> bool {
        self.word(at) & bit != 0
    }

    fn with(mut self, at: usize, value: u32) -> Self {
        if let Some(field) = self.0.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        self
    }

    fn without(self, at: usize, bits: u32) -> Self {
        let value = self.word(at) & !bits;
        self.with(at, value)
    }

    fn character(mut self, which: usize, value: u8) -> Self {
        if let Some(c) = self.0.get_mut(Self::CHARACTERS + which) {
            *c = value;
        }
        self
    }

    /// No translation, no echo, no signals, no editing; lines as before, `end`, if not 0, closes one without a byte of its own.
    fn literal(self, end: u8) -> Self {
        let local = self.word(Self::LOCAL) & libc::ICANON;
        // Output that was stopped would go on without IXON.
        let input = self.word(Self::INPUT) & libc::IXON;
        let mut modes = self.with(Self::INPUT, input).with(Self::LOCAL, local);
        for which in (0..19).filter(|w| ![libc::VEOL, libc::VEOL2, libc::VMIN, libc::VTIME].contains(w) || local == 0) {
            modes = modes.character(which, 0);
        }
        if local != 0 { modes.character(libc::VEOF, end) } else { modes.character(libc::VMIN, 1) }
    }
}
