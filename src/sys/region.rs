//! Memory of meio's own whose pages are there before they are needed: mmap(2), madvise(2).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// `MADV_POPULATE_WRITE`, Linux 5.14.
const POPULATE_WRITE: i32 = 23;

/// One mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Region {
    at: NonNull<u8>,
    length: usize,
}

// SAFETY: it owns its memory, as a `Box<[u8]>` does.
unsafe impl Send for Region {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Region {}

impl Region {
    /// Anonymous memory of at least `length` bytes. Not of huge pages: until the kernel has put one together, milliseconds
    /// may pass.
    pub fn anonymous(length: usize) -> io::Result<Region> {
        Region::map(length.max(1).next_multiple_of(4096), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// The first `length` bytes of a file that nobody else writes to or cuts off: what happens to the one happens to the
    /// other.
    pub fn of(file: &File, length: usize) -> io::Result<Region> {
        Region::map(length, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn map(length: usize, flags: i32, fd: i32) -> io::Result<Region> {
        // SAFETY: a new mapping at a place that the kernel chooses; the kernel checks length and descriptor.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        match NonNull::new(at.cast::<u8>()) {
            Some(start) if at != libc::MAP_FAILED => Ok(Region { at: start, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Makes the pages of a part present and writable; without room for them it fails, where touching them would kill.
    pub fn populate(&self, from: usize, length: usize) -> io::Result<()> {
        assert!(from + length <= self.length, "outside of the region");
        // SAFETY: a part of our own mapping; its content stays.
        match unsafe { libc::madvise(self.at.as_ptr().add(from).cast(), length, POPULATE_WRITE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped and readable for as long as `self` is there; nothing writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.length) }
    }

    /// Its bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped and writable for as long as `self` is there, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.length) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made in `map`; no reference to it is left.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn anonymous_memory_is_zero_and_stays() {
        let mut region = Region::anonymous((3 << 20) - 7).unwrap();
        assert_eq!(region.len(), 3 << 20);
        region.populate(0, 3 << 20).unwrap();
        assert!(region.bytes().iter().all(|&b| b == 0));
        region.bytes_mut()[5] = 7;
        region.populate(0, 4096).unwrap();
        assert_eq!(region.bytes()[5], 7);
    }

    #[test]
    fn what_is_put_into_a_mapped_file_is_in_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let mut region = Region::of(&file, 8192).unwrap();
        region.populate(0, 8192).unwrap();
        region.bytes_mut()[4096..].fill(9);
        drop(region);
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert!(all[..4096].iter().all(|&b| b == 0) && all[4096..].iter().all(|&b| b == 9));
    }
}
