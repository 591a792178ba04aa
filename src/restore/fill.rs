//! Page content on its way from an image into stubs. Workers decode and write in parallel; copies are made at
//! the end out of what has been placed.

use super::pool::Pool;
use crate::error::{Context, Error, Result};
use crate::image::{Block, Content, EncodedBlock, FromParent, Owner, PAGE, Placement, differs};
use crate::resource::Tree;
use crate::resource::memory::{Backing, Mapping};
use crate::sys::memory::{self, MemFile};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex};

/// Blocks that may wait for a worker.
const WINDOW: usize = 16;

/// Where the pages of a process go.
struct Process<'a> {
    pid: i32,
    mappings: &'a [Mapping],
    memory: MemFile,
}

/// Where everything goes.
pub struct Targets<'a> {
    processes: HashMap<i32, Process<'a>>,
    objects: Vec<(File, u64)>,
}

impl<'a> Targets<'a> {
    /// `pids`: of each process of the image, its pid as meio sees it.
    pub fn new(tree: &'a Tree, pids: &HashMap<i32, i32>, pool: &Pool) -> Result<Self> {
        let mut processes = HashMap::new();
        for process in &tree.processes {
            let Some(space) = &process.memory else { continue };
            let pid = pids[&process.pid];
            let memory = MemFile::open(pid).context(|| format!("opening the memory of process {}", process.pid))?;
            processes.insert(process.pid, Process { pid, mappings: &space.mappings, memory });
        }
        let objects = tree.objects.iter().map(|o| Ok((pool.object_file(o.id)?, o.size))).collect::<Result<_>>()?;
        Ok(Targets { processes, objects })
    }

