//! A real witness, over real sockets; in a process of its own where that is killed or measured.

use super::*;
use crate::migrate::simulate::Dice;
use crate::progress::Silent;
use crate::watch::state::{Ruling, Whose};
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const MS: Duration = Duration::from_millis(1);
/// For what a busy machine may take.
const SOON: Duration = Duration::from_secs(30);
const HERE: &str = "127.0.0.1:0";
const WATCH: u128 = 7 << 100;

/// A witness that is turned by hand, or by a test's thread.
fn witness(folder: &Path) -> (Server, Store) {
    let store = Store::at(folder.join("witness")).expect("a store");
    (Server::open(store.clone(), HERE.parse().expect("an address")).expect("a witness"), store)
}

fn contact(at: SocketAddr, key: &Key) -> Contact {
    let at = crate::transport::Destination::parse(&at.to_string()).expect("a destination");
    Contact::new(&at, &text(key)).expect("a contact")
}

fn client(at: SocketAddr, key: &Key, role: Role) -> Client {
    Client::new(&contact(at, key), WATCH, role, 300 * MS).expect("a client")
}

/// Asks, and turns the witness until there is an answer.
fn ask(server: &mut Server, client: &mut Client, generation: u64) -> Ruling {
    client.ask(generation);
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        server.turn(MS, &mut Silent).expect("it turns");
        match client.hear() {
            Some(Said::Ruling(ruling)) => return ruling,
            Some(Said::Nothing) => client.ask(generation),
            None => {}
        }
    }
    panic!("no answer")
}

/// One that both ends of a watch can ask.
fn court(folder: &Path) -> (Server, Store, SocketAddr, Key, Client, Client) {
    let (server, store) = witness(folder);
    let (at, key) = (server.at().expect("an address"), store.add("web").expect("a key"));
    let (primary, standby) = (client(at, &key, Role::Primary), client(at, &key, Role::Standby));
    (server, store, at, key, primary, standby)
}

#[test]
fn one_end_has_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut server, store) = witness(folder.path());
    let at = server.at().expect("an address");
    // A key that is made while it works is known as soon as it is used.
    std::thread::sleep(20 * MS);
    let key = store.add("web").expect("a key");
    let (mut primary, mut standby) = (client(at, &key, Role::Primary), client(at, &key, Role::Standby));
    assert_eq!(ask(&mut server, &mut primary, 0).whose, Whose::Nobodys);
    assert!(!ask(&mut server, &mut standby, 1).granted);
    let ruling = ask(&mut server, &mut primary, 4);
    assert!(ruling.granted && ruling.generation == 4 && ruling.whose == Whose::Mine && ruling.left == 300 * MS);
    let writes = server.count().writes;
    for _ in 0..50 {
        assert!(ask(&mut server, &mut primary, 4).granted);
    }
    assert_eq!(server.count().writes, writes, "leases are not written");
    let ruling = ask(&mut server, &mut standby, 5);
    assert!(!ruling.granted && ruling.whose == Whose::Peers && ruling.left > Duration::ZERO, "{ruling:?}");
    std::thread::sleep(ruling.left);
    assert!(ask(&mut server, &mut standby, 5).granted);
    let ruling = ask(&mut server, &mut primary, 5);
    assert!(!ruling.granted && (ruling.generation, ruling.whose) == (5, Whose::Peers));
    // Another watch of that name.
    let mut stranger = Client::new(&contact(at, &key), 8, Role::Primary, MS).expect("a client");
    assert_eq!(ask(&mut server, &mut stranger, 5).whose, Whose::Strangers);
    // Who has no key that counts any more is not heard.
    store.remove("web").expect("removed");
    std::thread::sleep(20 * MS);
    let other = store.add("web").expect("another key");
    assert_eq!(ask(&mut server, &mut client(at, &other, Role::Primary), 0).generation, 5, "the service is still the same one");
    primary.ask(6);
    for _ in 0..20 {
        server.turn(MS, &mut Silent).expect("it turns");
        assert_eq!(primary.hear().filter(|said| *said != Said::Nothing), None);
    }
}

