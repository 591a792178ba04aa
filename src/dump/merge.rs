//! The merge screenplay: an image and its ancestors become one image that stands alone.

use super::Output;
use super::output::{Interruptible, Target};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{
    self, Block, Chain, Codec, Dedup, Encoded, Inherited, MAX_KEPT, Needed, Owner, PAGE, Pages, Piece, Reader, SectionKind, Summary,
    Writer, encode, encode_zero, folder_of,
};
use crate::progress::{Report, phase};
use crate::sys::{arch, signal};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pages of a block of the new image.
const BLOCK: u32 = 128;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The youngest image of a chain, and any of its ancestors; in any order.
    pub images: Vec<PathBuf>,
    /// Where the new one goes.
    pub output: Output,
    /// zstd level of the pages; `None` stores them raw.
    pub level: Option<i32>,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The images that were merged, youngest first.
    pub merged: Vec<PathBuf>,
    /// What was written.
    pub summary: Summary,
    /// The whole run.
    pub total: Duration,
    /// Each phase and its time.
    pub phases: Vec<(&'static str, Duration)>,
}

/// Merges a chain. The new image gets its name when it is complete and has been compared with the old ones.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    let begin = Instant::now();
    let mut phases = Vec::new();
    signal::catch();
    crate::sys::workers::start()?;
    let chain = phase(report, &mut phases, "chain", |_| find(&options.images))?;
    let target = match &options.output {
        Output::Path(path) => {
            if let Some(member) = chain.members.iter().skip(1).find(|m| same(&m.path, path)) {
                let what = format!("the image would replace {}, which others build upon", member.path.display());
                return Err(Error::new(Kind::Usage, what).help("give it another name"));
            }
            Target::file(path)?
        }
        Output::Stdout => Target::Stream(File::from(nix::unistd::dup(std::io::stdout())?)),
        Output::Pipe(pipe) => Target::Stream(pipe.try_clone()?),
    };
    bounded(&chain)?;
    let codec = options.level.map_or(Codec::Raw, Codec::Zstd);
    let (summary, pages) = phase(report, &mut phases, "merge", |report| write(&chain, &target, codec, report))?;
    if target.is_file() {
        phase(report, &mut phases, "compare", |report| compare(&target, &chain, &pages, report))?;
    }
    phase(report, &mut phases, "flush", |_| target.commit())?;
    let merged = chain.members.into_iter().map(|member| member.path).collect();
    Ok(Outcome { merged, summary, total: begin.elapsed(), phases })
}

/// What is compared takes 16 bytes a page. A few bytes of an image can describe very many of them.
fn bounded(chain: &Chain) -> Result<()> {
    let memory = nix::sys::sysinfo::sysinfo().map_or(0, |s| s.ram_total());
    if chain.pages() > memory / 256 {
        let what = format!("it has {} pages: too many to be compared on this machine", chain.pages());
        return Err(Error::new(Kind::Unsupported, what).help("merge it on a machine with more memory"));
    }
    Ok(())
}

/// Whether two paths lead to one file.
fn same(a: &Path, b: &Path) -> bool {
    std::fs::canonicalize(a).ok().zip(std::fs::canonicalize(b).ok()).is_some_and(|(a, b)| a == b)
}

/// Finds the youngest of the images, and all that it builds upon; the others must be among that.
fn find(images: &[PathBuf]) -> Result<Chain> {
    let mut seen = Vec::new();
    for path in images {
        let doing = || path.display().to_string();
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(Kind::NotFound, format!("no such image ({})", path.display())),
            _ => Error::from(e).context(doing()),
        })?;
        if !file.metadata()?.is_file() {
            return Err(Error::image("is no regular file").context(doing()));
        }
        let mut reader = Reader::from_file(file, arch::MACHINE).context(doing)?;
        seen.push((reader.id(), reader.link().context(doing)?, path));
    }
    let builds_upon = |id: &[u8; 16]| seen.iter().any(|(other, link, _)| other != id && link.as_ref().is_some_and(|l| l.id == *id));
    let known: Vec<_> = seen.iter().map(|(id, _, path)| (*id, path.to_path_buf())).collect();
    // A merged image has the id of the youngest that it was made of, and yet is another one.
    let all = |chain: &Chain| known.iter().all(|(id, path)| chain.members.iter().any(|m| m.id == *id && same(&m.path, path)));
    let mut wrong = None;
    // Several, where some in between are not named.
    for (_, _, path) in seen.iter().filter(|(id, _, _)| !builds_upon(id)) {
        match Chain::whole(path, arch::MACHINE, &known) {
            Ok(chain) if all(&chain) => return Ok(chain),
            Ok(_) => {}
            Err(e) => drop(wrong.get_or_insert(e)),
        }
    }
    let names: Vec<String> = images.iter().map(|path| path.display().to_string()).collect();
    Err(wrong.unwrap_or_else(|| {
        Error::image(format!("there is no chain that holds all of {}", names.join(", ")))
            .help("name the youngest image and those that it builds upon")
    }))
}

