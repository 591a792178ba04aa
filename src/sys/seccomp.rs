//! seccomp(2) filters of other tasks: reading them, and what they would say to a call.

use super::arch;
use super::ptrace::request;
use nix::errno::Errno;

/// Instructions of one filter at most, `BPF_MAXINSNS`.
pub const LONGEST: usize = 4096;
/// Bytes of one instruction, `struct sock_filter`.
pub const INSTRUCTION: usize = 8;

const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;

/// The classic BPF program of filter `number` of a stopped task, the oldest being 0; `None` behind the last one.
/// Needs `CAP_SYS_ADMIN`, and that the caller is under no filter itself (ptrace(2)).
pub fn filter(tid: i32, number: usize) -> Result<Option<Vec<u8>>, Errno> {
    let length = match request(PTRACE_SECCOMP_GET_FILTER, tid, number, 0) {
        Ok(n) => n as usize,
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut program = vec![0u8; length * INSTRUCTION];
    request(PTRACE_SECCOMP_GET_FILTER, tid, number, program.as_mut_ptr() as usize)?;
    Ok(Some(program))
}

/// `SECCOMP_FILTER_FLAG_*` of a filter (Linux 4.17), of which only `LOG` is told.
pub fn filter_flags(tid: i32, number: usize) -> Result<u64, Errno> {
    let mut metadata = [number as u64, 0];
    request(PTRACE_SECCOMP_GET_METADATA, tid, size_of_val(&metadata), metadata.as_mut_ptr() as usize)?;
    Ok(metadata[1])
}

/// Whether some answer of a program hands the call to a listener in user space.
pub fn notifies(program: &[u8]) -> bool {
    const BPF_RET_K: u16 = 0x06;
    instructions(program).any(|i| i.code == BPF_RET_K && i.k & ACTION == libc::SECCOMP_RET_USER_NOTIF)
}

const ACTION: u32 = 0xffff_0000;

/// What confines a task.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    /// `SECCOMP_MODE_STRICT`.
    pub strict: bool,
    /// Its filters, else.
    pub filters: Vec<std::rc::Rc<[u8]>>,
}

impl Confinement {
    /// The action (`SECCOMP_RET_*`) for a call that is made at `ip`: the most severe of all filters.
    pub fn action(&self, number: i64, args: &[u64; 6], ip: u64) -> u32 {
        if self.strict {
            let allowed = [libc::SYS_read, libc::SYS_write, libc::SYS_exit, libc::SYS_rt_sigreturn].contains(&number);
            return if allowed { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_KILL_THREAD };
        }
        let data = data(number, args, ip);
        let actions = self.filters.iter().map(|f| answer(f, &data) & ACTION);
        actions.min_by_key(|&a| a as i32).unwrap_or(libc::SECCOMP_RET_ALLOW)
    }

    /// Whether the task lives on after this call, whether it may make it or not.
    pub fn survives(&self, number: i64, args: &[u64; 6], ip: u64) -> bool {
        matches!(
            self.action(number, args, ip),
            libc::SECCOMP_RET_ERRNO | libc::SECCOMP_RET_TRACE | libc::SECCOMP_RET_LOG | libc::SECCOMP_RET_ALLOW
        )
    }

    /// Whether it may make this call.
    pub fn allows(&self, number: i64, args: &[u64; 6], ip: u64) -> bool {
        matches!(self.action(number, args, ip), libc::SECCOMP_RET_LOG | libc::SECCOMP_RET_ALLOW)
    }
}

/// `struct seccomp_data`.
fn data(number: i64, args: &[u64; 6], ip: u64) -> [u8; 64] {
    let mut data = [0u8; 64];
    data[..4].copy_from_slice(&(number as u32).to_le_bytes());
    data[4..8].copy_from_slice(&arch::AUDIT.to_le_bytes());
    data[8..16].copy_from_slice(&ip.to_le_bytes());
    for (at, arg) in data[16..].chunks_exact_mut(8).zip(args) {
        at.copy_from_slice(&arg.to_le_bytes());
    }
    data
}

/// `struct sock_filter`.
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

fn instructions(program: &[u8]) -> impl Iterator<Item = Instruction> {
    program.chunks_exact(INSTRUCTION).map(|b| Instruction {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    })
}

/// Runs a program as the kernel does (Documentation/networking/filter.rst; jumps lead forward only, so it ends). What
/// the kernel would not have accepted kills.
fn answer(program: &[u8], data: &[u8; 64]) -> u32 {
    run(program, data).unwrap_or(libc::SECCOMP_RET_KILL_PROCESS)
}

