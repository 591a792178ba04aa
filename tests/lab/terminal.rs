//! A terminal whose master side belongs to the test.

use super::{observe, until};
use nix::pty::{Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Rows and columns of every terminal here.
pub const SIZE: (u16, u16) = (40, 100);

/// The master side, and what has been shown so far.
pub struct Terminal {
    master: File,
    slave: File,
    shown: Arc<Mutex<Vec<u8>>>,
    /// Bytes of `shown` that an earlier [`Terminal::expect`] has taken.
    taken: usize,
}

impl Terminal {
    /// A fresh pseudoterminal with the modes that the kernel gives it.
    pub fn new() -> Terminal {
        let size = Winsize { ws_row: SIZE.0, ws_col: SIZE.1, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).expect("openpty");
        // openpty(3) knows no O_CLOEXEC, and a master inside the tree would be a peer of itself
        let closing = |fd| File::from(fd).try_clone().expect("dup");
        let terminal = Terminal { master: closing(pair.master), slave: closing(pair.slave), shown: Arc::default(), taken: 0 };
        let (mut master, shown) = (terminal.master.try_clone().expect("dup"), terminal.shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = master.read(&mut buffer) {
                shown.lock().expect("shown").extend_from_slice(&buffer[..n]);
            }
        });
        terminal
    }

    /// Starts `command` as the leader of a session that this terminal controls.
    pub fn start(&self, command: &Command) -> Child {
        let slave = || Stdio::from(self.slave.try_clone().expect("dup"));
        let mut inside = Command::new("setsid");
        inside.arg("--ctty").arg(command.get_program()).args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.stdin(slave()).stdout(slave()).stderr(slave()).spawn().expect("setsid(1) starts")
    }

    /// Types `keys`.
    pub fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("typing");
    }

    /// Everything shown and not yet taken.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("shown")[self.taken..]).into_owned()
    }

    /// Waits until `text` is shown, and takes everything up to it.
    pub fn expect(&mut self, text: &str) {
        let mut at = None;
        until(Duration::from_secs(20), || {
            let shown = self.shown.lock().expect("shown");
            at = shown[self.taken..].windows(text.len()).position(|window| window == text.as_bytes());
            at.is_some()
        });
        let Some(at) = at else {
            panic!("the terminal does not show {text:?}, but {:?}; processes are\n{}", self.shown(), observe::listing())
        };
        self.taken += at + text.len();
    }
}
