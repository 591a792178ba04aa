//! The terminals of a restored tree. A terminal whose session belongs to the tree is a new pseudo-terminal that meio relays
//! to its own; a job of somebody else's session gets the terminal that meio runs in.

use super::ptys::{self, Made, Ptys};
use crate::error::{Context, Error, Kind, Result};
use crate::resource::Tree;
use crate::resource::terminal::TerminalState;
use crate::sys::file;
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What takes a terminal's place.
enum Place {
    /// Opened by this path: the slave of our own pseudo-terminal, or the terminal that meio runs in.
    Path(String),
    /// There is none.
    Nowhere,
    /// A pair of the tree's own.
    Pair,
}

/// The terminals of one restore.
pub struct Terminals {
    places: Vec<Place>,
    /// The master of the tree's own terminal.
    pub master: Option<PtyMaster>,
    /// Its slave, kept open until the tree has it.
    pub slave: Option<OwnedFd>,
    /// Session that the slave controls, and its foreground group.
    pub session: Option<(i32, i32)>,
    /// Modes to be set on the terminal that meio runs in.
    pub outer_modes: Option<Vec<u8>>,
    /// Those with both sides in the tree.
    ptys: Ptys,
    /// What will be different.
    pub warnings: Vec<String>,
}

impl Terminals {
    /// Decides for every terminal of the image what takes its place.
    pub fn prepare(tree: &Tree, detach: bool) -> Result<Self> {
        let mut warnings = vec![];
        let ptys = ptys::make(&tree.terminals, &mut warnings)?;
        let mut all = Terminals { places: vec![], master: None, slave: None, session: None, outer_modes: None, ptys, warnings };
        let outer = outer_terminal();
        for state in &tree.terminals {
            if state.pair.is_some() {
                all.places.push(Place::Pair);
                continue;
            }
            let inside = state.session != 0 && tree.processes.iter().any(|p| p.pid == state.session);
            let place = match (&outer, inside) {
                (_, true) if detach => {
                    return Err(Error::new(Kind::Unsupported, format!("the tree is a session on a terminal of its own ({})", state.path))
                        .help("restore it in the foreground, without --detach, in a terminal"));
                }
                (_, true) => Place::Path(all.own(state)?),
                (Some(path), false) => {
                    all.outer_modes = Some(state.termios.clone());
                    Place::Path(path.clone())
                }
                (None, false) => {
                    all.warnings.push(format!("there is no terminal here to take the place of {}: it is /dev/null now", state.path));
                    Place::Nowhere
                }
            };
            all.places.push(place);
        }
        Ok(all)
    }

    /// A new pseudo-terminal with the old modes and size.
    fn own(&mut self, state: &TerminalState) -> Result<String> {
        if self.master.is_some() {
            return Err(Error::new(Kind::Unsupported, "the tree holds more than one terminal session").help("dump the sessions one by one"));
        }
        let doing = || "making a pseudo-terminal";
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).context(doing)?;
        grantpt(&master).context(doing)?;
        unlockpt(&master).context(doing)?;
        let path = ptsname_r(&master).context(doing)?;
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let slave = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).context(doing)?;
        file::set_termios(slave.as_fd(), &state.termios).context(doing)?;
        let size = std::io::stdin().as_fd().try_clone_to_owned().ok().and_then(|f| file::window(f.as_fd()).ok());
        file::set_window(slave.as_fd(), size.unwrap_or(state.size)).context(doing)?;
        self.master = Some(master);
        self.slave = Some(slave);
        self.session = Some((state.session, state.foreground));
        Ok(path)
    }

    fn pair(&self, number: u32) -> Result<&Made> {
        self.ptys.get(&number).ok_or_else(|| Error::image("image damaged: a terminal has no master"))
    }

    /// The master of a terminal whose both sides are in the tree.
    pub fn master(&self, number: u32, flags: u32) -> Result<OwnedFd> {
        self.pair(number)?.master(flags)
    }

    /// Sessions of the tree with a terminal: session, its foreground group, and a descriptor of the terminal in every stub.
    pub fn sessions(&self) -> Vec<(i32, i32, i32)> {
        let own = self.session.and_then(|s| Some((s.0, s.1, self.slave.as_ref()?.as_raw_fd())));
        own.into_iter().chain(self.ptys.values().filter_map(Made::session)).collect()
    }

    /// When everything has been opened.
    pub fn close(&self) -> Result<()> {
        self.ptys.values().try_for_each(Made::close)
    }

    /// The tree has what it needs: nobody else may hold a side of a pair, or its end would never be seen.
    pub fn let_go(&mut self) {
        self.ptys.clear();
    }

    /// Opens what takes the place of terminal `number`.
    pub fn open(&self, number: u32, flags: u32) -> Result<OwnedFd> {
        let path = match self.places.get(number as usize) {
            Some(Place::Path(path)) => path.as_str(),
            Some(Place::Nowhere) => "/dev/null",
            Some(Place::Pair) => return self.pair(number)?.slave(flags),
            None => return Err(Error::image("image damaged: a terminal is missing")),
        };
        let flags = OFlag::from_bits_truncate(flags as i32) | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).context(|| format!("opening {path}"))
    }
}

/// The terminal that meio runs in.
fn outer_terminal() -> Option<String> {
    let name = |fd: &dyn AsFd| nix::unistd::ttyname(fd.as_fd()).ok().map(|p| p.display().to_string());
    name(&std::io::stdin())
        .or_else(|| name(&std::io::stdout()))
        .or_else(|| name(&std::io::stderr()))
        .or_else(|| std::fs::File::open("/dev/tty").ok().map(|_| "/dev/tty".to_owned()))
}
