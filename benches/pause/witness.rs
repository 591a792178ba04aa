//! What a witness costs that serves many: the program itself, with keys that it has made and datagrams of which each is sealed.

use super::figures::Figure;
use super::{Bench, MEIO, median, ms};
use nix::sys::socket::{setsockopt, sockopt};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Services, of which each has a primary that lives.
const SERVICES: usize = 1000;
/// How often each asks for its lease.
const EACH: Duration = Duration::from_millis(100);
/// After this a watch asks again: an answer that comes later is late.
const LATE: Duration = Duration::from_millis(50);
/// How long it is looked at.
const WHILE: Duration = Duration::from_secs(10);

/// Version, who asks, which key, number; what is sealed; tag.
const HEAD: usize = 2 + 16 + NONCE_LEN;
const INSIDE: usize = 64;
const LENGTH: usize = HEAD + INSIDE + 16;
/// That it is a primary.
const PRIMARY: u8 = 1;
const GRANTED: u8 = 1;

/// One service as its primary knows it.
struct Service {
    id: [u8; 16],
    asks: LessSafeKey,
    told: LessSafeKey,
    watch: u128,
    /// What the next question must have.
    ticket: [u8; 16],
    /// What was asked last, and when, if no answer has come.
    asked: Option<([u8; NONCE_LEN], Instant)>,
}

/// What has come of all questions.
#[derive(Default)]
struct Seen {
    asked: u64,
    /// Milliseconds of those that were granted.
    granted: Vec<f64>,
    /// Anything else that was said.
    other: u64,
    /// Nothing came before the next one was due.
    lost: u64,
}

impl Service {
    fn new(key: &[u8; 32], watch: u128) -> Service {
        let derive = |name: &[u8]| {
            let (mut own, parts) = ([0; 32], [name]);
            let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"meio witness").extract(key);
            secret.expand(&parts, hkdf::HKDF_SHA256).and_then(|all| all.fill(&mut own)).expect("a key");
            own
        };
        let cipher = |name: &[u8]| LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &derive(name)).expect("a key"));
        let id = derive(b"id")[..16].try_into().expect("sixteen bytes");
        Service { id, asks: cipher(b"primary asks"), told: cipher(b"primary is told"), watch, ticket: [0; 16], asked: None }
    }

    /// Generation 1, for the longest time that a watch of usual options asks for; with this number, which must be a fresh one.
    fn question(&mut self, number: [u8; NONCE_LEN]) -> Vec<u8> {
        let mut inside = [0; INSIDE];
        inside[..16].copy_from_slice(&self.ticket);
        inside[16..32].copy_from_slice(&self.watch.to_le_bytes());
        inside[32..40].copy_from_slice(&1u64.to_le_bytes());
        inside[40..48].copy_from_slice(&750u64.to_le_bytes());
        let mut datagram = [&[1, PRIMARY][..], &self.id, &number].concat();
        let (nonce, aad) = (Nonce::assume_unique_for_key(number), Aad::from(&datagram[..]));
        let tag = self.asks.seal_in_place_separate_tag(nonce, aad, &mut inside).expect("sealed");
        datagram.extend_from_slice(&inside);
        datagram.extend_from_slice(tag.as_ref());
        self.asked = Some((number, Instant::now()));
        datagram
    }

    /// What an answer to the last question says, and after which time it came.
    fn answer(&mut self, datagram: &mut [u8]) -> Option<(u8, Duration)> {
        let (head, sealed) = datagram.split_at_mut(HEAD);
        let nonce = Nonce::try_assume_unique_for_key(&head[HEAD - NONCE_LEN..]).ok()?;
        let inside = self.told.open_in_place(nonce, Aad::from(&*head), sealed).ok()?;
        let (_, since) = self.asked.filter(|(number, _)| inside[..NONCE_LEN] == number[..])?;
        self.ticket.copy_from_slice(&inside[16..32]);
        self.asked = None;
        Some((inside[12], since.elapsed()))
    }
}

/// All of them, over one socket.
struct Clients {
    socket: UdpSocket,
    services: Vec<Service>,
    by_id: HashMap<[u8; 16], usize>,
    count: u64,
}

impl Clients {
    fn ask(&mut self, of: usize, seen: &mut Seen) {
        let service = &mut self.services[of];
        seen.lost += u64::from(service.asked.is_some());
        seen.asked += 1;
        self.count += 1;
        let mut number = [0; NONCE_LEN];
        number[..8].copy_from_slice(&self.count.to_le_bytes());
        let datagram = service.question(number);
        self.socket.send(&datagram).expect("the witness is there");
    }

