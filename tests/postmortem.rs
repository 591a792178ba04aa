//! `meio inspect --stacks` and `meio core` on images of real programs, against gdb on the live
//! programs and on the core files.

use crate::lab::{Lab, SOON, observe, until};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

/// Addresses of the frames of each thread, innermost first.
type Frames = BTreeMap<i64, Vec<u64>>;

fn gdb(arguments: &[&str], commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off"]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let said = gdb.args(arguments).stdin(Stdio::null()).output().expect("gdb starts");
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

/// What gdb finds, in a live process (`-p PID`) or a core file (PROGRAM CORE).
fn gdb_frames(lab: &Lab, arguments: &[&str]) -> Frames {
    let script = lab.path("frames.gdb");
    std::fs::write(&script, PRINT_FRAMES).expect("script");
    let source = format!("source {}", script.display());
    let said = gdb(arguments, &["set backtrace past-main on", "set backtrace past-entry on", &source]);
    let mut frames = Frames::new();
    for line in said.lines().filter_map(|line| line.strip_prefix("FRAME ")) {
        let (tid, pc) = line.split_once(' ').expect("tid and address");
        frames.entry(tid.parse().expect("tid")).or_default().push(pc.parse().expect("address"));
    }
    assert!(!frames.is_empty(), "{said}");
    frames
}

/// One thread as `meio inspect --stacks --json` tells it.
struct Stack {
    pid: i64,
    tid: i64,
    comm: String,
    pcs: Vec<u64>,
    names: Vec<String>,
    modules: Vec<Option<String>>,
    note: Option<String>,
}

fn stacks(lab: &Lab, image: &Path) -> Vec<Stack> {
    let done = lab.run(lab.meio(&["inspect", "--stacks", "--json", image.to_str().expect("path")]));
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let said: serde_json::Value = serde_json::from_str(done.stdout.lines().last().expect("a line")).expect("JSON");
    let text = |v: &serde_json::Value| v.as_str().map(str::to_owned);
    let list = |v: &serde_json::Value| v.as_array().expect("a list").clone();
    let stack = |s: &serde_json::Value| Stack {
        pid: s["pid"].as_i64().expect("pid"),
        tid: s["tid"].as_i64().expect("tid"),
        comm: text(&s["comm"]).expect("comm"),
        pcs: list(&s["frames"]).iter().map(|f| f["pc"].as_u64().expect("pc")).collect(),
        names: list(&s["frames"]).iter().map(|f| text(&f["symbol"][0]).unwrap_or("?".into())).collect(),
        modules: list(&s["frames"]).iter().map(|f| text(&f["module"])).collect(),
        note: text(&s["note"]),
    };
    list(&said["stacks"]).iter().map(stack).collect()
}

fn cores(lab: &Lab, image: &Path) -> Vec<PathBuf> {
    let folder = lab.path("cores");
    let arguments = ["core", "--json", image.to_str().expect("path"), "-o", folder.to_str().expect("path")];
    let done = lab.run(lab.meio(&arguments));
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let said: serde_json::Value = serde_json::from_str(done.stdout.lines().last().expect("a line")).expect("JSON");
    let files = said["files"].as_array().expect("a list");
    files.iter().map(|f| f.as_str().expect("path").into()).collect()
}

#[track_caller]
fn in_order(stack: &Stack, wanted: &[&str]) {
    let mut rest = stack.names.iter();
    for w in wanted {
        assert!(rest.any(|n| n == w), "{w} of {} in {:?} ({:?})", stack.comm, stack.names, stack.note);
    }
}

/// The four threads of fixtures/programs/stacks.c.
#[track_caller]
fn four_threads(all: &[Stack]) {
    let of = |comm: &str| all.iter().find(|s| s.comm == comm).unwrap_or_else(|| panic!("thread {comm}"));
    assert_eq!(all.len(), 4);
    in_order(of("stacks"), &["leads", "main", "_start"]);
    in_order(of("sorter"), &["compare_and_sleep", "sorts", "sorter"]);
    in_order(of("signalled"), &["spin_in_handler", "faults", "signalled"]);
    in_order(of("locker"), &["wants_lock", "locker"]);
    assert!(all.iter().all(|s| s.note.is_none()), "{:?}", all.iter().map(|s| &s.note).collect::<Vec<_>>());
}

fn frames_of(all: &[Stack]) -> Frames {
    all.iter().map(|s| (s.tid, s.pcs.clone())).collect()
}

/// Without the innermost frames of the two threads that are not at rest: the leader looks for a file
/// now and then, and one spins.
fn at_rest(frames: Frames, image: &[Stack]) -> Frames {
    let outer = |s: &Stack| match s.comm.as_str() {
        "stacks" => s.names.len() - s.names.iter().position(|n| n == "leads").expect("leads"),
        "signalled" => s.names.len() - 1,
        _ => s.names.len(),
    };
    let keep: BTreeMap<i64, usize> = image.iter().map(|s| (s.tid, outer(s))).collect();
    let cut = |(tid, pcs): (i64, Vec<u64>)| (tid, pcs[pcs.len().saturating_sub(keep[&tid])..].to_vec());
    frames.into_iter().map(cut).collect()
}

crate::alone! {
    /// Every thread's stack is what gdb sees in the live process, and in the core file.
    fn threads() {
        let mut lab = Lab::new("stacks");
        let mut running = lab.fixture("stacks", &[]);
        let live = gdb_frames(&lab, &["-p", &running.pid.to_string()]);
        let image = lab.dump(&mut running, &[]);
        let all = stacks(&lab, &image);
        four_threads(&all);
        assert_eq!(at_rest(live, &all), at_rest(frames_of(&all), &all), "live");

        let cores = cores(&lab, &image);
        let name = format!("core.{}", running.pid);
        assert_eq!(cores, [lab.path("cores").join(name)]);
        let program = crate::lab::compile("stacks");
        let (program, core) = (program.to_str().expect("path"), cores[0].to_str().expect("path"));
        assert_eq!(gdb_frames(&lab, &[program, core]), frames_of(&all), "core");
        let said = gdb(&[program, core], &[
            "info threads",
            "thread apply all bt",
            "p/x marker",
            "p fx_prefix",
            "thread 3",
            "p/x $xmm9.v2_int64[0]",
        ]);
        let prefix = running.prefix.to_string_lossy().into_owned();
        for wanted in ["leads ()", "in sorts (n=", "wants_lock ()", "= 0x5eed", "= 0x1122334455667788", &prefix] {
            assert!(said.contains(wanted), "{wanted} in {said}");
        }
        for thread in &all {
            assert!(said.contains(&format!("(LWP {})", thread.tid)), "{} in {said}", thread.tid);
        }
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    /// A tree that was restored stands where it stood, frame by frame.
    fn after_a_restore() {
        let mut lab = Lab::new("stacks-restored");
        let mut running = lab.fixture("stacks", &[]);
        let first = lab.dump(&mut running, &["--kill"]);
        let before = stacks(&lab, &first);
        lab.restore(&first, &mut running, &[]);
        let second = lab.dump(&mut running, &[]);
        let after = stacks(&lab, &second);
        four_threads(&after);
        assert_eq!(at_rest(frames_of(&before), &before), at_rest(frames_of(&after), &after));
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    /// In words: a line for each frame with its function and file.
    fn in_words() {
        let mut lab = Lab::new("stacks-words");
        let mut running = lab.fixture("stacks", &[]);
        let image = lab.dump(&mut running, &["--kill"]);
        let done = lab.run(lab.meio(&["inspect", "--stacks", image.to_str().expect("path")]));
        assert_eq!(done.code, 0, "{}", done.stderr);
        for wanted in ["compare_and_sleep+0x", "libc.so", "fixtures/stacks)", "locker"] {
            assert!(done.stdout.contains(wanted), "{wanted} in {}", done.stdout);
        }
        lab.nothing_left();
    }

    /// Through the kernel's own code, of which there is no file: it comes out of the image.
    fn through_the_vdso() {
        let mut lab = Lab::new("stacks-vdso");
        let (source, program) = (lab.path("clock.c"), lab.path("clock"));
        let text = "#include <time.h>\n__attribute__((noinline)) int looks(void) { struct timespec t; int n = 0;\n\
                    while (n != -1) { clock_gettime(CLOCK_MONOTONIC, &t); n += t.tv_nsec & 1; } return n; }\n\
                    int main(void) { return looks() + 1; }\n";
        std::fs::write(&source, text).expect("source");
        let built = Command::new("gcc").args(["-O1", "-o"]).arg(&program).arg(&source).status().expect("gcc starts");
        assert!(built.success());
        let mut running = lab.spawn(&program, &[]);
        // setsid(1) becomes the program.
        let exe = format!("/proc/{}/exe", running.pid);
        assert!(until(SOON, || std::fs::read_link(&exe).is_ok_and(|exe| exe == program)));
        std::thread::sleep(std::time::Duration::from_millis(50));
        let vdso = until(SOON, || {
            let image = lab.dump(&mut running, &[]);
            let all = stacks(&lab, &image);
            in_order(&all[0], &["looks", "main", "_start"]);
            assert_eq!(all[0].note, None);
            let inside = all[0].modules[0].as_deref() == Some("[vdso]");
            if inside {
                let core = cores(&lab, &image).remove(0);
                let arguments = [program.to_str().expect("path"), core.to_str().expect("path")];
                assert_eq!(gdb_frames(&lab, &arguments), frames_of(&all));
                assert!(all[0].names[0].contains("clock_gettime"), "{:?}", all[0].names);
            }
            inside
        });
        assert!(vdso, "it is never seen inside of the vDSO");
        running.kill();
        lab.nothing_left();
    }

    /// A tree of several processes, one of them an interpreter with threads: a core for each.
    fn interpreters() {
        let mut lab = Lab::new("stacks-python");
        let ready = lab.path("python-ready");
        let script = format!(
            "import threading, time\n\
             def deep(n):\n  time.sleep(1000) if n == 0 else deep(n - 1)\n\
             [threading.Thread(target=deep, args=(i,), daemon=True).start() for i in (3, 20)]\n\
             time.sleep(0.2)\nopen({ready:?}, 'w').close()\ndeep(5)\n"
        );
        std::fs::write(lab.path("deep.py"), script).expect("script");
        let path = lab.path("deep.py");
        let arguments = ["-c", "python3 \"$0\" & wait", path.to_str().expect("path")];
        let mut running = lab.spawn(Path::new("/bin/sh"), &arguments);
        assert!(until(SOON, || ready.exists()), "python3 does not start: {}", lab.log());
        std::thread::sleep(std::time::Duration::from_millis(200));
        let program = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).expect("program");
        let pids = observe::tree(running.pid);
        let programs: BTreeMap<i32, PathBuf> = pids.into_iter().map(|pid| (pid, program(pid))).collect();
        let image = lab.dump(&mut running, &["--kill"]);
        let all = stacks(&lab, &image);
        let cores = cores(&lab, &image);
        assert_eq!(cores.len(), programs.len(), "{cores:?} {programs:?}");
        for core in &cores {
            let pid: i32 = core.extension().expect("pid").to_str().expect("pid").parse().expect("pid");
            let ours: Vec<&Stack> = all.iter().filter(|s| s.pid == i64::from(pid)).collect();
            assert!(ours[0].names.contains(&"__libc_start_main".into()), "{:?}", ours[0].names);
            let ours: Frames = ours.iter().map(|s| (s.tid, s.pcs.clone())).collect();
            let (program, core) = (programs[&pid].to_str().expect("path"), core.to_str().expect("path"));
            assert_eq!(gdb_frames(&lab, &[program, core]), ours, "{program} {core}");
        }
        assert!(all.len() >= 4, "{}", all.len());
        lab.nothing_left();
    }
}
