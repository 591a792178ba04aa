//! keyrings(7): keys cannot be put back, so a tree is told apart from its keyrings in words.
//!
//! The keyrings of a thread and of a process, which nobody else can reach, are refused. The session keyring is that
//! of the login mostly: a restored tree has the one of whoever restores it. Looking at it makes a process that has none
//! take its user's default one, so it is looked at only where the user has more keyrings than that.

use super::capture::Capture;
use crate::error::Result;
use crate::sys::proc::read;
use crate::sys::task;
use crate::tracee::inject::Injector;
use crate::tracee::volley::{Answer, Question};

const KEYCTL_GET_KEYRING_ID: u64 = 0;
const KEYCTL_DESCRIBE: u64 = 6;
const KEYCTL_READ: u64 = 11;
const KEY_SPEC_SESSION_KEYRING: i64 = -3;
/// Bytes that are asked for at once: a description, or the numbers of keys.
const ROOM: usize = 256;

/// The keyrings that nobody else can reach.
const OWN: [(i64, &str); 2] = [(-1, "thread"), (-2, "process")];

/// The calls that tell whether a process has keyrings of its own.
pub fn questions() -> [Question; 2] {
    OWN.map(|(special, _)| Question::new(libc::SYS_keyctl, [KEYCTL_GET_KEYRING_ID, special as u64, 0, 0, 0, 0]))
}

/// Refuses what only this process, whose real user is `uid`, could reach, unless the user lets it go; and says of the rest
/// what will be different. `answers`: to [`questions`].
pub fn capture(pid: i32, uid: u32, answers: [Answer; 2], run: &mut Injector<'_>, capture: &mut Capture) -> Result<()> {
    if capture.decisions.ignores(&format!("keyring:{pid}")) {
        return Ok(());
    }
    for ((_, name), answer) in OWN.iter().zip(answers) {
        if answer.returned > 0 {
            let reason = format!("keys cannot be read back from its {name} keyring");
            capture.refuse(pid, format!("{name} keyring"), reason, format!("let it go with --ignore keyring:{pid}"));
        }
    }
    let more = *capture.users_keyrings.entry(uid).or_insert_with(|| has_more(uid));
    if more { session(pid, run, capture) } else { Ok(()) }
}

/// Whether a user has more keyrings than the two that everybody gets.
fn has_more(uid: u32) -> bool {
    let text = |name: &str| read::read_machine(name).unwrap_or_default();
    let own = nix::unistd::getuid().as_raw() == uid;
    if own { shown(&text("keys"), uid) } else { counted(&text("key-users"), uid) > 2 }
}

/// `/proc/keys`: number, flags, usage, time-out, permissions, user, group, type, description.
fn shown(keys: &[u8], uid: u32) -> bool {
    let session = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, _, owner, _, "keyring", name, ..] = words[..] else { return false };
        owner.parse() == Ok(uid) && !["_uid", "_tid", "_pid", "_persistent", "."].iter().any(|p| name.starts_with(p))
    };
    String::from_utf8_lossy(keys).lines().any(session)
}

/// `/proc/key-users`: `user: usage keys/instantiated quota-keys/most bytes/most`.
fn counted(users: &[u8], uid: u32) -> u32 {
    let count = |line: &str| {
        let (user, rest) = line.split_once(':')?;
        let keys = rest.split_whitespace().nth(2)?.split('/').next()?;
        (user.trim().parse() == Ok(uid)).then(|| keys.parse().ok())?
    };
    String::from_utf8_lossy(users).lines().find_map(count).unwrap_or(0)
}

fn session(pid: i32, run: &mut Injector<'_>, capture: &mut Capture) -> Result<()> {
    let id = run.call(libc::SYS_keyctl, [KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING as u64, 0, 0, 0, 0])? as i32;
    if id <= 0 || capture.keyrings.contains(&id) {
        return Ok(());
    }
    capture.keyrings.push(id);
    let name = describe(run, id)?;
    if name.starts_with("_uid_ses.") {
        return Ok(()); // everybody's who is nobody in particular
    }
    let listed = run.call(libc::SYS_keyctl, [KEYCTL_READ, id as u64, run.out(), ROOM as u64, 0, 0])?;
    let first = i32::from_le_bytes(run.get(0)?);
    let bare = listed == 0 || listed == 4 && describe(run, first)?.starts_with("_uid.");
    let what = format!("session keyring {id:x} ({name}) of process {pid}");
    if id == task::session_keyring() {
        capture.notes.push(format!("{what} is that of meio: a tree that is restored from the same session has it again"));
    } else if name == "_ses" && bare {
        capture.notes.push(format!("{what} holds no keys of its own; a restored tree has that of whoever restores it"));
    } else {
        capture.warnings.push(format!("{what} is not kept: a restored tree has that of whoever restores it"));
    }
    Ok(())
}

/// The name in `type;user;group;permissions;name`.
fn describe(run: &mut Injector<'_>, key: i32) -> Result<String> {
    let length = run.call(libc::SYS_keyctl, [KEYCTL_DESCRIBE, key as u64, run.out(), ROOM as u64, 0, 0])?.clamp(0, ROOM as i64);
    let bytes: [u8; ROOM] = run.get(0)?;
    let text = String::from_utf8_lossy(&bytes[..length as usize]).into_owned();
    Ok(text.trim_end_matches('\0').splitn(5, ';').nth(4).unwrap_or("unknown").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &[u8] = b"05bc179b I--Q---     1 perm 1f3f0000     0 65534 keyring   _uid_ses.0: 1
09275700 I------     1 perm 1f030000     0     0 keyring   .dns_resolver: empty
11111111 I--Q---     1 perm 3f010000  1000  1000 user      _ses: 12
";

    #[test]
    fn keyrings_that_everybody_has() {
        assert!(!shown(DEFAULT, 0) && !shown(DEFAULT, 1000));
        let more = [DEFAULT, b"22222222 I--Q---     3 perm 3f030000  1000  1000 keyring   _ses: 1\n"].concat();
        assert!(!shown(&more, 0) && shown(&more, 1000));
    }

    #[test]
    fn keys_of_users() {
        let text = b"    0:     9 8/8 3/1000000 40/25000000\n 1000:     2 2/2 5/200 40/20000\n";
        assert_eq!((counted(text, 0), counted(text, 1000), counted(text, 7)), (3, 5, 0));
    }
}
