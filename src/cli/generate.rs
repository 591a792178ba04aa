//! `meio generate`, hidden: man pages and completions from the definition of the command line.

use crate::error::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Write man/*.1 and completions/* into a folder
#[derive(clap::Args)]
pub struct Generate {
    /// The folder
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    folder: PathBuf,
}

impl Generate {
    /// Writes all of them.
    pub fn run(&self) -> Result<ExitCode> {
        let mut command = super::definition().disable_help_flag(false);
        command.build();
        let man = self.folder.join("man");
        let completions = self.folder.join("completions");
        for folder in [&man, &completions] {
            std::fs::create_dir_all(folder).context(|| format!("cannot make folder {}", folder.display()))?;
        }
        page(&command, "meio".into(), &man)?;
        for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            page(sub, format!("meio-{}", sub.get_name()), &man)?;
        }
        let mut command = shown(super::definition());
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            clap_complete::generate_to(shell, &mut command, "meio", &completions)
                .context(|| format!("cannot write completions to {}", completions.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The definition without what is hidden: completions would offer it.
fn shown(command: clap::Command) -> clap::Command {
    let mut all = clap::Command::new("meio").version(env!("CARGO_PKG_VERSION")).disable_help_subcommand(true);
    for argument in command.get_arguments() {
        all = all.arg(argument.clone());
    }
    all.subcommands(command.get_subcommands().filter(|c| !c.is_hide_set()).cloned())
}

fn page(command: &clap::Command, name: String, folder: &Path) -> Result<()> {
    let mut text = Vec::new();
    let titled = command.clone().display_name(name.clone());
    let page = clap_mangen::Man::new(titled).title(name.to_uppercase()).date("").manual("meio").source("meio");
    let path = folder.join(format!("{name}.1"));
    page.render(&mut text).and_then(|()| std::fs::write(&path, &text)).context(|| format!("cannot write {}", path.display()))
}
