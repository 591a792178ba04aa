//! Every kind of process state, taken through every way.

use crate::lab::{Lab, Way};

/// A module for each line, a test in it for each way.
macro_rules! fixtures {
    ($($name:ident: $program:literal $($argument:literal)*;)*) => {$(
        mod $name {
            use crate::lab::Way;
            use super::through;
            crate::alone! {
                fn untouched() { through(stringify!($name), $program, &[$($argument),*], Way::Untouched) }
                fn dumped() { through(stringify!($name), $program, &[$($argument),*], Way::DumpOnly) }
                fn restored() { through(stringify!($name), $program, &[$($argument),*], Way::KillRestore) }
                fn restored_twice() { through(stringify!($name), $program, &[$($argument),*], Way::TwiceRestored) }
                fn in_a_pid_namespace() { through(stringify!($name), $program, &[$($argument),*], Way::PidNamespace) }
            }
        }
    )*};
}

fn through(name: &str, program: &str, arguments: &[&str], way: Way) {
    let mut lab = Lab::new(name);
    let running = lab.fixture(program, arguments);
    lab.take(running, way);
}

fixtures! {
    advice: "advice";
    anonymous: "anonymous";
    attributes: "attributes";
    busy: "busy";
    credentials: "credentials";
    deleted: "deleted";
    devices: "devices";
    directory: "directory";
    eventfd: "eventfd";
    fifo: "fifo";
    filemap: "filemap";
    files: "files";
    files_with_awkward_names: "files" "names";
    files_with_names_not_utf8: "files" "bytes";
    folders: "folders";
    growth: "growth";
    hugetlb: "hugetlb";
    itimers: "itimers";
    locks: "locks";
    memfd: "memfd";
    mixed: "mixed" "100";
    objects: "objects";
    pipes: "pipes";
    signalfd: "signalfd";
    seccomp: "seccomp";
    signals: "signals";
    sleeps: "sleeps";
    sleeps_in_epoll: "sleeps" "epoll";
    stopped: "stopped";
    threads_200: "threads" "200";
    threads_1000: "threads" "1000";
    timerfd: "timerfd";
    timers: "timers";
    tree: "tree";
    vdso: "vdso";
    vectors_blocked: "vectors" "blocked";
    vectors_spinning: "vectors" "spin";
    waits: "waits";
    waits_in_epoll: "waits" "epoll";
    zombies: "zombies";
}

crate::alone! {
    /// A program whose file is gone is restored all the same.
    fn deleted_executable() {
        for way in [Way::DumpOnly, Way::KillRestore, Way::TwiceRestored, Way::PidNamespace] {
            let mut lab = Lab::new("deleted-executable");
            let copy = lab.path("program");
            std::fs::copy(crate::lab::compile("busy"), &copy).expect("copy");
            let running = lab.ready(&copy, &[]);
            std::fs::remove_file(&copy).expect("remove");
            lab.take(running, way);
        }
    }
}
