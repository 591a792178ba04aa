//! `meio watch`.

use super::console::line;
use super::target::{self, Target};
use super::{Console, config, drawing::Drawing, dump::Level, figures, way};
use crate::capsule::{self, Running};
use crate::dump::{self, Output, Track};
use crate::error::{Context, Error, Kind, Result};
use crate::migrate::address::Address;
use crate::progress::Report;
use crate::resource::socket::choice::Choice;
use crate::transport::Destination;
use crate::watch::change::MOST;
use crate::watch::comeback::{self, Stood};
use crate::watch::gate::Held;
use crate::watch::local;
use crate::watch::protect::{self, Options, Witness};
use crate::watch::state::{Acks, Guarantee, Limits, OnLoss};
use serde_json::json;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
/// Two hosts that lose each other cannot tell whether the other one is lost or the way to it. Without more the standby takes over
/// then, and this host answers nobody until it is known what has become of the standby (--on-standby-loss hold) or goes on at the
/// risk that two answer (continue). With --witness a third host says who may go on, see meio-witness(1): only one of the two
/// does, this one as long as it lives, also when the standby is lost; --on-standby-loss says what happens here when the standby is
/// lost and the witness does not answer. Without an answer of the witness the standby never takes over. The witness must be there
/// when a watch begins; later its loss alone changes nothing. --fence ends the other host before anybody goes on: the standby asks
/// the witness first and must then succeed with the command, this host uses it only where the witness does not answer.
///
/// With --standby more than once all of these hosts have each epoch, which is packed once, and say to each other which of them takes
/// over: the one that has the newest, the earlier one of several, and only with as many of them as are needed (--ack) to know what
/// clients were told. They reach each other by UDP, and the one that does not take over by SSH the one that does, with the keys that are
/// usual there or at the same paths as here: then it stands by for that one. One of them that is lost or slow delays nothing as long as
/// enough others are there. One that comes back with nothing, or is too far behind, gets a copy of everything beside them. When two
/// of three hosts are lost nobody takes over before one is back. All others that are there stand by for the one that has taken over, and
/// this host does when it is back: by a call by SSH to that one, which calls them first where they do not. Each that comes has the watch
/// begin anew: until all have a copy the tree is unprotected. meio add-standby and meio remove-standby change who stands by, where
/// the tree runs.
///
/// Several standbys with --witness need both to take over: as many of them as without it, who say which one it is and that nothing
/// is lost, and the leave of the witness, which does not stand in for one of them that is missing. What it adds is that this host
/// goes on alone when too few standbys are left to it, and that nobody answers twice then. Its loss alone changes nothing; while it
/// does not answer nobody takes over, and nobody goes on alone. With --fence the one that takes over ends this host first, when
/// the others, and the witness, let it; this host never ends one of several standbys.
///
/// A link that is lost is made again: with the standby that is there, which goes on with what it has, or with a new one, which
/// gets everything while the tree runs. Until then nobody stands by, which is said, and the tree goes on as --on-standby-loss has it.
/// Where meio itself was killed, the same command goes on with the watch.
///
/// When the standby has taken over, and this host or the way to it comes back, the tree stands still here as soon as that is known,
/// and is ended when it is heard that it runs there: without a word to its clients, and nothing of it is left. Then this host
/// stands by for it, as the other one did before: it calls that one, which protects what it runs with the options that are given
/// here. When it has taken over again, and the other one is back, that one stands by again. The same command does so after this
/// host has booted again; it starts nothing while it is not known who runs it. Where the other host does not have it any more
/// either, meio unwatch forgets that. --keep-demoted leaves the tree standing still, to be looked at, and nobody stands by.
///
/// SIGUSR1 has an epoch begin at once, as meio checkpoint does; meio status says how things stand. Ends when the tree does, on meio
/// unwatch, or on ^C: then the tree goes on here, and nobody stands by.
///
/// A tree that does hardly anything is copied less and less often, up to --interval-max: one that does nothing at all, or with hold one
/// that runs for less than a hundredth of the time. It is looked at twenty times a second, and output that waits has it copied at once,
/// as always. One that would stand still for more than a twentieth of its time is copied less often likewise.
///
/// With a command in place of a pid that is started in a capsule of its own, as by meio run --detach, and watched; when it ends, so
/// does meio, with its exit code, or 128 and the number of the signal that ended it.
///
/// With --dir nobody stands by: images of the tree are kept in a folder, each of what has changed since the one before, and now
/// and then a whole one in the place of the last, so that no more than twice as many as --keep says are there at any time. meio
/// restore FOLDER has it go on from the newest one that is whole, also after a power cut.
///
/// With --json the last line has "epochs", "bytes", "stop_ms" (the longest stop), "median_stop_ms" and "p99_stop_ms" (the first copy
/// left out), "held" (packets that waited, how long, and how many were lost for want of room; null where none had to), "source"
/// ("running" or "ended", also where it was taken over here again, "replaced" when the standby has taken over, "stopped" when the tree stands still here then, or "switched" when that was wanted), "host" (null with --dir), "exit_code" (of a command that has
/// ended) and "warnings".
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio watch --standby root@other --vip 10.0.0.10/24@eth0 1234\n  meio watch --standby root@other --standby root@third --vip 10.0.0.10/24@eth0 1234\n  meio watch --standby root@other --witness root@third --vip 10.0.0.10/24@eth0 1234\n  meio watch --standby root@other --guarantee hot --name job -- ./compute >log 2>&1\n  meio watch --dir /var/lib/job --interval 10s 1234"
)]
pub struct Watch {
    /// Root of the tree, or the name of a capsule
    #[arg(value_name = "PID|NAME", value_parser = target::parse, required_unless_present = "command")]
    target: Option<Target>,
    /// Where it goes on if this host is lost; more than once for several hosts, the earlier ones preferred
    #[arg(long, value_name = "[USER@]HOST[:PORT]", value_parser = way::destination, required_unless_present = "dir")]
    standby: Vec<Destination>,
    /// How many of several standbys must have what is let out
    #[arg(long, value_name = "WHICH", default_value = "majority", conflicts_with = "dir")]
    ack: Ack,
    /// Keep images of it in this folder instead
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath, conflicts_with_all = ["standby", "vip", "guarantee", "fence", "on_event"])]
    dir: Option<PathBuf>,
    /// How many images are kept at least, with --dir
    #[arg(long, value_name = "N", default_value = "10", requires = "dir", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    keep: u64,
    /// What the watch is called [default: the capsule's name, or the pid]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What clients may rely on
    #[arg(long, value_name = "WHAT", default_value = "hold")]
    guarantee: Promise,
    /// An address that goes with the tree
    #[arg(long, value_name = "ADDRESS/LENGTH@INTERFACE", value_parser = way::address)]
    vip: Vec<Address>,
    /// Time between the beginnings of two epochs [default: 50ms; with --dir 10s]
    #[arg(long, value_name = "TIME", value_parser = figures::parse_time)]
    interval: Option<Duration>,
    /// The same, where the link does not carry more or the tree does hardly anything
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = figures::parse_time)]
    interval_max: Duration,
    /// After this silence on both paths the other host is taken for lost
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = figures::parse_time)]
    timeout: Duration,
    /// What to do here when nothing is heard of the standby, and it is not known whether it takes over
    #[arg(long, value_name = "WHAT", default_value = "hold")]
    on_standby_loss: Loss,
    /// A shell command that ends the other host, MEIO_HOST, and fails if it cannot: must succeed before a standby takes over, or,
    /// with one standby, this host goes on alone
    #[arg(long, value_name = "COMMAND")]
    fence: Option<String>,
    /// A host besides these, where meio witness runs, that says which of them may go on; port of its own [default: 26346]
    #[arg(long, value_name = "[USER@]HOST[:PORT]", value_parser = way::destination, conflicts_with = "dir")]
    witness: Option<Destination>,
    /// The key that the witness knows it by, as meio witness --add prints it there [default: asked for by SSH]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "witness")]
    witness_key: Option<PathBuf>,
    /// A shell command that is told of each thing that meio history tells of, when it happens, on the host where it does
    ///
    /// In its environment: MEIO_NAME, MEIO_ROLE (primary, standby), MEIO_EVENT (protected, cut, taking-over, taken-over ...), MEIO_REASON,
    /// MEIO_GENERATION, MEIO_EPOCH (SERIES.NUMBER), MEIO_OTHER (the other host). It delays nothing: one that fails, or does not end
    /// within 10 seconds, is said.
    #[arg(long, value_name = "COMMAND")]
    on_event: Option<String>,
    /// The group whose members may ask how it stands, and command it [default: meio, if there is one]
    #[arg(long, value_name = "GROUP")]
    control_group: Option<String>,
    /// Leave the tree standing still here when the standby has taken over, in place of ending it
    #[arg(long, conflicts_with = "dir")]
    keep_demoted: bool,
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
    /// Take options from this file, too [default: /etc/meio/NAME.toml, if it is there, with --name NAME]
    ///
    /// A file of TOML: its keys are the long names of these options, and target or command for what is watched (command as a list). Texts
    /// and numbers stand for values, true and false for what takes none, lists for what may be given more than once. The command
    /// line wins.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Only look whether that file, with the command line, is fine: all that is wrong is said at once
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    way: way::Way,
    #[command(flatten)]
    decide: super::decide::Decide,
    /// A program to be started and watched, and its arguments
    #[arg(value_name = "CMD", last = true, conflicts_with = "target", value_hint = clap::ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

