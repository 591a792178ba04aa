//! A program with a connection that stands still, goes on and is ended from the record. Without the rights of root there is
//! nothing to see.

use super::*;
use crate::netlock::{Flow, Manner, NetLock};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const LONG: Duration = Duration::from_millis(300);
const ID: Id = [0x5a; 16];

/// Sends back what it gets.
const ECHO: &str = "import socket, sys
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
while True: s.sendall(s.recv(100))";

/// In a process and a network of its own: whoever traces waits for all children of the process.
fn alone(name: &str, test: impl FnOnce()) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    if std::env::var_os("FROZEN_ALONE").is_some() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return test();
    }
    let own = std::env::current_exe().expect("own path");
    let run = Command::new("unshare").arg("--net").arg(own).args(words(name)).env("FROZEN_ALONE", "1").output().expect("run");
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && text.contains("1 passed"), "{name}\n{text}");
}

fn words(name: &str) -> [String; 4] {
    [&format!("migrate::frozen::tests::{name}"), "--exact", "--nocapture", "--test-threads=1"].map(str::to_owned)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Echo(Child, TcpStream);

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Echo {
    fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let mut child = Command::new("python3").args(["-c", ECHO, &port]).stdin(Stdio::null()).spawn().unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut connection = None;
        until("it connects", || {
            assert_eq!(child.try_wait().unwrap(), None);
            connection = listener.accept().ok();
            connection.is_some()
        });
        let mut echo = Echo(child, connection.unwrap().0);
        echo.1.set_nonblocking(false).unwrap();
        echo.answers(b'0');
        echo
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn answers(&mut self, byte: u8) {
        self.1.write_all(&[byte]).unwrap();
        self.hears(byte);
    }

    fn hears(&mut self, byte: u8) {
        self.1.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = [0];
        self.1.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [byte]);
    }

    /// Neither an answer nor an end.
    fn is_silent(&mut self) {
        self.1.set_read_timeout(Some(LONG)).unwrap();
        let e = self.1.read(&mut [0]).expect_err("silence");
        assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}");
    }

    /// Stopped and locked, as before the commit; then meio lets go, as if it had died.
    fn stop(&self) -> Record {
        let mut frozen = freeze(self.pid(), PATIENCE).unwrap();
        let (local, remote) = (self.1.peer_addr().unwrap(), self.1.local_addr().unwrap());
        let mut lock = NetLock::prepare(None, Manner::Drop).unwrap();
        lock.add(&[Flow { protocol: libc::IPPROTO_TCP as u8, local, remote: Some(remote) }]).unwrap();
        lock.keep(&owner(&ID)).unwrap();
        let record = Record::new(ID, 1, "there", frozen.stopped().unwrap()).unwrap();
        assert_eq!(record.name, "python3");
        frozen.stop().unwrap();
        drop(frozen);
        until("it stands", || record.standing() == Standing::Stands);
        record
    }
}

#[test]
fn it_goes_on_from_the_record() {
    alone("it_goes_on_from_the_record", || {
        let mut echo = Echo::start();
        for byte in [b'1', b'2'] {
            let record = echo.stop();
            echo.1.write_all(&[byte]).unwrap();
            echo.is_silent();
            thaw(&record).unwrap();
            echo.hears(byte);
            assert_eq!(record.standing(), Standing::Runs);
            // Once more does no harm.
            thaw(&record).unwrap();
            echo.answers(b'x');
        }
    });
}

#[test]
fn it_is_ended_from_the_record() {
    alone("it_is_ended_from_the_record", || {
        let mut echo = Echo::start();
        let record = echo.stop();
        reap(&record).unwrap();
        assert_eq!(record.standing(), Standing::Gone);
        echo.is_silent();
        reap(&record).unwrap();
        thaw(&record).unwrap();
        // thaw has opened the lock: now the kernel says that it knows no such connection, which was silent until now.
        echo.1.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let _ = echo.1.write_all(b"3");
        assert_eq!(echo.1.read(&mut [0]).expect_err("reset").kind(), ErrorKind::ConnectionReset);
    });
}

/// Without the lock: what ends in repair says nothing by itself.
#[test]
fn it_ends_without_a_word() {
    alone("it_ends_without_a_word", || {
        let mut echo = Echo::start();
        let record = echo.stop();
        unlock(&record).unwrap();
        reap(&record).unwrap();
        echo.is_silent();
        let mut other = Echo::start();
        let record = Record { silent: false, ..other.stop() };
        unlock(&record).unwrap();
        reap(&record).unwrap();
        other.1.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(other.1.read(&mut [0]).unwrap(), 0);
    });
}

/// Stops a tree with a guardian on its post, and is killed.
#[test]
fn helper() {
    let Ok(pid) = std::env::var("FROZEN_HELPER") else { return };
    let folder = PathBuf::from(std::env::var_os("FROZEN_STORE").unwrap());
    let store = Store::at(folder.clone()).unwrap();
    let _guardian = watch_over(&store, ID, Member::of(pid.parse().unwrap()).unwrap(), &[]).unwrap();
    let _claim = store.claim(&ID).unwrap();
    let mut frozen = freeze(pid.parse().unwrap(), PATIENCE).unwrap();
    let mut record = Record::new(ID, 1, "there", frozen.stopped().unwrap()).unwrap();
    store.mark(&record).unwrap();
    frozen.stop().unwrap();
    if std::env::var_os("FROZEN_COMMIT").is_some() {
        record.mark = Mark::Committed { boot: [1; 16] };
        store.mark(&record).unwrap();
    }
    std::fs::write(folder.join("done"), "").unwrap();
    loop {
        std::thread::park();
    }
}

fn killed_helper(echo: &Echo, folder: &Path, commit: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(words("helper"));
    command.env("FROZEN_HELPER", echo.pid().to_string()).env("FROZEN_STORE", folder);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if commit {
        command.env("FROZEN_COMMIT", "1");
    }
    let mut helper = command.spawn().unwrap();
    until("it is stopped", || folder.join("done").exists());
    helper.kill().unwrap();
    helper.wait().unwrap();
}

#[test]
fn a_guardian_wakes_it_before_the_commit_and_not_after_it() {
    alone("a_guardian_wakes_it_before_the_commit_and_not_after_it", || {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().to_owned()).unwrap();
        let mut echo = Echo::start();
        killed_helper(&echo, folder.path(), false);
        until("it has gone on", || store.get(&ID).unwrap().is_none());
        echo.answers(b'1');
        std::fs::remove_file(folder.path().join("done")).unwrap();
        killed_helper(&echo, folder.path(), true);
        until("the guardian has gone", || store.claim(&ID).is_ok());
        let record = store.get(&ID).unwrap().unwrap();
        until("it stands", || record.standing() == Standing::Stands);
        echo.1.write_all(b"2").unwrap();
        echo.is_silent();
        assert_eq!(record.standing(), Standing::Stands);
        thaw(&record).unwrap();
        echo.hears(b'2');
    });
}
