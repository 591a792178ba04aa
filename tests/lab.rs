//! The builder that every test uses: a folder, fixture programs, meio, and the
//! ways in which a tree is taken through a dump.

pub mod alone;
pub mod compare;
pub mod hosts;
pub mod observe;
pub mod sshd;
pub mod terminal;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that should happen at once.
pub const SOON: Duration = Duration::from_secs(20);

/// Fixtures that meio has something to say about, at the dump and at the restore.
const WARNED: &[&str] = &["aio", "inotify"];
/// Those of which that depends on the moment: who logs in to sshd is served behind a strict seccomp filter at first.
const SOMETIMES_WARNED: &[&str] = &["sshd"];

/// What happens to a tree between its being ready and its verifying itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing: the fixture itself must be right.
    Untouched,
    /// `dump`; it runs on.
    DumpOnly,
    /// `dump`, then it is killed, `restore -d`.
    KillRestore,
    /// `dump --kill`, `restore -d`, and both once more.
    TwiceRestored,
    /// `dump --kill`, `restore -d --pid-namespace`.
    PidNamespace,
    /// `dump --every`, then it is killed, and the last image of the series restored.
    Series,
}

/// A folder for one test, and what must be there again at its end.
pub struct Lab {
    dir: tempfile::TempDir,
    mounts: String,
    /// Files that `dump` wrote.
    images: Vec<PathBuf>,
    name: String,
}

/// A tree that runs.
pub struct Running {
    /// Its root, as seen from here.
    pub pid: i32,
    /// Path that the names of all its files begin with.
    pub prefix: PathBuf,
    /// It said instead of `ready` why this machine cannot show what it is about.
    pub skipped: Option<String>,
    child: Option<Child>,
    /// Begin and end of the last dump.
    dumped: (u64, u64),
    /// How long it was away in all: at least, at most.
    away: (u64, u64),
    /// When it was back for the last time.
    back: u64,
}

/// A run of meio that has ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; 128 and the signal's number when it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// `CLOCK_MONOTONIC` at start and end, in nanoseconds.
    pub time: (u64, u64),
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn now() -> u64 {
    let t = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC");
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}

/// How many times longer things may take: where the machine itself is only played, they do.
pub fn patience() -> u32 {
    std::env::var("LAB_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Waits until `condition` holds; whether it did within `limit`.
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    let limit = limit * patience();
    while !condition() {
        if begin.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The folder of the fixture programs' sources.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/programs")
}

/// Compiles `fixtures/programs/NAME.c` unless the result is newer than it.
pub fn compile(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fixtures");
    fs::create_dir_all(&folder).expect("folder for compiled fixtures");
    let program = folder.join(name);
    let guard = File::create(folder.join(format!("{name}.lock"))).expect("lock");
    // two tests of one fixture: a program that is replaced while it runs is a deleted executable
    let _guard = Flock::lock(guard, FlockArg::LockExclusive).expect("lock");
    let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let source = changed(&sources().join(format!("{name}.c"))).expect("source of the fixture");
    let header = changed(&sources().join("fixture.h")).expect("fixture.h");
    // Where both were copied with times in whole seconds they may be the same.
    if changed(&program).is_some_and(|made| made >= source && made >= header) {
        return program;
    }
    let draft = tempfile::Builder::new().prefix(name).tempfile_in(&folder).expect("draft").into_temp_path();
    let out = Command::new("gcc")
        .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&draft)
        .arg(format!("{name}.c"))
        .current_dir(sources())
        .output()
        .expect("gcc starts");
    assert!(out.status.success(), "gcc {name}.c: {}", String::from_utf8_lossy(&out.stderr));
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).expect("mode");
    draft.persist(&program).expect("rename");
    program
}

