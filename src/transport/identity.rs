//! Who logs in: the agent's keys, and key files.

use super::{Destination, base64};
use crate::error::{Context, Error, Kind, Result};
use nix::unistd::{User, getuid};
use ssh2::Session;
use std::path::{Path, PathBuf};

/// Names of key files that are tried when none is given, below ~/.ssh.
const USUAL: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];

fn own() -> Result<User> {
    let user = User::from_uid(getuid()).context(|| "cannot look up who runs meio")?;
    user.ok_or_else(|| Error::other(format!("user {} has no name", getuid())).help("name one: user@host"))
}

/// The name of who runs meio.
pub fn own_name() -> Result<String> {
    own().map(|u| u.name)
}

/// ~/.ssh
pub fn folder() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|h| h.is_absolute());
    Ok(home.map_or_else(|| own().map(|u| u.dir), Ok)?.join(".ssh"))
}

/// The keys that are offered.
pub struct Keys {
    /// Given by name: only these, from the files or from the agent.
    given: Vec<PathBuf>,
}

/// What became of the offers.
#[derive(Default)]
struct Tried {
    offered: Vec<String>,
    notes: Vec<String>,
}

impl Keys {
    /// Those of `given`; without any, all of the agent and the usual files.
    pub fn new(given: &[PathBuf]) -> Keys {
        Keys { given: given.to_vec() }
    }

    /// Offers one after the other until the server is content; `before` each call the session's time limit is set.
    ///
    /// # Errors
    /// [`Kind::Permission`] when it takes none.
    pub fn offer(&self, session: &Session, user: &str, to: &Destination, before: &dyn Fn() -> Result<()>) -> Result<()> {
        before()?;
        let methods = session.auth_methods(user).unwrap_or_default().to_owned();
        let mut tried = Tried::default();
        if session.authenticated() {
            return Ok(());
        }
        if methods.is_empty() || methods.split(',').any(|m| m == "publickey") {
            self.agent(session, user, before, &mut tried)?;
            let files = if self.given.is_empty() { usual() } else { self.given.clone() };
            for file in &files {
                if session.authenticated() {
                    break;
                }
                before()?;
                tried.file(session, user, file);
            }
            if session.authenticated() {
                return Ok(());
            }
        } else {
            tried.notes.push(format!("it takes no keys, only {methods}"));
        }
        before()?;
        let mut message = format!("{to} does not let {user} in");
        if tried.offered.is_empty() {
            message += ": there was no key to offer";
        } else {
            message += &format!("; refused: {}", tried.offered.join(", "));
        }
        tried.notes.iter().for_each(|n| message += &format!("; {n}"));
        let help =
            "give a key with --identity, or add yours to ~/.ssh/authorized_keys there (ssh-copy-id); --ssh 'ssh …' logs in as ssh does";
        Err(Error::new(Kind::Permission, message).help(help))
    }

    fn agent(&self, session: &Session, user: &str, before: &dyn Fn() -> Result<()>, tried: &mut Tried) -> Result<()> {
        if std::env::var_os("SSH_AUTH_SOCK").is_none() {
            return Ok(());
        }
        let wanted: Vec<Vec<u8>> = self.given.iter().filter_map(|f| public(f)).collect();
        let listed = session.agent().and_then(|mut agent| {
            agent.connect()?;
            agent.list_identities()?;
            let all = agent.identities()?;
            Ok((agent, all))
        });
        let (agent, all) = match listed {
            Ok(found) => found,
            Err(e) => {
                tried.notes.push(format!("the agent at SSH_AUTH_SOCK does not answer ({})", e.message()));
                return Ok(());
            }
        };
        for key in all.iter().filter(|k| self.given.is_empty() || wanted.iter().any(|w| w == k.blob())) {
            before()?;
            if agent.userauth(user, key).is_ok() {
                return Ok(());
            }
            tried.offered.push(format!("{} (agent)", key.comment()));
        }
        Ok(())
    }
}

impl Tried {
    fn file(&mut self, session: &Session, user: &str, file: &Path) {
        let name = file.display().to_string();
        let text = match std::fs::read(file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) => return self.notes.push(format!("{name} cannot be read ({e})")),
        };
        // libssh2 asks nobody for a passphrase.
        if locked(&text) {
            return self.notes.push(format!("{name} has a passphrase: ssh-add it to an agent"));
        }
        match session.userauth_pubkey_file(user, None, file, None) {
            Ok(()) => {}
            Err(e) if [ssh2::ErrorCode::Session(-16), ssh2::ErrorCode::Session(-1)].contains(&e.code()) => {
                self.notes.push(format!("{name} is no key that libssh2 can use ({})", e.message()));
            }
            Err(_) => self.offered.push(name),
        }
    }
}

fn usual() -> Vec<PathBuf> {
    let Ok(folder) = folder() else { return Vec::new() };
    USUAL.iter().map(|name| folder.join(name)).filter(|file| file.exists()).collect()
}

/// The public half, from the file beside it.
fn public(file: &Path) -> Option<Vec<u8>> {
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    let text = std::fs::read_to_string(name).ok()?;
    base64::decode(text.split_whitespace().nth(1)?)
}

/// Whether a private key is encrypted, in any of the forms that there are.
fn locked(text: &str) -> bool {
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return true;
    }
    let Some((_, rest)) = text.split_once("-----BEGIN OPENSSH PRIVATE KEY-----") else { return false };
    let body: String = rest.lines().take_while(|l| !l.starts_with("-----")).collect();
    // The magic word, then the cipher's name with its length before it: openssh's PROTOCOL.key.
    let Some(bytes) = base64::decode(body.trim()) else { return false };
    bytes.strip_prefix(b"openssh-key-v1\0").is_some_and(|rest| !rest.starts_with(b"\0\0\0\x04none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passphrases_are_seen() {
        let own = |cipher: &str| {
            let mut bytes = b"openssh-key-v1\0".to_vec();
            bytes.extend((cipher.len() as u32).to_be_bytes());
            bytes.extend(cipher.bytes());
            format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n", base64::encode(&bytes))
        };
        assert!(locked(&own("aes256-ctr")) && !locked(&own("none")));
        assert!(locked("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"));
        assert!(!locked("-----BEGIN RSA PRIVATE KEY-----\nMIIE") && !locked(""));
    }
}
