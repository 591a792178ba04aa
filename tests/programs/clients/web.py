"""Asks a web server for files without end: address, ports, folder with the files (`big` and `small-0` … `small-99`).

Downloads as fast as they come and slowly, many small requests over connections that stay, some of them sent ahead, and
connections for one request each. Every byte must be the one of the file; the server must not end a connection.
"""
import itertools, mmap, os, random, socket, sys, threading, time
import record

addresses = itertools.cycle([(sys.argv[1], int(port)) for port in sys.argv[2].split(",")])
folder, failed = sys.argv[3], []
with open(os.path.join(folder, "big")) as file:
    BIG = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
SMALL = [open(os.path.join(folder, f"small-{n}"), "rb").read() for n in range(100)]


def other(data, wanted, at):
    """What came instead of what was wanted at this place, in words."""
    same = next((n for n, (a, b) in enumerate(zip(data, wanted[at:])) if a != b), 0)
    sources = [("the same file", wanted), ("big", BIG[:].obj)] + [(f"small-{n}", file) for n, file in enumerate(SMALL)]
    places = [f"{name} at {place}" for name, file in sources if (place := file.find(data[same:same + 30])) >= 0]
    return f"{len(data)} bytes came at {at} of {len(wanted)}; from {same} on they are others: {data[same:same + 30]}, {places}"


class Connection:
    def __init__(self, window=None):
        self.link = socket.socket()
        if window:
            self.link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.link.settimeout(30)
        self.link.connect(next(addresses))
        self.part = bytearray(1 << 17)
        self.came = b""

    def ask(self, names):
        self.link.sendall(b"".join(b"GET /%s HTTP/1.1\r\nHost: test\r\n\r\n" % name.encode() for name in names))

    def recv(self, since):
        length = self.link.recv_into(self.part)
        assert length, "the server has closed the connection"
        record.heard(since)
        return memoryview(self.part)[:length]

    def head(self, length):
        """The header of an answer with a body of this length."""
        while b"\r\n\r\n" not in self.came:
            self.came += self.recv(time.monotonic_ns())
        head, _, self.came = self.came.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        assert lines[0] == b"http/1.1 200 ok" and b"content-length: %d" % length in lines, head
        assert b"connection: close" not in lines, head

    def body(self, wanted, pause):
        at = min(len(self.came), len(wanted))
        assert self.came[:at] == wanted[:at], "other bytes at the beginning"
        self.came = self.came[at:]
        while at < len(wanted):
            data = self.recv(time.monotonic_ns())
            length = min(len(data), len(wanted) - at)
            assert data[:length] == wanted[at:at + length], other(bytes(data), bytes(wanted), at)
            self.came = bytes(data[length:])
            at += length
            if pause and not record.stop():
                time.sleep(pause)

    def download(self, pause=0):
        self.ask(["big"])
        self.head(len(BIG))
        self.body(BIG, pause)


def downloads(pause, window):
    connection = Connection(window)
    while not record.stop():
        connection.download(pause)


def requests(depth):
    dice = random.Random()
    connection = Connection()
    while not record.stop():
        numbers = [dice.randrange(100) for _ in range(dice.randint(1, depth))]
        connection.ask([f"small-{n}" for n in numbers])
        for n in numbers:
            connection.head(len(SMALL[n]))
            connection.body(SMALL[n], 0)
        assert not connection.came, "more than was asked for"
        time.sleep(0.003)


def callers():
    while not record.stop():
        n = random.randrange(100)
        connection = Connection()
        connection.ask([f"small-{n}"])
        connection.head(len(SMALL[n]))
        connection.body(SMALL[n], 0)
        connection.link.shutdown(socket.SHUT_WR)
        assert connection.link.recv(1) == b"" and not connection.came, "more than was asked for"
        connection.link.close()
        time.sleep(0.005)


def guarded(work, *arguments):
    try:
        work(*arguments)
    except BaseException as error:
        failed.append(f"{work.__name__}{arguments}: {error!r}")


works = [(downloads, 0, None), (downloads, 0.0005, 100000), (downloads, 0.02, None), (callers,)]
works += [(requests, depth) for depth in [1, 1, 1, 5, 5, 20] * 3]
threads = [threading.Thread(target=guarded, args=work, daemon=True) for work in works]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads) and not failed:
    time.sleep(0.05)
assert not failed, failed
record.end()
