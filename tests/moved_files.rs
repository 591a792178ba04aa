//! Trees that move to a machine that does not have their files.
//!
//! The hosts of the lab share what this machine has, but for one folder: there each has a file system of its own.

use crate::lab::hosts::{Host, Hosts, SERVICE, VIP};
use crate::lab::{Lab, Outcome, SOON, until};
use crate::migrate::{counted, counting, result};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const SQLITE: &str = include_str!("moved_files/sqlite.py");
const CHECK: &str = include_str!("moved_files/check.py");

/// Hosts with a folder of their own; each folder is a file system with these options.
fn hosts(lab: &Lab, options: &[&str]) -> (Hosts, String) {
    let hosts = Hosts::new(lab, options.len());
    let own = lab.path("own").display().to_string();
    std::fs::create_dir(&own).expect("folder");
    for (host, options) in hosts.hosts.iter().zip(options) {
        host.plain("mount", &["-t", "tmpfs", "-o", options, "own", &own]);
    }
    (hosts, own)
}

fn shell(host: &Host, script: &str) -> String {
    host.plain("bash", &["-ec", script])
}

/// Everything in a folder of a host: attributes, times, content.
fn picture(host: &Host, folder: &str) -> String {
    let script = format!(
        "cd {folder} && find . -printf '%p %y %m %U %G %s %T@ %n %l\\n' | sort && find . -type f -exec sha256sum {{}} + | sort -k2 && find . \
         -type f -exec getfattr -d {{}} + 2>/dev/null || true"
    );
    shell(host, &script)
}

/// A program of Python on a host, once it says that it works.
fn python(lab: &Lab, host: &Host, program: &str, arguments: &[&str], works: impl Fn() -> bool) -> i32 {
    std::fs::write(lab.path("program.py"), program).expect("program");
    let file = lab.path("program.py").display().to_string();
    let mut all = vec![file.as_str()];
    all.extend(arguments);
    let pid = host.start(lab, "python3", &all);
    assert!(until(SOON, works), "it does not begin: {}", lab.log());
    pid
}

fn there(host: &Host, path: &str) -> bool {
    host.command(Path::new("test")).args(["-s", path]).status().is_ok_and(|s| s.success())
}

fn fine(done: &Outcome, lab: &Lab) {
    assert!(matches!(done.code, 0 | 3), "{}{}\n{}", done.stdout, done.stderr, lab.log());
}

/// What a program of Python writes: a log that it appends to, and a table that it reads.
const WRITER: &str = "
import sys, time
folder = sys.argv[1]
table = open(folder + '/table')
assert table.read() == 'table\\n'
log = open(folder + '/log', 'a', buffering=1)
n = 0
while True:
    n += 1
    log.write(f'{n}\\n')
    time.sleep(0.01)
";