/// What cannot be written is granted to nobody, and that is said; what was granted before stays.
#[test]
fn a_disk_that_is_full() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut server, store, _, _, mut primary, mut standby) = court(folder.path());
    assert!(ask(&mut server, &mut primary, 1).granted);
    let draft = store.folder().join("generations.draft");
    std::fs::create_dir(&draft).expect("something in the way");
    let ruling = ask(&mut server, &mut primary, 2);
    assert!(!ruling.granted && ruling.generation == 1, "{ruling:?}");
    assert!(primary.news().is_some_and(|news| news.contains("cannot make anything durable")));
    assert!(ask(&mut server, &mut primary, 1).granted, "leases go on");
    std::thread::sleep(300 * MS);
    assert!(!ask(&mut server, &mut standby, 2).granted);
    std::fs::remove_dir(&draft).expect("out of the way");
    assert!(ask(&mut server, &mut standby, 2).granted);
    assert_eq!(store.read().expect("read")["web"].generation, 2);
}

/// Datagrams of all kinds, from many: nothing is answered that has no key, nothing is done twice, and who has the key is served.
#[test]
fn who_has_no_key_is_nobody() {
    const MANY: usize = 10_000;
    let folder = tempfile::tempdir().expect("a folder");
    let (mut server, store, at, key, mut primary, mut standby) = court(folder.path());
    assert!(ask(&mut server, &mut primary, 1).granted);
    std::thread::sleep(300 * MS);
    // Recorded on its way: it would take over if it counted later.
    let claim = |ticket| {
        let question = Question { who: Holder { watch: WATCH, role: Role::Standby }, generation: 2, lease: MS };
        let way = Way::new(&key, Role::Standby, false).expect("a way");
        way.seal(random().expect("random"), &write_question(&ticket, &question)).expect("sealed")
    };
    assert!(ask(&mut server, &mut primary, 1).granted);
    let ruling = ask(&mut server, &mut standby, 2);
    assert!(!ruling.granted && ruling.left > Duration::ZERO);
    let recorded = claim(Ticket::default());
    let forged = |place: usize| {
        let mut datagram = recorded.clone();
        datagram[place] ^= 1;
        datagram
    };
    std::thread::sleep(300 * MS);
    let mut dice = Dice::new(7);
    let before = server.count();
    let listener = UdpSocket::bind(HERE).expect("a socket");
    listener.set_nonblocking(true).expect("option");
    for n in 0..MANY {
        // From so many ports.
        let socket = if n % 10 == 0 { UdpSocket::bind(HERE).expect("a socket") } else { listener.try_clone().expect("a socket") };
        let datagram = match n % 5 {
            0 => (0..dice.below(2 * LENGTH as u64)).map(|_| dice.below(256) as u8).collect(),
            1 => recorded[..dice.below(LENGTH as u64) as usize].to_vec(),
            2 => [&recorded[..], &[0]].concat(),
            _ => forged(dice.below(LENGTH as u64) as usize),
        };
        socket.send_to(&datagram, at).expect("sent");
        server.turn(Duration::ZERO, &mut Silent).expect("it turns");
    }
    server.turn(100 * MS, &mut Silent).expect("it turns");
    let count = server.count();
    assert_eq!((count.answered, count.writes), (before.answered, before.writes));
    assert!(count.forged - before.forged > MANY as u64 / 2 && server.services() == 1);
    assert!(listener.recv(&mut [0; 1]).is_err(), "somebody was answered");
    // What is sent again is only answered.
    for _ in 0..100 {
        listener.send_to(&recorded, at).expect("sent");
        server.turn(10 * MS, &mut Silent).expect("it turns");
    }
    let replayed = server.count();
    assert!(replayed.stale > count.stale && replayed.writes == count.writes);
    assert_eq!(store.read().expect("read")["web"].generation, 1);
    assert!(ask(&mut server, &mut standby, 2).granted);
    // Not even when it was well once: each ticket is good for one question.
    assert!(ask(&mut server, &mut primary, 3).granted);
    listener.send_to(&claim(standby.ticket()), at).expect("sent");
    server.turn(SOON, &mut Silent).expect("it turns");
    assert_eq!(store.read().expect("read")["web"].generation, 3);
}

