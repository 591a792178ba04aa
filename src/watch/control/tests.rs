//! Who asks, and what is answered.

use super::*;
use std::io::{BufRead, BufReader};

fn served() -> (tempfile::TempDir, Store, Control) {
    let folder = tempfile::tempdir().expect("a folder");
    // Longer than the name of a socket may be.
    let store = Store::at(folder.path().join("x".repeat(120))).expect("a store");
    let control = Control::open(&store, "web", Arc::new(Board::default()), None).expect("a socket");
    (folder, store, control)
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn who_asks_is_answered() {
    let (_folder, store, control) = served();
    control.board().note(|status| status.generation = 7);
    assert_eq!(status(&store, "web").expect("an answer").expect("somebody").generation, 7);
    assert_eq!(status(&store, "other").expect("nobody"), None);
    let board = control.board();
    let mark = |number| Mark { series: 1, number };
    board.begins(mark(4));
    // What was begun before is not what was asked for.
    board.whole(mark(4));
    let later = board.clone();
    board.granted_by(move |wish| {
        assert_eq!(wish, Wish::Epoch);
        let later = later.clone();
        std::thread::spawn(move || later.whole(mark(5)));
    });
    let epoch = ask(&store, "web", Ask::Checkpoint, SOON).expect("an answer").expect("somebody");
    assert_eq!(epoch["epoch"]["number"], 5);
    let later = board.clone();
    board.granted_by(move |_| {
        let later = later.clone();
        std::thread::spawn(move || later.end(Ok(vec!["one".to_owned()])));
    });
    let ended = ask(&store, "web", Ask::Unwatch, SOON).expect("an answer").expect("somebody");
    assert_eq!(ended["ended"]["warnings"][0], "one");
    drop(control);
    assert_eq!(status(&store, "web").expect("nobody"), None);
    assert_eq!(fs::read_dir(store.folder()).expect("a folder").count(), 0);
}

#[test]
fn who_waits_hears_of_the_end() {
    let (_folder, store, control) = served();
    let board = control.board();
    board.granted_by(|_| {});
    let asking = std::thread::spawn({
        let store = store.clone();
        move || ask(&store, "web", Ask::Checkpoint, SOON)
    });
    std::thread::sleep(Duration::from_millis(30));
    drop(control);
    assert!(asking.join().expect("it ends").is_err());
}

#[test]
fn nonsense_is_told_so_and_nothing_grows() {
    let (_folder, store, _control) = served();
    let path = store.folder().join("web.control");
    let connect = || {
        let (_folder, path) = short(store.folder(), "web").expect("a folder");
        UnixStream::connect(path).expect("it is there")
    };
    let answer = |said: &[u8]| {
        let mut stream = connect();
        let _ = stream.write_all(said);
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line);
        serde_json::from_str::<Value>(&line).unwrap_or_default()["error"]["code"].clone()
    };
    for said in [&b"\n"[..], b"{}\n", b"{\"v\":1,\"do\":\"more\"}\n", b"{\"v\":2,\"do\":\"status\"}\n", b"\xff\xfe\n"] {
        assert_eq!(answer(said), 2, "{said:?}");
    }
    assert_eq!(answer(&[b'x'; LONGEST + 1024]), 2);
    // Many who say nothing keep nobody for ever from being heard.
    let idle: Vec<UnixStream> = (0..2 * CALLERS).map(|_| connect()).collect();
    drop(idle);
    assert!(status(&store, "web").expect("an answer").is_some());
    assert_eq!(fs::metadata(path).expect("it is there").mode() & 0o777, 0o600);
}
