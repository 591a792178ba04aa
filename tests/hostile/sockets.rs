//! Sockets of the network that lie: each lie is found, and neither a process nor a lock is left.

use super::{TREE, forge};
use crate::lab::{Lab, observe, until};
use ciborium::Value;
use std::process::Command;
use std::time::Duration;

/// A connection with both ends in the tree, with bytes on their way, and sockets that listen and that are bound.
const PROGRAM: &str = "
import os, socket, time
l = socket.create_server(('127.0.0.1', 0))
a = socket.create_connection(l.getsockname())
b = l.accept()[0]
a.send(b'some bytes that nobody reads')
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(('127.0.0.1', 0))
open('ready', 'w').write('x')
time.sleep(1000)";

/// The value at the end of a way of names; what is not there is made.
fn field<'v>(value: &'v mut Value, way: &[&str]) -> &'v mut Value {
    way.iter().fold(value, |value, name| {
        let fields = value.as_map_mut().expect("a map");
        let place = fields.iter().position(|f| f.0.as_text() == Some(name)).unwrap_or_else(|| {
            fields.push((Value::from(*name), Value::Null));
            fields.len() - 1
        });
        &mut fields[place].1
    })
}

/// The sockets of a kind.
fn all<'v>(tree: &'v mut Value, kind: &str) -> Vec<&'v mut Value> {
    let files = field(tree, &["files"]).as_array_mut().expect("files");
    let kinds = files.iter_mut().map(|file| field(file, &["kind"]).as_map_mut());
    kinds.flatten().filter_map(|kind_of| kind_of.first_mut()).filter(|k| k.0.as_text() == Some(kind)).map(|k| &mut k.1).collect()
}

fn numbers(list: &[u64]) -> Value {
    Value::Array(list.iter().map(|&n| Value::from(n)).collect())
}

fn option(level: i64, name: i64) -> Value {
    let of = |name: &str, value: Value| (Value::from(name), value);
    Value::Array(vec![Value::Map(vec![of("level", level.into()), of("name", name.into()), of("value", Value::Bytes(vec![1; 4]))])])
}

crate::alone! {
    fn sockets_that_lie_are_refused() {
        let mut lab = Lab::new("hostile-sockets");
        let mut running = lab.spawn(std::path::Path::new("python3"), &["-c", PROGRAM]);
        assert!(until(crate::lab::SOON, || lab.path("ready").exists()), "{}", lab.log());
        let image = lab.dump(&mut running, &[]);
        running.kill();
        let bytes = std::fs::read(&image).expect("image");
        let section = forge::spans(&bytes).iter().position(|s| s.kind == TREE).expect("metadata");
        let span = forge::spans(&bytes)[section];
        let tree: Value = ciborium::from_reader(&bytes[span.payload..span.end]).expect("metadata");
        let six = Value::Bytes(vec![0xfd; 16]);
        let way = |text: &'static str| text.split('.').collect::<Vec<_>>();
        let most = u64::from(u32::MAX);
        let lies: Vec<(&str, &str, Value)> = vec![
            ("Tcp", "state", 0.into()),
            ("Tcp", "state", 10.into()),
            ("Tcp", "state", 99.into()),
            ("Tcp", "stream.scales", numbers(&[15, 0])),
            ("Tcp", "stream.window", numbers(&[0, most, 1, most, 77])),
            ("Tcp", "inet.family", 1.into()),
            ("Tcp", "inet.family", 10.into()),
            ("Tcp", "inet.kind", 3.into()),
            ("Tcp", "inet.protocol", 132.into()),
            ("Tcp", "inet.network", 99.into()),
            ("Tcp", "inet.local.port", 0.into()),
            ("Tcp", "inet.peer.port", 0.into()),
            ("Tcp", "inet.more", option(6, 19)),
            ("Tcp", "inet.more", option(1, 9999)),
            ("Tcp", "options", option(6, 19)),
            ("Listening", "inet.network", 99.into()),
            ("Listening", "inet.family", 10.into()),
            ("Listening", "inet.more", option(1, 9999)),
            ("Udp", "inet.network", 99.into()),
            ("Udp", "inet.family", 10.into()),
            ("Udp", "inet.kind", 1.into()),
            ("Udp", "inet.more", option(41, 9999)),
            // The same connection twice.
            ("Tcp", "inet.peer.ip", Value::Null),
            ("Tcp", "inet.local.ip", six),
        ];
        let mut failures = Vec::new();
        for (kind, place, lie) in lies {
            let mut changed = tree.clone();
            match (place, &lie) {
                ("inet.peer.ip", Value::Null) => {
                    let mut both = all(&mut changed, "Tcp");
                    let first = both[0].clone();
                    *both[1] = first;
                }
                _ => *field(all(&mut changed, kind).remove(0), &way(place)) = lie.clone(),
            }
            let mut payload = Vec::new();
            ciborium::into_writer(&changed, &mut payload).expect("metadata");
            std::fs::write(&image, forge::replace(&bytes, section, &payload)).expect("image");
            let done = lab.run(lab.meio(&["restore", "-d", image.to_str().expect("path")]));
            let own = std::process::id() as i32;
            let left = || observe::processes().into_iter().any(|pid| pid != 1 && pid != own);
            let rules = Command::new("nft").args(["list", "ruleset"]).output().expect("nft(8) starts").stdout;
            if done.code != 14 || !rules.is_empty() || !until(Duration::from_secs(2), || !left()) {
                failures.push(format!("{kind} {place} {lie:?}: {} {}{}", done.code, done.stderr, String::from_utf8_lossy(&rules)));
                super::end_all(own);
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        lab.nothing_left();
    }
}
