//! What is wrong is said before anything is touched: each case with its own words and exit code.

mod images;
mod moving;
mod network;
mod output;

use crate::lab::{Lab, Outcome, SOON, observe, until};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The last line of a run with `--json`.
fn last(done: &Outcome) -> Value {
    let line = done.stdout.lines().last().unwrap_or_else(|| panic!("no JSON: {done:?}"));
    serde_json::from_str(line).expect("JSON")
}

/// `meio … --json`, which must fail with `code`; what it says.
fn refused(lab: &Lab, arguments: &[&str], code: i32) -> Value {
    let done = lab.run(lab.meio(&[arguments, &["--json"]].concat()));
    let error = last(&done);
    assert_eq!((done.code, error["code"].as_i64()), (code, Some(code.into())), "{arguments:?}: {done:?}");
    assert!(!error["help"].as_str().expect("help").is_empty(), "{error}");
    error
}

fn message(error: &Value) -> &str {
    error["message"].as_str().expect("message")
}

/// Compiles a program of one file into the test's folder.
fn built(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let (source, program) = (lab.path(&format!("{name}.c")), lab.path(name));
    std::fs::write(&source, text).expect("source");
    let out = Command::new("gcc").args(["-O1", "-Wall", "-pthread", "-o"]).arg(&program).arg(&source).output().expect("gcc starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    program
}

/// Nothing of the tree is traced or stopped.
pub fn free(pid: i32) -> bool {
    observe::tree(pid).iter().flat_map(|&p| observe::threads(p).into_iter().map(move |t| (p, t))).all(|(p, t)| {
        let status = std::fs::read_to_string(format!("/proc/{p}/task/{t}/status"));
        status.map_or(true, |s| s.contains("TracerPid:\t0") && !s.contains("State:\tt"))
    })
}

crate::alone! {
    fn a_process_that_is_not_there_is_10() {
        let lab = Lab::new("not-there");
        let error = refused(&lab, &["dump", "2147483647"], 10);
        assert!(message(&error).contains("2147483647"), "{error}");
        lab.nothing_left();
    }

    fn meio_itself_and_its_ancestors_are_13() {
        let lab = Lab::new("itself");
        let error = refused(&lab, &["dump", &std::process::id().to_string()], 13);
        assert!(message(&error).contains("an ancestor of this meio"), "{error}");
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" dump $$ --json", crate::MEIO]).current_dir(lab.path("images"));
        let done = lab.run(shell);
        assert_eq!(done.code, 13, "{done:?}");
        assert!(message(&last(&done)).contains("meio itself"), "{done:?}");
        lab.nothing_left();
    }

    fn a_traced_tree_is_13_and_names_the_tracer() {
        let mut lab = Lab::new("traced");
        // Nothing that counts its signals: strace(1) is killed, and may take one along.
        let mut running = lab.fixture("sleepers", &["alone"]);
        let pid = running.pid.to_string();
        let mut strace = Command::new("strace").args(["-qq", "-e", "none", "-p", &pid]).stderr(Stdio::null()).spawn().expect("strace starts");
        assert!(until(SOON, || !free(running.pid)), "strace does not attach");
        let error = refused(&lab, &["dump", &pid], 13);
        let refusal = &error["refusals"][0];
        assert_eq!(refusal["pid"], running.pid);
        assert!(refusal["reason"].as_str().is_some_and(|r| r.contains(&strace.id().to_string())), "{error}");
        strace.kill().expect("kill");
        strace.wait().expect("wait");
        assert!(until(SOON, || free(running.pid)), "strace does not let go");
        lab.dump(&mut running, &[]);
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    fn a_32_bit_program_is_13() {
        use std::os::unix::fs::PermissionsExt;
        let lab = Lab::new("32-bit");
        let program = lab.path("small");
        std::fs::write(&program, pause_of_32_bits()).expect("program");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let mut running = lab.spawn(&program, &[]);
        if !until(SOON, || std::fs::read_link(format!("/proc/{}/exe", running.pid)).is_ok_and(|exe| exe == program)) {
            println!("skipped: this kernel runs no 32-bit programs");
            return;
        }
        let error = refused(&lab, &["dump", &running.pid.to_string()], 13);
        assert!(error["refusals"][0]["reason"].as_str().is_some_and(|r| r.contains("32-bit")), "{error}");
        assert_eq!(observe::state(running.pid), Some('S'));
        running.kill();
        lab.nothing_left();
    }

    fn without_permission_it_is_11() {
        let lab = Lab::new("permission");
        let running = lab.fixture("busy", &[]);
        // Where another user reaches it.
        let folder = tempfile::Builder::new().prefix("meio-").tempdir().expect("folder");
        let meio = folder.path().join("meio");
        std::fs::copy(crate::MEIO, &meio).expect("copy");
        for path in [folder.path(), &meio] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&meio);
        command.args(["dump", &running.pid.to_string(), "--json"]).current_dir(folder.path());
        let done = lab.run(command);
        assert_eq!(done.code, 11, "{done:?}");
        let error = last(&done);
        assert!(message(&error).contains(&running.pid.to_string()) && error["help"].as_str().is_some_and(|h| h.contains("root")), "{error}");
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    fn everything_that_is_not_supported_is_listed_at_once() {
        let lab = Lab::new("listed");
        let program = built(&lab, "holder", HOLDER);
        let running = lab.ready(&program, &[]);
        let pids = observe::tree(running.pid);
        assert_eq!(pids.len(), 2);
        let before = observe::snapshot(&pids);
        let error = refused(&lab, &["dump", &running.pid.to_string()], 13);
        let refusals = error["refusals"].as_array().expect("refusals");
        for (pid, object) in [(pids[0], "fd 50 (socket:["), (pids[0], "fd 51 (socket:["), (pids[1], "fd 60 (anon_inode:[userfaultfd])")] {
            let found = refusals.iter().filter(|r| r["pid"] == pid && r["object"].as_str().is_some_and(|o| o.starts_with(object)));
            assert_eq!(found.count(), 1, "{pid} {object} in {error}");
        }
        for refusal in refusals {
            assert!(["reason", "advice"].iter().all(|f| refusal[f].as_str().is_some_and(|t| !t.is_empty())), "{refusal}");
        }
        assert!(refusals.iter().all(|r| r["pid"] == pids[0] || r["pid"] == pids[1]), "{error}");
        // The same in words, and the same from check.
        let words = lab.run(lab.meio(&["dump", &running.pid.to_string()]));
        for refusal in refusals {
            assert!(["object", "reason", "advice"].iter().all(|f| words.stderr.contains(refusal[f].as_str().expect("text"))), "{words:?}");
        }
        let checked = lab.run(lab.meio(&["check", "--pid", &running.pid.to_string(), "--json"]));
        assert_eq!((checked.code, last(&checked)["refusals"].as_array().map(Vec::len)), (13, Some(refusals.len())), "{checked:?}");
        let differ = observe::difference(&before, &observe::snapshot(&pids));
        assert!(differ.is_empty(), "it was touched:\n{differ}");
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }
}

