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
                for option in words.iter().filter(|w| w.starts_with("--") && w.len() > 2) {
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
