//! The system's ssh client as a child process: for those who need what their ssh_config says.

use super::link::locked;
use super::pump::{End, Ended, LAST, keep};
use super::{Carrier, Destination, Far};
use crate::error::{Context, Error, Kind, Result};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How the client is called.
pub struct Way {
    /// Who is called.
    pub to: Destination,
    words: Vec<String>,
}

impl Way {
    /// Takes the command line of the client apart.
    ///
    /// # Errors
    /// When it has no words, or a quote that is not closed.
    pub fn new(to: &Destination, line: &str) -> Result<Way> {
        let words = split(line).filter(|words| !words.is_empty());
        let wrong = || Error::new(Kind::Usage, format!("--ssh `{line}` is no command line")).help("as in --ssh 'ssh -J bastion'");
        Ok(Way { to: to.clone(), words: words.ok_or_else(wrong)? })
    }

    /// Starts a command there.
    pub fn start(&self, command: &str) -> Result<Carrier> {
        let (near, theirs) = UnixStream::pair().context(|| "cannot make a socket pair")?;
        let own = || theirs.try_clone().map(OwnedFd::from).context(|| "cannot duplicate a descriptor");
        let mut client = Command::new(&self.words[0]);
        client.args(&self.words[1..]);
        if let Some(port) = self.to.port {
            client.args(["-p", &port.to_string()]);
        }
        if let Some(user) = &self.to.user {
            client.args(["-l", user]);
        }
        client.args([self.to.host.as_str(), command]).stdin(own()?).stdout(own()?).stderr(Stdio::piped());
        // ^C is for meio, which ends in good order and still has something to say there.
        crate::sys::spawn::deaf_to_interrupts(&mut client);
        let started = client.spawn();
        drop((client, theirs));
        let mut child = started.map_err(|e| {
            let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::Usage } else { Kind::Other };
            Error::new(kind, format!("cannot start `{}`: {e}", self.words[0])).help("--ssh names the ssh client of this system")
        })?;
        let ended = Arc::new(Ended::default());
        let words = child.stderr.take();
        let child = Arc::new(Mutex::new(child));
        let (tell, watched) = (ended.clone(), child.clone());
        let watch = move || {
            let mut kept = Vec::new();
            let mut some = [0; 1024];
            let mut words = words;
            while let Some(Ok(n @ 1..)) = words.as_mut().map(|w| w.read(&mut some)) {
                keep(&mut kept, &some[..n]);
            }
            let status = wait(&watched, None);
            let words = String::from_utf8_lossy(&kept).into_owned();
            // 255 is the client's own: it did not get there, or not stay there.
            let (code, failure) = match status {
                Some(255) => (None, Some("it has ended with code 255".to_owned())),
                code => (code, None),
            };
            tell.tell(End { code, words, failure });
        };
        std::thread::Builder::new().name("client".into()).spawn(watch).context(|| "cannot start a thread")?;
        let far = Client { child, ended, name: self.to.to_string(), command: command.to_owned() };
        Ok(Carrier { near, far: Box::new(far) })
    }
}

/// Waits for the end of a child; its exit code.
fn wait(child: &Mutex<Child>, limit: Option<Duration>) -> Option<i32> {
    let begin = Instant::now();
    loop {
        match locked(child).try_wait() {
            Ok(Some(status)) => return status.code(),
            Ok(None) if limit.is_none_or(|l| begin.elapsed() < l) => {}
            _ => return None,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Client {
    child: Arc<Mutex<Child>>,
    ended: Arc<Ended>,
    name: String,
    command: String,
}

impl Far for Client {
    fn reason(&self) -> Box<dyn Fn() -> Option<Error> + Send + Sync> {
        let (ended, name, command) = (self.ended.clone(), self.name.clone(), self.command.clone());
        Box::new(move || ended.reason(&name, &command))
    }

    fn end(&self) -> Option<End> {
        self.ended.wait(LAST)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if wait(&self.child, Some(LAST)).is_none() {
            // It is reaped by the thread that watches it.
            let _ = locked(&self.child).kill();
            wait(&self.child, Some(LAST));
        }
    }
}

/// Words as rsync(1) has them for its `-e`: white space separates, quotes of both kinds keep together, and a doubled
/// quote inside of quotes is one. No shell, no variables. `None` when a quote is not closed.
fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let into = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        q if q == c && chars.peek() == Some(&c) => into.extend(chars.next()),
                        q if q == c => break,
                        other => into.push(other),
                    }
                }
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_without_a_shell() {
        let words = |line: &str| split(line).map(|w| w.join("|"));
        assert_eq!(words("ssh -J bastion").as_deref(), Some("ssh|-J|bastion"));
        assert_eq!(words("  ssh -o 'ProxyCommand=nc %h  %p' $HOME ").as_deref(), Some("ssh|-o|ProxyCommand=nc %h  %p|$HOME"));
        assert_eq!(words("a\"b c\"d 'it''s' \"\"").as_deref(), Some("ab cd|it's|"));
        assert_eq!(words("a 'b"), None);
        assert_eq!(words("").as_deref(), Some(""));
    }
}
