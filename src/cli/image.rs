//! What the IMAGE argument names, and opening it.

use super::{console::Console, drawing::Drawing};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Reader, folder_of};
use crate::progress::Report;
use crate::restore::Input;
use crate::sys::arch::MACHINE;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::Instant;

/// A file, or standard input for `-`.
pub fn input(image: &Path) -> Input {
    if image.as_os_str() == "-" { Input::Stdin } else { Input::Path(image.to_path_buf()) }
}

/// How it is called in sentences.
pub fn name(image: &Path) -> String {
    match input(image).path() {
        None => "standard input".into(),
        Some(path) => path.display().to_string(),
    }
}

/// Opens it and reads its header.
pub fn open(image: &Path) -> Result<Reader<'static>> {
    let reader = match input(image).path() {
        None => Reader::open(io::stdin(), MACHINE),
        Some(path) => Reader::from_file(file(path)?, MACHINE).map(|reader| reader.beside(folder_of(path))),
    };
    about(image, reader)
}

/// The same for reading all of it, which may take a while: shows how far it is, as `phase`.
pub fn open_watched(image: &Path, phase: &'static str, console: Console) -> Result<Reader<'static>> {
    let (input, total): (Box<dyn Read + Send>, _) = match input(image).path() {
        None => (Box::new(io::stdin()), None),
        Some(path) => {
            let file = file(path)?;
            let metadata = file.metadata().context(|| format!("cannot open {}", path.display()))?;
            if metadata.is_dir() {
                return about(image, Reader::from_file(file, MACHINE));
            }
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
    };
    let mut drawing = Drawing::new(console);
    drawing.started(phase);
    let reader = Reader::open(Watched { input, phase, begin: Instant::now(), done: 0, total, drawing }, MACHINE);
    about(image, reader.map(|reader| if total.is_some() { reader.beside(folder_of(image)) } else { reader }))
}

fn file(path: &Path) -> Result<File> {
    match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::new(Kind::NotFound, format!("no such image ({})", path.display()))
            .help("look at the path again; meio dump PID makes an image")),
        file => file.context(|| format!("cannot open {}", path.display())),
    }
}

/// Counts what is read.
struct Watched {
    input: Box<dyn Read + Send>,
    phase: &'static str,
    begin: Instant,
    done: u64,
    total: Option<u64>,
    drawing: Drawing,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.done += n as u64;
        self.drawing.bytes(self.done, self.total);
        Ok(n)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.drawing.ended(self.phase, self.begin.elapsed());
    }
}

/// Names the image in an error about it.
pub fn about<T>(image: &Path, result: Result<T>) -> Result<T> {
    result.context(|| name(image))
}
