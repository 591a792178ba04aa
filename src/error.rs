//! The one error type: what kind of failure (which is the exit code), what was
//! being done to which object, the cause, and what the user can do about it.

use std::fmt;

/// The result of everything in meio that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as the exit code that the command line promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any failure without a code of its own.
    Other = 1,
    /// The command line itself was wrong.
    Usage = 2,
    /// Done, but something came back differently than it was.
    Warnings = 3,
    /// No such process, or no such image.
    NotFound = 10,
    /// A permission or capability is missing.
    Permission = 11,
    /// The running kernel lacks a feature.
    Kernel = 12,
    /// The tree holds something that cannot be saved or rebuilt.
    Unsupported = 13,
    /// The image is damaged, cut off, or was made for something else.
    Image = 14,
    /// The link to the other host failed; the tree runs on at the source.
    LinkFailed = 15,
    /// The link failed after the commit: the tree stands frozen at the source until it is told what to do.
    Frozen = 16,
    /// ^C or SIGTERM.
    Interrupted = 130,
}

impl Kind {
    /// The process exit code of this kind.
    pub fn code(self) -> i32 {
        self as i32
    }

    /// The kind with this exit code: what another meio has said.
    pub fn of(code: i32) -> Option<Kind> {
        let all = [Kind::Other, Kind::Usage, Kind::Warnings, Kind::NotFound, Kind::Permission, Kind::Kernel, Kind::Unsupported];
        let more = [Kind::Image, Kind::LinkFailed, Kind::Frozen, Kind::Interrupted];
        all.into_iter().chain(more).find(|kind| kind.code() == code)
    }
}

/// One thing that cannot be saved or restored, named so that a user can act.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// The process that holds it.
    pub pid: i32,
    /// What it is: `fd 5 (socket:[1234])`, `mapping 7f00…-7f01…`, `task`.
    pub object: String,
    /// Why it cannot be done.
    pub reason: String,
    /// What the user can do.
    pub advice: String,
    /// What to give to `--ignore` to leave it out, `KIND:ID`; `None` where that would ruin the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How the root of the tree leads to it; empty where the root itself holds it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// It is a state that passes by itself, as a rule within milliseconds.
    #[serde(skip)]
    pub transient: bool,
}

/// A failure: kind, sentence, advice, and the complete list of refusals when
/// the failure is that something is not supported.
#[derive(Debug, Clone)]
pub struct Error {
    /// The exit code.
    pub kind: Kind,
    /// What happened, naming the object; no trailing full stop.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Every reason at once, when `kind` is [`Kind::Unsupported`].
    pub refusals: Vec<Refusal>,
    /// The kernel's number of what went wrong, where it was the kernel that said so.
    pub errno: Option<i32>,
}

impl Error {
    /// A failure of `kind`, described by `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), help: None, refusals: Vec::new(), errno: None }
    }

    /// A failure without an exit code of its own.
    pub fn other(message: impl Into<String>) -> Self {
        Error::new(Kind::Other, message)
    }

    /// The image cannot be used.
    pub fn image(message: impl Into<String>) -> Self {
        Error::new(Kind::Image, message)
    }

    /// Everything in the tree that stands in the way, in one error.
    pub fn refused(what: &str, refusals: Vec<Refusal>) -> Self {
        let n = refusals.len();
        let s = if n == 1 { "" } else { "s" };
        Error { refusals, ..Error::new(Kind::Unsupported, format!("{what}: {n} object{s} not supported")) }
            .help("see the list above; nothing was changed")
    }

    /// Adds what the user can do.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The link to another host failed, or never came to be.
    pub fn link(message: impl Into<String>) -> Self {
        Error::new(Kind::LinkFailed, message)
    }

    /// Puts what was being done in front of the message.
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        // A stream of meio's own that failed says so in meio's own words.
        if let Some(own) = e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return own.clone();
        }
        let kind = match e.kind() {
            std::io::ErrorKind::PermissionDenied => Kind::Permission,
            _ if e.raw_os_error().is_some_and(lacks) => Kind::Kernel,
            // The process that was being worked on has ended.
            _ if e.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Kind::NotFound,
            _ => Kind::Other,
        };
        Error { errno: e.raw_os_error(), ..Error::new(kind, e.to_string()) }
    }
}

/// Whether an error number says that the kernel does not know what was asked of it.
fn lacks(errno: i32) -> bool {
    [libc::ENOSYS, libc::ENOPROTOOPT, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT, libc::ESOCKTNOSUPPORT].contains(&errno)
}

impl From<Error> for std::io::Error {
    fn from(e: Error) -> Self {
        std::io::Error::other(e)
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(e: nix::errno::Errno) -> Self {
        std::io::Error::from_raw_os_error(e as i32).into()
    }
}

/// Says what was being done when a call failed.
pub trait Context<T> {
    /// Names the operation and its object.
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.into().context(doing()))
    }
}
