//! Call frame information: how to get from the registers inside a function to those of its caller,
//! as the compiler wrote it down in `.eh_frame` (or `.debug_frame`).

use super::elf::ReadMemory;
use crate::sys::arch::Registers;
use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EhFrame, EhFrameHdr, Encoding, EndianSlice, EvaluationResult, Expression, FrameDescriptionEntry,
    LittleEndian, Location, Register, RegisterRule, UnwindContext, UnwindSection, Value, X86_64,
};
use std::cell::OnceCell;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// A section and the address that it has by the file's own counting.
#[derive(Debug)]
pub struct Section {
    pub address: u64,
    pub data: Vec<u8>,
}

impl Section {
    /// Where `.eh_frame` starts, out of `.eh_frame_hdr`.
    pub fn eh_frame_address(&self) -> Option<u64> {
        let bases = BaseAddresses::default().set_eh_frame_hdr(self.address);
        let parsed = EhFrameHdr::new(&self.data, LittleEndian).parse(&bases, 8).ok()?;
        parsed.eh_frame_ptr().direct().ok()
    }
}

/// Registers by their number in DWARF (System V ABI for AMD64, figure 3.36), as far as they are
/// known in a frame; number 16 is the address where it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu([Option<u64>; 17]);

const RSP: usize = 7;
const RIP: usize = 16;
/// What a called function may change: rax, rdx, rcx, rsi, rdi, r8 to r11.
const CLOBBERED: [usize; 9] = [0, 1, 2, 4, 5, 8, 9, 10, 11];

impl Cpu {
    /// The registers of a stopped thread.
    pub fn of(r: &Registers) -> Cpu {
        let all = [r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rip];
        Cpu(all.map(Some))
    }

    /// A caller of which only these are known.
    pub fn caller(&self, rip: u64, rsp: u64, rbp: Option<u64>) -> Cpu {
        let mut next = self.clone();
        for n in CLOBBERED {
            next.0[n] = None;
        }
        (next.0[RIP], next.0[RSP], next.0[6]) = (Some(rip), Some(rsp), rbp);
        next
    }

    /// All registers from the order in which `struct sigcontext` keeps them (r8 first, rip last).
    pub fn from_sigcontext(words: &[u64; 17]) -> Cpu {
        const ORDER: [usize; 17] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16];
        let mut cpu = Cpu([None; 17]);
        for (value, n) in words.iter().zip(ORDER) {
            cpu.0[n] = Some(*value);
        }
        cpu
    }

    pub fn rip(&self) -> Option<u64> {
        self.0[RIP]
    }

    pub fn rsp(&self) -> Option<u64> {
        self.0[RSP]
    }

    pub fn rbp(&self) -> Option<u64> {
        self.0[6]
    }

    fn get(&self, register: Register) -> Option<u64> {
        *self.0.get(usize::from(register.0))?
    }
}

/// What one step out of a function came to.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // it lives for one step
pub enum Step {
    /// The caller. `interrupted`: the function was entered by a signal, so the caller did not call
    /// it, it was interrupted at exactly that address.
    Caller { cpu: Cpu, interrupted: bool },
    /// The compiler says that nobody called this function.
    Outermost,
}

/// Where each function's entry starts in a section without a search table: (start, end, offset).
type Index = Vec<(u64, u64, usize)>;

/// The unwind tables of one file.
#[derive(Debug, Default)]
pub struct Cfi {
    pub eh_frame: Option<Section>,
    pub eh_frame_hdr: Option<Section>,
    pub debug_frame: Option<Section>,
    /// Addresses of `.text` and `.got`, to which pointers in the tables may be relative.
    pub text: u64,
    pub got: u64,
    eh_index: OnceCell<Index>,
    debug_index: OnceCell<Index>,
}

impl Cfi {
    /// Whether there are no tables at all.
    pub fn is_empty(&self) -> bool {
        self.eh_frame.is_none() && self.debug_frame.is_none()
    }

    fn bases(&self) -> BaseAddresses {
        let at = |s: &Option<Section>| s.as_ref().map_or(0, |s| s.address);
        BaseAddresses::default()
            .set_eh_frame_hdr(at(&self.eh_frame_hdr))
            .set_eh_frame(at(&self.eh_frame))
            .set_text(self.text)
            .set_got(self.got)
    }

    /// Steps out of the function at `address` (by the file's own counting; `bias` further in
    /// memory). `None`: the tables know nothing of it, or what they say cannot be followed.
    pub fn step(&self, address: u64, bias: u64, cpu: &Cpu, memory: &dyn ReadMemory) -> Option<Step> {
        let bases = self.bases();
        let place = Place { address, bias, cpu, memory };
        if let Some(section) = &self.eh_frame {
            let mut frame = EhFrame::new(&section.data, LittleEndian);
            frame.set_address_size(8);
            if let Some(fde) = self.eh_fde(&frame, &bases, address) {
                return place.apply(&frame, &bases, &fde);
            }
        }
        let section = self.debug_frame.as_ref()?;
        let mut frame = DebugFrame::new(&section.data, LittleEndian);
        frame.set_address_size(8);
        let index = self.debug_index.get_or_init(|| index(&frame, &bases));
        let fde = frame.fde_from_offset(&bases, find(index, address)?.into(), DebugFrame::cie_from_offset).ok()?;
        place.apply(&frame, &bases, &fde)
    }

