//! Whatever fails and whenever: the client loses nothing, and one tree runs, or the one that stands still is named, and
//! `--resume` or `--abort` brings it to where it belongs. `MOVES=N` does each N times.

use super::{MOVE, counted, counting, redis};
use crate::lab::hosts::{Hosts, SERVICE, VIP};
use crate::lab::{Lab, SOON, now, until};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// What is done to a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// The meio at the source is killed.
    Source,
    /// The one at the target.
    Target,
    /// The sshd at the target, with all sessions.
    Sshd,
    /// No packets to and from the target, or the source.
    Cut,
    /// One of them hears nothing of the other.
    Deaf,
    /// No room where images are put.
    Spool,
    /// No room for records at the source, or at the target.
    Records,
}

/// A move that is to fail.
struct Attempt<'l> {
    lab: &'l Lab,
    hosts: &'l Hosts,
    round: usize,
    from: usize,
    to: usize,
    pid: i32,
}

/// Kills the agent, which is older than the copies of it that are there for that case, and not those that only tell neighbours
/// where an address is.
const KILL_AGENT: &str = r"
for d in /proc/[0-9]*; do
    grep -qz '^agent$' $d/cmdline && grep -qz meio $d/cmdline && ! grep -qz announce $d/cmdline &&
        echo $(sed 's/.*) //' $d/stat | cut -d ' ' -f 20) ${d#/proc/}
done 2>/dev/null | sort -n | head -n 1 | while read -r _ pid; do kill -9 $pid; done; true";

/// With all sessions.
const KILL_SSHD: &str = "for d in /proc/[0-9]*; do grep -q ^sshd $d/comm 2>/dev/null && kill -9 ${d#/proc/}; done; true";

const FILL: &str = "cat /dev/zero > $0/fill 2>/dev/null; true";

impl Attempt<'_> {
    /// The one of both that it is done to, where it can be either.
    fn whom(&self) -> usize {
        if (self.round / 2).is_multiple_of(2) { self.to } else { self.from }
    }

    fn spool(&self) -> String {
        self.lab.path("spool").display().to_string()
    }

    fn harm(&self, harm: Harm) {
        let host = |n: usize| &self.hosts.hosts[n];
        match harm {
            // Not who is there for that case, which is a copy of it.
            Harm::Source => drop(host(self.from).plain("bash", &["-c", "pkill -9 -o -f ' m[i]grate '; true"])),
            Harm::Target => drop(host(self.to).plain("bash", &["-c", KILL_AGENT])),
            Harm::Sshd => drop(host(self.to).plain("bash", &["-c", KILL_SSHD])),
            Harm::Cut => self.hosts.wire(self.whom(), false),
            Harm::Deaf => {
                let other = if self.whom() == self.to { self.from } else { self.to };
                let address = &host(other).address;
                let rules =
                    format!("table inet cut {{\nchain c {{\ntype filter hook input priority -300;\nip saddr {address} drop\n}}\n}}\n");
                let file = self.lab.path("rules");
                std::fs::write(&file, rules).expect("rules");
                host(self.whom()).plain("nft", &["-f", file.to_str().expect("path")]);
            }
            Harm::Spool => drop(host(self.to).plain("bash", &["-c", FILL, &self.spool()])),
            Harm::Records => drop(host(self.whom()).plain("bash", &["-c", FILL, "/run"])),
        }
    }

    fn mend(&self, harm: Harm) {
        let host = |n: usize| &self.hosts.hosts[n];
        match harm {
            Harm::Source | Harm::Target => {}
            Harm::Sshd => host(self.to).serve(self.lab),
            Harm::Cut => self.hosts.wire(self.whom(), true),
            Harm::Deaf => drop(host(self.whom()).plain("nft", &["delete table inet cut"])),
            Harm::Spool => drop(host(self.to).plain("rm", &["-f", &format!("{}/fill", self.spool())])),
            Harm::Records => drop(host(self.whom()).plain("rm", &["-f", "/run/fill"])),
        }
    }

    /// The move that is on record as not settled.
    fn left(&self) -> Option<String> {
        let list = self.hosts.hosts[self.from].plain("sh", &["-c", "ls /run/meio/migrate 2>/dev/null | grep source$ || true"]);
        list.trim().strip_suffix(".source").map(str::to_owned)
    }

    /// Who has the service's address.
    fn has_address(&self, n: usize) -> bool {
        self.hosts.hosts[n].plain("ip", &["-o", "address", "show", "dev", "eth0"]).contains(&format!("{SERVICE}/"))
    }

    /// Whether the tree runs here, and there.
    fn runs(&self) -> (bool, bool) {
        (self.hosts.hosts[self.from].runs(self.pid), self.hosts.hosts[self.to].runs(self.pid))
    }

    /// Moves it, harmed after `delay`: whether it runs at the target, and whether it had to be taken up.
    fn go(&self, harm: Option<Harm>, delay: Duration) -> (bool, bool) {
        let (lab, what) = (self.lab, format!("round {}, {harm:?} after {delay:?}", self.round));
        let (pid, spool) = (self.pid.to_string(), self.spool());
        let arguments = [&pid, &self.hosts.hosts[self.to].address, "--vip", VIP, "--spool", &spool, "--on-timeout", "force"];
        let mut migration = self.hosts.migration(self.from, &arguments);
        let said = lab.path("said");
        migration.stdout(Stdio::null()).stderr(std::fs::File::create(&said).expect("file"));
        let mut child = migration.spawn().expect("meio starts");
        let mut code = None;
        if let Some(harm) = harm {
            std::thread::sleep(delay);
            self.harm(harm);
        }
        let ended = until(2 * MOVE, || {
            code = child.try_wait().expect("wait").map(|status| status.code());
            code.is_some()
        });
        let said = std::fs::read_to_string(&said).unwrap_or_default();
        assert!(ended, "{what}: it does not end: {said}");
        if let Some(harm) = harm {
            self.mend(harm);
        }
        // A guardian may still be putting right what was begun.
        let settled = until(SOON, || {
            let (here, there) = self.runs();
            assert!(!(here && there), "{what}: two run: {said}");
            here || there || self.left().is_some()
        });
        assert!(settled, "{what}: nobody runs, and nothing says so: {code:?} {said}\n{}", lab.log());
        let left = self.left();
        match code.flatten() {
            Some(0 | 3) => assert!(left.is_none() && self.hosts.hosts[self.to].runs(self.pid), "{what}: {said}"),
            Some(16) => {
                let id = left.as_ref().unwrap_or_else(|| panic!("{what}: no record: {said}"));
                assert!(said.contains(&format!("meio migrate --resume {id}")), "{what}: {said}");
            }
            _ => {}
        }
        if let Some(id) = &left {
            self.take_up(id, &what);
        }
        let mut state = String::new();
        let clean = until(SOON, || {
            let (here, there) = self.runs();
            let loser = &self.hosts.hosts[if there { self.from } else { self.to }];
            let addresses = (self.has_address(self.from), self.has_address(self.to));
            state = format!("runs {:?}, loser has it {}, addresses {addresses:?}", (here, there), loser.lives(self.pid));
            here != there && !loser.lives(self.pid) && addresses == (here, there)
        });
        assert!(clean, "{what}: {state}; {code:?} {said}\n{}", lab.log());
        let words = said.lines().next().unwrap_or_default();
        println!("\njourney: {what}: {code:?}, runs there {}, taken up {}: {words}", self.runs().1, left.is_some());
        (self.runs().1, left.is_some())
    }

    /// A move that was left comes to its end by one command or the other.
    fn take_up(&self, id: &str, what: &str) {
        let (lab, hosts) = (self.lab, self.hosts);
        if self.round % 2 == 1 {
            let done = lab.run(hosts.migration(self.from, &["--abort", id]));
            if done.code == 0 {
                return;
            }
            // It must stay where it is, then.
            assert!(done.stderr.contains(&format!("--resume {id}")) && !self.runs().0, "{what}: {done:?}");
        }
        let done = lab.run(hosts.migration(self.from, &["--resume", id]));
        assert_eq!(done.code, 0, "{what}: {done:?}");
    }
}

