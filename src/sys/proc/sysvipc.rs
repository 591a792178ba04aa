//! /proc/sysvipc/{shm,sem,msg}: one table each, whose first line names the columns.

use super::text::{lines, malformed};
use crate::error::Result;

/// One object of System V IPC, as its line shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    values: Vec<(String, i64)>,
}

impl Row {
    /// The number in a column; 0 in one that this kernel does not show. `perms` is octal in the text.
    pub fn get(&self, column: &str) -> i64 {
        self.values.iter().find(|(name, _)| name == column).map_or(0, |v| v.1)
    }
}

/// Parses one of the tables.
pub fn parse(text: &[u8]) -> Result<Vec<Row>> {
    let mut lines = lines(text);
    let words = |line: &[u8]| -> Vec<String> { String::from_utf8_lossy(line).split_whitespace().map(str::to_owned).collect() };
    let names = lines.next().map(words).unwrap_or_default();
    lines
        .map(|line| {
            let values = words(line);
            let number = |(name, value): (&String, &String)| {
                let radix = if name == "perms" { 8 } else { 10 };
                // Sizes are unsigned.
                let value = i64::from_str_radix(value, radix).ok().or_else(|| Some(u64::from_str_radix(value, radix).ok()? as i64))?;
                Some((name.clone(), value))
            };
            let values: Option<Vec<_>> = names.iter().zip(&values).map(number).collect();
            values
                .filter(|v| v.len() == names.len() && !v.is_empty())
                .map(|values| Row { values })
                .ok_or_else(|| malformed("sysvipc", line))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let shm = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n \
-559038737      32769  1640                  4097   717   718      2  1000   100     0     0 1763720000          0 1763710000                  4096                     0\n";
        let rows = parse(shm).unwrap();
        assert_eq!(rows.len(), 1);
        let get = |name| rows[0].get(name);
        assert_eq!((get("key"), get("shmid"), get("perms"), get("size")), (-559_038_737, 32769, 0o1640, 4097));
        assert_eq!((get("cpid"), get("lpid"), get("nattch"), get("uid"), get("ctime")), (717, 718, 2, 1000, 1_763_710_000));
        assert_eq!(get("nothing"), 0);
        assert_eq!(parse(b"       key      semid perms      nsems\n").unwrap(), []);
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn a_damaged_table_is_refused() {
        for bad in [&b"key shmid\n1 2\n3\n"[..], b"key shmid\n1 x\n", b"perms\n9\n", b"\n1\n"] {
            assert!(parse(bad).unwrap_err().message.starts_with("sysvipc: cannot understand `"));
        }
    }
}
