//! What will be different after a restore is said, at the dump and again at the restore; and what only a stopped process
//! tells is refused by the dump.

use crate::lab::{Lab, observe};
use crate::refusals::{refusals, start, told};

/// Both ends of the way say these words, with exit code 3; and the tree comes back.
fn warned(name: &str, program: &str, (at_dump, at_restore): (&str, &str)) {
    let lab = Lab::new(name);
    let Some(mut running) = start(&lab, program) else { return };
    let said = |told: &serde_json::Value, words: &str| {
        told["warnings"].as_array().expect("warnings").iter().any(|w| w.as_str().is_some_and(|w| w.contains(words)))
    };
    let (code, dump) = told(&lab, &["dump", &running.pid.to_string(), "-o", "w.meio"]);
    assert!(code == 3 && said(&dump, at_dump), "{code} {dump}");
    running.kill();
    let (code, back) = told(&lab, &["restore", "-d", "w.meio"]);
    if at_restore.is_empty() {
        assert_eq!(code, 0, "{back}");
    } else {
        assert!(code == 3 && said(&back, at_restore), "{code} {back}");
    }
    running.kill();
}

/// The dump refuses it with these words; the program goes on.
fn refused(name: &str, program: &str, words: &str) {
    let lab = Lab::new(name);
    let Some(mut running) = start(&lab, program) else { return };
    let (code, dump) = told(&lab, &["dump", &running.pid.to_string(), "-o", "no.meio"]);
    let list = refusals(&dump);
    assert!(code == 13 && list.iter().any(|r| r["reason"].as_str().is_some_and(|reason| reason.contains(words))), "{code} {list:?}");
    assert!(!lab.path("images/no.meio").exists() && observe::state(running.pid).is_some());
    running.kill();
}

crate::alone! {
    fn unread_events_of_inotify() {
        let program = "i = syscall(253); syscall(254, i, b'.', 0x100); open('made', 'w').close()";
        warned("inotify_warning", program, ("events are unread and not kept", "IN_Q_OVERFLOW instead"));
    }

    fn named_session_keyring() {
        let program = "k = syscall(250, 1, b'meio-test'); syscall(248, b'user', b'a key', b'secret', 6, -3)";
        warned("session_keyring", program, ("(meio-test) of process", ""));
    }

    fn contexts_of_asynchronous_io() {
        let program = "c = (ctypes.c_ulong * 1)(); syscall(206, 4, c)";
        warned("aio_warning", program, ("IOCB_CMD_POLL", "IOCB_CMD_POLL"));
    }

    fn notices_of_bytes_that_were_not_copied() {
        let program = "
l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); a = l.accept()[0]
c.setsockopt(socket.SOL_SOCKET, 60, 1)";
        warned("zero_copy", program, ("notices of MSG_ZEROCOPY are numbered from 0 again", ""));
    }

    fn status_of_packet_mode() {
        let program = "
import pty, termios
master, slave = pty.openpty()
fcntl.ioctl(master, termios.TIOCPKT, b'\\x01\\0\\0\\0')
termios.tcflush(slave, termios.TCIFLUSH)";
        refused("packet_status", program, "status of packet mode");
    }

    fn keyring_of_a_thread() {
        refused("thread_keyring", "syscall(250, 0, -1, 1)", "read back from its thread keyring");
    }

    fn keyring_of_a_process() {
        refused("process_keyring", "syscall(250, 0, -2, 1)", "read back from its process keyring");
    }

    fn unread_events_of_fanotify() {
        let program = "f = syscall(300, 2, 0); syscall(301, f, 1, 0x8000020, -100, b'.'); open('made', 'w').close()";
        refused("fanotify_unread", program, "events that were not read");
    }
}