/// Writes all the time to memory that could be shared with others, which is copied in the last stop.
const WRITES: &str = "
import mmap, os, sys
memory = mmap.mmap(-1, 16 << 20)
open(sys.argv[1] + '.ready', 'w').close()
while True:
    for at in range(0, len(memory), 4096):
        memory[at:at + 16] = os.urandom(16)
";

/// Kills the meio that moves something from here as soon as it is on record that it may run there.
const KILL_AFTER_COMMIT: &str = "
import glob, os, signal, sys
while not os.path.exists(sys.argv[1]):
    for name in glob.glob('/run/meio/migrate/*.source'):
        try:
            committed = 'Committed' in open(name).read()
        except OSError:
            continue
        if committed:
            for pid in filter(str.isdigit, os.listdir('/proc')):
                try:
                    words = open('/proc/%s/cmdline' % pid, 'rb').read().split(b'\\0')
                    if b'migrate' in words and b'meio' in words[0]:
                        os.kill(int(pid), signal.SIGKILL)
                except OSError:
                    pass
            sys.exit()
";

/// Each of these, once or as often as `MOVES` says.
fn at_random(name: &str, harms: &[Harm], slice: usize) {
    let lab = Lab::new(name);
    let hosts = Hosts::new(&lab, 2);
    let spool = lab.path("spool");
    std::fs::create_dir(&spool).expect("folder");
    for host in &hosts.hosts {
        host.plain("mount", &["-t", "tmpfs", "-o", "size=64m", "spool", spool.to_str().expect("path")]);
    }
    let pid = redis(&lab, &hosts);
    let client = counting(&lab);
    let rounds = std::env::var("MOVES").ok().and_then(|n| n.parse::<usize>().ok()).map_or(slice, |n| n * harms.len());
    let attempt = |round, from: usize| Attempt { lab: &lab, hosts: &hosts, round, from, to: 1 - from, pid };
    // How long it takes when nothing fails.
    let begun = now();
    assert_eq!(attempt(0, 0).go(None, Duration::ZERO), (true, false));
    let whole = (now() - begun) / 1000;
    let (mut at, mut moved, mut resumed) = (1, 0, 0);
    let mut random = u64::from(std::process::id()) << 20 | u64::from(now() as u32 & 0xfffff);
    for round in 0..rounds {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let delay = Duration::from_micros((random >> 20) % (whole * 2 / 3));
        println!("journey: at {} ms", (now() - begun) / 1_000_000);
        let (there, left) = attempt(round, at).go(Some(harms[round % harms.len()]), delay);
        (moved, resumed) = (moved + u32::from(there), resumed + u32::from(left));
        at = if there { 1 - at } else { at };
    }
    let said = counted(&lab, client);
    println!("journey: {harms:?}: {rounds} moves were harmed, within {whole} us: {moved} had moved, {resumed} were taken up; {said}");
}

