//! Services: trees of processes that talk to each other and to clients over unix sockets, shared memory and signals.

use super::{WORK, finish, installed, plainly, read, through, write};
use crate::lab::{Lab, Running, SOON, observe, until};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Runs a command in the test's folder and gives what it printed, whatever became of it.
fn ask(lab: &Lab, program: &str, arguments: &[&str]) -> String {
    let out = Command::new(installed(program)).args(arguments).current_dir(lab.path("")).output().expect(program);
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Waits until a question is answered with a text that `wanted` is part of.
fn expect(lab: &Lab, wanted: &str, question: impl Fn() -> String) {
    let mut last = String::new();
    let come = until(SOON, || {
        last = question();
        last.contains(wanted)
    });
    assert!(come, "{wanted:?} does not come: {last}\n{}", lab.log());
}

/// A bus, a service on it, and a monitor that hears everything.
const BUS: &str = r#"
dbus-daemon --session --nofork --nopidfile --address=unix:path=$PWD/bus & bus=$!
until [ -S bus ]; do sleep 0.02; done
export DBUS_SESSION_BUS_ADDRESS=unix:path=$PWD/bus
dbus-test-tool echo --name=org.meio.Echo & echo=$!
dbus-monitor --session interface=org.meio.Test > heard & monitor=$!
touch up
until [ -e stop ]; do sleep 0.02; done
kill $monitor $echo $bus
wait
echo done > done
"#;

/// Requests are counted in the memory of each worker; a slow one is under way while the service is moved.
const APP: &str = r#"
import os, time
count = 0
def application(environ, start_response):
    global count
    count += 1
    if environ['PATH_INFO'] == '/slow':
        time.sleep(1.5)
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [f'worker {os.getpid()} count {count}\n'.encode()]
"#;

/// A master with two workers behind a unix socket, and two clients in the same tree that ask without end.
const WEB: &str = r#"
uwsgi --plugin python3 --http-socket $PWD/web --wsgi-file app.py --master --processes 2 --need-app --die-on-term & web=$!
until [ -S web ]; do sleep 0.02; done
ask() { curl -sS --max-time 50 --unix-socket web http://localhost/$1; }
until [ -e stop ]; do ask slow >> slow || echo failed >> slow; done & slow=$!
n=0
until [ -e stop ]; do
    ask >> answers || echo failed >> answers
    n=$((n + 1)); echo $n > asked
done
wait $slow
ask last > last
kill $web
wait $web
echo done > done
"#;

/// A cluster with a transaction that is open all the time, and a load that moves money between accounts.
const CLUSTER: &str = r#"
export PGHOST=$PWD PGDATABASE=postgres PATH=$BIN:$PATH
postgres -D data -k "$PWD" -c listen_addresses= -c fsync=off -c shared_buffers=16MB & cluster=$!
until pg_isready -q; do sleep 0.05; done
pgbench -q -i -s 1 2> init
psql -q -c 'create table kept (line text)'
mkfifo say
psql -q -v ON_ERROR_STOP=1 < say & transaction=$!
exec 9> say
echo 'begin; insert into kept values (pg_backend_pid());' >&9
pgbench -n -c 3 -j 1 -T 1000 > load 2>&1 9>&- & load=$! # else psql never sees the end of its input
touch up
until [ -e stop ]; do sleep 0.05; done
echo "insert into kept values ('after'); commit;" >&9
exec 9>&-
wait $transaction; echo "transaction $?" > codes
kill $load; wait $load
psql -At -c 'select count(*) from kept' > kept
psql -At -c 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history), (select count(*) > 20 from pgbench_history)' > sums
kill -INT $cluster; wait $cluster; echo "cluster $?" >> codes
echo done > done
"#;

/// A container without an engine: a shell as the first process of its namespaces, and cron.
const CONTAINER: &str = r#"
hostname box
mount -t tmpfs none /var/spool/cron
mkdir /var/spool/cron/crontabs
mount -t tmpfs none /run
echo "* * * * * echo fired >> $PWD/fired" | crontab -
ip link set lo up 2>/dev/null
cron -f & cron=$!
n=0
until [ -e stop ]; do n=$((n + 1)); echo "$$ $(hostname) $n" >> ticks; sleep 0.05; done
kill $cron; wait $cron
ls /proc | grep -c '^[0-9]' > alone
cat /var/spool/cron/crontabs/root > table
echo done > done
"#;

/// Compiles every file of a library and links it, as its own makefile would.
const MAKEFILE: &str = "
SOURCES := $(wildcard $(LIB)/common/*.c $(LIB)/compress/*.c $(LIB)/decompress/*.c $(LIB)/dictBuilder/*.c)
OBJECTS := $(notdir $(SOURCES:.c=.o))
VPATH := $(LIB)/common:$(LIB)/compress:$(LIB)/decompress:$(LIB)/dictBuilder
all: libzstd.so
libzstd.so: $(OBJECTS)
\t$(CC) -shared -o $@ $(sort $^)
%.o: %.c
\t$(CC) -O1 -fPIC -DZSTD_DISABLE_ASM -c -o $@ $<
";

/// The C sources of zstd, which every build of meio brings.
fn zstd() -> PathBuf {
    let out = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--offline", "--filter-platform=x86_64-unknown-linux-gnu"])
        .current_dir(crate::ROOT)
        .output();
    let out = out.expect("cargo");
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("metadata");
    let packages = metadata["packages"].as_array().expect("packages");
    let zstd = packages.iter().find(|p| p["name"] == "zstd-sys").expect("zstd-sys");
    let manifest = PathBuf::from(zstd["manifest_path"].as_str().expect("path"));
    manifest.with_file_name("zstd").join("lib")
}

/// Where the programs of postgresql are.
pub fn postgresql() -> PathBuf {
    let bin = std::fs::read_dir("/usr/lib/postgresql").expect("postgresql is not installed");
    bin.flatten().map(|e| e.path().join("bin")).find(|b| b.join("postgres").exists()).expect("postgres")
}

/// Makes a new database cluster in the folder `data`: what its server is to be run by, and where its programs are.
pub fn cluster(lab: &Lab) -> (Vec<&'static str>, PathBuf) {
    let bin = postgresql();
    // It refuses to run as root.
    const USER: u32 = 65534;
    std::fs::set_permissions(lab.path(""), PermissionsExt::from_mode(0o755)).expect("mode");
    std::os::unix::fs::chown(lab.path(""), Some(USER), Some(USER)).expect("owner");
    // The way to the folder need not be open to everybody.
    const ENTER: [&str; 2] = ["--inh-caps=+dac_override,+dac_read_search", "--ambient-caps=+dac_override,+dac_read_search"];
    let as_user = ["--reuid=65534", "--regid=65534", "--clear-groups", ENTER[0], ENTER[1], "env", "LC_ALL=C"].to_vec();
    let initdb = bin.join("initdb").display().to_string();
    plainly(lab, "setpriv", &[&as_user[..], &[&initdb, "-D", "data", "-A", "trust", "--no-sync"]].concat());
    (as_user, bin)
}

crate::alone! {
    fn tmux_with_two_panes_and_an_editor() {
        let mut lab = Lab::new("tmux");
        write(&lab, "note", "one\n");
        let tmux = |lab: &Lab, arguments: &[&str]| ask(lab, "tmux", &[&["-S", "socket", "-f", "/dev/null"], arguments].concat());
        let vim = installed("vim").display().to_string();
        let counter = "n=0; while :; do n=$((n+1)); echo count $n; echo $n > count; sleep 0.05; done";
        let said = tmux(&lab, &["new-session", "-d", "-x", "80", "-y", "24", &format!("{vim} -u NONE note")]);
        assert_eq!(said, "");
        assert_eq!(tmux(&lab, &["split-window", "-d", counter]), "");
        expect(&lab, "one", || tmux(&lab, &["capture-pane", "-p", "-t", "0.0"]));
        tmux(&lab, &["send-keys", "-t", "0.0", "Atwo"]);
        expect(&lab, "onetwo", || tmux(&lab, &["capture-pane", "-p", "-t", "0.0"]));
        let server = tmux(&lab, &["display-message", "-p", "#{pid}"]).trim().parse().expect("pid of the server");
        let mut running = Running::of(&lab, server);
        let mut seen = 0;
        let count = |lab: &Lab| read(lab, "count").trim().parse::<u32>().unwrap_or(0);
        through(
            &mut lab,
            &mut running,
            |lab, _| {
                let goes_on = count(lab) > seen + 3;
                seen = if goes_on { count(lab) } else { seen };
                goes_on
            },
            |_| false,
        );
        // The editor still holds what was typed and not saved, and takes more of it.
        tmux(&lab, &["send-keys", "-t", "0.0", "three", "Escape", ":w", "Enter"]);
        expect(&lab, "onetwothree", || read(&lab, "note"));
        let now = count(&lab);
        assert!(until(SOON, || count(&lab) > now + 3), "the second pane stands still");
        tmux(&lab, &["resize-window", "-x", "100", "-y", "30"]);
        expect(&lab, "100", || tmux(&lab, &["display-message", "-p", "#{window_width}"]));
        tmux(&lab, &["kill-server"]);
        finish(&lab, &mut running, |_| true);
    }

    fn dbus_daemon_with_two_clients() {
        let mut lab = Lab::new("dbus");
        write(&lab, "bus.sh", BUS);
        let mut running = lab.spawn(&installed("bash"), &["bus.sh"]);
        let address = format!("unix:path={}", lab.path("bus").display());
        let say = |lab: &Lab, text: &str| {
            let bus = format!("--bus={address}");
            let text = format!("string:{text}");
            ask(lab, "dbus-send", &[&bus, "--print-reply", "--dest=org.meio.Echo", "/here", "org.meio.Test.Say", &text])
        };
        assert!(until(SOON, || lab.path("up").exists()), "{}", lab.log());
        let mut reached = 0;
        through(
            &mut lab,
            &mut running,
            |lab, step| {
                reached = step;
                let words = format!("step-{step}");
                say(lab, &words).contains("method return") && until(SOON, || read(lab, "heard").contains(&words))
            },
            |lab| lab.path("done").exists(),
        );
        expect(&lab, "method return", || say(&lab, "at-last"));
        expect(&lab, "at-last", || read(&lab, "heard"));
        assert_eq!(reached, 2);
        write(&lab, "stop", "");
        finish(&lab, &mut running, |lab| lab.path("done").exists());
    }

    fn uwsgi_behind_a_unix_socket() {
        let mut lab = Lab::new("uwsgi");
        write(&lab, "app.py", APP);
        write(&lab, "web.sh", WEB);
        let mut running = lab.spawn(&installed("bash"), &["web.sh"]);
        let asked = |lab: &Lab| read(lab, "asked").trim().parse::<u32>().unwrap_or(0);
        let mut seen = 0;
        through(
            &mut lab,
            &mut running,
            |lab, _| {
                let goes_on = asked(lab) > seen + 5;
                seen = if goes_on { asked(lab) } else { seen };
                goes_on
            },
            |lab| lab.path("done").exists(),
        );
        assert!(until(WORK, || asked(&lab) > seen + 5), "no answers any more\n{}", lab.log());
        write(&lab, "stop", "");
        finish(&lab, &mut running, |lab| lab.path("done").exists());
        let answers = ["answers", "slow", "last"].map(|name| read(&lab, name)).concat();
        assert!(answers.lines().all(|l| l.starts_with("worker ")), "{answers}\n{}", lab.log());
        // Each worker counted on from where it was, and no request was answered twice or by a new worker.
        let mut workers = std::collections::BTreeMap::<&str, Vec<usize>>::new();
        for words in answers.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
            workers.entry(words[1]).or_default().push(words[3].parse().expect("a count"));
        }
        for (worker, counts) in &mut workers {
            counts.sort_unstable(); // the two clients write in their own time
            assert!(counts.iter().copied().eq(1..=counts.len()), "worker {worker} lost its memory: {counts:?}");
        }
        assert!(workers.len() <= 2 && !read(&lab, "slow").is_empty(), "{workers:?}");
    }

    fn postgresql_with_an_open_transaction() {
        let mut lab = Lab::new("postgresql");
        write(&lab, "cluster.sh", CLUSTER);
        let (as_user, bin) = cluster(&lab);
        let path = format!("BIN={}", bin.display());
        let mut running = lab.spawn(&installed("setpriv"), &[&as_user[..], &[&path, "bash", "cluster.sh"]].concat());
        assert!(until(WORK, || lab.path("up").exists()), "{}", lab.log());
        let mut begin = std::time::Instant::now();
        through(
            &mut lab,
            &mut running,
            |_, _| {
                let worked = begin.elapsed() > Duration::from_millis(700);
                begin = if worked { std::time::Instant::now() } else { begin };
                worked
            },
            |lab| lab.path("done").exists(),
        );
        std::thread::sleep(Duration::from_millis(500));
        write(&lab, "stop", "");
        finish(&lab, &mut running, |lab| lab.path("done").exists());
        let all = format!("{}\n{}", read(&lab, "load"), lab.log());
        assert_eq!(read(&lab, "kept"), "2\n", "{all}");
        assert_eq!(read(&lab, "sums"), "t|t|t\n", "{all}");
        assert_eq!(read(&lab, "codes"), "transaction 0\ncluster 0\n", "{all}");
    }

    fn container_with_cron() {
        let mut lab = Lab::new("container");
        write(&lab, "container.sh", CONTAINER);
        let mut running = lab.spawn(&installed("unshare"), &["-piumn", "--fork", "--mount-proc", "bash", "container.sh"]);
        let ticks = |lab: &Lab| read(lab, "ticks").lines().count();
        let mut seen = 0;
        through(
            &mut lab,
            &mut running,
            |lab, _| {
                let goes_on = ticks(lab) > seen + 5;
                seen = if goes_on { ticks(lab) } else { seen };
                goes_on
            },
            |lab| lab.path("done").exists(),
        );
        let before = read(&lab, "fired").lines().count();
        let fires = until(Duration::from_secs(100), || read(&lab, "fired").lines().count() > before);
        assert!(fires, "cron does nothing any more\n{}", lab.log());
        write(&lab, "stop", "");
        finish(&lab, &mut running, |lab| lab.path("done").exists());
        let lines = read(&lab, "ticks");
        let right = lines.lines().enumerate().all(|(n, line)| line == format!("1 box {}", n + 1));
        assert!(right, "{lines}");
        assert_eq!(read(&lab, "table").lines().last().map(|l| l.ends_with("fired")), Some(true), "{}", read(&lab, "table"));
        // The shell, who looks, and perhaps what cron has left.
        assert!(matches!(read(&lab, "alone").trim(), "2" | "3" | "4" | "5" | "6"), "{}", read(&lab, "alone"));
    }

    fn parallel_make_of_a_c_library() {
        let mut lab = Lab::new("make");
        write(&lab, "Makefile", MAKEFILE);
        let library = format!("LIB={}", zstd().display());
        for folder in ["plain", "moved"] {
            std::fs::create_dir(lab.path(folder)).expect("folder");
        }
        plainly(&lab, "make", &["-s", "-j4", "-C", "plain", "-f", "../Makefile", &library]);
        let mut running = lab.spawn(&installed("make"), &["-s", "-j4", "-C", "moved", "-f", "../Makefile", &library]);
        let objects = |lab: &Lab| std::fs::read_dir(lab.path("moved")).expect("folder").count();
        let mut seen = 0;
        for _ in 0..5 {
            let goes_on = until(WORK, || objects(&lab) > seen + 2);
            assert!(goes_on && observe::state(running.pid).is_some(), "{}", lab.log());
            let image = lab.dump(&mut running, &["--kill"]);
            seen = objects(&lab);
            lab.restore(&image, &mut running, &[]);
        }
        finish(&lab, &mut running, |lab| lab.path("moved/libzstd.so").exists());
        assert_eq!(lab.log(), "", "make said something");
        for entry in std::fs::read_dir(lab.path("plain")).expect("folder").flatten() {
            let moved = lab.path("moved").join(entry.file_name());
            assert!(std::fs::read(entry.path()).ok() == std::fs::read(moved).ok(), "{:?} differs", entry.file_name());
        }
    }
}
