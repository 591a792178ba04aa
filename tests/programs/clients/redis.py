"""Lets a redis count, over many connections at once, and counts along: addresses, port, number of connections.

Every connection has a counter of its own, whose answers must be 1, 2, 3, …, and all share one. Some ask one thing at a
time, others send up to 200 requests ahead.
"""
import random, selectors, socket, sys, time
import record


class Connection:
    def __init__(self, number, address):
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)
        self.request = b"*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n" % (len(b"own%d" % number), b"own%d" % number)
        self.request += b"*2\r\n$4\r\nINCR\r\n$3\r\nall\r\n"
        self.depth = [1, 1, 10, 100][number % 4]
        self.sent = self.acknowledged = self.last = 0
        self.came = self.out = b""
        self.since = time.monotonic_ns()

    def ask(self):
        if self.sent == self.acknowledged:
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


addresses = [(host, int(sys.argv[2])) for host in sys.argv[1].split(",")]
connections = [Connection(number, addresses[number % len(addresses)]) for number in range(int(sys.argv[3]))]
selector = selectors.DefaultSelector()
for connection in connections:
    selector.register(connection.socket, selectors.EVENT_READ, connection)
stopping = False
while not stopping or any(c.last < 2 * c.sent for c in connections):
    stopping = stopping or record.stop()
    for connection in connections:
        if stopping:
            connection.flush()
        else:
            connection.ask()
    for key, _ in selector.select(0.1):
        key.data.hear()
    time.sleep(0.002)
total = sum(c.acknowledged for c in connections)
last = socket.create_connection(addresses[0])
last.sendall(b"GET all\r\n")
said = last.recv(100).split(b"\r\n")[1]
assert int(said) == total, f"redis has counted to {said}, acknowledged were {total}"
record.end()
