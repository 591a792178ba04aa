//! known_hosts, sshd(8): which keys a host may have. A host that is not in it is unknown, one whose key is not among
//! those that are is somebody else.
//!
//! Keys by certificate authorities (`@cert-authority`) are passed over: libssh2 knows no host certificates.

use super::base64;
use ring::hmac;
use std::path::{Path, PathBuf};

/// What the files say of a host's key.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's.
    Known,
    /// Nothing is known of the host.
    Unknown,
    /// The host has other keys: where one of them stands.
    Changed(PathBuf, usize),
    /// The key must not be used any more: where that stands.
    Revoked(PathBuf, usize),
}

/// A line that concerns the host.
#[derive(Debug)]
struct Entry {
    file: PathBuf,
    line: usize,
    revoked: bool,
    kind: String,
    key: Vec<u8>,
}

/// All that is known of one host.
#[derive(Debug, Default)]
pub struct Known {
    entries: Vec<Entry>,
}

/// How a host is called in the files: its name, with the port where it is not ssh's own.
pub fn label(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

impl Known {
    /// Reads what a file says of the host called `label`; lines that cannot be read count as not there, as ssh has it.
    pub fn read(&mut self, file: &Path, text: &str, label: &str) {
        for (n, line) in text.lines().enumerate() {
            let mut words = line.split_whitespace().peekable();
            let marker = words.next_if(|w| w.starts_with('@'));
            let (Some(hosts), Some(kind), Some(key)) = (words.next(), words.next(), words.next()) else { continue };
            let revoked = marker == Some("@revoked");
            if hosts.starts_with('#') || marker.is_some() && !revoked || !concerns(hosts, label) {
                continue;
            }
            if let Some(key) = base64::decode(key) {
                self.entries.push(Entry { file: file.to_owned(), line: n + 1, revoked, kind: kind.to_owned(), key });
            }
        }
    }

    /// The kinds of key that are known of it, so that the server is asked for one of those.
    pub fn kinds(&self) -> Vec<&str> {
        self.entries.iter().filter(|e| !e.revoked).map(|e| e.kind.as_str()).collect()
    }

    /// Looks the key up.
    pub fn judge(&self, key: &[u8]) -> Verdict {
        let same = |revoked| self.entries.iter().find(|e| e.revoked == revoked && e.key == key);
        if let Some(e) = same(true) {
            return Verdict::Revoked(e.file.clone(), e.line);
        }
        match (same(false), self.entries.iter().find(|e| !e.revoked)) {
            (Some(_), _) => Verdict::Known,
            (None, Some(other)) => Verdict::Changed(other.file.clone(), other.line),
            (None, None) => Verdict::Unknown,
        }
    }
}

/// Whether a list of patterns, or a hashed name, means the host.
fn concerns(hosts: &str, label: &str) -> bool {
    if let Some(hashed) = hosts.strip_prefix("|1|") {
        let parts = hashed.split_once('|').map(|(salt, hash)| (base64::decode(salt), base64::decode(hash)));
        let Some((Some(salt), Some(hash))) = parts else { return false };
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
        return hmac::verify(&key, label.as_bytes(), &hash).is_ok();
    }
    let mut found = false;
    for pattern in hosts.split(',') {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix('!') {
            Some(not) if matches(not.as_bytes(), label.as_bytes()) => return false,
            Some(_) => {}
            None => found |= matches(pattern.as_bytes(), label.as_bytes()),
        }
    }
    found
}

/// `*` and `?`, as in PATTERNS of ssh_config(5); in time that grows with the product of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str, label: &str, key: &[u8]) -> Verdict {
        let mut known = Known::default();
        known.read(Path::new("f"), text, label);
        known.judge(key)
    }

    #[test]
    fn names_patterns_and_ports() {
        // "one" and "two"
        let text =
            "# comment line here\nhost,other.example ssh-ed25519 b25l\n[host]:2222 ssh-rsa dHdv x@y\n*.net,!bad.net ssh-rsa b25l\nbroken\n";
        assert_eq!(judge(text, "host", b"one"), Verdict::Known);
        assert_eq!(judge(text, &label("HOST", 22), b"one"), Verdict::Known);
        assert_eq!(judge(text, &label("host", 2222), b"two"), Verdict::Known);
        assert_eq!(judge(text, &label("host", 2222), b"one"), Verdict::Changed("f".into(), 3));
        assert_eq!(judge(text, "host", b"two"), Verdict::Changed("f".into(), 2));
        assert_eq!(judge(text, "third", b"one"), Verdict::Unknown);
        assert_eq!(judge(text, "good.net", b"one"), Verdict::Known);
        assert_eq!(judge(text, "bad.net", b"one"), Verdict::Unknown);
    }

    #[test]
    fn hashed_names() {
        let salt = [7; 20];
        let hash = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt), b"[host]:2222");
        let text = format!("|1|{}|{} ssh-ed25519 b25l", base64::encode(&salt), base64::encode(hash.as_ref()));
        assert_eq!(judge(&text, "[host]:2222", b"one"), Verdict::Known);
        assert_eq!(judge(&text, "host", b"one"), Verdict::Unknown);
        assert_eq!(judge("|1|AAAA ssh-rsa b25l\n|1|?|? ssh-rsa b25l", "host", b"one"), Verdict::Unknown);
    }

    #[test]
    fn revoked_keys_and_authorities() {
        let text = "@revoked * ssh-rsa b25l\nhost ssh-rsa b25l\n@cert-authority host ssh-rsa dHdv";
        assert_eq!(judge(text, "host", b"one"), Verdict::Revoked("f".into(), 1));
        assert_eq!(judge("@cert-authority host ssh-rsa dHdv", "host", b"two"), Verdict::Unknown);
        assert_eq!(judge("@revoked * ssh-rsa b25l", "host", b"two"), Verdict::Unknown);
    }

    #[test]
    fn every_kind_is_asked_for() {
        let mut known = Known::default();
        known.read(Path::new("f"), "h ssh-rsa b25l\nh ssh-ed25519 b25l\n@revoked h ecdsa-sha2-nistp256 b25l", "h");
        assert_eq!(known.kinds(), ["ssh-rsa", "ssh-ed25519"]);
    }

    #[test]
    fn stars_take_no_exponential_time() {
        let pattern = "*a".repeat(200);
        assert!(!matches(pattern.as_bytes(), "a".repeat(150).as_bytes()));
        assert!(matches(b"a*b*c", b"a--b--b-c") && !matches(b"a*b", b"abc") && matches(b"**", b""));
    }
}
