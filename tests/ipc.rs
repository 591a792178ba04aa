//! System V objects outlive their tree: taken over, made again, or in the way.

use crate::lab::{Lab, Running};
use std::process::Command;
use std::time::Duration;

/// An ipc namespace of the test's own, in which ids that are free stay free.
fn apart(name: &str) -> Lab {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).expect("unshare");
    Lab::new(name)
}

fn remove_all() {
    assert!(Command::new("ipcrm").arg("-a").status().expect("ipcrm(1) of util-linux starts").success());
}

fn listed() -> String {
    let table = |name| std::fs::read_to_string(format!("/proc/sysvipc/{name}")).expect("table");
    ["shm", "sem", "msg"].map(table).concat()
}

fn number_of_objects() -> usize {
    listed().lines().count() - 3
}

/// Dumps and kills, loses all objects, and must find them again after the restore.
fn lost(program: &str) {
    let mut lab = apart(program);
    let mut running = lab.fixture(program, &[]);
    if running.skipped.is_some() {
        return;
    }
    for _ in 0..2 {
        let image = lab.dump(&mut running, &["--kill"]);
        assert_ne!(number_of_objects(), 0, "nothing outlives the tree");
        remove_all();
        assert_eq!(number_of_objects(), 0);
        lab.restore(&image, &mut running, &[]);
    }
    lab.go_and_verify(running, Duration::from_secs(60));
    lab.nothing_left();
    assert_eq!(number_of_objects(), 0, "{}", listed());
}

/// A restore that must fail and leave everything as it is: what it says.
fn refused(lab: &Lab, image: &std::path::Path) -> String {
    let before = listed();
    let mut command = lab.meio(&["restore", "-d"]);
    command.arg(image);
    let done = lab.run(command);
    assert_ne!(done.code, 0, "{}", done.stdout);
    assert_eq!(listed(), before, "objects have changed");
    done.stderr
}

fn dumped(lab: &mut Lab, program: &str) -> Option<(Running, std::path::PathBuf)> {
    let mut running = lab.fixture(program, &[]);
    if running.skipped.is_some() {
        return None;
    }
    let image = lab.dump(&mut running, &["--kill"]);
    Some((running, image))
}

crate::alone! {
    fn removed_segments_are_made_again() { lost("sysvshm") }
    fn removed_semaphores_are_made_again() { lost("sysvsem") }
    fn removed_queues_are_made_again() { lost("sysvmsg") }

    /// A tree with an ipc namespace of its own has all of it with it.
    fn a_namespace_of_its_own() {
        for program in ["sysvshm", "sysvsem", "sysvmsg"] {
            let mut lab = apart("own-namespace");
            let prefix = lab.path("x");
            let fixture = crate::lab::compile(program);
            let arguments = ["--ipc", fixture.to_str().expect("path"), prefix.to_str().expect("path")];
            let mut running = lab.spawn(std::path::Path::new("unshare"), &arguments);
            assert!(crate::lab::until(crate::lab::SOON, || running.file("ready").exists()), "{}", lab.log());
            assert_eq!(number_of_objects(), 0);
            for _ in 0..2 {
                let image = lab.dump(&mut running, &["--kill"]);
                lab.restore(&image, &mut running, &[]);
                assert_eq!(number_of_objects(), 0);
            }
            lab.go_and_verify(running, Duration::from_secs(20));
        }
    }

    /// A segment with the key of an old one is not the old one.
    fn another_object_is_in_the_way() {
        let mut lab = apart("in-the-way");
        let Some((mut running, image)) = dumped(&mut lab, "sysvmsg") else { return };
        let key = listed().lines().last().expect("a queue").split_whitespace().next().expect("key").parse::<i32>().expect("number");
        remove_all();
        let other = Command::new("python3")
            .args(["-c", "import ctypes,sys; print(ctypes.CDLL(None).msgget(int(sys.argv[1]), 0o1600))", &key.to_string()])
            .output()
            .expect("python3 starts");
        let id = String::from_utf8_lossy(&other.stdout).trim().to_owned();
        let said = refused(&lab, &image);
        assert!(said.contains("another one has its") && said.contains(&format!("ipcrm -q {id}")), "{said}");
        remove_all();
        lab.restore(&image, &mut running, &[]);
        lab.go_and_verify(running, Duration::from_secs(60));
    }

    /// Somebody else has sent a message since.
    fn an_object_that_others_used_is_left_alone() {
        let mut lab = apart("used-since");
        let Some((_, image)) = dumped(&mut lab, "sysvmsg") else { return };
        let id = listed().lines().last().expect("a queue").split_whitespace().nth(1).expect("id").to_owned();
        let send = "import ctypes,sys; b=ctypes.create_string_buffer(b'\\1'+b'\\0'*8,9); sys.exit(ctypes.CDLL(None).msgsnd(int(sys.argv[1]), b, 1, 0))";
        assert!(Command::new("python3").args(["-c", send, &id]).status().expect("python3 starts").success());
        let said = refused(&lab, &image);
        assert!(said.contains("outside of the tree, has used it since the dump") && said.contains(&format!("ipcrm -q {id}")), "{said}");
        remove_all();
    }

    /// A segment that a process outside of the tree has attached cannot be taken along.
    fn a_segment_shared_with_outsiders_is_refused() {
        let mut lab = apart("shared-outside");
        let running = lab.fixture("sysvshm", &[]);
        if running.skipped.is_some() {
            return;
        }
        let line = listed().lines().nth(1).expect("a segment").to_owned();
        let id = line.split_whitespace().nth(1).expect("id").to_owned();
        let attach = "import ctypes,sys,time; l=ctypes.CDLL(None); l.shmat.restype=ctypes.c_void_p; l.shmat(int(sys.argv[1]),None,0); print(1,flush=True); time.sleep(100)";
        let mut child = Command::new("python3").args(["-c", attach, &id]).stdout(std::process::Stdio::piped()).spawn().expect("python3 starts");
        let mut first = [0];
        std::io::Read::read_exact(child.stdout.as_mut().expect("pipe"), &mut first).expect("attached");
        let done = lab.run(lab.meio(&["dump", &running.pid.to_string(), "-o", "x.meio"]));
        assert_eq!(done.code, 13, "{}", done.stderr);
        let wanted = format!("it is attached by process {} (python3), outside of the tree", child.id());
        assert!(done.stderr.contains(&wanted) && done.stderr.contains(&format!("shared memory segment {id}")), "{}", done.stderr);
        child.kill().expect("kill");
        child.wait().expect("wait");
        let image = lab.dump(&mut { running }, &["--kill"]);
        assert!(image.exists());
        remove_all();
    }
}