impl Lab {
    /// A folder whose name tells which test it belongs to.
    pub fn new(name: &str) -> Lab {
        let keep = std::env::var_os("MEIO_KEEP").is_some();
        let dir = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .disable_cleanup(keep)
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("folder");
        fs::create_dir(dir.path().join("images")).expect("folder");
        Lab { dir, mounts: fs::read_to_string("/proc/self/mounts").expect("mounts"), images: Vec::new(), name: name.to_owned() }
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a command as the leader of a session of its own, away from every
    /// terminal, with its output in the file `log`.
    pub fn spawn(&self, program: &Path, arguments: &[&str]) -> Running {
        let log = || File::options().create(true).append(true).open(self.path("log")).expect("log");
        let child = Command::new("setsid")
            .arg(program)
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn()
            .expect("setsid(1) starts");
        Running { pid: child.id() as i32, prefix: self.path("x"), skipped: None, child: Some(child), dumped: (0, 0), away: (0, 0), back: 0 }
    }

    /// Starts a fixture program and waits until it is ready.
    pub fn fixture(&self, name: &str, arguments: &[&str]) -> Running {
        self.ready(&compile(name), arguments)
    }

    /// Starts a program that behaves like a fixture and waits until it is ready.
    pub fn ready(&self, program: &Path, arguments: &[&str]) -> Running {
        let prefix = self.path("x");
        let mut all = vec![prefix.to_str().expect("path")];
        all.extend(arguments);
        let mut running = self.spawn(program, &all);
        let come = until(SOON, || running.file("ready").exists() || running.file("result").exists());
        let said = fs::read_to_string(running.file("ready")).unwrap_or_default();
        assert!(come && !said.is_empty(), "{program:?} does not get ready: {}", self.log());
        if let Some(why) = said.strip_prefix("skip ") {
            running.skipped = Some(why.trim().to_string());
            running.wait();
        }
        running
    }

    /// What the tree wrote to its standard output and error.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    /// The program under test; its working folder is the one with the images.
    pub fn meio(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meio"));
        command.args(arguments).current_dir(self.path("images")).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, with its output in files: a pipe would also wait
    /// for whoever inherits it.
    pub fn run(&self, mut command: Command) -> Outcome {
        let (out, err) = (self.path("stdout"), self.path("stderr"));
        command.stdout(File::create(&out).expect("stdout")).stderr(File::create(&err).expect("stderr"));
        let begin = now();
        let mut child = command.spawn().expect("meio starts");
        let mut status = None;
        let ended = until(Duration::from_secs(60), || {
            status = child.try_wait().expect("wait");
            status.is_some()
        });
        let end = now();
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        if !ended {
            child.kill().expect("kill");
            child.wait().expect("wait");
            panic!("{command:?} does not end\n{}{}", text(&out), text(&err));
        }
        let status = status.expect("status");
        let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0);
        Outcome { code: status.code().unwrap_or(128 + signal), stdout: text(&out), stderr: text(&err), time: (begin, end) }
    }

    /// `meio dump PID -o IMAGE …`, which must succeed: the image.
    pub fn dump(&mut self, running: &mut Running, arguments: &[&str]) -> PathBuf {
        let image = self.path(&format!("images/{}.meio", self.images.len() + 1));
        let mut all = vec!["dump".to_string(), running.pid.to_string(), "-o".into()];
        all.push(image.to_str().expect("path").into());
        all.extend(arguments.iter().map(|s| s.to_string()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let tree = observe::tree(running.pid);
        let done = self.run(self.meio(&all));
        assert!(self.succeeded(&done), "meio {}: {}{}\n{}", all.join(" "), done.stdout, done.stderr, self.log());
        let mode = fs::metadata(&image).expect("image").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "mode of the image");
        self.images.push(image.clone());
        running.dumped = done.time;
        if arguments.contains(&"--kill") {
            running.wait();
            // children of a root that has ended are reaped by the namespace's first process, in its own time
            let gone = until(SOON, || tree.iter().all(|&pid| observe::state(pid).is_none()));
            assert!(gone, "something is still there after dump --kill\n{}", observe::listing());
        }
        image
    }

    /// `meio dump PID --every 50ms …`, which must succeed: the last of `count` images.
    pub fn series(&mut self, running: &mut Running, count: u64, arguments: &[&str]) -> PathBuf {
        let (pid, n) = (running.pid.to_string(), count.to_string());
        let mut all = vec!["dump", &pid, "--every", "50ms", "--count", &n, "-o", "s{n}.meio"];
        all.extend(arguments);
        let done = self.run(self.meio(&all));
        assert!(self.succeeded(&done), "meio {}: {}{}\n{}", all.join(" "), done.stdout, done.stderr, self.log());
        let images: Vec<PathBuf> = (1..=count).map(|n| self.path(&format!("images/s{n}.meio"))).collect();
        self.images.extend(images);
        running.dumped = done.time;
        self.images.last().expect("an image").clone()
    }

    /// Some things that a fixture shows come back only so far, and a warning says so.
    fn succeeded(&self, done: &Outcome) -> bool {
        let name = &self.name.as_str();
        let wanted = if WARNED.contains(name) { 3 } else { 0 };
        done.code == wanted || done.code == 3 && SOMETIMES_WARNED.contains(name)
    }

    /// An image that is made in another way than by [`Lab::dump`].
    pub fn expect(&mut self, image: &Path) {
        self.images.push(image.to_owned());
    }

    /// `meio restore IMAGE -d …`, which must succeed.
    pub fn restore(&self, image: &Path, running: &mut Running, arguments: &[&str]) {
        let pidfile = self.path("pid");
        let _ = fs::remove_file(&pidfile);
        let mut command = self.meio(&["restore", "-d"]);
        command.arg("--pidfile").arg(&pidfile).arg(image).args(arguments);
        let done = self.run(command);
        assert!(self.succeeded(&done), "meio restore {arguments:?}: {}{}\n{}", done.stdout, done.stderr, self.log());
        let pid = fs::read_to_string(&pidfile).expect("pid file").trim().parse().expect("a pid in the pid file");
        if !arguments.contains(&"--pid-namespace") {
            assert_eq!(pid, running.pid, "the restored root has another pid");
        }
        running.pid = pid;
        running.back = done.time.1;
        running.away.0 += done.time.0 - running.dumped.1;
        running.away.1 += done.time.1 - running.dumped.0;
    }

    /// Takes a tree that is ready through `way` and lets it verify itself.
    pub fn take(&mut self, mut running: Running, way: Way) {
        if let Some(why) = &running.skipped {
            println!("skipped: {why}");
            return;
        }
        match way {
            Way::Untouched => {}
            Way::DumpOnly => {
                let pids = observe::tree(running.pid);
                let before = observe::snapshot(&pids);
                self.dump(&mut running, &[]);
                // A stopped task that is let go is stopped again an instant later.
                let mut differ = String::new();
                until(Duration::from_secs(2), || {
                    differ = observe::difference(&before, &observe::snapshot(&observe::tree(running.pid)));
                    differ.is_empty()
                });
                assert!(differ.is_empty(), "the dump has changed the tree:\n{differ}");
                running.back = running.dumped.1;
                running.away.1 = running.dumped.1 - running.dumped.0;
            }
            Way::KillRestore => {
                // Whoever it is connected to outside of the tree is not to hear that it ends.
                let outside = running.file("outside").exists();
                let image = self.dump(&mut running, if outside { &["--kill"] } else { &[] });
                running.kill();
                self.restore(&image, &mut running, &[]);
            }
            Way::TwiceRestored => {
                let begin = now();
                let first = self.dump(&mut running, &["--kill"]);
                self.restore(&first, &mut running, &[]);
                let second = self.dump(&mut running, &["--kill"]);
                self.same_metadata(&first, &second, now() - begin);
                self.restore(&second, &mut running, &[]);
            }
            Way::PidNamespace => {
                let image = self.dump(&mut running, &["--kill"]);
                self.restore(&image, &mut running, &["--pid-namespace"]);
            }
            Way::Series => {
                let last = self.series(&mut running, 3, &[]);
                // Whoever it is connected to outside of the tree would hear that it ends.
                if running.file("outside").exists() {
                    running.back = running.dumped.1;
                    running.away.1 = running.dumped.1 - running.dumped.0;
                } else {
                    running.kill();
                    self.restore(&last, &mut running, &[]);
                }
            }
        }
        self.go_and_verify(running, Duration::from_secs(60));
        self.nothing_left();
    }

    /// The images of a tree and of the restored tree say the same of it, but for what [`compare::ALLOWED`] lists.
    pub fn same_metadata(&self, first: &Path, second: &Path, elapsed_ns: u64) {
        let [before, after] = [first, second].map(|image| {
            let done = self.run(self.meio(&["inspect", image.to_str().expect("path"), "--json"]));
            assert_eq!(done.code, 0, "{done:?}");
            serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).expect("JSON")
        });
        let (found, used) = compare::differences(&self.name, &before, &after, elapsed_ns);
        assert!(found.is_empty(), "the restored tree is another one:\n{}", found.join("\n"));
        let unneeded: Vec<_> = compare::unneeded(&self.name, &used).collect();
        assert!(unneeded.is_empty(), "allowed in tests/lab/compare.rs and needed no more: {unneeded:?}");
    }

    /// Tells a fixture to verify itself and waits for its verdict.
    pub fn go_and_verify(&self, mut running: Running, limit: Duration) {
        let (min, max) = running.away;
        fs::write(running.file("away"), format!("{min} {max} {}", running.back)).expect("away");
        fs::write(running.file("go"), "").expect("go");
        let come = until(limit, || running.file("result").exists() || observe::state(running.pid).is_none());
        let result = fs::read(running.file("result")).unwrap_or_else(|_| b"no verdict".into());
        let result = String::from_utf8_lossy(&result);
        let state = observe::state(running.pid);
        if !come {
            running.kill();
        }
        assert_eq!(result, "ok\n", "state {state:?}; output: {}", self.log());
        running.wait();
        assert!(until(SOON, || observe::state(running.pid).is_none()), "the tree has not ended");
    }

    /// No process, mount or file of meio's is there any more.
    pub fn nothing_left(&self) {
        let own = std::process::id() as i32;
        let others = || observe::processes().into_iter().filter(|&pid| pid != 1 && pid != own).collect::<Vec<_>>();
        if !until(Duration::from_secs(5), || others().is_empty()) {
            panic!("processes {:?} are left\n{}", others(), observe::listing());
        }
        // What a fixture has mounted it unmounts where it ends, which may be in another namespace.
        let own = format!(" {}/x.", self.dir.path().display());
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let mounts: String = mounts.split_inclusive('\n').filter(|line| !line.contains(&own)).collect();
        assert_eq!(mounts, self.mounts, "mounts are left");
        for entry in fs::read_dir(self.path("images")).expect("folder").flatten() {
            assert!(self.images.contains(&entry.path()), "a file is left: {:?}", entry.file_name());
        }
    }
}

impl Running {
    /// The tree below a child of this process.
    pub fn child(lab: &Lab, child: Child) -> Running {
        let pid = child.id() as i32;
        Running { child: Some(child), ..Running::of(lab, pid) }
    }

