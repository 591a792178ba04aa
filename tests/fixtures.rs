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
                fn in_a_series() { through(stringify!($name), $program, &[$($argument),*], Way::Series) }
                fn in_a_pid_namespace() { through(stringify!($name), $program, &[$($argument),*], Way::PidNamespace) }
            }
        }
    )*};
}

/// Fixtures with datagrams of no bytes that nobody has received: the kernel shows them to the first who looks only, so that
/// they are not in the second image of a series.
const SEEN_ONCE: &[&str] = &["udp", "unix_dgram"];

/// Fixtures that measure to the tenth of a second when they were away, which a series of stops makes a guess.
const PUNCTUAL: &[&str] = &["timerfd"];

fn through(name: &str, program: &str, arguments: &[&str], way: Way) {
    let alone = SEEN_ONCE.contains(&name) || PUNCTUAL.contains(&name);
    let way = if way == Way::Series && alone { Way::DumpOnly } else { way };
    let mut lab = Lab::new(name);
    let running = lab.fixture(program, arguments);
    lab.take(running, way);
}

fixtures! {
    advice: "advice";
    aio: "aio";
    anonymous: "anonymous";
    attributes: "attributes";
    backlog: "backlog" "4";
    backlog_over_ipv6: "backlog" "6";
    backlog_mapped: "backlog" "46";
    busy: "busy";
    cgroup: "cgroup";
    credentials: "credentials";
    deleted: "deleted";
    devices: "devices";
    directory: "directory";
    epoll: "epoll";
    eventfd: "eventfd";
    fanotify: "fanotify";
    fifo: "fifo";
    filemap: "filemap";
    files: "files";
    files_with_awkward_names: "files" "names";
    files_with_names_not_utf8: "files" "bytes";
    folders: "folders";
    growth: "growth";
    guards: "guards";
    hugetlb: "hugetlb";
    inotify: "inotify";
    ipc_inside: "ipcspaces";
    ipc_twice: "ipcspaces" "apart";
    itimers: "itimers";
    locks: "locks";
    memfd: "memfd";
    mqueue: "mqueue";
    numa: "numa";
    owners: "owners";
    named_memory: "options" "names";
    clamped: "options" "clamp";
    clocks: "clocks" "8";
    cores: "options" "core";
    packet: "packet";
    pidfd: "pidfd";
    rewriting: "rewriting";
    records: "records";
    seals: "seals";
    namespace_of_cgroups: "namespaces" "C";
    namespace_of_clocks: "namespaces" "T";
    namespace_of_ipc: "namespaces" "i";
    namespace_of_names: "namespaces" "u";
    namespace_of_pids: "namespaces" "p";
    namespace_of_users: "namespaces" "Uu";
    namespaces_all: "namespaces" "uiTCp";
    namespaces_nested: "namespaces" "uP";
    mounts: "mounts";
    listening: "listening";
    nestpeer: "nestpeer";
    netlink: "netlink";
    network: "network";
    mixed: "mixed" "100";
    objects: "objects";
    pipes: "pipes";
    pty: "pty";
    rootless: "rootless";
    rootless_of_nobody: "rootless" "nobody";
    raw: "raw";
    signalfd: "signalfd";
    seccomp: "seccomp";
    signals: "signals";
    sleeps: "sleeps";
    sleeps_in_epoll: "sleeps" "epoll";
    stopped: "stopped";
    switches: "switches";
    sysvmsg: "sysvmsg";
    sysvsem: "sysvsem";
    sysvshm: "sysvshm";
    tcp: "tcp" "4";
    tcp_over_ipv6: "tcp" "6";
    tcp_states: "tcp_states" "4";
    tcp_states_over_ipv6: "tcp_states" "6";
    tcp_pair: "tcp_pair" "4";
    tcp_pair_over_ipv6: "tcp_pair" "6";
    tcp_mapped: "tcp" "46";
    threads_200: "threads" "200";
    threads_1000: "threads" "1000";
    timerfd: "timerfd";
    timers: "timers";
    tree: "tree";
    tun: "tun";
    tun_inside: "tun" "inside";
    udp: "udp";
    udp_groups: "udp_groups";
    unread: "unread";
    unix_dgram: "unix_dgram";
    unix_ends: "unix_ends";
    unix_names: "unix_names";
    unix_options: "unix_options";
    unix_pairs: "unix_pairs";
    unix_rights: "unix_rights";
    usernest: "usernest";
    vdso: "vdso";
    vectors_blocked: "vectors" "blocked";
    vectors_spinning: "vectors" "spin";
    waits: "waits";
    waits_in_epoll: "waits" "epoll";
    wrapped: "wrapped";
    zombies: "zombies";
}

crate::alone! {
    /// A program whose file is gone is restored all the same.
    fn deleted_executable() {
        for way in [Way::DumpOnly, Way::KillRestore, Way::TwiceRestored, Way::PidNamespace] {
            let mut lab = Lab::new("busy");
            let copy = lab.path("program");
            std::fs::copy(crate::lab::compile("busy"), &copy).expect("copy");
            let running = lab.ready(&copy, &[]);
            std::fs::remove_file(&copy).expect("remove");
            lab.take(running, way);
        }
    }
}
