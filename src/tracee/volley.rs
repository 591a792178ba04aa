//! Many system calls of a stopped task in one go.
//!
//! One by one, a call takes two stops ([`super::inject`]). Calls that merely tell something need none: instructions that
//! every C library holds (`pop` of a register and `ret`, `syscall; ret`, a store of `rax`) are strung together by their
//! addresses on the dead bytes of the stack, right below the signal frame by which the task heals itself. The last
//! call sends the task a signal that means nothing to it. A task that is traced stops for it; if meio has died meanwhile, the
//! kernel drops it, and the task goes on over the frame like after any other call.
//!
//! Nothing else than these calls happens: no signal handler can run in between, the vector state, the time that an
//! interrupted call has left and the alternate stack stay as they are.

use crate::error::{Error, Result};
use crate::sys::memory;
use std::collections::VecDeque;

const RET: u8 = 0xc3;
/// Registers by their number in instructions.
const RAX: u8 = 0;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// A word on the stack that is skipped.
const NONE: u8 = 16;
/// Words on the stack that one link may take.
const MOST_WORDS: usize = 8;
/// Bytes of the pops of a link, without the `ret`.
const LONGEST_POP: usize = 4;
/// Bytes of code of a link, at most.
const MOST_CODE: usize = 24;
/// Signals that are ignored unless a program handles them, signal(7).
const IGNORED: [i32; 2] = [libc::SIGURG, libc::SIGWINCH];

/// A system call that tells something and changes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    number: i64,
    args: [u64; 6],
    /// Arguments that are offsets into the bytes that the call leaves, a bit each.
    pointers: u8,
    room: u64,
}

/// What became of one.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// What the kernel returned, -errno on failure.
    pub returned: i64,
    /// What it left.
    pub left: Vec<u8>,
}

/// What became of several, in their order.
#[derive(Debug, Default)]
pub struct Answers(VecDeque<Answer>);

impl Question {
    /// One that is answered by what it returns.
    pub const fn new(number: i64, args: [u64; 6]) -> Self {
        Question { number, args, pointers: 0, room: 0 }
    }

    /// One that leaves `room` bytes, to which argument `arg` points.
    pub const fn leaving(self, arg: usize, room: u64) -> Self {
        self.leaving_at(arg, 0, room)
    }

    /// One that leaves `room` bytes more than `offset`; argument `arg` points behind these.
    pub const fn leaving_at(mut self, arg: usize, offset: u64, room: u64) -> Self {
        self.args[arg] = offset;
        self.pointers |= 1 << arg;
        self.room = offset + room.next_multiple_of(8);
        self
    }

    /// Number of the call.
    pub fn number(&self) -> i64 {
        self.number
    }

    /// Bytes that it leaves.
    pub fn room(&self) -> usize {
        self.room as usize
    }

    /// Its arguments when it leaves its bytes at `out`.
    pub fn args(&self, out: u64) -> [u64; 6] {
        std::array::from_fn(|n| if self.pointers >> n & 1 != 0 { self.args[n] + out } else { self.args[n] })
    }

    /// The arguments that all calls of a volley have in common: no instructions are looked for that set them.
    fn fixed(&self) -> [u64; 3] {
        [self.args[3], self.args[4], self.args[5]]
    }

    /// Whether it can be asked together with others.
    fn fits(&self) -> bool {
        self.pointers >> 3 == 0
    }
}

impl Answer {
    /// What was returned, the kernel's refusal as an error.
    pub fn must(&self) -> Result<i64> {
        match self.returned {
            e @ -4095..0 => Err(nix::errno::Errno::from_raw(-e as i32).into()),
            value => Ok(value),
        }
    }

    /// Bytes that were left.
    pub fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        self.left.get(at..at + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
    }
}

impl Answers {
    /// All of these.
    pub fn of(answers: impl IntoIterator<Item = Answer>) -> Self {
        Answers(answers.into_iter().collect())
    }

    /// The next one.
    pub fn next(&mut self) -> Result<Answer> {
        self.0.pop_front().ok_or_else(|| Error::other("a question was not asked"))
    }
}

/// Instructions that take words from the stack and return.
#[derive(Debug, Clone, Copy)]
struct Link {
    at: u64,
    code: [u8; MOST_CODE],
    length: usize,
    words: [u8; MOST_WORDS],
    count: usize,
}

/// What calls are strung together with.
#[derive(Debug, Clone, Copy)]
pub struct Links {
    /// For `rdi`, `rsi`, `rdx`, `rax`, and the register that `store` goes by.
    pops: [Link; 5],
    /// Puts `rax` at an address that a register holds.
    store: Link,
    /// That register, and how far behind.
    base: (u8, i64),
}

