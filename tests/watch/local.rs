//! Images that are kept in a folder, from which a program comes back.

use crate::lab::{Lab, SOON, observe, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// For several images, each on its disk before the next one.
const LONG: Duration = Duration::from_secs(60);

/// Counts into a file.
const COUNT: &str = "import sys, time\nn = 0\nwhile True:\n    n += 1\n    open(sys.argv[1], 'w').write(str(n))\n    time.sleep(0.01)\n";

/// How long those sleep that are copied meanwhile.
const SLEPT: Duration = Duration::from_secs(8);
/// Three calls with a time-out that only the kernel knows when they were interrupted.
const SLEEP: &str = "
import ctypes, os, select, sys, threading
libc, lock, prefix = ctypes.CDLL(None), threading.Lock(), sys.argv[1]
def asleep(): libc.nanosleep((ctypes.c_long * 2)(8, 0), None)
def polls(): select.poll().poll(8000)
def waits(): libc.syscall(202, (ctypes.c_int * 1)(0), 0, 0, (ctypes.c_long * 2)(8, 0))
def run(work):
    work()
    with lock: open(prefix + '.woken', 'a').write(work.__name__ + chr(10))
threads = [threading.Thread(target=run, args=(work,)) for work in (asleep, polls, waits)]
for t in threads: t.start()
open(prefix + '.ready', 'w').close()
for t in threads: t.join()
";

/// A listening socket and connections, all of whose options are known by then, are given some in between: they are in the images
/// that come after.
const OPTIONS: &str = "
import os, socket, sys, time
prefix, T, S = sys.argv[1], socket.IPPROTO_TCP, socket.SOL_SOCKET
def say(name, text):
    open(prefix + '.part', 'w').write(text)
    os.rename(prefix + '.part', prefix + '.' + name)
def wait(name):
    while not os.path.exists(prefix + '.' + name): time.sleep(0.01)
listener = socket.create_server(('127.0.0.1', 0))
pairs = [(socket.create_connection(listener.getsockname()), listener.accept()[0]) for _ in range(10)]
all = [listener] + [s for pair in pairs for s in pair]
names = [(T, socket.TCP_NODELAY), (S, socket.SO_KEEPALIVE), (T, socket.TCP_KEEPIDLE), (T, socket.TCP_DEFER_ACCEPT), (S, socket.SO_MARK)]
seen = lambda: [[s.getsockopt(*name) for name in names] for s in all]
say('ready', '')
wait('set')
listener.setsockopt(T, socket.TCP_DEFER_ACCEPT, 7)
for n, s in enumerate(all): s.setsockopt(*names[n % 3], 55)
all[5].setsockopt(S, socket.SO_MARK, 9)
before = seen()
say('done', '')
wait('go')
for a, b in pairs: a.send(b'there'), b.send(b'back')
heard = [(a.recv(9), b.recv(9)) for a, b in pairs]
say('result', 'ok' if seen() == before and set(heard) == {(b'back', b'there')} else f'{before} became {seen()}, {heard}')
";

/// Records and capsules of the test's own.
pub fn own(name: &str) -> Lab {
    fs::create_dir_all("/run/meio").expect("folder");
    for place in ["/var/lib", "/run/meio"] {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), place, Some("tmpfs"), flags, None::<&str>).expect("tmpfs");
    }
    Lab::new(name)
}

fn begin(lab: &Lab, arguments: &[&str]) -> Child {
    let out = || Stdio::from(File::options().create(true).append(true).open(lab.path("watch.log")).expect("a file"));
    let folder = lab.path("kept").display().to_string();
    let mut command = lab.meio(&["watch", "--dir", &folder, "--interval", "100ms"]);
    command.args(arguments).stdout(out()).stderr(out()).spawn().expect("meio starts")
}

fn said(lab: &Lab) -> String {
    fs::read_to_string(lab.path("watch.log")).unwrap_or_default()
}

/// The number of the newest image, as the watch says.
fn newest(lab: &Lab, name: &str) -> u64 {
    let done = lab.meio(&["status", name, "--json"]).output().expect("meio starts");
    let told: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
    told["watches"][0]["epoch"]["number"].as_u64().unwrap_or_default()
}

