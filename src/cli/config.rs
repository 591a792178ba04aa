//! The options of `meio watch` out of a file: its keys are their long names, so that there is nothing to be declared twice. What
//! stands in it becomes arguments, before those of the command line, which wins.

use super::{Cli, Command, console};
use crate::error::{Error, Kind};
use crate::watch::record::is_name;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Parser};
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Where files are found by the name of a watch.
const FOLDER: &str = "/etc/meio";
/// What says which file, or only to look at it.
const ABOUT: [&str; 2] = ["config", "check-config"];
/// What is watched: a program, or one that runs.
const WATCHED: [&str; 2] = ["target", "command"];

/// The file of a watch: the one that is named, or that of its name where there is one.
pub fn find(named: Option<&PathBuf>, name: Option<&String>) -> Option<PathBuf> {
    let by_name = || name.filter(|name| is_name(name)).map(|name| Path::new(FOLDER).join(format!("{name}.toml")));
    named.cloned().or_else(|| by_name().filter(|path| path.exists()))
}

/// The arguments with those of a file, if there is one for them.
///
/// # Errors
/// All that is wrong with the file, in its order.
pub fn with_file(arguments: Vec<OsString>) -> Result<Vec<OsString>, Vec<Error>> {
    // What is missing on the command line may stand in the file; what is wrong is said later.
    let Ok(all) = super::definition().ignore_errors(true).try_get_matches_from(&arguments) else { return Ok(arguments) };
    let Some(("watch", given)) = all.subcommand() else { return Ok(arguments) };
    let one = |id| given.try_get_one::<PathBuf>(id).ok().flatten();
    let Some(path) = find(one("config"), given.try_get_one::<String>("name").ok().flatten()) else { return Ok(arguments) };
    let text = std::fs::read_to_string(&path).map_err(|e| vec![unreadable(&path, &e)])?;
    let mut file = File { path: &path, text: &text, given, options: Vec::new(), last: Vec::new(), wrong: Vec::new() };
    file.read();
    let File { options, last, mut wrong, .. } = file;
    let at = arguments.iter().position(|argument| argument == "watch").map_or(arguments.len(), |at| at + 1);
    let (before, after) = arguments.split_at(at);
    let arguments: Vec<OsString> = before.iter().cloned().chain(options).chain(after.iter().cloned()).chain(last).collect();
    if wrong.is_empty() {
        return Ok(arguments);
    }
    // What does not fit together is said, too, where that can be known already.
    if let Ok(Cli { command: Command::Watch(watch), .. }) = Cli::try_parse_from(&arguments) {
        wrong.extend(watch.misfits());
    }
    Err(wrong)
}

fn unreadable(path: &Path, e: &std::io::Error) -> Error {
    Error::new(Kind::Usage, format!("{} cannot be read: {e}", path.display())).help("--config names another file")
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
    /// What the command line says.
    given: &'a ArgMatches,
    /// Arguments.
    options: Vec<OsString>,
    /// Those that stand behind all others.
    last: Vec<OsString>,
    wrong: Vec<Error>,
}

