//! `meio demo migrate`: a service moves between two machines of namespaces, there and back, and its client never notices.

pub mod client;
mod door;
pub mod hosts;

use super::program::installed;
use super::{Paint, Teller};
use crate::cli::{Console, figures};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::{signal, spawn};
use client::Client;
use hosts::{Host, PORT, SERVICE, Service, VIP};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What a meio of the demonstration is there for; nobody else calls it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Shows everything, in namespaces of its own: FOLDER
    Stage,
    /// Stands in for sshd: SOCKET ADDRESS
    Door,
    /// Stands in for ssh: SOCKET HOST COMMAND
    Ring,
}

/// How long anything may take that should happen at once.
pub const LIMIT: Duration = Duration::from_secs(25);
/// How long one move may take.
pub const MOVE: Duration = Duration::from_secs(100);
/// Answers that the client waits for between two moves.
const ANSWERS: u64 = 500;

/// The machines, and the programs that make them.
const TOOLS: [(&str, &str); 4] = [("unshare", "util-linux"), ("nsenter", "util-linux"), ("ip", "iproute2"), ("python3", "python3")];

/// Does what a role asks for; `show` on the stage.
pub fn play(role: Role, with: &[OsString], console: &Console, show: Show) -> Result<ExitCode> {
    let word = |n: usize| with.get(n).cloned().ok_or_else(|| Error::new(Kind::Usage, "meio demo plays this role for itself only"));
    match role {
        Role::Stage => show(Path::new(&word(0)?), console),
        Role::Door => door::open(Path::new(&word(0)?), &word(1)?.to_string_lossy()),
        Role::Ring => door::ring(Path::new(&word(0)?), &word(2)?.to_string_lossy()),
    }
}

/// Ended and removed when dropped, with everything below it.
struct Stage {
    child: Child,
    folder: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // unshare(1) takes the first process of the namespace with it, and that one all others.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What happens on the stage: with a folder for its files.
pub type Show = fn(&Path, &Console) -> Result<ExitCode>;

/// Starts the demonstration in namespaces of its own, so that nothing here is touched, and nothing can be left.
pub fn run(watch: bool) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        let why = "two machines are made of namespaces for this, and only root can make them";
        let what = if watch { "watch" } else { "migrate" };
        return Err(Error::new(Kind::Permission, why).help(format!("sudo meio demo {what}; meio demo alone needs less")));
    }
    if let Some((tool, package)) = TOOLS.into_iter().find(|(tool, _)| !installed(tool)) {
        return Err(Error::other(format!("{tool} is not installed, and the demonstration needs it")).help(format!("install {package}")));
    }
    signal::catch();
    let folder = nix::unistd::mkdtemp(&std::env::temp_dir().join("meio-demo-XXXXXX")).context(|| "making a folder")?;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--net", "--ipc", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.arg(own()?).args(std::env::args_os().skip(1)).args(["--role", "stage"]).arg(&folder).stdin(Stdio::null());
    spawn::apart(&mut command);
    let started = command.spawn().context(|| "starting unshare");
    let child = started.inspect_err(|_| drop(std::fs::remove_dir(&folder)))?;
    let mut stage = Stage { child, folder };
    loop {
        if let Some(status) = stage.child.try_wait().context(|| "waiting for the demonstration")? {
            return Ok(ExitCode::from(status.code().map_or(1, |code| code as u8)));
        }
        signal::check_interrupted()?;
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// This very program.
pub fn own() -> Result<PathBuf> {
    std::env::current_exe().context(|| "finding meio itself")
}

/// Waits until `done` says so.
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !done()? {
        signal::check_interrupted()?;
        if begin.elapsed() > limit {
            return Err(Error::other(format!("{what} takes too long")).help("try again when the machine has less to do"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// One way.
struct Moved {
    from: &'static str,
    to: &'static str,
    /// What meio said of it.
    said: Value,
    longest: Duration,
    answers: u64,
}

pub fn stage(folder: &Path, console: &Console) -> Result<ExitCode> {
    signal::catch();
    let begin = Instant::now();
    let teller = Teller { console, begin };
    hosts::bridge()?;
    let machines = [Host::new(folder, 1, "one")?, Host::new(folder, 2, "two")?];
    teller.say(
        "machines",
        Paint::Strong,
        "one (10.99.0.1) and two (10.99.0.2): namespaces with processes, network and mounts of their own",
    );
    machines[0].plain("ip", &["address", "add", VIP.split('@').next().unwrap_or(VIP), "dev", "eth0"])?;
    let pid = machines[0].serve(folder, Service::Counter)?;
    teller.say("running", Paint::Good, &format!("python3 counts at {SERVICE}:{PORT}, on one; its pid is {pid}"));
    let client = Client::start(Service::Counter.question(), LIMIT)?;
    until("the first answers", LIMIT, || client.answers().map(|n| n >= ANSWERS))?;
    let wait = figures::time(client.longest());
    let text = format!("a client, on neither, has one connection with it and {} answers; the longest took {wait}", client.answers()?);
    teller.say("asking", Paint::Good, &text);
    let mut moves = Vec::new();
    for (from, to) in [(&machines[0], &machines[1]), (&machines[1], &machines[0])] {
        let moved = go(folder, pid, [from, to], &client)?;
        let text = format!(
            "{} -> {}: meio migrate {pid} {} --vip {VIP}: nobody ran for {:.0} ms, {} were sent; the client's longest wait was {}, and {} answers came meanwhile",
            moved.from,
            moved.to,
            to.address,
            moved.said["downtime_ms"].as_f64().unwrap_or_default(),
            figures::bytes(moved.said["bytes"].as_u64().unwrap_or_default()),
            figures::time(moved.longest),
            moved.answers,
        );
        teller.say("moved", Paint::Good, &text);
        moves.push(moved);
    }
    let answers = client.end()?;
    tell(console, pid, answers, &moves);
    Ok(ExitCode::SUCCESS)
}

/// Moves it, and waits for answers from where it is then.
fn go(folder: &Path, pid: i32, [from, to]: [&Host; 2], client: &Client) -> Result<Moved> {
    let before = client.answers()?;
    client.longest(); // of what comes from now on
    let said = from.migrate(folder, pid, to)?;
    let meanwhile = client.answers()? - before;
    if from.lives(pid) || !to.lives(pid) {
        return Err(Error::other(format!("process {pid} is not where it was moved to")));
    }
    let now = client.answers()?;
    until("an answer after the move", LIMIT, || client.answers().map(|n| n >= now + ANSWERS))?;
    Ok(Moved { from: from.name, to: to.name, said, longest: client.longest(), answers: meanwhile })
}

fn tell(console: &Console, pid: i32, answers: u64, moves: &[Moved]) {
    if console.json {
        let one = |m: &Moved| {
            json!({"from": m.from, "to": m.to, "downtime_ms": m.said["downtime_ms"], "bytes": m.said["bytes"],
                   "total_ms": m.said["total_ms"], "longest_wait_ms": figures::ms(m.longest)})
        };
        let moves: Vec<Value> = moves.iter().map(one).collect();
        return console.json(
            "result",
            json!({"command": "demo", "program": "python3", "pid": pid, "answers": answers, "correct": true, "moves": moves}),
        );
    }
    let longest = moves.iter().map(|m| m.longest).max().unwrap_or_default();
    console.result(&format!(
        "\n  {} one connection, {answers} answers from 1 to {answers}: none was lost, none came twice. The longest took {}.\n  \
         Try your own: meio migrate PID HOST --dry-run; meio-migrate(1) begins with the keys.",
        console.out("The client has noticed nothing:", Paint::Good),
        figures::time(longest)
    ));
}