/// Reads `pop`s up to a `ret`: the registers, and the bytes that they are.
fn pops(code: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut words = Vec::new();
    let mut at = 0;
    while words.len() <= MOST_WORDS {
        match *code.get(at)? {
            RET => return Some((words, at + 1)),
            op @ 0x58..=0x5f if op - 0x58 != RSP => words.push(op - 0x58),
            0x41 => {
                at += 1;
                words.push(8 + code.get(at).filter(|op| (0x58..=0x5f).contains(*op))? - 0x58);
            }
            _ => return None,
        }
        at += 1;
    }
    None
}

impl Link {
    fn new(at: u64, code: &[u8], words: &[u8]) -> Option<Link> {
        if words.len() > MOST_WORDS || code.len() > MOST_CODE {
            return None;
        }
        let mut link = Link { at, code: [0; MOST_CODE], length: code.len(), words: [NONE; MOST_WORDS], count: words.len() };
        link.code[..code.len()].copy_from_slice(code);
        link.words[..words.len()].copy_from_slice(words);
        Some(link)
    }

    /// `mov %rax, d(%rbx)` or the same with `%rbp`; then maybe a leap on the stack, pops, `ret`. With it the register and d.
    fn store(code: &[u8], at: usize, begin: u64) -> Option<(Link, (u8, i64))> {
        let rest = code.get(at + 2..)?;
        let (base, mut length) = match *rest.first()? {
            0x03 => ((RBX, 0), 3),
            0x43 => ((RBX, i64::from(*rest.get(1)? as i8)), 4),
            0x45 => ((RBP, i64::from(*rest.get(1)? as i8)), 4),
            _ => return None,
        };
        let mut words = Vec::new();
        if let [0x48, 0x83, 0xc4, leap @ 0..=0x20, ..] = code.get(at + length..)?
            && leap % 8 == 0
        {
            words.resize(usize::from(leap / 8), NONE);
            length += 4;
        }
        let (popped, more) = pops(code.get(at + length..)?)?;
        words.extend(popped);
        Some((Link::new(begin + at as u64, code.get(at..at + length + more)?, &words)?, base))
    }
}

/// What was found so far.
#[derive(Default)]
struct Search {
    pops: [Option<Link>; 8],
    store: Option<(Link, (u8, i64))>,
}

impl Search {
    fn look(&mut self, begin: u64, code: &[u8]) -> Option<Links> {
        for ret in memchr::memchr_iter(RET, code) {
            if self.all().is_some() {
                break;
            }
            for start in ret.saturating_sub(LONGEST_POP)..ret {
                let Some((words, length)) = pops(&code[start..=ret]).filter(|found| start + found.1 == ret + 1) else { continue };
                let Some(known) = words.first().and_then(|&first| self.pops.get_mut(usize::from(first))) else { continue };
                if known.is_none() {
                    *known = Link::new(begin + start as u64, &code[start..start + length], &words);
                }
            }
        }
        if self.store.is_none() {
            self.store = memchr::memmem::find_iter(code, &[0x48, 0x89]).find_map(|at| Link::store(code, at, begin));
        }
        let (store, base) = self.store?;
        self.all().map(|pops| Links { pops, store, base })
    }

    /// One for each register; of the registers that a store goes by the one of the store that was found.
    fn all(&self) -> Option<[Link; 5]> {
        let of = |register: u8| self.pops[usize::from(register)];
        let base = self.store.map_or(RBX, |store| store.1.0);
        Some([of(RDI)?, of(RSI)?, of(RDX)?, of(RAX)?, of(base)?])
    }
}

impl Links {
    /// Searches code, piece by piece with the place of each, until there is one of each kind.
    pub fn search(pieces: impl IntoIterator<Item = (u64, impl AsRef<[u8]>)>) -> Option<Links> {
        let mut search = Search::default();
        pieces.into_iter().find_map(|(at, code)| search.look(at, code.as_ref()))
    }

    /// The same for code that begins at this address.
    pub fn at(mut self, start: u64) -> Links {
        self.pops.iter_mut().chain([&mut self.store]).for_each(|link| link.at += start);
        self
    }

    /// Whether a process has these instructions there.
    pub fn hold(&self, pid: i32) -> bool {
        let all: Vec<&Link> = self.pops.iter().chain([&self.store]).collect();
        let ranges: Vec<(u64, u64)> = all.iter().map(|link| (link.at, link.length as u64)).collect();
        let mut bytes = vec![0; all.iter().map(|link| link.length).sum()];
        let wanted: Vec<u8> = all.iter().flat_map(|link| &link.code[..link.length]).copied().collect();
        memory::read_ranges(pid, &ranges, &mut [&mut bytes]).is_ok() && bytes == wanted
    }

