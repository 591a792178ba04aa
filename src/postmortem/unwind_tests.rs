//! Stacks of real programs, stopped by ptrace, against what their source says.

use super::super::elf::{ElfFile, ReadMemory};
use super::*;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::sys::{ptrace, signal::Signal};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A live process as a source of memory and code.
struct Live {
    memory: File,
    /// Start, end, executable, offset, path.
    maps: Vec<(u64, u64, bool, u64, String)>,
    files: RefCell<HashMap<String, Option<Rc<ElfFile>>>>,
}

impl Live {
    fn new(pid: Pid) -> Live {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let maps = maps.lines().map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let executable = words.next().unwrap().contains('x');
            let hex = |s: &str| u64::from_str_radix(s, 16).unwrap();
            let offset = hex(words.next().unwrap());
            (hex(start), hex(end), executable, offset, words.nth(2).unwrap_or("").to_string())
        });
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        Live { memory, maps: maps.collect(), files: RefCell::default() }
    }

    fn symbol(&self, frame: &RawFrame) -> String {
        let name = self.file_at(frame.inside()).and_then(|(f, a)| Some(f.symbol(a)?.0.to_string()));
        name.unwrap_or_else(|| format!("{:#x}", frame.pc))
    }
}

impl ReadMemory for Live {
    fn read(&self, address: u64, buf: &mut [u8]) -> usize {
        self.memory.read(address, buf)
    }
}

impl Code for Live {
    fn file_at(&self, address: u64) -> Option<(Rc<ElfFile>, u64)> {
        let (start, end, _, offset, path) = self.maps.iter().find(|m| (m.0..m.1).contains(&address))?;
        let read = || {
            let mut vdso = vec![0; (end - start) as usize];
            match path.as_str() {
                "[vdso]" => (self.read(*start, &mut vdso) > 0).then(|| ElfFile::read(&vdso[..]))?,
                _ => ElfFile::read(&File::open(path).ok()?),
            }
        };
        let file = self.files.borrow_mut().entry(path.clone()).or_insert_with(|| read().map(Rc::new)).clone()?;
        let offset = if path == "[vdso]" { 0 } else { *offset };
        let address = file.address_of(address - start + offset)?;
        Some((file, address))
    }

    fn is_executable(&self, address: u64) -> bool {
        self.maps.iter().any(|m| m.2 && (m.0..m.1).contains(&address))
    }
}

