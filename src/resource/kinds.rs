//! All kinds of kernel object, whether meio keeps them, and which test shows it. The README's table is made of this.

use serde::Serialize;

/// How far a kind is supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It comes back.
    Supported,
    /// It comes back, but for what the sentence names.
    Partly,
    /// It is named and refused.
    Refused,
}

/// One kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// Its name, as the graph and the lists have it.
    pub name: &'static str,
    /// How far it is supported.
    pub status: Status,
    /// What comes back, or why it does not.
    pub says: &'static str,
    /// Lines of `tests/fixtures.rs` that show that it comes back, or tests that provoke the refusal.
    pub shown_by: &'static [&'static str],
}

use Status::{Partly, Refused, Supported};

macro_rules! kinds {
    ($($name:literal, $status:ident, $says:literal, [$($test:literal),*];)*) => {
        /// All kinds, one line each.
        pub const KINDS: &[Kind] = &[$(Kind { name: $name, status: $status, says: $says, shown_by: &[$($test),*] }),*];
    };
}

kinds! {
    "process", Supported, "pids, parents, stopped ones, zombies, orphans, any number of threads", ["tree", "zombies", "stopped", "threads_1000"];
    "session", Supported, "same number, same leader", ["tree"];
    "process group", Supported, "same number, same members", ["tree"];
    "mapped file", Supported, "mapped again from its path, for reading only where it was; private changes travel in the image", ["filemap"];
    "shared memory", Supported, "one object for all that map it", ["anonymous"];
    "memfd", Supported, "content, name, mode, owner, seals; of huge pages: refused", ["memfd", "seals"];
    "deleted file", Supported, "content travels in the image", ["deleted"];
    "file", Supported, "path, flags, offset shared as before, locks", ["files", "locks"];
    "directory", Supported, "opened again by its path, with its position", ["directory", "folders"];
    "path", Supported, "`O_PATH` descriptors, opened again by path", ["files"];
    "pipe", Supported, "unread content, packet borders, size", ["pipes"];
    "FIFO", Supported, "the same, through its path", ["fifo"];
    "device", Supported, "null, zero, full, random, urandom", ["devices"];
    "epoll", Supported, "nested, edge-triggered, one-shot, numbers that were closed or lead elsewhere", ["epoll", "waits_in_epoll"];
    "terminal", Partly, "modes, size, session, foreground group; one session with a terminal of its own", ["terminal::a_restored_job_can_be_suspended"];
    "ignored", Partly, "left out by `--ignore`: `/dev/null` stands in for it", ["refusals::what_is_left_out_is_dev_null"];
    "pipe to outside", Partly, "kept by `--external`: the same pipe, or standard input or output", ["refusals::a_pipe_to_outside_is_found_again"];
    "eventfd", Supported, "its value, semaphore or not", ["eventfd"];
    "timerfd", Supported, "every clock; time left, interval, expirations not yet read", ["timerfd"];
    "unix socket", Partly, "names, peers, unread messages with descriptors and credentials, waiting connections, ends, options; refused: a peer outside, bytes in a connection not accepted yet, one whose client has closed before that",
        ["unix_pairs", "unix_names", "unix_rights", "unix_ends", "unix_dgram", "unix_options"];
    "netlink socket", Partly, "protocol, port id, groups, peer, options, filter; refused: unread messages, a list on its way, queues of packets", ["netlink"];
    "TCP connection", Partly, "every state: addresses, numbers, windows, both queues, options; refused: kTLS, MPTCP, urgent data", ["tcp", "tcp_over_ipv6", "tcp_mapped", "tcp_pair", "tcp_states", "tcp_states_over_ipv6"];
    "listening socket", Partly, "TCP: address, backlog, options, groups that share a port, connections that wait with all they hold, half-open ones; MPTCP: when nothing waits", ["listening", "backlog"];
    "signalfd", Supported, "its mask", ["signalfd"];
    "pidfd", Supported, "the same process, also one that has ended", ["pidfd"];
    "inotify", Partly, "watches with their numbers; unread events become one that says that events were lost, with a warning", ["inotify"];
    "fanotify", Partly, "marks on files, mounts and file systems; unread events and groups asked for permission are refused", ["fanotify"];
    "file owner", Supported, "who gets which signal for an open file, leases; dnotify is refused", ["owners"];
    "namespace", Partly, "pid (nested too), ipc, uts, time, user, cgroup: names, limits, offsets, id maps; user namespaces inside one another and without root; a connection inside a nested pid namespace shows peer 0 afterwards, with a warning", ["namespaces_all", "namespaces_nested", "namespace_of_users", "namespace_of_cgroups", "rootless", "usernest"];
    "mount namespace", Supported, "its whole table: binds, tmpfs with contents, proc, devpts, overlay, flags, propagation", ["mounts"];
    "network namespace", Partly, "interfaces, addresses, routes, rules, neighbours, sysctls; packet filters and traffic control are refused", ["network"];
    "file in memory", Supported, "files of a tmpfs of the tree's own", ["mounts"];
    "pseudo-terminal", Supported, "both sides in the tree: number, modes, sessions, what is unread either way; console redirection is not seen", ["pty"];
    "System V shared memory", Supported, "same id, key, owner and content; attached where it was; times are those of the restore", ["sysvshm"];
    "System V semaphores", Supported, "same id, values, who acted last, what is undone at the end of a process; times are those of the restore", ["sysvsem"];
    "System V messages", Supported, "same id, content, types, counters; times are those of the restore", ["sysvmsg"];
    "attributes", Partly, "I/O priority, memory policies of tasks and mappings, names of mappings, clamps, core cookies, MDWE, membarrier, THP, core dump filter, speculation and more; refused: keyrings of threads and processes", ["switches", "numa", "named_memory", "clamped", "cores"];
    "cgroup", Supported, "version 1 and 2, threads too: joined again where they are there", ["cgroup"];
    "seccomp", Supported, "strict mode and filters of each thread", ["seccomp"];
    "POSIX message queue", Partly, "name, sizes, owner, unread messages; who is told of the next by signal, but for SIGEV_THREAD", ["mqueue"];
    "UDP socket", Partly, "UDP-Lite too: addresses, peers, groups, options, unread datagrams with their senders; refused: one that is begun and not sent, errors to be read, tunnels",
        ["udp", "udp_groups"];
    "raw socket", Partly, "protocol, address, peer, groups, filters, options; what was received and not read is lost", ["raw"];
    "ping socket", Partly, "the number of its echoes, likewise", ["raw"];
    "packet socket", Partly, "protocol, interface, memberships, fanout, filter, options; what was received and not read is lost; rings are refused", ["packet"];
    "tun", Partly, "its interface with name, number, addresses, routes, offloads; packets not read are lost; filters are refused", ["tun", "tun_inside"];
    "AIO context", Partly, "the same number, its ring with completions not yet fetched; what is polled for cannot be seen and is not kept, with a warning", ["aio"];
    "socket", Refused, "its peer and what is under way cannot be read", ["socket"];
    "io_uring", Refused, "what is under way in its rings cannot be read", ["io_uring"];
    "userfaultfd", Refused, "another process answers for the memory", ["userfaultfd"];
    "perf", Refused, "counters of the processor cannot be put back", ["perf"];
    "bpf", Refused, "programs and maps live in the kernel", ["bpf"];
    "traced process", Refused, "somebody else holds it by ptrace(2)", ["traced"];
    "refused", Refused, "what meio does not know", ["userfaultfd"];
}

/// The kind of this name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.name == name)
}
