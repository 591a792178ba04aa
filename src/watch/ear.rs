//! Who listens for heartbeats while the thread that has the machine waits for something else: what they say may be what clients
//! wait for.

use super::bell::Bell;
use crate::error::{Context, Result};
use crate::sys::priority::Urgent;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Listens until it is dropped.
pub struct Ear {
    end: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Ear {
    /// Rings whenever a datagram has come to this socket; takes none.
    ///
    /// # Errors
    /// When the kernel gives no descriptor or thread.
    pub fn listen(socket: &impl AsFd, bell: Bell) -> Result<Ear> {
        let doing = || "listening for heartbeats";
        let socket = socket.as_fd().try_clone_to_owned().context(doing)?;
        let end = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context(doing)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context(doing)?;
        // Of each once: who is woken takes it, or leaves it until the next one.
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, CAME)).context(doing)?;
        epoll.add(&*end, EpollEvent::new(EpollFlags::EPOLLIN, CAME + 1)).context(doing)?;
        let theirs = end.clone();
        let listen = move || {
            hear(&epoll, &bell);
            drop::<(OwnedFd, Arc<EventFd>)>((socket, theirs));
        };
        let thread = std::thread::Builder::new().name("ear".into()).spawn(listen).context(doing)?;
        Ok(Ear { end, thread: Some(thread) })
    }
}

/// A datagram.
const CAME: u64 = 0;

fn hear(epoll: &Epoll, bell: &Bell) {
    let _urgent = Urgent::begin();
    let mut events = [EpollEvent::empty(); 2];
    loop {
        match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) if events[..count].iter().all(|event| event.data() == CAME) => bell.ring(),
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let _ = self.end.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
