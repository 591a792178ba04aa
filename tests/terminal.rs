//! Terminals: jobs and sessions that move from one to another, and what meio leaves of its own.

use crate::lab::terminal::Terminal;
use crate::lab::{Lab, Running, SOON, observe, until};
use std::process::{Child, Command};
use std::time::Duration;

/// An interactive shell in a terminal of its own.
struct Shell {
    terminal: Terminal,
    child: Child,
}

impl Shell {
    fn new(lab: &Lab) -> Shell {
        let terminal = Terminal::new();
        let mut command = Command::new("/bin/bash");
        command.args(["--norc", "--noprofile", "-i"]).current_dir(lab.path("images")).env("TERM", "dumb").env("LC_ALL", "C");
        command.env("PS1", "ready> ").env("meio", crate::MEIO).env_remove("PROMPT_COMMAND").env("HISTFILE", "");
        let child = terminal.start(&command);
        let mut shell = Shell { terminal, child };
        shell.terminal.expect("ready> ");
        shell
    }

    fn press(&mut self, keys: &str) {
        self.terminal.press(keys);
    }

    fn expect(&mut self, text: &str) {
        self.terminal.expect(text);
    }

    /// Leaves the shell.
    fn end(mut self) {
        self.press("exit 0\r");
        let ended = until(SOON, || self.child.try_wait().expect("wait").is_some());
        assert!(ended, "the shell does not end: {}", self.terminal.shown());
    }

    /// The one job of the shell, once it is called `comm`.
    fn job(&self, comm: &str) -> i32 {
        let mut job = None;
        until(SOON, || {
            let all = observe::tree(self.child.id() as i32);
            job = all.into_iter().skip(1).find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == comm));
            job.is_some()
        });
        job.unwrap_or_else(|| panic!("no job {comm}: {}", self.terminal.shown()))
    }
}

/// A job that counts aloud with echo switched off. It tells of each signal that ends or continues it.
const JOB: &str = "import signal, sys, time, termios\n\
    def end(*_):\n    print('ended by ^C', flush=True); sys.exit(5)\n\
    signal.signal(signal.SIGINT, end)\n\
    m = termios.tcgetattr(0); m[3] &= ~termios.ECHO; termios.tcsetattr(0, termios.TCSANOW, m)\n\
    n = 0\n\
    while True:\n    print('tick', n, flush=True); n += 1; time.sleep(0.05)\n";

fn suspended_and_continued(shell: &mut Shell) {
    shell.press("\x1a");
    shell.expect("Stopped");
    shell.expect("ready> ");
    shell.press("stty -a | grep -c ' echo '; fg\r");
    shell.expect("\r\n1\r");
    for _ in 0..3 {
        shell.expect("tick");
    }
}

fn started(lab: &Lab) -> (Shell, i32) {
    std::fs::write(lab.path("job.py"), JOB).expect("script");
    let mut shell = Shell::new(lab);
    shell.press("python3 ../job.py\r");
    shell.expect("tick 12\r");
    let job = shell.job("python3");
    (shell, job)
}

/// Dumps the job out of its shell.
fn dumped(lab: &Lab, shell: &mut Shell, job: i32) {
    let done = lab.run(lab.meio(&["dump", &job.to_string(), "-o", "../job.meio", "--kill"]));
    assert_eq!(done.code, 0, "{done:?}");
    shell.expect("Killed");
    shell.expect("ready> ");
    assert!(until(SOON, || observe::state(job).is_none()));
    // The shell has put its own modes back.
    shell.press("stty -a | grep -c ' echo '\r");
    shell.expect("\r\n1\r");
}

/// The highest tick shown.
fn last_tick(shown: &str) -> Option<u32> {
    shown.lines().filter_map(|l| l.trim().strip_prefix("tick ")?.parse().ok()).max()
}

