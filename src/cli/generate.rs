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
    let titled = command.clone().display_name(name.clone()).after_long_help("").after_help("");
    let man = clap_mangen::Man::new(titled).title(name.to_uppercase()).date("").manual("meio").source("meio");
    let path = folder.join(format!("{name}.1"));
    let mut text = Vec::new();
    man.render_title(&mut text)
        .and_then(|()| man.render_name_section(&mut text))
        .and_then(|()| man.render_synopsis_section(&mut text))
        .and_then(|()| man.render_description_section(&mut text))
        .and_then(|()| man.render_options_section(&mut text))
        .and_then(|()| if name == "meio" { man.render_subcommands_section(&mut text) } else { Ok(()) })
        .context(|| format!("cannot write {}", path.display()))?;
    let more = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    text.extend(more.split("\n\n").map(verbatim).collect::<String>().bytes());
    if name == "meio-migrate" {
        text.extend(format!(".SH TUTORIAL\n{}", told(super::migrate::TUTORIAL)).bytes());
    }
    if !more.contains("Exit codes:") {
        text.extend(verbatim(super::EXIT_CODES).bytes());
    }
    text.extend(format!(".SH SEE ALSO\n{}", see_also(&name)).bytes());
    std::fs::write(&path, &text).context(|| format!("cannot write {}", path.display()))
}

/// A heading that ends in a colon, and lines that are kept as they are.
fn verbatim(block: &str) -> String {
    let Some((heading, lines)) = block.split_once(":\n") else { return String::new() };
    let lines: String = lines.lines().map(|l| format!("\\&{}\n", l.replace('\\', "\\e").replace('-', "\\-"))).collect();
    format!(".SH {}\n.nf\n{lines}.fi\n", heading.to_uppercase())
}

/// Paragraphs; headings end in a colon, and lines that are indented are kept as they are.
fn told(text: &str) -> String {
    let plain = |line: &str| line.replace('\\', "\\e").replace('-', "\\-");
    let paragraph = |block: &str| match block {
        block if block.starts_with("  ") => {
            let lines: String = block.lines().map(|l| format!("\\&{}\n", plain(l))).collect();
            format!(".PP\n.nf\n{lines}.fi\n")
        }
        block if block.ends_with(':') && !block.contains('\n') => format!(".SS {}\n", plain(block.trim_end_matches(':'))),
        block => format!(".PP\n{}\n", block.lines().map(|l| format!("\\&{}", plain(l))).collect::<Vec<_>>().join("\n")),
    };
    text.trim_end().split("\n\n").map(paragraph).collect()
}

fn see_also(name: &str) -> String {
    let command = super::definition();
    let commands = command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| format!("meio-{}", c.get_name()));
    let pages = std::iter::once("meio".to_string()).chain(commands).filter(|page| page != name).map(|page| (page, 1));
    let pages: Vec<String> =
        pages.chain([("meio-json".into(), 5)]).map(|(page, n)| format!("\\fB{}\\fR({n})", page.replace('-', "\\-"))).collect();
    pages.join(",\n") + "\n"
}
