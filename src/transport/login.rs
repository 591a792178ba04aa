//! A login by libssh2: the host must be known, the user be let in, then a command starts.

use super::known_hosts::{Known, Verdict, label};
use super::{Carrier, Destination, How, base64, identity, pump};
use crate::error::{Context, Error, Kind, Result};
use crate::progress::Report;
use ring::digest;
use ssh2::{MethodType, Session};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Fast where the processor knows AES, which libssh2's own order does not begin with.
const CIPHERS: &str = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr";
/// Hosts for everybody on this machine.
const GLOBAL: &str = "/etc/ssh/ssh_known_hosts";

/// A login that has worked once, and how to do it again.
pub struct Way {
    to: Destination,
    address: SocketAddr,
    user: String,
    known: Known,
    known_file: PathBuf,
    keys: identity::Keys,
    timeout: Duration,
    /// The first session, until a command is started in it.
    first: std::sync::Mutex<Option<(Session, TcpStream)>>,
}

/// What is left of the time that something may take.
struct Clock {
    end: Instant,
    whole: Duration,
}

impl Clock {
    fn new(whole: Duration) -> Clock {
        Clock { end: Instant::now() + whole, whole }
    }

    fn left(&self, to: &dyn std::fmt::Display) -> Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::link(format!("{to} does not answer within {} s", self.whole.as_secs_f32())));
        }
        Ok(left)
    }

    /// Lets the session's next call take what is left.
    fn set(&self, session: &Session, to: &Destination) -> Result<()> {
        // 0 would be for ever.
        session.set_timeout(self.left(to)?.as_millis().clamp(1, u128::from(u32::MAX)) as u32);
        Ok(())
    }
}

/// The addresses of a host, in time: getaddrinfo(3) knows no limit.
///
/// # Errors
/// When it has none, or nobody says so in time.
pub fn resolve(host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>> {
    let (tell, told) = mpsc::channel();
    let target = (host.to_owned(), port);
    std::thread::spawn(move || tell.send(target.to_socket_addrs().map(|all| all.collect::<Vec<_>>())));
    match told.recv_timeout(limit) {
        Ok(Ok(all)) if !all.is_empty() => Ok(all),
        Ok(Err(e)) => {
            Err(Error::link(format!("{host} cannot be found: {e}")).help("look at the name again; --ssh uses names of ssh_config"))
        }
        Ok(Ok(_)) => Err(Error::link(format!("{host} has no address"))),
        Err(_) => Err(Error::link(format!("the name {host} is not resolved within {} s", limit.as_secs_f32()))),
    }
}

impl Way {
    /// Connects and logs in.
    ///
    /// # Errors
    /// As `connect` has them.
    pub fn new(to: &Destination, how: &How, report: &mut dyn Report) -> Result<Way> {
        let port = to.port.unwrap_or(22);
        let clock = Clock::new(how.timeout);
        let stream = reach(to, port, &clock)?;
        let address = stream.peer_addr().context(|| format!("{to} has no address"))?;
        let user = match &to.user {
            Some(user) => user.clone(),
            None => identity::own_name()?,
        };
        let (known, known_file) = read_known(how.known_hosts.as_deref(), &label(&to.host, port))?;
        let keys = identity::Keys::new(&how.identity);
        let way = Way { to: to.clone(), address, user, known, known_file, keys, timeout: how.timeout, first: Default::default() };
        let session = way.log_in(&stream, &clock)?;
        if let Some(cipher) = session.methods(MethodType::CryptCs) {
            report.note(&format!("logged in to {to} ({address}) as {} by ssh, {cipher}", way.user));
        }
        *super::link::locked(&way.first) = Some((session, stream));
        Ok(way)
    }

    /// Where the host was found.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a command in a session of its own; the first one in the session that is there.
    pub fn start(&self, command: &str, timeout: Duration) -> Result<Carrier> {
        let clock = Clock::new(timeout);
        let first = super::link::locked(&self.first).take();
        let (session, stream) = match first {
            Some(first) => first,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, clock.left(&self.to)?)
                    .map_err(|e| Error::link(format!("cannot connect to {} once more: {e}", self.to)))?;
                (self.log_in(&stream, &Clock::new(self.timeout))?, stream)
            }
        };
        clock.set(&session, &self.to)?;
        let mut channel = session.channel_session().map_err(|e| failed(&self.to, "opens no channel", &e))?;
        clock.set(&session, &self.to)?;
        channel.exec(command).map_err(|e| failed(&self.to, "starts no command", &e))?;
        pump::start(session, channel, stream, &self.to.to_string(), command)
    }

    fn log_in(&self, stream: &TcpStream, clock: &Clock) -> Result<Session> {
        let to = &self.to;
        // A control link is made of small messages.
        stream.set_nodelay(true).context(|| "cannot set TCP_NODELAY")?;
        let mut session = Session::new().map_err(|e| failed(to, "libssh2", &e))?;
        session.set_tcp_stream(stream.try_clone().context(|| "cannot duplicate a descriptor")?);
        // What libssh2 was built without it leaves out.
        for direction in [MethodType::CryptCs, MethodType::CryptSc] {
            let _ = session.method_pref(direction, CIPHERS);
        }
        self.ask_for_known_kinds(&session);
        clock.set(&session, to)?;
        session.handshake().map_err(|e| failed(to, "does not agree on an ssh session", &e))?;
        let (key, _) = session.host_key().ok_or_else(|| Error::link(format!("{to} shows no host key")))?;
        self.judge(key)?;
        self.keys.offer(&session, &self.user, to, &|| clock.set(&session, to))?;
        Ok(session)
    }

    /// A server with several keys shows the one that is known, when it is asked first.
    fn ask_for_known_kinds(&self, session: &Session) {
        let Ok(able) = session.supported_algs(MethodType::HostKey) else { return };
        let signs = |kind: &str, algorithm: &str| match kind {
            "ssh-rsa" => ["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"].contains(&algorithm),
            kind => kind == algorithm,
        };
        let kinds = self.known.kinds();
        let (mut first, rest): (Vec<&str>, Vec<&str>) = able.iter().partition(|a| kinds.iter().any(|k| signs(k, a)));
        first.extend(rest);
        let _ = session.method_pref(MethodType::HostKey, &first.join(","));
    }

    fn judge(&self, key: &[u8]) -> Result<()> {
        let name = label(&self.to.host, self.to.port.unwrap_or(22));
        let kind = kind_of(key);
        let print = format!("{kind} SHA256:{}", fingerprint(key));
        let refuse = |message: String, help: String| Err(Error::new(Kind::Permission, message).help(help));
        match self.known.judge(key) {
            Verdict::Known => Ok(()),
            Verdict::Unknown => refuse(
                format!("the host {name} ({}) is not known: nothing vouches for its key {print}", self.address),
                format!(
                    "find out whether that is its key (there: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub); if so, add this line to {}:\n{name} {kind} {}",
                    self.known_file.display(),
                    base64::encode(key)
                ),
            ),
            Verdict::Changed(file, line) => refuse(
                format!(
                    "THE HOST KEY OF {name} ({}) HAS CHANGED: it shows {print}, and {} line {line} has another. Somebody may be in between; nothing was sent",
                    self.address,
                    file.display()
                ),
                format!(
                    "ask whoever runs {name}; only if it has new keys: ssh-keygen -R '{name}' -f {}, then add the new one",
                    file.display()
                ),
            ),
            Verdict::Revoked(file, line) => refuse(
                format!("the key that {name} ({}) shows, {print}, is revoked by {} line {line}", self.address, file.display()),
                "whoever shows it may have stolen it: do not connect".into(),
            ),
        }
    }
}