impl File<'_> {
    fn complain(&mut self, span: &Range<usize>, what: &str) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        self.wrong.push(Error::new(Kind::Usage, format!("{}:{line}:{column}: {what}", self.path.display())));
    }

    fn help(&mut self, help: impl Into<String>) {
        if let Some(last) = self.wrong.pop() {
            self.wrong.push(last.help(help));
        }
    }

    fn read(&mut self) {
        let (table, broken) = DeTable::parse_recoverable(self.text);
        for e in broken {
            self.complain(&e.span().unwrap_or(0..0), e.message().lines().next().unwrap_or("that is no TOML"));
        }
        let definition = super::definition();
        let Some(watch) = definition.find_subcommand("watch") else { return };
        let known = |key: &str| {
            let is = |arg: &&Arg| arg.get_long().map_or(WATCHED.contains(&arg.get_id().as_str()), |long| !ABOUT.contains(&long));
            watch.get_arguments().filter(is).find(|arg| arg.get_long().unwrap_or(arg.get_id().as_str()) == key).cloned()
        };
        let mut table: Vec<_> = table.get_ref().iter().collect();
        table.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in table {
            let Some(arg) = known(key.get_ref()) else {
                self.complain(&key.span(), &format!("unknown key {:?}", key.get_ref()));
                if let Some(similar) = similar(key.get_ref()) {
                    self.help(format!("did you mean {similar}?"));
                }
                continue;
            };
            let mut texts = match texts(&arg, value.get_ref()) {
                Ok(texts) => texts,
                Err(wanted) => {
                    self.complain(&value.span(), &format!("{} must be {wanted}, not {}", key.get_ref(), kind(value.get_ref())));
                    continue;
                }
            };
            if let Some((what, help)) = texts.iter().find_map(|text| refusal(&arg, text)) {
                self.complain(&value.span(), &what);
                help.into_iter().for_each(|help| self.help(help));
                continue;
            }
            if self.is_given(&arg) {
                continue;
            }
            match (arg.get_long(), arg.get_id().as_str()) {
                (Some(long), _) if !takes(&arg) => self.options.extend((!texts.is_empty()).then(|| format!("--{long}").into())),
                (Some(long), _) => self.options.extend(texts.iter().map(|text| format!("--{long}={text}").into())),
                (None, "command") => self.last.extend(std::iter::once("--".to_owned()).chain(texts).map(OsString::from)),
                (None, _) => self.options.extend(texts.drain(..).map(OsString::from)),
            }
        }
    }

    /// The command line says it, or what is watched.
    fn is_given(&self, arg: &Arg) -> bool {
        let by = |id: &str| self.given.value_source(id) == Some(ValueSource::CommandLine);
        let id = arg.get_id().as_str();
        by(id) || WATCHED.contains(&id) && WATCHED.iter().any(|id| by(id))
    }
}

/// Whether it takes a value.
fn takes(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// What a value is as arguments, one for a flag that is set; what it must be if it is something else.
fn texts(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    let one = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        _ => None,
    };
    let many = matches!(arg.get_action(), ArgAction::Append);
    match value {
        DeValue::Boolean(set) if !takes(arg) => Ok(set.then(String::new).into_iter().collect()),
        _ if !takes(arg) => Err("true or false"),
        DeValue::Array(values) if many => values.iter().map(|value| one(value.get_ref())).collect::<Option<_>>().ok_or("a list of texts"),
        value => one(value).map(|text| vec![text]).ok_or(if many { "a text, or a list of texts" } else { "a text or a number" }),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a broken number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "such a list",
        DeValue::Table(_) => "a table",
    }
}

/// What the command line has against a text, and what helps.
fn refusal(arg: &Arg, text: &str) -> Option<(String, Option<String>)> {
    use clap::error::ErrorKind;
    let argument = match arg.get_long() {
        Some(long) if takes(arg) => format!("--{long}={text}"),
        None if arg.get_id() == WATCHED[0] => text.to_owned(),
        _ => return None,
    };
    let e = super::definition().try_get_matches_from(["meio", "watch", &argument]).err()?;
    // What is missing or does not go together is not this text's fault.
    if !matches!(e.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::UnknownArgument) {
        return None;
    }
    let said = e.render().to_string();
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    Some((what, lines.find(|line| line.starts_with("[possible values") || line.starts_with("tip:")).map(str::to_owned)))
}

/// The key that may be meant.
fn similar(key: &str) -> Option<String> {
    let e = super::definition().try_get_matches_from(["meio", "watch", &format!("--{key}=x")]).err()?;
    match e.get(ContextKind::SuggestedArg)? {
        ContextValue::String(option) => Some(option.trim_start_matches('-').to_owned()).filter(|key| !ABOUT.contains(&key.as_str())),
        _ => None,
    }
}

