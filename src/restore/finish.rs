//! The last that is done to the tasks of a tree: everything that is neither memory nor its content.
//!
//! Each step is begun in all processes before anybody is waited for. One after the other, a step would take as long as
//! the processor needs to turn to one task and back, and there are ten of them to each process.

use super::interest;
use super::layout;
use super::planted::{Planted, own_credentials};
use super::pool::Pool;
use super::queues;
use super::sockets;
use super::terminal::Terminals;
use super::users;
use crate::error::{Context, Result};
use crate::resource::credentials::Credentials;
use crate::resource::process::Process;
use crate::resource::seccomp::{self, Seccomp};
use crate::resource::thread::Thread;
use crate::resource::{signals, timers::Timers};
use crate::sys::arch::Registers;
use crate::tracee::stub::{Script, Stub, run_together, vanish_together};
use std::collections::HashMap;

impl<'t> Planted<'t> {
    /// Everything that is not memory.
    pub(super) fn finish(&self, pool: &Pool, terminals: &Terminals, warnings: &mut Vec<String>) -> Result<()> {
        let processes: Vec<&Process> = self.living().collect();
        let stub = |p: &Process| &self.skeleton.stubs[&p.pid];
        let first = |p: &&Process| self.directories(p, pool, terminals);
        match pool.late() {
            None => run_together(processes.iter().map(first))?,
            // What is sent to them comes by one way for all.
            Some(_) => processes.iter().try_for_each(|p| first(p)?.run().map(drop))?,
        }
        processes.iter().try_for_each(|p| interest::fill(self.tree, p, pool, stub(p)))?;
        let chosen = Timers::ids_can_be_chosen();
        run_together(processes.iter().map(|p| self.open(p, pool, chosen)))?;
        for p in &processes {
            warnings.extend(p.apply(stub(p).pid));
            p.threads.iter().filter(|t| !t.seccomp.is_off()).try_for_each(|t| self.threads[&t.tid].suspend_seccomp())?;
        }
        // Before a timer runs: what it sends is to find no thread that would take it.
        processes.iter().flat_map(|p| &p.threads).try_for_each(|t| self.threads[&t.tid].block_signals())?;
        let own = own_credentials()?;
        // Threads of one process have one place for their scripts.
        for n in 0..processes.iter().map(|p| p.threads.len()).max().unwrap_or(0) {
            let turn = processes.iter().filter_map(|p| Some((*p, p.threads.get(n)?)));
            run_together(turn.map(|(process, thread)| self.become_itself(process, thread, &own, warnings)))?;
        }
        let entered = self.wait_on(&processes)?;
        processes.iter().try_for_each(|p| p.signals.tell_last(stub(p)))?;
        vanish_together(processes.iter().map(|p| stub(p)))?;
        for thread in processes.iter().flat_map(|p| &p.threads) {
            let moved = self.moved.get(&thread.tid);
            let registers = entered.get(&thread.tid).or(moved.map(|m| &m.registers));
            thread.finish(self.threads[&thread.tid].tid, registers.copied(), moved.and_then(|m| m.xstate.as_deref()))?;
        }
        Ok(())
    }

