//! In place of ssh and sshd: a command is run on the other machine with the caller's own standard input and output, which go
//! there through a socket in a folder that is root's alone. What follows is what follows over ssh.

use crate::error::{Context, Error, Result};
use crate::sys::file;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode};

/// What ssh says when it did not get there.
const NOT_THERE: u8 = 255;
/// Longest command.
const LONGEST: usize = 4096;

/// Runs what it is asked for, until it is killed. `address`: the one of this machine, as sshd would say it.
pub fn open(socket: &Path, address: &str) -> Result<ExitCode> {
    let listener = UnixListener::bind(socket).context(|| format!("listening at {}", socket.display()))?;
    let connection = format!("{address} 0 {address} 22");
    for caller in listener.incoming() {
        let (mut caller, connection) = (caller.context(|| "waiting for a caller")?, connection.clone());
        std::thread::spawn(move || {
            let code = serve(&caller, &connection).unwrap_or(NOT_THERE);
            let _ = caller.write_all(&[code]);
        });
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(caller: &UnixStream, connection: &str) -> Result<u8> {
    let mut word = vec![0; LONGEST];
    let mut room = nix::cmsg_space!([RawFd; 3]);
    let mut parts = [IoSliceMut::new(&mut word)];
    let message = recvmsg::<()>(caller.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let length = message.bytes;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            fds.extend(numbers.into_iter().map(file::own));
        }
    }
    let [input, output, errors]: [OwnedFd; 3] = fds.try_into().map_err(|_| Error::other("three descriptors are needed"))?;
    let text = String::from_utf8_lossy(&word[..length]).into_owned();
    let mut command = Command::new("sh");
    command.args(["-c", &text]).env("SSH_CONNECTION", connection).stdin(input).stdout(output).stderr(errors);
    let mut child = command.spawn().context(|| "starting a shell")?;
    // Its own copies of the descriptors: whoever reads from the command is to see its end.
    drop(command);
    Ok(child.wait()?.code().map_or(NOT_THERE, |code| code as u8))
}

/// Has a command run at the other side of the door, and ends as it does.
pub fn ring(socket: &Path, command: &str) -> Result<ExitCode> {
    let mut door = UnixStream::connect(socket).context(|| format!("nobody opens at {}", socket.display()))?;
    let fds = [std::io::stdin().as_fd().as_raw_fd(), std::io::stdout().as_fd().as_raw_fd(), std::io::stderr().as_fd().as_raw_fd()];
    let text = [IoSlice::new(command.as_bytes())];
    sendmsg::<()>(door.as_raw_fd(), &text, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)
        .context(|| "handing over the descriptors")?;
    let mut code = [NOT_THERE];
    let _ = door.read(&mut code);
    Ok(ExitCode::from(code[0]))
}