/// What does not end with its processes goes with the tree, also where another meio takes up that it runs there.
fn leaves_nothing(fixture: &str) {
    let lab = Lab::new("taken-up");
    let hosts = Hosts::new(&lab, 2);
    let pid = super::fixture(&lab, &hosts, 0, fixture, &[]);
    let objects = |n: usize| {
        const LIST: &str = "mkdir -p /run/queues && { mountpoint -q /run/queues || mount -t mqueue queues /run/queues; } && ls /run/queues && \
                            tail -qn +2 /proc/sysvipc/*";
        hosts.hosts[n].plain("sh", &["-c", LIST]).lines().count()
    };
    let had = objects(0);
    assert!(had > 0 && objects(1) == 0, "{had}");
    let over = lab.path("over");
    let mut killer = hosts.hosts[0].command(Path::new("python3"));
    let mut killer = killer.args(["-c", KILL_AFTER_COMMIT]).arg(&over).spawn().expect("python3 starts");
    let done = hosts.migrate(&lab, 0, &[&pid.to_string(), &hosts.hosts[1].address, "--on-timeout", "force"]);
    std::fs::write(&over, "").expect("file");
    let _ = killer.wait();
    // It may have been quicker.
    let list = hosts.hosts[0].plain("sh", &["-c", "ls /run/meio/migrate 2>/dev/null | grep source$ || true"]);
    println!("journey: {:?}, {list:?}", done.code);
    match list.trim().strip_suffix(".source") {
        Some(id) => {
            let mut again = None;
            let taken = until(MOVE, || again.insert(lab.run(hosts.migration(0, &["--resume", id]))).code == 0);
            assert!(taken, "{again:?}");
        }
        None => assert!(matches!(done.code, 0 | 3), "{done:?}"),
    }
    // Nobody may have heard that it was to run there.
    let (winner, loser) = if hosts.hosts[1].runs(pid) { (1, 0) } else { (0, 1) };
    assert!(until(SOON, || hosts.hosts[winner].runs(pid) && !hosts.hosts[loser].lives(pid)), "{done:?}");
    assert!(until(SOON, || objects(loser) == 0 && objects(winner) == had), "{} here, {} there, {had} before", objects(0), objects(1));
}