crate::alone! {
    /// A capsule is a job of its shell like any other program: ^Z, fg and ^C reach the program, modes are put back; also after a
    /// restore.
    fn a_capsule_is_a_job() {
        let lab = crate::capsules::lab("capsule-job");
        std::fs::write(lab.path("job.py"), JOB).expect("script");
        let mut shell = Shell::new(&lab);
        shell.press("$meio run --name job -- python3 ../job.py\r");
        shell.expect("tick 12\r");
        suspended_and_continued(&mut shell);
        let done = lab.run(lab.meio(&["dump", "job", "-o", "../job.meio", "--kill"]));
        assert_eq!(done.code, 0, "{done:?}");
        shell.expect("ready> ");
        shell.press("stty -a | grep -c ' echo '; $meio restore -q ../job.meio\r");
        shell.expect("\r\n1\r");
        shell.expect("tick");
        suspended_and_continued(&mut shell);
        shell.press("\x03");
        shell.expect("ended by ^C");
        shell.expect("ready> ");
        shell.press("echo code $?; stty -a | grep -c ' echo '; $meio list | wc -l\r");
        shell.expect("code 5\r\n1\r\n1\r");
        shell.end();
        lab.nothing_left();
    }

    fn a_shell_job_goes_on_in_another_terminal() {
        let lab = Lab::new("job");
        let (mut old, job) = started(&lab);
        dumped(&lab, &mut old, job);
        let mut new = Shell::new(&lab);
        new.press("stty -a > ../before; $meio restore -q ../job.meio; echo code $?\r");
        // It goes on where it was, here and nowhere else.
        new.expect("tick 1");
        std::thread::sleep(Duration::from_millis(500));
        assert!(last_tick(&new.terminal.shown()).is_some_and(|n| n > 12), "{}", new.terminal.shown());
        assert_eq!(last_tick(&old.terminal.shown()), None, "it still writes to the old terminal");
        // It has this terminal as its own: its group is in front, its modes hold.
        let fields = std::fs::read_to_string(format!("/proc/{job}/stat")).expect("stat");
        let fields: Vec<&str> = fields.rsplit_once(')').expect("name").1.split_whitespace().collect();
        assert_eq!((fields[2], fields[5]), (job.to_string().as_str(), job.to_string().as_str()), "group, foreground group");
        new.press("not echoed");
        std::thread::sleep(Duration::from_millis(200));
        assert!(!new.terminal.shown().contains("not echoed"), "{}", new.terminal.shown());
        new.press("\x03");
        new.expect("ended by ^C");
        new.expect("code 5");
        new.expect("ready> ");
        assert!(observe::state(job).is_none());
        new.press("\x15stty -a | cmp - ../before && echo same modes\r");
        new.expect("\r\nsame modes");
        new.end();
        old.end();
        lab.nothing_left();
    }

    /// ^Z stops the job and meio; fg lets both go on.
    fn a_restored_job_can_be_suspended() {
        let lab = Lab::new("suspend");
        let (mut old, job) = started(&lab);
        dumped(&lab, &mut old, job);
        let mut new = Shell::new(&lab);
        new.press("stty -a > ../before; $meio restore -q ../job.meio\r");
        new.expect("tick 2");
        for _ in 0..3 {
            new.press("\x1a");
            new.expect("Stopped");
            new.expect("ready> ");
            assert_eq!(observe::state(job), Some('T'));
            new.press("stty -a | cmp - ../before && echo same modes\r");
            new.expect("\r\nsame modes");
            new.expect("ready> ");
            new.press("fg\r");
            new.expect("tick ");
            new.expect("tick ");
            assert!(matches!(observe::state(job), Some('S' | 'R')));
        }
        new.press("\x03");
        new.expect("ended by ^C");
        new.expect("ready> ");
        new.press("echo code $?\r");
        new.expect("code 5");
        new.end();
        old.end();
        lab.nothing_left();
    }

    /// Killed by another one than ^C: the terminal is given back all the same.
    fn the_terminal_is_as_before_after_a_kill() {
        let lab = Lab::new("job-killed");
        let (mut old, job) = started(&lab);
        dumped(&lab, &mut old, job);
        let mut new = Shell::new(&lab);
        new.press("stty -a > ../before; $meio restore -q ../job.meio; echo code $?\r");
        new.expect("tick 2");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(job), nix::sys::signal::Signal::SIGKILL).expect("kill");
        new.expect("code 137");
        new.expect("ready> ");
        new.press("stty -a | cmp - ../before && echo same modes\r");
        new.expect("\r\nsame modes");
        new.end();
        old.end();
        lab.nothing_left();
    }

    fn a_session_has_the_new_terminals_size() {
        let mut lab = Lab::new("session");
        let session = Shell::new(&lab);
        let mut running = Running::child(&lab, session.child);
        // Detached it would be a session on a terminal that nobody sees.
        let image = lab.dump(&mut running, &["--kill"]);
        let done = lab.run(lab.meio(&["restore", "-d", image.to_str().expect("path")]));
        assert_eq!(done.code, 13, "{done:?}");
        assert!(done.stderr.contains("foreground") && done.stderr.contains("help: "), "{done:?}");
        assert!(observe::state(running.pid).is_none(), "something was started");

        let mut outer = Shell::new(&lab);
        outer.terminal.resize(50, 120);
        outer.press(&format!("stty -a > ../before; $meio restore -q {}; echo code $?\r", image.display()));
        assert!(until(SOON, || observe::state(running.pid) == Some('S') && super::bad_input::free(running.pid)), "{}", outer.terminal.shown());
        outer.press("\x15stty size; tty; echo pid $$\r");
        outer.expect("50 120");
        outer.expect(&format!("pid {}", running.pid));
        outer.expect("ready> ");
        for (rows, columns) in [(33, 77), (60, 200)] {
            outer.terminal.resize(rows, columns);
            std::thread::sleep(Duration::from_millis(400));
            outer.press("stty size\r");
            outer.expect(&format!("{rows} {columns}"));
            outer.expect("ready> ");
        }
        // ^C belongs to the session, not to meio.
        outer.press("sleep 100\r");
        assert!(until(SOON, || observe::tree(running.pid).len() == 2));
        std::thread::sleep(Duration::from_millis(200));
        outer.press("\x03");
        outer.expect("ready> ");
        outer.press("exit 9\r");
        outer.expect("code 9");
        outer.expect("ready> ");
        outer.terminal.resize(40, 100);
        outer.press("stty -a | cmp - ../before || stty -a | diff - ../before; stty size\r");
        outer.expect("40 100");
        outer.press("stty -a | grep -c ' icanon '\r");
        outer.expect("\r\n1\r");
        outer.end();
        lab.nothing_left();
    }

    /// Started with &, it leaves the shell its terminal, works behind it, and comes to the front with fg.
    fn a_job_can_be_restored_behind_the_shell() {
        let lab = Lab::new("behind");
        let (mut old, job) = started(&lab);
        dumped(&lab, &mut old, job);
        let mut new = Shell::new(&lab);
        new.press("stty -a > ../before; $meio restore -q ../job.meio > ../messages &\r");
        new.expect("tick 2");
        // The shell is in front, and ^C is for it.
        new.press("\x03");
        new.press("\rstty -a | cmp - ../before && echo same modes\r");
        new.expect("\r\nsame modes");
        new.expect("tick ");
        new.press("fg\r");
        new.expect("tick ");
        std::thread::sleep(Duration::from_millis(500));
        new.press("\x1a");
        new.expect("Stopped");
        new.expect("ready> ");
        new.press("bg\r");
        new.expect("tick ");
        new.press("echo front $((40+2))\r");
        new.expect("front 42");
        assert!(matches!(observe::state(job), Some('S' | 'R')));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(job), nix::sys::signal::Signal::SIGINT).expect("kill");
        new.expect("ended by ^C");
        new.press("wait; stty -a | cmp - ../before && echo same modes\r");
        new.expect("\r\nsame modes");
        new.end();
        old.end();
        lab.nothing_left();
    }

    /// Without any terminal the job still goes on, and is told so.
    fn a_job_without_a_terminal_is_warned_of() {
        let lab = Lab::new("no-terminal");
        let (mut old, job) = started(&lab);
        dumped(&lab, &mut old, job);
        let done = lab.run(lab.meio(&["restore", "-d", "--json", "../job.meio"]));
        assert_eq!(done.code, 3, "{done:?}");
        assert!(done.stdout.contains("/dev/null"), "{done:?}");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(job), nix::sys::signal::Signal::SIGKILL).expect("kill");
        old.end();
        lab.nothing_left();
    }
}
