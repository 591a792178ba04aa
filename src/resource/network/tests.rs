//! Network namespaces that are saved and made again. They need the rights of root; without them there is nothing to see.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// A shell that has run a script in a network namespace of its own, and waits.
struct Shell(Child);

impl Shell {
    fn new(script: &str) -> Shell {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-ec", &format!("{script}\necho ready\nread x")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Shell(child)
    }

    fn save(&self) -> (Saved, Capture) {
        let mut capture = Capture::default();
        let saved = super::capture(self.0.id() as i32, &mut capture).unwrap();
        (saved, capture)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.stdin.take().unwrap().write_all(b"\n");
        let _ = self.0.wait();
    }
}

/// Makes everything in a fresh namespace, where `look` then is; also gives what a capture of it finds.
fn again<T: Send>(saved: &Saved, look: impl FnOnce() -> T + Send) -> (Saved, T) {
    let prepared = saved.prepare().unwrap();
    std::thread::scope(|scope| {
        let (told, tell) = std::sync::mpsc::channel();
        let (wait, go) = std::sync::mpsc::channel::<()>();
        let thread = scope.spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            saved.rebuild(&prepared).unwrap();
            told.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = go.recv();
            look()
        });
        let Ok(tid) = tell.recv() else { std::panic::resume_unwind(thread.join().err().unwrap()) };
        let mut capture = Capture::default();
        let found = super::capture(tid, &mut capture).unwrap();
        drop(wait);
        (found, thread.join().unwrap())
    })
}

fn able() -> bool {
    nix::unistd::geteuid().is_root() && Command::new("ip").arg("-V").output().is_ok()
}

fn same(before: &Saved, after: &Saved) {
    let each = |a: &[Record], b: &[Record]| {
        assert_eq!(a.len(), b.len(), "\n{a:#?}\n{b:#?}");
        a.iter().zip(b).for_each(|(a, b)| assert_eq!(a, b));
    };
    before.links.iter().zip(&after.links).for_each(|(a, b)| assert_eq!(a, b));
    assert_eq!(before.links.len(), after.links.len());
    each(&before.addresses, &after.addresses);
    each(&before.nexthops, &after.nexthops);
    each(&before.routes, &after.routes);
    each(&before.rules, &after.rules);
    each(&before.neighbours, &after.neighbours);
    assert_eq!(before.sysctls, after.sysctls);
    assert_eq!(before, after);
}

#[test]
fn an_empty_namespace() {
    if !able() {
        return;
    }
    let (before, capture) = Shell::new("").save();
    assert!(capture.refusals.is_empty(), "{:?}", capture.refusals);
    assert!(before.sysctls.is_empty(), "{:?}", before.sysctls);
    same(&before, &again(&before, || ()).0);
}

#[test]
fn interfaces_addresses_routes_rules_neighbours_sysctls() {
    if !able() {
        return;
    }
    let shell = Shell::new(
        "ip link set lo up; ip link add d0 type veth peer name e0; ip link set e0 up; ip link set d0 mtu 1400 address 02:00:00:00:00:11 up alias second
        ip addr add 10.1.2.3/24 brd + dev d0 label d0:x; ip addr add 10.9.0.1/32 peer 10.9.0.2 dev d0 scope link
        ip addr add fd00::1/64 dev d0; ip addr add fd00::5/64 dev d0; ip addr add fd00::3/64 dev d0; ip addr add 10.1.2.4/24 dev d0 valid_lft 9000 preferred_lft 8000
        ip link add br0 type bridge stp_state 1 forward_delay 400; ip link add v0 type veth peer name v1
        ip link set v0 master br0 up; ip link set v1 up; ip link set br0 up; ip addr add 192.0.2.1/24 dev br0
        ip link add m0 link d0 type macvlan mode bridge; ip link add d1 type bridge; ip tuntap add dev t0 mode tap user 7
        ip route add default via 10.1.2.254 metric 7; ip route add 198.51.100.0/24 via 10.1.2.253 table 77
        ip route add unreachable 203.0.113.0/24; ip route add 172.16.0.0/12 nexthop via 10.1.2.250 nexthop via 10.1.2.251 weight 3
        ip -6 route add fd01::/32 via fd00::2; ip -6 route add blackhole fd02::/32 table 9
        ip nexthop add id 5 via 10.1.2.9 dev d0; ip route add 100.64.0.0/10 nhid 5
        ip route del 10.9.0.2
        ip rule add from 10.1.2.3 lookup 77 pref 100; ip -6 rule add fwmark 3 lookup 9; ip rule del pref 32767
        ip neigh add 10.1.2.9 lladdr 02:00:00:00:00:99 dev d0 nud permanent; ip neigh add proxy 10.1.2.77 dev d0
        ip -6 neigh add fd00::9 lladdr 02:00:00:00:00:98 dev d0 nud permanent
        echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/d1/disable_ipv6
        echo 2 > /proc/sys/net/ipv4/conf/d0/rp_filter; echo 0 > /proc/sys/net/ipv4/ping_group_range || true
        echo '1000 2000' > /proc/sys/net/ipv4/ping_group_range; echo 20000 30000 > /proc/sys/net/ipv4/ip_local_port_range
        sleep 2.5",
    );
    let (before, capture) = shell.save();
    assert!(capture.refusals.is_empty(), "{:?}", capture.refusals);
    let (after, seen) = again(&before, || {
        let out = Command::new("ip").args(["route", "get", "198.51.100.7", "from", "10.1.2.3"]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    });
    assert!(seen.contains("via 10.1.2.253 dev d0 table 77"), "{seen}");
    same(&before, &after);
}

#[test]
fn settings_of_one_interface() {
    assert!(sysctl::is_of_interface("ipv6/conf/tun0/disable_ipv6", "tun0"));
    for (key, name) in
        [("ipv6/conf/tun1/mtu", "tun0"), ("ipv4/conf/tun0/../../../x", "tun0"), ("ipv4/conf/../x", ".."), ("ipv4/tun0/x", "tun0")]
    {
        assert!(!sysctl::is_of_interface(key, name), "{key}");
    }
}