/// Compiles `source`, runs it until it stops itself by `SIGSTOP`, and returns what its stack says.
fn stack_of(name: &str, source: &str, flags: &[&str]) -> (Vec<String>, Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    let (c, program) = (dir.path().join("t.c"), dir.path().join(name));
    std::fs::write(&c, source).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-w", "-O1", "-pthread"]).args(flags).arg(&c).arg("-o").arg(&program);
    assert!(gcc.status().unwrap().success());
    let mut command = Command::new(&program);
    command.stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    ptrace::seize(pid, ptrace::Options::empty()).unwrap();
    // It may have stopped before it was seized; then the stop is reported as a group stop.
    loop {
        match waitpid(pid, Some(WaitPidFlag::WSTOPPED | WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGSTOP) | WaitStatus::PtraceEvent(_, Signal::SIGSTOP, _) => break,
            WaitStatus::Stopped(_, other) => ptrace::cont(pid, other).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    let got = ptrace::getregs(pid).unwrap();
    let registers = registers(&got);
    let live = Live::new(pid);
    let stack = unwind(&registers, &live, &live);
    let names = stack.frames.iter().map(|f| live.symbol(f)).collect();
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    child.wait().unwrap();
    (names, stack.note)
}

fn registers(r: &libc::user_regs_struct) -> Registers {
    Registers {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rbp: r.rbp,
        rsp: r.rsp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        ..Registers::default()
    }
}

/// Asserts that the names occur in this order.
#[track_caller]
fn in_order(names: &[String], wanted: &[&str]) {
    let mut rest = names.iter();
    for w in wanted {
        assert!(rest.any(|n| n == w), "{w} in {names:?}");
    }
}

const CALLS: &str = r#"
    #include <signal.h>
    #include <stdlib.h>
    #include <unistd.h>
    __attribute__((noinline)) int inner(int n) { char b[100]; b[n] = n; raise(SIGSTOP); return b[n / 2] + 1; }
    __attribute__((noinline)) int compare(const void *a, const void *b) { return inner(3) + 1; }
    __attribute__((noinline)) int outer(int n) { int v[n]; v[0] = 1; qsort(v, 2, sizeof *v, compare); return v[0]; }
    int main(int c, char **v) { return outer(c + 1) + 3; }
"#;

#[test]
fn through_a_library_and_back() {
    let (names, note) = stack_of("calls", CALLS, &[]);
    in_order(&names, &["inner", "compare", "outer", "main", "_start"]);
    assert_eq!(note, None);
}

#[test]
fn static_and_not_relocatable() {
    let (names, note) = stack_of("fixed", CALLS, &["-static", "-no-pie"]);
    in_order(&names, &["raise", "inner", "compare", "outer", "main", "_start"]);
    assert_eq!(note, None);
}

#[test]
fn by_the_debugging_tables_alone() {
    let flags = ["-static", "-g", "-fno-asynchronous-unwind-tables", "-Wl,--no-eh-frame-hdr"];
    let (names, note) = stack_of("debug", CALLS, &flags);
    in_order(&names, &["inner", "compare", "outer", "main", "_start"]);
    assert_eq!(note, None);
}

#[test]
fn by_frame_pointers_where_no_table_is() {
    let flags = ["-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer"];
    let source = CALLS.replace("qsort(v, 2, sizeof *v, compare)", "compare(v, v)");
    let (names, note) = stack_of("pointers", &source, &flags);
    in_order(&names, &["inner", "compare", "outer", "main"]);
    assert!(note.unwrap().contains("by frame pointers"));
}

#[test]
fn through_a_signal_on_a_stack_of_its_own() {
    let source = r#"
        #include <signal.h>
        #include <stdlib.h>
        #include <unistd.h>
        void handler(int s) { raise(SIGSTOP); *(volatile int *)&s = 0; }
        __attribute__((noinline)) int work(volatile int *p) { *p = 5; return *p + 1; }
        int main(void) {
            stack_t own = { .ss_sp = malloc(65536), .ss_size = 65536 };
            struct sigaction act = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
            sigaltstack(&own, 0);
            sigaction(SIGSEGV, &act, 0);
            return work((int *)8) + 1;
        }
    "#;
    for flags in [&[][..], &["-static"]] {
        let (names, note) = stack_of("signal", source, flags);
        in_order(&names, &["handler", "work", "main", "_start"]);
        assert_eq!(note, None);
    }
}

#[test]
fn a_call_to_nowhere_shows_who_made_it() {
    let source = r#"
        #include <signal.h>
        #include <unistd.h>
        #include <sys/prctl.h>
        void stop(int s) { raise(SIGSTOP); }
        __attribute__((noinline)) int jump(int (*f)(void)) { return f() + 1; }
        int main(void) { signal(SIGSEGV, stop); return jump((int (*)(void))0x10) + 1; }
    "#;
    let (names, _) = stack_of("nowhere", source, &[]);
    in_order(&names, &["stop", "0x10", "jump", "main"]);
}

/// Memory that answers everything.
struct Noise(u64);

impl ReadMemory for Noise {
    fn read(&self, address: u64, buf: &mut [u8]) -> usize {
        for (i, b) in buf.iter_mut().enumerate() {
            *b = (address.wrapping_add(i as u64 ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        }
        // Every word looks like a frame pointer a little further out.
        if buf.len() == 8 && self.0.is_multiple_of(2) {
            buf.copy_from_slice(&address.wrapping_add(16).to_le_bytes());
        }
        buf.len()
    }
}

/// Memory that is not there.
struct Nothing;

impl ReadMemory for Nothing {
    fn read(&self, _: u64, _: &mut [u8]) -> usize {
        0
    }
}

struct Anywhere(Option<Rc<ElfFile>>);

impl Code for Anywhere {
    fn file_at(&self, address: u64) -> Option<(Rc<ElfFile>, u64)> {
        Some((self.0.clone()?, address & 0xf_ffff))
    }
    fn is_executable(&self, _: u64) -> bool {
        true
    }
}

#[test]
fn hostile_stacks_end() {
    let library = File::open("/proc/self/exe").ok().and_then(|f| ElfFile::read(&f)).map(Rc::new);
    assert!(library.is_some());
    for seed in 0..400_u64 {
        let wild = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let registers = Registers { rip: wild >> 20, rsp: wild | 8, rbp: wild, ..Registers::default() };
        for code in [Anywhere(None), Anywhere(library.clone())] {
            let stack = unwind(&registers, &Noise(seed), &code);
            assert!((1..=MAX_FRAMES).contains(&stack.frames.len()));
        }
    }
    // Nothing at all can be read.
    let stack = unwind(&Registers::default(), &Nothing, &Anywhere(None));
    assert_eq!(stack.frames.len(), 1);
}
