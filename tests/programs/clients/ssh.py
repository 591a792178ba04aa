"""Works in a shell at the other end of an OpenSSH connection: number of visitors, the ssh command that leads there.

Three sessions share one connection: a shell at a terminal, where every command must be answered once and in order by one
and the same shell; a program there that counts without end; and one without a terminal that sends all back. Keys are
changed all the time. Visitors come for one command each, with a connection of their own.
"""
import fcntl, os, pty, random, re, struct, subprocess, sys, termios, threading, time
import record

failed = []
VISITORS = int(sys.argv[1])
COMMAND = sys.argv[2:]
SHARED = ["-S", "shared"]


class Terminal:
    """ssh at a terminal of its own."""

    def __init__(self, *arguments):
        self.process, self.fd = pty.fork()
        if self.process == 0:
            os.execvp("ssh", [*COMMAND[:1], *arguments])
        self.came = b""

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def say(self, text):
        os.write(self.fd, text.encode())

    def line(self):
        since = time.monotonic_ns()
        while b"\n" not in self.came:
            self.came += os.read(self.fd, 65536)
        line, _, self.came = self.came.partition(b"\n")
        record.heard(since)
        return line.rstrip(b"\r").decode()

    def ask(self, command, *wanted):
        """Everything that comes is what this command says."""
        self.say(command + "\n" * (command != "\x03"))
        for text in wanted:
            said = self.line()
            assert said == text, f"{command!r}: {said!r}, not {text!r}"

    def end(self, wanted):
        _, status = os.waitpid(self.process, 0)
        assert os.waitstatus_to_exitcode(status) == wanted, f"ssh ended with {status:#x}"


def quiet(terminal):
    """No prompt, no echo."""
    terminal.say("PS1=; PS2=; unset PROMPT_COMMAND; stty -echo; echo be''gin\n")
    while not terminal.line().endswith("begin"):
        pass


def shell(terminal):
    dice, n, kept, size = random.Random(1), 0, "", "24 80"
    terminal.resize(24, 80)
    terminal.ask("stty rows 24 columns 80")
    terminal.ask("echo $$ $PPID")
    who = terminal.line()
    terminal.ask("set -o monitor; trap 'echo caught' USR1; sleep 10000 &")
    job = terminal.line()
    assert re.fullmatch(r"\[1\] \d+", job), job
    while not record.stop():
        n += 1
        kept = (kept + chr(dice.randrange(97, 123)))[-50:]
        kind = dice.randrange(6)
        terminal.ask(f"kept=${{kept}}{kept[-1]}; kept=${{kept: -{min(n, 50)}}}; n=$((n + 1)); echo $n $kept", f"{n} {kept}")
        if kind == 0:
            length = dice.randrange(1, 20000)
            terminal.say(f"head -c {length} /dev/zero | tr '\\0' x | fold -w 100; echo; echo over\n")
            got = 0
            while (line := terminal.line()) != "over":
                assert line.strip("x") == "", line
                got += len(line)
            assert got == length, f"{got} characters instead of {length}"
        elif kind == 1:
            terminal.ask("bash -c 'echo now; exec sleep 10000'; echo not interrupted", "now")
            terminal.ask("\x03", "")
            terminal.ask("echo $?", "130")
        elif kind == 2:
            terminal.ask("kill -USR1 $$", "caught")
        elif kind == 3:
            rows, columns = dice.randrange(10, 90), dice.randrange(20, 200)
            terminal.resize(rows, columns)
            for attempt in range(100): # ssh is told of it in its own time
                terminal.ask("stty size")
                said = terminal.line()
                assert said == f"{rows} {columns}" or said == size and attempt < 99, (said, size, rows, columns)
                if said != size:
                    break
            size = said
        elif kind == 4:
            words = " ".join(dice.choices(["one", "two", "three"], k=dice.randrange(1, 30)))
            terminal.ask(f"cat <<END\n{words}\n{n}\nEND", words, str(n))
        else:
            terminal.say("read word; echo got $word\n")
            time.sleep(0.03)
            terminal.ask(f"w{n}", f"got w{n}")
        time.sleep(0.005)
    terminal.ask("echo $$ $PPID", who)
    terminal.ask("jobs -p; kill %1; wait; tty | tr -d 0-9", job.split()[1])
    while (line := terminal.line()) != "/dev/pts/":
        assert "Terminated" in line, line
    terminal.ask("echo $n $kept", f"{n} {kept}")


def ticks():
    terminal = Terminal(*SHARED, "-q", "-tt", "x", "stty -opost; i=0; while echo tick $((i++)); do read -t 0.002; [ -z \"$REPLY\" ] || exit 7; done")
    number = 0
    while not record.stop():
        said = terminal.line()
        assert said == f"tick {number}", (said, number)
        number += 1
    terminal.say("end\n")
    while number < 1 << 30:
        try:
            said = terminal.line()
        except OSError:
            break
        assert said in (f"tick {number}", "end"), (said, number)
        number += said != "end"
    terminal.end(7)


def echo():
    process = subprocess.Popen(["ssh", *SHARED, "x", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    noise = random.Random(2).randbytes(1 << 20)
    sent = 0

    def send():
        nonlocal sent
        dice = random.Random(3)
        while not record.stop():
            at = sent % len(noise)
            sent += process.stdin.write(noise[at:at + dice.choice([1, 100, 30000])])
            time.sleep(0.002)
        process.stdin.close()

    thread = threading.Thread(target=guarded, args=(send,))
    thread.start()
    at = 0
    while True:
        since = time.monotonic_ns()
        data = process.stdout.read(65536)
        record.heard(since)
        if not data:
            break
        while data:
            part, data = data[:len(noise) - at % len(noise)], data[len(noise) - at % len(noise):]
            assert part == noise[at % len(noise):at % len(noise) + len(part)], f"other bytes at {at}"
            at += len(part)
    thread.join()
    assert at == sent and process.wait() == 0, f"{sent} bytes were sent, {at} came back, exit {process.returncode}"


def visit():
    while not record.stop():
        number, since = str(random.randrange(1000000)), time.monotonic_ns()
        done = subprocess.run([*COMMAND, "x", "echo", number], stdin=subprocess.DEVNULL, capture_output=True)
        assert done.returncode == 0 and done.stdout.decode() == number + "\n", f"a visitor: {done}"
        record.heard(since)
        time.sleep(0.01)


def guarded(work, *arguments):
    try:
        work(*arguments)
    except BaseException as error:
        failed.append(f"{work.__name__}: {error!r}")


main = Terminal(*COMMAND[1:], "-tt", "-M", *SHARED, "x", "exec bash --norc --noediting -i")
quiet(main)
threads = [threading.Thread(target=guarded, args=work, daemon=True) for work in [(shell, main), (ticks,), (echo,)] + [(visit,)] * VISITORS]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads) and not failed:
    time.sleep(0.05)
assert not failed, (failed, main.came)
main.say("exit 5\n")
main.end(5)
record.end()
