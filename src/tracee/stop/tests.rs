//! A program that counts in a file is stopped by a meio that is killed.

use super::*;
use crate::tracee::freeze::freeze;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Threads that count in a shared mapping, one that sleeps and one that reads, and signals that are counted, too. Its child, which
/// is stopped, has none.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static volatile uint64_t *slot;
static void *count(void *n) { for (;;) slot[(long)n]++; }
static void handler(int number) { __atomic_add_fetch(&slot[number == SIGCONT ? 8 : 9], 1, __ATOMIC_SEQ_CST); }
static void *sleeper(void *unused) {
    struct timespec t = { 1000, 0 };
    sigset_t set;
    sigfillset(&set);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    if (nanosleep(&t, NULL)) slot[10] = errno;
    return unused;
}
int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDWR), ends[2];
    slot = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGALRM, &action, 0);
    if (argc > 2) sigaction(SIGCONT, &action, 0);
    if (pipe(ends)) return 1;
    slot[15] = fork();
    if (!slot[15]) for (;;) pause();
    kill(slot[15], SIGSTOP);
    int status;
    waitpid(slot[15], &status, WUNTRACED);
    pthread_t thread;
    for (long n = 0; n < 3; n++) pthread_create(&thread, 0, count, (void *)n);
    pthread_create(&thread, 0, sleeper, 0);
    sigset_t set;
    sigemptyset(&set); sigaddset(&set, SIGUSR2); sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    slot[14] = 1;
    char byte;
    slot[11] = read(ends[0], &byte, 1) < 0 ? errno : 1000;
    for (;;) pause();
}
"#;

struct Counter {
    child: Child,
    memory: File,
    folder: tempfile::TempDir,
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.slot(15) as i32), Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Counter {
    /// `how`: with a word more it catches SIGCONT.
    fn start(how: &[&str]) -> Counter {
        let folder = tempfile::tempdir().unwrap();
        let (source, program, memory) = (folder.path().join("c.c"), folder.path().join("c"), folder.path().join("memory"));
        std::fs::write(&source, PROGRAM).unwrap();
        std::fs::write(&memory, [0u8; 4096]).unwrap();
        assert!(Command::new("gcc").args(["-O1", "-pthread", "-o"]).args([&program, &source]).status().unwrap().success());
        let child = Command::new(program).arg(&memory).args(how).stdin(Stdio::null()).spawn().unwrap();
        let counter = Counter { child, memory: File::open(memory).unwrap(), folder };
        until("it begins", || counter.slot(14) == 1 && counter.counts().iter().all(|&n| n > 0));
        counter
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn slot(&self, n: u64) -> u64 {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, n * 8).unwrap();
        u64::from_ne_bytes(word)
    }

    fn counts(&self) -> [u64; 3] {
        [0, 1, 2].map(|n| self.slot(n))
    }

    fn state(&self, pid: i32) -> u8 {
        read::parsed(pid, "stat", stat::parse).unwrap().state
    }

    fn told(&self) -> PathBuf {
        self.folder.path().join("told")
    }

    /// All of its threads run; nothing was interrupted, nothing is blocked that was not, and no handler was run but `signals`.
    fn goes_on(&self, signals: [u64; 2]) {
        let before = self.counts();
        until("it goes on", || self.counts().iter().zip(before).all(|(&now, before)| now > before));
        let status = read::parsed(self.pid(), "status", status::parse).unwrap();
        assert_eq!(status.sig_blk, 1 << (libc::SIGUSR2 - 1) | 1 << (libc::SIGALRM - 1));
        until("signals come", || self.slot(9) == signals[1]);
        assert_eq!((self.slot(8), self.slot(10), self.slot(11)), (signals[0], 0, 0), "SIGCONT, nanosleep, read");
        // Led back into its stop, it is on its way for a moment.
        until("it was stopped before", || self.state(self.slot(15) as i32) == b'T');
    }
}

/// Waits for all children of the process: each test runs in one of its own.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os("STOP_ALONE").is_some() {
        return test();
    }
    let run = again(name).env("STOP_ALONE", "1").output().expect("run");
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && text.contains("1 passed"), "{name}\n{text}");
}

