//! `meio drain HOST`: the meio of that host empties it, and what it says is shown here.

use super::super::console::{self, Console};
use super::super::drawing::Drawing;
use super::{Drain, error_of, said, told};
use crate::error::Result;
use crate::progress::Report;
use crate::transport::{self, Destination};
use serde_json::Value;
use std::process::ExitCode;

impl Drain {
    /// Has it done there, and says what comes of it as if it had been done here.
    pub fn there(&self, console: &Console, host: &Destination) -> Result<ExitCode> {
        let mut drawing = Drawing::new(*console);
        let mut last = None;
        let command = self.command(console);
        let code = transport::run_at(host, &self.way.how(), &command, &mut drawing, |line, drawing| {
            match serde_json::from_str::<Value>(line).ok().filter(Value::is_object) {
                Some(_) if console.json => console::line(false, line),
                Some(value) => last = shown(value, drawing).or(last.take()),
                // What a shell says at its start is nobody's word here.
                None => drawing.note(line),
            }
        });
        drawing.finish(&[]);
        let code = code?;
        match last {
            Some(value) if value["type"] == "error" => console.error(&error_of(&value)),
            Some(value) => {
                let place = format!("on {}", value["from"].as_str().unwrap_or(&host.host));
                for stay in value["stayed"].as_array().into_iter().flatten() {
                    said(console, &place, stay["name"].as_str().unwrap_or_default(), error_of(stay));
                }
                told(console, &place, &value);
            }
            None => {}
        }
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
    }

    /// What is said there.
    fn command(&self, console: &Console) -> String {
        let mut words: Vec<String> = ["drain", "--attended", "--json"].map(str::to_owned).to_vec();
        words.extend(console.verbose.then(|| "--verbose".to_owned()));
        words.extend(console.quiet.then(|| "--quiet".to_owned()));
        words.extend(self.dry_run.then(|| "--dry-run".to_owned()));
        words.extend(self.to.iter().map(|to| format!("--to={to}")));
        words.extend(self.copy_files.map(|which| format!("--copy-files={}", which.word())));
        words.extend(self.shared_files.iter().map(|folder| format!("--shared-files={}", folder.display())));
        words.extend(self.way.words());
        words.extend(self.decide.words());
        words.iter().map(|word| transport::word(word)).collect::<Vec<_>>().join(" ")
    }
}

/// Shows what is said on the way; the last word is given back.
fn shown(value: Value, drawing: &mut dyn Report) -> Option<Value> {
    let text = value["text"].as_str().unwrap_or_default();
    match (value["type"].as_str(), value["event"].as_str()) {
        (Some("progress"), Some("warning")) => drawing.warning(text),
        (Some("progress"), Some("note")) => drawing.note(text),
        (Some("progress"), Some("standing")) => drawing.standing(text),
        (Some("progress"), Some("started")) => drawing.standing(value["phase"].as_str().unwrap_or_default()),
        (Some("result" | "error"), _) => return Some(value),
        _ => {}
    }
    None
}
