//! The entries of epoll instances: each is added under its old number by the process that knows it by that, before that
//! process has its descriptors.

use super::pool::Pool;
use crate::error::{Context, Error, Result};
use crate::resource::Tree;
use crate::resource::descriptor::FileKind;
use crate::resource::epoll::{Epoll, Target};
use crate::resource::process::Process;
use crate::sys::file;
use crate::tracee::stub::{Script, Stub};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// What is asked for to make a one-shot entry fire: anything.
const ANY: u32 =
    (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDNORM | libc::EPOLLWRNORM | libc::EPOLLRDBAND | libc::EPOLLRDHUP) as u32;
/// Entries that one call reports at most.
const REPORTED: usize = 1000;

/// Fills the instances that fall to this process. Numbers below the pool are used, and closed afterwards.
pub fn fill(tree: &Tree, process: &Process, pool: &Pool, stub: &Stub) -> Result<()> {
    let mut any = false;
    for file in &tree.files {
        let FileKind::Epoll(epoll) = &file.kind else { continue };
        if epoll.first.0 == process.pid {
            any = true;
            let filling = Filling { process, pool, stub, epoll, instance: pool.file(file.id)? };
            filling.all().context(|| format!("filling epoll instance {} of process {}", epoll.first.1, process.pid))?;
        }
    }
    if any {
        let mut script = stub.script();
        script.call("close_range", libc::SYS_close_range, &[0, pool.base() as u64 - 1, 0])?;
        script.run()?;
    }
    Ok(())
}

struct Filling<'a> {
    process: &'a Process,
    pool: &'a Pool,
    stub: &'a Stub,
    epoll: &'a Epoll,
    /// Number of the instance in the pool.
    instance: i32,
}

impl Filling<'_> {
    /// One-shot entries that have fired first, since they must report now; then those that report a change once.
    fn all(&self) -> Result<()> {
        for t in self.epoll.targets.iter().filter(|t| t.disarmed()) {
            self.disarmed(t)?;
        }
        let armed = || self.epoll.targets.iter().filter(|t| !t.disarmed());
        let mut script = self.stub.script();
        for t in armed().filter(|t| t.edge_triggered()) {
            self.add(&mut script, t, t.events)?;
        }
        if self.epoll.quiet {
            // What is ready among them has been reported.
            for _ in 0..armed().filter(|t| t.edge_triggered()).count().div_ceil(REPORTED) {
                self.wait(&mut script, REPORTED)?;
            }
        }
        for t in armed().filter(|t| !t.edge_triggered()) {
            self.add(&mut script, t, t.events)?;
        }
        script.run().map(drop)
    }

    /// Number of a watched file in the pool.
    fn file(&self, t: &Target) -> Result<i32> {
        let by_number = || self.process.descriptors.iter().find(|d| d.fd == t.fd).map(|d| d.file);
        let id = t.file.or_else(by_number);
        self.pool.file(id.ok_or_else(|| Error::image("image damaged: an epoll instance watches what is not open"))?)
    }

    fn add(&self, script: &mut Script<'_>, t: &Target, events: u32) -> Result<()> {
        script.expect("dup3", t.fd as u64, libc::SYS_dup3, &[self.file(t)? as u64, t.fd as u64, libc::O_CLOEXEC as u64])?;
        // struct epoll_event is packed on x86_64: 4 bytes of events, 8 of data.
        let event = script.data(&[&events.to_le_bytes()[..], &t.data.to_le_bytes()[..]].concat());
        let args = [self.instance as u64, libc::EPOLL_CTL_ADD as u64, t.fd as u64, event];
        script.call("epoll_ctl", libc::SYS_epoll_ctl, &args)
    }

    /// Takes what the instance reports.
    fn wait(&self, script: &mut Script<'_>, most: usize) -> Result<()> {
        let room = script.data(&vec![0; 12 * most]);
        script.call("epoll_wait", libc::SYS_epoll_wait, &[self.instance as u64, room, most as u64, 0])
    }

    /// A one-shot entry that has fired: only by firing it becomes what it was. Where the file is not ready in any
    /// respect, and cannot be made so, the entry stays armed for what cannot be left out: hang-up and error.
    fn disarmed(&self, t: &Target) -> Result<()> {
        let number = self.file(t)?;
        let fd = file::borrow(number);
        let pushed = if ready(fd)? { None } else { push(fd) };
        let mut script = self.stub.script();
        if pushed.is_some() || ready(fd)? {
            self.add(&mut script, t, t.events | ANY)?;
            self.wait(&mut script, 1)?;
        } else {
            self.add(&mut script, t, t.events)?;
        }
        let fired = script.run()?.results.last() == Some(&1);
        if let Some(mut pipe) = pushed {
            pipe.read_exact(&mut [0]).context(|| "taking a byte out of a pipe again")?;
        }
        if !fired && ready(fd)? {
            return Err(Error::other("a one-shot entry has not fired"));
        }
        Ok(())
    }
}

/// Whether a file is ready in any respect.
fn ready(fd: BorrowedFd<'_>) -> Result<bool> {
    let any = PollFlags::from_bits_truncate(ANY as i16);
    Ok(poll(&mut [PollFd::new(fd, any)], PollTimeout::ZERO)? != 0)
}

/// Makes the empty pipe behind a read end readable; the end from which the byte can be taken again.
fn push(fd: BorrowedFd<'_>) -> Option<File> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if !std::fs::metadata(&path).is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_fifo(&m.file_type())) {
        return None;
    }
    let mut both = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).ok()?;
    both.write_all(&[0]).ok()?;
    Some(both)
}
