//! The call stack of every thread of a saved tree.

use super::elf::{ElfFile, ReadMemory};
use super::memory::{Contents, ObjectMemory};
use super::unwind::{Code, RawFrame, unwind};
use crate::error::Result;
use crate::resource::memory::Backing;
use crate::resource::process::Process;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::rc::Rc;

/// Where a thread was in one of its functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Where it goes on.
    pub pc: u64,
    /// Function, and how many bytes behind its start `pc` is.
    pub symbol: Option<(String, u64)>,
    /// The file that the code is from, as the maps file names it.
    pub module: Option<String>,
    /// Nobody called this: the kernel put it there, to return from a signal handler. What follows was interrupted.
    pub signal: bool,
}

/// The call stack of one thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ThreadStack {
    /// Its process.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// Why the stack may be incomplete.
    pub note: Option<String>,
}

/// The call stacks of all threads, in the order of the image.
pub fn stacks(contents: &Contents) -> Result<Vec<ThreadStack>> {
    let files = Files::default();
    let mut all = Vec::new();
    for process in &contents.tree().processes {
        let code = Space { contents, process, files: &files, kernel: RefCell::default(), lost: RefCell::default() };
        for thread in &process.threads {
            let memory = contents.process(process);
            code.lost.borrow_mut().clear();
            let stack = unwind(&thread.registers, &memory, &code);
            let frames = stack.frames.iter().map(|f| code.describe(f)).collect();
            memory.failed()?;
            let lost = code.lost.borrow();
            let lost = lost.iter().map(|path| format!("{path} is missing or not the file that was mapped"));
            let notes: Vec<String> = stack.note.into_iter().chain(lost).collect();
            all.push(ThreadStack {
                pid: process.pid,
                tid: thread.tid,
                comm: String::from_utf8_lossy(&thread.comm).into_owned(),
                frames,
                note: (!notes.is_empty()).then(|| notes.join("; ")),
            });
        }
    }
    Ok(all)
}

/// What the same code is known by in all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    File(u32),
    Object(u32),
}

/// The files that have been read so far, for all processes.
#[derive(Default)]
struct Files(RefCell<HashMap<Key, Option<Rc<ElfFile>>>>);

/// The code of one process.
struct Space<'a> {
    contents: &'a Contents,
    process: &'a Process,
    files: &'a Files,
    /// The vDSO, by the address of its mapping.
    kernel: RefCell<HashMap<u64, Option<Rc<ElfFile>>>>,
    /// Files that would have been needed and are not there.
    lost: RefCell<BTreeSet<String>>,
}

impl Space<'_> {
    fn describe(&self, frame: &RawFrame) -> Frame {
        let inside = frame.inside();
        let symbol = self.file_at(inside).and_then(|(file, address)| {
            let (name, into) = file.symbol(address)?;
            Some((demangle(name), into.wrapping_add(frame.pc.wrapping_sub(inside))))
        });
        let mapping = self.contents.mapping_at(self.process, inside);
        let module = mapping.map(|m| m.name.clone()).filter(|name| !name.is_empty());
        Frame { pc: frame.pc, symbol, module, signal: frame.signal }
    }

    /// The file behind a mapping. `start` and `end` are the mapping's.
    fn read_file(&self, backing: &Backing, start: u64, end: u64) -> Option<Rc<ElfFile>> {
        let known = |key: Key, read: &dyn Fn() -> Option<ElfFile>| {
            let mut files = self.files.0.borrow_mut();
            files.entry(key).or_insert_with(|| read().map(Rc::new)).clone()
        };
        match *backing {
            Backing::File { file, .. } => {
                let found = known(Key::File(file), &|| {
                    let mut elf = ElfFile::read(&*self.contents.file(file)?)?;
                    add_debug(&mut elf);
                    Some(elf)
                });
                if found.is_none() && self.contents.file(file).is_none() {
                    let path = self.contents.tree().mapped.get(file as usize).map(|m| m.path.to_string());
                    self.lost.borrow_mut().extend(path);
                }
                found
            }
            Backing::Object { object, .. } => known(Key::Object(object), &|| {
                let mut elf = ElfFile::read(&ObjectMemory { contents: self.contents, object })?;
                add_debug(&mut elf);
                Some(elf)
            }),
            Backing::Kernel => {
                let read = || {
                    let length = usize::try_from(end - start).ok().filter(|&n| n <= 1 << 20)?;
                    let mut bytes = vec![0; length];
                    let memory = self.contents.process(self.process);
                    (memory.read(start, &mut bytes) == length).then(|| ElfFile::read(&bytes[..]))?
                };
                self.kernel.borrow_mut().entry(start).or_insert_with(|| read().map(Rc::new)).clone()
            }
            Backing::Anonymous => None,
        }
    }
}

impl Code for Space<'_> {
    fn file_at(&self, address: u64) -> Option<(Rc<ElfFile>, u64)> {
        let mapping = self.contents.mapping_at(self.process, address)?;
        let offset = match mapping.backing {
            Backing::File { offset, .. } | Backing::Object { offset, .. } => offset,
            Backing::Kernel | Backing::Anonymous => 0,
        };
        let file = self.read_file(&mapping.backing, mapping.start, mapping.end)?;
        let address = file.address_of((address - mapping.start).checked_add(offset)?)?;
        Some((file, address))
    }

    fn is_executable(&self, address: u64) -> bool {
        let mapping = self.contents.mapping_at(self.process, address);
        mapping.is_some_and(|m| m.prot & libc::PROT_EXEC as u32 != 0)
    }
}

/// A name as people write it. Names of C and C++ stay as they are.
fn demangle(name: &str) -> String {
    rustc_demangle::try_demangle(name).map_or_else(|_| name.to_string(), |d| format!("{d:#}"))
}

/// Adds the names out of the detached debug information, where distributions put it
/// (gdb manual, "Debugging Information in Separate Files").
fn add_debug(elf: &mut ElfFile) {
    let Some((first, rest)) = elf.build_id().and_then(|id| id.split_first()) else { return };
    let rest: String = rest.iter().map(|b| format!("{b:02x}")).collect();
    if let Ok(file) = File::open(format!("/usr/lib/debug/.build-id/{first:02x}/{rest}.debug")) {
        elf.add_debug(&file);
    }
}
