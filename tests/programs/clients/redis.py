"""Lets a redis count, over many connections at once, and counts along: addresses, port, number of connections.

Every connection has a counter of its own, whose answers must be 1, 2, 3, …, and all share one. Some ask one thing at a
time, others send up to 200 requests ahead. Beside them somebody comes and goes for each question, and others listen to
what is published, and wait at a queue.
"""
import random, selectors, socket, sys, threading, time
import record


def words(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Counter:
    """Never waits: answers are heard when they are there."""
    def __init__(self, number, address):
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)
        self.request = words(b"INCR", b"own%d" % number) + words(b"INCR", b"all")
        self.depth = [1, 1, 10, 100][number % 4]
        self.sent = self.acknowledged = self.last = 0
        self.came = self.out = b""
        self.since = time.monotonic_ns()

    def ask(self):
        if self.last == 2 * self.sent:
            self.since = time.monotonic_ns()
            count = random.randint(1, self.depth)
            self.sent += count
            self.out += self.request * count
        self.flush()

    def flush(self):
        try:
            self.out = self.out[self.socket.send(self.out):] if self.out else b""
        except BlockingIOError:
            pass

    def hear(self):
        data = self.socket.recv(1 << 16)
        assert data, "the server has closed the connection"
        lines = (self.came + data).split(b"\r\n")
        self.came = lines.pop()
        for line in lines:
            self.last += 1
            assert line[:1] == b":", line
            if self.last % 2:
                self.acknowledged += 1
                assert int(line[1:]) == self.acknowledged, (line, self.acknowledged)
        self.since = record.heard(self.since, len(lines))


class Line:
    """Waits for each answer."""
    def __init__(self, address):
        self.socket = socket.create_connection(address, 60)
        self.stream = self.socket.makefile("rb")

    def say(self, *said):
        self.socket.sendall(words(*said))

    def hear(self):
        line = self.stream.readline()
        assert line.endswith(b"\r\n"), "the server has closed the connection"
        kind, rest = line[:1], int(line[1:])
        if kind == b"*":
            return [self.hear() for _ in range(rest)]
        if kind == b"$":
            return self.stream.read(rest + 2)[:-2]
        assert kind == b":", line
        return rest

    def ask(self, *said):
        since = time.monotonic_ns()
        self.say(*said)
        answer = self.hear()
        record.heard(since)
        return answer


def visit(address):
    count = 0
    while not record.stop():
        line = Line(address)
        count += 1
        answer = line.ask(b"INCR", b"visits")
        assert answer == count, f"visit {count} is number {answer}"
        line.stream.close()
        line.socket.close()
        time.sleep(0.004)


def publish(address):
    line, count = Line(address), 0
    while not record.stop():
        count += 1
        assert line.ask(b"PUBLISH", b"news", b"%d" % count) == 1
        assert line.ask(b"RPUSH", b"queue", b"%d" % count) >= 1
        time.sleep(0.004)
    line.ask(b"PUBLISH", b"news", b"end")
    line.ask(b"RPUSH", b"queue", b"end")


def listen(line):
    at, heard = 0, None
    while heard != b"end":
        heard, at = line.hear()[2], at + 1
        assert heard in (b"%d" % at, b"end"), f"message {at} is {heard}"


def wait(line):
    at, heard = 0, None
    while heard != b"end":
        line.say(b"BLPOP", b"queue", b"0")
        heard, at = line.hear()[1], at + 1
        assert heard in (b"%d" % at, b"end"), f"number {at} in the queue is {heard}"


def count(connections):
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    stopping = False
    while not stopping or any(c.last < 2 * c.sent for c in connections):
        stopping = stopping or record.stop()
        for connection in connections:
            connection.flush() if stopping else connection.ask()
        for key, _ in selector.select(0.1):
            key.data.hear()
        time.sleep(0.002)
    total = sum(c.acknowledged for c in connections)
    said = int(Line(addresses[0]).ask(b"GET", b"all"))
    assert said == total, f"redis has counted to {said}, acknowledged were {total}"


addresses = [(host, int(sys.argv[2])) for host in sys.argv[1].split(",")]
connections = [Counter(number, addresses[number % len(addresses)]) for number in range(int(sys.argv[3]))]
listener, waiter = Line(addresses[-1]), Line(addresses[0])
assert listener.ask(b"SUBSCRIBE", b"news") == [b"subscribe", b"news", 1]
record.together([(count, connections), (visit, addresses[-1]), (publish, addresses[0]), (listen, listener), (wait, waiter)])
