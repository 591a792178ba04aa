//! A dump that cannot be finished: interrupted, or nowhere to write. The tree goes on, and no half image stays.

use super::{free, last, message};
use crate::lab::{Lab, Outcome, Running, SOON, observe, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Read;
use std::process::Command;

/// A program with `megabytes` of memory that cannot be packed.
fn large(lab: &Lab, megabytes: u32) -> Running {
    let text = format!(
        "import os, sys, time\nm = [os.urandom(1 << 20) for _ in range({megabytes})]\nh = hash(tuple(m))\np = sys.argv[1]\nopen(p + '.r', 'w').write('ready\\n')\nos.rename(p + '.r', p + '.ready')\n\
         while not os.path.exists(p + '.go'): time.sleep(0.01)\nopen(p + '.part', 'w').write('ok\\n' if hash(tuple(bytes(bytearray(x)) for x in m)) == h else 'memory has changed\\n')\nos.rename(p + '.part', p + '.result')\n"
    );
    std::fs::write(lab.path("large.py"), text).expect("script");
    let program = lab.path("large");
    std::fs::write(&program, format!("#!/bin/sh\nexec python3 {} \"$@\"\n", lab.path("large.py").display())).expect("script");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    lab.ready(&program, &[])
}

/// Interrupts a dump whose output is a pipe that nobody reads, once the pipe is full.
fn interrupted(name: &str, signal: Signal) {
    let lab = Lab::new(name);
    let running = large(&lab, 64);
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    let mut command = lab.meio(&["dump", &running.pid.to_string(), "-o", "-", "--compress", "none"]);
    let mut meio = command.stdout(writer).stderr(File::create(lab.path("err")).expect("file")).spawn().expect("meio starts");
    drop(command);
    assert!(until(SOON, || !free(running.pid)), "the dump does not begin");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(meio.try_wait().expect("wait"), None, "nobody reads, and it has ended");
    kill(Pid::from_raw(meio.id() as i32), signal).expect("kill");
    let mut status = None;
    until(SOON, || {
        status = meio.try_wait().expect("wait");
        status.is_some()
    });
    let said = std::fs::read_to_string(lab.path("err")).expect("text");
    if status.is_none() {
        meio.kill().expect("kill");
        meio.wait().expect("wait");
    }
    assert_eq!(status.and_then(|s| s.code()), Some(130), "{said}");
    assert!(said.contains("interrupted"), "{said}");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).expect("what was in the pipe");
    assert!(free(running.pid), "something is still held");
    lab.go_and_verify(running, SOON);
    lab.nothing_left();
}

/// What a dump to a place without room must do.
fn no_room(lab: &Lab, running: &Running, done: &Outcome, folder: &str) {
    assert_eq!(done.code, 1, "{done:?}");
    let error = last(done);
    assert!(["No space left", "File too large"].iter().any(|w| message(&error).contains(w)), "{error}");
    let help = error["help"].as_str().unwrap_or_default();
    // The program has more than this, and what is copied while it runs may take as much again.
    let needed = help.split("up to ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    assert!(needed.is_some_and(|mib| (33..160).contains(&mib)) && help.contains(folder), "{error}");
    assert!(free(running.pid) && observe::state(running.pid).is_some(), "it does not go on: {}", lab.log());
}

crate::alone! {
    fn control_c_ends_a_dump_that_nobody_reads() {
        interrupted("control-c", Signal::SIGINT);
    }

    fn sigterm_ends_a_dump_that_nobody_reads() {
        interrupted("sigterm", Signal::SIGTERM);
    }

    fn control_c_in_the_middle_of_much_memory() {
        let lab = Lab::new("control-c-file");
        let running = large(&lab, 96);
        let pid = running.pid.to_string();
        let mut command = lab.meio(&["dump", &pid, "--compress", "19", "-q"]);
        let mut meio = command.spawn().expect("meio starts");
        assert!(until(SOON, || !free(running.pid)), "the dump does not begin");
        kill(Pid::from_raw(meio.id() as i32), Signal::SIGINT).expect("kill");
        assert_eq!(meio.wait().expect("wait").code(), Some(130));
        assert!(free(running.pid), "something is still held");
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    fn a_full_disk_leaves_nothing_under_the_final_name() {
        let lab = Lab::new("full");
        let running = large(&lab, 32);
        let pid = running.pid.to_string();
        let small = tempfile::tempdir().expect("folder");
        nix::mount::mount(Some("small"), small.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=4m")).expect("mount");
        let (image, folder) = (small.path().join("x.meio"), small.path().to_str().expect("path"));
        // What has the name keeps it.
        for before in [None, Some("an older image")] {
            if let Some(text) = before {
                std::fs::write(&image, text).expect("file");
            }
            let done = lab.run(lab.meio(&["dump", &pid, "--kill", "--json", "-o", image.to_str().expect("path")]));
            no_room(&lab, &running, &done, folder);
            assert_eq!(std::fs::read_to_string(&image).ok().as_deref(), before);
            assert_eq!(std::fs::read_dir(small.path()).expect("folder").count(), before.iter().len());
        }
        // What is copied while it runs goes there, too; a series ends with the image that has no room.
        for way in [&["--live", "-o", "x.meio"][..], &["--every", "10ms", "--count", "3", "-o", "{n}.meio"]] {
            let mut command = lab.meio(&[&["dump", &pid, "--json"], way].concat());
            command.current_dir(small.path());
            no_room(&lab, &running, &lab.run(command), folder);
        }
        nix::mount::umount(small.path()).expect("umount");

        let done = lab.run(lab.meio(&["dump", &pid, "--kill", "--json", "-o", "/dev/full"]));
        no_room(&lab, &running, &done, "what is written to");

        // A limit of the file size would end meio by a signal if it let it.
        let mut command = Command::new("prlimit");
        command.arg("--fsize=4194304").arg(crate::MEIO).args(["dump", &pid, "--kill", "--json"]).current_dir(lab.path("images"));
        let done = lab.run(command);
        no_room(&lab, &running, &done, lab.path("images").to_str().expect("path"));
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    fn a_folder_that_is_not_there_or_not_writable() {
        let lab = Lab::new("no-folder");
        let running = lab.fixture("busy", &[]);
        for image in ["no/such/folder/x.meio", "/proc/x.meio"] {
            let done = lab.run(lab.meio(&["dump", &running.pid.to_string(), "--json", "-o", image]));
            assert!(![0, 3].contains(&done.code) && message(&last(&done)).contains(image), "{done:?}");
        }
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    /// Whatever the umask, and whatever was there before.
    fn an_image_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let lab = Lab::new("mode");
        let running = lab.fixture("busy", &[]);
        let image = lab.path("open-to-all");
        std::fs::write(&image, "older").expect("file");
        std::fs::set_permissions(&image, PermissionsExt::from_mode(0o666)).expect("mode");
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 0; exec \"$@\"", "sh", crate::MEIO, "dump", &running.pid.to_string(), "-q", "-o"]).arg(&image);
        let done = lab.run(shell);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(std::fs::metadata(&image).expect("image").permissions().mode() & 0o777, 0o600);
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }
}
