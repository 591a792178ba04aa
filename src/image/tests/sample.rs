//! A small tree and its pages, the same in every run.

use crate::image::{Block, Codec, Content, Dedup, Options, Owner, Pages, SectionKind, Summary, Writer, encode};
use crate::resource::credentials::Credentials;
use crate::resource::descriptor::{Descriptor, FileKind, OpenFile};
use crate::resource::device::Device;
use crate::resource::limits::Limits;
use crate::resource::memory::{AddressSpace, Backing, Borders, MappedFile, Mapping};
use crate::resource::pipe::{Pipe, PipeEnd};
use crate::resource::process::{Fs, Process, State};
use crate::resource::sched::Sched;
use crate::resource::shared::{Object, Origin};
use crate::resource::signals::{Action, Signals};
use crate::resource::thread::{Thread, serde_bytes_vec::Bytes};
use crate::resource::timers::Timers;
use crate::resource::{Manifest, Tree};
use crate::sys::arch::Registers;
use std::collections::BTreeMap;
use std::io::Write;

pub const MACHINE: u16 = 62;
pub const PAGE: usize = 4096;

/// xorshift64*: small, seeded, the same everywhere.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

pub fn manifest() -> Manifest {
    Manifest {
        meio: "0.1.0".into(),
        created: 1_700_000_000,
        kernel: "6.18.0".into(),
        host: "lab".into(),
        root_pid: 400,
        xfeatures: 7,
    }
}

fn thread(tid: i32) -> Thread {
    Thread {
        tid,
        comm: b"counter".to_vec(),
        registers: Registers { rip: 0x40_1000, rsp: 0x7ffd_0000_1000, orig_rax: u64::MAX, ..Registers::default() },
        xstate: (0..576u32).map(|n| n as u8).collect(),
        waiting: None,
        sigmask: 1 << 9,
        pending: vec![Bytes(vec![3; 128])],
        altstack: (0, 2, 0),
        clear_child_tid: 0x7f00_0000_0010,
        robust_list: (0x7f00_0000_0020, 24),
        rseq: Some((0x7f00_0000_0040, 32, 0x5305_3053, 0)),
        credentials: Credentials { uid: [1000; 4], gid: [100; 4], groups: vec![100, 27], ..Credentials::default() },
        sched: Sched { nice: 5, affinity: vec![3], timer_slack_ns: 50_000, ..Sched::default() },
        pdeathsig: 0,
    }
}

fn space() -> AddressSpace {
    AddressSpace {
        mappings: vec![
            Mapping {
                start: 0x40_0000,
                end: 0x40_4000,
                prot: 5,
                shared: false,
                backing: Backing::File { file: 0, offset: 0 },
                flags: vec![],
                name: "/usr/bin/counter".into(),
            },
            Mapping {
                start: 0x7f00_0000_0000,
                end: 0x7f00_0004_0000,
                prot: 3,
                shared: false,
                backing: Backing::Anonymous,
                flags: vec!["lo".into()],
                name: "[heap]".into(),
            },
        ],
        borders: Borders { start_code: 0x40_0000, end_code: 0x40_4000, auxv: vec![6, 0, 0, 16], ..Borders::default() },
        exe: Backing::File { file: 0, offset: 0 },
        vdso_hash: 0x1234_5678_9abc_def0,
    }
}

fn process(pid: i32, ppid: i32, tids: &[i32]) -> Process {
    Process {
        pid,
        ppid,
        pgid: 400,
        sid: 400,
        state: State::Running,
        exit_signal: 17,
        threads: tids.iter().map(|&tid| thread(tid)).collect(),
        comm: b"counter".to_vec(),
        memory: Some(space()),
        fs: Fs { cwd: "/tmp".into(), cwd_deleted: false, root: "/".into(), umask: 0o22 },
        descriptors: vec![
            Descriptor { fd: 0, file: 0, cloexec: false },
            Descriptor { fd: 3, file: 1, cloexec: true },
            Descriptor { fd: 4, file: 2, cloexec: false },
        ],
        signals: Signals { actions: vec![(15, Action { handler: 0x40_1200, flags: 4, restorer: 0x40_1300, mask: 0 })], pending: vec![] },
        timers: Timers::default(),
        limits: Limits(vec![(1024, 4096); 16]),
        personality: 0,
        dumpable: 1,
        subreaper: false,
        thp_disable: false,
        oom_score_adj: 0,
    }
}

/// Two processes, one of them with two threads, connected by a pipe.
pub fn tree() -> Tree {
    let file = |id, link: &str, kind| OpenFile { id, flags: 2, pos: 0, link: link.into(), kind };
    Tree {
        processes: vec![process(400, 0, &[400, 401]), process(402, 400, &[402])],
        files: vec![
            file(0, "/dev/null", FileKind::Device(Device { path: "/dev/null".into(), number: (1, 3) })),
            file(1, "pipe:[77]", FileKind::Pipe(PipeEnd { pipe: 0 })),
            file(2, "pipe:[77]", FileKind::Pipe(PipeEnd { pipe: 0 })),
        ],
        pipes: vec![Pipe { path: None, size: 65536, content: vec![Bytes(b"unread".to_vec())] }],
        terminals: vec![],
        mapped: vec![MappedFile { path: "/usr/bin/counter".into(), size: 16384, mtime: (1_600_000_000, 5), build_id: Some(vec![0xab; 20]) }],
        objects: vec![Object { id: 0, origin: Origin::Memfd { name: "cache".into(), seals: 0 }, size: 5 * PAGE as u64 }],
    }
}

