//! Connections of the streams' own: TLS 1.3 between two ends that know each other's key over the ssh link.
//!
//! Each end makes a key that lives as long as the session; the other's is the only one that it takes (raw public keys,
//! RFC 7250: there is no certificate to be read). Whoever else comes is dropped and counted; nothing of what it says
//! is kept beyond one handshake message, and no longer than [`PATIENCE`].

use super::link::locked;
use super::port::{Port, Stop};
use crate::error::{Context, Error, Result};
use ring::signature::Ed25519KeyPair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, DistinguishedName};
use rustls::{ServerConfig, ServerConnection, SideData, SignatureScheme, StreamOwned};
use std::io::BufReader;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::ops::DerefMut;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// No more who have not shown their key yet, at a time.
const STRANGERS: usize = 32;
/// Read at once from the socket.
const ROOM: usize = 256 << 10;
/// Encrypted before the socket is written to: records of 16 KiB go with one call, and are still in the processor's cache.
const AHEAD: usize = 256 << 10;

/// This end's key, for one session.
pub struct Key {
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    /// What the other end must know: SubjectPublicKeyInfo.
    pub public: Vec<u8>,
}

/// Bytes with somebody whose key was the right one.
pub enum Stream {
    /// From this end.
    Called(Box<StreamOwned<ClientConnection, Buffered>>),
    /// To this end.
    Taken(Box<StreamOwned<ServerConnection, Buffered>>),
    /// Over an ssh session, which is encrypted by itself.
    Lent(Port),
}

/// rustls reads little at a time.
pub struct Buffered(BufReader<Port>);

impl std::io::Read for Buffered {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl std::io::Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
        self.0.get_mut().write_vectored(pieces)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Called(s) => s.read(into),
            Stream::Taken(s) => s.read(into),
            Stream::Lent(s) => s.read(into),
        }
    }
}

impl std::io::Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Called(s) => s.write(bytes),
            Stream::Taken(s) => s.write(bytes),
            Stream::Lent(s) => s.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Stream::Called(s) => s.flush(),
            Stream::Taken(s) => s.flush(),
            Stream::Lent(s) => s.flush(),
        }
    }
}

fn tls(e: impl std::fmt::Display) -> Error {
    Error::other(format!("TLS cannot be set up: {e}"))
}

/// AES with keys of 128 bits where the processor does it, else ChaCha20.
fn crypto() -> CryptoProvider {
    use provider::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256};
    let mut suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256];
    if !crate::sys::arch::has_aes() {
        suites.reverse();
    }
    CryptoProvider { cipher_suites: suites, ..provider::default_provider() }
}

impl Key {
    /// A new one.
    pub fn new() -> Result<Key> {
        let provider = crypto();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).map_err(tls)?;
        let signer = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_ref())).map_err(tls)?;
        let public = signer.public_key().ok_or_else(|| tls("the key has no public half"))?.as_ref().to_vec();
        let certified = CertifiedKey::new(vec![CertificateDer::from(public.clone())], signer);
        Ok(Key { certified: Arc::new(certified), provider: Arc::new(provider), public })
    }

    fn only(&self, theirs: &[u8]) -> Arc<Only> {
        Arc::new(Only { key: theirs.to_vec(), algorithms: self.provider.signature_verification_algorithms })
    }

    fn client(&self, theirs: &[u8]) -> Result<Arc<ClientConfig>> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(tls)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(self.only(theirs));
        let own = Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.certified.clone()));
        let mut config = builder.with_client_cert_resolver(own);
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    fn server(&self, theirs: &[u8]) -> Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(tls)?;
        let own = Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified.clone()));
        let mut config = builder.with_client_cert_verifier(self.only(theirs)).with_cert_resolver(own);
        // Nobody comes back.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// Takes one key and no other.
