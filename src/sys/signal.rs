//! ^C and SIGTERM to meio itself: noted, and asked for at safe points.

use crate::error::{Error, Kind, Result};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: i32) {
    CAUGHT.store(signal, Ordering::Relaxed);
}

extern "C" fn nothing(_: i32) {}

/// From now on SIGINT, SIGTERM and SIGHUP are noted instead of ending meio at once; they end a system call that waits.
/// SIGXFSZ (a file as large as RLIMIT_FSIZE allows) is an error of write(2) only, as SIGPIPE is for every Rust program.
pub fn catch() {
    let noted = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP].map(|signal| (signal, note as *const () as usize));
    // A handler and not SIG_IGN, which programs that are started would inherit.
    for (signal, handler) in noted.into_iter().chain([(libc::SIGXFSZ, nothing as *const () as usize)]) {
        // SAFETY: the handlers only store an atomic or do nothing; an all-zero sigaction with a handler is valid.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// The signal that was noted, if any; forgets it.
pub fn take() -> Option<i32> {
    match CAUGHT.swap(0, Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// As if SIGINT had come.
pub fn interrupt() {
    CAUGHT.store(libc::SIGINT, Ordering::Relaxed);
}

/// Whether one was noted; does not forget it.
pub fn is_pending() -> bool {
    CAUGHT.load(Ordering::Relaxed) != 0
}

/// Fails with `Interrupted` once a signal was noted.
pub fn check_interrupted() -> Result<()> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Error::new(Kind::Interrupted, format!("interrupted by signal {signal}"))),
    }
}

static PASSED: AtomicU64 = AtomicU64::new(0);

extern "C" fn note_passed(signal: i32) {
    PASSED.fetch_or(1 << signal, Ordering::Relaxed);
}

/// From now on the signals that are meant for a program which meio serves are noted, to be handed on.
pub fn pass() {
    use nix::sys::signal::{SigHandler, Signal};
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM, Signal::SIGALRM] {
        let _ = set_handler(signal, SigHandler::Handler(note_passed));
    }
}

/// The signals that were noted by [`pass`]; forgets them.
pub fn passed() -> impl Iterator<Item = i32> {
    let noted = PASSED.swap(0, Ordering::Relaxed);
    (1..64).filter(move |signal| noted >> signal & 1 != 0)
}

static WINDOW: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_window(_: i32) {
    WINDOW.store(1, Ordering::Relaxed);
}

/// Sets the disposition of a signal.
pub fn set_handler(signal: nix::sys::signal::Signal, handler: nix::sys::signal::SigHandler) -> nix::Result<()> {
    // SAFETY: the handlers used in this crate only store atomics.
    unsafe { nix::sys::signal::signal(signal, handler) }.map(drop)
}

/// For a meio that serves a tree in the foreground: it may use the terminal from the background, and notes new window sizes.
pub fn ignore_terminal_stops() {
    use nix::sys::signal::{SigHandler, Signal};
    let _ = set_handler(Signal::SIGTTOU, SigHandler::SigIgn);
    let _ = set_handler(Signal::SIGTTIN, SigHandler::SigIgn);
    let _ = set_handler(Signal::SIGWINCH, SigHandler::Handler(note_window));
}

/// Whether the window changed since the last question.
pub fn window_changed() -> bool {
    WINDOW.swap(0, Ordering::Relaxed) != 0
}
