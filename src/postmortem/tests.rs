//! Real programs, frozen where they are, put into an image, and looked at: against their own source
//! and against what gdb makes of their core files.

use super::memory::Contents;
use super::{ThreadStack, core, stacks};
use crate::error::Kind;
use crate::image::{Codec, Options, Owner, Pages, Reader, SectionKind, Writer, encode};
use crate::resource::capture::Capture;
use crate::resource::memory::{self, Backing, Mapping, PAGE};
use crate::resource::process::Process;
use crate::resource::thread::Thread;
use crate::resource::{Manifest, Tree};
use crate::sys::arch::MACHINE;
use crate::tracee::freeze::freeze;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A program of which every thread stands at a known place.
const THREADS: &str = r#"
    #define _GNU_SOURCE
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <time.h>
    #include <unistd.h>
    #define F __attribute__((noinline)) int
    volatile long marker = 1;
    char *on_heap, *shared;
    volatile int ready;
    F sleeps_long(int n) { struct timespec t = { 1000 + n, 0 }; nanosleep(&t, 0); return n + 1; }
    F dreams(int n) { return sleeps_long(n) + 1; }
    void *sleeper(void *p) { prctl(PR_SET_NAME, "sleeper"); ready++; return (void *)(long)dreams(1); }
    void in_handler(int s) {
        long value = 0x1122334455667788;
        ready++;
        asm volatile("movq %0, %%xmm9; 1: pause; jmp 1b" :: "r"(value) : "xmm9");
    }
    F divides(volatile int *p) { raise(SIGUSR1); return *p + 1; }
    void *signalled(void *p) { signal(SIGUSR1, in_handler); int n = 5; return (void *)(long)(divides(&n) + 1); }
    F joins(pthread_t t) { return pthread_join(t, 0) + 1; }
    int main(void) {
        pthread_t a, b;
        marker = 0x5eed;
        on_heap = strdup("written to the heap");
        shared = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        strcpy(shared + 5000, "written to shared memory");
        pthread_create(&a, 0, sleeper, 0);
        pthread_create(&b, 0, signalled, 0);
        while (ready < 2) usleep(1000);
        usleep(50000);
        puts("ready");
        fflush(stdout);
        return joins(a) + 1;
    }
"#;