    /// The entry of the function at an address: by the search table, or by one made here.
    fn eh_fde<'a>(&self, frame: &EhFrame<Slice<'a>>, bases: &BaseAddresses, address: u64) -> Option<FrameDescriptionEntry<Slice<'a>>> {
        if let Some(hdr) = &self.eh_frame_hdr {
            let parsed = EhFrameHdr::new(&hdr.data, LittleEndian).parse(bases, 8);
            if let Ok(parsed) = parsed
                && let Some(table) = parsed.table()
            {
                let offset = table.pointer_to_offset(table.lookup(address, bases).ok()?).ok()?;
                let fde = frame.fde_from_offset(bases, offset, EhFrame::cie_from_offset).ok()?;
                return fde.contains(address).then_some(fde);
            }
        }
        let index = self.eh_index.get_or_init(|| index(frame, bases));
        frame.fde_from_offset(bases, find(index, address)?.into(), EhFrame::cie_from_offset).ok()
    }
}

fn index<'a, S>(section: &S, bases: &BaseAddresses) -> Index
where
    S: UnwindSection<Slice<'a>, Offset: gimli::UnwindOffset<usize>>,
{
    let mut index = Index::new();
    let mut entries = section.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        if let gimli::CieOrFde::Fde(partial) = entry
            && let Ok(fde) = partial.parse(S::cie_from_offset)
        {
            index.push((fde.initial_address(), fde.end_address(), fde.offset()));
        }
    }
    index.sort_unstable();
    index
}

fn find(index: &Index, address: u64) -> Option<usize> {
    let end = index.partition_point(|e| e.0 <= address);
    index[..end].last().filter(|e| address < e.1).map(|e| e.2)
}

/// Where a step starts from.
struct Place<'a> {
    address: u64,
    bias: u64,
    cpu: &'a Cpu,
    memory: &'a dyn ReadMemory,
}

impl Place<'_> {
    /// Does what the row of the table for this address says.
    fn apply<'a, S>(&self, section: &S, bases: &BaseAddresses, fde: &FrameDescriptionEntry<Slice<'a>>) -> Option<Step>
    where
        S: UnwindSection<Slice<'a>>,
    {
        let mut context = UnwindContext::new();
        let row = fde.unwind_info_for_address(section, bases, &mut context, self.address).ok()?;
        let encoding = fde.cie().encoding();
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => self.cpu.get(*register)?.wrapping_add_signed(*offset),
            CfaRule::Expression(e) => self.evaluate(e.get(section).ok()?, encoding, None)?,
        };
        let interrupted = fde.is_signal_trampoline();
        let mut next = self.cpu.clone();
        if !interrupted {
            CLOBBERED.iter().for_each(|&n| next.0[n] = None);
        }
        (next.0[RSP], next.0[RIP]) = (Some(cfa), None);
        let mut called = false;
        for (register, rule) in row.registers() {
            let old = self.cpu.get(*register);
            let Some(new) = next.0.get_mut(usize::from(register.0)) else { continue };
            let read = |at: u64| self.memory.word(at);
            *new = match rule {
                RegisterRule::SameValue | RegisterRule::Architectural => old,
                RegisterRule::Offset(n) => read(cfa.wrapping_add_signed(*n)),
                RegisterRule::ValOffset(n) => Some(cfa.wrapping_add_signed(*n)),
                RegisterRule::Register(other) => self.cpu.get(*other),
                RegisterRule::Expression(e) => self.evaluate(e.get(section).ok()?, encoding, Some(cfa)).and_then(read),
                RegisterRule::ValExpression(e) => self.evaluate(e.get(section).ok()?, encoding, Some(cfa)),
                RegisterRule::Constant(n) => Some(*n),
                RegisterRule::Undefined => None,
            };
            called |= *register == X86_64::RA && !matches!(rule, RegisterRule::Undefined);
        }
        if !called {
            return Some(Step::Outermost);
        }
        next.rip()?;
        Some(Step::Caller { cpu: next, interrupted })
    }

    /// Runs a DWARF expression; with `initial` on its stack, as the rules for registers want it.
    fn evaluate(&self, expression: Expression<Slice<'_>>, encoding: Encoding, initial: Option<u64>) -> Option<u64> {
        let mut evaluation = expression.evaluation(encoding);
        evaluation.set_max_iterations(4096);
        if let Some(value) = initial {
            evaluation.set_initial_value(value);
        }
        let mut state = evaluation.evaluate().ok()?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size, .. } => {
                    let mut buf = [0; 8];
                    let buf_used = buf.get_mut(..usize::from(size))?;
                    if self.memory.read(address, buf_used) != usize::from(size) {
                        return None;
                    }
                    evaluation.resume_with_memory(Value::Generic(u64::from_le_bytes(buf))).ok()?
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.cpu.get(register)?)).ok()?
                }
                EvaluationResult::RequiresRelocatedAddress(address) => {
                    evaluation.resume_with_relocated_address(address.wrapping_add(self.bias)).ok()?
                }
                _ => return None,
            };
        }
        match evaluation.as_result().last()?.location {
            Location::Address { address } => Some(address),
            Location::Value { value } => value.to_u64(!0).ok(),
            _ => None,
        }
    }
}
