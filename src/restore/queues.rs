//! POSIX message queues of a tree: made again, or taken over when they are still there, before anything is opened.

use super::places::Places;
use crate::error::{Context, Error, Refusal, Result};
use crate::resource::Tree;
use crate::resource::descriptor::FileKind;
use crate::resource::mqueue::{Queue, reopen};
use crate::resource::process::Process;
use crate::sys::namespace::{Kind, places, within};
use crate::sys::{file, mqueue};
use crate::tracee::stub::Script;
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// The queues, by their number in the image. Names that were made are removed again unless the tree comes to life.
#[derive(Debug, Default)]
pub struct Queues {
    open: Vec<OwnedFd>,
    made: Vec<Vec<u8>>,
}

/// Finds what is in the way, before anything is started.
pub fn check(tree: &Tree) -> Result<()> {
    let mut refusals = Vec::new();
    for (n, queue) in tree.message_queues.iter().enumerate() {
        let name = queue.name.bytes();
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) || queue.max_messages == 0 || queue.message_size == 0 {
            return Err(Error::image("image damaged: a message queue is impossible"));
        }
        let too_long = |m: &(u32, crate::resource::thread::serde_bytes_vec::Bytes)| m.1.0.len() > queue.message_size as usize;
        if queue.messages.len() > queue.max_messages as usize || queue.messages.iter().any(too_long) {
            return Err(Error::image("image damaged: a message queue holds what it cannot"));
        }
        if queue.unlinked || queue.namespace.is_some() {
            continue; // nobody else can have it
        }
        let doing = || format!("looking for message queue {}", queue.name);
        let other = match mqueue::open(name, libc::O_RDWR) {
            Err(_) => None,
            Ok(there) => Queue::held_by(&there).context(doing)?,
        };
        let reason = match other {
            Some(pid) => Some(format!("process {pid} has it open")),
            None => queue.standing().context(doing)?.and_then(std::result::Result::err),
        };
        if let Some(reason) = reason {
            let holder = tree.processes.iter().find(|p| held(tree, p, n).is_some());
            refusals.push(Refusal {
                pid: holder.map_or(0, |p| p.pid),
                object: format!("message queue {}", queue.name),
                reason: format!("another one has its name: {reason}"),
                advice: format!("if nobody needs it: rm /dev/mqueue/{}", queue.name),
                ..Refusal::default()
            });
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(Error::refused("cannot restore: message queues are in the way", refusals)) }
}

/// The descriptor by which a process has a queue open.
fn held(tree: &Tree, process: &Process, queue: usize) -> Option<i32> {
    let leads = |file: u32| {
        matches!(&tree.files.get(file as usize)?.kind, FileKind::MessageQueue(end) if end.queue as usize == queue).then_some(())
    };
    process.descriptors.iter().find_map(|d| leads(d.file).map(|()| d.fd))
}

impl Queues {
    /// Makes all of them.
    pub fn make(tree: &Tree, namespaces: &Places<'_>) -> Result<Self> {
        let mut queues = Queues::default();
        let list = &tree.message_queues;
        if list.is_empty() {
            return Ok(queues);
        }
        use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
        // Without the right to do so the kernel's own limit decides.
        let _ = setrlimit(Resource::RLIMIT_MSGQUEUE, RLIM_INFINITY, RLIM_INFINITY);
        // Those first that give their name away at once.
        let mut order: Vec<usize> = (0..list.len()).collect();
        order.sort_by_key(|&n| !list[n].unlinked);
        let mut open: Vec<Option<OwnedFd>> = list.iter().map(|_| None).collect();
        for n in order {
            let queue = &list[n];
            let doing = || format!("making message queue {} again", queue.name);
            let (fd, new) = match queue.namespace {
                Some(id) => {
                    let fd = namespaces.fd(Some(id), Kind::Ipc)?;
                    within(&places([(fd, Kind::Ipc)]), || one(queue)).context(doing)?.context(doing)?
                }
                None => one(queue).context(doing)?,
            };
            if new && queue.namespace.is_none() {
                queues.made.push(queue.name.bytes().to_vec());
            }
            open[n] = Some(fd);
        }
        queues.open = open.into_iter().flatten().collect();
        Ok(queues)
    }

    /// A queue, opened anew.
    pub fn open(&self, queue: u32, flags: u32) -> Result<OwnedFd> {
        let fd = self.open.get(queue as usize).ok_or_else(|| Error::image("image damaged: a message queue is missing"))?;
        let new = reopen(fd.as_fd(), flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK))?;
        file::set_flags(new.as_fd(), flags as i32).context(|| "setting status flags")?;
        Ok(new)
    }

    /// From here on they belong to the tree.
    pub fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        for name in self.made.drain(..) {
            let _ = mqueue::unlink(&name);
        }
    }
}

/// A queue in our ipc namespace, and whether it has a name that is new.
fn one(queue: &Queue) -> Result<(OwnedFd, bool)> {
    if !queue.unlinked
        && let Some(there) = queue.standing()?
    {
        let fd = there.map_err(Error::other)?;
        if mqueue::attributes(fd.as_fd())?.waiting == 0 {
            queue.fill(fd.as_fd())?;
        }
        return Ok((fd, false));
    }
    let mut name = queue.name.bytes().to_vec();
    let fd = match queue.make(&name) {
        // Its name is another one's by now.
        Err(Errno::EEXIST) if queue.unlinked => {
            name = format!("meio-{}", std::process::id()).into_bytes();
            queue.make(&name)
        }
        made => made,
    }?;
    let filled = queue.fill(fd.as_fd());
    if queue.unlinked || filled.is_err() {
        mqueue::unlink(&name)?;
    }
    filled.map(|()| (fd, !queue.unlinked))
}

/// Lets a process be told of messages again. Closing any descriptor of the queue would end that.
pub fn notify(script: &mut Script<'_>, process: &Process, tree: &Tree) -> Result<()> {
    for (n, queue) in tree.message_queues.iter().enumerate() {
        let Some(notify) = queue.notify.filter(|notify| notify.pid == process.pid) else { continue };
        let fd = held(tree, process, n).ok_or_else(|| Error::image("image damaged: who is told of messages has no descriptor"))?;
        // struct sigevent: a value that nobody sees, signal, kind.
        let kind = if notify.signal.is_some() { libc::SIGEV_SIGNAL } else { libc::SIGEV_NONE };
        let mut event = [0u8; 64];
        event[8..12].copy_from_slice(&notify.signal.unwrap_or(0).to_le_bytes());
        event[12..16].copy_from_slice(&kind.to_le_bytes());
        let at = script.data(&event);
        script.call("mq_notify", libc::SYS_mq_notify, &[fd as u64, at])?;
    }
    Ok(())
}
