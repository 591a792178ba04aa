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
    let saved = super::capture(pid, 0, true, &Ids::of([Vec::new(), Vec::new()]), &mut Seen::default(), &mut capture).unwrap();
    (saved, capture)
}

/// Makes the mounts in a fresh namespace, in which `look` then finds itself; also gives what a capture of it finds.
fn again<T: Send>(saved: &Saved, look: impl FnOnce() -> T + Send) -> (Saved, T) {
    let prepared = saved.prepare(|_| None).unwrap();
    let revealed = saved.reveal(false).unwrap();
    std::thread::scope(|scope| {
        let (told, tell) = std::sync::mpsc::channel();
        let (wait, go) = std::sync::mpsc::channel::<()>();
        let thread = scope.spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            saved.rebuild(prepared, revealed).unwrap();
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

/// Both are the same; the first difference is told.
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
        assert!(Path::new("/mnt/over/3").exists()); // not read: that would change its time
        nix::mount::mount(Some("/mnt/a"), "/mnt/over", None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
        assert!(std::fs::write("/mnt/under/x", "").is_err());
    });
    same(&before, &after);
}

/// Without the times at which something was read, after a look at it.
fn unread(mut saved: Saved) -> Saved {
    for inode in saved.own.iter_mut().flat_map(|own| &mut own.inodes) {
        inode.accessed = (0, 0);
        // What overlay clears at each start, and its folder.
        inode.names.retain(|name| !name.starts_with("work/work"));
        if inode.names == [FilePath::from("work")] {
            inode.modified = (0, 0);
        }
    }
    saved.own.iter_mut().for_each(|own| own.inodes.retain(|inode| !inode.names.is_empty()));
    saved
}

#[test]
fn proc_devpts_overlay_and_propagation() {
    if !root() {
        return;
    }
    let shell = Shell::new(
        "-m",
        r"mount -t tmpfs base /mnt; cd /mnt; mkdir -p low up work over pts mq s1/t s2 s3 s4 u
        echo low > low/a; echo low > low/b; mkdir low/d; echo x > low/d/x
        mount -t overlay -o lowerdir=/mnt/low,upperdir=/mnt/up,workdir=/mnt/work layers over
        echo up > over/a; rm over/b; rm -r over/d; mkdir over/d; echo y > over/d/y
        mount -t devpts -o newinstance,mode=620,ptmxmode=666,max=9 pts pts; mount -t mqueue mq mq
        mount --bind s1 s1; mount --make-shared s1; mount --bind s1 s2; mount --bind s1 s3; mount --make-slave s3; mount --make-shared s3
        mount --bind s3 s4; mount --make-slave s4; mount --bind u u; mount --make-unbindable u; cd /",
    );
    let (before, capture) = save(shell.pid());
    assert!(capture.refusals.is_empty(), "{:?}", capture.refusals);
    let (after, ()) = again(&before, || {
        assert_eq!(std::fs::read("/mnt/over/a").unwrap(), b"up\n");
        assert!(!Path::new("/mnt/over/b").exists() && !Path::new("/mnt/over/d/x").exists() && Path::new("/mnt/over/d/y").exists());
        assert!(Path::new("/mnt/pts/ptmx").exists());
        // s1 and s2 are peers, s3 hears from them, s4 from s3.
        let tmpfs = |at: &str| nix::mount::mount(Some("t"), at, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        let seen = || ["/mnt/s1/t/x", "/mnt/s2/t/x", "/mnt/s3/t/x", "/mnt/s4/t/x"].map(|p| Path::new(p).exists());
        for (at, who) in [("/mnt/s2/t", [true, true, true, true]), ("/mnt/s3/t", [false, false, true, true])] {
            tmpfs(at);
            std::fs::write(Path::new(at).join("x"), "").unwrap();
            assert_eq!(seen(), who);
            nix::mount::umount(at).unwrap();
            assert_eq!(seen(), [false; 4]);
        }
    });
    same(&unread(before), &unread(after));
}

#[test]
fn a_root_of_its_own() {
    if !root() {
        return;
    }
    // What a container has: its own root in memory, with a few places of the host in it.
    let shell = Shell::new(
        "-mp --fork --mount-proc",
        r"mount -t tmpfs -o mode=755 root /mnt; cd /mnt; mkdir -p usr proc dev tmp old etc var; for d in bin lib lib64 sbin; do ln -s usr/$d; done
        echo box > etc/hostname
        mount --bind -o ro /usr usr; mount -t proc proc proc; mount -t tmpfs dev dev; mknod dev/null c 1 3; touch dev/tty0
        mount --bind /dev/zero dev/tty0
        pivot_root . old; umount -l /old; rmdir /old; cd /",
    );
    let child: i32 = {
        let text = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.pid())).unwrap();
        text.trim().parse().unwrap()
    };
    let (before, capture) = save(child);
    assert!(capture.refusals.is_empty(), "{:?}", capture.refusals);
    assert_eq!(before.mounts.len(), 5);
    let (after, ()) = again(&before, || {
        assert_eq!(std::fs::read("/etc/hostname").unwrap(), b"box\n");
        assert!(Path::new("/usr/bin/sh").exists() && !Path::new("/root").exists() && Path::new("/proc/self/stat").exists());
    });
    same(&unread(before), &unread(after));
}

/// What the image before has is named, as long as it is as it was, and found there again.
#[test]
fn what_is_as_it_was_is_only_named() {
    if !root() {
        return;
    }
    let shell = Shell::new("-m", "mount -t tmpfs box /mnt; echo one > /mnt/one; echo two > /mnt/two");
    std::thread::sleep(std::time::Duration::from_millis(150));
    let mut recall = crate::resource::recall::Recall::default();
    let mut saved: Vec<Saved> = Vec::new();
    let mut named = Vec::new();
    for n in 0..4 {
        let mut capture = Capture { recall, ..Capture::default() };
        capture.recall.files.follow(n > 0);
        capture.recall.files.look(std::iter::once(shell.pid()), true);
        let calm = capture.recall.files.calm();
        let ids = Ids::of([Vec::new(), Vec::new()]);
        let mut now = super::capture(shell.pid(), 0, true, &ids, &mut Seen::default(), &mut capture).unwrap();
        let inodes = now.own.iter().flat_map(|own| &own.inodes);
        named.push((calm, inodes.filter(|inode| matches!(inode.content, Content::Before(_))).count()));
        assert!(now.complete(|place| saved.last()?.content(place)));
        saved.push(now);
        recall = capture.recall;
        if n == 2 {
            std::fs::write(format!("/proc/{}/root/mnt/two", shell.pid()), "2\n").unwrap();
        }
    }
    // Not where the kernel does not count calls.
    assert!(named[..2] == [(false, 0); 2] && (!named[2].0 || named[2..] == [(true, 2), (true, 1)]), "{named:?}");
    assert!(saved[0] == saved[1] && saved[1] == saved[2] && saved[2] != saved[3]);
    let text = |saved: &Saved| format!("{:?}", saved.own[0].inodes);
    assert!(text(&saved[3]).len() < text(&saved[0]).len() && !text(&saved[3]).contains("Before"));
}
