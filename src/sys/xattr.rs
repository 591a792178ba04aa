//! Extended attributes, xattr(7).

use nix::errno::Errno;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// XATTR_LIST_MAX and XATTR_SIZE_MAX of linux/limits.h.
const LONGEST: usize = 65536;

/// All extended attributes of a file, also of a symbolic link itself, sorted by name.
pub fn all(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0u8; LONGEST];
    // SAFETY: the buffer has the length that is told.
    let n = match Errno::result(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) }) {
        Err(Errno::ENOTSUP) => 0,
        n => n? as usize,
    };
    let mut found = Vec::new();
    for name in names[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; LONGEST];
        let name = CString::new(name)?;
        // SAFETY: as above.
        let n = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(Errno::result(n)? as usize);
        found.push((name.into_bytes(), value));
    }
    found.sort();
    Ok(found)
}

/// Sets an extended attribute, also of a symbolic link itself.
pub fn set(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    // SAFETY: the buffer has the length that is told.
    Ok(Errno::result(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)?)
}

/// Takes an extended attribute away, also of a symbolic link itself.
pub fn remove(path: &Path, name: &[u8]) -> io::Result<()> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    // SAFETY: two strings that outlive the call.
    Ok(Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)?)
}
