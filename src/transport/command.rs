//! Another of meio's commands, run at another machine to its end, whose lines are read here as they come.

use super::port::{Port, Stop};
use super::{Destination, How, Way, frame};
use crate::error::{Error, Result};
use crate::progress::Report;
use crate::sys::signal;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

/// Runs it; its exit code. What it writes to its standard output is given to `each`, line by line. When a signal comes it is sent one
/// byte, and its end is waited for: what that means is its own affair. A second signal ends the wait.
///
/// # Errors
/// When nobody can log in there, there is no such command, or the session is lost, which need not be the end of the command.
pub fn run(
    to: &Destination,
    how: &How,
    command: &str,
    report: &mut dyn Report,
    mut each: impl FnMut(&str, &mut dyn Report),
) -> Result<i32> {
    const LOOK: Duration = Duration::from_millis(100);
    let carrier = Way::new(to, how, report)?.start(&format!("{} {command}", how.remote_path), how.timeout)?;
    let mut port = Port::socket(carrier.near.try_clone()?, Stop::new()?, Some(LOOK))?;
    let (mut held, mut some) = (Vec::new(), [0; 4096]);
    let (mut told, mut silent) = (false, true);
    loop {
        match port.read(&mut some) {
            Ok(0) => break,
            Ok(n) => held.extend_from_slice(&some[..n]),
            Err(e) if e.kind() == ErrorKind::TimedOut => {}
            Err(_) => break,
        }
        while let Some(end) = held.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            each(String::from_utf8_lossy(&line).trim_end(), report);
            silent = false;
        }
        if held.len() > frame::LARGEST {
            return Err(Error::link(format!("`meio {command}` at {to} says too much")));
        }
        match signal::take() {
            Some(_) if told => return Err(Error::link(format!("`meio {command}` at {to} was not waited for, and may go on there"))),
            Some(_) => told = port.write(b"\n").is_ok(),
            None => {}
        }
    }
    let end = carrier.far.end().filter(|end| end.failure.is_none()).and_then(|end| end.code);
    match end {
        // What could not be started has said nothing.
        Some(code) if code == 0 || !silent => Ok(code),
        _ => Err((carrier.far.reason())().unwrap_or_else(|| Error::link(format!("nothing is heard of `meio {command}` at {to}")))),
    }
}

/// A word of a command line as the shell there takes it for one.
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn words_stay_words() {
        assert_eq!(word("--to=root@other:22"), "--to=root@other:22");
        assert_eq!(word("pipe:[7]"), "'pipe:[7]'");
        assert_eq!(word(""), "''");
        let strange = "a b'c\"$(d)`e`\\";
        let said = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", word(strange))).output().expect("sh");
        assert_eq!(String::from_utf8_lossy(&said.stdout), strange);
    }
}
