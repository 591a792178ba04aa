"""Fills a redis with 1 GiB, then writes 5,000 values a second, each to a page that nothing else is in, and notes the
longest answers; when PREFIX.ask is there it is told, and begun anew."""
import os, random, socket, sys, time

host, port, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]
server = socket.create_connection((host, port), 60)
server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
stream = server.makefile("rb")
size, count = 4000, 1 << 18
noise = os.urandom(1 << 20)


def value():
    at = random.randrange(len(noise) - size)
    return noise[at:at + size]


def ask(numbers):
    server.sendall(b"".join(b"*3\r\n$3\r\nSET\r\n$8\r\n%08d\r\n$%d\r\n%b\r\n" % (n, size, value()) for n in numbers))
    for n in numbers:
        if stream.readline() != b"+OK\r\n":
            sys.exit("something else was answered")


for first in range(0, count, 256):
    ask(range(first, first + 256))
open(prefix + ".ready", "w").close()
times, due = [], time.monotonic()
while True:
    begun = time.monotonic()
    ask([random.randrange(count) for _ in range(5)])
    times = sorted(times + [time.monotonic() - begun])[-10:]
    if os.path.exists(prefix + ".ask"):
        with open(prefix + ".new", "w") as answer:
            answer.write(" ".join("%.1f" % (t * 1e3) for t in reversed(times)))
        os.rename(prefix + ".new", prefix + ".answer")
        os.unlink(prefix + ".ask")
        times = []
    # What was missed is not made good.
    due = max(due + 0.001, time.monotonic() - 0.01)
    time.sleep(max(0.0, due - time.monotonic()))