/// A page that compresses.
pub fn text(n: u64) -> Vec<u8> {
    format!("page {n:>10}\n").into_bytes().into_iter().cycle().take(PAGE).collect()
}

/// A page that does not.
pub fn noise(n: u64) -> Vec<u8> {
    let mut random = Random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..PAGE / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

pub fn zero() -> Vec<u8> {
    vec![0; PAGE]
}

/// One block as it goes in.
pub struct Input {
    pub owner: Owner,
    pub ranges: Vec<(u64, u32)>,
    pub pages: Vec<Vec<u8>>,
    pub elide_zero: bool,
    pub codec: Codec,
}

/// Blocks with every kind of run: data raw and compressed, zeros named and left out, copies from other blocks and
/// from the same, an empty block, and one of an object.
pub fn inputs() -> Vec<Input> {
    let process = Owner::Process(400);
    let heap = 0x7f00_0000_0000;
    let page = PAGE as u64;
    vec![
        Input {
            owner: process,
            ranges: vec![(heap, 5), (heap + 8 * page, 1)],
            pages: vec![text(1), zero(), noise(2), text(1), text(3), noise(2)],
            elide_zero: true,
            codec: Codec::Raw,
        },
        Input {
            owner: process,
            ranges: vec![(0x40_2000, 2)],
            pages: vec![zero(), text(9)],
            elide_zero: false,
            codec: Codec::Zstd(3),
        },
        Input { owner: process, ranges: vec![(heap + 16 * page, 1)], pages: vec![zero()], elide_zero: true, codec: Codec::Raw },
        Input {
            owner: Owner::Process(402),
            ranges: vec![(heap, 6)],
            pages: vec![noise(2), text(3), text(9), text(12), noise(11), zero()],
            elide_zero: true,
            codec: Codec::Zstd(3),
        },
        Input {
            owner: Owner::Object(0),
            ranges: vec![(0, 3), (4 * page, 1)],
            pages: vec![noise(20), zero(), text(12), zero()],
            elide_zero: false,
            codec: Codec::Raw,
        },
    ]
}

/// The content of every page that a restore must make, by owner and address.
pub type Memory = BTreeMap<(Owner, u64), Vec<u8>>;

/// What [`inputs`] put in; pages that may be left out are not there.
pub fn expected(inputs: &[Input]) -> Memory {
    let mut memory = Memory::new();
    for input in inputs {
        let addresses = input.ranges.iter().flat_map(|&(start, n)| (0..u64::from(n)).map(move |k| start + k * PAGE as u64));
        for (address, page) in addresses.zip(&input.pages) {
            if !input.elide_zero || *page != zero() {
                memory.insert((input.owner, address), page.clone());
            }
        }
    }
    memory
}

/// What came out.
pub fn memory(blocks: &[Block]) -> Memory {
    let mut memory = Memory::new();
    for block in blocks {
        let mut data = block.data.chunks_exact(PAGE);
        for run in &block.runs {
            for n in 0..run.pages {
                let page = match run.content {
                    Content::Zero => zero(),
                    Content::Data => data.next().unwrap().to_vec(),
                    Content::Copy { block, page } => {
                        let at = (page + n) as usize * PAGE;
                        blocks[block as usize].data[at..at + PAGE].to_vec()
                    }
                };
                let before = memory.insert((block.owner, run.address + u64::from(n) * PAGE as u64), page);
                assert!(before.is_none(), "a page came twice");
            }
        }
        assert!(data.next().is_none());
    }
    memory
}

/// The id of every sample image.
pub const ID: [u8; 16] = *b"sixteen bytes id";

/// Starts a sample image, up to its pages.
pub fn start<W: Write>(out: W) -> Writer<W> {
    let mut writer = Writer::new(out, Options { machine: MACHINE, id: ID }).unwrap();
    writer.section(SectionKind::Manifest, &manifest()).unwrap();
    writer.section(SectionKind::Tree, &tree()).unwrap();
    writer
}

/// Writes an image of the sample tree with these blocks.
pub fn image(inputs: &[Input]) -> (Vec<u8>, Summary) {
    let dedup = Dedup::new(&ID);
    let mut writer = start(Vec::new());
    for (n, input) in inputs.iter().enumerate() {
        let pages = Pages { ranges: &input.ranges, data: input.pages.concat(), elide_zero: input.elide_zero };
        writer.append(&encode(n as u32, input.owner, pages, input.codec, Some(&dedup))).unwrap();
    }
    writer.finish().unwrap()
}
