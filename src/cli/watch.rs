//! `meio watch`.

use super::target::{self, Target};
use super::{Console, drawing::Drawing, dump::Level, figures, way};
use crate::dump::{self, Output, Track};
use crate::error::{Error, Kind, Result};
use crate::migrate::address::Address;
use crate::resource::socket::choice::Choice;
use crate::transport::Destination;
use crate::watch::gate::Held;
use crate::watch::protect::{self, Options, Outcome};
use crate::watch::state::{Guarantee, Limits, OnLoss};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Keep a tree of processes alive across the loss of its host
///
/// Logs in to the standby by SSH, where a meio is started that stays; copies the tree while it runs, and what has changed again and
/// again: each copy is an epoch. When nothing is heard of this host any more, by its link and by heartbeats, the standby goes on
/// from the last whole epoch.
///
/// With the guarantee "hold" connections go on with it, and nothing that a client was told is forgotten: what leaves the service
/// address waits until the standby has the epoch that it came of, which begins as soon as something waits. With "hot" nothing waits;
/// connections that there were are broken off, and new ones answered.
///
/// The service address (--vip) is here as long as the standby is heard: this host gives it up, also when meio was stopped, before
/// the standby may take it.
///
/// A link that is lost is made again: with the standby that is there, which goes on with what it has, or with a new one, which
/// gets everything while the tree runs. Until then nobody stands by, which is said, and the tree goes on as --on-standby-loss has it.
/// Where meio itself was killed, the same command goes on with the watch, and the tree stands still if the standby has taken over.
///
/// SIGUSR1 has an epoch begin at once. Ends when the tree does, or on ^C: then the tree goes on here, and nobody stands by.
///
/// With --json the last line has "epochs", "bytes", "stop_ms" (the longest stop), "median_stop_ms" and "p99_stop_ms" (the first copy
/// left out), "held" (packets that waited, how long, and how many were lost for want of room; null where none had to), "source" ("running", or
/// "stopped" when the standby has taken over), "host" and "warnings".
#[derive(clap::Args)]
#[command(after_long_help = "Examples:\n  meio watch --standby root@other --vip 10.0.0.10/24@eth0 1234")]
pub struct Watch {
    /// Root of the tree, or the name of a capsule
    #[arg(value_name = "PID|NAME", value_parser = target::parse)]
    target: Target,
    /// Where it goes on if this host is lost
    #[arg(long, value_name = "[USER@]HOST[:PORT]", value_parser = way::destination)]
    standby: Destination,
    /// What the watch is called [default: the capsule's name, or the pid]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What clients may rely on
    #[arg(long, value_name = "WHAT", default_value = "hold")]
    guarantee: Promise,
    /// An address that goes with the tree
    #[arg(long, value_name = "ADDRESS/LENGTH@INTERFACE", value_parser = way::address)]
    vip: Vec<Address>,
    /// Time between the beginnings of two epochs
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = figures::parse_time)]
    interval: Duration,
    /// The same, where the link does not carry more
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = figures::parse_time)]
    interval_max: Duration,
    /// After this silence on both paths the other host is taken for lost
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = figures::parse_time)]
    timeout: Duration,
    /// What to do here when nothing is heard of the standby, and it is not known whether it takes over
    #[arg(long, value_name = "WHAT", default_value = "hold")]
    on_standby_loss: Loss,
    /// A shell command that ends the other host, MEIO_HOST, and fails if it cannot: must succeed before the standby takes over, or
    /// this host goes on alone
    #[arg(long, value_name = "COMMAND")]
    fence: Option<String>,
    /// Let it have its pids in a fresh pid namespace there
    #[arg(long)]
    pid_namespace: bool,
    /// How memory is packed: none, or a zstd level from 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value = "1", value_parser = super::dump::level)]
    compress: Level,
    /// Where the standby keeps its copy, in place of memory
    #[arg(long, value_name = "FOLDER")]
    spool: Option<PathBuf>,
    /// How long to wait for every task to stand still
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = figures::parse_time)]
    freeze_timeout: Duration,
    #[command(flatten)]
    way: way::Way,
    #[command(flatten)]
    decide: super::decide::Decide,
}

/// See [`Guarantee`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Promise {
    /// What they were told is never taken back: what leaves the addresses waits until the standby has all that it came of
    Hold,
    /// Somebody answers: what clients were told since the last epoch may be forgotten
    Hot,
}

/// See [`OnLoss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Loss {
    /// Nobody answers here until that is known
    Hold,
    /// It goes on, at the risk that two answer
    Continue,
}

