//! System V IPC of the namespace that the calling thread lives in: sysvipc(7).

use nix::errno::Errno;
use std::fs::File;
use std::io;

/// Flag of msgrcv(2): a copy of the message at an index, which stays in the queue.
const MSG_COPY: i32 = 0o40000;
/// `semctl(2)` `GETPID`, `GETVAL`.
const GETPID: i32 = 11;
const GETVAL: i32 = 12;

/// State of a segment (`IPC_STAT`).
pub fn shm_stat(id: i32) -> Result<libc::shmid_ds, Errno> {
    // SAFETY: all-zero is valid.
    let mut state: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut state) })?;
    Ok(state)
}

/// Sets owner and mode of a segment (`IPC_SET`).
pub fn shm_set(id: i32, owner: (u32, u32), mode: u32) -> Result<(), Errno> {
    let mut state = shm_stat(id)?;
    (state.shm_perm.uid, state.shm_perm.gid, state.shm_perm.mode) = (owner.0, owner.1, mode as _);
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut state) }).map(drop)
}

/// `SHM_LOCK`.
pub fn shm_lock(id: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) }).map(drop)
}

/// Removes a segment: at once, or when the last one detaches.
pub fn shm_remove(id: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// The memory of a segment as a file. It is attached for a moment, which leaves its traces in `shm_lpid` and the times.
pub fn segment_file(id: i32, write: bool) -> io::Result<File> {
    let length = shm_stat(id)?.shm_segsz.next_multiple_of(4096);
    let flags = if write { 0 } else { libc::SHM_RDONLY };
    // SAFETY: at an address of the kernel's choice, detached below; nothing refers to it.
    let at = unsafe { libc::shmat(id, std::ptr::null(), flags) };
    if at as isize == -1 {
        return Err(io::Error::last_os_error());
    }
    let (start, end) = (at as usize, at as usize + length);
    let opened = std::fs::OpenOptions::new().read(true).write(write).open(format!("/proc/self/map_files/{start:x}-{end:x}"));
    // SAFETY: attached above.
    unsafe { libc::shmdt(at) };
    opened
}

/// Value of one semaphore, and the process that changed it last; 0 when that is not known or not visible from here.
pub fn semaphore(id: i32, number: i32) -> Result<(i32, i32), Errno> {
    // SAFETY: numbers only.
    let get = |what| Errno::result(unsafe { libc::semctl(id, number, what) });
    Ok((get(GETVAL)?, get(GETPID)?))
}

/// State of a semaphore set (`IPC_STAT`).
pub fn sem_stat(id: i32) -> Result<libc::semid_ds, Errno> {
    // SAFETY: all-zero is valid.
    let mut state: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::semctl(id, 0, libc::IPC_STAT, &raw mut state) })?;
    Ok(state)
}

/// Sets owner and mode of a semaphore set (`IPC_SET`).
pub fn sem_set(id: i32, owner: (u32, u32), mode: u32) -> Result<(), Errno> {
    let mut state = sem_stat(id)?;
    (state.sem_perm.uid, state.sem_perm.gid, state.sem_perm.mode) = (owner.0, owner.1, mode as _);
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut state) }).map(drop)
}

/// Removes a semaphore set.
pub fn sem_remove(id: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).map(drop)
}

/// State of a message queue (`IPC_STAT`).
pub fn msg_stat(id: i32) -> Result<libc::msqid_ds, Errno> {
    // SAFETY: all-zero is valid.
    let mut state: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut state) })?;
    Ok(state)
}

/// Sets owner, mode and size of a message queue (`IPC_SET`).
pub fn msg_set(id: i32, owner: (u32, u32), mode: u32, qbytes: u64) -> Result<(), Errno> {
    let mut state = msg_stat(id)?;
    (state.msg_perm.uid, state.msg_perm.gid, state.msg_perm.mode) = (owner.0, owner.1, mode as _);
    state.msg_qbytes = qbytes;
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut state) }).map(drop)
}

/// Removes a message queue.
pub fn msg_remove(id: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// A message: its type and its bytes.
type Message = (i64, Vec<u8>);

/// The message at `index`, left in its queue; `None` behind the last one. `largest`: the longest that may come.
pub fn peek_message(id: i32, index: usize, largest: usize) -> Result<Option<Message>, Errno> {
    receive(id, index as i64, libc::IPC_NOWAIT | MSG_COPY, largest)
}

/// Takes the first message out; `None` when there is none.
pub fn take_message(id: i32, largest: usize) -> Result<Option<Message>, Errno> {
    receive(id, 0, libc::IPC_NOWAIT | libc::MSG_NOERROR, largest)
}

fn receive(id: i32, which: i64, flags: i32, largest: usize) -> Result<Option<Message>, Errno> {
    let mut buffer = vec![0u8; 8 + largest];
    // SAFETY: the buffer has room for the type and `largest` bytes.
    match Errno::result(unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), largest, which, flags) }) {
        Ok(n) => {
            let kind = i64::from_le_bytes(buffer[..8].try_into().unwrap_or_default());
            buffer.truncate(8 + n as usize);
            Ok(Some((kind, buffer.split_off(8))))
        }
        Err(Errno::ENOMSG) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sends a message, without waiting.
pub fn send_message(id: i32, kind: i64, content: &[u8]) -> Result<(), Errno> {
    let buffer = [&kind.to_le_bytes(), content].concat();
    // SAFETY: the buffer holds the type and the bytes.
    Errno::result(unsafe { libc::msgsnd(id, buffer.as_ptr().cast(), content.len(), libc::IPC_NOWAIT) }).map(drop)
}
