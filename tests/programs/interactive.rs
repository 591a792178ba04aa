//! Programs in a terminal: taken away from one, and going on in another, which
//! `meio restore` in the foreground hands them.

use super::{installed, read, write};
use crate::lab::terminal::{SIZE, Terminal};
use crate::lab::{Lab, Running, SOON, observe, until};
use std::path::Path;
use std::process::{Child, Command};

/// A program in a terminal; after the first restore also the meio in front of it.
struct Screen {
    terminal: Terminal,
    running: Running,
    meio: Option<Child>,
}

impl Screen {
    fn start(lab: &Lab, program: &str, arguments: &[&str]) -> Screen {
        let terminal = Terminal::new();
        let mut command = Command::new(installed(program));
        command.args(arguments).current_dir(lab.path("")).env("TERM", "xterm").env("LC_ALL", "C").env("HOME", lab.path(""));
        command.env("PS1", "ready> ").env_remove("LESS").env_remove("LESSOPEN").env_remove("PROMPT_COMMAND");
        let child = terminal.start(&command);
        Screen { terminal, running: Running::child(lab, child), meio: None }
    }

    /// Dumps and kills, and restores in the foreground of a new terminal.
    fn move_on(self, lab: &mut Lab) -> Screen {
        let mut running = self.running;
        lab.dump(&mut running, &[]);
        let image = lab.dump(&mut running, &["--kill"]);
        if let Some(mut meio) = self.meio {
            let mut code = None;
            until(SOON, || {
                code = meio.try_wait().expect("wait");
                code.is_some()
            });
            assert_eq!(code.expect("meio ends when its tree does").code(), Some(137), "{}", self.terminal.shown());
        }
        let terminal = Terminal::new();
        let pidfile = lab.path("pid");
        let _ = std::fs::remove_file(&pidfile);
        let mut command = lab.meio(&["restore", "--quiet", "--pidfile"]);
        command.arg(&pidfile).arg(Path::new(&image));
        let meio = terminal.start(&command);
        let there = until(SOON, || pidfile.exists() && matches!(observe::state(running.pid), Some('S' | 'R' | 'T')));
        assert!(there, "the tree is not restored: {}", terminal.shown());
        // It is told to draw itself anew (SIGWINCH), as after every change of terminals. A key that comes at that very moment
        // may be lost by the program itself: less jumps out of a read(2) that has just taken the key.
        std::thread::sleep(std::time::Duration::from_millis(300));
        Screen { terminal, running, meio: Some(meio) }
    }

    /// The tree ends by itself; meio passes its exit code on.
    fn end(self, lab: &Lab, code: i32) {
        let mut status = None;
        let mut meio = self.meio.expect("it was restored");
        until(SOON, || {
            status = meio.try_wait().expect("wait");
            status.is_some()
        });
        let status = status.unwrap_or_else(|| panic!("meio does not end: {}", self.terminal.shown()));
        assert_eq!(status.code(), Some(code), "exit code of meio: {}", self.terminal.shown());
        assert!(observe::state(self.running.pid).is_none(), "the tree has not ended");
        lab.nothing_left();
    }
}

