//! `meio switchover`: the other host takes over, since somebody wants it to.

use super::status::{name, nobody};
use super::{Console, figures, way};
use crate::error::Result;
use crate::sys::signal;
use crate::transport::Destination;
use crate::watch::handover;
use crate::watch::switch::Switched;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

/// Have the standby take over now, without any loss
///
/// For work on this host, say. What has changed is copied while the tree runs; then it stands still, the rest goes to the standby,
/// and it goes on there from exactly there, with its connections, its addresses, and what comes for it meanwhile. When the standby
/// says that it runs, it is ended here, and so is the watch.
///
/// If anything comes in between until the standby is told to let it run, it goes on here, as before. If the standby is lost
/// just then, it stands still here (exit code 16): when the standby is heard again, that has the say; meio unwatch has it go on here.
///
/// With a witness the standby asks it before it lets the tree run. Does it not answer, the tree goes on here; while it is known not to
/// answer, this says so, and nothing is touched.
///
/// Nobody stands by for it on the other host: end the watch there with meio unwatch, and begin one from there with meio watch.
///
/// Where several hosts stand by, --to says which of them takes over. It gets a copy of everything first and is the only one that stands
/// by meanwhile; then it takes over likewise, and the others stand by for it, this host too: meio watch goes on here. If
/// it does not take over, all stand by here again.
///
/// With --json the line has "name", "host" (where it runs now), "generation", "epoch" ({series, number}), "frozen_ms" (for how long
/// nobody ran), and "steps", a list of [name, milliseconds].
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio switchover web\n  meio switchover web --to other")]
pub struct Switchover {
    /// Name of the watch
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// The host that is to take over: nothing is done if it does not stand by; to be named where several do
    #[arg(long, value_name = "HOST", value_parser = way::destination)]
    to: Option<Destination>,
}

impl Switchover {
    /// Waits until it runs there.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        signal::catch();
        let to = self.to.as_ref().map(|to| to.host.clone());
        let Some((switched, several)) = handover::over(&self.name, to)? else { return Err(nobody(&self.name)?) };
        let Switched { host, generation, epoch, frozen_ms, steps } = switched;
        if console.json {
            let result = json!({
                "command": "switchover", "name": self.name, "host": host, "generation": generation, "epoch": epoch,
                "frozen_ms": frozen_ms, "steps": steps,
            });
            console.json("result", result);
        } else {
            let time = |ms: f64| figures::time(Duration::from_secs_f64(ms.max(0.0) / 1e3));
            let each: Vec<String> = steps.iter().map(|(name, ms)| format!("{name} {}", time(*ms))).collect();
            let frozen = format!("frozen {} ({})", time(frozen_ms), each.join(", "));
            let next = if several { "the others are to stand by for it there" } else { "nobody stands by for it there yet" };
            console.result(&format!("{} runs on {host} now; {frozen}; {next}", self.name));
        }
        Ok(ExitCode::SUCCESS)
    }
}