/// Kernel threads are not seen from a pid namespace: this test runs outside of one.
#[test]
fn a_kernel_thread_is_13() {
    let threads = observe::processes().into_iter().filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u32>().ok());
        flags.is_some_and(|f| f & 0x0020_0000 != 0) // PF_KTHREAD
    });
    let Some(pid) = threads.min() else {
        println!("skipped: no kernel thread is seen from here");
        return;
    };
    let folder = tempfile::tempdir().expect("folder");
    let done = Command::new(crate::MEIO).args(["dump", &pid.to_string(), "--json"]).current_dir(folder.path()).output().expect("meio runs");
    assert_eq!(done.status.code(), Some(13));
    assert!(String::from_utf8_lossy(&done.stdout).contains("kernel thread"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
}

/// A static 32-bit ELF program that waits for a signal for ever.
fn pause_of_32_bits() -> Vec<u8> {
    let (base, entry) = (0x0804_8000u32, 0x0804_8054u32);
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let words = |elf: &mut Vec<u8>, all: &[u32]| all.iter().for_each(|w| elf.extend(w.to_le_bytes()));
    let halves = |elf: &mut Vec<u8>, all: &[u16]| all.iter().for_each(|h| elf.extend(h.to_le_bytes()));
    halves(&mut elf, &[2, 3]); // ET_EXEC, EM_386
    words(&mut elf, &[1, entry, 52, 0, 0]);
    halves(&mut elf, &[52, 32, 1, 0, 0, 0]);
    words(&mut elf, &[1, 0, base, base, 0x60, 0x60, 5, 0x1000]);
    elf.extend(b"\xb8\x1d\0\0\0\xcd\x80\xeb\xf7"); // mov eax, 29 (pause); int 0x80; jmp to the start
    elf.resize(0x60, 0x90);
    elf
}

/// Two processes with descriptors that no image can hold, told to end like a fixture.
const HOLDER: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char path[4096];

static const char *named(const char *prefix, const char *suffix)
{
    snprintf(path, sizeof path, "%s.%s", prefix, suffix);
    return path;
}

/* Renamed, so that nobody reads half of it. */
static void say(const char *prefix, const char *suffix, const char *text)
{
    char part[4096];
    FILE *f = fopen(strcpy(part, named(prefix, "part")), "w");
    fputs(text, f);
    fclose(f);
    rename(part, named(prefix, suffix));
}

int main(int argc, char **argv)
{
    (void) argc;
    int pair[2];
    if (fork() == 0) {
        int fault = (int)syscall(SYS_userfaultfd, 1);
        dup2(fault, 60);
        close(fault);
        while (access(named(argv[1], "go"), F_OK)) usleep(10000);
        _exit(0);
    }
    if ((pair[0] = socket(AF_VSOCK, SOCK_STREAM, 0)) < 0 || (pair[1] = socket(AF_VSOCK, SOCK_STREAM, 0)) < 0) return 1;
    dup2(pair[0], 50);
    dup2(pair[1], 51);
    close(pair[0]);
    close(pair[1]);
    usleep(100000); /* the child has its descriptor by then */
    say(argv[1], "ready", "ready\n");
    wait(NULL);
    say(argv[1], "result", fcntl(50, F_GETFD) == 0 ? "ok\n" : "the socket is gone\n");
    return 0;
}
"#;
