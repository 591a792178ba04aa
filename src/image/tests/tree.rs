//! The metadata of the sample images: a small tree. When the saved types change, this changes with them.

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

const PAGE: u64 = 4096;

pub fn manifest() -> Manifest {
    Manifest {
        meio: "0.1.0".into(),
        created: 1_700_000_000,
        kernel: "6.18.0".into(),
        host: "lab".into(),
        root_pid: 400,
        xfeatures: 7,
        processor: String::new(),
        capsule: None,
        birth: None,
        stands_for: None,
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
        ..Thread::default()
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
                huge_page_kib: 0,
                name: "/usr/bin/counter".into(),
                policy: None,
            },
            Mapping {
                start: 0x7f00_0000_0000,
                end: 0x7f00_0004_0000,
                prot: 3,
                shared: false,
                backing: Backing::Anonymous,
                flags: vec!["lo".into()],
                huge_page_kib: 0,
                name: "[heap]".into(),
                policy: None,
            },
        ],
        borders: Borders { start_code: 0x40_0000, end_code: 0x40_4000, auxv: vec![6, 0, 0, 16], ..Borders::default() },
        exe: Backing::File { file: 0, offset: 0 },
        vdso_hash: 0x1234_5678_9abc_def0,
        guards: Vec::new(),
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
            Descriptor { fd: 0, file: 0, cloexec: false, locks: vec![] },
            Descriptor { fd: 3, file: 1, cloexec: true, locks: vec![] },
            Descriptor { fd: 4, file: 2, cloexec: false, locks: vec![] },
        ],
        signals: Signals { actions: vec![(15, Action { handler: 0x40_1200, flags: 4, restorer: 0x40_1300, mask: 0 })], pending: vec![] },
        timers: Timers::default(),
        limits: Limits(vec![(1024, 4096); 16]),
        personality: 0,
        dumpable: 1,
        subreaper: false,
        thp_disable: false,
        ..Process::default()
    }
}

/// Two processes, one of them with two threads, connected by a pipe.
pub fn tree() -> Tree {
    let file = |id, link: &str, kind| OpenFile { id, flags: 2, pos: 0, link: link.into(), locks: vec![], kind };
    Tree {
        processes: vec![process(400, 0, &[400, 401]), process(402, 400, &[402])],
        files: vec![
            file(0, "/dev/null", FileKind::Device(Device { path: "/dev/null".into(), number: (1, 3) })),
            file(1, "pipe:[77]", FileKind::Pipe(PipeEnd { pipe: 0 })),
            file(2, "pipe:[77]", FileKind::Pipe(PipeEnd { pipe: 0 })),
        ],
        pipes: vec![Pipe { path: None, size: 65536, content: vec![Bytes(b"unread".to_vec())] }],
        terminals: vec![],
        mapped: vec![MappedFile {
            path: "/usr/bin/counter".into(),
            size: 16384,
            mtime: (1_600_000_000, 5),
            build_id: Some(vec![0xab; 20]),
            namespace: None,
        }],
        objects: vec![Object { id: 0, origin: Origin::Memfd { name: "cache".into(), seals: 0, mode: None, owner: None }, size: 5 * PAGE }],
        ..Tree::default()
    }
}