/// What comes back to the client is only taken if it answers what was just asked.
#[test]
fn an_answer_is_to_one_question() {
    let key = Key::make().expect("a key");
    let liar = UdpSocket::bind(HERE).expect("a socket");
    liar.set_read_timeout(Some(SOON)).expect("option");
    let mut client = client(liar.local_addr().expect("an address"), &key, Role::Primary);
    let told = Way::new(&key, Role::Primary, true).expect("a way");
    let holder = Some(Holder { watch: WATCH, role: Role::Primary });
    let reply = |echo| {
        let verdict = Some(Verdict::Granted);
        let reply = Reply { echo, verdict, ticket: Ticket::default(), holder, generation: 9, left: Duration::ZERO };
        told.seal(random().expect("random"), &write_reply(&reply)).expect("sealed")
    };
    let mut datagram = [0; LENGTH];
    client.ask(9);
    let (_, from) = liar.recv_from(&mut datagram).expect("a question");
    let echo: Number = datagram[HEAD - NONCE_LEN..HEAD].try_into().expect("a number");
    let old = reply(echo);
    let mut other = old.clone();
    other[LENGTH - 1] ^= 1;
    let own = datagram.to_vec();
    for wrong in [&other, &own, &reply(random().expect("random"))] {
        liar.send_to(wrong, from).expect("sent");
    }
    std::thread::sleep(5 * MS);
    assert_eq!(client.hear(), None);
    client.ask(10);
    liar.send_to(&old, from).expect("sent");
    std::thread::sleep(5 * MS);
    assert_eq!(client.hear(), None, "it answers what is not asked any more");
    let mut answered = false;
    while !answered {
        let (_, from) = liar.recv_from(&mut datagram).expect("a question");
        let echo: Number = datagram[HEAD - NONCE_LEN..HEAD].try_into().expect("a number");
        liar.send_to(&reply(echo), from).expect("sent");
        std::thread::sleep(5 * MS);
        answered = matches!(client.hear(), Some(Said::Ruling(ruling)) if ruling.granted);
    }
}

/// In a process of its own.
struct Alone {
    child: Child,
    at: SocketAddr,
}

const ALONE: &str = "MEIO_WITNESS_ALONE";

/// What that process does; elsewhere nothing.
#[test]
fn alone() {
    let Some(folder) = std::env::var_os(ALONE) else { return };
    let (mut server, store) = witness(Path::new(&folder));
    let at = server.at().expect("an address").to_string();
    crate::sys::durable::replace(&store.folder().join("at"), &store.folder().join("at.draft"), at.as_bytes()).expect("written");
    while server.turn(SOON, &mut Silent).is_ok() {}
}

impl Alone {
    fn begin(folder: &Path) -> Alone {
        let at = folder.join("witness/at");
        let _ = std::fs::remove_file(&at);
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["watch::witness::tests::alone", "--exact"]).env(ALONE, folder).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("it starts");
        let begun = Instant::now();
        let at = loop {
            assert!(begun.elapsed() < SOON, "it does not listen");
            match std::fs::read_to_string(&at) {
                Ok(text) => break text.parse().expect("an address"),
                Err(_) => std::thread::sleep(MS),
            }
        };
        Alone { child, at }
    }

    fn stat(&self, field: usize) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it lives");
        text.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(field - 3)).and_then(|n| n.parse().ok()).expect("a number")
    }

    /// Time on a processor.
    fn spent(&self) -> Duration {
        MS * 10 * (self.stat(14) + self.stat(15)) as u32
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Killed at any moment of its work: whoever was granted a generation has it, and nobody else ever gets that.
#[test]
fn killed_at_any_moment() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = Store::at(folder.path().join("witness")).and_then(|store| store.add("web")).expect("a key");
    let (mut dice, mut generation, mut pending, mut granted) = (Dice::new(3), 0, 0, 0);
    for round in 0..25 {
        let witness = Alone::begin(folder.path());
        let lease = MS;
        let mut primary = Client::new(&contact(witness.at, &key), WATCH, Role::Primary, lease).expect("a client");
        let mut standby = Client::new(&contact(witness.at, &key), WATCH, Role::Standby, lease).expect("a client");
        let there = primary.wait(0, &[]).expect("an answer");
        assert!(there.generation == generation || there.generation == pending, "round {round}: {there:?}, not {generation} or {pending}");
        assert!(there.generation == 0 || there.whose == Whose::Mine);
        generation = there.generation;
        std::thread::sleep(2 * MS);
        if generation > 1 {
            // Those that were the primary's.
            assert!(!standby.wait(generation, &[]).expect("an answer").granted);
        }
        let until = Instant::now() + MS * dice.below(40) as u32;
        while Instant::now() < until {
            pending = generation + 1;
            primary.ask(pending);
            while Instant::now() < until && generation < pending {
                match primary.hear() {
                    Some(Said::Ruling(ruling)) if ruling.granted => (generation, granted) = (ruling.generation, granted + 1),
                    Some(_) => primary.ask(pending),
                    None => {}
                }
            }
        }
        drop(witness);
    }
    assert!(granted > 25, "only {granted} were granted");
}

