//! Threads that were stopped inside the functions of a vDSO that is replaced.

use super::entries::Patches;
use crate::error::{Error, Kind, Result};
use crate::resource::thread::Thread;
use crate::sys::arch::Registers;
use crate::sys::ptrace::{self, Status};
use crate::tracee::stub::Stub;

/// No function needs more instructions to tell the time.
const STEPS: u32 = 20_000;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const RDTSC: [u8; 2] = [0x0f, 0x31];
const RDTSCP: [u8; 3] = [0x0f, 0x01, 0xf9];

/// How a thread goes on.
#[derive(Debug)]
pub struct Moved {
    /// Which one.
    pub tid: i32,
    /// Its registers.
    pub registers: Registers,
    /// Its vector state, when it has changed.
    pub xstate: Option<Vec<u8>>,
}

/// A vDSO in a stub as it was, with its data.
pub struct Old<'a> {
    /// Where it is.
    pub at: u64,
    /// Its bytes.
    pub image: &'a [u8],
    /// The time-stamp counter of then.
    pub counter: u64,
}

impl Old<'_> {
    /// Lets a thread come out, instruction by instruction. The processor's counter is the one of then. `None` when it
    /// does not come out.
    pub fn come_out(&self, stub: &Stub, thread: &Thread) -> Result<Option<Moved>> {
        thread.set_vectors(stub.tid, None)?;
        let mut registers = Registers { orig_rax: u64::MAX, ..thread.registers };
        let out = |registers: Registers| Ok(Some(Moved { tid: thread.tid, registers, xstate: Some(ptrace::xstate(stub.tid)?) }));
        for _ in 0..STEPS {
            let next = registers.rip.checked_sub(self.at).and_then(|at| self.image.get(at as usize..)).unwrap_or_default();
            // What the kernel is asked it answers everywhere; the code behind that only returns.
            if next.is_empty() || next.starts_with(&SYSCALL) {
                return out(registers);
            }
            if next.starts_with(&RDTSC) || next.starts_with(&RDTSCP) {
                registers.rax = self.counter & u64::from(u32::MAX);
                registers.rdx = self.counter >> 32;
                let with_processor = next.starts_with(&RDTSCP);
                registers.rcx = if with_processor { 0 } else { registers.rcx };
                registers.rip += if with_processor { RDTSCP.len() } else { RDTSC.len() } as u64;
                continue;
            }
            ptrace::set_registers(stub.tid, &registers)?;
            step(stub)?;
            registers = Registers { orig_rax: u64::MAX, ..ptrace::registers(stub.tid)? };
        }
        Ok(None)
    }
}

/// One instruction.
fn step(stub: &Stub) -> Result<()> {
    loop {
        ptrace::step(stub.tid)?;
        match ptrace::wait(stub.tid)? {
            Status::Signal(libc::SIGTRAP) => return Ok(()),
            Status::Signal(fatal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE)) => {
                return Err(Error::other(format!("the old code failed with signal {fatal}")));
            }
            Status::Ended(_) => return Err(Error::other("it was killed")),
            // Meant for nobody.
            _ => {}
        }
    }
}

impl Patches {
    /// A thread in the bytes of a jump, which cannot go on there: it begins with the function again, when it has done
    /// nothing yet that cannot be taken back.
    pub fn begin_again(&self, image: &[u8], at: u64, thread: &Thread) -> Result<Option<Moved>> {
        let rip = thread.registers.rip - at;
        let Some((entry, code)) = self.jumps.iter().find(|(entry, code)| (*entry..entry + code.len() as u64).contains(&rip)) else {
            return Ok(None);
        };
        let pushes = pushes(&image[*entry as usize..rip as usize]).ok_or_else(|| {
            let text = format!("task {} has just begun with a function of the vDSO that is replaced ({} bytes)", thread.tid, code.len());
            Error::new(Kind::Kernel, text).help("dump it again, or restore it under the kernel that the image was made on")
        })?;
        let registers = Registers { rip: at + entry, rsp: thread.registers.rsp + 8 * pushes, ..thread.registers };
        Ok(Some(Moved { tid: thread.tid, registers, xstate: None }))
    }
}

/// How many registers were pushed by the instructions that a thread has made. `None` when it has done more.
fn pushes(begun: &[u8]) -> Option<u64> {
    match begun {
        [] => Some(0),
        [0xf3, 0x0f, 0x1e, 0xfa, rest @ ..] => pushes(rest), // endbr64
        [0x50..=0x57, rest @ ..] | [0x41, 0x50..=0x57, rest @ ..] => pushes(rest).map(|n| n + 1),
        [0x66, 0x90, rest @ ..] | [0x90, rest @ ..] => pushes(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_taken_back() {
        assert_eq!(pushes(&[]), Some(0));
        assert_eq!(pushes(&[0xf3, 0x0f, 0x1e, 0xfa]), Some(0));
        assert_eq!(pushes(&[0x55]), Some(1));
        assert_eq!(pushes(&[0x55, 0x41, 0x54]), Some(2));
        assert_eq!(pushes(&[0x48, 0x89]), None);
    }

    #[test]
    fn who_is_in_the_bytes_of_a_jump_begins_again() {
        let patches = Patches { jumps: vec![(16, [0xe9, 0, 0, 0, 0])], annex: Vec::new() };
        let mut image = vec![0x90; 64];
        image[16..18].copy_from_slice(&[0x55, 0x48]);
        let thread = |rip: u64| Thread { tid: 7, registers: Registers { rip, rsp: 0x1000, ..Registers::default() }, ..Thread::default() };
        let moved = patches.begin_again(&image, 0x4000, &thread(0x4011)).expect("fine").expect("moved");
        assert_eq!((moved.registers.rip, moved.registers.rsp, moved.tid), (0x4010, 0x1008, 7));
        assert!(patches.begin_again(&image, 0x4000, &thread(0x4015)).expect("fine").is_none());
        assert!(patches.begin_again(&image, 0x4000, &thread(0x4013)).is_err_and(|e| e.kind == Kind::Kernel));
    }
}
