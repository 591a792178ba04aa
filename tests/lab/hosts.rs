//! Machines to move between: namespaces with a network interface, an init and a real sshd each, joined by a bridge that the
//! test itself is at. They share the file system, but for `/run`.

use super::{Lab, Outcome, SOON, sshd, until};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Address of the test itself on the bridge.
pub const OUTSIDE: &str = "10.99.0.254";
/// The address that moves, as `--vip` takes it.
pub const VIP: &str = "10.99.0.100/24@eth0";
/// The same as clients know it.
pub const SERVICE: &str = "10.99.0.100";
/// Another one that moves.
pub const VIP6: &str = "fd99::100/64@eth0";
/// The same as clients know it.
pub const SERVICE6: &str = "fd99::100";

/// It reaps orphans, and ends with the test. What shells do at their start is nothing that is looked at.
const INIT: &str = "mount -t tmpfs -o mode=755,size=4m run /run && mkdir /run/sshd && mount -t devpts -o ptmxmode=666,mode=600 devpts /dev/pts && mount -t tmpfs shm /dev/shm
for file in $GREETINGS; do [ ! -e $file ] || mount --bind /dev/null $file; done
ip link set lo up && touch \"$1\" || exit 9
mkfifo /run/nothing && exec 9<> /run/nothing
while :; do read -t 1 -u 9; done";

/// One of them.
pub struct Host {
    /// Address on the bridge.
    pub address: String,
    init: Child,
    /// Programs of it have pids from here on.
    first_pid: u32,
}

/// All of them.
pub struct Hosts {
    /// In the order of their addresses, from `10.99.0.1`.
    pub hosts: Vec<Host>,
    folder: String,
}