/// See [`Guarantee`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Promise {
    /// What they were told is never taken back: what leaves the addresses waits until the standby has all that it came of
    Hold,
    /// Somebody answers: what clients were told since the last epoch may be forgotten
    Hot,
}

/// See [`Acks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Ack {
    /// One; then all of them must be there for one to take over
    #[value(name = "1")]
    One,
    /// So many that they are more than half of the hosts together with this one
    Majority,
    /// All that are in step, and never fewer than with majority
    All,
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
        // What is wrong with the command line is said before anything is started.
        let (limits, wrong) = self.chosen();
        if self.check_config {
            return self.checked(&wrong, console);
        }
        if let Some(e) = wrong.into_iter().next() {
            return Err(e);
        }
        if let Some(text) = self.parted().filter(|_| !console.quiet && !console.json) {
            line(true, text);
        }
        let begun = Arc::new(AtomicBool::new(false));
        let mut drawing = Drawing::new(*console);
        if let Some(outcome) = self.come_back(limits, &begun, &mut drawing)? {
            drawing.finish(&outcome.warnings);
            return Ok(told(&outcome, console));
        }
        let started = match self.command.as_slice() {
            [] => None,
            command => {
                let network = capsule::network::Network::Host;
                let options = capsule::Options { name: self.name.clone(), network, detach: true, command: command.to_vec() };
                Some(capsule::run(&options)?)
            }
        };
        let done = self.serve(started.as_ref(), limits, &begun, &mut drawing);
        let outcome = match (done, started) {
            (Ok(outcome), started) => Outcome { code: started.filter(|_| outcome.ended).and_then(|capsule| capsule.ended()), ..outcome },
            // Nobody is to be left with a program that he did not want but watched.
            (Err(e), Some(capsule)) if !begun.load(Ordering::Relaxed) => {
                capsule.end();
                return Err(e);
            }
            (Err(e), _) => return Err(e),
        };
        drawing.finish(&outcome.warnings);
        Ok(told(&outcome, console))
    }

    /// Stands by for what another host has taken over, where that is on record here: then nothing is started.
    fn come_back(&self, limits: Limits, begun: &Arc<AtomicBool>, report: &mut dyn Report) -> Result<Option<Outcome>> {
        let capsule = self.target.as_ref().and_then(Target::capsule).map(str::to_owned);
        let pid = self.target.as_ref().and_then(|target| target.pid().ok());
        let name = self.name.clone().or(capsule.clone()).or(pid.map(|pid| pid.to_string()));
        let (Some(name), Some(standby), false) = (name, self.standby.first(), self.keep_demoted) else { return Ok(None) };
        let options = self.options(name, self.dump(pid.unwrap_or_default(), capsule), standby, limits, begun)?;
        Ok(comeback::come_back(&options, report)?.map(Outcome::from))
    }

    fn options(
        &self,
        name: String,
        dump: dump::Options,
        standby: &Destination,
        limits: Limits,
        begun: &Arc<AtomicBool>,
    ) -> Result<Options> {
        Ok(Options {
            name,
            dump,
            standby: standby.clone(),
            others: self.standby.iter().skip(1).cloned().collect(),
            how: self.way.how(),
            addresses: self.vip.clone(),
            pid_namespace: self.pid_namespace,
            spool: self.spool.clone().unwrap_or_default(),
            limits,
            acks: self.acks(),
            fence: self.fence.clone(),
            witness: self.witness()?,
            on_event: self.on_event.clone(),
            control_group: self.control_group.clone(),
            begun: begun.clone(),
            refused: None,
            among: None,
            hands: None,
        })
    }

    fn serve(&self, started: Option<&Running>, limits: Limits, begun: &Arc<AtomicBool>, report: &mut dyn Report) -> Result<Outcome> {
        let (pid, capsule) = match (started, &self.target) {
            (Some(started), _) => (started.entry.pid, Some(started.entry.name.clone())),
            (None, Some(target)) => {
                let pid = target.pid()?;
                (pid, target.name_of(pid))
            }
            (None, None) => return Err(Error::new(Kind::Usage, "nothing is named that is to be watched")),
        };
        let dump = self.dump(pid, capsule.clone());
        let name = self.name.clone().or(capsule).unwrap_or_else(|| pid.to_string());
        match (&self.dir, self.standby.first()) {
            (Some(folder), _) => {
                let (folder, every, keep) = (folder.clone(), limits.interval, self.keep);
                let (control_group, begun) = (self.control_group.clone(), begun.clone());
                local::run(&local::Options { name, dump, folder, every, keep, control_group, begun }, report).map(Outcome::from)
            }
            (None, Some(standby)) => {
                let options = self.options(name, dump, standby, limits, begun)?;
                comeback::watch(&options, report).map(Outcome::from)
            }
            (None, None) => Err(Error::new(Kind::Usage, "neither a standby nor a folder is named")),
        }
    }

    /// What does not fit together of what was chosen.
    pub fn misfits(&self) -> Vec<Error> {
        self.chosen().1
    }

    /// Says whether the file is fine.
    fn checked(&self, wrong: &[Error], console: &Console) -> Result<ExitCode> {
        let Some(path) = config::find(self.config.as_ref(), self.name.as_ref()) else {
            return Err(
                Error::new(Kind::Usage, "there is no file to be looked at").help("--config FILE, or --name NAME for /etc/meio/NAME.toml")
            );
        };
        config::report(wrong, console.json);
        if !wrong.is_empty() {
            return Ok(ExitCode::from(Kind::Usage.code() as u8));
        }
        let path = path.display().to_string();
        if console.json {
            console.json("result", json!({ "command": "watch", "config": path, "fine": true }));
        } else {
            console.result(&format!("{path} is fine"));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The limits, and what is wrong with them.
    fn chosen(&self) -> (Limits, Vec<Error>) {
        const LEAST: Duration = Duration::from_millis(50);
        const SHORTEST: Duration = Duration::from_millis(1);
        const LONGEST: Duration = Duration::from_secs(3600);
        let mut wrong = Vec::new();
        if !(LEAST..=LONGEST).contains(&self.timeout) {
            wrong.push(Error::new(Kind::Usage, "--timeout must be from 50ms to 1h"));
        }
        let usual = Duration::from_millis(if self.dir.is_some() { 10_000 } else { 50 });
        let interval = self.interval.unwrap_or(usual);
        let interval_max = if self.dir.is_some() { self.interval_max.max(interval) } else { self.interval_max };
        if !(SHORTEST..=LONGEST).contains(&interval) || !(interval..=LONGEST).contains(&interval_max) {
            let message = "--interval must be 1ms at least and no more than --interval-max, and that 1h at most";
            wrong.push(Error::new(Kind::Usage, message));
        }
        let guarantee = match self.guarantee {
            Promise::Hold => Guarantee::Hold,
            Promise::Hot => Guarantee::Hot,
        };
        if guarantee == Guarantee::Hold && self.vip.is_empty() && self.dir.is_none() {
            let nothing = Error::new(Kind::Usage, "nothing can be held without an address that goes with the tree");
            wrong.push(nothing.help("name it: --vip ADDRESS/LENGTH@INTERFACE; or --guarantee hot"));
        }
        let usual = Limits::default();
        let on_loss = match self.on_standby_loss {
            Loss::Hold => OnLoss::Hold,
            Loss::Continue => OnLoss::Continue,
        };
        let beat = usual.beat.min(self.timeout / 5);
        let interval_min = usual.interval_min.min(interval);
        let (fence, witness) = (self.fence.is_some(), self.witness.is_some());
        let (timeout, keep_demoted) = (self.timeout, self.keep_demoted);
        let acks = self.acks();
        wrong.extend(self.crowded());
        let (standbys, acks) = if self.standby.len() > 1 { (self.standby.len(), acks) } else { (1, usual.acks) };
        let limits = Limits { guarantee, on_loss, fence, witness, keep_demoted, standbys, acks, beat, timeout, ..usual };
        (Limits { interval, interval_min, interval_max, ..limits }, wrong)
    }

    fn acks(&self) -> Acks {
        match self.ack {
            Ack::One => Acks::One,
            Ack::Majority => Acks::Majority,
            Ack::All => Acks::All,
        }
    }

    /// What does not go together with several standbys.
    fn crowded(&self) -> Vec<Error> {
        let mut wrong = Vec::new();
        let hosts: std::collections::BTreeSet<&str> = self.standby.iter().map(|standby| standby.host.as_str()).collect();
        if hosts.len() < self.standby.len() {
            wrong.push(Error::new(Kind::Usage, "a standby is named twice").help("each one must be a host of its own"));
        }
        if self.standby.len() > MOST {
            wrong.push(Error::new(Kind::Usage, format!("{MOST} standbys are possible at most")));
        }
        wrong
    }

    fn witness(&self) -> Result<Option<Witness>> {
        let Some(at) = &self.witness else { return Ok(None) };
        let read = |file: &PathBuf| std::fs::read_to_string(file).context(|| format!("reading {}", file.display()));
        Ok(Some(Witness { at: at.clone(), key: self.witness_key.as_ref().map(read).transpose()? }))
    }

    /// What becomes of two hosts that lose each other, where nobody else is asked.
    fn parted(&self) -> Option<&'static str> {
        if self.standby.is_empty() || self.witness.is_some() || self.fence.is_some() {
            return None;
        }
        if self.standby.len() > 1 {
            return (self.on_standby_loss == Loss::Continue)
                .then_some("if this host loses too many of its standbys, both sides may answer (--on-standby-loss continue)");
        }
        Some(match self.on_standby_loss {
            Loss::Hold => {
                "no --witness: if the standby is lost, or the way to it, nobody answers here until it is heard again, or meio unwatch says so"
            }
            Loss::Continue => "no --witness: if the two hosts lose each other, both may answer (--on-standby-loss continue)",
        })
    }

    fn dump(&self, pid: i32, capsule: Option<String>) -> dump::Options {
        let mut decisions = self.decide.decisions();
        if self.guarantee == Promise::Hot && self.dir.is_none() {
            decisions.tcp = Choice::Close;
        }
        dump::Options {
            pid,
            capsule,
            output: Output::Stdout,
            kill: false,
            level: self.compress.0,
            freeze_timeout: self.freeze_timeout,
            decisions,
            live: Some(dump::MAX_PAUSE),
            track: Track::Auto,
            parent: None,
        }
    }
}