    /// Appends the words of one call. `keep`: where what it returns is kept.
    fn call(&self, words: &mut Vec<u64>, syscall: u64, number: i64, args: [u64; 3], keep: Option<u64>) {
        let value = |register: u8| match register {
            RDI => args[0],
            RSI => args[1],
            RDX => args[2],
            RAX => number as u64,
            r if r == self.base.0 => keep.unwrap_or(0).wrapping_sub(self.base.1 as u64),
            _ => 0,
        };
        let mut link = |link: &Link| {
            words.push(link.at);
            words.extend(link.words[..link.count].iter().map(|&register| value(register)));
        };
        self.pops.iter().for_each(&mut link);
        words.push(syscall);
        if keep.is_some() {
            words.push(self.store.at);
            words.resize(words.len() + self.store.count, 0);
        }
    }

    /// Words of one call, at most.
    fn most_words(&self) -> u64 {
        (self.pops.iter().map(|link| 1 + link.count).sum::<usize>() + 2 + self.store.count) as u64
    }
}

/// How a task is asked many questions at once.
#[derive(Debug, Clone, Copy)]
pub struct Volley {
    /// The instructions.
    pub links: Links,
    /// Address of `syscall; ret`.
    pub syscall: u64,
    /// The task's number as it sees it itself, and the signal that means nothing to it.
    pub call: (i32, i32),
}

/// A volley as it lies in memory.
pub struct Laid {
    /// First address.
    pub start: u64,
    /// Room for the answers, then the words.
    pub bytes: Vec<u8>,
    /// Where the words begin.
    pub words: u64,
    /// Fourth to sixth argument of all calls.
    pub fixed: [u64; 3],
}

impl Volley {
    /// A signal that means nothing to a task with these caught and blocked signals.
    pub fn meaningless(caught: u64, blocked: u64) -> Option<i32> {
        IGNORED.into_iter().find(|signal| (caught | blocked) >> (signal - 1) & 1 == 0)
    }

    /// Bytes that these questions need to be asked together.
    pub fn room_for(&self, questions: &[Question]) -> u64 {
        let call = self.links.most_words() * 8;
        call + questions.iter().map(|q| 8 + q.room + call).sum::<u64>()
    }

    /// Which of the questions that were not `asked` can be asked together, when all there is has its place in `room` bytes.
    pub fn together(&self, questions: &[Question], asked: &[bool], room: u64) -> Vec<usize> {
        let left = || (0..questions.len()).filter(|&n| !asked[n] && questions[n].fits());
        let Some(first) = left().next() else { return Vec::new() };
        let mut used = self.links.most_words() * 8;
        let mut chosen = Vec::new();
        for n in left().filter(|&n| questions[n].fixed() == questions[first].fixed()) {
            used += 8 + questions[n].room + self.links.most_words() * 8;
            if used > room {
                break;
            }
            chosen.push(n);
        }
        chosen
    }

    /// Lays the questions out so that the words end at `end`.
    pub fn lay(&self, questions: &[Question], end: u64) -> Laid {
        let answers: u64 = questions.iter().map(|q| 8 + q.room).sum();
        // Once to know how many words they are.
        let words = |start: u64| {
            let mut words = Vec::new();
            let mut at = start;
            for q in questions {
                let args = q.args(at + 8);
                self.links.call(&mut words, self.syscall, q.number, [args[0], args[1], args[2]], Some(at));
                at += 8 + q.room;
            }
            let (tid, signal) = self.call;
            self.links.call(&mut words, self.syscall, libc::SYS_tkill, [tid as u64, signal as u64, 0], None);
            words
        };
        let first = end - words(0).len() as u64 * 8;
        let start = first - answers;
        let mut bytes = vec![0; answers as usize];
        bytes.extend(words(start).iter().flat_map(|w| w.to_le_bytes()));
        Laid { start, bytes, words: first, fixed: questions.first().map_or([0; 3], Question::fixed) }
    }

    /// Takes the answers out of the bytes that lie where those of [`Volley::lay`] began.
    pub fn answers(questions: &[Question], mut bytes: &[u8]) -> Vec<Answer> {
        let one = |q: &Question| {
            let (own, rest) = bytes.split_at((8 + q.room()).min(bytes.len()));
            bytes = rest;
            let answer = Answer { returned: 0, left: own.get(8..).unwrap_or_default().to_vec() };
            let returned = own.first_chunk().map_or(-1, |b| i64::from_le_bytes(*b));
            Answer { returned, ..answer }
        };
        questions.iter().map(one).collect()
    }