/// A thousand services that renew ten leases a second each: what that takes of a processor is printed.
#[test]
fn a_thousand_services() {
    const SERVICES: u64 = 1000;
    const ROUNDS: u64 = 30;
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::at(folder.path().join("witness")).expect("a store");
    let mut ways = HashMap::new();
    for n in 0..SERVICES {
        let key = Key::make().expect("a key");
        let line = text(&key);
        std::fs::write(store.folder().join(format!("keys/web{n}.key")), line).expect("a key");
        let way = |answer| Way::new(&key, Role::Primary, answer).expect("a way");
        ways.insert(id(&key).expect("an id"), (way(false), way(true), Ticket::default()));
    }
    let witness = Alone::begin(folder.path());
    let socket = UdpSocket::bind(HERE).expect("a socket");
    socket.connect(witness.at).expect("connected");
    socket.set_read_timeout(Some(20 * MS)).expect("option");
    let question = Question { who: Holder { watch: WATCH, role: Role::Primary }, generation: 1, lease: 750 * MS };
    let (mut begun, mut spent, mut renewed) = (Instant::now(), Duration::ZERO, 0);
    for round in 0..ROUNDS {
        // Tickets and generations first, which are asked for all at once.
        if round == 10 {
            (begun, spent, renewed) = (Instant::now(), witness.spent(), 0);
        }
        let ends = Instant::now() + 100 * MS;
        let all: Vec<Id> = ways.keys().copied().collect();
        for some in all.chunks(50) {
            for id in some {
                let (asks, _, ticket) = &ways[id];
                let sealed = asks.seal(random().expect("random"), &write_question(ticket, &question)).expect("sealed");
                let _ = socket.send(&sealed);
            }
            let mut datagram = [0; LENGTH];
            for _ in some {
                let Ok(LENGTH) = socket.recv(&mut datagram) else { break };
                let id: Id = datagram[2..2 + ID].try_into().expect("an id");
                let (_, told, ticket) = ways.get_mut(&id).expect("one of them");
                let (_, inside) = told.open(&datagram).expect("an answer");
                let reply = read_reply(&inside).expect("a reply");
                *ticket = reply.ticket;
                renewed += u64::from(reply.verdict == Some(Verdict::Granted));
            }
        }
        std::thread::sleep(ends.saturating_duration_since(Instant::now()));
    }
    let (took, used) = (begun.elapsed(), witness.spent() - spent);
    let rate = renewed as f64 / took.as_secs_f64();
    let share = used.as_secs_f64() / took.as_secs_f64();
    println!("\nwitness: {rate:.0} leases a second take {:.1} % of a processor, {:.1} µs each", share * 100.0, share / rate * 1e6);
    assert!(renewed > SERVICES * (ROUNDS - 10) / 2, "{renewed} were renewed");
    assert!(share / rate * 10_000.0 < 0.6, "10,000 a second would take {:.2} of a processor", share / rate * 10_000.0);
    let rss = witness.stat(24) * 4096;
    assert!(rss < 64 << 20, "it has {rss} bytes");
}