/// How either kind has ended.
#[derive(Default)]
struct Outcome {
    /// `None`: nobody stood by.
    host: Option<String>,
    epochs: u64,
    bytes: u64,
    longest: Duration,
    stops: Vec<Duration>,
    held: Option<Held>,
    demoted: bool,
    replaced: bool,
    stood: Option<Stood>,
    ended: bool,
    switched: bool,
    code: Option<i32>,
    warnings: Vec<String>,
}

impl From<protect::Outcome> for Outcome {
    fn from(o: protect::Outcome) -> Self {
        let protect::Outcome { host, epochs, bytes, longest, stops, held, demoted, replaced, ended, switched, stood, warnings, .. } = o;
        Outcome { host: Some(host), epochs, bytes, longest, stops, held, demoted, replaced, stood, ended, switched, code: None, warnings }
    }
}

impl From<local::Outcome> for Outcome {
    fn from(o: local::Outcome) -> Self {
        let local::Outcome { images: epochs, bytes, stops, longest, ended, warnings } = o;
        Outcome { epochs, bytes, stops, longest, ended, warnings, ..Outcome::default() }
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
        "source": source(o),
        "host": o.host,
        "exit_code": o.code,
        "warnings": o.warnings,
    })
}

/// What has become of the tree here.
fn source(o: &Outcome) -> &'static str {
    match () {
        () if o.stood == Some(Stood::Runs) => "running",
        () if o.stood == Some(Stood::Ran) => "ended",
        () if o.stood.is_some() => "replaced",
        () if o.switched => "switched",
        () if o.replaced => "replaced",
        () if o.demoted => "stopped",
        () if o.ended => "ended",
        () => "running",
    }
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

