//! What the README says is true: exit codes, commands, options, make targets.

use super::commands::{code, meio, out, text_of};

/// `Name = 12,` of the enum in `src/error.rs`.
fn exit_codes() -> Vec<i32> {
    let text = text_of("src/error.rs");
    let body = text.split("pub enum Kind {").nth(1).and_then(|t| t.split('}').next()).expect("the enum");
    let codes: Vec<i32> = body.lines().filter_map(|l| l.trim().strip_suffix(',')?.split_once(" = ")?.1.parse().ok()).collect();
    assert!(codes.len() >= 9, "{codes:?}");
    codes
}

#[test]
fn the_readme_lists_exactly_the_exit_codes() {
    let table: Vec<i32> = text_of("README.md").lines().filter_map(|l| l.strip_prefix("| ")?.split(" |").next()?.parse().ok()).collect();
    let mut expected = vec![0];
    expected.extend(exit_codes());
    assert_eq!(table, expected);
    let help = meio(&["--help"]);
    let help = out(&help).split("Exit codes:").nth(1).expect("exit codes");
    let listed: Vec<i32> = help.lines().filter_map(|l| l.split_whitespace().next()?.parse().ok()).collect();
    assert_eq!(listed, expected);
}

const BEGIN: &str = "<!-- kinds: made by UPDATE=1 cargo test readme -->\n";
const END: &str = "<!-- end of kinds -->";

/// `meio check --kinds`, as the JSON has it.
fn kinds() -> Vec<serde_json::Value> {
    let said: serde_json::Value = serde_json::from_str(out(&meio(&["check", "--kinds", "--json"]))).expect("JSON");
    said["kinds"].as_array().expect("kinds").clone()
}

#[test]
fn the_readmes_table_of_kinds_is_the_programs() {
    let kinds = kinds();
    let count = |status: &str| kinds.iter().filter(|k| k["status"] == status).count();
    let mut table = format!(
        "{} kinds of kernel object come back, {} in part, {} are refused.\n\n| kind | | |\n|---|---|---|\n",
        count("supported"),
        count("partly"),
        count("refused")
    );
    for k in &kinds {
        let text = |field: &str| k[field].as_str().expect("text").replace('|', "\\|");
        table += &format!("| {} | {} | {} |\n", text("name"), text("status"), text("says"));
    }
    let readme = text_of("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("the mark before the table");
    let (shown, after) = rest.split_once(END).expect("the mark behind the table");
    if std::env::var_os("UPDATE").is_some() {
        let path = std::path::Path::new(super::ROOT).join("README.md");
        std::fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).expect("README is written");
        return;
    }
    assert_eq!(shown, table, "run UPDATE=1 cargo test readme");
}

#[test]
fn every_kind_is_shown_by_a_test() {
    let (fixtures, refusals) = (text_of("tests/fixtures.rs"), text_of("tests/refusals.rs"));
    let kinds = kinds();
    let mut names: Vec<&str> = kinds.iter().map(|k| k["name"].as_str().expect("name")).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|w| w[0] != w[1]), "a kind is listed twice: {names:?}");
    for kind in &kinds {
        let tests = kind["shown_by"].as_array().expect("tests");
        assert!(!tests.is_empty(), "nothing shows {kind}");
        for test in tests.iter().map(|t| t.as_str().expect("text")) {
            let there = match test.split_once("::") {
                Some((module, function)) => text_of(&format!("tests/{module}.rs")).contains(&format!("fn {function}(")),
                None if kind["status"] == "refused" => refusals.contains(&format!("\n    {test}: \"")),
                None => fixtures.contains(&format!("\n    {test}: \"")),
            };
            assert!(there, "{}: there is no test {test}", kind["name"]);
        }
    }
}

/// Each row of the table of failures names the tests that show it, by module and function: they are there.
#[test]
fn every_failure_is_shown_by_a_test() {
    let readme = text_of("README.md");
    let (_, table) = readme.split_once("<!-- failures: ").expect("the mark before the table");
    let (table, _) = table.split_once("<!-- end of failures -->").expect("the mark behind the table");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what fails ")).collect();
    assert!(rows.len() >= 25, "{} rows", rows.len());
    let root = std::path::Path::new(super::ROOT);
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [fails, _, sees, lost, shown] = cells[..] else { panic!("five columns: {row}") };
        assert!(![fails, sees, lost].contains(&""), "{row}");
        let tests: Vec<&str> = shown.split(", ").map(|name| name.trim_matches('`')).collect();
        for test in tests {
            let (module, function) = test.rsplit_once("::").unwrap_or_else(|| panic!("module and function: {test}"));
            // What is tested from outside, or beside what it tests.
            let path = module.replace("::", "/");
            let file = [format!("tests/{path}.rs"), format!("src/watch/{path}.rs")].into_iter().find(|file| root.join(file).exists());
            let file = file.unwrap_or_else(|| panic!("there is no module {module}: {row}"));
            let text = text_of(&file);
            assert!(text.lines().any(|line| line.trim_start().starts_with(&format!("fn {function}("))), "there is no test {test}");
        }
    }
}

#[test]
fn the_readmes_commands_exist() {
    let readme = text_of("README.md");
    let mut seen = 0;
    for line in readme.split("```").skip(1).step_by(2).flat_map(str::lines) {
        let words: Vec<&str> = line.trim_start_matches("$ ").trim_start_matches("sudo ").split_whitespace().collect();
        match words[..] {
            ["meio", command, ..] => {
                let output = meio(&[command, "--help"]);
                assert_eq!(code(&output), 0, "README: {line}");
                for option in words.iter().take_while(|w| **w != "--").filter(|w| w.starts_with("--")) {
                    assert!(out(&output).contains(option.split('=').next().expect("a name")), "README: {line}");
                }
                seen += 1;
            }
            ["make", target, ..] => {
                assert!(text_of("Makefile").lines().any(|l| l.starts_with(&format!("{target}:"))), "README: {line}");
                seen += 1;
            }
            _ => {}
        }
    }
    assert!(seen >= 5, "the README shows {seen} commands");
}