fn plain(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("it starts");
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Hosts {
    /// Makes `count` of them in the namespaces of the test.
    pub fn new(lab: &Lab, count: usize) -> Hosts {
        let folder = lab.path("").display().to_string();
        plain("ip", &["link", "add", "br0", "type", "bridge", "forward_delay", "0"]);
        plain("ip", &["address", "add", &format!("{OUTSIDE}/24"), "dev", "br0"]);
        plain("ip", &["address", "add", "fd99::254/64", "dev", "br0", "nodad"]);
        plain("ip", &["link", "set", "br0", "up"]);
        for key in ["host", "key"] {
            sshd::key(lab, "ed25519", key);
        }
        sshd::configuration(lab, 22, &["host"], "key.pub");
        let public = fs::read_to_string(lab.path("host.pub")).expect("key");
        let hosts: Vec<Host> = (1..=count).map(|n| Host::new(lab, n)).collect();
        let known: String = hosts.iter().map(|h| format!("{} {public}", h.address)).collect();
        fs::write(lab.path("known"), known).expect("known hosts");
        let hosts = Hosts { hosts, folder };
        for host in &hosts.hosts {
            host.serve(lab);
        }
        hosts
    }

    /// `meio migrate` with what it needs to log in, run on host `from`. Pids are free again when the hosts have taken notice of
    /// who has ended, which takes them a moment: until then nothing could move there with such a pid.
    pub fn migrate(&self, lab: &Lab, from: usize, arguments: &[&str]) -> Outcome {
        const NOBODY: &str = "! grep -qs '^State:.Z' /proc/[0-9]*/status";
        let reaped = |host: &Host| host.command(Path::new("bash")).args(["-c", NOBODY]).status().expect("bash starts").success();
        until(SOON, || self.hosts.iter().all(reaped));
        lab.run(self.migration(from, arguments))
    }

    /// The same, not started yet.
    pub fn migration(&self, from: usize, arguments: &[&str]) -> Command {
        self.calling("migrate", from, arguments)
    }

    /// `meio check` with what it needs to log in elsewhere, run on host `from`, not started yet.
    pub fn checking(&self, from: usize, arguments: &[&str]) -> Command {
        self.calling("check", from, arguments)
    }

    fn calling(&self, what: &str, from: usize, arguments: &[&str]) -> Command {
        let mut command = self.hosts[from].command(Path::new(crate::MEIO));
        let known = format!("{}known", self.folder);
        let key = format!("{}key", self.folder);
        command.args([what, "--known-hosts", &known, "--identity", &key]).args(arguments);
        if !arguments.contains(&"--remote-path") {
            command.args(["--remote-path", crate::MEIO]);
        }
        command
    }

    /// Whether the way from the bridge to host `n` is there.
    pub fn wire(&self, n: usize, there: bool) {
        plain("ip", &["link", "set", &format!("host{}", n + 1), if there { "up" } else { "down" }]);
    }

    /// Gives host `n` the service's address.
    pub fn serve_at(&self, n: usize) {
        let (address, device) = VIP.split_once('@').expect("a device");
        self.hosts[n].plain("ip", &["address", "add", address, "dev", device]);
    }
}

impl Drop for Hosts {
    /// Names of interfaces are free for the next ones at once: the kernel takes its time with those of a namespace that ends.
    fn drop(&mut self) {
        let names = (1..=self.hosts.len()).map(|n| format!("host{n}")).chain(["br0".to_owned()]);
        names.for_each(|name| drop(Command::new("ip").args(["link", "del", &name]).stderr(Stdio::null()).status()));
    }
}

impl Host {
    fn new(lab: &Lab, n: usize) -> Host {
        let up = lab.path(&format!("up{n}"));
        let init = Command::new("unshare")
            .args(["--pid", "--net", "--ipc", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc", "bash", "-c", INIT, "init"])
            .arg(&up)
            .env("GREETINGS", sshd::GREETINGS.join(" "))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(lab.path(&format!("init{n}.log"))).expect("log"))
            .spawn()
            .expect("unshare(1) starts");
        let host = Host { address: format!("10.99.0.{n}"), init, first_pid: 2000 * n as u32 };
        let log = || fs::read_to_string(lab.path(&format!("init{n}.log"))).unwrap_or_default();
        assert!(until(SOON, || up.exists()), "host {n} does not come up: {}", log());
        let (inside, outside) = (host.pid().to_string(), format!("host{n}"));
        plain("ip", &["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &inside]);
        plain("ip", &["link", "set", &outside, "master", "br0", "up"]);
        host.plain("ip", &["address", "add", &format!("{}/24", host.address), "dev", "eth0"]);
        host.plain("ip", &["link", "set", "eth0", "up"]);
        host.plain("hostname", &[&format!("host{n}")]);
        host
    }

    /// It was not lost.
    pub fn is_up(&self) -> bool {
        Path::new(&format!("/proc/{}", self.init.id())).exists()
    }

    /// The first process in it: the one child of unshare(1).
    fn pid(&self) -> i32 {
        let pid = self.init.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
        children.trim().parse().expect("one child")
    }

    /// Starts its sshd, and waits until it answers.
    pub fn serve(&self, lab: &Lab) {
        self.serve_again(lab);
        let log = lab.path(&format!("sshd-{}.log", self.address)).display().to_string();
        let at: SocketAddr = format!("{}:22", self.address).parse().expect("address");
        let answers = || TcpStream::connect_timeout(&at, Duration::from_millis(200)).is_ok();
        assert!(until(SOON, answers), "no sshd at {at}: {}", fs::read_to_string(&log).unwrap_or_default());
    }

    /// Starts its sshd, of which nobody may hear yet.
    pub fn serve_again(&self, lab: &Lab) {
        let configuration = lab.path("sshd.conf").display().to_string();
        let log = lab.path(&format!("sshd-{}.log", self.address)).display().to_string();
        let mut sshd = self.command(Path::new("/usr/sbin/sshd"));
        let _ = sshd.args(["-E", &log, "-f", &configuration]).status().expect("sshd starts");
    }

    /// A command that runs in it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid().to_string(), "--all", "--"]).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs one to its end, which must be a good one.
    pub fn plain(&self, program: &str, arguments: &[&str]) -> String {
        let done = self.command(Path::new(program)).args(arguments).output().expect("nsenter starts");
        assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Starts a program in it, as the leader of a session of its own, and finds its pid there.
    pub fn start(&self, lab: &Lab, program: &str, arguments: &[&str]) -> i32 {
        let pidfile = lab.path(&format!("pid-{}", self.address));
        let _ = fs::remove_file(&pidfile);
        let log = || fs::File::options().create(true).append(true).open(lab.path("log")).expect("log");
        // Its pids are to be nobody's on the other hosts.
        let script = "echo $FIRST > /proc/sys/kernel/ns_last_pid && cd $FOLDER && exec setsid --fork bash -c 'echo $$ > $PIDFILE.new && mv $PIDFILE.new $PIDFILE && exec \"$@\"' bash \"$@\"";
        let mut command = self.command(Path::new("bash"));
        command.args(["-c", script, "bash", program]).args(arguments);
        command.env("PIDFILE", &pidfile).env("FIRST", self.first_pid.to_string());
        // Its working folder is the host's after nsenter(1).
        command.env("FOLDER", lab.path("")).stdout(log()).stderr(log());
        assert!(command.status().expect("nsenter starts").success(), "{program}");
        assert!(until(SOON, || pidfile.exists()), "{program} does not start: {}", lab.log());
        fs::read_to_string(&pidfile).expect("pid").trim().parse().expect("a pid")
    }

    /// Whether a process of this pid lives in it.
    pub fn lives(&self, pid: i32) -> bool {
        let state = format!("/proc/{pid}/stat");
        let done = self.command(Path::new("cat")).arg(state).output().expect("nsenter starts");
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        text.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    }

    /// Whether a process of this pid runs in it: it is there, stands not still, and is not just being made or held by meio.
    pub fn runs(&self, pid: i32) -> bool {
        let done = self.command(Path::new("cat")).arg(format!("/proc/{pid}/status")).output().expect("nsenter starts");
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        field("State:").starts_with(['R', 'S', 'D']) && field("TracerPid:") == "0"
    }

    /// Everything in it ends at once, like a machine that loses its power.
    pub fn fail(&mut self) {
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.fail();
    }
}
