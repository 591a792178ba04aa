//! Two machines of namespaces, and the network between them.

use super::{LIMIT, MOVE, own, until};
use crate::error::{Context, Error, Result};
use crate::sys::signal;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The address that moves.
pub const SERVICE: &str = "10.99.0.100";
/// The same as `--vip` takes it.
pub const VIP: &str = "10.99.0.100/24@eth0";
/// Where the service listens.
pub const PORT: u16 = 7000;

/// A folder for its records of its own; orphans are waited for by a shell that waits for somebody.
const INIT: &str =
    "mount -t tmpfs -o mode=755 run /run && mount -t tmpfs -o mode=755 lib /var/lib && ip link set lo up && : > \"$0\" || exit 9
while :; do sleep 1; done";
/// Its pid is to be nobody's on the other machine.
const SERVE: &str = "echo 4000 > /proc/sys/kernel/ns_last_pid
setsid sh -c 'cd / && echo $$ > \"$0.new\" && mv \"$0.new\" \"$0\" && exec \"$@\"' \"$0\" \"$@\" < /dev/null > \"$0.log\" 2>&1 &";

/// One of them. It ends with the namespace that it was made in.
pub struct Host {
    /// What it calls itself.
    pub name: &'static str,
    /// Its address on the bridge.
    pub address: String,
    init: i32,
    /// Who calls here.
    door: PathBuf,
    processes: [Child; 2],
}

/// What is served. Both count, and answer with the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// A few lines.
    Counter,
    /// The real one.
    Redis,
}

impl Service {
    /// Its program.
    pub fn program(self) -> &'static str {
        match self {
            Service::Counter => "python3",
            Service::Redis => "redis-server",
        }
    }

    /// What it is asked.
    pub fn question(self) -> &'static [u8] {
        match self {
            Service::Counter => b"?",
            Service::Redis => b"INCR answers\r\n",
        }
    }

    fn arguments(self, port: &str) -> Vec<&str> {
        match self {
            Service::Counter => vec!["-I", "-S", "-c", include_str!("counter.py"), SERVICE, port],
            // It reads no file and writes none.
            Service::Redis => {
                vec!["--bind", SERVICE, "--port", port, "--save", "", "--appendonly", "no", "--protected-mode", "no", "--logfile", ""]
            }
        }
    }
}

/// Runs a command to its end, which must be a good one; what it prints.
fn plainly(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().context(|| format!("starting {:?}", command.get_program()))?;
    signal::check_interrupted()?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(Error::other(format!("{} {} has failed: {said}", command.get_program().to_string_lossy(), words.join(" "))))
}

/// Where both are, and the client.
pub fn bridge() -> Result<()> {
    for words in ["link set lo up", "link add br0 type bridge forward_delay 0", "address add 10.99.0.254/24 dev br0", "link set br0 up"] {
        plainly(Command::new("ip").args(words.split(' ')))?;
    }
    Ok(())
}

