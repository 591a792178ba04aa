//! x86_64: the register file as ptrace(2) shows it.

use serde::{Deserialize, Serialize};

/// Architecture number in the image header (ELF `e_machine`: `EM_X86_64`).
pub const MACHINE: u16 = 62;

/// The general registers of a task, as `PTRACE_GETREGSET` with `NT_PRSTATUS`
/// (ptrace(2)) returns them: `struct user_regs_struct`, field by field.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the names are the processor's own
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Number of the interrupted system call, or -1 outside of one.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}
