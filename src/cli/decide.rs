//! `--external`, `--ignore` and `--tcp`, the same wherever a tree is looked through.

use crate::resource::capture::Decisions;
use crate::resource::socket::choice::Choice;

/// What to do about things that would be refused. A refusal names its KIND:ID.
#[derive(clap::Args, Clone, Default)]
pub struct Decide {
    /// Keep it by name only; its other side lives outside, and is looked for again at the restore
    ///
    /// KIND:ID is what the refusal proposes, for example pipe:[1234]. May be given more than once.
    #[arg(long, value_name = "KIND:ID", value_parser = id)]
    external: Vec<String>,
    /// Leave it out of the image; a descriptor comes back as one of /dev/null
    ///
    /// KIND:ID is what the refusal proposes: fd:PID/N for a descriptor, pipe:[1234], socket:[1234], file:PATH. It is
    /// recorded in the image, and the restore warns of it. May be given more than once.
    #[arg(long, value_name = "KIND:ID", value_parser = id)]
    ignore: Vec<String>,
    /// What becomes of TCP connections with somebody outside of the tree
    ///
    /// It is recorded in the image. Connections with both ends in the tree always come back, and so do sockets that listen.
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    tcp: Tcp,
}

/// See [`Choice`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Tcp {
    /// They go on where they were
    #[default]
    Keep,
    /// They come back broken off, and the program finds ECONNRESET; with --kill the other ends see the program end
    Close,
    /// A tree that has such is refused
    Refuse,
}

impl From<Tcp> for Choice {
    fn from(tcp: Tcp) -> Choice {
        match tcp {
            Tcp::Keep => Choice::Keep,
            Tcp::Close => Choice::Close,
            Tcp::Refuse => Choice::Refuse,
        }
    }
}

fn id(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((kind, id)) if !id.is_empty() && !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') => {
            Ok(text.into())
        }
        _ => Err("write KIND:ID as the refusal has it, for example fd:1234/5 or pipe:[678]".into()),
    }
}

impl Decide {
    /// The same as words of a command line.
    pub fn words(&self) -> Vec<String> {
        let each = |option: &str, ids: &[String]| ids.iter().map(|id| format!("--{option}={id}")).collect::<Vec<_>>();
        let tcp = match self.tcp {
            Tcp::Keep => "keep",
            Tcp::Close => "close",
            Tcp::Refuse => "refuse",
        };
        [each("external", &self.external), each("ignore", &self.ignore), vec![format!("--tcp={tcp}")]].concat()
    }

    /// For the screenplays.
    pub fn decisions(&self) -> Decisions {
        Decisions { external: self.external.clone(), ignore: self.ignore.clone(), tcp: self.tcp.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::id;

    #[test]
    fn a_decision_names_kind_and_thing() {
        assert!(["fd:1/2", "pipe:[7]", "file:/a:b", "unix:@x"].iter().all(|t| id(t).is_ok()));
        assert!(["", ":", "fd", "fd:", ":5", "/a:b", "1234"].iter().all(|t| id(t).is_err()));
    }
}
