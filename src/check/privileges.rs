//! Privileges: capabilities(7) of this process, and what the administrator has switched off.

use super::{Finding, Weight};

/// The capabilities in force, `CapEff` of proc_pid_status(5), bit n for capability n.
pub struct Capabilities(u64);

/// Number, name, and what is lost without it.
const KNOWN: [(u32, &str, Weight, &str); 10] = [
    (19, "CAP_SYS_PTRACE", Weight::Feature, "dump of processes of other users, or of ones with more privileges"),
    (40, "CAP_CHECKPOINT_RESTORE", Weight::Feature, "restore with the same pids as a user other than root"),
    (21, "CAP_SYS_ADMIN", Weight::Feature, "restore --pid-namespace, chroots, and the same pids where CAP_CHECKPOINT_RESTORE is missing"),
    (24, "CAP_SYS_RESOURCE", Weight::Feature, "restore of limits above the present hard ones, and of a lowered oom_score_adj"),
    (2, "CAP_DAC_READ_SEARCH", Weight::Feature, "dump of files that this user may not read, and the time left of sleeps under way"),
    (7, "CAP_SETUID", Weight::Feature, "restore of processes of other users"),
    (6, "CAP_SETGID", Weight::Feature, "restore of processes of other groups"),
    (8, "CAP_SETPCAP", Weight::Feature, "restore of bounding sets and securebits"),
    (23, "CAP_SYS_NICE", Weight::Feature, "restore of negative nice values and real-time scheduling"),
    (12, "CAP_NET_ADMIN", Weight::Feature, "dump and restore of trees with connections"),
];

impl Capabilities {
    /// Those of this process; none when they cannot be read.
    pub fn own() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Capabilities(parse(&status))
    }

    /// Exactly these, by name.
    #[cfg(test)]
    pub fn of(names: &[&str]) -> Self {
        Capabilities(KNOWN.iter().filter(|k| names.contains(&k.1)).fold(0, |set, k| set | 1 << k.0))
    }

    /// Whether a capability is in force.
    pub fn has(&self, name: &str) -> bool {
        KNOWN.iter().any(|known| known.1 == name && self.0 >> known.0 & 1 == 1)
    }
}

fn parse(status: &str) -> u64 {
    let set = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    set.and_then(|s| u64::from_str_radix(s.trim(), 16).ok()).unwrap_or(0)
}

/// One finding for each capability, and one each for yama and shadow stacks.
pub fn all(capabilities: &Capabilities) -> Vec<Finding> {
    let mut findings: Vec<Finding> = KNOWN
        .iter()
        .map(|&(_, name, weight, costs)| Finding {
            name,
            works: capabilities.has(name),
            // CAP_SYS_ADMIN includes what CAP_CHECKPOINT_RESTORE allows.
            weight: if name == "CAP_CHECKPOINT_RESTORE" && capabilities.has("CAP_SYS_ADMIN") { Weight::Spare } else { weight },
            detail: if capabilities.has(name) { "in force".into() } else { "not in force".into() },
            costs,
            mend: give(name),
        })
        .collect();
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    findings.push(yama(scope.trim(), capabilities.has("CAP_SYS_PTRACE")));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    findings.push(shadow_stacks(&status));
    findings
}

/// How a capability is given; root lacks one only where it was taken away on purpose.
pub fn give(name: &str) -> String {
    let (small, short) = (name.to_lowercase(), name.trim_start_matches("CAP_"));
    if nix::unistd::geteuid().is_root() {
        return format!("it was taken from this root; container: --cap-add {short}; systemd: add {name} to CapabilityBoundingSet=");
    }
    format!("run as root, or: sudo setcap {small}+ep \"$(command -v meio)\"")
}

fn yama(scope: &str, may_trace: bool) -> Finding {
    let (works, detail) = match scope {
        "" => (true, "not in this kernel".to_string()),
        "0" => (true, "0: nothing is forbidden".into()),
        "1" | "2" => (may_trace, format!("{scope}: needs CAP_SYS_PTRACE")),
        _ => (false, format!("{scope}: nobody may trace")),
    };
    Finding {
        name: "yama ptrace_scope",
        works,
        weight: if scope == "3" { Weight::Required } else { Weight::Feature },
        detail,
        costs: "dump of processes that meio did not start",
        mend: match scope {
            "3" => "remove kernel.yama.ptrace_scope=3 from /etc/sysctl.d and restart the machine; 3 cannot be taken back".into(),
            _ => "sysctl -w kernel.yama.ptrace_scope=0, or run as root".into(),
        },
    }
}

/// User shadow stacks: `x86_Thread_features` of proc_pid_status(5), Linux 6.6.
fn shadow_stacks(status: &str) -> Finding {
    let features = status.lines().find_map(|l| l.strip_prefix("x86_Thread_features:"));
    let on = features.is_some_and(|f| f.split_whitespace().any(|f| f == "shstk"));
    Finding {
        name: "no shadow stacks",
        works: !on,
        weight: Weight::Feature,
        detail: if on { "programs here run with shadow stacks".into() } else { "programs here run without shadow stacks".into() },
        costs: "dump of programs that run with shadow stacks",
        mend: "start the program with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        let c = Capabilities(parse("Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n"));
        assert!(KNOWN.iter().all(|k| c.has(k.1)));
        let c = Capabilities(parse("CapEff:\t0000000000080000\n"));
        assert!(c.has("CAP_SYS_PTRACE") && !c.has("CAP_SYS_ADMIN"));
        assert_eq!(parse("nothing"), 0);
    }

    #[test]
    fn yama_scopes() {
        assert!(yama("", false).works && yama("0", false).works);
        assert!(!yama("1", false).works && yama("1", true).works);
        let locked = yama("3", true);
        assert!(!locked.works && locked.weight == Weight::Required);
    }

    #[test]
    fn shadow_stacks_are_seen() {
        assert!(shadow_stacks("x86_Thread_features:\t\n").works);
        assert!(!shadow_stacks("x86_Thread_features:\tshstk wrss\n").works);
    }
}
