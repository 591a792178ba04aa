//! /proc/PID/sched and /proc/PID/task/TID/sched: a text of the scheduler
//! (kernel/sched/debug.c, `CONFIG_SCHED_DEBUG`) without a man page.

use super::text::{decimal, lines, split_once};

/// What the scheduler has counted of one thread. Each is `None` when the
/// kernel does not show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sched {
    /// When the thread was last accounted for running, in nanoseconds of its
    /// processor's scheduler clock: it stands still while the thread does.
    pub exec_start_ns: Option<u64>,
    /// Context switches.
    pub nr_switches: Option<u64>,
    /// Context switches by which the thread gave the processor away itself.
    pub nr_voluntary_switches: Option<u64>,
}

/// Parses /proc/PID/sched. There is no contract about this text, so what is
/// not understood is as if it were not there.
pub fn parse(text: &[u8]) -> Sched {
    let mut sched = Sched::default();
    // The first line begins with the thread's name, which is not escaped and may look like other
    // lines. Those that come later are the kernel's, so they win.
    for line in lines(text) {
        let Some((key, value)) = split_once(line, b':') else { continue };
        let value = value.trim_ascii();
        match key.trim_ascii() {
            b"se.exec_start" => sched.exec_start_ns = milliseconds(value),
            b"nr_switches" => sched.nr_switches = decimal(value),
            b"nr_voluntary_switches" => sched.nr_voluntary_switches = decimal(value),
            _ => {}
        }
    }
    sched
}

/// Nanoseconds of a number in milliseconds with exactly six decimals.
fn milliseconds(value: &[u8]) -> Option<u64> {
    let (whole, fraction) = split_once(value, b'.')?;
    (fraction.len() == 6).then_some(())?;
    decimal(whole)?.checked_mul(1_000_000)?.checked_add(decimal(fraction)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn milliseconds_become_nanoseconds() {
        let sched = parse(fixture!("6.18/sched"));
        assert_eq!(sched.exec_start_ns, Some(2_171_231_847_988));
        assert_eq!((sched.nr_switches, sched.nr_voluntary_switches), (Some(2), Some(1)));
        assert_eq!(milliseconds(b"0.000001"), Some(1));
        assert_eq!(milliseconds(b"1.5"), None);
        assert_eq!(milliseconds(b"-1.000000"), None);
        assert_eq!(milliseconds(b"18446744073709.551616"), None);
    }

    #[test]
    fn the_name_of_a_thread_is_not_a_counter() {
        let sched = parse(fixture!("5.10/sched"));
        assert_eq!((sched.exec_start_ns, sched.nr_switches), (Some(12_345_678_000_001), Some(1234)));
        assert_eq!(parse(fixture!("6.1/sched")), Sched::default());
    }
}