    /// Bytes before the words of these questions.
    pub fn room(questions: &[Question]) -> usize {
        questions.iter().map(|q| 8 + q.room()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs words as the processor would; the calls that are made.
    fn run(links: &Links, syscall: u64, laid: &Laid) -> Vec<(u64, [u64; 3])> {
        let word = |at: u64| {
            let at = (at - laid.start) as usize;
            laid.bytes.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap()))
        };
        let (mut registers, mut rsp, mut calls) = ([0u64; 17], laid.words, Vec::new());
        let mut kept = Vec::new();
        while let Some(ip) = word(rsp) {
            rsp += 8;
            if ip == syscall {
                calls.push((registers[0], [registers[7], registers[6], registers[2]]));
                registers[0] = 1000 + calls.len() as u64;
                continue;
            }
            let link = links.pops.iter().chain([&links.store]).find(|link| link.at == ip).expect("a link");
            if ip == links.store.at {
                kept.push((registers[links.base.0 as usize].wrapping_add(links.base.1 as u64), registers[0]));
            }
            for &register in &link.words[..link.count] {
                registers[register as usize] = word(rsp).unwrap();
                rsp += 8;
            }
        }
        assert_eq!(kept, [(laid.start, 1001), (laid.start + 8, 1002)]);
        calls
    }

    #[test]
    fn calls_are_strung_together() {
        // Some of them take other registers along; one of the stores leaps.
        let code = b"\x90\x5f\xc3\x41\x5e\x41\x5f\xc3\x5e\xc3\x90\x5a\x5b\xc3\x90\x58\x5d\xc3\x5b\xc3\x5d\xc3\x90\
            \x48\x89\x43\xf8\x48\x83\xc4\x10\x41\x5c\xc3\x90\x5c\xc3";
        let links = Links::search([(0, code)]).unwrap().at(0x1000);
        assert_eq!((links.base, links.store.count, links.pops[2].count), ((RBX, -8), 3, 2));
        let volley = Volley { links, syscall: 0x5000, call: (7, libc::SIGURG) };
        let asked = [Question::new(39, [1, 2, 3, 0, 0, 0]), Question::new(131, [0, 0, 0, 0, 0, 0]).leaving(1, 24)];
        assert_eq!(volley.together(&asked, &[false; 2], 4096), [0, 1]);
        assert_eq!(volley.together(&asked, &[true, false], 4096), [1]);
        let laid = volley.lay(&asked, 0x9000);
        assert_eq!(laid.start + laid.bytes.len() as u64, 0x9000);
        let calls = run(&links, volley.syscall, &laid);
        assert_eq!(calls, [(39, [1, 2, 3]), (131, [0, laid.start + 16, 0]), (libc::SYS_tkill as u64, [7, libc::SIGURG as u64, 0])]);
    }

    #[test]
    fn without_one_of_the_instructions_there_are_none() {
        let code = b"\x5f\xc3\x5e\xc3\x5a\xc3\x58\xc3\x5b\xc3\x48\x89\x03\xc3";
        assert!(Links::search([(0, code)]).is_some());
        for gone in [0, 2, 4, 6, 8, 10] {
            let mut code = code.to_vec();
            code[gone] = 0x90;
            assert!(Links::search([(0, &code)]).is_none(), "{gone}");
        }
    }

    #[test]
    fn other_arguments_are_asked_apart() {
        let links = Links::search([(0, b"\x5f\xc3\x5e\xc3\x5a\xc3\x58\xc3\x5b\xc3\x48\x89\x03\xc3")]).unwrap();
        let volley = Volley { links, syscall: 0, call: (1, libc::SIGURG) };
        let asked = [
            Question::new(1, [0; 6]),
            Question::new(2, [0, 0, 0, 8, 0, 0]),
            Question::new(3, [0; 6]),
            Question::new(4, [0; 6]).leaving(3, 8),
        ];
        assert_eq!(volley.together(&asked, &[false; 4], 4096), [0, 2]);
        assert_eq!(volley.together(&asked, &[true, false, true, false], 4096), [1]);
        assert!(volley.together(&asked, &[true, true, true, false], 4096).is_empty());
        assert!(volley.together(&asked, &[false; 4], 64).is_empty());
    }

    #[test]
    fn signals_without_meaning() {
        let bit = |signal: i32| 1u64 << (signal - 1);
        assert_eq!(Volley::meaningless(0, 0), Some(libc::SIGURG));
        assert_eq!(Volley::meaningless(bit(libc::SIGURG), 0), Some(libc::SIGWINCH));
        assert_eq!(Volley::meaningless(bit(libc::SIGURG), bit(libc::SIGWINCH)), None);
    }
}
