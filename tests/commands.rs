//! The contract of the command line: exit codes, what goes where, JSON, colour.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

mod trees;

const IMAGE: &str = "fixtures/images/v1-zstd.meio";

pub fn meio(arguments: &[&str]) -> Output {
    Command::new(super::MEIO).args(arguments).current_dir(super::ROOT).stdin(Stdio::null()).output().expect("meio runs")
}

pub fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

pub fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

/// Every line of standard output as an object, checked for what each must have.
fn json(output: &Output) -> Vec<Value> {
    let lines: Vec<Value> = out(output).lines().map(|l| serde_json::from_str(l).expect("JSON on every line")).collect();
    for line in &lines {
        assert_eq!(line["v"], 1, "{line}");
        assert!(["progress", "result", "error"].contains(&line["type"].as_str().expect("type")), "{line}");
    }
    lines
}

fn last(output: &Output) -> Value {
    json(output).pop().expect("a last line")
}

pub fn text_of(path: &str) -> String {
    std::fs::read_to_string(Path::new(super::ROOT).join(path)).expect(path)
}

/// A number that no process has: the highest that the kernel gives out is below.
fn no_pid() -> String {
    i32::MAX.to_string()
}

#[test]
fn a_wrong_command_line_is_2() {
    let wrong: [&[&str]; 12] = [
        &[],
        &["nothing"],
        &["dump"],
        &["dump", "a/b"],
        &["dump", "0"],
        &["dump", "-1"],
        &["dump", "1", "--compress", "20"],
        &["dump", "1", "--freeze-timeout", "soon"],
        &["restore"],
        &["check", "-v", "-q"],
        &["inspect", "x", "--tree", "--maps"],
        &["verify", "x", "--color", "blue"],
    ];
    for arguments in wrong {
        let output = meio(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(out(&output).is_empty() && !err(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_and_version_are_results() {
    for arguments in [&["--help"][..], &["-V"], &["dump", "--help"], &["core", "-h"]] {
        let output = meio(arguments);
        assert_eq!(code(&output), 0);
        assert!(out(&output).contains("meio") && err(&output).is_empty());
    }
}

#[test]
fn a_wrong_command_line_is_json_when_asked() {
    let output = meio(&["dump", "1", "--compress", "x", "--json"]);
    let error = last(&output);
    assert_eq!((code(&output), &error["code"], &error["type"]), (2, &2.into(), &"error".into()));
    assert!(error["message"].as_str().is_some_and(|m| m.contains("'x'")), "{error}");
    assert!(err(&output).is_empty());
}

#[test]
fn an_error_says_what_happened_and_what_to_do() {
    let pid = no_pid();
    for arguments in [
        &["dump", &pid][..],
        &["check", "--pid", &pid],
        &["verify", "no/such.meio"],
        &["inspect", "no/such.meio"],
        &["core", "no/such.meio"],
    ] {
        let output = meio(arguments);
        assert_eq!(code(&output), 10, "{arguments:?}");
        let lines: Vec<&str> = err(&output).lines().collect();
        assert!(lines[0].starts_with("error: ") && lines[0].contains(arguments[arguments.len() - 1]), "{lines:?}");
        assert!(lines.last().expect("a line").starts_with("help: "), "{lines:?}");
        assert!(out(&output).is_empty());

        let output = meio(&[arguments, &["--json"]].concat());
        assert_eq!(code(&output), 10);
        let error = last(&output);
        assert_eq!(error["code"], 10);
        assert!(error["message"].as_str().is_some_and(|m| m.contains(arguments[arguments.len() - 1])), "{error}");
        assert!(error["help"].as_str().is_some_and(|h| !h.is_empty()), "{error}");
        assert_eq!(error["refusals"], Value::Array(vec![]));
        assert!(err(&output).is_empty());
    }
}

#[test]
fn an_image_on_standard_output_leaves_the_words_to_standard_error() {
    let output = meio(&["dump", &no_pid(), "-o", "-", "--json"]);
    assert_ne!(code(&output), 0);
    assert!(out(&output).is_empty());
    let error: Value = serde_json::from_str(err(&output).lines().last().expect("a line")).expect("JSON");
    assert_eq!(error["type"], "error");
}

#[test]
fn colour_is_for_terminals_or_on_demand() {
    let run = |color: &str, no_color: &str| {
        let mut command = Command::new(super::MEIO);
        command.args(["verify", "no/such.meio", "--color", color]).env("NO_COLOR", no_color).env("TERM", "xterm");
        err(&command.output().expect("meio runs")).contains('\x1b')
    };
    // These are pipes.
    assert!(!run("auto", "") && !run("auto", "1") && !run("never", ""));
    assert!(run("always", "") && run("always", "1"));
}

#[test]
fn no_color_holds_on_a_terminal() {
    // script(1) gives the program a terminal.
    let run = |no_color: &str| {
        let command = format!("{} verify no/such.meio", super::MEIO);
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).env("NO_COLOR", no_color).env("TERM", "xterm").stdin(Stdio::null());
        let output = script.output().expect("script runs");
        assert!(out(&output).contains("no such image"), "{output:?}");
        out(&output).contains('\x1b')
    };
    assert!(run(""), "colour on a terminal");
    assert!(!run("1"), "none with NO_COLOR");
}

#[test]
fn check_names_every_gap_with_its_cost_and_cure() {
    let output = meio(&["check", "--json"]);
    let result = last(&output);
    let findings = result["findings"].as_array().expect("findings");
    assert!(findings.len() > 30);
    for finding in findings {
        let works = finding["works"].as_bool().expect("works");
        let cure = finding["mend"].as_str().expect("mend");
        assert!(works || !cure.is_empty(), "{finding}");
    }
    let gaps = result["gaps"].as_array().expect("gaps");
    let hopeless = gaps.iter().any(|g| g["weight"] == "required");
    assert_eq!(
        code(&output),
        if hopeless {
            12
        } else if gaps.is_empty() {
            0
        } else {
            3
        }
    );
    assert_eq!(result["ok"], code(&output) == 0);
    for gap in gaps {
        let words = meio(&["check"]);
        assert!(out(&words).contains(gap["name"].as_str().expect("name")) && out(&words).contains(gap["mend"].as_str().expect("mend")));
    }
}

#[test]
fn check_sees_a_capability_that_was_taken_away() {
    if !nix::unistd::geteuid().is_root() {
        // Without root there is none to take: the gaps are there already.
        let gaps = last(&meio(&["check", "--json"]))["gaps"].clone();
        assert!(gaps.as_array().expect("gaps").iter().any(|g| g["name"] == "CAP_SYS_ADMIN"));
        return;
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", super::MEIO, "check", "--json"]);
    let output = command.output().expect("setpriv runs");
    assert_eq!(code(&output), 3);
    let result = last(&output);
    let gaps: BTreeMap<&str, &Value> =
        result["gaps"].as_array().expect("gaps").iter().map(|g| (g["name"].as_str().expect("name"), g)).collect();
    for name in ["clone3 set_tid", "pid namespace", "CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE", "CAP_SYS_ADMIN"] {
        assert!(gaps.contains_key(name), "{name} is not in {:?}", gaps.keys());
    }
    assert!(gaps["clone3 set_tid"]["mend"].as_str().expect("mend").contains("CHECKPOINT_RESTORE"));
}

#[test]
fn an_image_is_shown_every_way() {
    let said = |arguments: &[&str]| {
        let output = meio(&[&["inspect", IMAGE], arguments].concat());
        assert_eq!(code(&output), 0, "{}", err(&output));
        out(&output).to_string()
    };
    let everything = last(&meio(&["inspect", IMAGE, "--json"]));
    let processes = everything["tree"]["processes"].as_array().expect("processes").clone();
    assert!(!processes.is_empty());
    let (summary, tree, maps, fds) = (said(&[]), said(&["--tree"]), said(&["--maps"]), said(&["--fds"]));
    for process in &processes {
        let pid = process["pid"].to_string();
        for page in [&summary, &tree, &maps, &fds] {
            assert!(page.contains(&pid) && page.contains(process["comm"].as_str().expect("a name as text")), "{page}");
        }
        for mapping in process["memory"]["mappings"].as_array().into_iter().flatten() {
            assert!(maps.contains(&format!("{:x}", mapping["start"].as_u64().expect("start"))));
        }
    }
    for file in everything["tree"]["files"].as_array().expect("files") {
        assert!(fds.contains(file["link"].as_str().expect("link")));
    }
    let hash = everything["hash"].as_str().expect("hash");
    assert!(summary.contains(hash));
    let verified = last(&meio(&["verify", IMAGE, "--json"]));
    assert_eq!(verified["hash"], hash);
    let manifest = &everything["manifest"];
    assert_eq!((&verified["root_pid"], &verified["processes"]), (&manifest["root_pid"], &processes.len().into()));
    let words = meio(&["verify", IMAGE]);
    let tree = format!("process {} ({} process", manifest["root_pid"], processes.len());
    assert!(out(&words).contains(&tree) && out(&words).contains(manifest["host"].as_str().expect("host")), "{}", out(&words));
}

#[test]
fn an_image_is_drawn_every_way() {
    let folder = tempfile::tempdir().expect("folder");
    let graph = last(&meio(&["graph", IMAGE, "--json"]));
    let ids: Vec<&str> = graph["nodes"].as_array().expect("nodes").iter().map(|n| n["id"].as_str().expect("id")).collect();
    let mut order: Vec<&str> = graph["order"].as_array().expect("order").iter().map(|n| n.as_str().expect("id")).collect();
    for edge in graph["edges"].as_array().expect("edges") {
        assert!(["from", "to"].iter().all(|end| ids.contains(&edge[end].as_str().expect("id"))), "{edge}");
    }
    order.sort_unstable();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    assert_eq!(order, sorted);
    let dot = meio(&["graph", IMAGE]);
    assert!(out(&dot).starts_with("digraph") && ids.iter().all(|id| out(&dot).contains(&format!("\"{id}\""))));
    for (name, begin) in [("a.svg", "<svg"), ("a.dot", "digraph"), ("a.json", "{")] {
        let path = folder.path().join(name);
        assert_eq!(code(&meio(&["graph", IMAGE, "-o", path.to_str().expect("text")])), 0);
        let text = std::fs::read_to_string(&path).expect("written");
        assert!(text.starts_with(begin) && text.contains("400"), "{text}");
    }
    // Why a thing is there: by descriptor, by name, by pid.
    let why = meio(&["graph", IMAGE, "--why", "400/0"]);
    assert!(out(&why).contains("400 counter") && out(&why).contains("fd 0") && out(&why).contains("/dev/null"), "{}", out(&why));
    let why = last(&meio(&["graph", IMAGE, "--why", "pipe:[77]", "--json"]));
    assert_eq!(why["why"].as_array().expect("one thing").len(), 1);
    assert!(why["why"][0]["held_by"].as_array().is_some_and(|h| h.len() == 2), "{why}");
    assert_eq!(code(&meio(&["graph", IMAGE, "--why", "402"])), 0);
    assert_eq!(code(&meio(&["graph", IMAGE, "--why", "no/such"])), 10);
}

#[test]
fn a_cut_off_image_is_shown_and_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let whole = std::fs::read(Path::new(super::ROOT).join(IMAGE)).expect("image");
    let cut = folder.path().join("cut.meio");
    std::fs::write(&cut, &whole[..whole.len() - 100]).expect("written");
    let cut = cut.to_str().expect("text");
    let output = meio(&["inspect", cut, "--json"]);
    let lines = json(&output);
    assert_eq!((code(&output), lines.len()), (14, 2));
    assert!(lines[0]["type"] == "result" && lines[0]["hash"].is_null() && lines[1]["code"] == 14);
    let output = meio(&["verify", cut]);
    assert_eq!(code(&output), 14);
    assert!(err(&output).contains("cut off at byte"), "{}", err(&output));
    // The same bytes on standard input.
    let stdin = std::fs::File::open(cut).expect("file");
    assert_eq!(Command::new(super::MEIO).args(["verify", "-"]).stdin(stdin).output().expect("meio runs").status.code(), Some(14));
}

/// Names of all fields, also of objects in lists; what lies in `tree` has the image's own names.
fn fields(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, field) in object {
                names.push(name.clone());
                if name != "tree" {
                    fields(field, names);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields(item, names)),
        _ => {}
    }
}

/// Fails for names that the man page does not have.
fn undocumented(names: &[String]) {
    let page = text_of("man/meio-json.5");
    let words: Vec<&str> = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let unknown: Vec<&String> = names.iter().filter(|name| !words.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "not in man/meio-json.5: {unknown:?}");
}

#[test]
fn every_json_field_is_documented() {
    let mut names = Vec::new();
    for arguments in [
        &["check"][..],
        &["check", "--kinds"],
        &["graph", IMAGE],
        &["graph", IMAGE, "--why", "400"],
        &["inspect", IMAGE],
        &["verify", IMAGE],
        &["verify", "no/such"],
        &["dump", &no_pid()],
    ] {
        json(&meio(&[arguments, &["--json", "-v"]].concat())).iter().for_each(|line| fields(line, &mut names));
    }
    assert!(names.len() > 20);
    undocumented(&names);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child =
        Command::new(super::MEIO).args(["check", "-v"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meio runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(!err(&output).contains("panic"), "{}", err(&output));
    assert!([Some(0), Some(3), Some(12)].contains(&output.status.code()), "{output:?}");
}

#[test]
fn a_result_that_is_lost_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let mut command = Command::new(super::MEIO);
    let output = command.args(["verify", IMAGE]).current_dir(super::ROOT).stdout(full).output().expect("meio runs");
    assert_eq!(code(&output), 1);
    assert!(err(&output).starts_with("error: cannot write the result"), "{}", err(&output));
}
