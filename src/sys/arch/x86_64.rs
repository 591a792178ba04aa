//! x86_64: the register file as ptrace(2) shows it.

use serde::{Deserialize, Serialize};

/// Architecture number in the image header (ELF `e_machine`: `EM_X86_64`).
pub const MACHINE: u16 = 62;
/// The same for seccomp(2): `AUDIT_ARCH_X86_64`.
pub const AUDIT: u32 = 0xc000_003e;

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

/// What rt_sigreturn(2) takes from the stack: `struct rt_sigframe` up to its mask (arch/x86/include/asm/sigframe.h),
/// with the vector state behind it.
pub struct SignalFrame {
    trampoline: u64,
    regs: Registers,
    sigmask: u64,
    xstate: Vec<u8>,
}

/// Length of `pretcode` and `struct ucontext`.
const UCONTEXT_END: u64 = 8 + 304;
/// Offset of the software-reserved bytes in the XSAVE area, which say how much of it is valid.
const SW_RESERVED: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// XCR0 bit of the AMX tile data, which a task gets only on request.
const XFEATURE_TILEDATA: u64 = 1 << 18;
/// Where the tile data begins in the standard format.
const TILEDATA_OFFSET: usize = 2816;

impl SignalFrame {
    /// Bytes of a frame beside the XSAVE area, alignment and closing mark included.
    pub const SIZE_WITHOUT_XSTATE: u64 = UCONTEXT_END + 64 + 4;

    /// A frame that brings back this state. `trampoline` is the code that calls rt_sigreturn(2). Without `xstate` the vector
    /// state is that of a new program.
    pub fn new(regs: &Registers, sigmask: u64, xstate: &[u8], trampoline: u64) -> Self {
        SignalFrame { trampoline, regs: *regs, sigmask, xstate: xstate.to_vec() }
    }

    /// The bytes for a frame that lies at `address`: the trampoline's address first, which `ret` takes.
    pub fn at(&self, address: u64) -> Vec<u8> {
        let r = &self.regs;
        let xstate_at = if self.xstate.is_empty() { 0 } else { (address + UCONTEXT_END + 63) & !63 };
        let mut out = Vec::with_capacity(4096);
        let words = |out: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
        // uc_flags: FP_XSTATE, SIGCONTEXT_SS, STRICT_RESTORE_SS; no link; a stack that sigaltstack(2) refuses, so that it stays.
        words(&mut out, &[self.trampoline, 7, 0, 0, 0, 0]);
        words(&mut out, &[r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx]);
        words(&mut out, &[r.rsp, r.rip, r.eflags]);
        for segment in [r.cs, r.gs, r.fs, r.ss] {
            out.extend((segment as u16).to_le_bytes());
        }
        words(&mut out, &[0, 0, 0, 0, xstate_at, 0, 0, 0, 0, 0, 0, 0, 0, self.sigmask]);
        debug_assert_eq!(out.len() as u64, UCONTEXT_END);
        if self.xstate.is_empty() {
            return out;
        }
        out.resize((xstate_at - address) as usize, 0);
        out.extend(self.signal_xstate());
        out
    }

    /// The XSAVE area in the form that a signal frame has.
    fn signal_xstate(&self) -> Vec<u8> {
        let mut area = self.xstate.clone();
        if area.len() < 576 {
            return area; // without XSAVE: the plain FXSAVE image
        }
        let word = |at: usize| u64::from_le_bytes(area[at..at + 8].try_into().unwrap_or_default());
        // ptrace shows XCR0 here.
        let mut features = word(SW_RESERVED);
        if area.len() > TILEDATA_OFFSET && word(512) & XFEATURE_TILEDATA == 0 {
            features &= !XFEATURE_TILEDATA;
            area.truncate(TILEDATA_OFFSET);
        }
        let size = area.len() as u32;
        let mut sw = Vec::with_capacity(48);
        sw.extend(FP_XSTATE_MAGIC1.to_le_bytes());
        sw.extend((size + 4).to_le_bytes());
        sw.extend(features.to_le_bytes());
        sw.extend(size.to_le_bytes());
        sw.resize(48, 0);
        area[SW_RESERVED..512].copy_from_slice(&sw);
        area.extend(FP_XSTATE_MAGIC2.to_le_bytes());
        area
    }
}