/// The images, the newest last.
fn images(lab: &Lab) -> Vec<PathBuf> {
    let files = fs::read_dir(lab.path("kept")).expect("a folder").flatten().map(|file| file.path());
    let mut images: Vec<(u64, PathBuf)> =
        files.map(|path| (path.file_stem().expect("a name").to_string_lossy().parse().expect("a number"), path)).collect();
    images.sort();
    images.into_iter().map(|(_, path)| path).collect()
}

fn count(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

crate::alone! {
    /// The power is cut while the newest image is only half there.
    fn it_comes_back_from_the_newest_image_that_is_whole() {
        let lab = own("watch-dir");
        let file = lab.path("count");
        let mut running = lab.spawn(Path::new("python3"), &["-I", "-S", "-c", COUNT, file.to_str().expect("path")]);
        assert!(until(SOON, || count(&file) > 10), "it does not count: {}", lab.log());
        let pid = running.pid.to_string();
        let mut meio = begin(&lab, &["--keep", "3", "--name", "job", &pid]);
        // Two of them that stand alone have gone by then.
        assert!(until(LONG, || newest(&lab, "job") >= 8), "{}", said(&lab));
        let done = lab.run(lab.meio(&["checkpoint", "job", "--json"]));
        let told: Value = serde_json::from_str(&done.stdout).expect("JSON");
        assert!(done.code == 0 && told["epoch"]["number"].as_u64() > Some(8), "{done:?}");
        let done = lab.run(lab.meio(&["status", "job"]));
        assert!(done.stdout.contains("series: saved") && done.stdout.contains("what happened of the last"), "{done:?}");
        let again = lab.run(lab.meio(&["watch", "--dir", "elsewhere", &pid]));
        assert!(again.code == 1 && again.stderr.contains("is watched already, as job"), "{again:?}");
        kill(Pid::from_raw(meio.id() as i32), Signal::SIGKILL).expect("kill");
        meio.wait().expect("it ends");
        running.kill();
        let kept = images(&lab);
        assert!((3..=6).contains(&kept.len()), "{kept:?}");
        let last = kept.last().expect("an image");
        let half = fs::metadata(last).expect("an image").len() / 2;
        File::options().write(true).open(last).and_then(|file| file.set_len(half)).expect("it is cut off");
        let before = count(&file);
        fs::write(&file, "0").expect("a file");
        let folder = lab.path("kept").display().to_string();
        let back = lab.run(lab.meio(&["restore", "-d", &folder]));
        assert!(back.code == 3 && back.stdout.trim() == pid && back.stderr.contains("the one before it is"), "{back:?}");
        assert!(until(SOON, || count(&file) > 10), "it does not go on");
        assert!(count(&file) <= before + 10_000);
        // It is watched anew, in the same folder.
        let mut meio = begin(&lab, &["--keep", "3", "--name", "job", &pid]);
        let first = last.file_stem().expect("a name").to_string_lossy().parse::<u64>().expect("a number") + 1;
        assert!(until(LONG, || newest(&lab, "job") >= first + 3), "{}", said(&lab));
        let over = lab.run(lab.meio(&["unwatch", "job"]));
        assert!(over.code == 0 && over.stdout.contains("the tree goes on here"), "{over:?}");
        assert_eq!(meio.wait().expect("it ends").code(), Some(0), "{}", said(&lab));
        assert!(!last.exists(), "what was there before is still there: {:?}", images(&lab));
        assert_eq!(fs::read_dir("/var/lib/meio/watch").expect("a folder").count(), 0);
        let back = Pid::from_raw(pid.parse().expect("a pid"));
        kill(back, Signal::SIGKILL).expect("it runs");
        assert!(until(SOON, || observe::state(back.as_raw()).is_none_or(|state| state == 'Z')));
    }

    /// How long a call has still to wait is found out once, and holds for all images after that.
    fn who_sleeps_through_many_images_wakes_in_time() {
        let lab = own("watch-sleepers");
        let prefix = lab.path("x").display().to_string();
        let mut running = lab.spawn(Path::new("python3"), &["-I", "-S", "-c", SLEEP, &prefix]);
        assert!(until(SOON, || lab.path("x.ready").exists()), "{}", lab.log());
        let begun = Instant::now();
        let pid = running.pid.to_string();
        let mut meio = begin(&lab, &["--name", "job", &pid]);
        assert!(until(SLEPT / 2, || newest(&lab, "job") >= 8), "{}", said(&lab));
        // From here on no image is made any more, however long the kernel takes to end it.
        let before = begun.elapsed();
        kill(Pid::from_raw(meio.id() as i32), Signal::SIGKILL).expect("kill");
        meio.wait().expect("it ends");
        running.kill();
        assert!(!lab.path("x.woken").exists());
        let back = lab.run(lab.meio(&["restore", "-d", &lab.path("kept").display().to_string()]));
        assert!(matches!(back.code, 0 | 3), "{back:?}");
        let again = Instant::now();
        assert!(until(LONG, || fs::read_to_string(lab.path("x.woken")).is_ok_and(|text| text.lines().count() == 3)), "{}", lab.log());
        let slept = before + again.elapsed();
        // The last image is somewhat older than the end, and this machine may be busy.
        const BUSY: Duration = Duration::from_millis(1500);
        assert!(slept + BUSY / 3 > SLEPT && slept < SLEPT + BUSY, "slept for {slept:?}, {before:?} of them before");
    }

    fn options_that_are_set_between_two_images() {
        let lab = own("watch-options");
        let prefix = lab.path("x").display().to_string();
        let mut running = lab.spawn(Path::new("python3"), &["-I", "-S", "-c", OPTIONS, &prefix]);
        assert!(until(SOON, || lab.path("x.ready").exists()), "{}", lab.log());
        let mut meio = begin(&lab, &["--name", "job", &running.pid.to_string()]);
        assert!(until(LONG, || newest(&lab, "job") >= 4), "{}", said(&lab));
        fs::write(lab.path("x.set"), "").expect("a file");
        assert!(until(SOON, || lab.path("x.done").exists()), "{}", lab.log());
        let now = newest(&lab, "job");
        assert!(until(LONG, || newest(&lab, "job") >= now + 3), "{}", said(&lab));
        kill(Pid::from_raw(meio.id() as i32), Signal::SIGKILL).expect("kill");
        meio.wait().expect("it ends");
        running.kill();
        let back = lab.run(lab.meio(&["restore", "-d", &lab.path("kept").display().to_string()]));
        assert!(matches!(back.code, 0 | 3), "{back:?}");
        fs::write(lab.path("x.go"), "").expect("a file");
        assert!(until(SOON, || lab.path("x.result").exists()), "{}", lab.log());
        assert_eq!(fs::read_to_string(lab.path("x.result")).expect("a result"), "ok");
    }

    /// A program that is started, and watched until it ends.
    fn a_command_and_its_end() {
        let lab = own("watch-command");
        let wait = format!("until [ -e {}.go ]; do sleep 0.05; done; exit 7", lab.path("x").display());
        let mut meio = begin(&lab, &["--name", "work", "--json", "--", "sh", "-c", &wait]);
        assert!(until(LONG, || newest(&lab, "work") >= 2), "{}", said(&lab));
        fs::write(lab.path("x.go"), "").expect("a file");
        assert_eq!(meio.wait().expect("it ends").code(), Some(7), "{}", said(&lab));
        let last: Value = serde_json::from_str(said(&lab).lines().last().expect("a line")).expect("JSON");
        assert!(last["source"] == "ended" && last["exit_code"] == 7, "{last}");
        // What cannot be watched is not left running.
        fs::write(lab.path("file"), "").expect("a file");
        let below = lab.path("file/below").display().to_string();
        let done = lab.run(lab.meio(&["watch", "--dir", &below, "--name", "work", "--", "sleep", "1000"]));
        assert!(done.code == 1, "{done:?}");
        let list = lab.run(lab.meio(&["list", "--json"]));
        assert!(list.stdout.contains(r#""capsules":[]"#), "{}", list.stdout);
    }
}
