//! What the IMAGE argument names, and opening it.

use crate::error::{Context, Error, Kind, Result};
use crate::image::Reader;
use crate::restore::Input;
use crate::sys::arch::MACHINE;
use std::{fs::File, io::ErrorKind, path::Path};

/// A file, or standard input for `-`.
pub fn input(image: &Path) -> Input {
    if image.as_os_str() == "-" { Input::Stdin } else { Input::Path(image.to_path_buf()) }
}

/// How it is called in sentences.
pub fn name(image: &Path) -> String {
    match input(image) {
        Input::Stdin => "standard input".into(),
        Input::Path(path) => path.display().to_string(),
    }
}

/// Opens it and reads its header.
pub fn open(image: &Path) -> Result<Reader<'static>> {
    let reader = match input(image) {
        Input::Stdin => Reader::open(std::io::stdin(), MACHINE),
        Input::Path(path) => match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::new(Kind::NotFound, format!("no such image ({})", path.display()))
                    .help("look at the path again; meio dump PID makes an image"));
            }
            file => Reader::from_file(file.context(|| format!("cannot open {}", path.display()))?, MACHINE),
        },
    };
    about(image, reader)
}

/// Names the image in an error about it.
pub fn about<T>(image: &Path, result: Result<T>) -> Result<T> {
    result.context(|| name(image))
}