    /// Directories, the group in front of its terminal, files that were made late.
    fn directories(&self, process: &Process, pool: &Pool, terminals: &Terminals) -> Result<Script<'_>> {
        let stub = &self.skeleton.stubs[&process.pid];
        let mut script = stub.script();
        process.tell(&mut script)?;
        process.fs.tell(stub.pid, &mut script)?;
        for (_, foreground, slave) in terminals.sessions().into_iter().filter(|s| s.0 == process.pid) {
            if let Some(foreground) = self.group_seen(foreground, process.level()) {
                let at = script.data(&foreground.to_le_bytes());
                script.call("ioctl TIOCSPGRP", libc::SYS_ioctl, &[slave as u64, libc::TIOCSPGRP, at])?;
            }
        }
        if let Some(late) = pool.late() {
            late.deliver(process, self.tree, pool, &mut script)?;
        }
        Ok(script)
    }

    /// Descriptors, and what all threads of a process share.
    fn open(&self, process: &Process, pool: &Pool, chosen_timers: bool) -> Result<Script<'_>> {
        let stub = &self.skeleton.stubs[&process.pid];
        let mut script = stub.script();
        descriptors(&mut script, process, pool)?;
        if let Some(space) = &process.memory {
            layout::finish(&mut script, space, pool)?;
        }
        process.signals.tell(&mut script)?;
        process
            .timers
            .create(&mut script, chosen_timers, |tid| process.threads.iter().find(|t| t.tid == tid).map_or(tid, Thread::own_number))?;
        process.attributes.tell(&mut script)?;
        script.call("close_range", libc::SYS_close_range, &[pool.base() as u64, u64::from(u32::MAX), 0])?;
        // After the pool has gone: closing any descriptor of a file drops the process's record locks on it.
        for (d, lock) in process.descriptors.iter().flat_map(|d| d.locks.iter().map(move |lock| (d, lock))) {
            let at = script.data(&lock.to_flock());
            script.call("fcntl F_SETLK", libc::SYS_fcntl, &[d.fd as u64, libc::F_SETLK as u64, at])?;
        }
        queues::notify(&mut script, process, self.tree)?;
        process.limits.tell(stub.pid, &mut script)?;
        Ok(script)
    }

    /// Identity and state of a thread, signals that wait, and with the first one the timers of its process.
    fn become_itself(&self, process: &Process, thread: &Thread, own: &Credentials, warnings: &mut Vec<String>) -> Result<Script<'_>> {
        let stub = &self.threads[&thread.tid];
        warnings.extend(thread.sched.apply(stub.tid, thread.tid));
        warnings.extend(thread.attributes.apply(stub.tid, thread.tid));
        let modes = thread.attributes.modes.clone().unwrap_or_else(|| process.attributes.modes());
        warnings.extend(modes.tell(stub, thread.tid)?);
        let mut script = stub.script();
        let confined: Vec<&Seccomp> = process.threads.iter().map(|t| &t.seccomp).collect();
        seccomp::tell(&mut script, thread.tid == process.pid, &thread.seccomp, &confined, &self.tree.filters)?;
        thread.tell(&mut script)?;
        thread.attributes.tell(&mut script)?;
        let inside = users::inside(self.tree, process, &thread.credentials, stub.tid)?;
        thread.credentials.tell(&mut script, own, inside)?;
        if thread.tid == process.pid {
            sockets::identity::listen_again(process, self.tree, &mut script)?;
            self.owners(&mut script, process)?;
        }
        thread.tell_last(&mut script)?;
        let own = process.own_number();
        signals::queue(&mut script, &thread.pending, own, Some(thread.own_number()))?;
        if thread.tid == process.pid {
            signals::queue(&mut script, &process.signals.pending, own, None)?;
            // Identity changes make a process undumpable.
            if process.dumpable <= 1 {
                let args = [libc::PR_SET_DUMPABLE as u64, u64::from(process.dumpable), 0, 0, 0];
                script.call("prctl PR_SET_DUMPABLE", libc::SYS_prctl, &args)?;
            }
            process.timers.arm(&mut script)?;
        }
        Ok(script)
    }

    /// Lets the threads that waited for a limited time wait for the rest of it. Their registers.
    fn wait_on(&self, processes: &[&Process]) -> Result<HashMap<i32, Registers>> {
        let mut entered = HashMap::new();
        for thread in processes.iter().flat_map(|p| &p.threads) {
            let stub: &Stub = &self.threads[&thread.tid];
            if let Some(registers) = thread.enter_wait(stub).context(|| format!("resuming the wait of task {}", thread.tid))? {
                entered.insert(thread.tid, registers);
            }
        }
        Ok(entered)
    }
}

/// Brings every descriptor to its number and closes all others below the pool.
fn descriptors(script: &mut Script<'_>, process: &Process, pool: &Pool) -> Result<()> {
    let mut table: Vec<_> = process.descriptors.iter().collect();
    table.sort_by_key(|d| d.fd);
    let mut next = 0;
    for d in table {
        if d.fd > next {
            script.call("close_range", libc::SYS_close_range, &[next as u64, d.fd as u64 - 1, 0])?;
        }
        next = d.fd + 1;
        let cloexec = if d.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
        script.expect("dup3", d.fd as u64, libc::SYS_dup3, &[pool.file(d.file)? as u64, d.fd as u64, cloexec])?;
    }
    if next < pool.base() {
        script.call("close_range", libc::SYS_close_range, &[next as u64, pool.base() as u64 - 1, 0])?;
    }
    Ok(())
}
