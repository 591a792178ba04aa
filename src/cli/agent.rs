//! `meio agent`, hidden: the far end of a command that another meio runs, started over ssh.

use crate::error::Result;
use crate::migrate::address::Address;
use crate::{migrate, transport, watch};
use std::process::ExitCode;

/// The far end of a command on another machine, which the near end starts over SSH
#[derive(clap::Args)]
pub struct Agent {
    /// Lend standard input and output to the agent that has made this token
    #[arg(long, value_name = "TOKEN", conflicts_with = "drain")]
    bulk: Option<String>,
    /// Tell the neighbours for some seconds who has this address
    #[arg(long, value_name = "ADDRESS/LENGTH@INTERFACE", conflicts_with_all = ["bulk", "drain"])]
    announce: Option<String>,
    /// Count what comes over the streams, and throw it away
    #[arg(long)]
    drain: bool,
    /// Stand by for a tree that is watched
    #[arg(long, conflicts_with_all = ["bulk", "drain", "announce"])]
    watch: bool,
    /// Where an agent stands by that has made this token, it is to go on
    #[arg(long, value_name = "TOKEN", requires = "watch")]
    again: Option<String>,
}

impl Agent {
    /// Serves over standard input and output.
    pub fn run(&self) -> Result<ExitCode> {
        if let Some(token) = &self.bulk {
            transport::lend(token)?;
        } else if let Some(address) = &self.announce {
            address.parse::<Address>()?.announce()?.finish();
        } else if self.drain {
            transport::drain()?;
        } else if self.watch {
            let there = self.again.as_ref().is_some_and(|token| transport::lend(token).is_ok());
            if !there {
                watch::agent::run()?;
            }
        } else {
            migrate::agent::run()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