#[derive(Debug)]
struct Only {
    key: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Only {
    fn judge(&self, shown: &CertificateDer<'_>) -> std::result::Result<(), rustls::Error> {
        if shown.as_ref() == self.key { Ok(()) } else { Err(rustls::CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(shown.as_ref()), dss, &self.algorithms)
    }
}

fn old() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken".into())
}

/// What both ends say of signatures.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
            Err(old())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            shown: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
            self.signature(message, shown, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Only {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}

/// Shakes hands with whom `socket` has reached.
///
/// # Errors
/// When it is somebody else.
pub fn greet(socket: TcpStream, own: &Key, theirs: &[u8], stop: &Arc<Stop>) -> Result<Stream> {
    let address = socket.peer_addr()?;
    let connection = ClientConnection::new(own.client(theirs)?, ServerName::IpAddress(address.ip().into())).map_err(tls)?;
    let met = meet(socket, connection, 16 << 10, stop).map_err(|e| Error::link(format!("{address} is not the target: {e}")))?;
    Ok(Stream::Called(Box::new(met)))
}

/// The same with somebody who has come. Much will come from him.
fn welcome(socket: TcpStream, config: Arc<ServerConfig>, streams: &Arc<Stop>) -> Result<Stream> {
    socket.set_nonblocking(false)?;
    let met = meet(socket, ServerConnection::new(config).map_err(tls)?, ROOM, streams)?;
    Ok(Stream::Taken(Box::new(met)))
}

/// Either of them; `room`: bytes that are read at once.
fn meet<C, D>(socket: TcpStream, mut connection: C, room: usize, stop: &Arc<Stop>) -> std::io::Result<StreamOwned<C, Buffered>>
where
    C: DerefMut<Target = ConnectionCommon<D>>,
    D: SideData,
{
    socket.set_nodelay(true)?;
    let mut port = Buffered(BufReader::with_capacity(room, Port::socket(socket, stop.clone(), Some(PATIENCE))?));
    connection.set_buffer_limit(Some(AHEAD));
    shake(&mut connection, &mut port)?;
    port.0.get_mut().set_patience(None);
    Ok(StreamOwned::new(connection, port))
}

/// Where the streams come in.
pub struct Gate {
    /// The port.
    pub port: u16,
    taken: Arc<Mutex<Vec<Stream>>>,
    strangers: Arc<AtomicU64>,
    stop: Arc<Stop>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Gate {
    /// Listens on a free port of `address` for whoever has the key `theirs`; what comes through has `streams` as its stop.
    pub fn open(address: IpAddr, own: &Key, theirs: &[u8], streams: &Arc<Stop>) -> Result<Gate> {
        let listener = TcpListener::bind((address, 0)).context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true).context(|| "cannot set O_NONBLOCK")?;
        let port = listener.local_addr().context(|| "the listener has no address")?.port();
        let config = own.server(theirs)?;
        let (taken, strangers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let stop = Stop::new()?;
        let (keep, count, end, streams) = (taken.clone(), strangers.clone(), stop.clone(), streams.clone());
        let work = move || admit(&listener, &config, &keep, &count, &end, &streams);
        let thread = std::thread::Builder::new().name("gate".into()).spawn(work).context(|| "cannot start a thread")?;
        Ok(Gate { port, taken, strangers, stop, thread: Some(thread) })
    }

    /// How many came who were somebody else.
    pub fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }

    /// Waits until `count` have come, then lets nobody in any more.
    pub fn take(self, count: usize, limit: Duration) -> Result<(Vec<Stream>, u64)> {
        let end = Instant::now() + limit;
        loop {
            let mut taken = locked(&self.taken);
            if taken.len() >= count {
                return Ok((taken.drain(..count).collect(), self.strangers.load(Ordering::Relaxed)));
            }
            if Instant::now() >= end {
                return Err(Error::link(format!("{} of {count} streams have come within {limit:?}", taken.len())));
            }
            drop(taken);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop.end();
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// The thread that lets in.
fn admit(
    listener: &TcpListener,
    config: &Arc<ServerConfig>,
    taken: &Arc<Mutex<Vec<Stream>>>,
    strangers: &Arc<AtomicU64>,
    stop: &Arc<Stop>,
    streams: &Arc<Stop>,
) {
    let waiting = Arc::new(AtomicUsize::new(0));
    while super::port::wait(listener.as_fd(), nix::poll::PollFlags::POLLIN, None, stop).is_ok_and(|w| w == super::port::Wait::Ready) {
        let Ok((socket, _)) = listener.accept() else { continue };
        if waiting.load(Ordering::Acquire) >= STRANGERS {
            strangers.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        waiting.fetch_add(1, Ordering::AcqRel);
        let (config, taken, strangers) = (config.clone(), taken.clone(), strangers.clone());
        let (streams, left) = (streams.clone(), waiting.clone());
        let begin = move || {
            match welcome(socket, config, &streams) {
                Ok(stream) => locked(&taken).push(stream),
                Err(_) => drop(strangers.fetch_add(1, Ordering::Relaxed)),
            }
            left.fetch_sub(1, Ordering::AcqRel);
        };
        // Without a thread, the connection is dropped; the source then goes another way.
        let _ = std::thread::Builder::new().name("stranger".into()).spawn(begin);
    }
}

/// The handshake, in [`PATIENCE`] as a whole: byte by byte it would take for ever.
fn shake<D>(connection: &mut ConnectionCommon<D>, port: &mut Buffered) -> std::io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while connection.is_handshaking() || connection.wants_write() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        port.0.get_mut().set_patience(Some(left));
        if connection.wants_write() {
            connection.write_tls(port)?;
            continue;
        }
        if connection.read_tls(port)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Err(e) = connection.process_new_packets() {
            // The alert that says so.
            let _ = connection.write_tls(port);
            return Err(std::io::Error::other(e));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn only_the_one_key_comes_in() {
        let (own, source, other) = (Key::new().expect("a key"), Key::new().expect("a key"), Key::new().expect("a key"));
        let stop = Stop::new().expect("a stop");
        let gate = Gate::open(HERE, &own, &source.public, &stop).expect("a gate");
        let reach = || TcpStream::connect((HERE, gate.port)).expect("connected");
        // Bytes that are no TLS, a great many of them; somebody who says nothing; a client with another key.
        let mut noise = reach();
        let _ = (0..64).try_for_each(|_| noise.write_all(&[0x16; 64 << 10]));
        let silent = reach();
        let mut announced = reach();
        // A record that claims to be as long as there may be, and does not come.
        announced.write_all(&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc]).expect("written");
        // The client has all that it needs before the server has seen its key: it is told afterwards.
        let mut wrong = greet(reach(), &other, &own.public, &stop);
        if let Ok(stream) = &mut wrong {
            assert!(stream.read(&mut [0]).is_err());
        }
        // A source that is called by somebody else goes away by itself.
        assert!(greet(reach(), &source, &other.public, &stop).is_err());
        let mut right = greet(reach(), &source, &own.public, &stop).expect("the one");
        drop(silent);
        drop(announced);
        while gate.strangers() < 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (mut taken, strangers) = gate.take(1, LONG).expect("a stream");
        assert_eq!((taken.len(), strangers), (1, 5));
        let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let mut got = vec![0; sent.len()];
        std::thread::scope(|s| {
            s.spawn(|| right.write_all(&sent).and_then(|()| right.flush()).expect("sent"));
            taken[0].read_exact(&mut got).expect("received");
        });
        assert!(got == sent);
    }

    #[test]
    fn a_crowd_of_strangers_is_sent_away() {
        let (own, source) = (Key::new().expect("a key"), Key::new().expect("a key"));
        let stop = Stop::new().expect("a stop");
        let gate = Gate::open(HERE, &own, &source.public, &stop).expect("a gate");
        let crowd: Vec<_> = (0..3 * STRANGERS).map(|_| TcpStream::connect((HERE, gate.port)).expect("connected")).collect();
        while gate.strangers() < 2 * STRANGERS as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(crowd);
        assert!(gate.take(1, Duration::ZERO).is_err());
    }
}
