//! The command that ends the other host.

use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

/// One that is at work.
#[derive(Debug)]
pub struct Fence(Receiver<bool>);

impl Fence {
    /// Has a shell run it; `MEIO_HOST` in its environment is what the other host calls itself.
    pub fn run(command: &str, host: &str) -> Fence {
        let (done, result) = channel();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).env("MEIO_HOST", host).stdin(Stdio::null()).stdout(Stdio::null());
        // Without a thread nobody answers, which is as if it had failed.
        let work = move || {
            let _ = done.send(shell.status().is_ok_and(|status| status.success()));
        };
        let _ = std::thread::Builder::new().name("fence".into()).spawn(work);
        Fence(result)
    }

    /// Whether the host is known to be off, once the command has ended.
    pub fn done(&self) -> Option<bool> {
        match self.0.try_recv() {
            Ok(done) => Some(done),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(false),
        }
    }
}
