//! Paths as the kernel has them: bytes without zero, not necessarily UTF-8.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path. Saved as text where it is text, else as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FilePath(Vec<u8>);

impl FilePath {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// An absolute path as it is seen from outside of the root directory `root`.
    pub fn below(&self, root: &Path) -> std::path::PathBuf {
        let start = self.0.iter().take_while(|b| **b == b'/').count();
        root.join(OsStr::from_bytes(&self.0[start..]))
    }

    /// Splits the kernel's ` (deleted)` off a link of /proc.
    pub fn from_link(link: &[u8]) -> (Self, bool) {
        match link.strip_suffix(b" (deleted)") {
            Some(path) => (FilePath(path.to_vec()), true),
            None => (FilePath(link.to_vec()), false),
        }
    }
}

impl From<&[u8]> for FilePath {
    fn from(bytes: &[u8]) -> Self {
        FilePath(bytes.to_vec())
    }
}

impl From<&str> for FilePath {
    fn from(text: &str) -> Self {
        FilePath(text.as_bytes().to_vec())
    }
}

impl Deref for FilePath {
    type Target = Path;
    fn deref(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl AsRef<Path> for FilePath {
    fn as_ref(&self) -> &Path {
        self
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

impl Serialize for FilePath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => s.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl de::Visitor<'_> for V {
            type Value = FilePath;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<FilePath, E> {
                self.visit_bytes(v.as_bytes())
            }
            fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<FilePath, E> {
                if v.contains(&0) { Err(E::custom("a path with a zero byte")) } else { Ok(FilePath(v.to_vec())) }
            }
        }
        d.deserialize_any(V)
    }
}
