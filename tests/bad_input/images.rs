//! Images that cannot be restored, and places where they cannot. Nothing is started.

use super::{last, message, refused};
use crate::lab::{Lab, Running, SOON, observe, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An image of a fixture that was ended by the dump.
fn image(lab: &mut Lab) -> (PathBuf, Running) {
    let mut running = lab.fixture("busy", &[]);
    let image = lab.dump(&mut running, &["--kill"]);
    (image, running)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("path")
}

/// A python program that reads one of its files and maps another.
fn with_files(lab: &mut Lab) -> (PathBuf, i32) {
    std::fs::write(lab.path("open"), "open").expect("file");
    std::fs::write(lab.path("mapped"), vec![b'm'; 8192]).expect("file");
    let code = "import mmap, time\no = open('open')\nf = open('mapped', 'rb')\nm = mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)\nf.close()\nopen('set', 'w').close()\ntime.sleep(1000)";
    let mut running = lab.spawn(Path::new("python3"), &["-c", code]);
    assert!(until(SOON, || lab.path("set").exists()), "{}", lab.log());
    (lab.dump(&mut running, &["--kill"]), running.pid)
}

crate::alone! {
    fn a_damaged_image_is_14() {
        let mut lab = Lab::new("damaged");
        let (image, running) = image(&mut lab);
        let whole = std::fs::read(&image).expect("image");
        let changed = |at: usize, by: u8| {
            let mut bytes = whole.clone();
            bytes[at] ^= by;
            bytes
        };
        let mut foreign = whole.clone();
        foreign[10..12].copy_from_slice(&183u16.to_le_bytes()); // EM_AARCH64
        let checksum = xxhash_rust::xxh3::xxh3_64(&foreign[..56]);
        foreign[56..64].copy_from_slice(&checksum.to_le_bytes());
        let cases: [(&str, Vec<u8>, &str); 8] = [
            ("empty", Vec::new(), ""),
            ("no image", b"#!/bin/sh\necho this is not an image, but it is longer than the header of one would be\n".to_vec(), "not"),
            ("cut in the header", whole[..20].to_vec(), ""),
            ("cut in the middle", whole[..whole.len() / 2].to_vec(), "cut off"),
            ("cut before its end", whole[..whole.len() - 1].to_vec(), "cut off"),
            ("a bit of the tree", changed(400, 4), ""),
            ("a bit of the pages", changed(whole.len() - 400, 1), ""),
            ("another architecture", foreign, "architecture 183"),
        ];
        for (name, bytes, word) in cases {
            let path = lab.path("wrong.meio");
            std::fs::write(&path, bytes).expect("file");
            let error = refused(&lab, &["restore", "-d", text(&path)], 14);
            assert!(message(&error).contains(word), "{name}: {error}");
            assert!(until(SOON, || observe::state(running.pid).is_none()), "{name}: something was started");
            // The same bytes from a pipe.
            let mut command = lab.meio(&["restore", "-d", "-", "--json"]);
            command.stdin(File::open(&path).expect("file"));
            assert_eq!(lab.run(command).code, 14, "{name}");
            assert!(until(SOON, || observe::state(running.pid).is_none()), "{name}: something was started");
        }
        lab.nothing_left();
    }

    fn a_path_that_leads_to_no_image() {
        let lab = Lab::new("no-image");
        assert!(message(&refused(&lab, &["restore", "no/such.meio"], 10)).contains("no/such.meio"));
        assert!(message(&refused(&lab, &["restore", text(&lab.path("images"))], 10)).contains("images"));
        let closed = tempfile::NamedTempFile::new().expect("file");
        let folder = tempfile::Builder::new().prefix("meio-").tempdir().expect("folder");
        let meio = folder.path().join("meio");
        std::fs::copy(crate::MEIO, &meio).expect("copy");
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&meio).args(["restore", "--json"]).arg(closed.path());
        let done = lab.run(command);
        assert_eq!(done.code, 11, "{done:?}");
        assert!(message(&last(&done)).contains(text(closed.path())), "{done:?}");
        lab.nothing_left();
    }

    fn files_that_are_gone_or_have_changed_are_14() {
        let mut lab = Lab::new("changed");
        let (image, pid) = with_files(&mut lab);
        std::fs::write(lab.path("mapped"), vec![b'x'; 8192]).expect("file");
        std::fs::remove_file(lab.path("open")).expect("file");
        // Both at once.
        let error = refused(&lab, &["restore", "-d", text(&image)], 14);
        let refusals = error["refusals"].as_array().expect("refusals");
        for (file, word) in [("mapped", "changed"), ("open", "cannot be found")] {
            let of_file = |r: &&serde_json::Value| r["object"].as_str().is_some_and(|o| o.contains(text(&lab.path(file))));
            let refusal = refusals.iter().find(of_file).unwrap_or_else(|| panic!("{file} in {error}"));
            assert!(refusal["reason"].as_str().is_some_and(|r| r.contains(word)) && refusal["advice"] != "", "{error}");
        }
        assert!(observe::state(pid).is_none(), "something was started");
        lab.nothing_left();
    }

    fn a_pid_in_use_is_13_and_names_its_owner() {
        let mut lab = Lab::new("in-use");
        let mut running = lab.fixture("busy", &[]);
        let image = lab.dump(&mut running, &[]);
        let error = refused(&lab, &["restore", "-d", text(&image)], 13);
        let refusal = &error["refusals"][0];
        assert_eq!(refusal["pid"], running.pid);
        assert!(refusal["reason"].as_str().is_some_and(|r| r.contains("busy")), "{error}");
        assert!(refusal["advice"].as_str().is_some_and(|a| a.contains("--pid-namespace")), "{error}");
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    /// From standard input, with its pid in a file and on standard output.
    fn an_image_from_standard_input() {
        let mut lab = Lab::new("stdin");
        let (image, running) = image(&mut lab);
        let pidfile = lab.path("pidfile");
        let mut command = Command::new("sh");
        command.args(["-c", "cat \"$0\" | \"$1\" restore -d --pidfile \"$2\" -"]).arg(&image).arg(crate::MEIO).arg(&pidfile);
        let done = lab.run(command);
        assert_eq!((done.code, done.stdout), (0, format!("{}\n", running.pid)), "{}", done.stderr);
        assert_eq!(std::fs::read_to_string(&pidfile).expect("pid file"), format!("{}\n", running.pid));
        lab.go_and_verify(running, SOON);
        lab.nothing_left();
    }

    fn a_pid_file_that_cannot_be_written_starts_nothing() {
        let mut lab = Lab::new("pidfile");
        let (image, running) = image(&mut lab);
        let done = lab.run(lab.meio(&["restore", "-d", "--pidfile", "/proc/no/such", text(&image)]));
        assert!(done.code != 0 && done.stderr.contains("/proc/no/such"), "{done:?}");
        assert!(until(SOON, || observe::state(running.pid).is_none()), "something was started");
        lab.nothing_left();
    }

    /// The root's exit code is meio's, and so is the signal that ended it, also one that was sent to meio.
    fn the_foreground_ends_as_the_tree_ends() {
        let mut lab = Lab::new("ends-as");
        for (signal, code) in [(None, 7), (Some(Signal::SIGTERM), 143), (Some(Signal::SIGINT), 130)] {
            let _ = std::fs::remove_file(lab.path("end"));
            let mut running = lab.spawn(Path::new("/bin/sh"), &["-c", "while ! [ -e end ]; do :; done; exit 7"]);
            assert!(until(SOON, || std::fs::read_to_string(format!("/proc/{}/comm", running.pid)).is_ok_and(|c| c == "sh\n")));
            let image = lab.dump(&mut running, &["--kill"]);
            let mut command = lab.meio(&["restore", "-q", text(&image)]);
            let mut meio = command.stdout(Stdio::null()).spawn().expect("meio starts");
            assert!(until(SOON, || observe::state(running.pid) == Some('R') && super::free(running.pid)), "it is not restored");
            std::thread::sleep(std::time::Duration::from_millis(100));
            match signal {
                None => std::fs::write(lab.path("end"), "").expect("file"),
                Some(signal) => kill(Pid::from_raw(meio.id() as i32), signal).expect("kill"),
            }
            assert_eq!(meio.wait().expect("wait").code(), Some(code), "{signal:?}");
            assert!(observe::state(running.pid).is_none());
        }
        lab.nothing_left();
    }
}
