//! Mount namespaces that are saved and made again. They need the rights of root; without them there is nothing to see.

use super::*;
use crate::resource::shared::Origin;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// A shell that has run a script in a mount namespace of its own, and waits.
struct Shell(Child);

impl Shell {
    fn new(options: &str, script: &str) -> Shell {
        let mut command = Command::new("unshare");
        command.args(options.split(' ')).args(["sh", "-ec", &format!("{script}\necho ready\nread x")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Shell(child)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.stdin.take().unwrap().write_all(b"\n");
        let _ = self.0.wait();
    }
}

/// Saves the namespace of a process, and says what was refused.
fn save(pid: i32) -> (Saved, Capture) {
    let mut capture = Capture::default();
    let saved = super::capture(pid, 0, true, &mut capture).unwrap();
    (saved, capture)
}

/// Makes the mounts in a fresh namespace, in which `look` then finds itself; also gives what a capture of it finds.
fn again<T: Send>(saved: &Saved, look: impl FnOnce() -> T + Send) -> (Saved, T) {
    let prepared = saved.prepare().unwrap();
    std::thread::scope(|scope| {
        let (told, tell) = std::sync::mpsc::channel();
        let (wait, go) = std::sync::mpsc::channel::<()>();
        let thread = scope.spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            saved.rebuild(prepared, false).unwrap();
            let seen = look();
            told.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = go.recv();
            seen
        });
        let Ok(tid) = tell.recv() else { std::panic::resume_unwind(thread.join().err().unwrap()) };
        let (found, capture) = save(tid);
        assert!(capture.refusals.is_empty(), "{:?}", capture.refusals);
        drop(wait);
        (found, thread.join().unwrap())
    })
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What differs, without the times at which folders were read last.
fn same(before: &Saved, after: &Saved) {
    for (a, b) in before.mounts.iter().zip(&after.mounts) {
        assert_eq!(a, b);
    }
    assert_eq!(before.mounts.len(), after.mounts.len());
    for (a, b) in before.own.iter().zip(&after.own) {
        for (x, y) in a.inodes.iter().zip(&b.inodes) {
            assert_eq!(x, y);
        }
        assert_eq!(a, b);
    }
    assert_eq!(before, after);
}

#[test]
fn only_mounts_that_are_seen_here() {
    if !root() {
        return;
    }
    let shell = Shell::new("-m", "mount --bind -o ro,nosuid /usr /mnt");
    let (before, capture) = save(shell.pid());
    assert!(capture.refusals.is_empty(), "{:?}", capture.refusals);
    assert!(before.own.is_empty());
    let bind = before.mounts.iter().rfind(|m| m.at.bytes() == b"/mnt").unwrap();
    assert_eq!(bind.shows, Shown::Host { path: "/usr".into(), fstype: bind_type(), folder: true, layer: None });
    let (after, written) = again(&before, || std::fs::write("/mnt/x", "").unwrap_err().raw_os_error());
    same(&before, &after);
    assert_eq!(written, Some(libc::EROFS));
}

fn bind_type() -> FilePath {
    let table = read::parsed(std::process::id() as i32, "mountinfo", mountinfo::parse).unwrap();
    let id = mount::id(mount::place(None, Path::new("/usr")).unwrap().as_fd()).unwrap();
    FilePath::from(&*table.iter().find(|l| l.id == id).unwrap().fstype)
}

#[test]
fn tmpfs_with_everything_in_it() {
    if !root() {
        return;
    }
    let shell = Shell::new(
        "-m",
        r"mount -t tmpfs -o size=4m,nosuid,mode=750 box /mnt
        cd /mnt; mkdir -p a/b; chmod 1777 a; echo hello > a/file; ln a/file a/b/same; ln -s ../x a/link; mkfifo -m 620 pipe
        mknod null c 1 3; mknod disk b 7 9; chown 5:6 a/file; chown -h 7:8 a/link; truncate -s 1G sparse
        printf end | dd of=sparse bs=1 seek=1000000 conv=notrunc 2>/dev/null
        head -c 200000 /dev/urandom > large
        touch -d 2001-02-03T04:05:06.789 a/b/same; touch -d 2002-02-02 a
        mkdir under over; echo hidden > under/hidden; mount -t tmpfs -o ro low under; echo 1 > over/1
        mount -t tmpfs up1 over; echo 2 > over/2; mount -t tmpfs up2 over; echo 3 > over/3
        mount --bind a over; cd /",
    );
    let (before, capture) = save(shell.pid());
    assert!(capture.refusals.is_empty(), "{:?}", capture.refusals);
    assert_eq!(before.own.len(), 4);
    assert_eq!(capture.objects.len(), 1);
    let (after, ()) = again(&before, || {
        assert_eq!(std::fs::read("/mnt/a/b/same").unwrap(), b"hello\n");
        std::fs::write("/mnt/a/file", "changed").unwrap();
        assert_eq!(std::fs::read("/mnt/over/b/same").unwrap(), b"changed");
        std::fs::write("/mnt/a/file", "hello\n").unwrap();
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            "/mnt/a/file",
            &nix::sys::time::TimeSpec::new(981_173_106, 789_000_000),
            &nix::sys::time::TimeSpec::new(981_173_106, 789_000_000),
            nix::sys::stat::UtimensatFlags::FollowSymlink,
        )
        .unwrap();
        // What comes with the pages.
        let Origin::Mounted { path, times, .. } = &capture.objects[0].origin else { panic!() };
        let mut large = vec![0; 200_000];
        std::os::unix::fs::FileExt::read_exact_at(&capture.sources[0].file, &mut large, 0).unwrap();
        assert_eq!(path, &FilePath::from("/mnt/large"));
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &large, 0).unwrap();
        let [accessed, modified] = times.map(|t| nix::sys::time::TimeSpec::new(t.0, t.1));
        nix::sys::stat::futimens(&file, &accessed, &modified).unwrap();
        assert_eq!(std::fs::metadata("/mnt/sparse").map(|m| std::os::unix::fs::MetadataExt::blocks(&m)).unwrap(), 8);
        mount::detach(Path::new("/mnt/over")).unwrap();
        assert_eq!(std::fs::read("/mnt/over/3").unwrap(), b"3\n");
        nix::mount::mount(Some("/mnt/a"), "/mnt/over", None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
        assert!(std::fs::write("/mnt/under/x", "").is_err());
    });
    same(&before, &after);
}
