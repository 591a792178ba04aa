"""Talks to a server that sends everything back, over HTTP connections that stay and over websockets: address, port.

Each request must be answered once, in order and with its own bytes; the server's count of all requests must be the
client's, and the ticks of each websocket must follow each other.
"""
import random, socket, struct, sys, threading, time
import record

address = (sys.argv[1], int(sys.argv[2]))
failed, answered, counts = [], 0, threading.Lock()
NOISE = random.Random(1).randbytes(1 << 20)


def noise(dice, most):
    at, length = dice.randrange(500000), dice.choice([0, 1, 30, 1000, most])
    return NOISE[at:at + length]


class Connection:
    def __init__(self):
        self.link = socket.create_connection(address, 30)
        self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.link.makefile("rb")

    def head(self):
        """The first line of an answer, and its fields."""
        first, fields = self.stream.readline(), {}
        assert first, "the server has closed the connection"
        while (line := self.stream.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip()
        return first, fields

    def frame(self):
        kind, length = self.stream.read(2)
        if length == 126:
            length, = struct.unpack(">H", self.stream.read(2))
        elif length == 127:
            length, = struct.unpack(">Q", self.stream.read(8))
        return kind & 15, self.stream.read(length)


def requests(number, depth):
    global answered
    dice, last = random.Random(number), 0
    connection = Connection()
    while not record.stop():
        bodies = [noise(dice, 200000) for _ in range(dice.randint(1, depth))]
        path = dice.choice(["now", "now", "later"])
        head = "POST /%s HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
        since = time.monotonic_ns()
        connection.link.sendall(b"".join((head % (path, len(body))).encode() + body for body in bodies))
        for body in bodies:
            first, fields = connection.head()
            assert first == b"HTTP/1.1 200 OK\r\n" and fields[b"connection"] == b"keep-alive", (first, fields)
            assert int(fields[b"content-length"]) == len(body) and connection.stream.read(len(body)) == body, "another body"
            count = int(fields[b"x-count"])
            assert count > last, f"request {count} after {last}"
            last = count
            since = record.heard(since)
            with counts:
                answered += 1
        time.sleep(0.003)


def websocket(number):
    dice, connection, ticks = random.Random(number), Connection(), 0
    connection.link.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    first, fields = connection.head()
    assert b" 101 " in first and fields[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", (first, fields)
    waiting, ended = [], False
    while not ended:
        since = time.monotonic_ns()
        ended = record.stop()
        for _ in range(dice.randint(1, 4)):
            waiting.append((dice.choice([1, 2, 9]), noise(dice, 100 if ended else 70000)))
        if ended:
            waiting.append((8, b"\x03\xe8"))
        for kind, data in waiting:
            mask, length = dice.randbytes(4), len(data)
            head = struct.pack(">BB", 128 | kind, 128 | length) if length < 126 else \
                struct.pack(">BBH", 128 | kind, 254, length) if length < 65536 else struct.pack(">BBQ", 128 | kind, 255, length)
            key = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
            connection.link.sendall(head + mask + (int.from_bytes(data, "big") ^ key).to_bytes(length, "big"))
        while waiting:
            kind, data = connection.frame()
            since = record.heard(since)
            if kind == 1 and data.startswith(b"tick "):
                assert data == b"tick %d" % ticks, (data[:30], ticks)
                ticks += 1
                continue
            sent, wanted = waiting.pop(0)
            assert kind == {9: 10}.get(sent, sent) and data == wanted, f"another frame: {kind} {data[:30]}, not {sent} {wanted[:30]}"
        time.sleep(0.002)
    assert ticks > 20 and connection.stream.read() == b"", "more after the end"


def guarded(work, *arguments):
    try:
        work(*arguments)
    except BaseException as error:
        failed.append(f"{work.__name__}{arguments}: {error!r}")


works = [(requests, n, depth) for n, depth in enumerate([1, 1, 1, 4, 12] * 3)] + [(websocket, n) for n in range(5)]
threads = [threading.Thread(target=guarded, args=work, daemon=True) for work in works]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads) and not failed:
    time.sleep(0.05)
assert not failed, failed
last = Connection()
last.link.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
count = int(last.head()[1][b"x-count"])
assert count == answered + 1, f"the server has answered {count - 1} requests, {answered} answers came"
record.end()
