//! Where an image is read from: a stream, or a file that can be read anywhere.

use super::format::Place;
use crate::error::{Context, Result};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A file and a position of its own in it.
#[derive(Debug, Clone)]
pub struct FileAt {
    pub file: Arc<File>,
    pub position: u64,
}

impl Read for FileAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

/// A file that is read from front to back in many small pieces: of the headers and fronts of blocks that stand close
/// together several come with one call.
pub struct Walk {
    pub at: FileAt,
    window: Vec<u8>,
    /// Where the window's first byte stands in the file.
    from: u64,
}

/// Bytes that are read ahead: a header, a page of padding, and runs.
const WINDOW: usize = 8192;

impl Walk {
    pub fn new(file: Arc<File>) -> Self {
        Walk { at: FileAt { file, position: 0 }, window: Vec::new(), from: 0 }
    }
}

impl Read for Walk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.len() >= WINDOW {
            return self.at.read(buffer);
        }
        let known = |walk: &Walk| walk.at.position.checked_sub(walk.from).filter(|&n| n < walk.window.len() as u64);
        if known(self).is_none() {
            self.window.resize(WINDOW, 0);
            let n = self.at.file.read_at(&mut self.window, self.at.position);
            self.window.truncate(*n.as_ref().unwrap_or(&0));
            self.from = self.at.position;
            n?;
        }
        let Some(from) = known(self) else { return Ok(0) };
        let there = &self.window[from as usize..];
        let n = there.len().min(buffer.len());
        buffer[..n].copy_from_slice(&there[..n]);
        self.at.position += n as u64;
        Ok(n)
    }
}

/// A stream and how much of it has been read.
pub struct Stream<'a> {
    input: BufReader<Box<dyn Read + Send + 'a>>,
    position: u64,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.position += n as u64;
        Ok(n)
    }
}

/// Either of them.
pub enum Source<'a> {
    Stream(Stream<'a>),
    File(Walk),
}

impl<'a> Source<'a> {
    pub fn stream(input: impl Read + Send + 'a) -> Self {
        Source::Stream(Stream { input: BufReader::with_capacity(1 << 16, Box::new(input)), position: 0 })
    }

    /// Bytes of the image before the next one that is read.
    pub fn position(&self) -> u64 {
        match self {
            Source::Stream(stream) => stream.position,
            Source::File(walk) => walk.at.position,
        }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Stream(stream) => stream.read(buffer),
            Source::File(walk) => walk.read(buffer),
        }
    }
}

/// Reading that knows where it is, so that it can say where an image was cut off.
pub trait Positioned: Read {
    /// Bytes of the image before the next one that is read.
    fn at(&self) -> u64;

    /// Fills `buffer`, which is a part of `place`.
    fn fill(&mut self, buffer: &mut [u8], place: Place) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read(&mut buffer[done..]) {
                Ok(0) => return Err(place.cut_off(self.at())),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context(|| format!("reading the image at byte {}", self.at())),
            }
        }
        Ok(())
    }

    /// Reads `length` bytes, allocating as they arrive: a length that lies costs nothing.
    fn take_bytes(&mut self, length: u64, place: Place) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let at = self.at();
        self.take(length).read_to_end(&mut out).context(|| format!("reading the image at byte {at}"))?;
        if (out.len() as u64) < length {
            return Err(place.cut_off(self.at()));
        }
        Ok(out)
    }

    /// Whether nothing follows.
    fn ends(&mut self) -> Result<bool> {
        let mut one = [0];
        loop {
            match self.read(&mut one) {
                Ok(n) => return Ok(n == 0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context(|| format!("reading the image at byte {}", self.at())),
            }
        }
    }
}

impl Positioned for Source<'_> {
    fn at(&self) -> u64 {
        self.position()
    }
}

impl Positioned for FileAt {
    fn at(&self) -> u64 {
        self.position
    }
}
