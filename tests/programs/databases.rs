//! Databases with clients over TCP.

use super::net::{Client, end, listens, under_load};
use super::{installed, plainly, services};
use crate::lab::Lab;
use nix::sys::signal::Signal;
use std::process::Command;

pub const SQL: &str = include_str!("clients/sql.py");

/// Money is only moved, and everything that was noted was moved.
pub const SUMS: &str = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), (select \
                    sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history), (select count(*) > 100 \
                    from pgbench_history)";

crate::alone! {
    fn postgresql_over_tcp() {
        let mut lab = Lab::new("postgresql-tcp");
        let (as_user, bin) = services::cluster(&lab);
        let postgres = bin.join("postgres").display().to_string();
        let options = ["-D", "data", "-k", "", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=16MB"];
        let mut running = lab.spawn(&installed("setpriv"), &[&as_user[..], &[&postgres], &options].concat());
        listens(&lab, "127.0.0.1:5432");
        let reach = ["PGHOST=127.0.0.1", "PGUSER=nobody", "PGDATABASE=postgres"];
        let psql = |lab: &Lab, question| plainly(lab, "env", &[&reach[..], &["psql", "-At", "-c", question]].concat());
        let ready = crate::lab::until(crate::lab::SOON, || Command::new("pg_isready").args(["-q", "-h", "127.0.0.1"]).status().is_ok_and(|s| s.success()));
        assert!(ready, "{}", lab.log());
        let pgbench = bin.join("pgbench").display().to_string();
        plainly(&lab, "env", &[&reach[..], &[&pgbench, "-q", "-i", "-s", "1"]].concat());
        let load = ["-n", "-c", "4", "-j", "2", "-T", "1000"];
        let load = Client::start(&lab, "load", Command::new("env").args(reach).arg(&pgbench).args(load));
        let mut python = Command::new("env");
        python.args(reach).arg(installed("python3"));
        let client = Client::python(&lab, &mut python, SQL, &["3"]);
        under_load(&mut lab, &mut running, client, 150);
        let said = load.end(&lab);
        assert!(!said.contains("rror") && !said.contains("abort"), "{said}");
        assert_eq!(psql(&lab, SUMS), "t|t|t\n", "{said}");
        end(&lab, &mut running, Signal::SIGINT);
    }
}