fn run(program: &[u8], data: &[u8; 64]) -> Option<u32> {
    let code: Vec<Instruction> = instructions(program).collect();
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let i = code.get(at)?;
        at += 1;
        let class = i.code & 0x07;
        let operand = if i.code & 0x08 != 0 { x } else { i.k };
        match class {
            // BPF_LD, BPF_LDX by mode: immediate, absolute, memory, length.
            0 | 1 => {
                let value = match i.code & 0xe0 {
                    0x00 => i.k,
                    0x20 => u32::from_le_bytes(data.get(i.k as usize..i.k as usize + 4)?.try_into().ok()?),
                    0x60 => *memory.get(i.k as usize)?,
                    0x80 => data.len() as u32,
                    _ => return None,
                };
                *(if class == 0 { &mut a } else { &mut x }) = value;
            }
            2 => *memory.get_mut(i.k as usize)? = a,
            3 => *memory.get_mut(i.k as usize)? = x,
            4 => a = calculate(i.code & 0xf0, a, operand)?,
            5 if i.code & 0xf0 == 0 => at = at.checked_add(i.k as usize)?,
            5 => {
                let holds = match i.code & 0xf0 {
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if holds { i.jt } else { i.jf });
            }
            6 => return Some(if i.code & 0x18 == 0x10 { a } else { i.k }),
            // BPF_MISC: TXA, TAX.
            _ if i.code & 0xf8 == 0x80 => a = x,
            _ => x = a,
        }
    }
}

/// `BPF_ALU`. A division by zero ends a program with 0, which is `SECCOMP_RET_KILL_THREAD`; the caller's answer kills as well.
fn calculate(operation: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => a.checked_div(operand)?,
        0x40 => a | operand,
        0x50 => a & operand,
        0x60 => a.wrapping_shl(operand),
        0x70 => a.wrapping_shr(operand),
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(operand)?,
        0xa0 => a ^ operand,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(code: &[(u16, u8, u8, u32)]) -> std::rc::Rc<[u8]> {
        code.iter().flat_map(|&(code, jt, jf, k)| [&code.to_le_bytes()[..], &[jt, jf], &k.to_le_bytes()].concat()).collect()
    }

    /// Errno 7 for write(2) with 3 as its second argument, all else allowed.
    fn picky() -> std::rc::Rc<[u8]> {
        program(&[
            (0x20, 0, 0, 0),
            (0x15, 0, 3, libc::SYS_write as u32),
            (0x20, 0, 0, 24),
            (0x15, 0, 1, 3),
            (0x06, 0, 0, libc::SECCOMP_RET_ERRNO | 7),
            (0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        ])
    }

    #[test]
    fn most_severe_wins() {
        let kills = program(&[(0x20, 0, 0, 0), (0x35, 0, 1, 200), (0x06, 0, 0, libc::SECCOMP_RET_KILL_PROCESS), (0x06, 0, 0, 0x7fff_0000)]);
        let c = Confinement { strict: false, filters: vec![picky(), kills] };
        let three = [0, 3, 0, 0, 0, 0];
        assert_eq!(c.action(libc::SYS_write, &three, 0), libc::SECCOMP_RET_ERRNO);
        assert_eq!(c.action(libc::SYS_write, &[0; 6], 0), libc::SECCOMP_RET_ALLOW);
        assert_eq!(c.action(300, &three, 0), libc::SECCOMP_RET_KILL_PROCESS);
        assert!(c.survives(libc::SYS_write, &three, 0) && !c.allows(libc::SYS_write, &three, 0));
        assert!(!c.survives(300, &three, 0));
    }

    #[test]
    fn arithmetic_and_memory() {
        // nr * 2 + 5, kept in M[3], fetched to X, compared, returned by A.
        let p = program(&[
            (0x20, 0, 0, 0),
            (0x24, 0, 0, 2),
            (0x04, 0, 0, 5),
            (0x02, 0, 0, 3),
            (0x61, 0, 0, 3),
            (0x1d, 0, 1, 0),
            (0x16, 0, 0, 0),
            (0x06, 0, 0, 1),
        ]);
        assert_eq!(answer(&p, &data(10, &[0; 6], 0)), 25);
        let divides = program(&[(0x20, 0, 0, 0), (0x01, 0, 0, 0), (0x3c, 0, 0, 0), (0x06, 0, 0, libc::SECCOMP_RET_ALLOW)]);
        assert_eq!(answer(&divides, &data(10, &[0; 6], 0)), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn nonsense_kills() {
        for p in [program(&[]), program(&[(0x05, 0, 0, u32::MAX)]), program(&[(0x20, 0, 0, 64)]), program(&[(0x61, 0, 0, 16)])] {
            assert_eq!(answer(&p, &[0; 64]), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn listeners_are_seen() {
        assert!(!notifies(&picky()));
        assert!(notifies(&program(&[(0x06, 0, 0, libc::SECCOMP_RET_USER_NOTIF)])));
    }

    #[test]
    fn strict_mode() {
        let c = Confinement { strict: true, filters: vec![] };
        assert!(c.survives(libc::SYS_rt_sigreturn, &[0; 6], 0) && !c.survives(libc::SYS_getpid, &[0; 6], 0));
    }
}
