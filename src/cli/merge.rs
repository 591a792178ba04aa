//! `meio merge`.

use super::{Console, console, drawing::Drawing, dump::Level, dump::level, figures};
use crate::dump::Output;
use crate::dump::merge::{self, Options, Outcome};
use crate::error::{Error, Kind, Result};
use serde_json::json;
use std::io::IsTerminal;
use std::{path::PathBuf, process::ExitCode};

/// Make one image that stands alone of an image and those that it builds upon
///
/// IMAGE is the youngest of a chain (meio dump --parent); those that it builds upon are found by themselves, or may be
/// named as well, in any order. The new image holds what the youngest does and has no parent. It is read again and compared
/// before it gets its name; the old ones stay as they are.
///
/// With --json the line has "image", "image_bytes", "hash", "merged" (paths, youngest first), "pages" ({data, zero, copy}),
/// "total_ms" and "phases".
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  meio merge 7.meio -o flat.meio\n  meio merge full.meio monday.meio tuesday.meio -o flat.meio --compress 9"
)]
pub struct Merge {
    /// The youngest image; also those that it builds upon
    #[arg(value_name = "IMAGE", required = true, value_hint = clap::ValueHint::FilePath)]
    images: Vec<PathBuf>,
    /// Where the new image goes; - is standard output
    #[arg(short, long, value_name = "IMAGE", required = true, value_hint = clap::ValueHint::FilePath)]
    output: PathBuf,
    /// How memory is packed: none (fastest), or a zstd level from 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value = "1", value_parser = level)]
    compress: Level,
}

impl Merge {
    /// Whether standard output carries the image.
    pub fn streams(&self) -> bool {
        self.output.as_os_str() == "-"
    }

    /// Merges and tells how it went.
    pub fn run(&self, console: &Console) -> Result<ExitCode> {
        let output = match self.streams() {
            true if std::io::stdout().is_terminal() => {
                return Err(Error::new(Kind::Usage, "an image is not for a terminal (standard output)").help("name a file with -o FILE"));
            }
            true => Output::Stdout,
            false => Output::Path(self.output.clone()),
        };
        let options = Options { images: self.images.clone(), output, level: self.compress.0 };
        let mut drawing = Drawing::new(*console);
        let outcome = merge::run(&options, &mut drawing)?;
        drawing.finish(&[]);
        if console.json {
            console.json("result", self.result(&outcome));
        } else {
            console.result(&self.closing(&outcome));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn result(&self, o: &Outcome) -> serde_json::Value {
        let pages = o.summary.pages;
        json!({
            "command": "merge",
            "image": self.output.to_string_lossy(),
            "image_bytes": o.summary.bytes,
            "hash": o.summary.hash.to_string(),
            "merged": o.merged.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
            "pages": {"data": pages.data, "zero": pages.zero, "copy": pages.copy},
            "total_ms": figures::ms(o.total),
            "phases": console::phases(&o.phases),
        })
    }

    /// The one honest line.
    fn closing(&self, o: &Outcome) -> String {
        let name = if self.streams() { "standard output".into() } else { self.output.display().to_string() };
        format!(
            "{name}: {} merged, {} after {}; it stands alone",
            figures::count(o.merged.len() as u64, "image", "images"),
            figures::bytes(o.summary.bytes),
            figures::time(o.total),
        )
    }
}