    pub fn write(&self, owner: Owner, mut address: u64, mut bytes: &[u8]) -> Result<()> {
        let process = match owner {
            Owner::Object(number) => {
                let (file, size) = self.objects.get(number as usize).ok_or_else(|| stray(owner, address))?;
                // The last page reaches beyond the end.
                let n = size.saturating_sub(address).min(bytes.len() as u64) as usize;
                return file.write_all_at(&bytes[..n], address).context(|| "filling shared memory");
            }
            Owner::Process(pid) => self.processes.get(&pid).ok_or_else(|| stray(owner, address))?,
        };
        // A run may cross the border of two mappings.
        while !bytes.is_empty() {
            let mapping = process.mapping(address).ok_or_else(|| stray(owner, address))?;
            let n = (mapping.end - address).min(bytes.len() as u64) as usize;
            let doing = || format!("filling the memory of process {}", process.pid);
            if mapping.backing != Backing::Kernel {
                if mapping.prot & libc::PROT_WRITE as u32 != 0 {
                    memory::write(process.pid, address, &bytes[..n]).context(doing)?;
                } else {
                    process.memory.write(address, &bytes[..n]).context(doing)?;
                }
            }
            address += n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn read(&self, owner: Owner, address: u64, bytes: &mut [u8]) -> Result<()> {
        match owner {
            Owner::Object(number) => {
                let (file, _) = self.objects.get(number as usize).ok_or_else(|| stray(owner, address))?;
                let n = file.read_at(bytes, address).context(|| "reading shared memory")?;
                bytes[n..].fill(0);
                Ok(())
            }
            Owner::Process(pid) => {
                let process = self.processes.get(&pid).ok_or_else(|| stray(owner, address))?;
                process.memory.read(address, bytes).context(|| format!("reading the memory of process {pid}"))
            }
        }
    }

    /// Pages of zeros.
    pub fn zero(&self, owner: Owner, address: u64, pages: u32) -> Result<()> {
        let zeros = [0u8; 16 * PAGE];
        let len = pages as usize * PAGE;
        (0..len).step_by(zeros.len()).try_for_each(|at| self.write(owner, address + at as u64, &zeros[..zeros.len().min(len - at)]))
    }

    fn place(&self, block: &Block) -> Result<()> {
        let mut from = 0;
        for run in &block.runs {
            let len = run.pages as usize * PAGE;
            match run.content {
                Content::Data => {
                    self.write(block.owner, run.address, &block.data[from..from + len])?;
                    from += len;
                }
                Content::Unused => from += len,
                Content::Delta => return Err(differs()),
                Content::Zero => self.zero(block.owner, run.address, run.pages)?,
                Content::Copy { .. } | Content::Parent => {}
            }
        }
        Ok(())
    }
}

impl Process<'_> {
    fn mapping(&self, address: u64) -> Option<&Mapping> {
        let i = self.mappings.partition_point(|m| m.end <= address);
        self.mappings.get(i).filter(|m| m.contains(address))
    }
}

fn stray(owner: Owner, address: u64) -> Error {
    Error::image(format!("image damaged: a page of {owner:?} at {address:#x} belongs to no mapping"))
}

/// A copy that is still to be made.
struct Copy {
    owner: Owner,
    address: u64,
    pages: u32,
    block: u32,
    page: u32,
}

/// What the reader and the workers share.
#[derive(Default)]
struct Flow {
    waiting: Vec<EncodedBlock>,
    placement: Placement,
    copies: Vec<Copy>,
    from_parent: FromParent,
    failure: Option<Error>,
    done: bool,
    bytes: u64,
}

/// Places the pages of all blocks that `next` gives. When these are all blocks of an image, its checksums and its end have been
/// verified afterwards. Returned are the bytes, and what it has from its parent.
pub fn fill(
    mut next: impl FnMut() -> Result<Option<EncodedBlock>>,
    targets: &Targets<'_>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<(u64, FromParent)> {
    let flow = Mutex::new(Flow::default());
    let moved = Condvar::new();
    let lock = || flow.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let work = || {
        let mut buffer = Vec::new();
        loop {
            let mut guard = lock();
            let encoded = loop {
                if let Some(block) = guard.waiting.pop() {
                    break block;
                }
                if guard.done {
                    return;
                }
                guard = moved.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
            };
            drop(guard);
            moved.notify_all();
            let result = encoded.decode_into(std::mem::take(&mut buffer)).and_then(|block| targets.place(&block).map(|()| block));
            let mut guard = lock();
            match result {
                Ok(mut block) => {
                    if let Err(e) = guard.from_parent.note(block.owner, &block.runs) {
                        guard.failure.get_or_insert(e);
                    }
                    buffer = std::mem::take(&mut block.data);
                    guard.bytes += buffer.len() as u64;
                    guard.placement.note(&block);
                    for run in &block.runs {
                        if let Content::Copy { block: from, page } = run.content {
                            let (owner, address, pages) = (block.owner, run.address, run.pages);
                            guard.copies.push(Copy { owner, address, pages, block: from, page });
                        }
                    }
                }
                Err(e) => {
                    guard.failure.get_or_insert(e);
                    guard.waiting.clear();
                }
            }
            drop(guard);
            moved.notify_all();
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 0..rayon::current_num_threads() {
            scope.spawn(|_| work());
        }
        let mut feed = || -> Result<()> {
            while let Some(block) = next()? {
                let mut guard = lock();
                while guard.waiting.len() >= WINDOW && guard.failure.is_none() {
                    guard = moved.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                if guard.failure.is_some() {
                    return Ok(());
                }
                guard.waiting.push(block);
                let bytes = guard.bytes;
                drop(guard);
                moved.notify_all();
                progress(bytes)?;
            }
            Ok(())
        };
        let result = feed();
        lock().done = true;
        moved.notify_all();
        result
    })?;
    let flow = flow.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(e) = flow.failure {
        return Err(e);
    }
    let mut copied = 0;
    let mut page = vec![0u8; PAGE];
    for copy in &flow.copies {
        let (owner, pieces) = flow.placement.find(copy.block, copy.page, copy.pages)?;
        let mut to = copy.address;
        for (from, pages) in pieces {
            for n in 0..u64::from(pages) {
                targets.read(owner, from + n * PAGE as u64, &mut page)?;
                targets.write(copy.owner, to, &page)?;
                to += PAGE as u64;
                copied += PAGE as u64;
            }
        }
    }
    Ok((flow.bytes + copied, flow.from_parent))
}