/// Tells how it has ended.
fn told(outcome: &Outcome, console: &Console) -> ExitCode {
    if console.json {
        console.json("result", result(outcome));
    } else {
        console.result(&closing(outcome));
    }
    outcome.code.map_or_else(|| super::done(&outcome.warnings), |code| ExitCode::from(code as u8))
}

fn closing(o: &Outcome) -> String {
    let host = o.host.as_deref();
    let epochs = if host.is_some() { figures::count(o.epochs, "epoch", "epochs") } else { figures::count(o.epochs, "image", "images") };
    let where_to = host.map_or_else(String::new, |host| format!(" sent to {host}"));
    let (bytes, half, longest) = (figures::bytes(o.bytes), figures::time(median(o)), figures::time(o.longest));
    let what = format!("{epochs}, {bytes}{where_to}; a stop took {half} (median), {longest} at most");
    let what = match o.held.as_ref().filter(|held| held.waits.count() > 0) {
        Some(held) => format!("{what}; {held}"),
        None => what,
    };
    let code = o.code.map_or_else(String::new, |code| format!(" with exit code {code}"));
    match host {
        Some(host) if o.switched => format!("it runs on {host}, as was wanted, and nothing of it is left here; {what}"),
        Some(_) if o.stood == Some(Stood::Runs) => "it was taken over here again, goes on, and nobody stands by".to_owned(),
        Some(_) if o.stood == Some(Stood::Ran) => "it was taken over here again, and has ended".to_owned(),
        Some(host) if o.stood.is_some() => format!("{host} runs it, and nobody stands by for it here any more"),
        Some(host) if o.replaced => format!("{host} has taken over, and nothing of it is left here; {what}"),
        Some(host) if o.demoted => format!("{host} has taken over: the tree stands still here; {what}"),
        _ if o.ended => format!("the watch is over, and the tree has ended{code}; {what}"),
        Some(_) => format!("the watch is over, the tree goes on here, and nobody stands by; {what}"),
        None => format!("the watch is over, and the tree goes on; {what}"),
    }
}
