//! What the C library's allocator does with memory that was freed: mallopt(3).

/// Bytes that each arena keeps for whoever asks next.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 8 << 20;
/// From so many bytes on memory comes from the kernel by itself, and goes back to it at once.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 16 << 20;

/// From now on memory that is freed and asked for again all the time, as that of streams is, does not go to the kernel meanwhile: giving
/// it back and finding it empty again costs more than what is done with it. Elsewhere than with glibc nothing is changed.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers, for the allocator's own thresholds.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
