//! `meio witness`.

use super::Console;
use super::console::line;
use super::drawing::Drawing;
use crate::error::Result;
use crate::sys::manager::Manager;
use crate::sys::signal;
use crate::watch::witness::{PORT, Server, Store, text};
use serde_json::json;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

/// Say which host may go on, for watches of other hosts
///
/// Two hosts that lose each other cannot tell whether the other one is lost or the way to it. A witness on a third host can: it
/// keeps a number for each service, the generation, and which of the two has it. A standby that wants to take over, and a primary
/// that wants to go on alone, both ask for the next one; only one of them gets it. Several standbys are one to it: the one asks
/// that the others have chosen. The service itself, its data and its clients
/// have nothing to do with the witness: while it is away a healthy pair goes on as before, and nobody takes over.
///
/// Each service has a key, which keeps others from asking. meio watch --witness HOST logs in to HOST by SSH for it, as the user whose
/// witness works there; where it cannot, --add prints the key, which meio watch --witness-key FILE takes. Both ends of the watch ask by UDP datagrams that are
/// sealed with it; what is forged or sent again does nothing.
///
/// A primary that lives asks each tenth of a second, which costs no disk. A generation is on the disk before anybody is told that he
/// has it; a witness that was killed or lost its power begins where it was, and grants nothing to a standby until a primary that
/// lives has had time to be heard again. Its folder (/var/lib/meio/witness, or ~/.local/state/meio/witness for who is not
/// root) must not be taken away, or an older copy be put in its place, while watches ask it.
///
/// One witness serves many services. It needs no privilege. It ends on ^C or SIGTERM. meio-witness.service has systemd keep one, as a user
/// of its own; what root has --add make in its folder belongs to that user, too. It tells a service manager (sd_notify(3)) that it
/// listens, how many services it knows, and that it lives.
///
/// With --json --add the line has "name" and "key".
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio witness\n  ssh root@third meio witness --add web >web.key\n  meio watch --standby root@other --witness third --witness-key web.key --vip 10.0.0.10/24@eth0 --name web 1234"
)]
pub struct Witness {
    /// Where to listen [default: port 26346 of all addresses]
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = ["add", "remove"])]
    listen: Option<SocketAddr>,
    /// Where it keeps keys and generations
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Make a key for a service, if there is none, and print it; a witness that is at work takes notice
    #[arg(long, value_name = "NAME", conflicts_with = "remove")]
    add: Option<String>,
    /// Take the key of a service away: who has it is not answered any more
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
}

impl Witness {
    /// Serves, or changes which services there are.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let store = self.dir.clone().map_or_else(Store::open, Store::at)?;
        if let Some(name) = &self.add {
            let key = text(&store.add(name)?);
            if console.json {
                console.json("result", json!({ "command": "witness", "name": name, "key": key }));
            } else {
                console.result(&key);
            }
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(name) = &self.remove {
            store.remove(name)?;
            if console.json {
                console.json("result", json!({ "command": "witness", "name": name, "removed": true }));
            }
            return Ok(ExitCode::SUCCESS);
        }
        signal::catch();
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let mut server = Server::open(store, self.listen.unwrap_or(any))?;
        if !console.quiet && !console.json {
            line(true, &format!("the witness listens on {}; services: {}", server.at()?, server.services()));
        }
        let mut drawing = Drawing::new(*console);
        let done = server.serve(&Manager::of_environment(), &mut drawing);
        drawing.finish(&[]);
        done?;
        if console.json {
            console.json("result", json!({ "command": "witness", "services": server.services(), "answered": server.count().answered }));
        }
        Ok(ExitCode::SUCCESS)
    }
}
