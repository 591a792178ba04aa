//! A virtual machine: a disk with what this machine's Debian packages bring, an initramfs that finds it, and qemu.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Packages whose files, and those of all that they depend on, are taken along.
const PACKAGES: &[&str] = &[
    "bash",
    "coreutils",
    "iproute2",
    "kmod",
    "mount",
    "openssh-server",
    "procps",
    "python3",
    "redis-server",
    "redis-tools",
    "strace",
    "util-linux",
];
/// Bytes of the disk, which is sparse.
const DISK: u64 = 3 << 30;
/// Memory of a machine in MiB.
const MEMORY: &str = "2048";
/// All that qemu can play, but for what not every processor has and a tree can therefore not take along.
const CPU: &str = "max,-pku,-mpx";
/// The machine's clock counts the instructions that it executes, and skips the time in which it has nothing to do. What else this machine has
/// to do makes it take longer, then, and not seem slow to what runs in it. Linux 6.1 starts no second processor that way.
const CLOCK: &str = "shift=0,sleep=off";
/// Modules that lead to the disk.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// The first program of the initramfs.
const INIT: &str = "#!/bin/busybox sh
for f in proc sysfs devtmpfs; do /bin/busybox mkdir -p /$f; /bin/busybox mount -t $f $f /$f; done
for m in /modules/*; do /bin/busybox insmod $m; done
n=0; while [ ! -b /devtmpfs/vda ] && [ $n -lt 300 ]; do /bin/busybox sleep 0.1; n=$((n + 1)); done
/bin/busybox mkdir -p /disk
/bin/busybox mount -t ext4 /devtmpfs/vda /disk || /bin/busybox poweroff -f
/bin/busybox cp /job /disk/job
/bin/busybox umount /devtmpfs /sysfs /proc
exec /bin/busybox switch_root /disk /bin/bash /job
";

/// What goes before every job: the file systems of a running Debian, and an end at which nothing is lost.
const BEGIN: &str = r#"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue; mount -t devpts -o ptmxmode=666,mode=620,gid=5 devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t mqueue mqueue /dev/mqueue; mount -t tmpfs run /run; mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd; ip link set lo up
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw -echo
trap 'sync; echo "== end"; sleep 0.2; echo o >/proc/sysrq-trigger; sleep 60' EXIT
echo "== begin $(uname -r)"
"#;

/// Everything that is needed to boot, in one folder.
pub struct Workshop {
    /// Kernels, the disk, and what the machines said.
    pub folder: PathBuf,
}

/// A job that a machine was given.
pub struct Job<'j> {
    /// Release of the kernel.
    pub kernel: &'j str,
    /// What to call it in messages.
    pub name: &'j str,
    /// A script for bash(1).
    pub script: &'j str,
    /// After this it is ended.
    pub limit: Duration,
    /// The interface here that leads to its own, where it is to have one; its clock is then that of this machine.
    pub tap: Option<&'j str>,
}

fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", out.status);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Paths of all files of the packages and of what they need.
fn files() -> Vec<String> {
    let flags = ["--recommends", "--suggests", "--conflicts", "--breaks", "--replaces", "--enhances"].map(|f| f.replace("--", "--no-"));
    let essential = run(Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Essential}\n"]));
    let essential = essential.lines().filter_map(|l| l.strip_suffix(" yes"));
    let wanted: Vec<&str> = PACKAGES.iter().copied().chain(essential).collect();
    let all = run(Command::new("apt-cache").arg("depends").args(flags).args(["--recurse", "--installed"]).args(&wanted));
    let all: Vec<&str> = all.lines().filter(|l| !l.starts_with([' ', '<', '|'])).collect();
    // Some of them are only other names of packages.
    let listed = Command::new("dpkg-query").arg("-L").args(&all).stdin(Stdio::null()).output().expect("dpkg-query starts");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let superfluous = ["/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/info", "/usr/share/i18n", "/var/cache"];
    let mut files: Vec<String> =
        listed.lines().filter(|l| l.starts_with('/') && !superfluous.iter().any(|s| l.starts_with(s))).map(Into::into).collect();
    // What no package lists: choices of the administrator, and what is made when a package is installed.
    let made = ["/etc/alternatives", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/shadow", "/etc/hostname"];
    files.extend(made.map(Into::into));
    for folder in ["/etc/alternatives", "/usr/bin"] {
        let links = fs::read_dir(folder).into_iter().flatten().flatten().filter(|e| e.path().is_symlink());
        files.extend(links.filter_map(|e| e.path().into_os_string().into_string().ok()));
    }
    files
}

impl Workshop {
    /// Finds the kernels; the disk holds nothing that an earlier run left.
    pub fn open() -> (Workshop, Vec<String>) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("kernels");
        fs::create_dir_all(&folder).expect("folder");
        let releases = run(Command::new(Path::new(super::super::ROOT).join(".ci/kernels")).arg(&folder));
        (Workshop { folder }, releases.lines().map(Into::into).collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes the disk: the packages, the kernels' modules, and `more` of this machine's files, each where it is here.
    pub fn make_disk(&self, more: &[PathBuf]) {
        let stage = self.path("stage");
        let _ = fs::remove_dir_all(&stage);
        fs::create_dir_all(&stage).expect("folder");
        for name in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(stage.join("usr").join(name)).expect("folder");
            std::os::unix::fs::symlink(format!("usr/{name}"), stage.join(name)).expect("link");
        }
        for name in ["proc", "sys", "dev", "run", "tmp", "root", "mnt", "home", "opt", "srv", "var/tmp"] {
            fs::create_dir_all(stage.join(name)).expect("folder");
        }
        fs::set_permissions(stage.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode");
        let mut list = files();
        list.extend(more.iter().map(|p| p.to_str().expect("path").to_owned()));
        list.sort();
        list.dedup();
        // Links need no room; across file systems they are copies.
        let mut cpio = Command::new("cpio")
            .args(["-pdmlu", "--quiet"])
            .arg(&stage)
            .current_dir("/")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cpio starts");
        let there = |path: &str| fs::symlink_metadata(stage.join(&path[1..])).is_ok_and(|m| m.is_symlink());
        let text: String = list.iter().filter(|p| fs::symlink_metadata(p).is_ok() && !there(p)).map(|p| format!("{}\n", &p[1..])).collect();
        cpio.stdin.take().expect("pipe").write_all(text.as_bytes()).expect("cpio reads");
        assert!(cpio.wait().expect("wait").success(), "cpio has failed");
        run(Command::new("cp").arg("-a").arg(self.path("lib/modules")).arg(stage.join("usr/lib/")));
        let disk = self.path("disk");
        let _ = fs::remove_file(&disk);
        File::create(&disk).and_then(|f| f.set_len(DISK)).expect("disk");
        run(Command::new("/usr/sbin/mke2fs").args(["-q", "-F", "-t", "ext4", "-m", "0", "-d"]).arg(&stage).arg(&disk));
        fs::remove_dir_all(&stage).expect("the stage goes");
    }

    /// Copies a folder of the disk to the place that it has there. No machine may run.
    pub fn fetch(&self, folder: &Path) {
        let parent = folder.parent().expect("a parent");
        let command = format!("rdump {} {}", folder.display(), parent.display());
        run(Command::new("/usr/sbin/debugfs").args(["-R", &command]).arg(self.path("disk")));
    }

    /// The archive that the kernel unpacks first.
    fn initramfs(&self, job: &Job<'_>) -> PathBuf {
        let tree = self.path("initramfs.d");
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(tree.join("bin")).expect("folder");
        fs::create_dir_all(tree.join("modules")).expect("folder");
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox");
        fs::write(tree.join("init"), INIT).expect("init");
        fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).expect("mode");
        fs::write(tree.join("job"), format!("{BEGIN}{}\n", job.script)).expect("job");
        let mut wanted = Vec::new();
        for module in MODULES {
            let needed =
                run(Command::new("/usr/sbin/modprobe").args(["--show-depends", "-d"]).arg(&self.folder).args(["-S", job.kernel, module]));
            for path in needed.lines().filter_map(|l| l.strip_prefix("insmod ")).map(|l| l.trim().to_owned()) {
                if !wanted.contains(&path) {
                    wanted.push(path);
                }
            }
        }
        for (n, path) in wanted.iter().enumerate() {
            let to = tree.join(format!("modules/{n:02}.ko"));
            if path.ends_with(".xz") {
                run(Command::new("xz").arg("-dc").arg(path).stdout(Stdio::piped())); // it is sound
                let status = Command::new("xz").arg("-dc").arg(path).stdout(File::create(&to).expect("module")).status();
                assert!(status.expect("xz starts").success(), "{path}");
            } else {
                fs::copy(path, &to).expect("module");
            }
        }
        let archive = self.path("initramfs");
        let mut cpio = Command::new("sh");
        cpio.args(["-c", "find . | cpio -o -H newc --quiet"]).current_dir(&tree).stdout(File::create(&archive).expect("initramfs"));
        assert!(cpio.status().expect("sh starts").success(), "cpio has failed");
        archive
    }

    /// The same without a look at what kernels are to be had.
    pub fn opened() -> Workshop {
        Workshop { folder: Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("kernels") }
    }

    /// Boots a kernel and gives it its job.
    pub fn start(&self, job: &Job<'_>) -> Machine {
        let initramfs = self.initramfs(job);
        let said = self.path(&format!("{}.said", job.name));
        let console = self.path(&format!("{}.console", job.name));
        File::create(&said).expect("file");
        let mut qemu = Command::new("qemu-system-x86_64");
        match job.tap {
            None => qemu.args(["-icount", CLOCK, "-rtc", "clock=vm"]),
            Some(tap) => qemu
                .args(["-netdev", &format!("tap,id=net,ifname={tap},script=no,downscript=no")])
                .args(["-device", "virtio-net-pci,netdev=net,romfile="]),
        };
        let child = qemu
            .args(["-accel", "tcg", "-cpu", CPU, "-smp", "1", "-m", MEMORY])
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-serial", &format!("file:{}", said.display())])
            .args(["-drive", &format!("if=virtio,format=raw,cache=unsafe,file={}", self.path("disk").display())])
            .arg("-kernel")
            .arg(self.path(&format!("boot/vmlinuz-{}", job.kernel)))
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off net.ifnames=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("qemu starts");
        Machine { child, said, console }
    }

    /// Boots a kernel, lets it do its job, and hands over all that it said.
    pub fn boot(&self, job: &Job<'_>) -> String {
        let begin = Instant::now();
        let mut machine = self.start(job);
        let mut file = File::open(&machine.said).expect("file");
        let (mut text, mut shown, mut ended) = (Vec::new(), Instant::now(), false);
        while !ended {
            ended = machine.child.try_wait().expect("wait").is_some();
            file.seek(SeekFrom::Start(text.len() as u64)).and_then(|_| file.read_to_end(&mut text)).expect("file");
            if shown.elapsed() > Duration::from_secs(20) {
                shown = Instant::now();
                let lines = String::from_utf8_lossy(&text);
                let count = |what: &str| lines.lines().filter(|l| l.starts_with("test ") && l.contains(what)).count();
                println!(
                    "kernels: {}: {} s: {} passed, {} failed; {}",
                    job.name,
                    begin.elapsed().as_secs(),
                    count("... ok"),
                    count("... FAILED"),
                    lines.lines().last().unwrap_or("booting")
                );
            }
            if begin.elapsed() > job.limit {
                println!("kernels: {}: not done after {:?}", job.name, job.limit);
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        if !text.contains("== end") {
            println!("kernels: {} did not come to its end; its console:\n{}", job.name, machine.console());
        }
        drop(machine);
        println!("kernels: {}: {} s", job.name, begin.elapsed().as_secs());
        text
    }
}

/// A qemu that ends with this.
pub struct Machine {
    child: Child,
    said: PathBuf,
    console: PathBuf,
}

impl Machine {
    /// What it has said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.said).unwrap_or_default()).replace('\r', "")
    }

    /// What its kernel has said.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, most often
        let _ = self.child.wait();
    }
}
