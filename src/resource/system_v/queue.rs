//! Message queues: msgget(2), msgsnd(2), msgrcv(2).

use super::{Actors, Perm, Standing, Tree, Verdict, choose_next_id, table, vanished};
use crate::error::{Context, Error, Kind, Result};
use crate::resource::capture::Capture;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::ipc;
use crate::sys::proc::read;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// A message that is longer than what a script can carry is sent by meio itself.
const SCRIPT: usize = 64 * 1024;

/// One queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Id, key, owners.
    pub perm: Perm,
    /// Most bytes that may be in it, `msg_qbytes`.
    pub qbytes: u64,
    /// Type and content of each message, the oldest first.
    pub messages: Vec<(i64, Bytes)>,
    /// Who sent last.
    pub lspid: i32,
    /// Who received last.
    pub lrpid: i32,
    /// Last msgsnd(2), seconds since 1970.
    pub stime: i64,
    /// Last msgrcv(2), seconds since 1970.
    pub rtime: i64,
}

/// All queues of the namespace, without content.
pub fn list() -> Result<Vec<Queue>> {
    let queue = |row: &crate::sys::proc::sysvipc::Row| Queue {
        perm: Perm::from_row(row, "msqid"),
        qbytes: 0,
        messages: Vec::new(),
        lspid: row.get("lspid") as i32,
        lrpid: row.get("lrpid") as i32,
        stime: row.get("stime"),
        rtime: row.get("rtime"),
    };
    Ok(table("msg")?.iter().map(queue).collect())
}

/// Longest message, `/proc/sys/kernel/msgmax`.
fn longest() -> usize {
    let text = read::read_machine("sys/kernel/msgmax").unwrap_or_default();
    std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(8192)
}

impl Queue {
    /// Whether a process of the tree was the last to send or to receive.
    pub fn used_by(&self, tree: &Tree) -> bool {
        tree.did(self.lspid, self.stime) || tree.did(self.lrpid, self.rtime)
    }

    /// Reads the messages and leaves them where they are (`MSG_COPY`).
    pub fn read(&mut self, capture: &mut Capture) -> Result<()> {
        let id = self.perm.id;
        let longest = longest();
        let mut run = || -> std::result::Result<(), Errno> {
            self.qbytes = ipc::msg_stat(id)?.msg_qbytes;
            while let Some((kind, content)) = ipc::peek_message(id, self.messages.len(), longest)? {
                self.messages.push((kind, Bytes(content)));
            }
            Ok(())
        };
        match run() {
            Err(Errno::ENOSYS) => {
                let advice = "the kernel needs CONFIG_CHECKPOINT_RESTORE";
                capture.refuse(self.lspid, format!("message queue {id}"), "its messages cannot be read without taking them out", advice);
                Ok(())
            }
            Err(Errno::EINVAL) if ipc::msg_stat(id).is_ok() => {
                let advice = "raise /proc/sys/kernel/msgmax to what it was when the message was sent";
                capture.refuse(self.lspid, format!("message queue {id}"), "it holds a message that is longer than allowed now", advice);
                Ok(())
            }
            Err(e) if vanished(e) => Ok(()),
            result => result.context(|| format!("reading message queue {id}")),
        }
    }

    /// What of it is there, in the caller's namespace.
    pub fn standing(&self, pids: &HashSet<i32>) -> Result<Verdict> {
        let standing = self.perm.standing(&table("msg")?, "msqid", "message queue", "q");
        if standing != Ok(Standing::Same) {
            return Ok(standing);
        }
        let Some(now) = list()?.into_iter().find(|q| q.perm.id == self.perm.id) else { return Ok(Ok(Standing::Absent)) };
        let strange = [(now.lspid, self.lspid), (now.lrpid, self.lrpid)].into_iter().find(|(n, old)| n != old && !pids.contains(n));
        match strange {
            Some((pid, _)) => Ok(Err(self.perm.used_since("message queue", "q", pid))),
            None => Ok(standing),
        }
    }

    /// Makes the queue, or takes over the one that is there, with its messages. True when it is new.
    pub fn make(&self, actors: &Actors, pids: &HashSet<i32>, warnings: &mut Vec<String>) -> Result<bool> {
        let id = self.perm.id;
        let doing = || format!("making message queue {id} again");
        let there = self.standing(pids)?.map_err(|r| Error::refused("cannot restore", vec![*r]))?;
        let new = there == Standing::Absent;
        if new {
            choose_next_id("msg", id)?;
            let flags = libc::IPC_CREAT | libc::IPC_EXCL | self.perm.mode as i32;
            let made = actors.as_creator(&actors.root, self.perm.creator, |script| {
                script.call("msgget", libc::SYS_msgget, &[self.perm.key as u32 as u64, flags as u64])
            });
            let made = made.context(doing)? as i32;
            if made != id {
                let _ = ipc::msg_remove(made);
                return Err(Error::new(Kind::Unsupported, format!("message queue {id} cannot have its id: its place is taken")));
            }
        }
        let mut finish = || -> Result<()> {
            if !new {
                while ipc::take_message(id, longest())?.is_some() {}
            }
            let now = ipc::msg_stat(id)?;
            if self.perm.owner != self.perm.creator || !new || now.msg_qbytes != self.qbytes {
                match ipc::msg_set(id, self.perm.owner, self.perm.mode, self.qbytes) {
                    Err(Errno::EPERM) if self.qbytes > now.msg_qbytes => {
                        ipc::msg_set(id, self.perm.owner, self.perm.mode, now.msg_qbytes)?;
                        let limit = now.msg_qbytes;
                        warnings.push(format!("message queue {id} holds {limit} bytes, not {}: see /proc/sys/kernel/msgmnb", self.qbytes));
                    }
                    result => result?,
                }
            }
            self.fill(actors)
        };
        finish()
            .inspect_err(|_| {
                if new {
                    let _ = ipc::msg_remove(id);
                }
            })
            .context(doing)?;
        Ok(new)
    }

    /// Sends and receives as those who did so last.
    fn fill(&self, actors: &Actors) -> Result<()> {
        const DUMMY: (i64, &[u8]) = (1, b"");
        if self.lrpid != 0 {
            // Somebody has received, so somebody had sent.
            actors.act(self.lspid, |stub| {
                let mut script = stub.script();
                let at = script.data(&DUMMY.0.to_le_bytes());
                script.call("msgsnd", libc::SYS_msgsnd, &[self.perm.id as u64, at, 0, libc::IPC_NOWAIT as u64])?;
                script.run().map(drop)
            })?;
            actors.act(self.lrpid, |stub| {
                let mut script = stub.script();
                let at = script.data(&DUMMY.0.to_le_bytes());
                script.call("msgrcv", libc::SYS_msgrcv, &[self.perm.id as u64, at, 0, 0, libc::IPC_NOWAIT as u64])?;
                script.run().map(drop)
            })?;
        }
        if self.messages.is_empty() {
            return Ok(());
        }
        actors.act(self.lspid, |stub| {
            let mut script = stub.script();
            for (kind, Bytes(content)) in &self.messages {
                if content.len() > SCRIPT {
                    script.run()?;
                    ipc::send_message(self.perm.id, *kind, content).context(|| "sending a long message")?;
                    script = stub.script();
                    continue;
                }
                let at = script.data(&[&kind.to_le_bytes(), content.as_slice()].concat());
                script.call("msgsnd", libc::SYS_msgsnd, &[self.perm.id as u64, at, content.len() as u64, libc::IPC_NOWAIT as u64])?;
            }
            script.run().map(drop)
        })
    }
}