    /// The tree below a process that somebody else started.
    pub fn of(lab: &Lab, pid: i32) -> Running {
        Running { pid, prefix: lab.path("x"), skipped: None, child: None, dumped: (0, 0), away: (0, 0), back: 0 }
    }

    /// The file that the fixture knows by this suffix.
    pub fn file(&self, suffix: &str) -> PathBuf {
        let mut path = self.prefix.clone().into_os_string();
        path.push(".");
        path.push(suffix);
        path.into()
    }

    /// Reaps the root when it is our own child, which no restored one is.
    pub fn wait(&mut self) {
        if let Some(mut child) = self.child.take() {
            let ended = until(SOON, || child.try_wait().expect("wait").is_some());
            assert!(ended, "process {} does not end", self.pid);
        }
    }

    /// Kills the whole tree and waits until its pids are free.
    pub fn kill(&mut self) {
        let mut all = observe::tree(self.pid);
        let gone = until(SOON, || {
            all.extend(observe::tree(self.pid));
            all.retain(|&pid| observe::state(pid).is_some());
            for &pid in &all {
                // it may have ended by itself in between
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if let Some(child) = &mut self.child {
                let _ = child.try_wait();
            }
            all.is_empty()
        });
        assert!(gone, "processes {all:?} do not die");
        self.child = None;
    }
}
