//! The call stack of one thread, from its registers and the memory it left behind. By the unwind
//! tables where there are any, by frame pointers where there are none. What is in memory may be
//! anything: every step is bounded, and a stack that does not go outward ends the walk.

use super::cfi::{Cpu, Step};
use super::elf::{ElfFile, ReadMemory};
use crate::sys::arch::Registers;
use std::rc::Rc;

/// No stack is followed further; programs that recurse without end have some 100,000 frames, of
/// which the innermost tell the story.
pub const MAX_FRAMES: usize = 1024;

/// What is known about the code of a process.
pub trait Code {
    /// The file that is mapped at an address, and that address by the file's own counting.
    fn file_at(&self, address: u64) -> Option<(Rc<ElfFile>, u64)>;
    /// Whether the address can be executed.
    fn is_executable(&self, address: u64) -> bool;
}

/// One frame: where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// The address where it goes on.
    pub pc: u64,
    /// It was interrupted there; else it called, and the call is in front of `pc`.
    pub exact: bool,
    /// Nobody called it: the kernel put it there, to return from a signal handler.
    pub signal: bool,
}

impl RawFrame {
    /// An address inside of the instruction that is being executed. A call may be the last
    /// instruction of a function, then `pc` is already in the next one.
    pub fn inside(&self) -> u64 {
        if self.exact || self.signal { self.pc } else { self.pc.wrapping_sub(1) }
    }
}

/// A call stack.
#[derive(Debug, Default)]
pub struct Unwound {
    /// The innermost first.
    pub frames: Vec<RawFrame>,
    /// Why it may be incomplete or partly guessed.
    pub note: Option<String>,
}

/// Walks from the innermost frame outward.
pub fn unwind(registers: &Registers, memory: &dyn ReadMemory, code: &dyn Code) -> Unwound {
    let mut stack = Unwound::default();
    let mut cpu = Cpu::of(registers);
    let mut exact = true;
    while let (Some(pc), Some(rsp)) = (cpu.rip(), cpu.rsp()) {
        if pc == 0 && !exact {
            break;
        }
        if !exact && !code.is_executable(pc) {
            stack.note = Some(format!("return address {pc:#x} is not in executable memory"));
            break;
        }
        if stack.frames.len() == MAX_FRAMES {
            stack.note = Some(format!("more than {MAX_FRAMES} frames"));
            break;
        }
        let frame = RawFrame { pc, exact, signal: false };
        let step = step(&frame, &cpu, memory, code);
        stack.frames.push(frame);
        let (next, interrupted) = match step {
            Ok(Step::Outermost) => break,
            Ok(Step::Caller { cpu: next, interrupted }) => {
                if let Some(frame) = stack.frames.last_mut() {
                    frame.signal = interrupted;
                }
                (next, interrupted)
            }
            Err(why) => {
                let Some(next) = by_frame_pointer(&cpu, exact, memory, code) else {
                    stack.note = Some(format!("{why} at {pc:#x}"));
                    break;
                };
                stack.note.get_or_insert_with(|| format!("{why} at {pc:#x}, from there on by frame pointers"));
                (next, false)
            }
        };
        // A signal handler may have a stack of its own, anywhere.
        if !interrupted && next.rsp().is_none_or(|outer| outer <= rsp) {
            stack.note = Some(format!("the stack does not go outward at {pc:#x}"));
            break;
        }
        (cpu, exact) = (next, interrupted);
    }
    stack
}

/// One step by what is written down about the code.
fn step(frame: &RawFrame, cpu: &Cpu, memory: &dyn ReadMemory, code: &dyn Code) -> Result<Step, &'static str> {
    if !code.is_executable(frame.pc) {
        // A call through a bad pointer: nothing but the return address has been pushed.
        return after_call(cpu, memory, code).ok_or("jump to an address that cannot be executed");
    }
    let inside = frame.inside();
    if let Some((file, address)) = code.file_at(inside)
        && let Some(step) = file.cfi().step(address, inside.wrapping_sub(address), cpu, memory)
    {
        return Ok(step);
    }
    signal_return(frame.pc, cpu, memory).ok_or("no unwind information")
}

/// The caller of a function that has not done anything yet.
fn after_call(cpu: &Cpu, memory: &dyn ReadMemory, code: &dyn Code) -> Option<Step> {
    let rsp = cpu.rsp()?;
    let pc = memory.word(rsp).filter(|&pc| code.is_executable(pc))?;
    Some(Step::Caller { cpu: cpu.caller(pc, rsp.wrapping_add(8), cpu.rbp()), interrupted: false })
}

/// Code that returns from a signal and has no table: `mov $15, %eax; syscall`, known by its bytes.
/// The stack pointer then stands on the `ucontext` of sigreturn(2), its registers 40 bytes in.
fn signal_return(pc: u64, cpu: &Cpu, memory: &dyn ReadMemory) -> Option<Step> {
    const SHORT: [u8; 7] = [0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];
    const LONG: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    let mut found = [0; 9];
    let n = memory.read(pc, &mut found);
    if !(found[..n].starts_with(&SHORT) || found[..n] == LONG) {
        return None;
    }
    let base = cpu.rsp()?.wrapping_add(40);
    let mut words = [0; 17];
    for (i, word) in words.iter_mut().enumerate() {
        *word = memory.word(base.wrapping_add(8 * i as u64))?;
    }
    Some(Step::Caller { cpu: Cpu::from_sigcontext(&words), interrupted: true })
}

/// The caller by the chain of saved frame pointers (`push %rbp; mov %rsp, %rbp`).
fn by_frame_pointer(cpu: &Cpu, exact: bool, memory: &dyn ReadMemory, code: &dyn Code) -> Option<Cpu> {
    let (rbp, rsp) = (cpu.rbp()?, cpu.rsp()?);
    // In an interrupted function the frame pointer may not have been pushed yet; further out it
    // points into the frame or the frame has none.
    let inside = rbp % 8 == 0 && rbp >= rsp && (exact || rbp - rsp < 1 << 24);
    let pc = memory.word(rbp.checked_add(8)?).filter(|&pc| inside && code.is_executable(pc.wrapping_sub(1)))?;
    Some(cpu.caller(pc, rbp.checked_add(16)?, Some(memory.word(rbp)?)))
}

#[cfg(test)]
#[path = "unwind_tests.rs"]
mod tests;
