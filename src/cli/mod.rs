//! The command line: the only layer that knows clap, prints, colours and exits. One file a command.

mod agent;
mod check;
mod config;
mod console;
mod core;
mod decide;
mod demo;
mod drain;
mod drawing;
mod dump;
mod figures;
mod generate;
mod graph;
mod history;
mod image;
mod inspect;
mod list;
mod live;
mod merge;
mod migrate;
mod restore;
mod run;
mod standbys;
mod status;
mod switchover;
mod table;
mod target;
mod verify;
mod watch;
mod way;
mod witness;

use crate::error::{Error, Kind};
use clap::{CommandFactory, Parser, Subcommand};
use console::{Color, Console};
use std::process::ExitCode;

/// Checkpoint and restore running Linux process trees, from outside.
///
/// meio saves a running tree of processes to one file, and brings it back: same pids, memory, open files, signals
/// and timers. The programs need not be prepared. A dump leaves the tree running unless --kill is given.
#[derive(Parser)]
#[command(name = "meio", version, max_term_width = 100, disable_help_subcommand = true, after_long_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    face: Face,
}

/// How to talk to the user; the same on every command.
#[derive(clap::Args, Clone)]
#[command(next_display_order = 100)]
pub struct Face {
    /// Say more: each phase with its time, and notes
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Say less: no progress; results, warnings and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Write one JSON object a line to standard output
    ///
    /// Each has "v":1 and "type": "progress", "result" or "error"; see meio-json(5). Where standard output carries
    /// the image itself, they go to standard error.
    #[arg(long, global = true)]
    json: bool,
    /// When to colour; auto means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

#[derive(Subcommand)]
enum Command {
    Dump(dump::Dump),
    Restore(restore::Restore),
    Run(run::Run),
    List(list::List),
    Check(check::Check),
    Inspect(inspect::Inspect),
    Graph(graph::GraphCommand),
    Verify(verify::Verify),
    Merge(merge::Merge),
    Migrate(migrate::Migrate),
    Watch(watch::Watch),
    Status(status::Status),
    History(history::History),
    Checkpoint(status::Checkpoint),
    Switchover(switchover::Switchover),
    AddStandby(standbys::AddStandby),
    RemoveStandby(standbys::RemoveStandby),
    Drain(drain::Drain),
    Pause(status::Pause),
    Resume(status::Resume),
    Unwatch(status::Unwatch),
    Witness(witness::Witness),
    #[command(hide = true)]
    Agent(agent::Agent),
    Core(core::Core),
    Demo(demo::Demo),
    #[command(hide = true)]
    Generate(generate::Generate),
}

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed, for a reason without a code of its own
    2  the command line was wrong
    3  done, with warnings: something is different than it was
   10  no such process, or no such image
   11  a permission or capability is missing
   12  the kernel lacks a feature
   13  something in the tree is not supported; all of it is listed
   14  the image is damaged, cut off, or made for something else
   15  the link to the other machine failed; the tree goes on running here
   16  a move ended with the tree standing still here, and nobody knows whether it runs there
  130  interrupted";

/// The whole program: parse, run, say what happened, and the exit code of it.
pub fn main() -> ExitCode {
    let arguments = match config::with_file(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            config::report(&wrong, std::env::args_os().any(|a| a == "--json"));
            return ExitCode::from(Kind::Usage.code() as u8);
        }
    };
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let streams = match &cli.command {
        Command::Dump(c) => c.streams(),
        Command::Merge(c) => c.streams(),
        _ => false,
    };
    let console = Console::new(&cli.face, streams);
    let done = match &cli.command {
        Command::Dump(c) => c.run(&console),
        Command::Restore(c) => c.run(&console),
        Command::Run(c) => c.run(&console),
        Command::List(c) => c.run(&console),
        Command::Check(c) => c.run(&console),
        Command::Inspect(c) => c.run(&console),
        Command::Graph(c) => c.run(&console),
        Command::Verify(c) => c.run(&console),
        Command::Merge(c) => c.run(&console),
        Command::Migrate(c) => c.run(&console),
        Command::Watch(c) => c.run(&console),
        Command::Status(c) => c.run(&console),
        Command::History(c) => c.run(&console),
        Command::Checkpoint(c) => c.run(&console),
        Command::Switchover(c) => c.run(&console),
        Command::AddStandby(c) => c.run(&console),
        Command::RemoveStandby(c) => c.run(&console),
        Command::Drain(c) => c.run(&console),
        Command::Pause(c) => c.run(&console),
        Command::Resume(c) => c.run(&console),
        Command::Unwatch(c) => c.run(&console),
        Command::Witness(c) => c.run(&console),
        Command::Agent(c) => c.run(),
        Command::Core(c) => c.run(&console),
        Command::Demo(c) => c.run(&console),
        Command::Generate(c) => c.run(),
    };
    let done = match done {
        // What runs, runs: to end with a failure would say that nothing was started.
        Ok(_) if console::lost() && matches!(cli.command, Command::Restore(_)) => {
            let e = Error::new(Kind::Warnings, "the tree was restored, but its pid could not be written (standard output)");
            Err(e.help("the disk may be full; --pidfile writes it to a file of its own"))
        }
        Ok(_) if console::lost() => Err(Error::other("cannot write the result (standard output)").help("the disk may be full")),
        done => done,
    };
    done.unwrap_or_else(|e| {
        console.error(&e);
        ExitCode::from(e.kind.code() as u8)
    })
}

/// Help, version, or a wrong command line, which is reported as JSON where JSON was asked for.
fn usage(e: &clap::Error) -> ExitCode {
    if e.use_stderr() && std::env::args_os().any(|a| a == "--json") {
        let text = e.render().to_string();
        let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
        let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_string();
        let help = lines.find(|l| l.starts_with("tip:") || l.starts_with("Usage:")).unwrap_or("see meio --help").to_string();
        console::json_error(&Error::new(Kind::Usage, message).help(help), false);
        return ExitCode::from(Kind::Usage.code() as u8);
    }
    // A closed standard output is no reason to fail.
    let _ = e.print();
    ExitCode::from(if e.use_stderr() { Kind::Usage.code() as u8 } else { 0 })
}

/// The definition of the command line, for everything that is generated from it.
fn definition() -> clap::Command {
    Cli::command()
}

/// Exit code of a run that is done: 3 when something is different than it was.
fn done(warnings: &[String]) -> ExitCode {
    ExitCode::from(if warnings.is_empty() { 0 } else { Kind::Warnings.code() as u8 })
}