impl Host {
    /// Makes one: the nth.
    pub fn new(folder: &Path, n: u8, name: &'static str) -> Result<Host> {
        let (up, log) = (folder.join(format!("up{n}")), folder.join(format!("log{n}")));
        let mut command = Command::new("unshare");
        command.args(["--pid", "--net", "--ipc", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc", "sh", "-c", INIT]);
        command.arg(&up).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let mut first = command.spawn().context(|| "starting unshare")?;
        until("a machine", LIMIT, || match first.try_wait()? {
            Some(_) => Err(Error::other(format!("machine {name} does not come up: {}", fs::read_to_string(&log).unwrap_or_default()))),
            None => Ok(up.exists()),
        })?;
        let pid = first.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let init = children.trim().parse().map_err(|_| Error::other(format!("machine {name} has no first process")))?;
        let (outside, address) = (format!("host{n}"), format!("10.99.0.{n}"));
        let pair = format!("link add {outside} type veth peer name eth0 netns {init}");
        for words in [pair, format!("link set {outside} master br0 up")] {
            plainly(Command::new("ip").args(words.split(' ')))?;
        }
        let door = folder.join(format!("door{n}"));
        let mut open = inside(init, own()?);
        open.args(["demo", "migrate", "--role", "door"]).arg(&door).arg(&address).stdin(Stdio::null());
        let host = Host { name, address, init, door, processes: [first, open.spawn().context(|| "starting nsenter")?] };
        host.plain("ip", &["address", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
        host.plain("ip", &["link", "set", "eth0", "up"])?;
        host.plain("sh", &["-c", &format!("echo {name} > /proc/sys/kernel/hostname")])?;
        until("the door of a machine", LIMIT, || Ok(host.door.exists()))?;
        Ok(host)
    }

    /// Runs something on it, to a good end.
    pub fn plain(&self, program: &str, arguments: &[&str]) -> Result<String> {
        plainly(inside(self.init, program.into()).args(arguments))
    }

    /// Starts the service: its pid here.
    pub fn serve(&self, folder: &Path, service: Service) -> Result<i32> {
        let file = folder.join("service");
        let place = file.display().to_string();
        let port = PORT.to_string();
        self.plain("sh", &[&["-c", SERVE, &place, service.program()], service.arguments(&port).as_slice()].concat())?;
        let log = || fs::read_to_string(folder.join("service.log")).unwrap_or_default();
        until("the service", LIMIT, || {
            Ok(file.exists() && std::net::TcpStream::connect_timeout(&([10, 99, 0, 100], PORT).into(), LIMIT).is_ok())
        })
        .map_err(|e| Error { message: format!("{}: {}", e.message, log()), ..e })?;
        let pid = fs::read_to_string(&file)?;
        pid.trim().parse().map_err(|_| Error::other("the service has no pid"))
    }

    /// Whether a process lives here.
    pub fn lives(&self, pid: i32) -> bool {
        self.plain("test", &["-e", &format!("/proc/{pid}")]).is_ok()
    }

    /// A meio that calls another machine.
    fn calling(&self, folder: &Path, to: &Host, words: &[&str]) -> Result<Command> {
        let meio = own()?;
        let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "''"));
        let ssh = format!("{} demo migrate --role ring {}", quoted(&meio), quoted(&to.door));
        let mut command = inside(self.init, meio.clone());
        command.args(words).args(["--vip", VIP, "--ssh", &ssh, "--spool"]).arg(folder);
        // A word of a shell, as ssh has it.
        command.arg("--remote-path").arg(quoted(&meio).replace("''", "'\\''")).stdin(Stdio::null());
        Ok(command)
    }

    /// `meio watch`, from here, until it is killed; what it says goes to the file `said` in the folder.
    pub fn watch(&self, folder: &Path, pid: i32, to: &Host) -> Result<Child> {
        let words = ["watch", "--name", "demo", "--timeout", "1s", "--standby", &to.address, &pid.to_string()];
        let said = File::create(folder.join("said"))?;
        let mut command = self.calling(folder, to, &words)?;
        command.stdout(said.try_clone()?).stderr(said).spawn().context(|| "starting nsenter")
    }

    /// Pulls its cable, and ends everything on it at once, as a machine does that loses its power.
    pub fn fail(&mut self) -> Result<()> {
        plainly(Command::new("ip").args(["link", "set", &format!("host{}", self.address.rsplit('.').next().unwrap_or_default()), "down"]))?;
        let _ = self.processes[0].kill();
        let _ = self.processes[0].wait();
        Ok(())
    }

    /// `meio migrate`, from here: what it says in the end.
    pub fn migrate(&self, folder: &Path, pid: i32, to: &Host) -> Result<Value> {
        let [said, errors] = ["said", "errors"].map(|name| folder.join(name));
        let mut command = self.calling(folder, to, &["migrate", &pid.to_string(), &to.address, "--json"])?;
        let mut child = command.stdout(File::create(&said)?).stderr(File::create(&errors)?).spawn()?;
        let mut code = None;
        until("the move", MOVE, || {
            code = child.try_wait()?.map(|status| status.code());
            Ok(code.is_some())
        })?;
        let last = fs::read_to_string(&said)?.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok()).unwrap_or_default();
        if last["type"] == "result" {
            return Ok(last);
        }
        let why = last["message"].as_str().map_or_else(|| fs::read_to_string(&errors).unwrap_or_default(), str::to_owned);
        Err(Error::other(format!("from {} to {}: {why}", self.name, to.name)))
    }
}

/// Something that is run on a machine.
fn inside(init: i32, program: PathBuf) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &init.to_string(), "--all", "--"]).arg(program);
    command
}
