//! How much memory there is left to take: proc_meminfo(5), proc_vmstat(5), cgroups(7).

use std::fs;
use std::path::{Path, PathBuf};

const PAGE: u64 = 4096;

/// Files of a control group: the most that it may take, what it has, and what of `memory.stat` it would give back first: pages of
/// files, which the kernel counts as well (shared memory and tmpfs are not among these).
type Names = [&'static str; 4];
const V2: Names = ["memory.max", "memory.current", "active_file", "inactive_file"];
const V1: Names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file"];

/// Bytes that can be taken without anybody being short of memory, by the machine and by the control groups that meio is
/// in.
pub fn available() -> u64 {
    let machine = field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:").map_or(0, |kib| kib * 1024);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().fold(machine, |least, line| {
        let mut fields = line.splitn(3, ':').skip(1);
        least.min(match (fields.next(), fields.next()) {
            (Some(""), Some(group)) => left_in_groups("/sys/fs/cgroup", group, V2),
            (Some("memory"), Some(group)) => left_in_groups("/sys/fs/cgroup/memory", group, V1),
            _ => u64::MAX,
        })
    })
}

/// The least that is left in a control group and those above it. In a container the root that is seen is a group, too.
fn left_in_groups(root: impl AsRef<Path>, group: &str, [most, current, active, inactive]: Names) -> u64 {
    let root = root.as_ref();
    let mut folder = root.join(group.trim_start_matches('/'));
    let mut least = u64::MAX;
    while folder.starts_with(root) {
        let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        if let (Some(most), Some(current)) = (number(most), number(current)) {
            let text = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let files: u64 = [active, inactive].iter().filter_map(|name| field(&text, name)).sum();
            least = least.min(most.saturating_sub(current.saturating_sub(files)));
        }
        folder = folder.parent().map_or_else(PathBuf::new, Path::to_owned);
    }
    least
}

/// Bytes that can be written to files before the writer has to wait for the disk.
pub fn before_the_disk() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let pages = |name: &str| field(&text, name).unwrap_or(0);
    // Half way between the two the kernel begins to slow writers down (mm/page-writeback.c, `dirty_freerun_ceiling`).
    let ceiling = (pages("nr_dirty_threshold") + pages("nr_dirty_background_threshold")) / 2;
    ceiling.saturating_sub(pages("nr_dirty") + pages("nr_writeback")) * PAGE
}

/// The number after a name that begins a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "nr_dirty_threshold 12\nnr_dirty 34\nMemAvailable:   56 kB\nbad x\n";
        assert_eq!((field(text, "nr_dirty"), field(text, "MemAvailable:")), (Some(34), Some(56)));
        assert_eq!((field(text, "nr"), field(text, "bad")), (None, None));
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |group: &str, most: &str, current: &str| {
            let folder = root.path().join(group);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("memory.max"), most).unwrap();
            fs::write(folder.join("memory.current"), current).unwrap();
        };
        put("a", "1000\n", "400\n");
        put("a/b", "max\n", "300\n");
        put("a/b/c", "900\n", "100\n");
        let left = |group: &str| left_in_groups(root.path(), group, V2);
        assert_eq!(left("/a/b/c"), 600);
        assert_eq!(left("/"), u64::MAX);
        put("a/b/c", "100\n", "150\n");
        assert_eq!(left("/a/b/c"), 0);
        assert_eq!(left("/../elsewhere"), u64::MAX);
        // What files have in memory is given back; a file system in memory keeps it.
        fs::write(root.path().join("a/b/c/memory.stat"), "file 140\nshmem 60\ninactive_file 50\nactive_file 30\n").unwrap();
        assert_eq!(left("/a/b/c"), 30);
        // A container sees its own group as the root.
        put(".", "500\n", "480\n");
        assert_eq!((left("/"), left("/a/b/c"), left("/a")), (20, 20, 20));
    }

    #[test]
    fn this_machine_has_some() {
        assert!(available() > 1 << 20);
    }
}
