//! Small files that are whole at any time, whatever ends in between: what is on record.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;

/// Puts a file at `path` that only its owner may read: under its name when it is complete and on its disk. `draft`, in the same
/// folder, is its name until then.
///
/// # Errors
/// Those of the kernel. The draft is gone then; the old file is there, or the new one, which may not be on its disk.
pub fn replace(path: &Path, draft: &Path, bytes: &[u8]) -> io::Result<()> {
    let open = || File::options().write(true).create(true).truncate(true).mode(0o600).open(draft);
    put(path, draft, bytes, open)
}

/// The same by root for somebody else, in a folder of his: it is his when it has its name. `owner`: user and group.
///
/// # Errors
/// Likewise.
pub fn replace_for(path: &Path, draft: &Path, bytes: &[u8], owner: (u32, u32)) -> io::Result<()> {
    let open = || {
        // Never through a link that he has put there.
        let _ = fs::remove_file(draft);
        let file = File::options().write(true).create_new(true).mode(0o600).open(draft)?;
        fchown(&file, Some(owner.0), Some(owner.1))?;
        Ok(file)
    };
    put(path, draft, bytes, open)
}

fn put(path: &Path, draft: &Path, bytes: &[u8], open: impl Fn() -> io::Result<File>) -> io::Result<()> {
    let write = || {
        let mut file = open()?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(draft, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(draft)))
}

/// What stands in a file, up to `longest` bytes; `None` when it is not there.
///
/// # Errors
/// Those of the kernel.
pub fn read(path: &Path, longest: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file?.take(longest).read_to_end(&mut bytes).map(|_| Some(bytes)),
    }
}