    /// Whatever has come.
    fn hear(&mut self, seen: &mut Seen) {
        let mut datagram = [0; LENGTH + 1];
        while let Ok(length) = self.socket.recv(&mut datagram) {
            assert_eq!(length, LENGTH, "an answer of another length");
            let id: [u8; 16] = datagram[2..18].try_into().expect("sixteen bytes");
            let of = self.by_id[&id];
            match self.services[of].answer(&mut datagram[..length]) {
                Some((GRANTED, after)) => seen.granted.push(after.as_secs_f64() * 1e3),
                Some(_) => seen.other += 1,
                // One that was lost as far as was known.
                None => {}
            }
        }
    }

    /// Each in its turn, for so long.
    fn go_on(&mut self, time: Duration) -> Seen {
        let (mut seen, begun) = (Seen::default(), Instant::now());
        let step = EACH / SERVICES as u32;
        let mut next = 0;
        while begun.elapsed() < time {
            self.hear(&mut seen);
            while step * next <= begun.elapsed() {
                self.ask(next as usize % SERVICES, &mut seen);
                next += 1;
            }
            std::thread::sleep(step);
        }
        // What is on its way yet is waited for.
        let until = Instant::now() + EACH;
        while Instant::now() < until {
            self.hear(&mut seen);
            std::thread::sleep(step);
        }
        seen.lost += self.services.iter_mut().filter_map(|service| service.asked.take()).count() as u64;
        seen
    }
}

/// Processor time of a process, in seconds.
fn used(pid: u32) -> f64 {
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let rest: Vec<&str> = text.rsplit(") ").next().expect("fields").split(' ').collect();
    [11, 12].iter().map(|n| rest[*n].parse::<f64>().expect("ticks")).sum::<f64>() / TICKS
}

/// A thousand services at ten leases a second each.
pub fn leases(bench: &Bench, _: usize) -> Vec<Figure> {
    let folder = bench.folder.path().join("witness");
    let dir = folder.display().to_string();
    let key = |n: usize| {
        let made = Command::new(MEIO).args(["witness", "--dir", &dir, "--add", &format!("service-{n}")]).output().expect("meio starts");
        let text = String::from_utf8(made.stdout).expect("a line");
        let digits = text.trim().rsplit(':').next().expect("a key").to_owned();
        std::array::from_fn(|byte| u8::from_str_radix(&digits[2 * byte..2 * byte + 2], 16).expect("digits"))
    };
    let services: Vec<Service> = (0..SERVICES).map(|n| Service::new(&key(n), n as u128 + 1)).collect();
    let mut witness = Command::new(MEIO)
        .args(["witness", "--dir", &dir, "--listen", "127.0.0.1:0"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("meio starts");
    let mut said = String::new();
    BufReader::new(witness.stderr.as_mut().expect("a pipe")).read_line(&mut said).expect("a line");
    let at: SocketAddr = said.split([' ', ';']).find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{said:?}"));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.connect(at).and_then(|()| socket.set_nonblocking(true)).expect("a way");
    // What this end has no time for at once is not to be the witness's loss.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20));
    let by_id = services.iter().enumerate().map(|(n, service)| (service.id, n)).collect();
    let mut clients = Clients { socket, services, by_id, count: 0 };
    // The first answers have the tickets, the next ones the generations, which are made durable.
    clients.go_on(4 * EACH);
    let before = used(witness.id());
    let seen = clients.go_on(WHILE);
    let share = (used(witness.id()) - before) / (WHILE + EACH).as_secs_f64() * 100.0;
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(witness.id() as i32), nix::sys::signal::Signal::SIGINT);
    let _ = witness.wait();
    let rate = seen.granted.len() as f64 / WHILE.as_secs_f64();
    let late = seen.granted.iter().filter(|time| **time > LATE.as_secs_f64() * 1e3).count() as u64;
    let mut sorted = seen.granted.clone();
    sorted.sort_by(f64::total_cmp);
    let p99 = sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::NAN);
    let wanted = SERVICES as f64 / EACH.as_secs_f64();
    vec![
        Figure::new(
            "`meio witness`, 1,000 services with 10 leases a second each: of a core",
            "25 %",
            format!("{share:.0} % ({rate:.0} leases a second)"),
            Some(share <= 25.0 && rate >= 0.99 * wanted),
        ),
        Figure::new(
            "the same: leases that came after more than 50 ms; that never came; that were refused",
            "none",
            format!("{late}; {}; {} of {}", seen.lost, seen.other, seen.asked),
            Some(late + seen.lost + seen.other == 0),
        ),
        Figure::new(
            "the same: an answer comes after, median and 99 of 100",
            "",
            format!("{} and {}", ms(median(seen.granted)), ms(p99)),
            None,
        ),
    ]
}
