//! `meio run`.

use super::Console;
use crate::capsule::network::Network;
use crate::capsule::{self, Options, roster};
use crate::error::Result;
use serde_json::json;
use std::ffi::OsString;
use std::process::ExitCode;

/// Start a program in a capsule, with pids and IPC of its own
///
/// The program sees pids, System V and POSIX IPC, a host name, /proc, /dev/shm and /dev/mqueue of its own, so that all
/// its numbers can be had again on any machine. It is process 2; process 1 is a small init that reaps orphans. In the
/// foreground, which is the default, signals to meio reach the program, and meio ends as the program ends: with its exit
/// code, or 128 and the number of the signal that ended it. When the program ends, everything in the capsule does.
///
/// With --detach the program runs on in a session of its own; the name of the capsule is printed. dump, check --pid and
/// restore know a capsule by its name.
///
/// With --json the line has "name", "pid" (of the init), and "exit_code" unless it was detached.
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio run -- make -j4\n  meio run --name web -d -- python3 -m http.server\n  meio run --net veth=br0:10.0.0.2/24 -- nginx -g 'daemon off;'"
)]
pub struct Run {
    /// Name of the capsule [default: the name of the program]
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Option<String>,
    /// Network: the host's, none but a loop-back interface, or eth0 with an address, as a port of a bridge of the host
    #[arg(long, value_name = "host|none|veth=BRIDGE:ADDR/LEN", default_value = "host")]
    net: Network,
    /// Return as soon as the program runs, and print the name of the capsule
    #[arg(short, long)]
    detach: bool,
    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true, allow_hyphen_values = true, value_hint = clap::ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

fn name(text: &str) -> std::result::Result<String, String> {
    if roster::is_name(text) { Ok(text.to_owned()) } else { Err("letters, digits, . _ - and not only digits".into()) }
}

impl Run {
    /// Starts the capsule and serves it.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let options = Options { name: self.name.clone(), network: self.net.clone(), detach: self.detach, command: self.command.clone() };
        let running = capsule::run(&options)?;
        let (name, pid) = (running.entry.name.clone(), running.entry.pid);
        if self.detach {
            if console.json {
                console.json("result", json!({ "command": "run", "name": name, "pid": pid }));
            } else {
                console.result(&name);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let code = running.serve()?;
        if console.json {
            console.json("result", json!({ "command": "run", "name": name, "pid": pid, "exit_code": code }));
        }
        Ok(ExitCode::from(code as u8))
    }
}
