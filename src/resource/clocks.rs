//! What the kernel shares with every process so that the vDSO can tell the time without a system call: the pages `[vvar]`
//! and `[vvar_vclock]`, and the processor's counter at the same instant.
//!
//! A thread that is stopped while it reads them can only come to an end with them: under another kernel there is nothing
//! like them. They are saved when there is such a thread, and then it comes out of the vDSO as it would have at the dump.

use crate::error::{Context, Result};
use crate::sys::proc::{maps, read};
use crate::sys::{arch, memory};
use serde::{Deserialize, Serialize};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// How often the pages are read until nothing has changed meanwhile.
const TRIES: u32 = 64;

/// One of the pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// Name of its mapping.
    pub mapping: String,
    /// Offset in it, in bytes.
    pub offset: u64,
    /// What it held.
    #[serde(with = "crate::image::bytes")]
    pub content: Vec<u8>,
}

/// All of them at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    /// The processor's time-stamp counter, just after the pages were read.
    pub counter: u64,
    /// Those that can be read; others have nothing behind them on this machine.
    pub pages: Vec<Page>,
}

impl Clocks {
    /// Reads them: meio's own show the same as everybody's, but for other time namespaces.
    pub fn capture() -> Result<Clocks> {
        let vmas = read::parsed(std::process::id() as i32, "maps", maps::parse)?;
        let look = || -> Result<Vec<Page>> {
            let mut pages = Vec::new();
            for vma in vmas.iter().filter(|v| v.name.starts_with(b"[vvar")) {
                let mapping = String::from_utf8_lossy(&vma.name).into_owned();
                for at in (vma.start..vma.end).step_by(PAGE as usize) {
                    let content = memory::own_page(at).context(|| "reading the kernel's clocks")?;
                    pages.extend(content.map(|content| Page { mapping: mapping.clone(), offset: at - vma.start, content }));
                }
            }
            Ok(pages)
        };
        let mut clocks = Clocks { pages: look()?, counter: arch::counter() };
        for _ in 0..TRIES {
            let again = Clocks { pages: look()?, counter: arch::counter() };
            if again.pages == clocks.pages {
                return Ok(again);
            }
            clocks = again;
        }
        Ok(clocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_pages_can_be_read() {
        let before = arch::counter();
        let clocks = Clocks::capture().expect("clocks");
        assert!(!clocks.pages.is_empty());
        assert!(clocks.pages.iter().all(|p| p.content.len() as u64 == PAGE && p.mapping.starts_with("[vvar")));
        assert!(clocks.counter > before);
    }
}