crate::alone! {
    /// While nobody runs the other end may not be silent for long: the tree goes on here.
    fn a_silent_target_while_nobody_runs() {
        let lab = Lab::new("silent");
        let hosts = Hosts::new(&lab, 2);
        let pid = hosts.hosts[0].start(&lab, "python3", &["-c", WRITES, &lab.path("w").display().to_string()]);
        assert!(until(SOON, || lab.path("w.ready").exists()), "it does not get ready: {}", lab.log());
        let (text, to) = (pid.to_string(), &hosts.hosts[1].address);
        // What is left for the stop takes seconds.
        let slow = ["--compress", "none", "--bandwidth", "3M", "--timeout", "1s", "--on-timeout", "force", "--max-downtime", "50ms"];
        let mut migration = hosts.migration(0, &[&[text.as_str(), to][..], &slow].concat());
        let path = lab.path("said");
        let mut child = migration.stdout(Stdio::null()).stderr(std::fs::File::create(&path).expect("file")).spawn().expect("meio starts");
        let said = || std::fs::read_to_string(&path).unwrap_or_default();
        // It is to be the last stop, not one of those before.
        assert!(until(MOVE, || said().contains("nobody would run for about")), "no round ends: {}", said());
        let mut still = 0;
        let stands = until(SOON, || {
            let status = hosts.hosts[0].command(Path::new("cat")).arg(format!("/proc/{pid}/status")).output().expect("nsenter starts");
            still = if String::from_utf8_lossy(&status.stdout).contains("State:\tt") { still + 1 } else { 0 };
            still > 5
        });
        assert!(stands, "it is never stopped: {}", said());
        hosts.wire(1, false);
        assert!(until(SOON, || hosts.hosts[0].runs(pid)), "it does not go on here");
        let status = child.wait().expect("meio ends");
        let said = said();
        hosts.wire(1, true);
        // It waits for a machine that has much to do, but not as long as when the tree runs.
        let seconds = said.split("nothing was heard of").nth(1).and_then(|rest| rest.split(" for ").nth(1)?.split(' ').next()?.parse::<u32>().ok());
        assert!(status.code() == Some(15) && seconds.is_some_and(|s| (2..9).contains(&s)), "{status}: {said}");
        assert!(hosts.hosts[0].runs(pid) && !hosts.hosts[1].runs(pid), "{said}");
    }

    fn system_v_objects_of_a_move_that_is_taken_up() {
        leaves_nothing("sysvshm");
    }

    fn message_queues_of_a_move_that_is_taken_up() {
        leaves_nothing("mqueue");
    }

    fn killed_at_random() {
        at_random("killed", &[Harm::Source, Harm::Target], 4);
    }

    fn no_way_at_random() {
        at_random("cut", &[Harm::Cut, Harm::Deaf], 2);
    }

    fn no_room_and_no_sshd_at_random() {
        at_random("room", &[Harm::Sshd, Harm::Spool, Harm::Records], 4);
    }
}
