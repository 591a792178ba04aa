//! The way to another machine: what all commands that take it have in common.

use super::figures;
use crate::error::Error;
use crate::migrate::address::Address;
use crate::transport::{Destination, Direct, How};
use std::path::PathBuf;
use std::time::Duration;

/// A machine, as users name it.
pub fn destination(text: &str) -> Result<Destination, String> {
    Destination::parse(text).map_err(|e| e.message)
}

/// A service address, as users name it.
pub fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|e: Error| e.message)
}

/// How to get to the other machine.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "The way there")]
pub struct Way {
    /// Log in with this command instead of meio's own client, such as 'ssh -J bastion'
    #[arg(long, value_name = "COMMAND")]
    ssh: Option<String>,
    /// Private key to log in with [default: those of the agent, then ~/.ssh/id_*]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    identity: Vec<PathBuf>,
    /// Keys of known hosts [default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    known_hosts: Option<PathBuf>,
    /// The meio of the other machine
    #[arg(long, value_name = "PATH", default_value = "meio")]
    remote_path: String,
    /// How many streams carry memory
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..=32))]
    streams: u16,
    /// Whether these are encrypted connections of their own, where the other machine can be reached, or go through SSH
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    direct: When,
    /// How many bytes a second may be sent, such as 50M
    #[arg(long, value_name = "BYTES", value_parser = figures::parse_bytes)]
    bandwidth: Option<u64>,
    /// How long the other machine may take to answer at first
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = figures::parse_time)]
    connect_timeout: Duration,
}

/// See [`Direct`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum When {
    /// Connections of their own, else through SSH
    Auto,
    /// Through SSH
    Never,
}

impl Way {
    /// The same as words of a command line.
    pub fn words(&self) -> Vec<String> {
        let file = |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone()).display().to_string();
        let mut words = vec![format!("--remote-path={}", self.remote_path), format!("--streams={}", self.streams)];
        words.extend(self.ssh.iter().map(|ssh| format!("--ssh={ssh}")));
        words.extend(self.identity.iter().map(|key| format!("--identity={}", file(key))));
        words.extend(self.known_hosts.iter().map(|hosts| format!("--known-hosts={}", file(hosts))));
        words.extend((self.direct == When::Never).then(|| "--direct=never".to_owned()));
        words.extend(self.bandwidth.map(|bytes| format!("--bandwidth={bytes}")));
        words.push(format!("--connect-timeout={}ms", self.connect_timeout.as_millis()));
        words
    }

    /// As the transport takes it.
    pub fn how(&self) -> How {
        How {
            ssh: self.ssh.clone(),
            identity: self.identity.clone(),
            known_hosts: self.known_hosts.clone(),
            remote_path: self.remote_path.clone(),
            streams: self.streams.into(),
            direct: match self.direct {
                When::Auto => Direct::Auto,
                When::Never => Direct::Never,
            },
            bandwidth: self.bandwidth,
            timeout: self.connect_timeout,
        }
    }
}