fn again(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args([&format!("tracee::stop::tests::{name}"), "--exact", "--nocapture", "--test-threads=1"]);
    command
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Stops a tree and says so, as meio would; it is killed then. Without being told to, it does nothing.
#[test]
fn helper() {
    let Ok(pid) = std::env::var("STOP_HELPER") else { return };
    let told = PathBuf::from(std::env::var_os("STOP_TOLD").unwrap());
    let mut frozen = freeze(pid.parse().unwrap(), PATIENCE).unwrap();
    let stopped = serde_json::to_vec(&frozen.stopped().unwrap()).unwrap();
    let write = |name: &str, text: &[u8]| {
        std::fs::write(told.with_extension("part"), text).unwrap();
        std::fs::rename(told.with_extension("part"), told.with_extension(name)).unwrap();
    };
    write("stopped", &stopped);
    frozen.stop().unwrap();
    write("done", b"");
    loop {
        std::thread::park();
    }
}

fn helper_for(counter: &Counter) -> Child {
    let mut command = again("helper");
    command.env("STOP_HELPER", counter.pid().to_string()).env("STOP_TOLD", counter.told());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn wake_all(counter: &Counter, stopped: &[Stopped]) {
    freeze(counter.pid(), PATIENCE).unwrap().wake(stopped).unwrap();
}

fn stopped_by(told: &Path) -> Option<Vec<Stopped>> {
    Some(serde_json::from_slice(&std::fs::read(told.with_extension("stopped")).ok()?).unwrap())
}

#[test]
fn it_stands_still_when_meio_is_killed() {
    alone("it_stands_still_when_meio_is_killed", || {
        let counter = Counter::start(&["catches SIGCONT"]);
        let mut helper = helper_for(&counter);
        until("it is stopped", || counter.told().with_extension("done").exists());
        let stood = counter.counts();
        // They have to wait until the program goes on; both come before SIGSTOP, one is blocked in the first thread.
        kill(Pid::from_raw(counter.pid()), Signal::SIGUSR1).unwrap();
        kill(Pid::from_raw(counter.pid()), Signal::SIGALRM).unwrap();
        helper.kill().unwrap();
        helper.wait().unwrap();
        let stopped = stopped_by(&counter.told()).unwrap();
        assert_eq!(stopped.iter().map(|s| s.before).collect::<Vec<_>>(), [false, true]);
        until("all stand", || stopped.iter().all(Stopped::stands));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(counter.counts(), stood, "not one instruction");
        assert_eq!((counter.slot(8), counter.slot(9)), (0, 0));
        assert!(read::tasks(counter.pid()).unwrap().len() == 5 && counter.state(counter.pid()) == b'T');
        wake_all(&counter, &stopped);
        counter.goes_on([0, 2]);
        // And as any program it can be stopped, and continued.
        kill(Pid::from_raw(counter.pid()), Signal::SIGSTOP).unwrap();
        until("it stops", || stopped[0].stands());
        kill(Pid::from_raw(counter.pid()), Signal::SIGCONT).unwrap();
        until("its own handler", || counter.slot(8) == 1);
    });
}

#[test]
fn signals_that_wait_do_not_run() {
    alone("signals_that_wait_do_not_run", || {
        let counter = Counter::start(&[]);
        let mut frozen = freeze(counter.pid(), PATIENCE).unwrap();
        let stood = counter.counts();
        kill(Pid::from_raw(counter.pid()), Signal::SIGUSR1).unwrap();
        let stopped = frozen.stopped().unwrap();
        frozen.stop().unwrap();
        assert_eq!((counter.counts(), counter.slot(9)), (stood, 0));
        // Let go, it stays where it is.
        frozen.release();
        until("all stand", || stopped.iter().all(Stopped::stands));
        assert_eq!((counter.counts(), counter.slot(9)), (stood, 0));
        wake_all(&counter, &stopped);
        counter.goes_on([0, 1]);
        // At once, by the same meio; what runs needs no waking.
        let mut frozen = freeze(counter.pid(), PATIENCE).unwrap();
        frozen.stop().unwrap();
        frozen.wake(&stopped).unwrap();
        counter.goes_on([0, 1]);
        wake_all(&counter, &stopped);
        counter.goes_on([0, 1]);
    });
}

/// Wherever meio is killed, it runs on or stands, and whoever comes next puts it right.
#[test]
fn meio_is_killed_at_any_moment() {
    alone("meio_is_killed_at_any_moment", || {
        const TIMES: u32 = 40;
        let counter = Counter::start(&["catches SIGCONT"]);
        let mut stood = 0;
        for time in 0..TIMES {
            let mut helper = helper_for(&counter);
            until("it has begun", || counter.told().with_extension("stopped").exists());
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(15) * time {
                std::hint::spin_loop();
            }
            helper.kill().unwrap();
            helper.wait().unwrap();
            let stopped = stopped_by(&counter.told()).unwrap();
            // The one that was not stopped is, or it runs: in the end it is one of both.
            let ran = || {
                let before = counter.counts();
                std::thread::sleep(Duration::from_millis(5));
                counter.counts() != before
            };
            until("stands or runs", || stopped[0].stands() || ran());
            stood += u32::from(stopped[0].stands());
            wake_all(&counter, &stopped);
            counter.goes_on([0, 0]);
            for name in ["stopped", "done", "part"] {
                let _ = std::fs::remove_file(counter.told().with_extension(name));
            }
        }
        println!("stood still {stood} times of {TIMES}");
        assert!(stood > 0);
    });
}