/// The key's kind, as it names itself: a string with its length before it.
fn kind_of(key: &[u8]) -> String {
    let length = key.first_chunk().map_or(0, |b| u32::from_be_bytes(*b) as usize);
    let name = key.get(4..).and_then(|rest| rest.get(..length.min(64))).unwrap_or_default();
    pump::plain(name)
}

fn fingerprint(key: &[u8]) -> String {
    base64::encode(digest::digest(&digest::SHA256, key).as_ref()).trim_end_matches('=').to_owned()
}

fn failed(to: &Destination, what: &str, e: &ssh2::Error) -> Error {
    Error::link(format!("{to} {what}: {}", e.message()))
}

/// Connects to the first address that answers.
fn reach(to: &Destination, port: u16, clock: &Clock) -> Result<TcpStream> {
    let all = resolve(&to.host, port, clock.left(to)?)?;
    let mut last = None;
    for (n, address) in all.iter().enumerate() {
        let share = clock.left(to)? / (all.len() - n) as u32;
        match TcpStream::connect_timeout(address, share) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = Some((address, e)),
        }
    }
    let (address, e) = last.ok_or_else(|| Error::link(format!("{to} has no address")))?;
    let why = match e.kind() {
        std::io::ErrorKind::TimedOut => format!("no answer within {} s", clock.whole.as_secs_f32()),
        std::io::ErrorKind::ConnectionRefused => "nothing listens there".into(),
        _ => e.to_string(),
    };
    Err(Error::link(format!("{to} ({address}) cannot be reached: {why}")).help("look at host and port, and whether sshd runs there"))
}

/// What is known of the host, and the file that a new line belongs to.
fn read_known(given: Option<&Path>, label: &str) -> Result<(Known, PathBuf)> {
    let own = match given {
        Some(file) => file.to_owned(),
        None => identity::folder()?.join("known_hosts"),
    };
    let mut known = Known::default();
    let global = given.is_none().then(|| PathBuf::from(GLOBAL));
    for file in [Some(own.clone()), global].into_iter().flatten() {
        match std::fs::read(&file) {
            Ok(bytes) => known.read(&file, &String::from_utf8_lossy(&bytes), label),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::from(e).context(format!("cannot read {}", file.display()))),
        }
    }
    Ok((known, own))
}