/// A running program and the folder it lives in.
struct Program {
    child: Child,
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Program {
    fn start(source: &str, flags: &[&str]) -> Program {
        let dir = tempfile::tempdir().unwrap();
        let (c, path) = (dir.path().join("t.c"), dir.path().join("program"));
        std::fs::write(&c, source).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-w", "-O1", "-pthread"]).args(flags).arg(&c).arg("-o").arg(&path);
        assert!(gcc.status().unwrap().success());
        let mut child = Command::new(&path).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        // It said so in front of its last step.
        std::thread::sleep(Duration::from_millis(50));
        Program { child, dir, path }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The image of a program that runs.
fn image_of(pid: i32) -> Vec<u8> {
    let mut frozen = freeze(pid, Duration::from_secs(10)).unwrap();
    let mut capture = Capture::default();
    let mut processes = Vec::new();
    for held in &mut frozen.processes {
        let threads: Vec<Thread> = held.threads.iter_mut().map(|t| Thread::capture(t, &mut capture).unwrap()).collect();
        let mut process = Process::capture(held.pid, held.ppid, &threads).unwrap();
        process.memory = Some(memory::survey(held.pid, &mut capture).unwrap().0);
        process.threads = threads;
        processes.push(process);
    }
    assert!(capture.refusals.is_empty(), "{:?}", capture.refusals);
    let tree = Tree { processes, mapped: capture.mapped, objects: capture.objects, ..Tree::default() };
    let mut blocks = Blocks::default();
    for process in &tree.processes {
        let live = File::open(format!("/proc/{}/mem", process.pid)).unwrap();
        for mapping in &process.memory.as_ref().unwrap().mappings {
            blocks.save(process.pid, mapping, &tree, &live);
        }
    }
    for (object, source) in tree.objects.iter().zip(&capture.sources) {
        let mut data = vec![0; object.size.next_multiple_of(PAGE) as usize];
        source.file.read_exact_at(&mut data[..object.size as usize], 0).unwrap();
        for (n, part) in data.chunks(256 * PAGE as usize).enumerate() {
            blocks.add(Owner::Object(object.id), n as u64 * 256 * PAGE, part.to_vec());
        }
    }
    image(&tree, &blocks)
}

fn image(tree: &Tree, blocks: &Blocks) -> Vec<u8> {
    let mut out = Writer::new(Vec::new(), Options { machine: MACHINE, id: [7; 16] }).unwrap();
    let manifest = Manifest {
        meio: "0".into(),
        created: 0,
        kernel: String::new(),
        host: String::new(),
        root_pid: tree.processes[0].pid,
        xfeatures: 7,
        processor: String::new(),
        capsule: None,
        birth: None,
        stands_for: None,
    };
    out.section(SectionKind::Manifest, &manifest).unwrap();
    out.section(SectionKind::Tree, tree).unwrap();
    for (number, (owner, address, data)) in blocks.0.iter().enumerate() {
        let ranges = [(*address, (data.len() as u64 / PAGE) as u32)];
        let pages = Pages { ranges: &ranges, data: data.clone(), elide_zero: true };
        let codec = if number % 3 == 0 { Codec::Raw } else { Codec::Zstd(1) };
        out.append(&encode(number as u32, *owner, pages, codec, None)).unwrap();
    }
    out.finish().unwrap().0
}

#[derive(Default)]
struct Blocks(Vec<(Owner, u64, Vec<u8>)>);

impl Blocks {
    fn add(&mut self, owner: Owner, address: u64, data: Vec<u8>) {
        self.0.push((owner, address, data));
    }

    /// The pages of a private mapping that are not what its file says.
    fn save(&mut self, pid: i32, mapping: &Mapping, tree: &Tree, live: &File) {
        let file = match mapping.backing {
            Backing::File { file, offset } => Some((File::open(&tree.mapped[file as usize].path).unwrap(), offset)),
            Backing::Object { .. } => return,
            Backing::Kernel if mapping.name != "[vdso]" => return,
            Backing::Kernel | Backing::Anonymous => None,
        };
        let mut run: Vec<u8> = Vec::new();
        for at in (mapping.start..=mapping.end).step_by(PAGE as usize) {
            let mut page = vec![0; PAGE as usize];
            let mut wanted = at < mapping.end && live.read_exact_at(&mut page, at).is_ok();
            if let Some((file, offset)) = &file {
                let mut original = vec![0; PAGE as usize];
                let _ = file.read_at(&mut original, offset + (at - mapping.start));
                wanted &= original != page;
            }
            if !run.is_empty() && (!wanted || run.len() == 256 * PAGE as usize) {
                let length = run.len() as u64;
                self.add(Owner::Process(pid), at - length, std::mem::take(&mut run));
            }
            if wanted {
                run.extend(page);
            }
        }
    }
}

fn contents(image: &[u8]) -> Contents {
    Contents::read(Reader::open(Cursor::new(image.to_vec()), MACHINE).unwrap()).unwrap()
}

fn names(stack: &ThreadStack) -> Vec<&str> {
    stack.frames.iter().map(|f| f.symbol.as_ref().map_or("?", |s| &s.0)).collect()
}

#[track_caller]
fn in_order(stack: &ThreadStack, wanted: &[&str]) {
    let names = names(stack);
    let mut rest = names.iter();
    for w in wanted {
        assert!(rest.any(|n| n == w), "{w} in {names:?} ({:?})", stack.note);
    }
}

#[track_caller]
fn three_threads(all: &[ThreadStack]) {
    assert_eq!(all.len(), 3);
    in_order(&all[0], &["joins", "main", "_start"]);
    in_order(&all[1], &["sleeps_long", "dreams", "sleeper"]);
    assert_eq!(all[1].comm, "sleeper");
    let signals = |t: &ThreadStack| t.frames.iter().filter(|f| f.signal).count();
    assert_eq!((signals(&all[1]), signals(&all[2])), (0, 1));
    in_order(&all[2], &["in_handler", "divides", "signalled"]);
    assert!(all.iter().all(|t| t.note.is_none()), "{all:?}");
}

/// What gdb says to some commands about a core file.
fn gdb(program: &Path, core: &Path, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off"]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let said = gdb.arg(program).arg(core).stdin(Stdio::null()).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

/// Makes gdb say where every frame of every thread stands. Functions that the compiler put into
/// others, or that ended in a jump to another, have no frame: gdb guesses them from debug information.
const PRINT_FRAMES: &str = r"python
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frame = gdb.newest_frame()
    while frame is not None:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            print('FRAME', thread.ptid[1] or thread.ptid[0], frame.pc())
        frame = frame.older()
";

/// The addresses of the frames of each thread, as gdb finds them in a core file.
fn gdb_stacks(program: &Path, core: &Path) -> HashMap<i32, Vec<u64>> {
    let script = core.with_extension("gdb");
    std::fs::write(&script, PRINT_FRAMES).unwrap();
    let source = format!("source {}", script.display());
    let said = gdb(program, core, &["set backtrace past-main on", "set backtrace past-entry on", &source]);
    let mut all: HashMap<i32, Vec<u64>> = HashMap::new();
    for line in said.lines().filter_map(|line| line.strip_prefix("FRAME ")) {
        let (tid, pc) = line.split_once(' ').unwrap();
        all.entry(tid.parse().unwrap()).or_default().push(pc.parse().unwrap());
    }
    assert!(!all.is_empty(), "{said}");
    all
}

#[test]
fn threads_out_of_an_image_and_gdb_agrees() {
    for flags in [&[][..], &["-static"]] {
        let program = Program::start(THREADS, flags);
        let image = image_of(program.pid());
        let contents = contents(&image);
        let ours = stacks(&contents).unwrap();
        three_threads(&ours);

        let cores = core(&contents, &program.dir.path().join("cores")).unwrap();
        assert_eq!(cores, [program.dir.path().join(format!("cores/core.{}", program.pid()))]);
        assert_eq!(std::fs::metadata(&cores[0]).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(cores[0].parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        let asked = [
            "info threads",
            "p (char*)on_heap",
            "p (char*)shared + 5000",
            "p/x *(long*)&marker",
            "thread 3",
            "p/x $xmm9.v2_int64[0]",
            "info proc",
            "bt",
        ];
        let said = gdb(&program.path, &cores[0], &asked);
        for wanted in [
            "written to the heap",
            "written to shared memory",
            "= 0x5eed",
            "= 0x1122334455667788",
            "in signalled ()",
            &program.path.to_string_lossy(),
        ] {
            assert!(said.contains(wanted), "{wanted} in {said}");
        }
        assert!(!said.to_lowercase().contains("warning"), "{said}");
        let ours: HashMap<i32, Vec<u64>> = ours.iter().map(|t| (t.tid, t.frames.iter().map(|f| f.pc).collect())).collect();
        assert_eq!(ours, gdb_stacks(&program.path, &cores[0]), "{:?}", stacks(&contents));
    }
}

#[test]
fn a_file_that_is_gone_or_changed_is_not_believed() {
    let program = Program::start(THREADS, &[]);
    let image = image_of(program.pid());
    three_threads(&stacks(&contents(&image)).unwrap());
    std::fs::remove_file(&program.path).unwrap();
    for again in [false, true] {
        if again {
            // Another program of the same name.
            std::fs::copy("/bin/true", &program.path).unwrap();
        }
        let all = stacks(&contents(&image)).unwrap();
        assert_eq!(all.len(), 3);
        for thread in &all {
            assert!(!names(thread).contains(&"joins"), "{thread:?}");
            assert!(thread.note.as_ref().unwrap().contains("is missing or not the file"), "{thread:?}");
        }
        let cores = core(&contents(&image), program.dir.path()).unwrap();
        assert!(cores[0].metadata().unwrap().len() > 1 << 16);
    }
}

#[test]
fn a_deleted_program_comes_out_of_the_image() {
    let program = Program::start(THREADS, &[]);
    let copy = program.dir.path().join("kept");
    std::fs::rename(&program.path, &copy).unwrap();
    std::fs::copy(&copy, &program.path).unwrap();
    std::fs::remove_file(&copy).unwrap();
    let image = image_of(program.pid());
    std::fs::remove_file(&program.path).unwrap();
    let contents = contents(&image);
    three_threads(&stacks(&contents).unwrap());
    // All of its code is in the core file, for nothing else has it.
    let cores = core(&contents, program.dir.path()).unwrap();
    let main = stacks(&contents).unwrap()[0].frames.last().unwrap().pc;
    let said = gdb(Path::new("/bin/true"), &cores[0], &[&format!("x/2i {main:#x}")]);
    assert!(!said.contains("Cannot access memory"), "{said}");
}

#[test]
fn from_a_file_page_by_page() {
    let program = Program::start(THREADS, &[]);
    let bytes = image_of(program.pid());
    let path = program.dir.path().join("image");
    std::fs::write(&path, &bytes).unwrap();
    let from_file = Contents::read(Reader::from_file(File::open(&path).unwrap(), MACHINE).unwrap()).unwrap();
    let from_stream = contents(&bytes);
    assert_eq!(stacks(&from_file).unwrap(), stacks(&from_stream).unwrap());
    assert_eq!(from_file.manifest(), from_stream.manifest());
    let process = &from_file.tree().processes[0];
    for mapping in &process.memory.as_ref().unwrap().mappings {
        let (mut a, mut b) = (vec![0; 3 * PAGE as usize], vec![0; 3 * PAGE as usize]);
        let n = from_file.read_process(process, mapping.start + 100, &mut a).unwrap();
        assert_eq!(n, from_stream.read_process(process, mapping.start + 100, &mut b).unwrap());
        assert_eq!(a, b);
    }
    // Damaged after it was opened: an error, not other numbers.
    let from_file = Contents::read(Reader::from_file(File::open(&path).unwrap(), MACHINE).unwrap()).unwrap();
    let mut damaged = bytes.clone();
    let from = bytes.len() / 4;
    damaged[from..].iter_mut().for_each(|b| *b ^= 0x55);
    std::fs::write(&path, &damaged).unwrap();
    let error = core(&from_file, &program.dir.path().join("cores")).unwrap_err();
    assert_eq!(error.kind, Kind::Image, "{error}");
    let left = std::fs::read_dir(program.dir.path().join("cores")).unwrap().count();
    assert_eq!(left, 0, "no half core file");
}

#[test]
fn more_mappings_than_the_header_can_count() {
    let program = Program::start(THREADS, &[]);
    let bytes = image_of(program.pid());
    let mut tree = contents(&bytes).tree().clone();
    let mappings = &mut tree.processes[0].memory.as_mut().unwrap().mappings;
    let first = mappings[0].clone();
    let strange = (1..=70_000_u64).map(|n| Mapping {
        start: 0x1000_0000 + n * 2 * PAGE,
        end: 0x1000_0000 + n * 2 * PAGE + PAGE,
        backing: Backing::Anonymous,
        prot: 1,
        ..first.clone()
    });
    *mappings = strange.chain(mappings.iter().filter(|m| m.start > 0x7000_0000).cloned()).collect();
    let count = mappings.len();
    let cores = core(&contents(&image(&tree, &Blocks::default())), program.dir.path()).unwrap();
    let said = Command::new("readelf").arg("-lW").arg(&cores[0]).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.lines().filter(|l| l.trim_start().starts_with("LOAD")).count(), count);
    assert!(said.contains("NOTE"));
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number that is likely to hurt.
    fn number(&mut self, old: u64) -> u64 {
        match self.next() % 6 {
            0 => 0,
            1 => u64::MAX - self.next() % 5000,
            2 => old.wrapping_add(self.next() % 20000).wrapping_sub(10000),
            3 => 1 << (self.next() % 64),
            4 => self.next(),
            _ => old,
        }
    }
}

/// A tree in which numbers are wrong, as no kernel would have them.
fn twisted(tree: &Tree, random: &mut Random) -> Tree {
    let mut tree = tree.clone();
    let process = &mut tree.processes[0];
    let space = process.memory.as_mut().unwrap();
    for _ in 0..4 {
        let n = random.next() as usize % space.mappings.len();
        let mapping = &mut space.mappings[n];
        match random.next() % 7 {
            0 => mapping.start = random.number(mapping.start),
            1 => mapping.end = random.number(mapping.end),
            2 => mapping.prot = random.next() as u32,
            3 => mapping.backing = Backing::File { file: random.number(0) as u32, offset: random.number(0) },
            4 => mapping.backing = Backing::Object { object: 0, offset: random.number(0) },
            5 => mapping.backing = Backing::Kernel,
            _ => space.mappings.swap(0, n),
        }
    }
    space.borders.arg_start = random.number(space.borders.arg_start);
    let n = random.next() as usize % process.threads.len();
    let registers = &mut process.threads[n].registers;
    let wrong = [&mut registers.rip, &mut registers.rsp, &mut registers.rbp, &mut registers.rax];
    wrong.into_iter().for_each(|r| *r = random.number(*r));
    let length = random.next() as usize % 3000;
    process.threads[n].xstate.resize(length, 0xff);
    tree
}

#[test]
fn twisted_trees_are_no_harm() {
    let program = Program::start(THREADS, &[]);
    let bytes = image_of(program.pid());
    let mut reader = Reader::open(Cursor::new(&bytes), MACHINE).unwrap();
    let tree: Tree = reader.tree().unwrap();
    let mut blocks = Blocks::default();
    while let Some(block) = reader.next_block().unwrap() {
        let block = block.decode().unwrap();
        let mut data = &block.data[..];
        for run in &block.runs {
            let (now, rest) = data.split_at(run.pages as usize * PAGE as usize);
            blocks.add(block.owner, run.address, now.to_vec());
            data = rest;
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..150 {
        let tree = twisted(&tree, &mut random);
        let contents = contents(&image(&tree, &blocks));
        let all = stacks(&contents).unwrap();
        assert_eq!(all.len(), 3);
        // Files of a length that no file system takes may be refused, with a reason.
        if let Err(e) = core(&contents, program.dir.path()) {
            assert!(e.message.contains("core file of process"), "{e}");
        }
    }
}
