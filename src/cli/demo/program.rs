//! The program of the demonstration: its life, its folder, and that nothing of both is left.

use crate::error::{Context, Error, Result};
use crate::sys::{signal, spawn};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The ways to compute, the first that is installed is taken.
const PROGRAMS: [&str; 3] = ["python3", "mawk", "awk"];

/// A program at work in a folder of its own. Dropping it ends the program, if it runs, and removes the folder.
pub struct Program {
    folder: PathBuf,
    /// What computes.
    pub name: &'static str,
    /// Its process.
    pub pid: i32,
    /// Not yet waited for.
    running: bool,
}

impl Program {
    /// Starts computing `digits` digits.
    pub fn start(digits: usize) -> Result<Self> {
        let name = PROGRAMS
            .into_iter()
            .find(|name| installed(name))
            .ok_or_else(|| Error::other("there is no program to demonstrate with").help("install python3 or awk"))?;
        let folder = nix::unistd::mkdtemp(&std::env::temp_dir().join("meio-demo-XXXXXX")).context(|| "making a folder")?;
        let mut program = Program { folder, name, pid: 0, running: false };
        let mut command = Command::new(name);
        if name == "python3" {
            command.args(["-I", "-S", "-c", include_str!("pi.py"), &digits.to_string()]);
        } else {
            command.args(["-v", &format!("digits={digits}"), include_str!("pi.awk")]);
        }
        command.current_dir(&program.folder).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        spawn::apart(&mut command);
        let child = command.spawn().context(|| format!("starting {name}"))?;
        // The handle is of no use further on: the process that is waited for in the end is not the one that was started.
        program.pid = child.id() as i32;
        program.running = true;
        Ok(program)
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// All digits that it has written.
    pub fn written(&self) -> String {
        let digits = std::fs::read(self.path("pi")).unwrap_or_default();
        String::from_utf8_lossy(&digits).into_owned()
    }

    /// What it counted itself, told at its end.
    pub fn counted(&self) -> Option<usize> {
        std::fs::read_to_string(self.path("count")).ok()?.trim().parse().ok()
    }

    /// Waits until `done` says so; false when the time is up.
    pub fn wait_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> Result<bool>) -> Result<bool> {
        let begin = Instant::now();
        while !done(self)? {
            if begin.elapsed() > limit {
                return Ok(false);
            }
            signal::check_interrupted()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(true)
    }

    /// Its status of wait(2) once it has ended.
    pub fn ended(&mut self) -> Result<Option<WaitStatus>> {
        match waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => Ok(None),
            Ok(status) => {
                self.running = false;
                Ok(Some(status))
            }
            Err(e) => Err(Error::from(e).context(format!("waiting for process {}", self.pid))),
        }
    }

    /// Whether any process has its pid.
    pub fn exists(&self) -> bool {
        Path::new(&format!("/proc/{}", self.pid)).exists()
    }

    /// Somebody else has ended it, and has waited for it.
    pub fn gone(&mut self) {
        self.running = false;
    }

    /// It is there again, as a child of ours.
    pub fn back(&mut self) {
        self.running = true;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.running {
            let pid = Pid::from_raw(self.pid);
            let _ = kill(pid, Signal::SIGKILL);
            while waitpid(pid, None) == Err(Errno::EINTR) {}
        }
        // Its own files only, by their names, then the folder.
        for name in ["pi", "count", "image.meio"] {
            let _ = std::fs::remove_file(self.path(name));
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Whether a program is found where a shell would look for it.
pub fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| nix::unistd::access(&folder.join(name), nix::unistd::AccessFlags::X_OK).is_ok())
}