/// Says all of it.
pub fn report(wrong: &[Error], json: bool) {
    for e in wrong {
        if json {
            console::json_error(e, false);
        } else {
            eprint!("error: {}\n{}", e.message, e.help.as_ref().map_or_else(String::new, |help| format!("help: {help}\n")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, more: &[&str]) -> Result<Vec<String>, Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("web.toml");
        std::fs::write(&path, text).expect("a file");
        let path = path.display().to_string();
        let all = [&["meio", "watch", "--config", &path], more].concat();
        let done = with_file(all.iter().map(OsString::from).collect());
        let front = format!("{path}:");
        let told = |e: Error| e.message.trim_start_matches(&front).to_owned() + &e.help.map_or(String::new(), |help| format!(" ({help})"));
        let texts = |all: Vec<OsString>| {
            all.into_iter().map(|one| one.into_string().expect("text")).filter(|one| *one != path && one != "--config")
        };
        done.map(|all| texts(all).skip(2).collect()).map_err(|wrong| wrong.into_iter().map(told).collect())
    }

    #[test]
    fn keys_are_options() {
        let text = "standby = \"root@other\"\nvip = [\"10.0.0.1/24@eth0\", \"fd00::1/64@eth0\"]\ntimeout = \"2s\"\npid-namespace = true\nkeep = 3\ncommand = [\"a\", \"-b\"]\n";
        let wanted =
            ["--standby=root@other", "--vip=10.0.0.1/24@eth0", "--vip=fd00::1/64@eth0", "--timeout=2s", "--pid-namespace", "--keep=3"];
        assert_eq!(with(text, &["--quiet"]).expect("fine"), [&wanted[..], &["--quiet", "--", "a", "-b"]].concat());
        assert_eq!(with("pid-namespace = false\n", &[]).expect("fine"), Vec::<String>::new());
    }

    #[test]
    fn the_command_line_wins() {
        let text = "target = \"web\"\nvip = \"10.0.0.1/24@eth0\"\ntimeout = \"2s\"\ninterval = \"20ms\"\n";
        let said = with(text, &["--timeout", "3s", "--vip=10.0.0.2/24@eth1", "--", "sleep", "1"]).expect("fine");
        assert_eq!(said, ["--interval=20ms", "--timeout", "3s", "--vip=10.0.0.2/24@eth1", "--", "sleep", "1"]);
    }

    #[test]
    fn all_that_is_wrong_is_said_and_where() {
        let text = "intervall = \"1s\"\ntimeout = 5.5\n guarantee = \"most\"\nvip = [1.5]\npid-namespace = \"yes\"\nconfig = \"x\"\ninterval = \"soon\"\n[more]\nx = 1\n";
        let wrong = with(text, &[]).expect_err("it is wrong");
        let begins =
            ["1:1: unknown key \"intervall\" (did you mean interval?)", "2:11: timeout must be a text or a number, not a broken number"];
        assert_eq!(wrong[..2], begins, "{wrong:?}");
        assert!(wrong[2].starts_with("3:14: invalid value 'most'") && wrong[2].contains("hold, hot"), "{wrong:?}");
        assert!(
            wrong[3].starts_with("4:7: vip must be a list of texts") && wrong[4].starts_with("5:17: pid-namespace must be true or false"),
            "{wrong:?}"
        );
        assert!(
            wrong[5].starts_with("6:1: unknown key \"config\"") && wrong[6].starts_with("7:12: invalid value 'soon' for '--interval"),
            "{wrong:?}"
        );
        assert!(wrong[7].starts_with("8:2: unknown key \"more\"") && wrong.len() == 8, "{wrong:?}");
        // What can be read of a file that is no TOML is looked at, too.
        let wrong = with("timeout = \"2s\nstandbye = \"x\"\n", &[]).expect_err("it is wrong");
        assert!(wrong[0].starts_with("1:") && wrong.iter().any(|one| one.starts_with("2:1: unknown key \"standbye\"")), "{wrong:?}");
        let wrong = with("colour = 1\ntimeout = \"10ms\"\nvip = \"10.0.0.1/24@eth0\"\nstandby = \"x\"\ntarget = 1\ninterval=\"0\"\n", &[])
            .expect_err("it is wrong");
        assert!(wrong.len() == 3 && wrong[1].contains("--timeout must be") && wrong[2].contains("--interval must be"), "{wrong:?}");
    }

    /// A value that an option may have.
    fn value(arg: &Arg) -> String {
        let possible = arg.get_possible_values();
        if let Some(last) = possible.last().filter(|_| takes(arg)) {
            return last.get_name().to_owned();
        }
        if !takes(arg) {
            return "true".to_owned();
        }
        let name = arg.get_value_names().and_then(<[_]>::first).map(|name| name.as_str());
        let text = match name {
            Some("TIME") => "7s",
            Some("N" | "LEVEL") => "7",
            Some("BYTES") => "7M",
            Some("[USER@]HOST[:PORT]") => "root@other:7",
            Some("ADDRESS/LENGTH@INTERFACE") => "10.0.0.7/24@eth0",
            Some("KIND:ID") => "unix:7",
            Some("COMMAND" | "CMD" | "FILE" | "FOLDER" | "PATH" | "NAME" | "GROUP" | "PID|NAME") => "seven",
            other => panic!("what may {other:?} of {:?} be?", arg.get_id()),
        };
        text.to_owned()
    }

    /// Whatever the command line takes the file takes, and it comes to the same.
    #[test]
    fn every_option_may_stand_in_a_file() {
        let definition = crate::cli::definition();
        let watch = definition.find_subcommand("watch").expect("the command");
        let matches = |all: &[&str]| crate::cli::definition().ignore_errors(true).try_get_matches_from(all).expect("matches");
        let (mut keys, mut left) = (0, Vec::new());
        for arg in watch.get_arguments() {
            let (id, key) = (arg.get_id().as_str(), arg.get_long().unwrap_or(arg.get_id().as_str()));
            let value = value(arg);
            let line = match arg.get_action() {
                ArgAction::Append => format!("{key} = [{value:?}]\n"),
                ArgAction::Set => format!("{key} = {value:?}\n"),
                _ => format!("{key} = true\n"),
            };
            let Ok(arguments) = with(&line, &[]) else {
                left.push(key.to_owned());
                continue;
            };
            let all: Vec<&str> = ["meio", "watch"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
            let found = matches(&all);
            let found = found.subcommand_matches("watch").expect("the command");
            assert_eq!(found.value_source(id), Some(ValueSource::CommandLine), "{line}{arguments:?}");
            let raw = found.get_raw(id).into_iter().flatten().map(|one| one.to_string_lossy().into_owned()).collect::<Vec<_>>();
            assert_eq!(raw, [value], "{line}{arguments:?}");
            keys += 1;
        }
        left.sort();
        let mut about = ABOUT;
        about.sort_unstable();
        assert!(left == about && keys > 30, "{left:?}, and {keys} keys");
    }

    #[test]
    fn other_commands_are_left_alone() {
        for all in [&["meio", "status"][..], &["meio", "--help"], &["meio", "watch", "--help"], &["meio", "watch", "--config"]] {
            let all: Vec<OsString> = all.iter().map(OsString::from).collect();
            assert_eq!(with_file(all.clone()).expect("nothing is looked at"), all);
        }
    }

    #[test]
    fn a_file_that_is_not_there() {
        let all = ["meio", "watch", "--config", "/no/such/file"].map(OsString::from).to_vec();
        assert!(with_file(all).expect_err("it is not there")[0].message.contains("/no/such/file cannot be read"));
    }
}