crate::alone! {
    fn bash_with_a_half_typed_line() {
        let mut lab = Lab::new("bash-line");
        let mut screen = Screen::start(&lab, "bash", &["--norc", "--noprofile", "-i"]);
        screen.terminal.expect("ready> ");
        screen.terminal.press("kept=before; echo first-$((1+1))\r");
        screen.terminal.expect("first-2");
        screen.terminal.expect("ready> ");
        screen.terminal.press("echo half-$((6*");
        screen.terminal.expect("half-$((6*");
        let mut screen = screen.move_on(&mut lab);
        screen.terminal.press("7))-$kept\r");
        screen.terminal.expect("half-42-before");
        screen.terminal.expect("ready> ");
        screen.terminal.press("stty size; cat /proc/$$/stat | cut -d' ' -f 5,6,8\r");
        screen.terminal.expect(&format!("{} {}", SIZE.0, SIZE.1));
        let pid = screen.running.pid;
        screen.terminal.expect(&format!("{pid} {pid} "));
        screen.terminal.expect("ready> ");
        screen.terminal.press("echo again-$kept-$((5+");
        screen.terminal.expect("again-$kept-$((5+");
        let mut screen = screen.move_on(&mut lab);
        screen.terminal.press("5))\r");
        screen.terminal.expect("again-before-10");
        screen.terminal.expect("ready> ");
        screen.terminal.press("exit 3\r");
        screen.end(&lab, 3);
    }

    /// Job control goes on: ^C ends the job in front, the stopped one comes back with fg.
    fn bash_with_jobs() {
        let mut lab = Lab::new("bash-jobs");
        let mut screen = Screen::start(&lab, "bash", &["--norc", "--noprofile", "-i"]);
        screen.terminal.expect("ready> ");
        screen.terminal.press("sleep 1000\r");
        until(SOON, || observe::tree(screen.running.pid).len() == 2);
        std::thread::sleep(std::time::Duration::from_millis(100));
        screen.terminal.press("\x1a");
        screen.terminal.expect("Stopped");
        screen.terminal.expect("ready> ");
        screen.terminal.press("sleep 2000\r");
        assert!(until(SOON, || observe::tree(screen.running.pid).len() == 3), "{}", screen.terminal.shown());
        std::thread::sleep(std::time::Duration::from_millis(100));
        let mut screen = screen.move_on(&mut lab);
        screen.terminal.press("\x03");
        screen.terminal.expect("ready> ");
        screen.terminal.press("echo code $?; jobs\r");
        screen.terminal.expect("code 130");
        screen.terminal.expect("Stopped");
        screen.terminal.expect("sleep 1000");
        screen.terminal.press("fg\r");
        screen.terminal.expect("sleep 1000");
        std::thread::sleep(std::time::Duration::from_millis(300));
        let mut screen = screen.move_on(&mut lab);
        screen.terminal.press("\x03");
        screen.terminal.expect("ready> ");
        screen.terminal.press("echo left $(jobs | wc -l)\r");
        screen.terminal.expect("left 0");
        screen.terminal.press("exit 0\r");
        screen.end(&lab, 0);
    }

    fn less_in_the_middle_of_a_file() {
        let mut lab = Lab::new("less");
        let text: String = (0..20_000).map(|n| format!("line number {n} of this text\n")).collect();
        write(&lab, "text", &text);
        let mut screen = Screen::start(&lab, "less", &["text"]);
        screen.terminal.expect("line number 30 ");
        screen.terminal.press("5000g");
        screen.terminal.expect("line number 5030 ");
        let mut screen = screen.move_on(&mut lab);
        screen.terminal.press(" ");
        screen.terminal.expect("line number 5045 ");
        screen.terminal.press("/number 12345 \r");
        screen.terminal.expect("12345");
        screen.terminal.expect("line number 12360 ");
        let mut screen = screen.move_on(&mut lab);
        screen.terminal.press("b");
        screen.terminal.expect("line number 12310 ");
        screen.terminal.press("q");
        screen.end(&lab, 0);
    }

    fn vim_with_an_unsaved_line() {
        let mut lab = Lab::new("vim");
        write(&lab, "text", "first\nlast\n");
        let mut screen = Screen::start(&lab, "vim", &["-u", "NONE", "-N", "text"]);
        screen.terminal.expect("last");
        screen.terminal.press("ounsaved ");
        screen.terminal.expect("unsaved");
        let mut screen = screen.move_on(&mut lab);
        screen.terminal.press("but not ");
        screen.terminal.expect("not");
        let mut screen = screen.move_on(&mut lab);
        screen.terminal.press("lost\x1b:wq\r");
        screen.terminal.expect("written");
        screen.end(&lab, 0);
        assert_eq!(read(&lab, "text"), "first\nunsaved but not lost\nlast\n");
    }
}