/// What the workers share: blocks get their numbers before they are encoded, and are written in the order of these.
struct Out<'w, W: Write> {
    writer: &'w mut Writer<W>,
    file: &'w File,
    numbers: u32,
    written: u32,
    ready: BTreeMap<u32, Encoded>,
}

impl<W: Write> Out<'_, W> {
    fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers - 1
    }

    fn put(&mut self, block: Encoded) -> Result<()> {
        self.ready.insert(block.block(), block);
        while let Some(block) = self.ready.remove(&self.written) {
            let placed = self.writer.place(&block)?;
            let mut file = Interruptible(self.file);
            file.write_all(&placed.front).and_then(|()| file.write_all(block.data())).context(|| "writing the image")?;
            self.written += 1;
        }
        Ok(())
    }
}

/// Writes the new image; also says what its pages are.
fn write(chain: &Chain, target: &Target, codec: Codec, report: &mut dyn Report) -> Result<(Summary, Inherited)> {
    let youngest = chain.members.first().ok_or_else(|| Error::other("a chain without an image"))?;
    let mut reader = Reader::from_file(File::open(&youngest.path)?, arch::MACHINE)?.beside(folder_of(&youngest.path));
    let file = target.open();
    // It holds what the youngest does, and what was kept for that (network locks) is found by its id.
    let id = reader.id();
    let mut writer = Writer::new(Interruptible(file), image::Options { machine: arch::MACHINE, id })?;
    for kind in [SectionKind::Manifest, SectionKind::Tree] {
        writer.section_as_it_is(kind, &reader.metadata_as_it_is(kind)?)?;
    }
    let total = chain.pages() * PAGE as u64;
    let dedup = Dedup::with_room(&id, chain.pages());
    let pages = Mutex::new(Inherited::room_for(chain, u64::MAX)?);
    let out = Mutex::new(Out { writer: &mut writer, file, numbers: 0, written: 0, ready: BTreeMap::new() });
    let lock = || out.lock().unwrap_or_else(PoisonError::into_inner);
    let place = |needed: &Needed, block: &Block| -> Result<()> {
        for (owner, pieces) in cut(&needed.pieces) {
            let mut data = Vec::with_capacity(BLOCK as usize * PAGE);
            for piece in &pieces {
                data.extend(needed.bytes(block, piece)?);
            }
            let ranges: Vec<(u64, u32)> = pieces.iter().map(|p| (p.address, p.pages)).collect();
            let keys = dedup.keys(&data);
            pages.lock().unwrap_or_else(PoisonError::into_inner).note(owner, &ranges, &keys);
            let number = lock().number();
            let encoded = encode(number, owner, Pages { ranges: &ranges, data, elide_zero: false }, codec, Some(&dedup));
            lock().put(encoded)?;
        }
        Ok(())
    };
    chain.deliver(&place, &mut |bytes| {
        report.bytes(bytes, Some(total));
        signal::check_interrupted()
    })?;
    let mut zero: BTreeMap<Owner, Vec<(u64, u32)>> = BTreeMap::new();
    chain.zero.iter().for_each(|&(owner, address, pages)| zero.entry(owner).or_default().push((address, pages)));
    for (owner, ranges) in zero {
        for ranges in chunks(&ranges) {
            let number = lock().number();
            lock().put(encode_zero(number, owner, &ranges))?;
        }
    }
    drop(out);
    writer.index()?;
    let summary = writer.finish()?.1;
    target.trim(summary.bytes)?;
    Ok((summary, pages.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

/// Puts pieces together that make up a block each: of one owner, not too many pages.
fn cut(pieces: &[Piece]) -> Vec<(Owner, Vec<Piece>)> {
    let mut sorted = pieces.to_vec();
    sorted.sort_unstable();
    let mut blocks: Vec<(Owner, Vec<Piece>)> = Vec::new();
    let mut room = 0;
    for mut piece in sorted {
        while piece.pages > 0 {
            if room == 0 || blocks.last().is_none_or(|(owner, _)| *owner != piece.owner) {
                blocks.push((piece.owner, Vec::new()));
                room = BLOCK;
            }
            let pages = piece.pages.min(room);
            if let Some((_, block)) = blocks.last_mut() {
                block.push(Piece { pages, ..piece });
            }
            room -= pages;
            piece = Piece {
                pages: piece.pages - pages,
                page: piece.page + pages,
                address: piece.address + u64::from(pages) * PAGE as u64,
                ..piece
            };
        }
    }
    blocks
}

/// Ranges in lots that one block may describe.
fn chunks(ranges: &[(u64, u32)]) -> Vec<Vec<(u64, u32)>> {
    let mut lots: Vec<Vec<(u64, u32)>> = Vec::new();
    let mut room = 0;
    for &(mut address, mut pages) in ranges {
        while pages > 0 {
            if room == 0 || lots.last().is_none_or(|lot| lot.len() == MAX_KEPT.0) {
                lots.push(Vec::new());
                room = MAX_KEPT.1;
            }
            let n = u64::from(pages).min(room);
            if let Some(lot) = lots.last_mut() {
                lot.push((address, n as u32));
            }
            (room, pages, address) = (room - n, pages - n as u32, address + n * PAGE as u64);
        }
    }
    lots
}

/// Reads the new image again: its pages must be those of the chain.
fn compare(target: &Target, chain: &Chain, pages: &Inherited, report: &mut dyn Report) -> Result<()> {
    let file = PathBuf::from(format!("/proc/self/fd/{}", target.open().as_raw_fd()));
    let doing = || "reading the merged image again";
    let merged = Chain::whole(&file, arch::MACHINE, &[]).context(doing)?;
    let found = Inherited::of_image(&merged, u64::MAX, &mut |bytes| {
        report.bytes(bytes, None);
        signal::check_interrupted()
    });
    if !found.context(doing)?.is_same(pages) || merged.zero_ranges() != chain.zero_ranges() {
        return Err(Error::other("the merged image is not what its parts are").help("please report this; nothing was written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_blocks_of_one_owner() {
        let piece = |pid, address: u64, pages, page| Piece { owner: Owner::Process(pid), address: address * PAGE as u64, pages, page };
        let blocks = cut(&[piece(2, 0, 5, 200), piece(1, 10, 200, 0), piece(1, 300, 10, 0)]);
        let sizes: Vec<(Owner, u32)> = blocks.iter().map(|(owner, list)| (*owner, list.iter().map(|p| p.pages).sum())).collect();
        assert_eq!(sizes, [(Owner::Process(1), 128), (Owner::Process(1), 82), (Owner::Process(2), 5)]);
        assert_eq!(blocks[1].1, [piece(1, 138, 72, 128), piece(1, 300, 10, 0)]);
    }

    #[test]
    fn what_a_block_describes_is_bounded() {
        let lots = chunks(&[(0, 70_000), (1 << 40, 3)]);
        assert_eq!(lots, [vec![(0, 65536)], vec![(65536 * PAGE as u64, 4464), (1 << 40, 3)]]);
        let many: Vec<(u64, u32)> = (0..MAX_KEPT.0 as u64 + 1).map(|n| (n << 13, 1)).collect();
        assert_eq!(chunks(&many).iter().map(Vec::len).collect::<Vec<_>>(), [MAX_KEPT.0, 1]);
    }
}