/// Whether the processor does AES, and the multiplication that GCM is made of.
pub fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

/// XCR0: which vector state components the kernel has switched on.
pub fn xfeatures() -> u64 {
    let leaf = std::arch::x86_64::__cpuid_count(0xd, 0);
    u64::from(leaf.edx) << 32 | u64::from(leaf.eax)
}

macro_rules! detected {
    ($($name:tt)*) => { [$(($name, std::is_x86_feature_detected!($name))),*] };
}

/// The instructions beyond those of every processor that this one has and the kernel lets programs use, with spaces in between.
pub fn instructions() -> String {
    let all = detected!("sse3" "ssse3" "sse4.1" "sse4.2" "sse4a" "popcnt" "cmpxchg16b" "movbe" "lzcnt" "bmi1" "bmi2" "adx" "aes" "pclmulqdq"
        "sha" "rdrand" "rdseed" "rtm" "xsave" "xsaveopt" "xsavec" "xsaves" "f16c" "fma" "avx" "avx2" "vaes" "vpclmulqdq" "gfni" "avx512f"
        "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni" "avx512bitalg" "avx512vpopcntdq"
        "avx512bf16" "avx512vp2intersect");
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

/// Components of the vector state that every processor keeps at the same place: x87, SSE, AVX.
const COMMON: u64 = 0b111;
/// Bytes of the vector state up to their end.
const COMMON_SIZE: usize = 832;
/// Where `XSTATE_BV` is in an XSAVE area.
const IN_USE: usize = 512;

/// Which components of an XSAVE area are not in their initial state (`XSTATE_BV`).
pub fn in_use(xstate: &[u8]) -> u64 {
    xstate.get(IN_USE..IN_USE + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The XSAVE area of another processor as this one has it, `size` bytes long. `None` when it uses components that may be
/// elsewhere in it.
pub fn fit_xstate(xstate: &[u8], size: usize) -> Option<Vec<u8>> {
    if xstate.len() == size {
        return Some(xstate.to_vec());
    }
    let mut fit = xstate.get(..COMMON_SIZE.min(size))?.to_vec();
    fit.resize(size, 0);
    (in_use(xstate) & !COMMON == 0).then_some(fit)
}

/// The time-stamp counter.
pub fn counter() -> u64 {
    // SAFETY: every processor of this architecture has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// An entry of an auxiliary vector, getauxval(3).
pub fn auxiliary(auxv: &[u8], kind: u64) -> Option<u64> {
    let word = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
    auxv.chunks_exact(16).find(|entry| word(&entry[..8]) == Some(kind)).and_then(|entry| word(&entry[8..]))
}

/// Whether an auxiliary vector is that of a 32-bit program: its first entries are 8 bytes long, so that
/// the second 32-bit word, the upper half of the first type in a 64-bit one, is not 0.
pub fn is_32_bit(auxv: &[u8]) -> bool {
    auxv.len() >= 8 && auxv[4..8] != [0; 4]
}

/// clone3(2) whose child calls `entry(argument)` on the stack that `args` names and ends with what it returns.
/// The kernel's answer, -errno on failure.
///
/// # Safety
/// `args` is a `struct clone_args` of `size` bytes with a stack; `entry` may do what the flags leave possible.
pub unsafe fn clone3_on_stack(
    args: *const std::ffi::c_void,
    size: usize,
    entry: extern "C" fn(*mut std::ffi::c_void) -> i32,
    argument: *mut std::ffi::c_void,
) -> i64 {
    let answer: i64;
    // SAFETY: the child never comes back to here: it leaves by exit_group(2). The parent finds its registers as the
    // system call leaves them.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "mov edi, eax",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            exit = const libc::SYS_exit_group,
            inlateout("rax") libc::SYS_clone3 => answer,
            in("rdi") args,
            in("rsi") size,
            in("r12") entry,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    answer
}
