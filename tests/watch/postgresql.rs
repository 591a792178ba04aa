//! A database whose files are in memory that is its own: they go with every epoch, like the memory of its processes, and are neither
//! newer nor older than that wherever it goes on.

use super::control::{meio, standing, status};
use super::{SLOW, Watched, has_address, noted, two};
use crate::lab::hosts::{Host, SERVICE};
use crate::lab::{Lab, until};
use crate::programs::databases::{SQL, SUMS};
use crate::programs::net::{Client, listens, watched};
use crate::programs::{WORK, installed, plainly, services};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// What it writes, and what its processes share, is in file systems of a mount namespace of its own.
const START: &str = r#"set -e
mount -t tmpfs -o size=256m database /mnt
mount -t tmpfs -o mode=1777 shm /dev/shm
install -d -o 65534 -g 65534 -m 700 /mnt/data
cd /mnt/data
as="setpriv --reuid=65534 --regid=65534 --clear-groups env LC_ALL=C"
$as "$1/initdb" -D /mnt/data -A trust --no-sync --no-instructions --wal-segsize=1
echo 'host all all all trust' > pg_hba.conf
exec $as "$1/postgres" -D /mnt/data -k '' -c "listen_addresses=$2" -c fsync=off -c full_page_writes=off -c shared_buffers=8MB \
    -c max_wal_size=16MB -c max_connections=20 -c autovacuum=off -c jit=off"#;

/// What has not changed of its files, some hundred of which are small, is not sent with every epoch.
fn epochs(host: &Host) {
    const MANY: u64 = 30;
    let number = |one: &Value, name: &str| one[name].as_u64().expect("a number");
    let before = status(host);
    let mut after = Value::Null;
    let enough = || {
        after = status(host);
        number(&after, "epochs") >= number(&before, "epochs") + MANY
    };
    assert!(until(WORK, enough), "{after}");
    let each = (number(&after, "bytes") - number(&before, "bytes")) / (number(&after, "epochs") - number(&before, "epochs"));
    println!(
        "\nhold: postgresql: {} KiB an epoch, the last stop {} ms, one every {} ms",
        each >> 10,
        after["pause_ms"],
        after["interval_ms"]
    );
    // Where the kernel does not count calls, all of them are.
    assert!(each < 4 << 20 || !Path::new("/sys/kernel/tracing").exists(), "{each} bytes an epoch: {after}");
}

crate::alone! {
    /// It goes there, back, and there again when its host is lost: over connections that stay, everything that was acknowledged is
    /// there, money was only moved, and a transaction that was open all the time can still be committed.
    fn it_keeps_what_it_acknowledged() {
        let mut lab = Lab::new("watch-postgresql");
        let mut hosts = two(&lab);
        let bin = services::postgresql();
        let arguments = ["-m", "--propagation", "private", "bash", "-c", START, "start", bin.to_str().expect("a path"), SERVICE];
        let pid = hosts.hosts[0].start(&lab, "unshare", &arguments);
        listens(&lab, &format!("{SERVICE}:5432"));
        let host = format!("PGHOST={SERVICE}");
        let reach = [host.as_str(), "PGUSER=nobody", "PGDATABASE=postgres"];
        let ready = until(WORK, || Command::new("pg_isready").args(["-q", "-h", SERVICE]).status().is_ok_and(|s| s.success()));
        assert!(ready, "{}", lab.log());
        let pgbench = bin.join("pgbench").display().to_string();
        plainly(&lab, "env", &[&reach[..], &[&pgbench, "-q", "-i", "-s", "1"]].concat());
        let load = Client::start(&lab, "load", Command::new("env").args(reach).arg(&pgbench).args(["-n", "-c", "4", "-j", "2", "-T", "100000"]));
        let mut python = Command::new("env");
        python.args(reach).arg(installed("python3"));
        let client = Client::python(&lab, &mut python, SQL, &["2", "quick"]);
        let mut first = Some(Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat()));
        watched(&mut lab, client, 60, 3, |lab, step| {
            let mut watched = first.take().unwrap_or_else(|| Watched::with(lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat()));
            standing(&hosts.hosts[0], "protected");
            if step == 0 {
                epochs(&hosts.hosts[0]);
            }
            if step < 2 {
                let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
                let (code, said) = meio(here, &["switchover", "web", "--json"]);
                assert_eq!(code, 0, "{said}\n{}\n{}", watched.said(), noted(&hosts));
                let ended = watched.meio.wait().expect("it ends");
                assert!(matches!(ended.code(), Some(0 | 3)), "{}", watched.said());
                println!("\nhold: postgresql goes over: {}", said.trim());
                let (code, said) = meio(there, &["unwatch", "web"]);
                assert_eq!(code, 0, "{said}");
                hosts.hosts.swap(0, 1);
            } else {
                hosts.wire(0, false);
                hosts.hosts[0].fail();
                let _ = watched.meio.wait();
                let mut told = String::new();
                let taken = until(WORK, || {
                    told = noted(&hosts);
                    told.contains("taken over in ")
                });
                assert!(taken && has_address(&hosts.hosts[1]), "nobody takes over: {}\n{told}\n{}", watched.said(), lab.log());
                println!("\nhold: postgresql: {}", told.lines().find(|line| line.contains("taken over in ")).unwrap_or_default());
            }
        });
        let said = load.end(&lab);
        assert!(!said.contains("rror") && !said.contains("abort"), "{said}");
        assert_eq!(plainly(&lab, "env", &[&reach[..], &["psql", "-At", "-c", SUMS]].concat()), "t|t|t\n", "{said}");
        assert!(hosts.hosts[1].runs(pid));
    }
}