impl Watch {
    /// Watches, and tells how it ended.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let mut drawing = Drawing::new(*console);
        let outcome = protect::run(&self.options()?, &mut drawing)?;
        drawing.finish(&outcome.warnings);
        if console.json {
            console.json("result", result(&outcome));
        } else {
            console.result(&closing(&outcome));
        }
        Ok(super::done(&outcome.warnings))
    }

    fn limits(&self) -> Result<Limits> {
        const LEAST: Duration = Duration::from_millis(50);
        if self.timeout < LEAST || self.interval > self.interval_max || self.interval.is_zero() {
            let message = "--timeout must be 50 ms at least, and --interval more than nothing and no more than --interval-max";
            return Err(Error::new(Kind::Usage, message));
        }
        let guarantee = match self.guarantee {
            Promise::Hold => Guarantee::Hold,
            Promise::Hot => Guarantee::Hot,
        };
        if guarantee == Guarantee::Hold && self.vip.is_empty() {
            return Err(Error::new(Kind::Usage, "nothing can be held without an address that goes with the tree")
                .help("name it: --vip ADDRESS/LENGTH@INTERFACE; or --guarantee hot"));
        }
        let usual = Limits::default();
        let on_loss = match self.on_standby_loss {
            Loss::Hold => OnLoss::Hold,
            Loss::Continue => OnLoss::Continue,
        };
        let beat = usual.beat.min(self.timeout / 5);
        let (interval, interval_max) = (self.interval, self.interval_max);
        let interval_min = usual.interval_min.min(interval);
        let fence = self.fence.is_some();
        Ok(Limits { guarantee, on_loss, fence, beat, timeout: self.timeout, interval, interval_min, interval_max, ..usual })
    }

    fn options(&self) -> Result<Options> {
        let pid = self.target.pid()?;
        let capsule = self.target.name_of(pid);
        let mut decisions = self.decide.decisions();
        if self.guarantee == Promise::Hot {
            decisions.tcp = Choice::Close;
        }
        let dump = dump::Options {
            pid,
            capsule: capsule.clone(),
            output: Output::Stdout,
            kill: false,
            level: self.compress.0,
            freeze_timeout: self.freeze_timeout,
            decisions,
            live: Some(dump::MAX_PAUSE),
            track: Track::Auto,
            parent: None,
        };
        Ok(Options {
            name: self.name.clone().or(capsule).unwrap_or_else(|| pid.to_string()),
            dump,
            standby: self.standby.clone(),
            how: self.way.how(),
            addresses: self.vip.clone(),
            pid_namespace: self.pid_namespace,
            spool: self.spool.clone().unwrap_or_default(),
            limits: self.limits()?,
            fence: self.fence.clone(),
        })
    }
}

fn stop(outcome: &Outcome, part: f64) -> Duration {
    let mut stops = outcome.stops.clone();
    stops.sort();
    stops.get((stops.len() as f64 * part) as usize).copied().unwrap_or_default()
}

fn median(outcome: &Outcome) -> Duration {
    stop(outcome, 0.5)
}

fn result(o: &Outcome) -> serde_json::Value {
    json!({
        "command": "watch",
        "epochs": o.epochs,
        "bytes": o.bytes,
        "stop_ms": figures::ms(o.longest),
        "median_stop_ms": figures::ms(median(o)),
        "p99_stop_ms": figures::ms(stop(o, 0.99)),
        "held": o.held.as_ref().map(held),
        "source": if o.demoted { "stopped" } else { "running" },
        "host": o.host,
        "warnings": o.warnings,
    })
}

fn held(held: &Held) -> serde_json::Value {
    let (waits, lost) = (&held.waits, held.lost);
    json!({
        "packets": waits.count(),
        "median_ms": figures::ms(waits.quantile(0.5)),
        "p99_ms": figures::ms(waits.quantile(0.99)),
        "longest_ms": figures::ms(waits.longest()),
        "lost": lost,
    })
}

fn closing(o: &Outcome) -> String {
    let epochs = figures::count(o.epochs, "epoch", "epochs");
    let what = format!(
        "{epochs}, {} sent to {}; a stop took {} (median), {} at most",
        figures::bytes(o.bytes),
        o.host,
        figures::time(median(o)),
        figures::time(o.longest)
    );
    let what = match o.held.as_ref().filter(|held| held.waits.count() > 0) {
        Some(held) => format!("{what}; {held}"),
        None => what,
    };
    match o.demoted {
        true => format!("{} has taken over: the tree stands still here; {what}", o.host),
        false => format!("the watch is over, the tree goes on here, and nobody stands by; {what}"),
    }
}
