//! `--live`, `--every` and what belongs to them.

use super::{Console, dump as command, figures};
use crate::dump::{self, Ended, MAX_PAUSE, Options, Series, Track};
use crate::error::{Error, Kind, Result};
use crate::progress::Report;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Copying while the tree runs, and series of images.
#[derive(clap::Args, Clone, Copy)]
pub struct Live {
    /// Copy memory while the tree runs, round after round, and stop it only for what is left
    ///
    /// To have its memory watched, every process stands still once before, for a millisecond or so.
    #[arg(long)]
    live: bool,
    /// How long the last stop may become, as far as that can be foreseen [default: 20ms]
    #[arg(long, value_name = "TIME", value_parser = figures::parse_time)]
    max_pause: Option<Duration>,
    /// Make a series of images, one after each such time, such as 10s: each of what has changed since the one before
    ///
    /// -o names them: {n} stands for their number. The first is whole; the others need those before them to be restored.
    #[arg(long, value_name = "TIME", value_parser = figures::parse_time, requires = "output", conflicts_with = "kill")]
    every: Option<Duration>,
    /// How many images a series has [default: until the tree ends]
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How written pages are told, with --live and --every
    #[arg(long, value_name = "HOW", default_value = "auto")]
    track: Tracker,
}

/// See [`Track`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Tracker {
    /// The first of the others that works here
    Auto,
    /// Write protection by userfaultfd (Linux 6.7)
    Uffd,
    /// Soft-dirty bits of the page table
    SoftDirty,
    /// Hashes of all pages: works everywhere, and reads all memory each time
    Hash,
}

impl Live {
    /// The allowed pause where copying while the tree runs was asked for.
    ///
    /// # Errors
    /// Options that are of no use.
    pub fn pause(&self) -> Result<Option<Duration>> {
        match self.max_pause {
            Some(_) if !self.live && self.every.is_none() => Err(Error::new(Kind::Usage, "--max-pause without --live or --every")
                .help("only a tree that is copied while it runs can be stopped for a chosen time")),
            pause => Ok((self.live || self.every.is_some()).then(|| pause.unwrap_or(MAX_PAUSE))),
        }
    }

    /// What tells written pages.
    pub fn track(&self) -> Track {
        match self.track {
            Tracker::Auto => Track::Auto,
            Tracker::Uffd => Track::Uffd,
            Tracker::SoftDirty => Track::SoftDirty,
            Tracker::Hash => Track::Hash,
        }
    }

    /// The series that is wanted, if one is.
    pub fn series(&self, pattern: Option<&Path>) -> Result<Option<Series<'static>>> {
        let (Some(every), Some(pattern)) = (self.every, pattern) else { return Ok(None) };
        dump::check_pattern(pattern)?;
        Ok(Some(Series { every, count: self.count, pattern: pattern.to_owned(), first: 1, keep: None, steer: None }))
    }
}

/// Makes a series and tells of each image.
pub fn run(options: &Options, series: &Series<'_>, console: &Console) -> Result<ExitCode> {
    let mut drawing = super::drawing::Drawing::new(*console);
    let mut warned = Vec::new();
    let mut longest = Duration::ZERO;
    let (n, ended) = dump::run_series(options, series, &mut drawing, |n, outcome, report| {
        report.clear();
        longest = longest.max(outcome.pause);
        if console.json {
            let mut value = command::result(&outcome);
            value["epoch"] = n.into();
            console.json("result", value);
        } else {
            console.result(&command::closing(options.pid, &outcome));
        }
        for warning in outcome.warnings {
            if !warned.contains(&warning) {
                report.warning(&warning);
                warned.push(warning);
            }
        }
    })
    .map_err(|e| match e.kind {
        Kind::Interrupted => e.help(format!("the tree goes on running; {} can be restored", series.pattern.display())),
        _ => e,
    })?;
    if let (Ended::TreeEnded, Some(_)) = (ended, series.count) {
        let warning = format!("process {} has ended before all images were made", options.pid);
        drawing.warning(&warning);
        warned.push(warning);
    }
    drawing.finish(&[]);
    let state = match ended {
        Ended::Complete => "it goes on running",
        Ended::TreeEnded => "it has ended",
    };
    let images = figures::count(n, "image", "images");
    console.closing(&format!("process {}: {images}, the longest stop {}; {state}", options.pid, figures::time(longest)));
    Ok(super::done(&warned))
}
