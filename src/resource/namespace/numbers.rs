//! The numbers that tasks have in the base pid namespace and below.

use crate::sys::proc::status;
use std::collections::HashMap;

/// Numbers of the processes and threads of a tree in the base pid namespace, by those that meio sees.
#[derive(Debug, Default)]
pub struct Numbers {
    base: usize,
    known: HashMap<i32, i32>,
}

impl Numbers {
    /// The numbers of a tree whose root has `root` in its status.
    pub fn of(root: &status::Status) -> Self {
        Numbers { base: root.ns_pid.len().saturating_sub(1), known: HashMap::new() }
    }

    /// Whether meio's own numbers are those of the image.
    pub fn same(&self) -> bool {
        self.base == 0
    }

    /// Learns the numbers of a task, its group and session; those that it has below the base.
    pub fn learn(&mut self, status: &status::Status) -> Vec<i32> {
        for list in [&status.ns_tgid, &status.ns_pid, &status.ns_pgid, &status.ns_sid] {
            if let (Some(&host), Some(&number)) = (list.first(), list.get(self.base)) {
                self.known.insert(host, number);
            }
        }
        status.ns_pid.get(self.base + 1..).unwrap_or_default().to_vec()
    }

    /// The number in the base; 0 when it has none there.
    pub fn translate(&self, number: i32) -> i32 {
        if self.same() { number } else { self.known.get(&number).copied().unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_base() {
        let task = |pid: &[i32], group: &[i32], session: &[i32]| status::Status {
            ns_tgid: pid.into(),
            ns_pid: pid.into(),
            ns_pgid: group.into(),
            ns_sid: session.into(),
            ..Default::default()
        };
        let root = task(&[500, 1], &[499, 0], &[400, 0]);
        let mut numbers = Numbers::of(&root);
        assert!(!numbers.same());
        assert!(numbers.learn(&root).is_empty());
        assert_eq!(numbers.learn(&task(&[510, 7, 1], &[510, 7, 1], &[400, 0, 0])), [1]);
        assert_eq!([500, 510, 400, 499, 12345].map(|n| numbers.translate(n)), [1, 7, 0, 0, 0]);
        let plain = Numbers::of(&task(&[500], &[500], &[500]));
        assert_eq!((plain.same(), plain.translate(77)), (true, 77));
    }
}