/// Processes of the far end on a host: the first, and what it has left behind for the case of its death.
fn agents(host: &Host) -> Vec<i32> {
    let script = "for d in /proc/[0-9]*; do tr '\\0' ' ' < $d/cmdline 2>/dev/null | grep -q 'meio agent' && echo ${d#/proc/}; done; true";
    let mut pids: Vec<i32> = shell(host, script).split_whitespace().filter_map(|p| p.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

crate::alone! {
    /// A redis whose program, libraries, log and data are on one machine only goes to the other, and starts there from its data.
    fn a_redis_with_all_its_files() {
        let lab = Lab::new("moved-redis");
        let (hosts, own) = hosts(&lab, &["size=200m", "size=200m"]);
        let (here, far) = (&hosts.hosts[0], &hosts.hosts[1]);
        hosts.serve_at(0);
        shell(here, &format!(
            "mkdir -m 750 {own}/bin {own}/lib {own}/log {own}/data; cp $(command -v redis-server) {own}/bin/; \
             ldd {own}/bin/redis-server | awk '/jemalloc|lua|lzf/ {{print $3}}' | xargs -I% cp % {own}/lib/; \
             cd {own}/data; mkdir -m 2770 deep; head -c 3000000 /dev/urandom > deep/noise; ln deep/noise linked; ln -s deep/noise soft; \
             truncate -s 20m sparse; echo x | dd of=sparse bs=1 seek=9000000 conv=notrunc 2>/dev/null; \
             chown 12:34 deep/noise; touch -d '2001-02-03 04:05:06.789' sparse deep; chmod 4711 sparse"
        ));
        // What is there and is in the way of no one goes.
        shell(far, &format!("mkdir -p {own}/data/old/older; echo x > {own}/data/old/older/x; mkdir {own}/data/linked"));
        let (program, log, data) = (format!("{own}/bin/redis-server"), format!("{own}/log/redis.log"), format!("{own}/data"));
        let library = format!("LD_LIBRARY_PATH={own}/lib");
        let arguments = [
            &library, &program, "--port", "6379", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", &data,
            "--protected-mode", "no", "--logfile", &log,
        ];
        let pid = here.start(&lab, "env", &arguments);
        assert!(until(SOON, || there(here, &log) && shell(here, &format!("tail -n 5 {log}")).contains("Ready to accept")), "redis");
        let client = counting(&lab);
        let (text, to) = (pid.to_string(), far.address.clone());
        let plain = hosts.migrate(&lab, 0, &[&text, &to, "--vip", VIP, "--dry-run"]);
        assert_eq!(plain.code, 13, "{plain:?}");
        for gap in ["executable", "bin/redis-server", "own/data/appendonlydir", "own/lib/", "--copy-files"] {
            assert!(plain.stderr.contains(gap), "{gap}: {}", plain.stderr);
        }
        // Its log is open only while it writes to it.
        let logs = format!("{own}/log");
        let options = ["--vip", VIP, "--copy-files", "--with-data", &data, "--with-data", &logs, "--json", "--max-downtime", "2s"];
        let done = hosts.migrate(&lab, 0, &[&[text.as_str(), &to][..], &options].concat());
        fine(&done, &lab);
        assert!(result(&done)["file_bytes"].as_u64().is_some_and(|n| n > 3_000_000), "{}", done.stdout);
        assert!(far.lives(pid) && !here.lives(pid));
        let said = counted(&lab, client);
        let last = said["last"].as_u64().expect("a number");
        // The source has what it had in the last stop; there it went on.
        let still = "bin lib data/deep data/linked data/soft data/sparse";
        let look = |host: &Host| shell(host, &format!("cd {own}; find {still} -printf '%p %y %m %U %G %s %T@ %n %l\\n' | sort; find {still} -type f -exec sha256sum {{}} + | sort -k2"));
        assert_eq!(look(here), look(far));
        let blocks = |host: &Host| shell(host, &format!("stat -c %b {own}/data/sparse")).trim().parse::<u64>().expect("blocks");
        assert!(blocks(far) <= blocks(here) + 128, "{} and {}", blocks(far), blocks(here));
        assert_eq!(shell(far, &format!("cd {own}; [ data/deep/noise -ef data/linked ] && ls -A data bin lib log | grep -c meio || true")).trim(), "0");
        let names = |host: &Host| shell(host, &format!("cd {own}/data; find . -printf '%p %y %m\\n' | sort"));
        assert_eq!(names(here), names(far));
        for file in ["log/redis.log", "data/appendonlydir/appendonly.aof.1.incr.aof"] {
            let size = shell(here, &format!("stat -c %s {own}/{file}"));
            let head = |host: &Host| shell(host, &format!("head -c {} {own}/{file} | sha256sum", size.trim()));
            assert_eq!(head(here), head(far), "{file}");
        }
        // From its files, on the disk of the new machine.
        shell(far, &format!("kill -9 {pid}; while [ -e /proc/{pid} ]; do sleep 0.05; done; true > {log}"));
        far.start(&lab, "env", &arguments);
        assert!(until(SOON, || shell(far, &format!("cat {log}")).contains("Ready to accept")), "redis does not start again");
        let answer = shell(far, &format!("exec 3<>/dev/tcp/{SERVICE}/6379; printf 'GET n\\r\\n' >&3; read -r a <&3; read -r b <&3; echo ${{b%$'\\r'}}"));
        assert_eq!(answer.trim().parse::<u64>().expect("a number"), last, "what was answered is on disk there");
    }

    /// A database in WAL mode, whose index is written through memory: there, and back over what is old.
    fn a_database_goes_and_comes_back() {
        let lab = Lab::new("moved-sqlite");
        let (hosts, own) = hosts(&lab, &["size=100m", "size=100m"]);
        let log = format!("{own}/log");
        let pid = python(&lab, &hosts.hosts[0], SQLITE, &[&own], || there(&hosts.hosts[0], &log));
        let text = pid.to_string();
        for (from, to, which) in [(0, 1, "--copy-files"), (1, 0, "--copy-files=written"), (0, 1, "--with-data")] {
            let address = &hosts.hosts[to].address;
            let mut all = vec![text.as_str(), address, which];
            if which == "--with-data" {
                all.push(&own);
            } else if to == 0 {
                // It is not the tree's to say which of the two is right.
                let refused = hosts.migrate(&lab, from, &[&text, address, "--copy-files"]);
                assert_eq!(refused.code, 13, "{refused:?}");
                for gap in ["numbers.db", "numbers.db-wal", "own/log", "--copy-files=written"] {
                    assert!(refused.stderr.contains(gap), "{gap}: {}", refused.stderr);
                }
            }
            all.extend(["--max-downtime", "2s"]);
            let done = hosts.migrate(&lab, from, &all);
            fine(&done, &lab);
            assert!(hosts.hosts[to].lives(pid) && !hosts.hosts[from].lives(pid));
            let before: u64 = shell(&hosts.hosts[to], &format!("wc -l < {log}")).trim().parse().expect("lines");
            let goes_on = || shell(&hosts.hosts[to], &format!("wc -l < {log}")).trim().parse::<u64>().is_ok_and(|n| n > before);
            assert!(until(SOON, goes_on), "it does not go on: {}", lab.log());
            let left = shell(&hosts.hosts[to], &format!("ls -A {own} | grep meio || true"));
            assert!(left.is_empty(), "{left}");
        }
        shell(&hosts.hosts[1], &format!("kill -9 {pid}; while [ -e /proc/{pid} ]; do sleep 0.05; done"));
        std::fs::write(lab.path("check.py"), CHECK).expect("program");
        let said = hosts.hosts[1].plain("python3", &[&lab.path("check.py").display().to_string(), &own]);
        println!("journey: {} rows", said.trim());
    }

    /// All that differs is said at once, by the preflight, by check, and by the move; and nothing is touched.
    fn what_differs_is_refused() {
        let lab = Lab::new("moved-differs");
        let (hosts, own) = hosts(&lab, &["size=50m", "size=50m"]);
        let (here, far) = (&hosts.hosts[0], &hosts.hosts[1]);
        shell(here, &format!("echo table > {own}/table; mkdir {own}/bin; cp $(readlink -f /usr/bin/python3) {own}/bin/python3"));
        shell(far, &format!("echo tabel > {own}/table; echo 'of somebody else' > {own}/log; touch -d 2020-01-01 {own}/log"));
        let before = picture(far, &own);
        std::fs::write(lab.path("program.py"), WRITER).expect("program");
        let (program, file, log) = (format!("{own}/bin/python3"), lab.path("program.py").display().to_string(), format!("{own}/log"));
        let pid = here.start(&lab, &program, &[&file, &own]).to_string();
        assert!(until(SOON, || there(here, &log)), "it does not begin: {}", lab.log());
        let to = far.address.clone();
        let said = |options: &[&str]| {
            let done = hosts.migrate(&lab, 0, &[&[pid.as_str(), &to][..], options].concat());
            assert_eq!(done.code, 13, "{options:?}: {done:?}");
            assert_eq!(picture(far, &own), before, "{options:?}");
            ["bin/python3", "own/log", "own/table"].map(|name| done.stderr.contains(name))
        };
        assert_eq!(said(&["--dry-run"]), [true; 3]);
        assert_eq!(said(&[]), [true; 3]);
        assert_eq!(said(&["--copy-files"]), [false, true, true]);
        assert_eq!(said(&["--copy-files=written"]), [false, false, true], "what is only read is never replaced");
        let done = lab.run(hosts.checking(0, &["--host", &to, "--pid", &pid]));
        assert_eq!(done.code, 13, "{done:?}");
        assert!(["bin/python3", "own/log", "own/table"].iter().all(|name| done.stderr.contains(name)), "{}", done.stderr);
        // Somebody who knows better.
        shell(far, &format!("echo table > {own}/table"));
        let done = hosts.migrate(&lab, 0, &[&pid, &to, "--copy-files", "--shared-files", &log, "--dry-run"]);
        assert_eq!(done.code, 0, "{done:?}");
        let done = hosts.migrate(&lab, 0, &[&pid, &to, "--copy-files=written", "--max-downtime", "2s"]);
        fine(&done, &lab);
        let number: i32 = pid.parse().expect("a pid");
        assert!(far.runs(number) && !here.lives(number));
        // Its log there is what it wrote, without a gap.
        let whole = || shell(far, &format!("cat {log}")).lines().enumerate().all(|(n, line)| line == (n + 1).to_string());
        assert!(whole(), "{}", shell(far, &format!("head -n 3 {log}")));
    }

    /// A disk that fills up in the middle: it is said, the tree goes on where it was, and what was copied is gone.
    fn a_disk_that_fills_up() {
        let lab = Lab::new("moved-full");
        let (hosts, own) = hosts(&lab, &["size=100m", "size=100m,nr_inodes=30"]);
        let (here, far) = (&hosts.hosts[0], &hosts.hosts[1]);
        shell(here, &format!("mkdir {own}/data; cd {own}/data; echo table > ../table; for n in {{1..100}}; do echo $n > $n; done"));
        let before = picture(far, &own);
        let log = format!("{own}/log");
        let pid = python(&lab, here, WRITER, &[&own], || there(here, &log));
        let (text, data) = (pid.to_string(), format!("{own}/data"));
        let done = hosts.migrate(&lab, 0, &[&text, &far.address, "--copy-files", "--with-data", &data]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("No space left on device"), "{}", done.stderr);
        assert!(done.stderr.contains("goes on running here") && done.stderr.contains("holds what was sent until then"), "{}", done.stderr);
        assert!(here.runs(pid) && !far.lives(pid));
        let cleared = || shell(far, &format!("ls -A {own}")).trim() == "data";
        assert!(until(SOON, cleared), "{}", shell(far, &format!("ls -A {own}")));
        // Room is asked for before anything is sent.
        shell(far, &format!("rm -r {own}/data; mount -o remount,size=1m,nr_inodes=0 {own}"));
        shell(here, &format!("head -c 3000000 /dev/urandom > {own}/data/big"));
        assert_eq!(picture(far, &own).lines().count(), before.lines().count());
        let done = hosts.migrate(&lab, 0, &[&text, &far.address, "--copy-files", "--with-data", &data]);
        assert_eq!(done.code, 13, "{done:?}");
        assert!(done.stderr.contains("MiB are free there"), "{}", done.stderr);
        assert!(here.runs(pid));
    }

    /// The far end is killed while it builds files: what was there is there, as it was; and the next move clears up what it could not.
    fn killed_while_files_are_sent() {
        let lab = Lab::new("moved-killed");
        let (hosts, own) = hosts(&lab, &["size=100m", "size=100m"]);
        let (here, far) = (&hosts.hosts[0], &hosts.hosts[1]);
        shell(here, &format!("echo table > {own}/table; head -c 8000000 /dev/urandom > {own}/log; echo >> {own}/log"));
        shell(far, &format!("echo table > {own}/table; echo 'of somebody else' > {own}/log; touch -d 2020-01-01 {own}/log"));
        let before = picture(far, &own);
        let (log, spool) = (format!("{own}/log"), lab.path("spool").display().to_string());
        std::fs::create_dir(&spool).expect("folder");
        let pid = python(&lab, here, WRITER, &[&own], || shell(here, &format!("tail -n 1 {log} | head -c 9")).trim().parse::<u32>().is_ok());
        let text = pid.to_string();
        for all in [false, true] {
            let options = ["--copy-files=written", "--bandwidth", "1M", "--spool", &spool];
            let mut migration = hosts.migration(0, &[&[text.as_str(), &far.address][..], &options].concat());
            let mut child = migration.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("meio starts");
            assert!(until(SOON, || !shell(far, &format!("ls -A {own} | grep '^.meio' || true")).is_empty()), "nothing is built");
            let pids = agents(far);
            assert!(pids.len() >= 2, "nobody stands by: {pids:?}");
            let victims = if all { &pids[..] } else { &pids[..1] };
            // The shell of a login may end by itself.
            let victims: Vec<String> = victims.iter().map(ToString::to_string).collect();
            shell(far, &format!("kill -9 {} || true", victims.join(" ")));
            assert!(until(SOON, || child.try_wait().expect("wait").is_some()), "it does not end");
            assert!(here.runs(pid) && !far.lives(pid));
            if !all {
                // But for the times of the folder itself.
                let below = |text: &str| text.lines().filter(|line| !line.starts_with(". ")).map(str::to_owned).collect::<Vec<_>>();
                assert!(until(SOON, || below(&picture(far, &own)) == below(&before)), "{}\n{before}", picture(far, &own));
                continue;
            }
            assert_eq!(shell(far, &format!("cat {log}")), "of somebody else\n");
        }
        // What is a minute old and nobody's.
        shell(far, &format!("touch -d '1 hour ago' {spool}/.meio*"));
        let done = hosts.migrate(&lab, 0, &[&text, &far.address, "--copy-files=written", "--max-downtime", "2s", "--spool", &spool]);
        fine(&done, &lab);
        assert!(far.runs(pid) && !here.lives(pid));
        let left = || shell(far, &format!("ls -A {own} {spool} | grep meio || true"));
        assert!(until(SOON, || left().is_empty()), "{}", left());
        let size = shell(here, &format!("stat -c %s {log}"));
        let head = |host: &Host| shell(host, &format!("head -c {} {log} | sha256sum", size.trim()));
        assert!(until(Duration::from_secs(5), || head(here) == head(far)), "{size}");
    }
}
